"""Images of the pool scored on a frozen trunk, from the file to the score: python -m benchmarks.scoring

Data: crops of scikit-learn's two sample photographs, JPEG files of 400 x 400 pixels, read at 96; the class of a crop
is the tenth of the photographs that its centre is in. Model: EfficientNet-Lite0 with its ImageNet weights, the first
head trained on 500 crops, the others drawn. Scores: those that a round computes, margin, entropy and, of several
members, bald. On a machine with a GPU also ResNet-18 at 224 pixels, on images that are in memory already.
Options: [--json OUT] [--only NAME ...] [--quick]
"""

import tempfile
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks import peers
from benchmarks.lite0 import PREPROCESSING, lite0
from benchmarks.measure import Case, Contender, arguments, report, run
from benchmarks.transfer import lite0_settings
from connectors.feature_store import FeatureCache
from connectors.frozen_features import cached_features
from connectors.images.pixels import load_images
from pipeline.learning.lesson import Lesson
from pipeline.learning.networks import frozen_body
from pipeline.learning.settings import MemberSettings
from pipeline.learning.train import learn, train_network
from pipeline.members.predict import predict_from_features, predict_members
from pipeline.networks.build import build_model, with_new_head
from pipeline.networks.classifier import Classifier, half_precision
from pipeline.networks.features import extract, feature_key
from pipeline.selection.batch import select_batch
from pipeline.selection.scoring import score_columns
from pipeline.selection.settings import SelectionSettings
from pipeline.tasks import classification
from pipeline.training.fit import fit
from pipeline.training.recipe import Recipe
from pipeline.types import Batch, Candidates

DATA = "crops of two photographs as JPEG files of 400 px, read at 96 px; EfficientNet-Lite0, ImageNet weights"
SIZE, N_CLASSES, N_LABELLED, N_HEADS = 96, 10, 500, 5
SETTINGS = lite0_settings("cifar").model_copy(update={"image_size": SIZE})
SHARD = 4096
"""Candidates in one file of scores, as in a round."""
CPU = torch.device("cpu")
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
    plain, dropout, ensemble = partial(score, 1, 0), partial(score, 1, 20), partial(score, N_HEADS, 0)
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
        ),
    ]


# Inputs.


@dataclass(frozen=True, eq=False)
class Photos:
    """Crops on disk, and networks on one trunk to score them with.

    Attributes:
        ids: `(N,)` item ids, with uris and targets `(N,)`, class indices.
        heads: networks that share their trunk, the first with a trained head.
        folder: deleted when nobody holds it.
    """

    ids: list[str]
    uris: list[str]
    targets: Tensor
    heads: list[Classifier]
    folder: tempfile.TemporaryDirectory[str] = field(repr=False)

    def __str__(self) -> str:
        return f"{len(self.uris):,} photographs"


def write_photos(n: int) -> Photos:
    """Write n crops as JPEG files, and train a head on others."""
    folder = tempfile.TemporaryDirectory()
    n_labelled = min(n, N_LABELLED)
    uris, targets = write_crops(Path(folder.name), n + n_labelled)
    labelled = load_images(uris[n:], size=SIZE, channels=3)
    trained = fit_head(extract(trunk(), labelled, device=CPU), targets[n:], seed=0)
    heads = [trained, *(with_new_head(trained, seed=seed) for seed in range(1, N_HEADS))]
    return Photos([Path(uri).stem for uri in uris[:n]], uris[:n], targets[:n], heads, folder)


def write_crops(folder: Path, n: int) -> tuple[list[str], Tensor]:
    """Write n crops as JPEG files; return their paths and classes `(n,)`."""
    from sklearn.datasets import load_sample_images

    pictures = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    rng = np.random.default_rng(0)
    uris, targets = [], []
    for place in range(n):
        which = int(rng.integers(len(pictures)))
        picture, side = pictures[which], int(rng.integers(160, 261))
        left, top = (int(rng.integers(length - side + 1)) for length in picture.size)
        uris.append(str(folder / f"{place:06d}.jpg"))
        picture.resize((400, 400), box=(left, top, left + side, top + side)).save(uris[-1], quality=90)
        targets.append(5 * which + int(5 * (left + side / 2) / picture.width))
    return uris, torch.tensor(targets)


def with_empty_cache(photos: Photos) -> tuple[Photos, Path]:
    """Return the crops, and a new folder for their features."""
    return photos, Path(tempfile.mkdtemp(dir=photos.folder.name))


@cache
def with_full_cache(photos: Photos) -> tuple[Photos, Path]:
    """Return the crops, and a folder that has their features."""
    _, folder = with_empty_cache(photos)
    score(1, 0, (photos, folder), 0)
    return photos, folder


def as_network(photos: Photos) -> peers.Files:
    """Return the crops and a network of plain torch: the first head on a trunk of its own, all in float32."""
    network = lite0()
    network[-1] = nn.Sequential(nn.Dropout(0.5), photos.heads[0].tail[-1])
    mean, std = PREPROCESSING["mean"], PREPROCESSING["std"]
    return peers.Files(network.eval(), photos.uris, size=SIZE, mean=mean, std=std)


# Reading and scoring, as a round does it.


