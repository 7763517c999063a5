"""The sentence of the loop: collect, train, evaluate, score, select, push."""

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import pandas as pd
import pyarrow.parquet as pq
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed

from connectors.store import RoundFolder, flatten, read_json, write_json, write_table
from flows.ask import check_strategy, compare_with_half, push, select, select_first
from flows.campaign import OpenCampaign, current_round, open_campaign
from flows.collect import close, collect, is_ready_to_close, labels_known_to, look
from flows.config import CampaignSettings, resolved
from flows.dependence import look_for_dependence
from flows.learn import (
    cross_validate,
    gather_labels,
    measure,
    review_labels,
    start_tracking,
    track_model,
    train,
)
from flows.networks import check_network
from flows.outlook import metrics_of, outlook
from flows.progress import progress_bar
from flows.report import review_of, round_markdown, warnings_of, write_confusion_matrix
from flows.score import list_candidates, score_pool
from flows.steps import seconds_of, step, task_without_result, timed_task
from pipeline.labels import digest
from pipeline.pool import index_pool

ARTIFACTS = (
    "batch.parquet",
    "labelled.parquet",
    "audit.parquet",
    "metrics.json",
    "suspicious_labels.parquet",
    "confusion_matrix.csv",
    "confusion_matrix.png",
)
"""Files of a round that the tracker keeps."""


STATES = {"asked": "AskedForLabels", "awaiting": "AwaitingLabels", "finished": "Finished"}


@dataclass(frozen=True)
class RoundOutcome:
    """How one run of the loop ended.

    Attributes:
        kind: "asked" a new batch is with the annotators; "awaiting" labels are missing; "finished" nothing more
            is to be asked for.
        message: for people.
        address: where people label.
        warnings: what this run found to be wrong with the round's training or its batch.
        notes: what a person should know of the pool, the answers and the costs; a line each.
    """

    kind: Literal["asked", "awaiting", "finished"]
    round_number: int
    message: str
    address: str | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def _run_name() -> str:
    """A flow run is named after its campaign file, so that people find it among others."""
    return f"{Path(flow_run.parameters['campaign_file']).stem} at {datetime.now(UTC):%Y-%m-%d %H:%M:%S}"


@flow(name="labelcycle-round", flow_run_name=_run_name, persist_result=False, validate_parameters=False)
def run_round(campaign_file: str) -> Any:
    """Advance the campaign by one round: close the open one if its labels are in, then learn and ask again.

    Args:
        campaign_file: path of the campaign's TOML file.

    Returns:
        A `RoundOutcome`; in Prefect's pages it is the name of the run's last state. A round whose labels are missing
        is left as it is; run again later.
    """
    outcome = work_on(open_campaign(Path(campaign_file)))
    return Completed(name=STATES[outcome.kind], message=outcome.message, data=outcome)


def run_round_of(file: Path) -> RoundOutcome:
    """Run the flow `run_round` here and now."""
    flow_function: Any = run_round
    outcome: RoundOutcome = flow_function(str(file))
    return outcome


def work_on(work: OpenCampaign) -> RoundOutcome:
    """Do what can be done now; another process that works on the campaign makes this an error."""
    with work.folder.lock():
        refresh_pool(work)
        notes = look_for_dependence(work)
        outcome = go_on(work)
        return replace(outcome, notes=(*notes, *outcome.notes))


def go_on(work: OpenCampaign) -> RoundOutcome:
    """Close the open round if its labels are in, and begin the next."""
    folder = current_round(work.folder)
    if folder.has("pushed.json"):
        progress = look(folder, work)
        if not folder.has("annotations.parquet") and not is_ready_to_close(folder, work, progress):
            return finished(work) if is_empty(folder / "batch.parquet") else awaiting(folder, progress)
        finish(folder, work)
        folder = current_round(work.folder)
    return finished(work) if is_finished(work) else advance(folder, work)


def is_finished(work: OpenCampaign) -> bool:
    """Whether the last round asked for nothing and brought nothing, no task is out, and there is nothing to ask for."""
    rounds = work.folder.rounds()
    if not rounds or not rounds[-1].is_closed:
        return False
    came_to_nothing = is_empty(rounds[-1] / "batch.parquet") and is_empty(rounds[-1] / "annotations.parquet")
    return came_to_nothing and not work.outstanding() and not work.can_ask()


