"""Images of the pool scored on a frozen trunk, from the file to the score: python -m benchmarks.scoring

Data: crops of scikit-learn's two sample photographs, JPEG files of 400 x 400 pixels, read at 96; the class of a crop
is the tenth of the photographs that its centre is in. Model: EfficientNet-Lite0 with its ImageNet weights, the first
head trained on 500 crops, the others drawn. Scores: those that a round computes, margin, entropy and, of several
members, its two parts. On a machine with a GPU also ResNet-18 at 224 pixels, on images that are in memory already.
Options: [--json OUT] [--only NAME ...] [--quick]
"""

from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.lite0 import PREPROCESSING, lite0
from benchmarks.measure import Case, Contender, arguments, report, run
from benchmarks.photos import (
    N_CLASSES,
    N_HEADS,
    N_LABELLED,
    SETTINGS,
    SIZE,
    Features,
    Photos,
    extract_features,
    fit_head,
    with_empty_cache,
    write_photos,
)
from benchmarks.rounds import make_round, waits, whole_round
from connectors.frozen_features import cached_features, open_cache
from pipeline.learning.networks import CHUNK
from pipeline.learning.predict import decide_on_features, decide_on_images
from pipeline.learning.settings import MemberSettings
from pipeline.networks.build import build_model
from pipeline.networks.classifier import Classifier, half_precision
from pipeline.selection.ask import probs_read, score_candidates
from pipeline.selection.settings import SelectionSettings
from pipeline.tasks import classification
from pipeline.training.fit import fit
from pipeline.training.recipe import Recipe

DATA = "crops of two photographs as JPEG files of 400 px, read at 96 px; EfficientNet-Lite0, ImageNet weights"
HOW = SelectionSettings()
GPU_BATCH = 256
"""Images at a time in the bare pass on a GPU."""
NEAR_TIE = 0.05
"""Two classes whose probabilities differ by less are a tie as far as rounding goes."""
AGREEMENT = "share of images with the likeliest class of the float32 loop"


def main() -> None:
    """Measure, print, write."""
    listed = [*cases(), *(gpu_cases("cuda") if torch.cuda.is_available() else [])]
    options = arguments(__doc__, [case.name for case in listed])
    report(run(listed, options, DATA), DATA)


def cases() -> list[Case]:
    """Return the cases for the processor."""
    pool: dict[str, Any] = {"inputs": partial(write_photos, 1024), "small": partial(write_photos, 64)}
    agreement: dict[str, Any] = {"quality": agreement_with_loop, "quality_of": AGREEMENT}
    plain, dropout, ensemble = (
        partial(score, MemberSettings(ensemble=n, mc_dropout=passes)) for n, passes in ((1, 0), (1, 20), (N_HEADS, 0))
    )
    one_pass = Contender("limit: ours, one plain pass", plain, prepare=with_empty_cache)
    return [
        Case(
            name="dropout",
            work="read and score, 20 dropout passes",
            ours=Contender("ours", dropout, prepare=with_empty_cache),
            peers=(one_pass, Contender("baal", peers.mc_dropout_baal, package="baal", prepare=as_network)),
            note=images_per_second,
            **pool | {"inputs": partial(write_photos, 128)},  # baal takes 0.2 s for each
        ),
        Case(
            name="ensemble",
            work="read and score, 5 heads",
            ours=Contender("ours", ensemble, prepare=with_empty_cache),
            peers=(one_pass,),
            note=images_per_second,
            **pool,
        ),
        Case(
            name="second-round",
            work="score again with 5 heads, features in the cache",
            ours=Contender("ours", ensemble, prepare=with_full_cache),
            peers=(Contender("ours, nothing in the cache", ensemble, prepare=with_empty_cache),),
            note=images_per_second,
            **pool,
        ),
        Case(
            name="first-pass",
            work="read and predict, one plain pass",
            ours=Contender("ours", plain, prepare=with_empty_cache),
            peers=tuple(
                Contender(
                    f"float32 loop, {workers} workers", partial(peers.evaluation_loop, workers), prepare=as_network
                )
                for workers in (0, 2)
            ),
            note=about_disagreements,
            **pool,
            **agreement,
        ),
        Case(
            name="head",
            work="train a head on features",
            inputs=partial(extract_features, N_LABELLED),
            small=partial(extract_features, 32),
            ours=Contender("ours", train_head),
            peers=(Contender("logistic regression", peers.logistic_regression, package="scikit-learn"),),
            quality=accuracy,
            quality_of="share of other crops that are put into the right tenth",
        ),
        Case(
            name="round",
            work="from the last answer to the next batch on cached features, besides servers and files: "
            "cross-fit, train 5 heads, score, select 100",
            inputs=partial(make_round, 10_000),
            small=partial(make_round, 200),
            ours=Contender("ours", whole_round),
            note=waits,
        ),
    ]


