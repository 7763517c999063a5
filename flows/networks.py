"""The networks that settings describe: built, and trained on labels. Worker processes load this, so no Prefect."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import pairwise
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from connectors.images.pixels import stream_images
from connectors.images.reading import WHOLE, Reading
from flows.cache import features_of
from pipeline.learning.settings import MemberSettings, ModelSettings
from pipeline.members.laplace import fit_posterior
from pipeline.members.predict import check_dropout, predict_from_features, predict_members, stochastic_layers
from pipeline.members.swag import swag_draws
from pipeline.networks.classifier import (
    PHASES,
    Classifier,
    ModelError,
    build_model,
    evaluating,
    shrink_and_perturb,
    with_new_head,
)
from pipeline.randomness import seeded_generator
from pipeline.tasks import Task, classification
from pipeline.training.calibration import Calibration, calibrate
from pipeline.training.diagnosis import Finding, batch_norm_statistics, compare_batch_norm, diagnose
from pipeline.training.fit import (
    MIN_VALIDATION,
    CrossFit,
    Fit,
    choose_device,
    choose_phase,
    cross_fit,
    fit,
    judged_out_of_fold,
    split_folds,
    split_validation,
)

TASK: Task = classification
"""What the networks decide."""
RECIPE = 1
"""To be raised when a change here or in `pipeline` makes other networks of the same settings: replays and benchmarks
that began before are not mixed with what comes after."""
CHUNK = 256
"""Images that pass through a network at a time."""
SHARD = 4096
"""Candidates in one file of scores, and images whose features are in memory at a time."""
MAX_PROBABILITIES = 2**26
"""Numbers that heads on cached features say at a time: 256 MiB."""
N_SAMPLED = 256
"""Images of the pool that networks without pretrained weights are standardised by."""
VALIDATION_SHARE = 0.1
"""Of the labels, held out to calibrate networks on whose trunk is trained too, where that makes enough of them."""
N_TIMED, STEPS_TIMED = 32, 3
"""Images in a step that is timed, at most, and such steps; the first takes longer."""
NETWORK_FOLDS = 3
"""Folds in which networks that train more than heads predict out of fold; each costs as much as a member."""


@dataclass(frozen=True)
class Lesson:
    """What the networks of a round learn from, and how far.

    Attributes:
        phase: what is trained, a key of `PHASES`.
        inputs: images `(n, channels, S, S)`; or where only heads are trained what the trunk of `body` made of them.
        targets: `(n,)` class indices.
        body: the network whose trunk all share; None where each has its own.
        epochs: so many, to the last; None for the settings' own.
        out_of_fold: logits `(m, C)` and targets `(m,)` of the first m inputs by networks that have not seen them, to
            calibrate on; None to calibrate on what is held out.
        n_labels: so many of the first targets are labels, and the others guesses, which nothing is judged by; None
            where all are labels.
        pool_sample: images `(m, channels, S, S)` to standardise by; None where mean and std come with the weights.
        groups: of the labels, numbers `(m,)` from 0: labels of one group are held out together; None where each is its
            own.
    """

    phase: str
    inputs: Tensor
    targets: Tensor
    body: Classifier | None = None
    epochs: int | None = None
    out_of_fold: tuple[Tensor, Tensor] | None = None
    n_labels: int | None = None
    pool_sample: Tensor | None = None
    groups: Tensor | None = None

    @property
    def labels(self) -> Tensor:
        """Targets `(m,)` of the first m inputs, those that are labels."""
        return self.targets[: self.n_labels]


@dataclass(frozen=True)
class Trained:
    """A network that has learnt from labels.

    Attributes:
        model: calibrated, with its posterior where one is asked for; ready to predict.
        fit: how the training went.
        findings: what is wrong with it.
        calibration: None where there were no images to calibrate on.
        out_of_fold: logits `(m, C)` and targets `(m,)` of its first m inputs by networks that have not seen them,
            which the posterior's width is chosen by; None where there are none.
    """

    model: Classifier
    fit: Fit
    findings: tuple[Finding, ...]
    calibration: Calibration | None
    out_of_fold: tuple[Tensor, Tensor] | None


def new_model(settings: ModelSettings, *, n_classes: int, seed: int) -> Classifier:
    """The untrained network of one member."""
    return build_model(
        settings.name,
        n_classes=n_classes,
        image_size=settings.image_size,
        channels=settings.channels,
        dropout=settings.dropout,
        weights=settings.weights if settings.is_pretrained else None,
        head=settings.head,
        seed=seed,
    )


def frozen_body(settings: ModelSettings, *, n_classes: int) -> Classifier:
    """The network whose trunk all members share when they train their heads only, on the settings' device."""
    model = new_model(settings, n_classes=n_classes, seed=0)
    model.train_only("head")
    return model.to(choose_device(settings.device))


