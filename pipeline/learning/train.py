"""A round's networks: trained on a lesson, diagnosed, calibrated, and given their posteriors and draws."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.image_rows import subset
from pipeline.learning.lesson import Lesson, can_cross, held_out_labels
from pipeline.learning.networks import compute_in_parts, new_model
from pipeline.learning.out_of_fold import FOLDS, add_out_of_fold, cross_heads
from pipeline.learning.settings import MemberSettings, ModelSettings
from pipeline.members.laplace import fit_posterior
from pipeline.members.swag import swag_draws
from pipeline.networks.build import with_new_head
from pipeline.networks.classifier import Classifier
from pipeline.networks.devices import choose_device
from pipeline.networks.weights import shrink_and_perturb
from pipeline.randomness import derive_seed
from pipeline.training.calibration import calibrate
from pipeline.training.cross_fit import judged_out_of_fold
from pipeline.training.diagnosis import batch_norm_statistics, compare_batch_norm, diagnose
from pipeline.training.fit import Fit, fit
from pipeline.types import Calibration, Finding

LEARNING_VERSION = 1
"""To be raised when a change in `pipeline` makes other networks of the same settings: replays and benchmarks that began
before are not mixed with what comes after."""


@dataclass(frozen=True)
class Trained:
    """A network that has learnt from labels.

    Attributes:
        model: calibrated, with its posterior where one is asked for; ready to predict.
        fit: how the training went.
        findings: what is wrong with it.
        calibration: None where there were no images to calibrate on.
        unseen_logits: `(m, U, C)` of the lesson's labels by networks that have not seen them, which the posterior's
            width is chosen by; None where there are none.
    """

    model: Classifier
    fit: Fit
    findings: tuple[Finding, ...]
    calibration: Calibration | None
    unseen_logits: Tensor | None


def learn(
    lesson: Lesson, settings: ModelSettings, members: MemberSettings, *, seed: int, round_number: int
) -> list[Classifier]:
    """The networks of a round, in memory: members in their order, with SWAG one for each draw of each.

    A campaign does the same member by member, with files between: the seeds are the same.

    Args:
        seed: of the campaign or replay.
        round_number: counts from 0; another round has other folds and other members.
    """
    of_folds = derive_seed(seed, round_number, FOLDS)
    lesson = add_out_of_fold(lesson, settings, seed=of_folds, bagging=members.bagging)
    networks = []
    for index in range(members.ensemble):
        of_member = derive_seed(seed, round_number, member_name(index))
        trained = train_network(lesson, settings, members, seed=of_member)
        if members.swag:
            shared = {} if lesson.body is None else {id(lesson.body.trunk): lesson.body.trunk}
            draws = weight_draws(trained, lesson, settings, members, seed=of_member)
            networks += [copy.deepcopy(model, dict(shared)) for model in draws]
        else:
            networks.append(trained.model)
    return networks


def member_name(index: int) -> str:
    """What a member is called: the purpose of its random numbers, its record in a round, its run in the tracker."""
    return f"member-{index}"


def train_network(
    lesson: Lesson,
    settings: ModelSettings,
    members: MemberSettings,
    *,
    seed: int,
    previous: Mapping[str, Tensor] | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> Trained:
    """Train one network, see whether it learnt anything, and calibrate it.

    Args:
        previous: weights of the last round, to start near; a head on a frozen trunk is always drawn anew.
    """
    model = _start(lesson, settings, seed=seed, previous=previous)
    before = batch_norm_statistics(model)
    crossed = None if lesson.out_of_fold is None else lesson.out_of_fold.logits
    outcome = fit(
        model,
        lesson.inputs,
        lesson.targets,
        settings.recipe if lesson.epochs is None else settings.recipe.for_epochs(lesson.epochs),
        task=lesson.task,
        seed=seed,
        device=choose_device(settings.device),
        from_features=lesson.reads_features,
        held_out=_hold_out(lesson, seed=seed),
        pool_sample=lesson.pool_sample,
        bootstrap=members.bagging,
        on_epoch=on_epoch,
    )
    task, held_out = lesson.task, outcome.held_out
    logits = task.logits(compute_in_parts(model, model.read if lesson.reads_features else model, lesson.inputs))
    unseen = (logits[held_out], lesson.targets[held_out]) if crossed is None else (crossed, lesson.labels)
    seen, judged = task.answered(logits[outcome.train], lesson.targets[outcome.train]), task.answered(*unseen)
    findings = diagnose(
        outcome.history,
        logits=seen.values,
        targets=seen.right,
        held_out_logits=judged.values,
        held_out_targets=judged.right,
        has_one_decision=task.has_one_decision,
        generator=torch.Generator().manual_seed(seed),
    )
    smallest = min(len(outcome.train), settings.recipe.batch_size_for(task))
    moved = compare_batch_norm(before, model, smallest_batch=smallest)
    calibration = calibrate(judged.values, judged.right) if len(judged.right) else None
    if calibration is not None:
        model.temperature.fill_(calibration.temperature)
    if members.laplace:
        if crossed is None and not lesson.reads_features and _can_judge(lesson):
            crossed = _judge_trunk(model, lesson, settings, seed=seed, bagging=members.bagging)
        _add_posterior(model, lesson, crossed)
    return Trained(model, outcome, (*findings, *moved), calibration, crossed)


def weight_draws(
    trained: Trained, lesson: Lesson, settings: ModelSettings, members: MemberSettings, *, seed: int
) -> Iterator[Classifier]:
    """The network with one draw of its weights after another, the same object each time.

    They are of the normal distribution around its last steps (SWAG: Maddox et al., 2019).
    """
    for model in swag_draws(
        trained.model,
        subset(lesson.inputs, trained.fit.train),
        lesson.targets[trained.fit.train],
        settings.recipe,
        task=lesson.task,
        n_draws=members.swag,
        seed=seed,
        device=choose_device(settings.device),
        from_features=lesson.reads_features,
    ):
        if members.laplace:
            _add_posterior(model, lesson, trained.unseen_logits)
        yield model


def _start(lesson: Lesson, settings: ModelSettings, *, seed: int, previous: Mapping[str, Tensor] | None) -> Classifier:
    """The network as it is before the training."""
    if lesson.body is not None:
        model = with_new_head(lesson.body, seed=seed)
        model.train_only(lesson.phase)
        return model
    model = new_model(settings, lesson.task, n_classes=lesson.n_classes, seed=seed)
    model.train_only(lesson.phase)
    if previous is not None:
        shrink_and_perturb(model, previous)
    return model


def _hold_out(lesson: Lesson, *, seed: int) -> Tensor:
    """Positions of labels to calibrate on, and to stop early by; none where predictions out of fold do for that."""
    if lesson.out_of_fold is not None:
        return torch.arange(0)
    return held_out_labels(lesson.labels, task=lesson.task, seed=seed, groups=lesson.groups)


def _can_judge(lesson: Lesson) -> bool:
    """Whether predictions of the lesson's labels out of fold could judge networks."""
    judged = judged_out_of_fold(lesson.task.strata(lesson.labels), lesson.groups)
    return bool(judged.any()) and can_cross(lesson.labels, lesson.groups)


