"""Networks: a deterministic trunk, then a tail that begins with the first dropout and ends in the logits."""

import copy
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.members.laplace import Posterior
from pipeline.networks.backbones import ModelError as ModelError
from pipeline.networks.backbones import check_network_name, draw_anew, load_backbone, trained_image_size
from pipeline.networks.backbones import drop_probability as drop_probability
from pipeline.networks.backbones import is_stochastic as is_stochastic
from pipeline.networks.backbones import is_stochastic_depth as is_stochastic_depth
from pipeline.networks.backbones import read_state_dict as read_state_dict

PHASES = ("head", "last_stage", "all")
"""What a round trains: the tail, the trunk's last stage too, or everything."""
HEADS = ("linear", "mlp")
HIDDEN = 256
"""Units in the hidden layer of an "mlp" head."""
HALF_FROM = 1_000_000
"""Weights in a trunk from which bfloat16 is worth its rounding: on one core ResNet-18 gains 3.4 times with AMX at 224
pixels and 1.9 times with AVX-512 alone at 96; smaller networks are quick anyway and stay exact."""
_GLOBAL_GENERATORS = threading.RLock()


class Classifier(nn.Module):
    """A network that takes images as they are stored and gives logits.

    Attributes:
        trunk: from pixels to features, everything before the first dropout; runs once for all members.
        tail: from features to logits, beginning with the first dropout; the last layer is Linear.
        n_kept: how many of the tail's first layers came with the trunk; the head after them is always new.
        pretrained: weights, mean and std came from elsewhere, so that training leaves mean and std alone.
        frozen: names of the parts that training does not touch.
        temperature: what logits are divided by, 1 until they are calibrated (Guo et al., 2017).
        posterior: of the last layer's weights, where one was fitted; saved with them.
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
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.tail = tail
        self.n_classes = n_classes
        self.channels = channels
        self.pretrained = pretrained
        self.image_size = image_size
        self.n_kept = n_kept
        self.frozen: tuple[str, ...] = ()
        shape = (trunk_channels or channels, 1, 1)
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))
        self.register_buffer("temperature", torch.ones(()))
        self.register_module("posterior", None)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(N, C)` of images `(N, channels, S, S)`, uint8 or floats in [0, 1]; float32."""
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
        """Logits `(N, C)` of what `features` gives, in any float type."""
        logits: Tensor = self.tail(features.float())
        return logits / self.temperature

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """What the last Linear reads, `(N, D)`, with dropout off whatever mode the network is in."""
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

    def set_normalisation(self, images: Tensor, rows: Tensor | None = None) -> None:
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
                draws; "last_stage" all of the trunk but its last stage; "all" nothing.
        """
        if phase not in PHASES:
            raise ValueError(f"phase must be one of {', '.join(PHASES)}, got {phase!r}")
        self.requires_grad_(True)
        self.frozen = ()
        if phase == "head":
            self.freeze("trunk")
            self.tail[: self.n_kept].requires_grad_(False)
        elif phase == "last_stage":
            earlier, last = split_stages(self.trunk)
            self.trunk.requires_grad_(False)
            for name in last:
                self.trunk.get_submodule(name).requires_grad_(True)
            self.frozen = tuple(f"trunk.{name}" for name in earlier)
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


def build_model(
    name: str,
    *,
    n_classes: int,
    image_size: int,
    channels: int,
    dropout: float = 0.5,
    weights: str | None = None,
    head: str = "linear",
    seed: int,
) -> Classifier:
    """Build a network; the same seed gives the same weights.

    Args:
        name: a key of `MODELS`; "torchvision:" or "timm:" and the name of a classifier there; or
            "package.module:factory", a function without arguments that returns a network which takes normalised
            colour images and ends in a Linear layer. Its attribute `preprocessing`, a dict with image_size, mean and
            std, says what its weights expect; without it that is taken to be as for ImageNet.
        image_size: side of the square images, pixels, at least 8.
        channels: 1 (grey) or 3.
        dropout: probability of dropping an input of each of the head's Linear layers.
        weights: None draws them (those of a factory anew, layer by layer); the path of a state dict or of a
            `.safetensors` file; a name on the hub: torchvision's, a timm tag, or "DEFAULT"; or "factory", those that
            the factory's network comes with.
        head: "linear", or "mlp" with one hidden layer of `HIDDEN` units.
        seed: of the weights; torch's global generator is left as it was.

    Raises:
        ModelError: naming what is wrong and what there is instead; without a network, how to bring a weights file.
    """
    if n_classes < 2 or image_size < 8 or channels not in (1, 3) or not 0 <= dropout < 1 or head not in HEADS:
        raise ValueError(
            "a model needs n_classes >= 2, image_size >= 8, channels 1 or 3, dropout in [0, 1) and a head of "
            f"{', '.join(HEADS)}, got n_classes={n_classes}, image_size={image_size}, channels={channels}, "
            f"dropout={dropout}, head={head!r}"
        )
    check_model_name(name)
    with seeded(seed, torch.device("cpu")):
        if name in MODELS:
            if weights is not None or head != "linear":
                raise ModelError(
                    f"model {name!r} has no published weights and a head of its own: weights must be None and head "
                    f"'linear', got {weights!r} and {head!r}"
                )
            model = MODELS[name](n_classes, image_size, channels, dropout)
        else:
            model = _classifier(name, n_classes, image_size, channels, dropout, weights, head)
    return model.to(memory_format=torch.channels_last).eval()


def check_model_name(name: str) -> None:
    """Refuse a name that `build_model` does not know, naming those that are near."""
    check_network_name(name, own=MODELS)


def default_image_size(name: str, weights: str | None) -> int:
    """Side in pixels of the images that the weights were trained at; without weights 224, 28 for our own networks."""
    check_model_name(name)
    return 28 if name in MODELS else trained_image_size(name, weights)


def with_new_head(model: Classifier, *, seed: int) -> Classifier:
    """A network with the same trunk, the very same module, and a newly drawn head: a member on a frozen trunk.

    Mean, std, what is frozen and a copy of what the tail has from the trunk's classifier come along; temperature and
    posterior belong to the old head. The same seed draws the same head on every device.
    """
    tail = copy.deepcopy(model.tail).cpu()
    with seeded(seed, torch.device("cpu")):
        draw_anew(tail[model.n_kept :])
    new = Classifier(
        model.trunk,
        tail,
        n_classes=model.n_classes,
        channels=model.channels,
        pretrained=model.pretrained,
        image_size=model.image_size,
        n_kept=model.n_kept,
    )
    new.mean, new.std = model.mean, model.std
    new.frozen = model.frozen
    return new.to(model.mean.device).train(model.training)


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
    return Classifier(trunk, tail, n_classes=n_classes, channels=channels, image_size=image_size)


def split_stages(trunk: nn.Module) -> tuple[list[str], list[str]]:
    """Names of the trunk's modules before its last stage, and of those from there on, in the order that they run in.

    Going from the trunk into a module that holds more than nine tenths of the weights, as often as there is one, leads
    to the blocks. The last stage is the fewest last blocks with at least a quarter of the weights there, and all that
    comes after them: `layer4` of a ResNet, three blocks of twelve in a vision transformer.
    """
    earlier: list[str] = []
    last: list[str] = []
    path, node = "", trunk
    while True:
        children = {f"{path}{name}": child for name, child in node.named_children()}
        names = list(children)
        weights = {name: _n_weights(child) for name, child in children.items()}
        main = next((n for n in names if weights[n] > 0.9 * sum(weights.values()) and any(children[n].children())), "")
        if not main:
            break
        position = names.index(main)
        earlier += names[:position]
        last = names[position + 1 :] + last
        path, node = f"{main}.", children[main]
    if not names:
        return [], [""]
    start = len(names) - 1
    while 4 * sum(weights[name] for name in names[start:]) < sum(weights.values()):
        start -= 1
    return earlier + names[:start], names[start:] + last


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


def shrink_and_perturb(model: Classifier, previous_state: Mapping[str, Tensor], *, shrink: float = 0.6) -> None:
    """Start training near the previous round's weights: `shrink * previous + (1 - shrink) * fresh`, in place.

    After Ash and Adams (2020), who add small noise; here the noise is what `model` holds, a newly drawn head and a
    pretrained or newly drawn trunk, so that a pretrained trunk is pulled back to where it came from, and a frozen one
    stays bit for bit. Buffers are the previous ones, but for batch-norm statistics that no training moves; the
    temperature is that of `model`, as it will be fitted again.

    Args:
        previous_state: of a network of the same form; without the trunk's tensors, or those of the last layer, these
            are left as they are.
        shrink: share of the previous weights, in [0, 1].
    """
    if not 0 <= shrink <= 1:
        raise ValueError(f"shrink must be in [0, 1], got {shrink}")
    last = f"tail.{len(model.tail) - 1}."
    state = model.state_dict()
    kept = {name for name in state if name.startswith(last)} if f"{last}weight" not in previous_state else set()
    fresh = {name: values for name, values in state.items() if _is_shrunk(name, previous_state) and name not in kept}
    unlike = [name for name in fresh if name not in previous_state or previous_state[name].shape != fresh[name].shape]
    if unlike:
        raise ModelError(f"the previous weights are of another network: {unlike[:3]} are missing or of another shape")
    with torch.no_grad():
        for name, values in model.named_parameters():  # one that several layers share comes once
            if name in fresh:
                values.lerp_(previous_state[name].to(values.device), shrink)
        fixed = set(model.fixed_batch_norms)
        for name, statistic in model.named_buffers():
            if name in fresh and name.rpartition(".")[0] not in fixed:
                statistic.copy_(previous_state[name])


def without_last_layer(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A network's weights but those that tell its classes apart."""
    last = max(int(name.split(".")[1]) for name in state if name.startswith("tail."))
    return {name: values for name, values in state.items() if not name.startswith((f"tail.{last}.", "posterior."))}


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


