"""What the tracker keeps of a round: its settings, members and model, numbers and files."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from statistics import fmean

import pandas as pd

from connectors.member_files import MemberFiles
from connectors.store import flatten
from connectors.tracking import MemberHistory, Tracker
from flows.artefacts import (
    AUDIT,
    BATCH,
    CONFUSION_PICTURE,
    CONFUSION_TABLE,
    LABELLED,
    METRICS,
    MODEL,
    PAGES,
    SUMMARY,
    SUSPICIOUS,
)
from flows.batch_sizes import sizes_on
from flows.folder import RoundFolder
from flows.outlook import best_round
from flows.records import AuditMetrics, Outlook, Pages, Registered, Review, RoundConfig, Stability, Summary, Training
from flows.reports.confusion import confusion_picture, confusion_table
from flows.step import step
from pipeline.labels.answers import digest
from pipeline.labels.ledger import Ledger
from pipeline.learning.settings import ModelSettings
from pipeline.networks.devices import choose_device, device_name
from pipeline.tables import Labels, PoolTable
from pipeline.types import Counted

KEPT = (BATCH, LABELLED, AUDIT, METRICS, SUSPICIOUS, CONFUSION_TABLE, CONFUSION_PICTURE)
"""Files of a round that the tracker keeps."""
MOST_OF_CLASSES = 50
"""With more classes the measures of each are in `metrics.json` alone."""


@step(PAGES, anew=True)
def start_tracking(
    config: RoundConfig,
    labelled: Labels,
    *,
    tracker: Tracker,
    model: ModelSettings,
    round_number: int,
    flow_run: str | None,
) -> Pages:
    """Find or begin the round's run in the tracker, and note where people see it."""
    device = device_name(choose_device(model.device))
    params = parameters(config, labelled)
    run_id = tracker.start_round(round_number, params=params, tags={"device": device})
    return Pages(run_id, tracker.address(run_id), flow_run)


def parameters(config: RoundConfig, labelled: Labels) -> dict[str, str | int | float]:
    """What the tracker remembers of how a round was made; nested settings get dotted names."""
    settings = flatten(config.settings)
    return {
        "round_number": config.round_number,
        "labelled_digest": digest(labelled.table),
        **{name: value if isinstance(value, int | float) else str(value) for name, value in settings.items()},
        "model.batch_size": config.batch_size,
    }


@step(MODEL, anew=True)
def track_model(
    training: Training,
    networks: MemberFiles,
    pages: Pages,
    registered: Registered | None,
    *,
    tracker: Tracker,
    rounds: Sequence[RoundFolder],
    round_number: int,
) -> Registered:
    """Log the members and register the model, once for each run: with another tracker the round has another."""
    if registered is not None and registered.run_id == pages.run_id:
        return registered
    members = [MemberHistory(member.name, member.seed, member.epochs) for member in training.members]
    tracker.log_members(pages.run_id, members)
    model = tracker.log_model(
        pages.run_id,
        weights=networks.files(training.weights),
        trunk=networks.trunk,
        description=networks.describe(asdict(training.model)),
    )
    # The lower end of the interval, because early rounds may be measured on fewer images: 5 of 5 right is worth less
    # than 190 of 200.
    best = best_round(rounds)
    if best is not None and best.number == round_number:
        tracker.name_champion(model)
    return Registered(model.run_id, model.model_uri, model.version, tuple(member.seed for member in members))


@step(CONFUSION_TABLE, CONFUSION_PICTURE)
def draw_confusion(metrics: AuditMetrics, *, classes: Sequence[str]) -> tuple[pd.DataFrame, bytes]:
    """The confusion matrix on the audit set as a table and as a picture."""
    counts = metrics.table or ()
    return confusion_table(counts, classes), confusion_picture(counts, classes)


@step(SUMMARY)
def summarise(
    labelled: Labels,
    audit: Labels,
    pool: PoolTable,
    ledger: Ledger,
    seconds: dict[str, float],
    metrics: AuditMetrics | None,
    outlook: Outlook | None,
    training: Training | None,
    review: Review | None,
    stability: Stability | None,
    *,
    model: ModelSettings,
    budget_in: Counted,
) -> Summary:
    """The round's numbers as the tracker gets them; the step is the number of labels paid for."""
    n_paid = labelled.n_paid + audit.n_paid
    logged: dict[str, float] = {"n_labels_paid": n_paid, "pool_size": len(pool.usable)}
    logged |= {"n_regions_paid": ledger.n_regions_paid} if budget_in == "regions" else {}
    logged |= {f"seconds_{name}": spent for name, spent in seconds.items()}
    if metrics is not None:
        logged |= _of_metrics(metrics)
    if outlook is not None and (expected := outlook.forecast) is not None:
        of_forecast = {"gain": expected.gain, "gain_low": expected.gain_low, "gain_high": expected.gain_high}
        logged |= {f"forecast_{name}": value for name, value in of_forecast.items()}
    if training is not None:
        logged |= _of_training(training, model)
    if review is not None and review.text is not None:
        logged |= {"n_suspicious_labels": review.n_listed, "n_suspicious_labels_wrong": review.n_wrong}
    if stability is not None and stability.batch_kept_with_half_the_members is not None:
        logged["batch_kept_with_half_the_members"] = stability.batch_kept_with_half_the_members
    return Summary(n_paid, logged)


def _of_metrics(metrics: AuditMetrics) -> dict[str, float]:
    headline = f"audit_{metrics.headline}"
    logged: dict[str, float] = {
        headline: metrics.value,
        f"{headline}_low": metrics.low,
        f"{headline}_high": metrics.high,
    }
    logged |= {name: getattr(metrics, name) for name in ("nll", "ece", "nll_uncalibrated", "ece_uncalibrated")}
    few = {measure: values for measure, values in metrics.by_class.items() if len(values) <= MOST_OF_CLASSES}
    of_classes = {f"{measure}/{name}": value for measure, values in few.items() for name, value in values.items()}
    return logged | dict(metrics.scalars) | of_classes


def _of_training(training: Training, model: ModelSettings) -> dict[str, float]:
    """The numbers of a training that the tracker gets."""
    logged: dict[str, float] = {"n_trained_on": training.n_trained_on}
    if model.pseudo_labels.threshold > 0:
        logged["n_pseudo_labels"] = training.n_pseudo_labels
        logged["pseudo_label_threshold"] = training.pseudo_label_threshold
    temperatures = [member.calibration.temperature for member in training.members if member.calibration]
    return logged | ({"temperature": fmean(temperatures)} if temperatures else {})


@step()
def log_summary(
    config: RoundConfig,
    summary: Summary,
    pages: Pages,
    training: Training | None,
    *,
    tracker: Tracker,
    folder: RoundFolder,
    sentence: str,
    warnings: Sequence[str],
) -> None:
    """Log the summary, the batch and what it was made from; logged again after a crash, it leaves one record."""
    artifacts = [folder.path_of(artefact) for artefact in KEPT if folder.has(artefact)]
    tags = {"changes": "\n".join(config.changes) or "none"}
    if training is not None:
        findings = ", ".join(finding.name for finding in training.findings) or "none"
        tags |= {"phase": training.phase, "findings": findings, "preprocessing": json.dumps(training.preprocessing)}
        tags["warnings"] = "\n".join(warnings) or "none"
        if halved := sizes_on(training.device):
            tags["batch_sizes"] = "\n".join(halved)
    tags["description"] = f"{sentence}\n\n{', '.join(f'`{path.name}`' for path in artifacts)}: below."
    tracker.log_round(pages.run_id, metrics=summary.metrics, step=summary.step, artifacts=artifacts, tags=tags)