def phase_of(settings: ModelSettings, *, n_labels: int, n_classes: int) -> str:
    """What a training on so many labels trains, a key of `PHASES`."""
    if settings.train != "auto":
        return settings.train
    return choose_phase(
        n_labels / n_classes,
        pretrained=settings.is_pretrained,
        last_stage_from=settings.last_stage_from,
        all_from=settings.all_from,
    )


def estimate_seconds(
    settings: ModelSettings,
    members: MemberSettings,
    phase: str,
    *,
    n_labels: int,
    n_classes: int,
    n_images: int,
) -> float:
    """About how long it takes here to train a round's networks, and to pass images through them, in seconds.

    A few steps and passes are timed, on noise. Heads on cached features take a moment: this is for what takes longer.

    Args:
        phase: what is trained, a key of `PHASES`.
        n_images: that each network sees once when it is trained: candidates, audit set, labels.
    """
    in_step = min(settings.batch_size, n_labels)
    n_timed = min(in_step, N_TIMED)
    images = _noise(settings, n_timed)
    model = new_model(settings, n_classes=n_classes, seed=0)
    model.train_only(phase)
    moments: list[float] = []
    fit(
        model,
        images,
        torch.arange(len(images)) % n_classes,
        task=TASK,
        seed=0,
        device=choose_device(settings.device),
        augmentation=settings.augmentation,
        held_out=torch.arange(0),
        on_epoch=lambda _row: moments.append(perf_counter()),
        **fit_options(settings) | {"max_epochs": STEPS_TIMED, "min_steps": 1, "patience": None},
    )
    of_image = min(later - earlier for earlier, later in pairwise(moments)) / n_timed
    begun = perf_counter()
    _in_parts(model, model, images)
    of_pass = (perf_counter() - begun) / n_timed
    steps = max(settings.min_steps, n_labels / settings.batch_size) * settings.max_epochs
    n_trained = members.ensemble * (2 if settings.pseudo_labels.threshold > 0 else 1)
    few = n_labels * VALIDATION_SHARE < MIN_VALIDATION
    n_crossed = NETWORK_FOLDS if few and settings.is_pretrained else 0
    n_passes = members.n_networks * max(1, members.views)
    return (n_trained + n_crossed) * steps * in_step * of_image + n_passes * n_images * of_pass


def check_network(settings: ModelSettings, members: MemberSettings, *, n_classes: int) -> None:
    """Build the network once, so that wrong weights, sizes or devices are found before labels are paid for.

    Raises:
        ModelError: naming what is wrong.
    """
    try:
        choose_device(settings.device)
        model = new_model(settings, n_classes=n_classes, seed=0)
        if members.mc_dropout:
            for phase in PHASES if settings.follows_labels else [phase_of(settings, n_labels=0, n_classes=n_classes)]:
                model.train_only(phase)
                if not stochastic_layers(model):
                    raise ModelError(
                        f"mc_dropout needs dropout, and what {settings.name} trains has none (phase {phase})"
                    )
            check_dropout(model, _noise(settings))
    except ValueError as exc:
        raise ModelError(str(exc)) from exc


