"""What a round's members decide about images in memory, or about what a trunk that they share made of them."""

from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor

from pipeline.learning.settings import MemberSettings, ModelSettings
from pipeline.members.predict import Decided, predict_from_features, predict_members
from pipeline.networks.classifier import Classifier
from pipeline.tasks.task_type import TaskType

MAX_PROBABILITIES = 2**26
"""Numbers that heads on cached features give at a time: 256 MiB."""


def share_frozen_trunk(models: Sequence[Classifier]) -> bool:
    """Whether the networks are heads on one trunk that none of them trained, so that its features serve them all."""
    return models[0].is_trunk_frozen and all(model.trunk is models[0].trunk for model in models)


def read_features(models: Sequence[Classifier], members: MemberSettings | None) -> bool:
    """Whether features serve the members as well as images do: views need images."""
    return share_frozen_trunk(models) and not (members and members.views)


def decide_on_features(
    models: Sequence[Classifier], features: Tensor, members: MemberSettings | None, *, task: TaskType, seed: int
) -> Iterator[Decided]:
    """What members decide, a part of the images at a time.

    Args:
        models: heads on one frozen trunk.
        features: `(N, ...)` that the trunk made of N images.
        members: how each network becomes several members; None for one each.
        seed: of the members' draws.
    """
    members = members or MemberSettings()
    n_outputs = models[0].n_outputs.n * models[0].n_places
    n_decided = len(models) * max(1, members.mc_dropout) * max(1, members.laplace) * n_outputs
    for part in features.split(max(1, MAX_PROBABILITIES // n_decided)):
        yield predict_from_features(
            models, part, task=task, mc_dropout=members.mc_dropout, laplace=members.laplace, seed=seed
        )


def decide_on_images(
    models: Sequence[Classifier],
    images: Iterable[Tensor],
    settings: ModelSettings,
    members: MemberSettings | None,
    *,
    task: TaskType,
    seed: int,
) -> Iterator[Decided]:
    """What `decide_on_features` gives, of images `(n, channels, S, S)` in parts."""
    members = members or MemberSettings()
    for part in images:
        yield predict_members(
            models,
            part,
            task=task,
            mc_dropout=members.mc_dropout,
            laplace=members.laplace,
            views=members.views,
            augmentation=settings.augmentation,
            seed=seed,
        )