# Inputs.


@cache
def with_full_cache(photos: Photos) -> tuple[Photos, Path]:
    """Return the crops, and a folder that has their features."""
    _, folder = with_empty_cache(photos)
    score(MemberSettings(ensemble=1), (photos, folder), 0)
    return photos, folder


def as_network(photos: Photos) -> peers.Files:
    """Return the crops and a network of plain torch: the first head on a trunk of its own, all in float32."""
    network = lite0()
    network[-1] = nn.Sequential(nn.Dropout(0.5), photos.heads[0].tail[-1])
    mean, std = PREPROCESSING["mean"], PREPROCESSING["std"]
    return peers.Files(network.eval(), photos.uris, size=SIZE, mean=mean, std=std)


# Reading and scoring, as a round does it.


def score(members: MemberSettings, prepared: tuple[Photos, Path], seed: int) -> Tensor:
    """Score all crops; return the mean probabilities `(N, C)` of the members."""
    photos, folder = prepared
    heads, probs = photos.heads[: members.ensemble], []
    cache = open_cache(folder, heads[0], image_size=SIZE)
    features = cached_features(cache, heads[0], photos.ids, photos.uris, image_size=SIZE)
    for decisions, *_ in decide_on_features(heads, features, members, task=classification, seed=seed):
        score_candidates(decisions, HOW)
        probs.append(probs_read(decisions, HOW)[:, 0])
    return torch.cat(probs)


def images_per_second(photos: Photos, result: Tensor, seconds: float, peak: float | None) -> str:
    """Say how many images a second ours scores."""
    return f"{len(photos.uris) / seconds:,.0f} images/s"


@cache
def loop_probs(photos: Photos) -> Tensor:
    """Probabilities `(N, C)` of the float32 loop."""
    return peers.evaluation_loop(0, as_network(photos), 0)


def agreement_with_loop(photos: Photos, probs: Tensor) -> float:
    """Return the share of crops that are put into the same class."""
    return float((probs.argmax(dim=1) == loop_probs(photos).argmax(dim=1)).float().mean())


def about_disagreements(photos: Photos, probs: Tensor, seconds: float, peak: float | None) -> str:
    """Say how far apart the loop has its two likeliest classes where ours takes another."""
    right = float((probs.argmax(dim=1) == photos.targets).float().mean())
    speed = images_per_second(photos, probs, seconds, peak)
    gaps = gaps_of_disagreement(probs, loop_probs(photos))
    if not len(gaps):
        return f"{speed}, {right:.3f} of them right; all likeliest classes agree with the loop's"
    far, largest = int((gaps >= NEAR_TIE).sum()), float(gaps.max())
    return f"{speed}, {right:.3f} of them right; {len(gaps)} differ, {far} are no near-ties (largest gap {largest:.3f})"


def gaps_of_disagreement(probs: Tensor, theirs: Tensor) -> Tensor:
    """Return `(m,)` by how much theirs prefer their likeliest class to the next, where ours `(N, C)` is another."""
    top = theirs[probs.argmax(dim=1) != theirs.argmax(dim=1)].topk(2).values
    return top[:, 0] - top[:, 1]


# Training a head.


def train_head(data: Features, seed: int) -> Tensor:
    """Train a head, see what it learnt, and calibrate it; return what it takes the others for, `(m,)`."""
    head = fit_head(data.labelled, data.targets, seed=seed)
    with torch.inference_mode():
        return head.read(data.others).argmax(dim=1)


