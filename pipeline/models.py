"""Networks: a deterministic trunk, then a tail that begins with the first dropout and ends in the logits."""

import difflib
import pickle
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import torch
from torch import Tensor, nn

TORCHVISION = "torchvision:"
STOCHASTIC = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
"""Layers that draw random numbers in training mode."""
NOT_CUTTABLE = ("googlenet", "inception_v3", "squeezenet1_0", "squeezenet1_1")
"""Torchvision classifiers with more than one output, or without a Linear layer at the end."""
_GLOBAL_GENERATORS = threading.RLock()


class ModelError(ValueError):
    """A network cannot be built as asked, or a file does not hold its weights."""


class Classifier(nn.Module):
    """A network that takes images as they are stored and gives logits.

    Attributes:
        trunk: everything before the first dropout; runs once for all members.
        tail: from the first dropout to the logits; the last layer is Linear.
        pretrained: weights, mean and std came from elsewhere, so that training leaves mean and std alone.
        frozen: names of the parts that training does not touch.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        trunk: nn.Module,
        tail: nn.Sequential,
        *,
        n_classes: int,
        channels: int,
        trunk_channels: int | None = None,
        pretrained: bool = False,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.tail = tail
        self.n_classes = n_classes
        self.channels = channels
        self.pretrained = pretrained
        self.frozen: tuple[str, ...] = ()
        shape = (trunk_channels or channels, 1, 1)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, C)` of images `(N, channels, S, S)`, uint8 or floats in [0, 1]."""
        logits: Tensor = self.tail(self.trunk(self.normalise(images)))
        return logits

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """What the last Linear reads, `(N, D)`, with dropout off whatever mode the network is in."""
        with evaluating(self):
            embeddings: Tensor = self.tail[:-1](self.trunk(self.normalise(images)))
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

    def set_normalisation(self, images: Tensor) -> None:
        """Take mean and std of each channel from images `(n, channels, S, S)` of uint8."""
        if images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, got {images.dtype}")
        values = torch.arange(256, dtype=torch.float64) / 255
        channels = images.cpu().unbind(dim=1)
        counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in channels])
        shares = counts.double() / counts.sum(dim=1, keepdim=True)
        mean = shares @ values
        std = (shares @ values.square() - mean.square()).clamp(min=0).sqrt().clamp(min=1 / 255)
        self.mean.copy_(mean.reshape(-1, 1, 1))
        self.std.copy_(std.reshape(-1, 1, 1))

    def freeze(self, *names: str) -> None:
        """Stop training from moving these parts, for example "trunk": no weight, batch-norm statistic or dropout."""
        for name in names:
            self.get_submodule(name).requires_grad_(False)
        self.frozen = tuple(dict.fromkeys((*self.frozen, *names)))
        self.train(self.training)

    def train(self, mode: bool = True) -> "Classifier":
        """Set training or evaluation mode; frozen parts stay in evaluation mode."""
        super().train(mode)
        if mode:
            for name in self.frozen:
                self.get_submodule(name).eval()
        return self


def build_model(
    name: str,
    *,
    n_classes: int,
    image_size: int,
    channels: int,
    dropout: float = 0.5,
    weights: str | None = None,
    seed: int,
) -> Classifier:
    """Build a network; the same seed gives the same weights.

    Args:
        name: a key of `MODELS`, or "torchvision:" and a torchvision classifier.
        image_size: side of the square images, pixels, at least 8.
        channels: 1 (grey) or 3.
        dropout: probability of dropping an input of the last layer.
        weights: for torchvision networks: a weight name such as "DEFAULT", the path of a state dict, or None.
        seed: of the weights; torch's global generator is left as it was.
    """
    if n_classes < 2 or image_size < 8 or channels not in (1, 3) or not 0 <= dropout < 1:
        raise ValueError(
            "a model needs n_classes >= 2, image_size >= 8, channels 1 or 3 and dropout in [0, 1), got "
            f"n_classes={n_classes}, image_size={image_size}, channels={channels}, dropout={dropout}"
        )
    check_model_name(name)
    with seeded(seed, torch.device("cpu")):
        if name in MODELS:
            if weights is not None:
                raise ModelError(f"model {name!r} has no published weights: weights must be None, got {weights!r}")
            model = MODELS[name](n_classes, image_size, channels, dropout)
        else:
            network = name.removeprefix(TORCHVISION)
            model = _torchvision_classifier(network, n_classes, image_size, channels, dropout, weights)
    _check_image_size(model, name, image_size)
    return model.to(memory_format=torch.channels_last).eval()