def score(n_heads: int, mc_dropout: int, prepared: tuple[Photos, Path], seed: int) -> Tensor:
    """Score all crops; return the mean probabilities `(N, C)` of the members."""
    photos, folder = prepared
    heads = photos.heads[:n_heads]
    files = FeatureCache(folder, feature_key(heads[0], image_size=SIZE))
    features = cached_features(files, heads[0], photos.ids, photos.uris, image_size=SIZE)
    decisions, _ = predict_from_features(heads, features, task=classification, mc_dropout=mc_dropout, seed=seed)
    score_columns(decisions, {"margin", "entropy", *(["bald"] if decisions.shape[2] > 1 else [])}, reduce="mean")
    return decisions[:, 0].mean(dim=1)


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


# Training a head, and a whole round.


@dataclass(frozen=True)
class Features:
    """Features in memory, of labelled crops and of others.

    Attributes:
        labelled: `(n, D)`, with targets `(n,)`.
        others: `(m, D)`, with other_targets `(m,)`.
    """

    labelled: Tensor
    targets: Tensor
    others: Tensor
    other_targets: Tensor

    def __str__(self) -> str:
        n, n_features = self.labelled.shape
        return f"{n} labels x {n_features}"


def extract_features(n: int) -> Features:
    """Return features of n labelled crops and of as many others."""
    with tempfile.TemporaryDirectory() as folder:
        uris, targets = write_crops(Path(folder), 2 * n)
        features = extract(trunk(), load_images(uris, size=SIZE, channels=3), device=CPU)
    return Features(features[:n], targets[:n], features[n:], targets[n:])


def train_head(data: Features, seed: int) -> Tensor:
    """Train a head, see what it learnt, and calibrate it; return what it takes the others for, `(m,)`."""
    head = fit_head(data.labelled, data.targets, seed=seed)
    with torch.inference_mode():
        return head.read(data.others).argmax(dim=1)


def fit_head(features: Tensor, targets: Tensor, *, seed: int) -> Classifier:
    """A head on features, trained as a campaign trains it, but for the search out of fold."""
    lesson = Lesson(classification, N_CLASSES, "head", features, targets, trunk())
    return train_network(lesson, SETTINGS, MemberSettings(), seed=seed).model


@cache
def trunk() -> Classifier:
    """The network whose frozen trunk all heads share."""
    return frozen_body(SETTINGS, n_classes=N_CLASSES)


def accuracy(data: Features, guesses: Tensor) -> float:
    """Return the share of the others whose class is right."""
    return float((guesses == data.other_targets).float().mean())


@dataclass(frozen=True)
class Round:
    """A round about to train: features of labelled images and candidates are in the cache.

    Attributes:
        ids: of the labelled images, which come first, and of the candidates.
        targets: `(M,)` class indices of the labelled images.
    """

    photos: Photos
    folder: Path
    ids: list[str]
    targets: Tensor

    def __str__(self) -> str:
        return f"{len(self.targets)} labels, {len(self.ids) - len(self.targets):,} candidates"


def make_round(n: int) -> Round:
    """Fill a cache with features of n candidates and of `N_LABELLED` images with labels.

    No image is read in the round, so the features are those of 1,000 crops at most, again and again with noise.
    """
    photos, folder = with_empty_cache(write_photos(min(n, 1000)))
    images = load_images(photos.uris, size=SIZE, channels=3)
    features = extract(trunk(), images, device=CPU).float()
    n_labelled = min(N_LABELLED, len(features))
    rows = torch.arange(n_labelled + n) % len(features)
    generator = torch.Generator().manual_seed(0)
    noisy = features[rows] + features.std() / 4 * torch.randn(len(rows), features.shape[1], generator=generator)
    ids = [f"{row:07d}" for row in range(len(rows))]
    FeatureCache(folder, feature_key(trunk(), image_size=SIZE)).append(ids, noisy.half())
    return Round(photos, folder, ids, photos.targets[:n_labelled])


def whole_round(prepared: Round, seed: int) -> Batch:
    """Train, score and select, with the functions of a round in their order."""
    targets = prepared.targets
    files = FeatureCache(prepared.folder, feature_key(trunk(), image_size=SIZE))
    labelled = files.read(prepared.ids[: len(targets)])
    lesson = Lesson(classification, N_CLASSES, "head", labelled, targets, trunk())
    heads = learn(lesson, SETTINGS, MemberSettings(ensemble=N_HEADS), seed=seed, round_number=1)
    predict = partial(predict_from_features, heads, task=classification, seed=seed)
    _, labelled_embeddings = predict(labelled)
    parts, columns = [], {"margin", "entropy", "aleatoric", "epistemic"}
    for start in range(len(targets), len(prepared.ids), SHARD):
        decisions, embeddings = predict(files.read(prepared.ids[start : start + SHARD]))
        parts.append((score_columns(decisions, columns, reduce="mean")["margin"], decisions[:, 0], embeddings))
    scores, probs, embeddings = (torch.cat(columns) for columns in zip(*parts, strict=True))
    candidates = Candidates(
        ids=np.array(prepared.ids[len(targets) :], dtype=np.str_),
        scores=scores,
        probs=probs,
        embeddings=embeddings,
        labelled_embeddings=labelled_embeddings,
        labelled_targets=targets,
    )
    return select_batch(candidates, SelectionSettings(strategy="auto"), round_number=1, seed=seed)


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
    decisions, _ = predict_members([data.model], data.images, task=classification, seed=seed)
    return score_columns(decisions, {"margin", "entropy"}, reduce="mean")["margin"]


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
