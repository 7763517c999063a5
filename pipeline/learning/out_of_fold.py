"""The out-of-fold rule: which labels are predicted by networks that have not seen them, and by which networks.

| labels | networks without each fold | what the predictions are for |
|---|---|---|
| enough to hold some out | heads on the frozen trunk | the review of labels; training and calibration of heads |
| few | what the round trains | the review of labels, training and calibration, as nothing is held out |
| one, or one group; no pretrained weights | none | |
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor

from pipeline.image_rows import subset
from pipeline.learning.lesson import Lesson, OutOfFold, can_cross, can_hold_out
from pipeline.learning.networks import compute_in_parts, new_model
from pipeline.learning.settings import ModelSettings
from pipeline.networks.classifier import Classifier
from pipeline.networks.devices import choose_device
from pipeline.randomness import seeded_generator
from pipeline.tasks.task_type import TaskType
from pipeline.training.cross_fit import CrossFit, cross_fit
from pipeline.training.fit import fit
from pipeline.training.splits import split_folds
from pipeline.types import OnProgress

FOLDS = "out-of-fold"
"""Purpose of the random numbers of a round's folds."""
NETWORK_FOLDS = 3
"""Folds in which networks that train more than heads predict out of fold; each costs as much as a member."""


def phase_to_cross(
    phase: str, targets: Tensor, settings: ModelSettings, *, task: TaskType, groups: Tensor | None = None
) -> str | None:
    """What is trained without each fold of the labels in turn, a key of `PHASES`; None where nothing is.

    Args:
        phase: what the round trains.
        targets: `(m, ...)` of the labels.
        groups: of `Lesson`.
    """
    if not settings.is_pretrained or not can_cross(targets, groups):
        return None
    return "head" if can_hold_out(targets, task=task, groups=groups) else phase


def predict_out_of_fold(
    lesson: Lesson,
    settings: ModelSettings,
    *,
    seed: int,
    bagging: bool = False,
    on_progress: OnProgress | None = None,
) -> OutOfFold:
    """What heads on the lesson's trunk, or networks without one, predict of labels that they have not seen.

    They learn from labels alone, and from pretrained weights: the last round's have seen the labels.

    Args:
        seed: of the folds, the heads and the training.
        bagging: whether each network learns from a draw of the labels, as the members do.
        on_progress: called with (done, total) epochs of networks.
    """
    if lesson.body is None:
        outputs = _cross_networks(lesson, settings, seed=seed, bagging=bagging, on_progress=on_progress)
        return OutOfFold(lesson.phase, lesson.task.logits(outputs))
    features = cast(Tensor, lesson.labelled_inputs)
    crossed = cross_heads(lesson.body, features, lesson, settings, seed=seed, bagging=bagging)
    return OutOfFold(lesson.phase, lesson.task.logits(crossed.logits), crossed.epochs)


def with_out_of_fold(lesson: Lesson, crossed: OutOfFold | None) -> Lesson:
    """The lesson with predictions to calibrate on, where they are of networks as it trains them."""
    if crossed is None or crossed.phase != lesson.phase:
        return lesson
    return replace(lesson, out_of_fold=crossed)


def add_out_of_fold(lesson: Lesson, settings: ModelSettings, *, seed: int, bagging: bool = False) -> Lesson:
    """The lesson with predictions out of fold to calibrate on, where no labels are held out for it.

    Args:
        seed: of the folds.
        bagging: as in `predict_out_of_fold`.
    """
    crossed = phase_to_cross(lesson.phase, lesson.labels, settings, task=lesson.task, groups=lesson.groups)
    if crossed != lesson.phase:
        return lesson
    return with_out_of_fold(lesson, predict_out_of_fold(lesson, settings, seed=seed, bagging=bagging))


def cross_heads(
    body: Classifier, features: Tensor, lesson: Lesson, settings: ModelSettings, *, seed: int, bagging: bool
) -> CrossFit:
    """What heads on the frozen trunk of `body` predict of the lesson's labels, each out of its fold.

    Args:
        features: `(m, ...)` that the trunk made of the labelled images.
    """
    return cross_fit(
        body,
        features,
        lesson.labels,
        settings.recipe,
        task=lesson.task,
        seed=seed,
        device=choose_device(settings.device),
        bootstrap=bagging,
        groups=lesson.groups,
    )


def _cross_networks(
    lesson: Lesson,
    settings: ModelSettings,
    *,
    seed: int,
    bagging: bool,
    on_progress: OnProgress | None,
) -> Tensor:
    """Outputs `(m, ...)` on the labelled images, each by a network trained as a member is, without its fold."""
    images, targets, recipe = lesson.labelled_inputs, lesson.labels, settings.recipe
    generator = seeded_generator(seed, 0, "folds of networks")
    strata = lesson.task.strata(targets)
    folds = split_folds(strata, n_folds=NETWORK_FOLDS, generator=generator, groups=lesson.groups)

    def predict(number: int) -> Tensor:
        def count(row: Mapping[str, float]) -> None:
            epochs.append(row)
            if on_progress is not None:
                on_progress(number * recipe.max_epochs + len(epochs), len(folds) * recipe.max_epochs)

        epochs: list[Mapping[str, float]] = []
        rest = torch.ones(len(targets), dtype=torch.bool).index_fill(0, folds[number], False)
        model = new_model(settings, lesson.task, n_classes=lesson.n_classes, seed=seed)
        model.train_only(lesson.phase)
        fit(
            model,
            subset(images, rest),
            targets[rest],
            recipe,
            task=lesson.task,
            seed=seed,
            device=choose_device(settings.device),
            bootstrap=bagging,
            on_epoch=count,
        )
        return compute_in_parts(model, model, subset(images, folds[number]))

    return torch.cat([predict(number) for number in range(len(folds))])[torch.cat(folds).argsort()]