def accuracy(data: Features, guesses: Tensor) -> float:
    """Return the share of the others whose class is right."""
    return float((guesses == data.other_targets).float().mean())


# On a GPU, against the same pass on tensors that lie there already.


@dataclass(frozen=True)
class OnGPU:
    """Images in main memory and ResNet-18 on the GPU.

    Attributes:
        images: `(N, 3, 224, 224)` of uint8; targets `(N,)`.
    """

    images: Tensor
    targets: Tensor
    model: Classifier

    def __str__(self) -> str:
        return f"{len(self.images):,} images of 224 px, {device_of(self.model)}"


def device_of(model: Classifier) -> str:
    """Return the GPU's name."""
    device = model.mean.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def make_images(n: int, device: str) -> OnGPU:
    """Return n images of noise and a network with drawn weights."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (n, 3, 224, 224), dtype=torch.uint8, generator=generator)
    model = build_model("torchvision:resnet18", n_classes=N_CLASSES, image_size=224, channels=3, seed=0)
    return OnGPU(images, torch.randint(N_CLASSES, (n,), generator=generator), model.to(device))


def gpu_cases(device: str) -> list[Case]:
    """Return the cases for a GPU."""
    pool: dict[str, Any] = {"inputs": partial(make_images, 8192, device), "small": partial(make_images, 256, device)}
    return [
        Case(
            name="gpu-score",
            work="GPU: score images that are in main memory",
            ours=Contender("ours", score_on_gpu, device=device),
            peers=(Contender("limit: bare forward pass", bare_forward, prepare=moved, device=device),),
            note=gpu_images_per_second,
            **pool,
        ),
        Case(
            name="gpu-train",
            work="GPU: two epochs of training",
            ours=Contender("ours", train_on_gpu, device=device),
            peers=(Contender("limit: bare loop", bare_training, prepare=moved, device=device),),
            note=partial(gpu_images_per_second, epochs=2),
            **pool,
        ),
    ]


def moved(data: OnGPU) -> OnGPU:
    """Return the data with the images on the GPU, as floats that the trunk reads."""
    parts = [data.model.normalise(part.to(data.model.mean.device)) for part in data.images.split(GPU_BATCH)]
    return replace(data, images=torch.cat(parts), targets=data.targets.to(data.model.mean.device))


def score_on_gpu(data: OnGPU, seed: int) -> Tensor:
    """Score all images, as a round does without a frozen trunk."""
    parts = decide_on_images([data.model], data.images.split(CHUNK), SETTINGS, None, task=classification, seed=seed)
    return torch.cat([score_candidates(decisions, HOW).scores for decisions, *_ in parts])


def bare_forward(data: OnGPU, seed: int) -> Tensor:
    """Pass all images through the network, in the precision that ours has; the last sum waits for the GPU."""
    with torch.inference_mode(), half_precision(data.model, data.images.device):
        logits = [data.model.tail(data.model.trunk(part)) for part in data.images.split(GPU_BATCH)]
        return torch.cat(logits).sum().cpu()


def train_on_gpu(data: OnGPU, seed: int) -> None:
    """Train for two epochs with what a campaign has by default; nothing is held out."""
    fit(
        data.model,
        data.images,
        data.targets,
        Recipe(augmentation="natural", max_epochs=2),
        task=classification,
        seed=seed,
        device=data.model.mean.device,
    )


def bare_training(data: OnGPU, seed: int) -> Tensor:
    """Train for two epochs of as many steps, in the precision that ours has, and nothing besides."""
    model = data.model
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    for _ in range(2):
        for images, targets in zip(data.images.split(32), data.targets.split(32), strict=True):
            with half_precision(model, images.device):
                logits = model.tail(model.trunk(images))
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(logits.float(), targets)
            loss.backward()
            optimiser.step()
    return loss.detach().cpu()


def gpu_images_per_second(data: OnGPU, result: Any, seconds: float, peak: float | None, *, epochs: int = 1) -> str:
    """Say how many images a second ours takes, and on what."""
    return f"{epochs * len(data.images) / seconds:,.0f} images/s on {device_of(data.model)}"


if __name__ == "__main__":
    main()
