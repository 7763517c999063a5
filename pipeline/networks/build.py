"""Networks by name: built with a new head, from our own or from somebody else's backbone."""

import copy
from collections.abc import Callable

import torch
from torch import nn

from pipeline.networks.backbones import Backbone, check_network_name, draw_anew, load_backbone, trained_image_size
from pipeline.networks.classifier import Classifier
from pipeline.networks.errors import ModelError
from pipeline.networks.pyramid import find_pyramid, map_tail, small_maps
from pipeline.randomness import seeded
from pipeline.types import Outputs

HEADS = ("linear", "mlp")
HIDDEN = 256
"""Units in the hidden layer of an "mlp" head."""


def build_model(
    name: str,
    *,
    n_classes: int,
    image_size: int,
    channels: int,
    dropout: float = 0.5,
    weights: str | None = None,
    head: str = "linear",
    outputs: Outputs | None = None,
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
        head: "linear", or "mlp" with one hidden layer of `HIDDEN` units; a map has a head of its own and
            takes "linear" alone.
        outputs: what is to come out; None for a logit for each class.
        seed: of the weights; torch's global generator is left as it was.

    Raises:
        ModelError: naming what is wrong and what there is instead; without a network, how to bring a weights file.
    """
    if n_classes < 1 or image_size < 8 or channels not in (1, 3) or not 0 <= dropout < 1 or head not in HEADS:
        raise ValueError(
            "a model needs n_classes >= 1, image_size >= 8, channels 1 or 3, dropout in [0, 1) and a head of "
            f"{', '.join(HEADS)}, got n_classes={n_classes}, image_size={image_size}, channels={channels}, "
            f"dropout={dropout}, head={head!r}"
        )
    check_model_name(name)
    outputs = outputs or Outputs(n_classes, n_classes)
    with seeded(seed, torch.device("cpu")):
        if outputs.stride is not None:
            if head != "linear":
                raise ModelError(
                    f"head = {head!r} is for labels of whole images, and this task asks where they are: its maps have "
                    "a head of their own, so leave head out"
                )
            model = _with_map(name, n_classes, outputs, outputs.stride, image_size, channels, dropout, weights)
        elif name in MODELS:
            if weights is not None or head != "linear":
                raise ModelError(
                    f"model {name!r} has no published weights and a head of its own: leave weights and head out; got "
                    f"weights {weights!r} and head {head!r}"
                )
            model = MODELS[name](n_classes, outputs, image_size, channels, dropout)
        else:
            model = _classifier(name, n_classes, outputs, image_size, channels, dropout, weights, head)
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
        n_outputs=model.n_outputs,
    )
    new.mean, new.std = model.mean, model.std
    new.frozen = model.frozen
    return new.to(model.mean.device).train(model.training)


def small_cnn(n_classes: int, outputs: Outputs, image_size: int, channels: int, dropout: float) -> Classifier:
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
        nn.Linear(128, outputs.n),
    )
    return Classifier(trunk, tail, n_classes=n_classes, channels=channels, image_size=image_size, n_outputs=outputs)


def _classifier(
    name: str,
    n_classes: int,
    outputs: Outputs,
    image_size: int,
    channels: int,
    dropout: float,
    weights: str | None,
    head: str,
) -> Classifier:
    """A backbone from elsewhere with a new head, drawn by torch's global generator."""
    backbone = load_backbone(name, image_size=image_size, weights=weights)
    hidden = (nn.Dropout(dropout), nn.Linear(backbone.width, HIDDEN), nn.ReLU()) if head == "mlp" else ()
    width = HIDDEN if hidden else backbone.width
    model = Classifier(
        backbone.trunk,
        nn.Sequential(*backbone.kept, *hidden, nn.Dropout(dropout), nn.Linear(width, outputs.n)),
        n_classes=n_classes,
        channels=channels,
        trunk_channels=3,
        pretrained=weights is not None,
        image_size=image_size,
        n_kept=len(backbone.kept),
        n_outputs=outputs,
    )
    return _standardising(model, backbone)


def _standardising(model: Classifier, backbone: Backbone) -> Classifier:
    """The network with mean and std of the backbone's weights, where they came with it, and what is known of these."""
    model.weights_note = backbone.note
    if model.pretrained:
        model.mean.copy_(torch.tensor(backbone.preprocessing.mean).reshape(-1, 1, 1))
        model.std.copy_(torch.tensor(backbone.preprocessing.std).reshape(-1, 1, 1))
    return model


def _with_map(
    name: str,
    n_classes: int,
    outputs: Outputs,
    stride: int,
    image_size: int,
    channels: int,
    dropout: float,
    weights: str | None,
) -> Classifier:
    """A network whose outputs are a map of places, drawn by torch's global generator.

    A network of our own has a trunk of its own for that: `small_maps`.
    """
    if name in MODELS and weights is not None:
        raise ModelError(f"model {name!r} has no published weights: weights must be None, got {weights!r}")
    backbone = None if name in MODELS else load_backbone(name, image_size=image_size, weights=weights)
    read = channels if backbone is None else 3
    body = small_maps(read) if backbone is None else backbone.trunk
    trunk = find_pyramid(body, name, stride=stride, channels=read, image_size=image_size)
    model = Classifier(
        trunk,
        map_tail(trunk, outputs.n, stride=stride, dropout=dropout),
        n_classes=n_classes,
        channels=channels,
        trunk_channels=read,
        pretrained=weights is not None,
        image_size=image_size,
        n_outputs=outputs,
    )
    return model if backbone is None else _standardising(model, backbone)


MODELS: dict[str, Callable[[int, Outputs, int, int, float], Classifier]] = {"small_cnn": small_cnn}