def _noise(settings: ModelSettings, n: int = 2) -> Tensor:
    """Images that look like nothing."""
    shape = (n, settings.channels, settings.image_size, settings.image_size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def fit_options(settings: ModelSettings) -> dict[str, Any]:
    """The settings that `fit` and `cross_fit` take alike."""
    names = ("learning_rate", "body_rate", "weight_decay", "max_epochs", "patience", "batch_size", "min_steps")
    return {name: getattr(settings, name) for name in (*names, "class_balanced", "label_smoothing", "schedule")}


def can_hold_out(targets: Tensor, groups: Tensor | None = None) -> bool:
    """Whether there are labels enough to hold some out and calibrate networks on them."""
    return len(_validation_part(targets, groups, seed=0)) > 0


def can_cross(targets: Tensor, groups: Tensor | None = None) -> bool:
    """Whether labels can be predicted out of fold: there are two at least that do not depend on each other."""
    return len(targets) >= 2 and (groups is None or len(groups.unique()) >= 2)


def predict_out_of_fold(
    body: Classifier,
    features: Tensor,
    targets: Tensor,
    settings: ModelSettings,
    *,
    seed: int,
    bagging: bool = False,
    groups: Tensor | None = None,
) -> CrossFit:
    """What heads on a frozen trunk say of labelled images `(n, ...)` that they have not seen, n >= 2.

    Args:
        bagging: whether each head learns from a draw of the labels, as the members do.
        groups: of `Lesson`.
    """
    return cross_fit(
        body,
        features,
        targets,
        task=TASK,
        seed=seed,
        device=choose_device(settings.device),
        bootstrap=bagging,
        groups=groups,
        **fit_options(settings),
    )


def predict_networks_out_of_fold(
    settings: ModelSettings,
    phase: str,
    images: Tensor,
    targets: Tensor,
    *,
    n_classes: int,
    seed: int,
    bagging: bool = False,
    groups: Tensor | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> Tensor:
    """What networks that train more than heads say of labelled images that they have not seen.

    They are trained as members are, from the pretrained weights, each without one of `NETWORK_FOLDS` folds; on labels
    alone, and never near the last round's weights, which have seen them.

    Args:
        phase: what is trained, a key of `PHASES`.
        images: `(n, channels, S, S)` of uint8, n >= 2.
        targets: `(n,)` class indices.
        seed: of the folds, the heads and the training.
        bagging: as in `predict_out_of_fold`; groups likewise.
        advance: called with (done, total) epochs.

    Returns:
        Logits `(n, C)`, float32 on the CPU.
    """
    generator = seeded_generator(seed, 0, "folds of networks")
    folds = split_folds(TASK.strata(targets), n_folds=NETWORK_FOLDS, generator=generator, groups=groups)

    def predict(number: int) -> Tensor:
        def count(row: Mapping[str, float]) -> None:
            epochs.append(row)
            if advance is not None:
                advance(number * settings.max_epochs + len(epochs), len(folds) * settings.max_epochs)

        epochs: list[Mapping[str, float]] = []
        rest = torch.ones(len(targets), dtype=torch.bool).index_fill(0, folds[number], False)
        model = new_model(settings, n_classes=n_classes, seed=seed)
        model.train_only(phase)
        fit(
            model,
            images[rest],
            targets[rest],
            task=TASK,
            seed=seed,
            device=choose_device(settings.device),
            augmentation=settings.augmentation,
            held_out=torch.arange(0),
            bootstrap=bagging,
            on_epoch=count,
            **fit_options(settings),
        )
        return _in_parts(model, model, images[folds[number]])

    return torch.cat([predict(number) for number in range(len(folds))])[torch.cat(folds).argsort()]


def add_out_of_fold(
    lesson: Lesson, settings: ModelSettings, *, n_classes: int, seed: int, bagging: bool = False
) -> Lesson:
    """The lesson with predictions out of fold to calibrate on, where no labels are held out for it.

    Args:
        seed: of the folds.
        bagging: as in `predict_out_of_fold`.
    """
    targets = lesson.labels
    inputs = lesson.inputs[: len(targets)]
    if not can_cross(targets, lesson.groups) or not settings.is_pretrained:
        return lesson
    how: dict[str, Any] = {"seed": seed, "bagging": bagging, "groups": lesson.groups}
    if lesson.body is not None:
        crossed = predict_out_of_fold(lesson.body, inputs, targets, settings, **how)
        return replace(lesson, epochs=crossed.epochs, out_of_fold=(crossed.logits, targets))
    if can_hold_out(targets, lesson.groups):
        return lesson
    logits = predict_networks_out_of_fold(settings, lesson.phase, inputs, targets, n_classes=n_classes, **how)
    return replace(lesson, out_of_fold=(logits, targets))


def train_network(
    settings: ModelSettings,
    members: MemberSettings,
    lesson: Lesson,
    *,
    n_classes: int,
    seed: int,
    previous: Mapping[str, Tensor] | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> Trained:
    """Train one network, see whether it learnt anything, and calibrate it.

    Args:
        previous: weights of the last round, to start near; a head on a frozen trunk is always drawn anew.
    """
    inputs, targets, body, epochs = lesson.inputs, lesson.targets, lesson.body, lesson.epochs
    from_features = body is not None
    model = new_model(settings, n_classes=n_classes, seed=seed) if body is None else with_new_head(body, seed=seed)
    model.train_only(lesson.phase)
    if previous is not None and body is None:
        shrink_and_perturb(model, previous)
    options = fit_options(settings) | ({"max_epochs": epochs, "patience": None} if epochs is not None else {})
    before = batch_norm_statistics(model)
    outcome = fit(
        model,
        inputs,
        targets,
        task=TASK,
        seed=seed,
        device=choose_device(settings.device),
        from_features=from_features,
        augmentation="none" if from_features else settings.augmentation,
        held_out=_hold_out(lesson, seed=seed),
        pool_sample=lesson.pool_sample,
        bootstrap=members.bagging,
        on_epoch=on_epoch,
        **options,
    )
    logits = _in_parts(model, model.read if from_features else model, inputs)
    out_of_fold = lesson.out_of_fold
    unseen = (logits[outcome.held_out], targets[outcome.held_out]) if out_of_fold is None else out_of_fold
    findings = diagnose(
        outcome.history,
        logits=logits[outcome.train],
        targets=targets[outcome.train],
        held_out_logits=unseen[0],
        held_out_targets=unseen[1],
        generator=torch.Generator().manual_seed(seed),
    )
    moved = compare_batch_norm(before, model, smallest_batch=min(len(outcome.train), settings.batch_size))
    calibration = calibrate(*unseen) if len(unseen[1]) else None
    if calibration is not None:
        model.temperature.fill_(calibration.temperature)
    if members.laplace:
        if out_of_fold is None and body is None and _can_judge(lesson):
            out_of_fold = _judge_trunk(model, lesson, settings, seed=seed, bagging=members.bagging)
        _add_posterior(model, lesson, out_of_fold)
    return Trained(model, outcome, (*findings, *moved), calibration, out_of_fold)


def weight_draws(
    trained: Trained, settings: ModelSettings, members: MemberSettings, lesson: Lesson, *, seed: int
) -> Iterator[Classifier]:
    """The network with one draw of its weights after another, the same object each time.

    They are of the normal distribution around its last steps (SWAG: Maddox et al., 2019).
    """
    model, from_features = trained.model, lesson.body is not None
    for _ in swag_draws(
        model,
        lesson.inputs[trained.fit.train],
        lesson.targets[trained.fit.train],
        task=TASK,
        n_draws=members.swag,
        seed=seed,
        device=choose_device(settings.device),
        from_features=from_features,
        body_rate=settings.body_rate,
        batch_size=settings.batch_size,
        augmentation="none" if from_features else settings.augmentation,
        class_balanced=settings.class_balanced,
        label_smoothing=settings.label_smoothing,
    ):
        if members.laplace:
            _add_posterior(model, lesson, trained.out_of_fold)
        yield model


def predictions(
    models: Sequence[Classifier],
    items: pd.DataFrame,
    settings: ModelSettings,
    members: MemberSettings | None = None,
    *,
    reading: Reading = WHOLE,
    seed: int = 0,
    advance: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Decisions `(n, U, K, C)` and embeddings `(n, D)` of images, a part of them at a time; no more is in memory.

    A frozen trunk that all networks share is asked once for an image and never again: see `features_of`.

    Args:
        items: item_id and uri.
        members: how each network becomes several members; None for one each.
        reading: how the images are read.
        seed: of the members' draws.
        advance: called with (done, total) images.
    """
    members = members or MemberSettings()
    if share_frozen_trunk(models) and not members.views:
        yield from _predict_features(models, items, settings, members, reading=reading, seed=seed, advance=advance)
        return
    uris, done = items["uri"].tolist(), 0
    size, channels = settings.image_size, settings.channels
    with closing(stream_images(uris, size=size, channels=channels, chunk=CHUNK, reading=reading)) as images:
        for decisions, embeddings in predict_images(models, images, settings, members, seed=seed):
            yield decisions, embeddings
            done += len(decisions)
            if advance is not None:
                advance(done, len(items))


def share_frozen_trunk(models: Sequence[Classifier]) -> bool:
    """Whether the networks are heads on one trunk that none of them trained, so that its features serve them all."""
    return models[0].is_trunk_frozen and all(model.trunk is models[0].trunk for model in models)


def _predict_features(
    models: Sequence[Classifier],
    items: pd.DataFrame,
    settings: ModelSettings,
    members: MemberSettings,
    *,
    reading: Reading,
    seed: int,
    advance: Callable[[int, int], None] | None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """What `predictions` gives, of heads on a trunk that is frozen and shared."""
    n_said = len(models) * max(1, members.mc_dropout) * max(1, members.laplace) * models[0].n_classes
    for start in range(0, len(items), SHARD):
        shard = items.iloc[start : start + SHARD]

        def count(done: int, _total: int, start: int = start) -> None:
            if advance is not None:
                advance(start + done, len(items))

        features = features_of(models[0], shard, settings, reading=reading, advance=count)
        count(len(shard), len(shard))
        for part in features.split(max(1, MAX_PROBABILITIES // n_said)):
            yield predict_from_features(
                models, part, task=TASK, mc_dropout=members.mc_dropout, laplace=members.laplace, seed=seed
            )


def predict_images(
    models: Sequence[Classifier],
    images: Iterable[Tensor],
    settings: ModelSettings,
    members: MemberSettings | None,
    *,
    seed: int,
) -> Iterator[tuple[Tensor, Tensor]]:
    """What `predictions` gives, of images `(n, channels, S, S)` that are in memory."""
    members = members or MemberSettings()
    for part in images:
        yield predict_members(
            models,
            part,
            task=TASK,
            mc_dropout=members.mc_dropout,
            laplace=members.laplace,
            views=members.views,
            augmentation=settings.augmentation,
            seed=seed,
        )


def _hold_out(lesson: Lesson, *, seed: int) -> Tensor:
    """Positions of labels to calibrate on, and to stop early by; none where predictions out of fold do for that."""
    if lesson.out_of_fold is not None:
        return torch.arange(0)
    return _validation_part(lesson.labels, lesson.groups, seed=seed)


def _validation_part(targets: Tensor, groups: Tensor | None, *, seed: int) -> Tensor:
    """Positions of labels that can be spared; none where they are few."""
    generator = seeded_generator(seed, 0, "held out")
    return split_validation(TASK.strata(targets), share=VALIDATION_SHARE, generator=generator, groups=groups)[1]


def _can_judge(lesson: Lesson) -> bool:
    """Whether predictions out of fold of some labels would say something of them."""
    judged = judged_out_of_fold(lesson.labels, lesson.groups)
    return bool(judged.any()) and can_cross(lesson.labels, lesson.groups)


def _judge_trunk(
    model: Classifier, lesson: Lesson, settings: ModelSettings, *, seed: int, bagging: bool
) -> tuple[Tensor, Tensor]:
    """Logits and targets of the labelled images by heads that have not seen them, on a trunk that has."""
    learner = with_new_head(model, seed=seed)
    learner.train_only("head")
    features = _in_parts(model, model.features, lesson.inputs[: len(lesson.labels)])
    how: dict[str, Any] = {"seed": seed, "bagging": bagging, "groups": lesson.groups}
    crossed = predict_out_of_fold(learner, features, lesson.labels, settings, **how)
    model.train_only(lesson.phase)  # of the trunk that both have
    return crossed.logits, lesson.labels


def _add_posterior(model: Classifier, lesson: Lesson, out_of_fold: tuple[Tensor, Tensor] | None) -> None:
    """Give the network the posterior of its last layer, whose draws are members."""

    def embed(part: Tensor) -> Tensor:
        return model.embed(part) if lesson.body is None else model.tail[:-1](part.float())

    if out_of_fold is None:
        model.posterior = fit_posterior(model, _in_parts(model, embed, lesson.inputs))
        return
    logits, targets = out_of_fold
    embeddings = _in_parts(model, embed, lesson.inputs[: len(targets)])
    judged = judged_out_of_fold(targets, lesson.groups)
    model.posterior = fit_posterior(model, embeddings, logits=logits, targets=targets, judged=judged)


def _in_parts(model: Classifier, compute: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """What a network in evaluation mode computes of many inputs, on the CPU."""
    with evaluating(model), torch.no_grad():
        return torch.cat([compute(part.to(model.mean.device)).float().cpu() for part in inputs.split(CHUNK)])
