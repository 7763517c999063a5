"""How long it takes here to train a round's networks."""

from dataclasses import replace
from itertools import pairwise
from time import perf_counter

import numpy as np
from torch import Tensor

from pipeline.learning.lesson import VALIDATION_SHARE
from pipeline.learning.networks import compute_in_parts, new_model, noise
from pipeline.learning.out_of_fold import NETWORK_FOLDS
from pipeline.learning.settings import MemberSettings, ModelSettings
from pipeline.masks import mask_to_png
from pipeline.networks.devices import choose_device
from pipeline.tasks.task_type import TaskType
from pipeline.training.fit import fit
from pipeline.training.splits import MIN_VALIDATION
from pipeline.types import Region

N_TIMED, STEPS_TIMED = 32, 3
"""Images in a step that is timed, at most, and such steps; the first takes longer."""


def estimate_seconds(
    settings: ModelSettings,
    members: MemberSettings,
    phase: str,
    *,
    task: TaskType,
    n_trained_on: int,
    n_classes: int,
    n_images: int,
) -> float:
    """About how long it takes here to train a round's networks, and to pass images through them, in seconds.

    A few steps and passes are timed, on noise. Heads on cached features take a moment: this is for what takes longer.

    Args:
        phase: what is trained, a key of `PHASES`.
        n_images: that each network sees once when it is trained: candidates, audit set, labels.
    """
    batch_size = settings.recipe.batch_size_for(task)
    in_step = min(batch_size, n_trained_on)
    n_timed = min(in_step, N_TIMED)
    images = noise(settings, n_timed)
    model = new_model(settings, task, n_classes=n_classes, seed=0)
    model.train_only(phase)
    moments: list[float] = []
    fit(
        model,
        images,
        _made_up_targets(task, len(images), n_classes),
        replace(settings.recipe.for_epochs(STEPS_TIMED), min_steps=1),
        task=task,
        seed=0,
        device=choose_device(settings.device),
        on_epoch=lambda _row: moments.append(perf_counter()),
    )
    of_image = min(later - earlier for earlier, later in pairwise(moments)) / n_timed
    begun = perf_counter()
    compute_in_parts(model, model, images)
    of_pass = (perf_counter() - begun) / n_timed
    steps = max(settings.min_steps, n_trained_on / batch_size) * settings.max_epochs
    n_trained = members.ensemble * (2 if settings.pseudo_labels.threshold > 0 else 1)
    few = n_trained_on * VALIDATION_SHARE < MIN_VALIDATION
    n_crossed = NETWORK_FOLDS if few and settings.is_pretrained else 0
    n_passes = members.n_networks * max(1, members.views)
    return (n_trained + n_crossed) * steps * in_step * of_image + n_passes * n_images * of_pass


def _made_up_targets(task: TaskType, n: int, n_classes: int) -> Tensor:
    """Targets of n images, one after another of each class."""
    classes = [str(number) for number in range(n_classes)]
    kind = task.asks.kind
    whole = (0.0, 0.0, 1.0, 1.0) if kind == "box" else None
    mask = mask_to_png(np.ones((8, 8), dtype=np.bool_)) if kind == "mask" else None
    return task.targets([(Region(kind, classes[row % n_classes], whole, mask=mask),) for row in range(n)], classes)
