"""Rounds of campaigns: records that nobody computed, and the steps up to a model and a batch."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from flows.artefacts import (
    ANSWERS,
    BATCH,
    CANDIDATES,
    CONFIG,
    LABELLED,
    LABELLED_EMBEDDINGS,
    MEMBERS,
    PUSHED,
    PUSHING,
    ROUND,
    SCORES,
    TRAINING,
    WITHDRAWN,
)
from flows.campaign import OpenCampaign
from flows.config import CampaignSettings, resolved
from flows.folder import RoundFolder
from flows.records import (
    AuditMetrics,
    ClosedRound,
    Look,
    Member,
    NetworkForm,
    Outlook,
    Plan,
    Pushed,
    Pushing,
    RoundConfig,
    Training,
)
from flows.steps.plan import look_ahead, plan
from flows.steps.score import embed_labelled, score_shard, shards_of
from flows.steps.select import ScoredRound, compare_with_half, select
from flows.steps.train import cross_validate, load_networks, train
from pipeline.evaluation.metrics import wilson_interval
from pipeline.networks.classifier import Classifier
from pipeline.tables import BatchTable, Labels
from pipeline.tasks import TASKS
from pipeline.types import Annotation, Answer, Ask, Candidates, Region
from tests.flows.conftest import CLASSES, ready_round

THEN = "2026-01-01T00:00:00+00:00"


def with_settings(work: OpenCampaign, **changed: Any) -> OpenCampaign:
    """The campaign with other settings, and the same outside systems."""
    settings = work.settings.model_copy(update=changed)
    return OpenCampaign(settings, work.folder, tool=work.tool, tracker=work.tracker)


def config_of(settings: CampaignSettings, number: int = 0, *, query_size: int | None = None) -> RoundConfig:
    size = settings.query_size if query_size is None else query_size
    step = settings.model.recipe.batch_size_for(TASKS[settings.task])
    return RoundConfig(number, THEN, query_size=size, settings=resolved(settings), batch_size=step, changes=[])


def metrics_of(n_correct: int = 180, n: int = 200, **changed: Any) -> AuditMetrics:
    """Metrics of a model that nobody measured."""
    low, high = wilson_interval(n_correct, n)
    metrics = AuditMetrics(
        n=n,
        headline="accuracy",
        value=n_correct / n,
        low=low,
        high=high,
        nll=0.3,
        ece=0.05,
        scalars={"balanced_accuracy": 0.5},
        by_class={"recall": {"left": 0.5}},
        table=[[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        nll_uncalibrated=0.4,
        ece_uncalibrated=0.06,
    )
    return replace(metrics, **changed)


def training_of(
    n_trained_on: int = 24, classes: Sequence[str] = CLASSES, *, weights: Sequence[str] = (), phase: str = "head"
) -> Training:
    """The record of a training that never was, of networks in these files."""
    form = NetworkForm(
        name="small_cnn",
        image_size=12,
        channels=1,
        dropout=0.5,
        head="linear",
        phase=phase,
        n_classes=len(classes),
        classes=list(classes),
    )
    return Training(
        device="cpu",
        n_trained_on=n_trained_on,
        labelled_digest="",
        n_pseudo_labels=0,
        pseudo_label_threshold=0.0,
        phase=phase,
        plan=Plan(phase, phase, {}, max_minutes=None, text=None),
        preprocessing={},
        findings=(),
        members=tuple(Member(name, 0, (name,), [], 0, (), None, {}) for name in weights),
        model=form,
    )


def outlook_of(*rules: str) -> Outlook:
    """What a round saw while these stopping rules were on."""
    return Outlook(None, "of no interest here", None, {rule: Look(1, 0.01, None) for rule in rules})


def answer(item_id: str, label: str | None, *, number: int = 0, answer_id: int = 1) -> Answer:
    given = Annotation(item_id, (Region("image", label),), "ann") if label else None
    outcome = "labelled" if label else "skipped"
    return Answer(Ask(item_id, number, "seed"), answer_id, answer_id, outcome, "ann", THEN, given)


def begin_to_push(folder: RoundFolder) -> None:
    """People may have seen some of the batch."""
    folder.write(PUSHING, Pushing(THEN))


def push_tasks(folder: RoundFolder, tasks: dict[str, int], address: str = "") -> None:
    """A batch of these item ids and their tasks is out."""
    folder.write(PUSHED, Pushed(THEN, address, tasks, dict.fromkeys(tasks, "seed")))


def collect_answers(folder: RoundFolder, answers: Sequence[Answer]) -> None:
    folder.write(WITHDRAWN, [])
    folder.write(ANSWERS, list(answers))


def close_round(
    folder: RoundFolder,
    answers: Sequence[Answer],
    settings: CampaignSettings,
    *,
    asked: dict[str, int] | None = None,
) -> None:
    """A round whose batch is out and whose answers are in."""
    tasks = {one.item_id: 1 for one in answers} if asked is None else asked
    folder.write(CONFIG, config_of(settings, folder.number))
    push_tasks(folder, tasks)
    collect_answers(folder, answers)
    closed = ClosedRound(folder.number, THEN, len(tasks), 0, 0, outcomes={}, metrics=None, seconds={}, run_id="")
    folder.write(ROUND, closed)


def ask_nothing(folder: RoundFolder) -> None:
    """A batch that is empty."""
    folder.write(BATCH, BatchTable(pd.DataFrame({"item_id": [], "reason": []})))


def change_labels(folder: RoundFolder, change: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """Change the labels that a round learns from, and return them."""
    table = change(folder.read(LABELLED).table)
    folder.write(LABELLED, Labels(table))
    return table


def learn(work: OpenCampaign, folder: RoundFolder) -> Training:
    """Train the members of a round whose labels and candidates are gathered."""
    work.do(plan, folder)
    work.do(cross_validate, folder)
    return work.do(train, folder)


def train_round(work: OpenCampaign, number: int = 1) -> RoundFolder:
    """A round that has its networks."""
    folder = ready_round(work, number)
    learn(work, folder)
    return folder


def networks_of(work: OpenCampaign, folder: RoundFolder) -> Sequence[Classifier]:
    """The networks of a round."""
    return load_networks(folder.read(TRAINING), folder.read(MEMBERS), work.settings.model)


def weight_files(folder: RoundFolder) -> list[Path]:
    """The files of the networks of a round."""
    return folder.read(MEMBERS).files(folder.read(TRAINING).weights)


def candidates_of(folder: RoundFolder) -> pd.DataFrame:
    """What a round chooses from: item_id, uri."""
    return folder.read(CANDIDATES).table


def score_candidates(work: OpenCampaign, folder: RoundFolder) -> RoundFolder:
    """Score the candidates of a round, shard by shard."""
    work.do(embed_labelled, folder)
    for shard in shards_of(folder.read(CANDIDATES)):
        work.do(score_shard, folder, shard=shard, on_progress=lambda _done, _total: None)
    return folder


def candidates_read(work: OpenCampaign, folder: RoundFolder, *, of: str = "") -> Candidates:
    """What choosing a batch reads of the scores."""
    listed, settings = folder.read(CANDIDATES), work.settings
    scored = ScoredRound(
        listed,
        folder.read(SCORES),
        folder.read(LABELLED_EMBEDDINGS),
        folder.read(LABELLED),
        TASKS[settings.task],
        settings,
    )
    body = networks_of(work, folder)[0]
    return scored.candidates(settings, lambda rows: work.images.embeddings(body, listed, rows), of=of)


def select_batch_of(work: OpenCampaign, folder: RoundFolder, n: int) -> BatchTable:
    """Choose so many images, and compare the batch with that of half the members."""
    folder.write(CONFIG, replace(folder.read(CONFIG), query_size=n))
    work.do(look_ahead, folder)
    _, batch = work.do(select, folder)
    work.do(compare_with_half, folder)
    return batch