def advance(folder: RoundFolder, work: OpenCampaign) -> RoundOutcome:
    """Take a round from its first file to the push; where it was broken off it goes on."""
    begin(folder, work)
    gather_labels(folder, work)
    run_id = start_tracking(folder, work, params=parameters(folder))
    if folder.number == 0 or is_empty(folder / "labelled.parquet"):
        select_first(folder, work)
    else:
        list_candidates(folder, work)
        cross_validate(folder, work)
        train(folder, work, run_id)
        measure(folder, work)
        review_labels(folder, work)
        track_model(folder, work, run_id)
        look_ahead(folder, work)
        query_size = size_of_query(folder)
        if query_size > 0:
            score_pool(folder, work)
        select(folder, work, query_size=query_size)
        compare_with_half(folder, work)
    summarise(folder, work)
    log_summary(folder, work, run_id)
    warnings = log_warnings(folder)
    push(folder, work)
    publish(folder, work)
    if not is_empty(folder / "batch.parquet"):
        return replace(asked(folder), warnings=warnings)
    if not work.outstanding():
        finish(folder, work)
    return replace(finished(work), warnings=warnings)


def finish(folder: RoundFolder, work: OpenCampaign) -> None:
    """Bring in the answers of an open round and close it."""
    run_id = start_tracking(folder, work, params=parameters(folder))
    collect(folder, work)
    close(folder, work, run_id)
    publish(folder, work)


@task_without_result
def refresh_pool(work: OpenCampaign) -> None:
    """Index the pool; an image that is known is not read again."""
    settings = work.settings
    known = work.pool if work.folder.pool.exists() else None
    with progress_bar("indexing the pool", unit="files") as show:
        table = index_pool(
            settings.pool,
            known,
            audit_size=settings.audit_size,
            seed=settings.seed,
            classes=settings.classes,
            group=settings.group,
            progress=show,
        )
    if known is None or not table.equals(known):
        write_table(work.folder.pool, table)


@step("config.json")
def begin(folder: RoundFolder, work: OpenCampaign) -> None:
    """Write what this round is made with; its query size is what the budget leaves.

    The first round also makes sure that the model can be built and the strategy called: labels cost more than finding
    that out later.
    """
    settings = work.settings
    if folder.number == 0:
        check_network(settings.model, settings.members, n_classes=len(settings.classes))
        check_strategy(settings)
    write_json(
        folder / "config.json",
        {
            "round_number": folder.number,
            "begun_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "query_size": min(settings.query_size, work.budget_left()),
            "settings": resolved(settings),
        },
    )


@step("outlook.json")
def look_ahead(folder: RoundFolder, work: OpenCampaign) -> None:
    """Write down what the next labels are worth, and whether a stopping rule says not to ask for them."""
    write_json(folder / "outlook.json", outlook(work.folder, resolved(work.settings)))


def size_of_query(folder: RoundFolder) -> int:
    """How many labels the round asks for: what the budget left when it began, or none where a rule says stop."""
    size: int = read_json(folder / "config.json")["query_size"]
    return size if read_json(folder / "outlook.json")["stop"] is None else 0


def is_empty(table: Path) -> bool:
    """Whether an artefact is a table without rows: no label to learn from, or nothing to ask for."""
    return bool(pq.read_metadata(table).num_rows == 0)


def parameters(folder: RoundFolder) -> dict[str, Any]:
    """What the tracker remembers of how a round was made; nested settings get dotted names."""
    labelled = pd.read_parquet(folder / "labelled.parquet")
    settings = flatten(read_json(folder / "config.json")["settings"])
    return {
        "round_number": folder.number,
        "labelled_digest": digest(labelled),
        **{name: value if isinstance(value, (int, float)) else str(value) for name, value in settings.items()},
    }


