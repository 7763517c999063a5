"""Rounds of campaigns as records: some that nothing was computed for, some that trained."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from flows.artefacts import ANSWERS, BATCH, CONFIG, MEMBERS, PUSHED, PUSHING, ROUND, TRAINING, WITHDRAWN
from flows.campaign import OpenCampaign
from flows.config import CampaignSettings, resolved
from flows.folder import RoundFolder
from flows.records import (
    AuditMetrics,
    ClosedRound,
    Look,
    NetworkForm,
    Outlook,
    Plan,
    Pushed,
    Pushing,
    RoundConfig,
    Training,
)
from flows.steps.plan import plan
from flows.steps.train import cross_validate, load_networks, train
from pipeline.evaluation.metrics import wilson_interval
from pipeline.networks.classifier import Classifier
from pipeline.tables import BatchTable
from pipeline.types import Annotation, Answer, Ask, Region
from tests.flows.conftest import CLASSES, ready_round

THEN = "2026-01-01T00:00:00+00:00"


def with_settings(work: OpenCampaign, **changed: Any) -> OpenCampaign:
    """The campaign with other settings, and the same outside systems."""
    settings = work.settings.model_copy(update=changed)
    return OpenCampaign(settings, work.folder, tool=work.tool, tracker=work.tracker)


def config_of(settings: CampaignSettings, number: int = 0, *, query_size: int | None = None) -> RoundConfig:
    size = settings.query_size if query_size is None else query_size
    return RoundConfig(number, THEN, query_size=size, settings=resolved(settings), changes=[])


def metrics_of(n_correct: int, n: int = 200) -> AuditMetrics:
    low, high = wilson_interval(n_correct, n)
    return AuditMetrics(
        n=n,
        accuracy=n_correct / n,
        accuracy_low=low,
        accuracy_high=high,
        balanced_accuracy=0.5,
        nll=0.3,
        ece=0.05,
        confusion=[[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        nll_uncalibrated=0.4,
        ece_uncalibrated=0.06,
    )


def training_of(n_trained_on: int, classes: Sequence[str] = CLASSES) -> Training:
    """The record of a round that trained, without its networks."""
    form = NetworkForm(
        name="small_cnn",
        image_size=12,
        channels=1,
        dropout=0.5,
        head="linear",
        phase="head",
        n_classes=len(classes),
        classes=list(classes),
    )
    return Training(
        device="cpu",
        n_trained_on=n_trained_on,
        labelled_digest="",
        n_pseudo_labels=0,
        pseudo_label_threshold=0.0,
        phase="head",
        plan=Plan("head", "head", {}, max_minutes=None, text=None),
        preprocessing={},
        findings=(),
        members=(),
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


def train_round(work: OpenCampaign, number: int = 1) -> RoundFolder:
    """A round that has its networks."""
    folder = ready_round(work, number)
    for step in (plan, cross_validate, train):
        work.do(step, folder)
    return folder


def networks_of(work: OpenCampaign, folder: RoundFolder) -> Sequence[Classifier]:
    """What a round trained."""
    return load_networks(folder.read(TRAINING), folder.read(MEMBERS), work.settings.model)
