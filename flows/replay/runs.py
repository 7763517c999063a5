"""The runs of a replay: one arm at one seed, round by round, as many at a time as there are cores.

A run is one file that grows by a row with each round, so one that was killed goes on where it stood.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from connectors.store import write_json, write_table
from flows.replay.folder import FULL_DATA, Job, Replay, ReplayRow, ReplaySettings
from flows.replay.inputs import ReplayError
from pipeline.evaluation.arms import parse_arm
from pipeline.evaluation.summary import SECONDS
from pipeline.learning.lesson import Lesson
from pipeline.learning.linear import LinearHead, draw_feature_masks
from pipeline.learning.networks import CHUNK, frozen_body, phase_of
from pipeline.learning.predict import decide_on_features, decide_on_images, read_features
from pipeline.learning.regression import linear_head
from pipeline.learning.settings import MemberSettings, ModelSettings
from pipeline.learning.train import learn
from pipeline.members.predict import Decided
from pipeline.networks.classifier import Classifier
from pipeline.randomness import derive_seed, seeded_generator
from pipeline.selection.ask import candidates_of, reads_model
from pipeline.selection.batch import select_batch
from pipeline.selection.settings import SelectionSettings
from pipeline.tasks.task_type import absent_columns, is_measurable
from pipeline.types import Candidates

OnModel = Callable[[str], None]
Learnt = Callable[[Tensor], Iterator[Decided]]
"""What was learnt: positions `(n,)` to decisions, part by part."""


def run(replay: Replay, job: Job, on_model: OnModel) -> None:
    """Do what is left of a job, calling `on_model` with its name after each model."""
    if job.name == FULL_DATA:
        _run_full_data(replay, job.seed)
        on_model(job.name)
        return
    settings = replay.settings
    how = settings.selection(parse_arm(job.name))
    split, rows = replay.split(job.seed), replay.rounds_done(job)
    picked = [torch.as_tensor(np.array(row["picks"], dtype=np.int64)) for row in rows]
    labelled = torch.cat([split.start, *picked])
    for round_number in range(len(rows), settings.rounds + 1):
        begun = time.perf_counter()
        learnt, measured = _learn(replay, labelled, split.test, seed=job.seed, round_number=round_number)
        row: ReplayRow = {
            "round": round_number,
            "n_trained_on": len(labelled),
            **measured,
            "seconds_select": None,
            "seconds_train": time.perf_counter() - begun,
            "seconds_score": None,
            "class_histogram": class_histogram(settings, replay.targets[labelled]),
            "picks": None,
        }
        if round_number < settings.rounds:
            rest = _candidate_rows(settings, split.rest, labelled, seed=job.seed, round_number=round_number)
            begun = time.perf_counter()
            candidates = _candidates(replay, how, learnt, labelled, rest)
            scored = time.perf_counter()
            batch = select_batch(candidates, how, round_number=round_number, seed=job.seed)
            picks = torch.tensor([int(item_id) for item_id in batch.ids])
            row |= {
                "seconds_score": scored - begun,
                "seconds_select": time.perf_counter() - scored,
                "picks": picks.tolist(),
            }
            labelled = torch.cat([labelled, picks])
        rows.append(row)
        write_table(replay.run_path(job), _typed(rows))
        on_model(job.name)


def class_histogram(settings: ReplaySettings, targets: Tensor) -> list[int]:
    """How often `(C,)` each class is the right answer of a decision."""
    return settings.task_type.class_counts(targets, len(settings.classes)).long().tolist()


def _run_full_data(replay: Replay, seed: int) -> None:
    split = replay.split(seed)
    everything = torch.cat([split.start, split.rest])
    _, measured = _learn(replay, everything, split.test, seed=seed, round_number=0)
    write_json(replay.run_path(Job(FULL_DATA, seed)), {"n_trained_on": len(everything), **measured})


def _learn(
    replay: Replay, labelled: Tensor, test: Tensor, *, seed: int, round_number: int
) -> tuple[Learnt, dict[str, float]]:
    """What is learnt from the labelled positions, and how good it is on the test positions."""
    settings, targets = replay.settings, replay.targets
    masks = derive_seed(seed, round_number, "mc_dropout")
    network = settings.network
    if network is None or settings.is_linear:
        plain = LinearHead(
            *linear_head(replay.data[labelled], targets[labelled], n_classes=len(settings.classes), l2=settings.l2)
        )
        head = _with_members(plain, settings, replay.data.shape[1], seed=masks)
        learnt: Learnt = partial(_decide_linearly, replay, head)
        found = _decide_linearly(replay, plain, test)
    else:
        lesson = _lesson(replay, network, labelled, seed=seed)
        models = learn(lesson, network, settings.members, seed=seed, round_number=round_number)
        learnt = partial(_decide, replay, network, models, settings.members, masks)
        found = _decide(replay, network, models, None, masks, test)
    return learnt, _measure(settings, found, targets[test])


def check_measurable(replay: Replay) -> None:
    """Raise ReplayError where the test images of a seed tell nothing, before anything is trained."""
    settings = replay.settings
    for seed in sorted({job.seed for job in replay.jobs()}):
        targets = replay.targets[replay.split(seed).test]
        if not is_measurable(settings.task_type, targets, settings.classes):
            raise ReplayError(
                f"{settings.task_type.headline} cannot be measured: the {len(targets):,} images to test on hold none "
                f"of the classes, or nothing else (seed {seed}); raise --test-size"
            )


def _measure(settings: ReplaySettings, found: Iterable[Decided], targets: Tensor) -> dict[str, float]:
    """What a model was measured by on the test images, the headline first."""
    parts = [(each.decisions.mean(dim=2), each.places) for each in found]
    probs = torch.cat([probs for probs, _ in parts])
    places = [place for _, place in parts if place is not None]
    metrics = settings.task_type.measure(probs, targets, settings.classes, torch.cat(places) if places else None)
    if metrics is None:
        raise ReplayError("the images to test on measure nothing")  # check_measurable refuses them before
    return {metrics.headline: metrics.value, **metrics.scalars, "nll": metrics.nll, "ece": metrics.ece}


def _with_members(head: LinearHead, settings: ReplaySettings, n_features: int, *, seed: int) -> LinearHead:
    """The head with the members that the settings make of it."""
    if not settings.members.mc_dropout:
        return head
    masks = draw_feature_masks(settings.members.mc_dropout, n_features, dropout=settings.dropout, seed=seed)
    return LinearHead(head.weights, head.biases, masks)


def _decide_linearly(replay: Replay, head: LinearHead, rows: Tensor) -> Iterator[Decided]:
    embeddings = replay.data[rows]
    yield Decided(head.decide(embeddings).unsqueeze(1), embeddings)


def _decide(
    replay: Replay,
    network: ModelSettings,
    models: Sequence[Classifier],
    members: MemberSettings | None,
    seed: int,
    rows: Tensor,
) -> Iterator[Decided]:
    task = replay.settings.task_type
    if read_features(models, members):
        return decide_on_features(models, replay.trunk_features[rows], members, task=task, seed=seed)
    images = (replay.data[part] for part in rows.split(CHUNK))
    return decide_on_images(models, images, network, members, task=task, seed=seed)


def _lesson(replay: Replay, network: ModelSettings, labelled: Tensor, *, seed: int) -> Lesson:
    """What the labelled positions teach; heads share the trunk that they do not train."""
    n_classes, task = len(replay.settings.classes), replay.settings.task_type
    phase = phase_of(network, n_trained_on=len(labelled), n_classes=n_classes)
    body = frozen_body(network, task, n_classes=n_classes) if phase == "head" else None
    return Lesson(
        task,
        n_classes,
        phase,
        inputs=(replay.data if body is None else replay.trunk_features)[labelled],
        targets=replay.targets[labelled],
        body=body,
        pool_sample=None if network.is_pretrained else replay.pool_sample(seed),
        groups=None if replay.groups is None else replay.groups[labelled].unique(return_inverse=True)[1],
    )


def _candidate_rows(
    settings: ReplaySettings, rest: Tensor, labelled: Tensor, *, seed: int, round_number: int
) -> Tensor:
    """Rows that may be asked for, or their sub-pool, which all arms draw in the same order."""
    if settings.sub_pool is not None:
        rest = rest[torch.randperm(len(rest), generator=seeded_generator(seed, round_number, "sub-pool"))]
    rest = rest[~torch.isin(rest, labelled)]
    return rest if settings.sub_pool is None else rest[: max(settings.sub_pool, settings.query_size)].sort().values


def _candidates(replay: Replay, how: SelectionSettings, learnt: Learnt, labelled: Tensor, rest: Tensor) -> Candidates:
    """The candidates with those columns that the strategy reads; their ids are their rows."""
    ids = np.array([f"{row:09d}" for row in rest.tolist()], dtype=np.str_)
    if not reads_model(how):
        return Candidates(ids=ids, scores=torch.zeros(len(ids)))
    task, n_classes, targets = replay.settings.task_type, len(replay.settings.classes), replay.targets[labelled]
    labels = {"labelled_targets": lambda: targets, "class_counts": lambda: task.class_counts(targets, n_classes)}

    def decided(rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        return ((each.decisions, each.embeddings) for each in learnt(rows))

    return candidates_of(
        ids,
        decided(rest),
        lambda: decided(labelled),
        labels,
        how,
        n_classes=n_classes,
        absent=absent_columns(task),
        reduction=task.reduction,
    )


def _typed(rows: Sequence[ReplayRow]) -> pd.DataFrame:
    return pd.DataFrame(rows).astype(dict.fromkeys(SECONDS, "float64"))