@step("summary.json")
def summarise(folder: RoundFolder, work: OpenCampaign) -> None:
    """Write down the round's numbers as the tracker gets them; the step is the number of labels used."""
    metrics = metrics_of(folder)
    n_labels = labels_known_to(folder)
    logged: dict[str, float] = {"n_labels": n_labels, "pool_size": int(work.pool["set_aside_reason"].isna().sum())}
    logged |= {f"seconds_{name}": spent for name, spent in seconds_of(folder).items()}
    if metrics is not None:
        scalars = {name: value for name, value in metrics.items() if isinstance(value, (int, float)) and name != "n"}
        logged |= {f"audit_{name}" if name.startswith("accuracy") else name: value for name, value in scalars.items()}
        write_confusion_matrix(folder, metrics, work.settings.classes)
    if folder.has("outlook.json") and (expected := read_json(folder / "outlook.json")["forecast"]) is not None:
        logged |= {f"forecast_{name}": expected[name] for name in ("gain", "gain_low", "gain_high")}
    if folder.has("training.json"):
        logged |= _told_of_training(read_json(folder / "training.json"), work.settings)
    if (review := review_of(folder)) is not None:
        logged |= {"n_suspicious_labels": review["count"], "n_suspicious_labels_wrong": review["n_wrong"]}
    if folder.has("stability.json"):
        logged |= {name: value for name, value in read_json(folder / "stability.json").items() if value is not None}
    write_json(folder / "summary.json", {"step": n_labels, "metrics": logged})


def _told_of_training(training: dict[str, Any], settings: CampaignSettings) -> dict[str, float]:
    """The numbers of a training that the tracker gets."""
    names = ("n_pseudo_labels", "pseudo_label_threshold") if settings.model.pseudo_labels.threshold > 0 else ()
    told = {name: training[name] for name in names if name in training}
    calibrations = [member.get("calibration") for member in training.get("members", [])]
    temperatures = [calibration["temperature"] for calibration in calibrations if calibration]
    return told | ({"temperature": fmean(temperatures)} if temperatures else {})


@timed_task
def log_summary(folder: RoundFolder, work: OpenCampaign, run_id: str) -> None:
    """Log the summary, the batch and what it was made from; said again after a crash, it leaves one record."""
    summary = read_json(folder / "summary.json")
    artifacts = [folder / name for name in ARTIFACTS if folder.has(name)]
    tags = {}
    training = read_json(folder / "training.json") if folder.has("training.json") else {}
    if "phase" in training:  # which older versions did not write
        findings = ", ".join(finding["name"] for finding in training["findings"]) or "none"
        preprocessing = json.dumps(training["preprocessing"])
        tags = {"phase": training["phase"], "findings": findings, "preprocessing": preprocessing}
        tags["warnings"] = "\n".join(warnings_of(folder)) or "none"
    work.tracker.log_round(run_id, metrics=summary["metrics"], step=summary["step"], artifacts=artifacts, tags=tags)


@task_without_result
def log_warnings(folder: RoundFolder) -> tuple[str, ...]:
    """Say in the log what is wrong with the round, and return it."""
    warnings = warnings_of(folder)
    for warning in warnings:
        get_run_logger().warning(warning)
    return warnings


def publish(folder: RoundFolder, work: OpenCampaign) -> None:
    """Show the round in Prefect's pages."""
    create_markdown_artifact(
        key=f"{work.settings.name.replace('_', '-')}-round-{folder.number:04d}",
        markdown=round_markdown(folder, work.settings.name),
        description=f"Round {folder.number} of campaign {work.settings.name}",
    )


def awaiting(folder: RoundFolder, progress: Any) -> RoundOutcome:
    """The outcome of a run that finds labels missing."""
    pushed = read_json(folder / "pushed.json")
    set_aside = f", {progress.n_set_aside} skipped or set aside" if progress.n_set_aside else ""
    message = (
        f"round {folder.number} awaits labels: {progress.n_labelled} of {len(pushed['tasks'])} labelled{set_aside}"
    )
    return RoundOutcome("awaiting", folder.number, message, pushed["address"])


def asked(folder: RoundFolder) -> RoundOutcome:
    """The outcome of a run that pushed a batch."""
    pushed = read_json(folder / "pushed.json")
    message = f"round {folder.number} asks for {len(pushed['tasks'])} labels"
    return RoundOutcome("asked", folder.number, message, pushed["address"])


def finished(work: OpenCampaign) -> RoundOutcome:
    """The outcome of a run that has nothing more to ask for."""
    last = work.folder.rounds()[-1].number
    why = work.reason_to_stop() or "nothing is left to ask for"
    late = f"; {work.outstanding()} tasks are still open" if work.outstanding() else ""
    return RoundOutcome("finished", last, f"the campaign is finished after round {last}: {why}{late}")
