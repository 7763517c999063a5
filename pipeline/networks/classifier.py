"""Networks: a deterministic trunk, then a tail that begins with the first dropout and ends in the logits."""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.image_rows import Images
from pipeline.types import Outputs

PHASES = ("head", "all")
"""What a round trains: the tail alone or everything."""
HALF_FROM = 1_000_000
"""Weights in a trunk from which bfloat16 is worth its rounding: on one core ResNet-18 gains 3.4 times with AMX at 224
pixels and 1.9 times with AVX-512 alone at 96; smaller networks are quick anyway and stay exact."""


class Classifier(nn.Module):
    """A network that takes images as they are stored and gives logits.

    Attributes:
        trunk: from pixels to features, everything before the first dropout; runs once for all members.
        tail: from features to outputs, beginning with the first dropout; the last layer is Linear, or a convolution
            where the outputs are a map.
        n_outputs: what comes out, of which the first are logits.
        n_kept: how many of the tail's first layers came with the trunk; the head after them is always new.
        pretrained: weights, mean and std came from elsewhere, so that training leaves mean and std alone.
        frozen: names of the parts that training does not touch.
        temperature: what logits are divided by, 1 until they are calibrated (Guo et al., 2017).
        posterior: of the last layer's weights, where one was fitted; saved with them.
        weights_note: what its trunk took of a weights file and what it left out, for people; None where nothing was.
    """

    mean: Tensor
    std: Tensor
    temperature: Tensor
    posterior: nn.Module | None

    def __init__(
        self,
        trunk: nn.Module,
        tail: nn.Sequential,
        *,
        n_classes: int,
        channels: int,
        trunk_channels: int | None = None,
        pretrained: bool = False,
        image_size: int | None = None,
        n_kept: int = 0,
        n_outputs: Outputs | None = None,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.tail = tail
        self.n_classes = n_classes
        self.channels = channels
        self.pretrained = pretrained
        self.image_size = image_size
        self.n_kept = n_kept
        self.n_outputs = n_outputs or Outputs(n_classes, n_classes)
        self.frozen: tuple[str, ...] = ()
        self.weights_note: str | None = None
        shape = (trunk_channels or channels, 1, 1)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))
        self.register_buffer("temperature", torch.ones(()))
        self.register_module("posterior", None)

    def forward(self, images: Tensor) -> Tensor:
        """Outputs `(N, C, ...)` of images `(N, channels, S, S)`, uint8 or floats in [0, 1]; float32."""
        return self.read(self.features(images))

    def features(self, images: Tensor) -> Tensor:
        """What the tail reads, `(N, ...)` in float32, with the trunk in the mode that it is in.

        Computed in bfloat16 where that pays, see `half_precision`.
        """
        normalised = self.normalise(images)
        with half_precision(self, normalised.device):
            features: Tensor = self.trunk(normalised)
        return features.float()

    def read(self, features: Tensor) -> Tensor:
        """Outputs `(N, C, ...)` of what `features` gives, in any float type."""
        return self.calibrated(self.outputs(features))

    def outputs(self, features: Tensor) -> Tensor:
        """What `read` gives, at temperature 1."""
        outputs: Tensor = self.tail(features.float())
        return outputs

    def calibrated(self, outputs: Tensor, dim: int = 1) -> Tensor:
        """Outputs, along an axis, with the logits among them divided by the temperature."""
        n, n_logits, _ = self.n_outputs
        if n == n_logits:
            return outputs / self.temperature
        logits, places = outputs.split([n_logits, n - n_logits], dim=dim)
        return torch.cat([logits / self.temperature, places], dim=dim)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """What the last layer reads, `(N, D, ...)`, with dropout off whatever mode the network is in."""
        with evaluating(self):
            embeddings: Tensor = self.tail[:-1](self.features(images))
        return embeddings

    def normalise(self, images: Tensor) -> Tensor:
        """What the trunk reads: floats less the mean over the std; a grey image fills all channels."""
        if images.ndim != 4 or images.shape[1] != self.channels:
            raise ValueError(f"images must be (N, {self.channels}, S, S), got {tuple(images.shape)}")
        if images.dtype != torch.uint8 and not images.is_floating_point():
            raise TypeError(f"images must be uint8 or floats in [0, 1], got {images.dtype}")
        scale = 255.0 if images.dtype == torch.uint8 else 1.0
        normalised = (images / scale - self.mean) / self.std
        return normalised.contiguous(memory_format=torch.channels_last)

    def set_normalisation(self, images: Images, rows: Tensor | None = None) -> None:
        """Take mean and std of each channel from images `(n, channels, S, S)` of uint8, or from these rows of them."""
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, got {images.dtype}")
        values = torch.arange(256, dtype=torch.float64) / 255
        rows = torch.arange(len(images)) if rows is None else rows
        counts = torch.zeros((images.shape[1], 256), dtype=torch.int64)
        for part in rows.split(256):  # a copy of all rows would not fit beside many images
            channels = images[part.to(images.device)].cpu().unbind(dim=1)
            counts += torch.stack([channel.flatten().bincount(minlength=256) for channel in channels])
        shares = counts.double() / counts.sum(dim=1, keepdim=True)
        mean = shares @ values
        std = (shares @ values.square() - mean.square()).clamp(min=0).sqrt().clamp(min=1 / 255)
        self.mean.copy_(mean.reshape(-1, 1, 1))
        self.std.copy_(std.reshape(-1, 1, 1))

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What is done to an image before the trunk reads it, in plain values: pixels, and fractions of 1."""
        return {
            "image_size": self.image_size,
            "channels": self.channels,
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
        }

    @property
    def is_trunk_frozen(self) -> bool:
        """Whether training leaves the whole trunk as it is, so that its features can be kept."""
        return "trunk" in self.frozen

    @property
    def n_places(self) -> int:
        """Places of the map of outputs at most; 1 where there is none."""
        if self.n_outputs.stride is None or self.image_size is None:
            return 1
        return math.ceil(self.image_size / self.n_outputs.stride) ** 2

    def freeze(self, *names: str) -> None:
        """Stop training from moving these parts, for example "trunk": no weight, batch-norm statistic or dropout."""
        for name in names:
            self.get_submodule(name).requires_grad_(False)
        self.frozen = tuple(dict.fromkeys((*self.frozen, *names)))
        self.train(self.training)

    def train_only(self, phase: str) -> None:
        """Freeze what this phase does not train; what was frozen before is free again.

        Args:
            phase: "head" freezes the trunk and the weights in the tail that came with it, between which dropout still
                draws; "all" nothing.
        """
        if phase not in PHASES:
            raise ValueError(f"phase must be one of {', '.join(PHASES)}, got {phase!r}")
        self.requires_grad_(True)
        self.frozen = ()
        if phase == "head":
            self.freeze("trunk")
            self.tail[: self.n_kept].requires_grad_(False)
        self.train(self.training)

    def parameter_groups(self, learning_rate: float, body_rate: float) -> list[dict[str, Any]]:
        """Trainable weights with their learning rates, for an optimiser: the new head's, then the body's.

        Args:
            body_rate: times the learning rate for weights that came from elsewhere, such as 0.1 (CEAL, Wang et al.,
                2016); what is drawn anew learns at the full rate wherever it is.
        """
        head = self.tail[self.n_kept :].parameters()
        body = [*self.trunk.parameters(), *self.tail[: self.n_kept].parameters()]
        groups = [(head, learning_rate), (body, learning_rate * body_rate if self.pretrained else learning_rate)]
        trained = [
            {"params": [values for values in part if values.requires_grad], "lr": float(rate)} for part, rate in groups
        ]
        return [group for group in trained if group["params"]]

    def train(self, mode: bool = True) -> "Classifier":
        """Set training or evaluation mode; frozen parts and `fixed_batch_norms` stay in evaluation mode."""
        super().train(mode)
        if mode:
            for name in (*self.frozen, *self.fixed_batch_norms):
                self.get_submodule(name).eval()
        return self

    @property
    def fixed_batch_norms(self) -> list[str]:
        """Names of the batch-norm layers whose statistics no training moves, though it may their weights.

        They are all that are frozen; and where nothing is, all whose statistics came with pretrained weights: see
        docs/decisions/0008-batch-norm.md.
        """
        kept = ("trunk", *(f"tail.{place}" for place in range(self.n_kept))) if self.pretrained else ()
        fixed = tuple(f"{name}." for name in self.frozen or kept)
        return [
            name
            for name, module in self.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and f"{name}.".startswith(fixed)
        ]


def half_precision(model: Classifier, device: torch.device) -> AbstractContextManager[Any]:
    """Compute in bfloat16 where the device does so in hardware and the trunk is large enough to gain; else do nothing.

    A trunk with depthwise convolutions stays in float32: rounding moves the features of EfficientNet-Lite0 by 4 % of
    their length, and one guess in a hundred with them; those of ResNet-18 with drawn weights move by 0.4 %. On a
    processor the backward pass of such a trunk takes twice the time in bfloat16 besides. Weights and gradients are
    float32 either way.
    """
    if _n_weights(model.trunk) < HALF_FROM or not _has_bfloat16(device) or _has_depthwise_convolutions(model.trunk):
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode for a while; each gets its own flag back."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in flags.items():
            module.training = flag


def _n_weights(module: nn.Module) -> int:
    return sum(values.numel() for values in module.parameters())


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        has = torch.cpu.get_capabilities()
        return torch.backends.mkldnn.is_available() and bool(has.get("avx512_bf16") or has.get("amx_bf16"))
    return False


def _has_depthwise_convolutions(trunk: nn.Module) -> bool:
    return any(isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1 for module in trunk.modules())
