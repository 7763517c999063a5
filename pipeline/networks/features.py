"""Features of a frozen trunk: what its tail reads of images, and the digest of all that they depend on."""

import hashlib
import inspect
import json
import re
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

from pipeline.networks.classifier import Classifier, evaluating, half_precision
from pipeline.networks.errors import ModelError
from pipeline.networks.halving import Work, halving
from pipeline.networks.once import once_for_each_network

FORMAT = 3
"""Part of every key: raise it when a change of the code changes the features of an image."""
BATCH = 32
"""Images of one forward pass on a processor, few enough for its cache: with 64 of 96 or 224 pixels EfficientNet-Lite0
takes 1.5 times as long, ResNet-18 from 0.9 to 1.1 times."""
GPU_BATCH = 64
"""Images of one forward pass elsewhere."""
LIBRARIES = ("torch", "torchvision", "timm")
"""Whose layers are told by their release, and not by their source."""


def extract(model: Classifier, images: Tensor, *, device: torch.device) -> Tensor:
    """What the tail reads of each image, rounded to float16, with the trunk in evaluation mode.

    Every forward pass has the same number of images, filled up with black ones, because a network's last bits depend
    on the size of the batch: so an image's features do not depend on the images beside it. They may depend on the
    device, the release of torch, and the number of threads; and on the memory of a GPU, which has fewer images pass at
    a time where it is small (`halving`).

    Args:
        images: uint8 `(n, channels, S, S)`.
        device: where the network runs; it is moved there.

    Returns:
        float16 `(n, D)`, or `(n, …)` where the trunk ends in something else than a vector; on the CPU.

    Raises:
        ModelError: a feature is not finite in float16, whose largest number is 65,504.
    """
    model.to(device)
    with torch.no_grad(), evaluating(model):
        most = BATCH if device.type == "cpu" else GPU_BATCH
        features = halving(
            lambda n: torch.cat([_batch_features(model, few, n, device) for few in images.split(n)]).cpu(),
            most,
            Work("features", model, images.shape[1:]),
        )
    if not features.isfinite().all():
        raise ModelError(
            f"the features of {type(model.trunk).__name__} do not fit into float16: some are not finite or larger than "
            "65504; take another network, or train this one's body too"
        )
    return features


@once_for_each_network
@torch.no_grad()
def feature_bytes(model: Classifier, *, image_size: int) -> int:
    """Bytes that the features of an image take; a black image passes through the trunk, once for a network."""
    black = torch.zeros((1, model.channels, image_size, image_size), dtype=torch.uint8, device=model.mean.device)
    with evaluating(model):
        return model.features(black).half().nbytes


def _batch_features(model: Classifier, images: Tensor, n_images: int, device: torch.device) -> Tensor:
    """Float16 features, on `device`, of images that are filled up to `n_images`."""
    batch = torch.cat([images, images.new_zeros((n_images - len(images), *images.shape[1:]))])
    if device.type == "cuda":
        batch = batch.pin_memory()  # copied while the network works on the batch before
    return model.features(batch.to(device, non_blocking=True))[: len(images)].half()


@torch.no_grad()
def feature_key(
    model: Classifier,
    *,
    image_size: int,
    device: torch.device | None = None,
    releases: Collection[str] = (),
    ranges: Sequence[tuple[str, float, float]] = (),
) -> str:
    """Digest of all that the features of an image depend on: equal keys, equal features.

    It covers the trunk's layers, weights and statistics, mean and std, size and channels of the images, the kind of
    device with the type of number it computes in, releases of the libraries, the source of layers of one's own, and
    `FORMAT`; not functions that such layers call, nor numbers that they keep elsewhere than in tensors and their names.
    All weights are read: ask once for a network, not once for each part of a pool.

    Args:
        image_size: side of the square images, pixels.
        device: where the network will run; None where it is now.
        releases: names and versions of what decodes the images.
        ranges: kind, low and high of the pool's deep pixels; a pool of 8 bits has none.

    Returns:
        32 hexadecimal digits.
    """
    device = device or model.mean.device
    with half_precision(model, device):
        is_half = torch.is_autocast_enabled(device.type)
        computed_in = torch.get_autocast_dtype(device.type) if is_half else torch.float32
    layers = re.sub(r" at 0x[0-9a-f]+", "", repr(model.trunk))  # the address of a function changes from run to run
    told = [FORMAT, image_size, model.channels, device.type, str(computed_in), layers]
    told += [_code_of(model.trunk, releases), *ranges]
    digest = hashlib.sha256(json.dumps(told).encode())
    for name, values in {"mean": model.mean, "std": model.std, **model.trunk.state_dict()}.items():
        digest.update(f"{name} {values.dtype} {tuple(values.shape)}".encode())
        digest.update(values.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


def _code_of(trunk: nn.Module, releases: Collection[str]) -> list[str]:
    """Those releases, the ones of the libraries that the layers are of, and the source of layers of one's own."""
    told, sources = set(releases), set()
    for layer in {base for module in trunk.modules() for base in type(module).__mro__}:
        library = layer.__module__.partition(".")[0]
        if library in LIBRARIES:
            told.add(f"{library} {sys.modules[library].__version__}")
        elif library != "builtins":
            with suppress(OSError, TypeError):  # typed in, so that there is no source
                sources.add(inspect.getsource(layer))
    return [*sorted(told), *sorted(sources)]