def save_weights(model: nn.Module, path: Path, *, with_trunk: bool = True) -> None:
    """Write the state dict, on the CPU so that a machine without this one's GPU can read it.

    Args:
        with_trunk: False leaves the trunk out, for members that share one, see `save_trunk`.
    """
    state = model.state_dict()
    _save({name: values for name, values in state.items() if with_trunk or not name.startswith("trunk.")}, path)


def save_trunk(model: Classifier, path: Path) -> None:
    """Write the trunk's part of the state dict."""
    _save({name: values for name, values in model.state_dict().items() if name.startswith("trunk.")}, path)


def load_weights(model: nn.Module, path: Path) -> None:
    """Read what `save_weights` wrote into a network of the same form; a file with code in it is refused.

    A file without a trunk leaves the trunk as it is, one without a temperature means 1, and one with a posterior gives
    the network a posterior.
    """
    state = read_state_dict(path)
    if isinstance(model, Classifier):
        prefix = "posterior."
        held = {name.removeprefix(prefix): values for name, values in state.items() if name.startswith(prefix)}
        try:
            model.posterior = Posterior.empty_like(held).to(model.mean.device) if held else None
        except TypeError as exc:
            raise ModelError(f"{path} holds a posterior of another form: {', '.join(held)}") from exc
        if not any(name.startswith("trunk.") for name in state):
            state |= {name: values for name, values in model.state_dict().items() if name.startswith("trunk.")}
        state.setdefault("temperature", torch.ones(()))
    _load(model, state, path)