def check_model_name(name: str) -> None:
    """Refuse a name that `build_model` does not know, naming those that are near."""
    if name in MODELS:
        return
    zoo = _torchvision_models()
    known = [*MODELS, *(TORCHVISION + network for network in zoo.list_models(module=zoo))]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=4, cutoff=0.4) or list(MODELS)
        raise ModelError(f"there is no model {name!r}; near: {', '.join(near)}")


def small_cnn(n_classes: int, image_size: int, channels: int, dropout: float) -> Classifier:
    """Two convolutions and two dense layers after Gal, Islam and Ghahramani (2017), for digits and the like.

    Theirs has no padding and pools once; pooling after each convolution trains several times faster and is as good.
    Rectifying after pooling gives the same numbers on a quarter of the pixels.
    """
    half = image_size // 2
    pool = max(2, -(-half // 7))
    trunk = nn.Sequential(
        nn.Conv2d(channels, 32, kernel_size=3, padding=1),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(32, 64, kernel_size=3, padding=1),
        nn.MaxPool2d(pool),
        nn.ReLU(),
    )
    tail = nn.Sequential(
        nn.Dropout(dropout / 2),
        nn.Flatten(),
        nn.Linear(64 * (half // pool) ** 2, 128),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(128, n_classes),
    )
    return Classifier(trunk, tail, n_classes=n_classes, channels=channels)


def is_stochastic(module: nn.Module) -> bool:
    """Whether the layer draws random numbers in training mode."""
    return (isinstance(module, STOCHASTIC) or is_stochastic_depth(module)) and float(module.p) > 0  # type: ignore[arg-type]


def is_stochastic_depth(module: nn.Module) -> bool:
    """Whether the layer is torchvision's `StochasticDepth`, told by its name: loading torchvision takes seconds."""
    return type(module).__name__ == "StochasticDepth"


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


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators, which dropout reads, for a while; the caller's states come back.

    Threads take turns. On Apple's GPU the state is not put back.
    """
    devices = [device] if device.type == "cuda" else []
    with _GLOBAL_GENERATORS, torch.random.fork_rng(devices, device_type="cuda"):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        elif device.type == "mps":
            torch.mps.manual_seed(seed)
        yield


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the state dict, on the CPU so that a machine without this one's GPU can read it."""
    torch.save({name: values.cpu() for name, values in model.state_dict().items()}, path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Read what `save_weights` wrote into a network of the same form; a file with code in it is refused."""
    try:
        model.load_state_dict(read_state_dict(path))
    except RuntimeError as exc:
        raise ModelError(f"{path} holds the weights of another network: {exc}") from exc


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Tensors by name from a file; nothing in the file is run."""
    if not path.is_file():
        raise ModelError(f"there is no weights file {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as exc:
        raise ModelError(
            f"{path} is not a plain state dict: it is damaged, or a pickle with code in it, which is not run; "
            "write it with torch.save(model.state_dict(), path)"
        ) from exc
    if not isinstance(state, Mapping) or not all(isinstance(values, Tensor) for values in state.values()):
        held = (
            f"the keys {', '.join(map(str, list(state)[:4]))}" if isinstance(state, Mapping) else type(state).__name__
        )
        raise ModelError(f"{path} must hold a state dict, names to tensors; it holds {held}")
    return dict(state)


def _torchvision_models() -> ModuleType:
    """torchvision's networks, loaded when first asked for: it takes seconds."""
    from torchvision import models

    return cast(ModuleType, models)


def _torchvision_classifier(
    network: str, n_classes: int, image_size: int, channels: int, dropout: float, weights: str | None
) -> Classifier:
    if network in NOT_CUTTABLE:
        raise ModelError(f"{TORCHVISION}{network} does not end in one Linear layer; choose another network")
    body = _torchvision_body(network, image_size, weights)
    kept, width = _cut_classifier(body)
    model = Classifier(
        body,
        nn.Sequential(*kept, nn.Dropout(dropout), nn.Linear(width, n_classes)),
        n_classes=n_classes,
        channels=channels,
        trunk_channels=3,
        pretrained=weights is not None,
    )
    if weights is not None:
        preset = _torchvision_models().get_model_weights(network).DEFAULT.transforms()
        model.mean.copy_(torch.tensor(preset.mean).reshape(-1, 1, 1))
        model.std.copy_(torch.tensor(preset.std).reshape(-1, 1, 1))
    return model


def _torchvision_body(network: str, image_size: int, weights: str | None) -> nn.Module:
    """A torchvision network with its own classifier; its weights are drawn, in a file, or fetched by name."""
    options: dict[str, Any] = {}
    if network.startswith("vit_"):
        options["image_size"] = image_size
    elif network.startswith("maxvit_"):
        options["input_size"] = (image_size, image_size)
    if weights is None or Path(weights).is_file():
        body = _draw(network, options)
        if weights is not None:
            _load_body(body, Path(weights))
        return body
    zoo = _torchvision_models()
    named = zoo.get_model_weights(network)
    entry = named.__members__.get(weights.removeprefix(f"{named.__name__}."))
    if entry is None:
        raise ModelError(
            f"weights {weights!r} are neither a file nor weights of {network}: {', '.join(named.__members__)}"
        )
    try:
        pretrained: nn.Module = zoo.get_model(network, weights=entry, progress=False, **options)
        return pretrained
    except ValueError as exc:
        raise ModelError(f"weights {weights!r} of {network} do not take {image_size} pixels: {exc}") from exc
    except (OSError, RuntimeError) as exc:
        raise ModelError(
            f"weights {weights!r} of {network} are not on this machine and could not be fetched ({exc}): fetch "
            f"{entry.url} where there is a network, bring the file here and give its path as weights"
        ) from exc


def _draw(network: str, options: Mapping[str, Any]) -> nn.Module:
    try:
        body: nn.Module = _torchvision_models().get_model(network, weights=None, **options)
    except (ValueError, RuntimeError, AssertionError) as exc:
        raise ModelError(f"{TORCHVISION}{network} cannot be built with {dict(options)}: {exc}") from exc
    return body


def _load_body(body: nn.Module, path: Path) -> None:
    """Load all but the last layer, which may have other classes, from a state dict in a file."""
    head = _last_linear(body) + "."
    old_densenet = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")
    renamed = {old_densenet.sub(r"\1\2", key): values for key, values in read_state_dict(path).items()}
    state = {key: values for key, values in renamed.items() if not key.startswith(head)}
    try:
        outcome = body.load_state_dict(state, strict=False)
    except RuntimeError as exc:
        raise ModelError(f"{path} holds the weights of another network: {exc}") from exc
    missing = [key for key in outcome.missing_keys if not key.startswith(head)]
    if missing or outcome.unexpected_keys:
        raise ModelError(
            f"{path} holds the weights of another network: {len(missing)} are missing, {missing[:3]}, and "
            f"{len(outcome.unexpected_keys)} have no place, {outcome.unexpected_keys[:3]}"
        )


def _last_linear(body: nn.Module) -> str:
    linear = [name for name, module in body.named_modules() if isinstance(module, nn.Linear)]
    return str(linear[-1])


def _cut_classifier(body: nn.Module) -> tuple[list[nn.Module], int]:
    """Take the classifier's end out of `body`, from its first dropout.

    Returns:
        The layers taken, less the last Linear and a dropout right before it; and the width of that Linear.
    """
    parent_name, _, name = _last_linear(body).rpartition(".")
    parent = body.get_submodule(parent_name)
    linear = parent.get_submodule(name)
    taken = [linear]
    if isinstance(parent, nn.Sequential):
        layers = list(parent)
        start = next((i for i, layer in enumerate(layers) if is_stochastic(layer)), len(layers) - 1)
        taken = layers[start:]
        for position in range(start, len(layers)):
            parent[position] = nn.Identity()
    else:
        setattr(parent, name, nn.Identity())
    kept = taken[:-1]
    if kept and is_stochastic(kept[-1]):
        kept = kept[:-1]
    return kept, int(linear.in_features)  # type: ignore[arg-type]


def _check_image_size(model: Classifier, name: str, image_size: int) -> None:
    """Run one empty image, so that a network that cannot take this size says so before anything is trained."""
    try:
        model.embed(torch.zeros(1, model.channels, image_size, image_size))
    except (RuntimeError, ValueError, AssertionError) as exc:
        raise ModelError(f"model {name!r} does not take images of {image_size} x {image_size} pixels: {exc}") from exc


MODELS: dict[str, Callable[[int, int, int, float], Classifier]] = {"small_cnn": small_cnn}
