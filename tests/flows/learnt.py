"""Rounds that have learnt: the steps up to a model as tests take them, and records of models that nobody trained."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from flows.artefacts import CANDIDATES, CONFIG, LABELLED, MEMBERS, TRAINING
from flows.campaign import OpenCampaign
from flows.folder import RoundFolder
from flows.records import AuditMetrics, Member, NetworkForm, Plan, Training
from flows.steps.plan import look_ahead, plan
from flows.steps.score import embed_labelled, score_shard, shards_of
from flows.steps.select import compare_with_half, select
from flows.steps.train import cross_validate, load_networks, train
from pipeline.networks.classifier import Classifier
from pipeline.tables import BatchTable, Labels


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


def networks_of(work: OpenCampaign, folder: RoundFolder) -> Sequence[Classifier]:
    """The networks of a round."""
    return load_networks(folder.read(TRAINING), folder.read(MEMBERS), work.settings.model)


def weight_files(folder: RoundFolder) -> list[Path]:
    """The files of the networks of a round."""
    return folder.read(MEMBERS).files(folder.read(TRAINING).weights)


def score_candidates(work: OpenCampaign, folder: RoundFolder) -> RoundFolder:
    """Score the candidates of a round, shard by shard."""
    work.do(embed_labelled, folder)
    for shard in shards_of(folder.read(CANDIDATES)):
        work.do(score_shard, folder, shard=shard, on_progress=lambda _done, _total: None)
    return folder


def select_batch_of(work: OpenCampaign, folder: RoundFolder, n: int) -> BatchTable:
    """Choose so many images, and compare the batch with that of half the members."""
    folder.write(CONFIG, replace(folder.read(CONFIG), query_size=n))
    work.do(look_ahead, folder)
    batch = work.do(select, folder)
    work.do(compare_with_half, folder)
    return batch


def candidates_of(folder: RoundFolder) -> pd.DataFrame:
    """What a round chooses from: item_id, uri."""
    return folder.read(CANDIDATES).table


def training_of(work: OpenCampaign, *, weights: Sequence[str] = (), phase: str = "all") -> Training:
    """The record of a training that never was, of networks in these files."""
    settings = work.settings
    model, classes = settings.model, list(settings.classes)
    form = NetworkForm(
        model.name, model.image_size, model.channels, model.dropout, model.head, phase, len(classes), classes
    )
    return Training(
        device="cpu",
        n_trained_on=24,
        labelled_digest="none",
        n_pseudo_labels=0,
        pseudo_label_threshold=0.0,
        phase=phase,
        plan=Plan(phase, phase, {}, None, None),
        preprocessing={},
        findings=(),
        members=tuple(Member(name, 0, (name,), [], 0, (), None, {}) for name in weights),
        model=form,
    )


def metrics_of(*, accuracy: float = 0.9, low: float = 0.8, n: int = 50) -> AuditMetrics:
    """Metrics of a model that nobody measured."""
    return AuditMetrics(
        n=n,
        accuracy=accuracy,
        accuracy_low=low,
        accuracy_high=0.99,
        balanced_accuracy=accuracy,
        nll=0.4,
        ece=0.05,
        nll_uncalibrated=0.5,
        ece_uncalibrated=0.1,
    )