def load_trunk(model: Classifier, path: Path) -> None:
    """Read what `save_trunk` wrote into the trunk of a network of the same form."""
    state = {name.removeprefix("trunk."): values for name, values in read_state_dict(path).items()}
    _load(model.trunk, state, path)


def _save(state: Mapping[str, Tensor], path: Path) -> None:
    torch.save({name: values.cpu() for name, values in state.items()}, path)


def _load(module: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    try:
        module.load_state_dict(state)
    except RuntimeError as exc:
        raise ModelError(f"{path} holds the weights of another network: {exc}") from exc


def _classifier(
    name: str, n_classes: int, image_size: int, channels: int, dropout: float, weights: str | None, head: str
) -> Classifier:
    """A backbone from elsewhere with a new head, drawn by torch's global generator."""
    backbone = load_backbone(name, image_size=image_size, weights=weights)
    hidden = (nn.Dropout(dropout), nn.Linear(backbone.width, HIDDEN), nn.ReLU()) if head == "mlp" else ()
    width = HIDDEN if hidden else backbone.width
    model = Classifier(
        backbone.trunk,
        nn.Sequential(*backbone.kept, *hidden, nn.Dropout(dropout), nn.Linear(width, n_classes)),
        n_classes=n_classes,
        channels=channels,
        trunk_channels=3,
        pretrained=weights is not None,
        image_size=image_size,
        n_kept=len(backbone.kept),
    )
    if weights is not None:
        model.mean.copy_(torch.tensor(backbone.preprocessing.mean).reshape(-1, 1, 1))
        model.std.copy_(torch.tensor(backbone.preprocessing.std).reshape(-1, 1, 1))
    return model


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


def _is_shrunk(name: str, previous_state: Mapping[str, Tensor]) -> bool:
    """Whether the previous value of a tensor matters: not for what is fitted after training, nor a shared trunk."""
    if name == "temperature" or name.startswith("posterior."):
        return False
    return not name.startswith("trunk.") or any(key.startswith("trunk.") for key in previous_state)


MODELS: dict[str, Callable[[int, int, int, float], Classifier]] = {"small_cnn": small_cnn}