def _judge_trunk(model: Classifier, lesson: Lesson, settings: ModelSettings, *, seed: int, bagging: bool) -> Tensor:
    """Logits of the labelled images by heads that have not seen them, on a trunk that has."""
    learner = with_new_head(model, seed=seed)
    learner.train_only("head")
    features = compute_in_parts(model, model.features, lesson.labelled_inputs)
    crossed = cross_heads(learner, features, lesson, settings, seed=seed, bagging=bagging)
    model.train_only(lesson.phase)  # of the trunk that both have
    return lesson.task.logits(crossed.logits)


def _add_posterior(model: Classifier, lesson: Lesson, logits: Tensor | None) -> None:
    """Give the network the posterior of its last layer, whose draws are members."""

    def embed(part: Tensor) -> Tensor:
        return model.tail[:-1](part.float()) if lesson.reads_features else model.embed(part)

    if logits is None:
        model.posterior = fit_posterior(model, compute_in_parts(model, embed, lesson.inputs))
        return
    embeddings = compute_in_parts(model, embed, lesson.labelled_inputs)
    judged = judged_out_of_fold(lesson.labels, lesson.groups)  # one decision an image: else there is no such posterior
    model.posterior = fit_posterior(model, embeddings, logits=logits[:, 0], targets=lesson.labels, judged=judged)
