"""What the models of a replay are, and what they read."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

from pydantic import ValidationError

from connectors.images.decode import without_pillow_warnings
from connectors.images.examine import has_colour
from connectors.images.reading import Reading
from connectors.objects.reading import Objects
from flows.progress import say
from flows.replay.inputs import ReplayError
from pipeline.learning.networks import check_network
from pipeline.learning.settings import MemberSettings, ModelSettings, with_own_image_size
from pipeline.networks.build import check_model_name
from pipeline.pool.reasons import PoolError
from pipeline.tasks.task_type import TaskType

PIXELS, FEATURES = "pixels", "features"
SMALL_SIDE = 28
"""Side of the images in pixels where the pixels themselves are the features."""


class Model(TypedDict):
    """The part of a replay's settings on its models and their inputs; `network` is None for a head on pixels."""

    model: str
    image_size: int | None
    channels: int | None
    network: ModelSettings | None
    members: MemberSettings


class Asked(TypedDict):
    """What a person wants otherwise of a network; None is what was left open."""

    weights: str | None
    image_size: int | None


def ready_features(members: MemberSettings) -> Model:
    """A linear head on features that are there already."""
    return {"model": FEATURES, "image_size": None, "channels": None, "network": None, "members": members}


def pixels(members: MemberSettings, *, channels: int, weights: str | None, image_size: int | None) -> Model:
    """A linear head on the pixels of small images."""
    if weights:
        raise ReplayError("--weights are for a network: name it too, for example --model torchvision:resnet18")
    side = image_size or SMALL_SIDE
    return {"model": PIXELS, "image_size": side, "channels": channels, "network": None, "members": members}


def named_network(
    name: str, members: MemberSettings, task: TaskType, *, channels: int, weights: str | None, image_size: int | None
) -> Model:
    """A network by its name; with weights a head on its features."""
    check_model_name(name)
    train = "head" if weights else "auto"
    values = {"name": name, "channels": channels, "weights": weights, "train": train, "augmentation": "none"}
    return _checked(_network(values | _side(image_size)), members, task)


def network_of_campaign(
    how: ModelSettings, members: MemberSettings, task: TaskType, *, weights: str | None, image_size: int | None
) -> Model:
    """The network of a campaign; with other weights a head on its features."""
    changes = {"weights": weights, "train": "head"} if weights else {}
    return _checked(_network(with_own_image_size(how).model_dump() | changes | _side(image_size)), members, task)


def count_channels(uris: Sequence[str]) -> int:
    """1 where no image has colour, by the files' headers, else 3; what is no image is refused when it is read."""
    try:
        with without_pillow_warnings():
            return 3 if any(has_colour(uri, Reading(objects=Objects())) for uri in uris) else 1
    except PoolError as exc:
        raise ReplayError(str(exc)) from exc


def _side(image_size: int | None) -> dict[str, int]:
    return {"image_size": image_size} if image_size else {}


def _network(values: Mapping[str, object]) -> ModelSettings:
    try:
        return with_own_image_size(ModelSettings.model_validate(values))
    except ValidationError as exc:
        first = exc.errors()[0]
        option = str(first["loc"][-1]).replace("_", "-") if first["loc"] else "model"
        raise ReplayError(f"--{option}: {first['msg']} (got {first['input']!r})") from exc


def _checked(network: ModelSettings, members: MemberSettings, task: TaskType) -> Model:
    """The settings of a network that can be trained, with members that it can have."""
    is_linear = task.has_one_decision and network.train == "head"  # whose dropout is that of the features
    note = check_network(network, MemberSettings() if is_linear else members, task, n_classes=2)
    if note:
        say(note)
    drawn = [name for name in ("swag", "views", "laplace") if is_linear and getattr(members, name)]
    if drawn:
        raise ReplayError(
            f'train = "head" is replayed as one linear head, which has no {" and no ".join(drawn)}: replay a campaign '
            "file without, or --mc-dropout"
        )
    return {
        "model": network.name,
        "image_size": network.image_size,
        "channels": network.channels,
        "network": network,
        "members": members,
    }
