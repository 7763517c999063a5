"""The sentence of the loop: collect, train, evaluate, score, select, push."""

import json
import os
from collections import Counter
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
from prefect.states import Completed

from connectors.escaping import prefect_key
from connectors.image_folder.index import index_pool, usable
from connectors.image_folder.notes import changes, unused_lines
from connectors.store import Campaign, CampaignBusy, RoundFolder, flatten, read_json, write_json, write_table
from flows import books
from flows.campaign import OpenCampaign, current_round, open_campaign
from flows.changes import (
    begun_otherwise,
    changes_since_last,
    clear_what_was_put_away,
    is_out,
    notes_of_changes,
    put_away,
    refuse_lost_classes,
)
from flows.config import CampaignSettings, ConfigError, resolved
from flows.dependence import look_for_dependence
from flows.ledger import labels_paid
from flows.outlook import metrics_of, outlook
from flows.pixel_ranges import count_multipage, pages_text, range_text, settle_ranges
from flows.progress import progress_bar, say
from flows.reports.round_page import (
    notes_of_plan,
    review_of,
    round_markdown,
    round_sentence,
    warnings_of,
    write_confusion_matrix,
)
from flows.step import seconds_of, step, task_without_result, timed_task
from flows.steps.ask import AUDIT, check_strategy, compare_with_half, push, renew_page, select, select_first
from flows.steps.collect import close, collect, is_ready_to_close, look, notes_of, told_when_collected
from flows.steps.learn import (
    cross_validate,
    gather_labels,
    measure,
    plan,
    review_labels,
    start_tracking,
    track_model,
    train,
)
from flows.steps.score import list_candidates, score_pool
from pipeline.labels.ledger import digest
from pipeline.learning.networks import check_network

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
MOST_RECALLS = 50
"""With more classes the recall of each is in `metrics.json` alone."""

STATES = {"asked": "AskedForLabels", "awaiting": "AwaitingLabels", "finished": "Finished", "busy": "Busy"}

SERVED_FILE = "LABELCYCLE_SERVED_FILE"
"""In the environment of `labelcycle serve`: the one campaign file that its runs may work on."""


@dataclass(frozen=True)
class RoundOutcome:
    """How one run of the loop ended.

    Attributes:
        kind: "asked" a new batch is with the annotators; "awaiting" labels are missing; "finished" nothing more
            is to be asked for; "busy" another process works on the campaign, so this one did nothing.
        message: for people.
        address: where people label.
        warnings: what this run found to be wrong with the round's training or its batch.
        notes: what a person should know of the pool, the answers and the costs; a line each.
    """

    kind: Literal["asked", "awaiting", "finished", "busy"]
    round_number: int
    message: str
    address: str | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@flow(name=books.FLOW, persist_result=False, validate_parameters=False)
def run_round(campaign_file: str) -> Any:
    """Advance the campaign by one round: close the open one if its labels are in, then learn and ask again.

    Args:
        campaign_file: path of the campaign's TOML file.

    Returns:
        A `RoundOutcome`; in Prefect's pages it is the name of the run's last state. A round whose labels are missing
        is left as it is; run again later.
    """
    check_is_served(campaign_file)
    work = open_campaign(Path(campaign_file))
    round_number = current_round(work.folder).number
    books.sign(work, round_number=round_number)
    try:
        outcome = work_on(work)
    except CampaignBusy as exc:
        outcome = RoundOutcome("busy", round_number, str(exc))
    if outcome.round_number != round_number:
        books.sign(work, round_number=outcome.round_number)
    return Completed(name=STATES[outcome.kind], message=outcome.message, data=outcome)


def check_is_served(campaign_file: Any) -> None:
    """Refuse another campaign file than the one that `labelcycle serve` was started with.

    Whoever reaches Prefect's server can ask for a run of any file; the file says which server gets the token.
    """
    served = os.environ.get(SERVED_FILE)
    if served is not None and campaign_file != served:
        raise ConfigError(
            f"this `labelcycle serve` runs {served} and no other campaign file; the run asked for {campaign_file!r}"
        )


def run_round_of(file: Path) -> RoundOutcome:
    """Run the flow `run_round` here and now.

    Raises:
        CampaignBusy: another process works on the campaign.
    """
    flow_function: Any = run_round
    outcome: RoundOutcome = flow_function(str(file.resolve()))
    if outcome.kind == "busy":
        raise CampaignBusy(outcome.message)
    return outcome


def work_on(work: OpenCampaign) -> RoundOutcome:
    """Do what can be done now; another process that works on the campaign makes this an error."""
    with work.folder.lock():
        books.put_right(work)
        clear_what_was_put_away(work.folder)
        begin_anew(current_round(work.folder), work)
        refresh_pool(work)
        pixels = (*settle_pixel_ranges(work), *notes_on_pages(work))
        for line in look_for_dependence(work):
            say(line)  # at once: what it asks for can be done until the first batch is out
        outcome = go_on(work)
        notes = (*tell_of_pool(work.folder), *pixels)
        return replace(outcome, notes=(*notes, *outcome.notes))


def go_on(work: OpenCampaign) -> RoundOutcome:
    """Wait for the open round's labels, or close it and begin the next."""
    folder = current_round(work.folder)
    notes: tuple[str, ...] = ()
    if folder.has("pushed.json"):
        renew_page(work)
        tended = look(folder, work)
        notes = tended.mended
        if not folder.has("annotations.parquet") and not is_ready_to_close(folder, work, tended.progress):
            answers = notes_of(tended.standing, tended.standing.answers, work)
            notes = (*notes, *answers, *notes_of_changes(folder, work.settings))
            waiting = is_empty(folder / "batch.parquet")
            return replace(finished(work) if waiting else awaiting(folder, tended.progress), notes=notes)
        finish(folder, work)
        notes = (*notes, *told_when_collected(folder))
        folder = current_round(work.folder)
    outcome = finished(work) if is_finished(work) else advance(folder, work)
    return replace(outcome, notes=(*notes, *outcome.notes))


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
        plan(folder, work)
        announce(folder, work)
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
    notes = notes_of_round(folder, work)
    if not is_empty(folder / "batch.parquet"):
        return replace(asked(folder), warnings=warnings, notes=notes)
    if not work.outstanding():
        finish(folder, work)
    return replace(finished(work), warnings=warnings, notes=notes)


def notes_of_round(folder: RoundFolder, work: OpenCampaign) -> tuple[str, ...]:
    """What a person should know of the round that was made: what changed, and what it takes."""
    return (*notes_of_changes(folder, work.settings), *notes_of_first(folder, work), *notes_of_plan(folder))


def notes_of_first(folder: RoundFolder, work: OpenCampaign) -> tuple[str, ...]:
    """What the campaign's first round costs, and what its budget can come to."""
    if folder.number > 0:
        return ()
    reasons = pd.read_parquet(folder / "batch.parquet")["reason"]
    n_audit = int((reasons == AUDIT).sum())
    n_there = int(work.pool["set_aside_reason"].isna().sum())
    told = [
        f"the first {len(reasons)} labels come before there is a model: {n_audit} of the audit set, which measures it, "
        f"and {len(reasons) - n_audit} to learn from; then {work.settings.query_size} labels in each round"
    ]
    if work.settings.budget > n_there:
        told.append(f"budget = {work.settings.budget} is more than the {n_there} images that there are")
    return tuple(told)


def finish(folder: RoundFolder, work: OpenCampaign) -> None:
    """Bring in the answers of an open round and close it."""
    run_id = start_tracking(folder, work, params=parameters(folder))
    if folder.has("model.json") and read_json(folder / "model.json")["run_id"] != run_id:  # another MLflow, since then
        track_model(folder, work, run_id)
        log_summary(folder, work, run_id)
    collect(folder, work)
    close(folder, work, run_id)
    publish(folder, work)


@task_without_result
def begin_anew(folder: RoundFolder, work: OpenCampaign) -> None:
    """Put a round away that has begun with other settings and that nobody has seen; it begins anew with these.

    Nothing is mixed so, and nothing of people's work is lost. A round that is out ends as it began.
    """
    if begun_otherwise(folder, work.settings):
        discard(folder, work)


def discard(folder: RoundFolder, work: OpenCampaign) -> None:
    """Take back a round that nobody has seen; the tracker first, as the folder is what says that there is one."""
    work.tracker.discard_round(folder.number)
    put_away(folder)


@task_without_result
def refresh_pool(work: OpenCampaign) -> None:
    """Index the pool, where an image that is known is not read again, and note what people should know of it."""
    settings = work.settings
    known = work.pool if work.folder.pool.exists() else None
    was_asked = is_out(work.folder)
    told: list[str] = []
    with progress_bar("indexing the pool", unit="files") as show:
        table = index_pool(
            settings.pool,
            known,
            audit_size=settings.audit_size,
            seed=settings.seed,
            classes=settings.classes,
            follow_links=settings.follow_links,
            max_unused=settings.max_unused,
            reading=work.reading,
            group=settings.group,
            renamed=settings.former_classes,
            was_asked=was_asked,
            progress=show,
            tell=told.append,
        )
    refuse_lost_classes(Counter(usable(table)["label"].dropna()), settings)
    note_pool(work.folder, [*told, *unused_lines(table)], changes(known, table))
    if known is None or not table.equals(known):
        if not was_asked and work.folder.rounds():  # it has begun with another audit set, or without these labels
            discard(work.folder.round(0), work)
        write_table(work.folder.pool, table)


@task_without_result
def settle_pixel_ranges(work: OpenCampaign) -> tuple[str, ...]:
    """Write down what black and white are in kinds of deep pixels that are new, and tell it."""
    new = settle_ranges(work.folder.path, work.pool, memory_gb=work.settings.decode_memory_gb)
    return tuple(f"Pixels of {range_text(one)}; this stays so in all rounds" for one in new)


def notes_on_pages(work: OpenCampaign) -> tuple[str, ...]:
    """Tell where only a part of a file is used."""
    n_files = count_multipage(work.pool)
    return (pages_text(n_files),) if n_files else ()


def note_pool(folder: Campaign, standing: list[str], news: list[str]) -> None:
    """Remember what is to be told of the pool until a run has told it; what stands as it stood is no news."""
    notes = read_json(folder.pool_notes) if folder.pool_notes.exists() else {"standing": [], "untold": []}
    news = [*news, *(line for line in standing if line not in notes["standing"])]
    untold = [*notes["untold"], *(line for line in news if line not in notes["untold"])]
    if not folder.pool_notes.exists() or {"standing": standing, "untold": untold} != notes:
        write_json(folder.pool_notes, {"standing": standing, "untold": untold})


def tell_of_pool(folder: Campaign) -> tuple[str, ...]:
    """What is new in the pool, and what is wrong with it, new or not; it counts as told from now on."""
    notes = read_json(folder.pool_notes)
    if notes["untold"]:
        write_json(folder.pool_notes, notes | {"untold": []})
    wrong = unused_lines(pd.read_parquet(folder.pool), wrong_only=True)
    return (*notes["untold"], *(line for line in wrong if line not in notes["untold"]))


@step("config.json")
def begin(folder: RoundFolder, work: OpenCampaign) -> None:
    """Write what this round is made with; its query size is what the budget leaves.

    The first round, and one whose settings changed, also makes sure that the model can be built and the strategy
    called: labels cost more than finding that out later.
    """
    settings = work.settings
    changes = changes_since_last(folder, work.folder, settings)
    if folder.number == 0 or changes:
        check_network(settings.model, settings.members, n_classes=len(settings.classes))
        check_strategy(settings)
    write_json(
        folder / "config.json",
        {
            "round_number": folder.number,
            "begun_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "query_size": min(settings.query_size, work.budget_left()),
            "settings": resolved(settings),
            "changes": changes,
        },
    )


@task_without_result
def announce(folder: RoundFolder, work: OpenCampaign) -> None:
    """Say how long a training takes that is dearer than the last one, before it begins."""
    for note in notes_of_plan(folder):
        get_run_logger().info(note)
        say(f"{note[0].upper()}{note[1:]}.")
        publish(folder, work)


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
    """Write down the round's numbers as the tracker gets them; the step is the number of labels paid for."""
    metrics = metrics_of(folder)
    n_paid = labels_paid(folder)
    logged: dict[str, float] = {"n_labels_paid": n_paid, "pool_size": int(work.pool["set_aside_reason"].isna().sum())}
    logged |= {f"seconds_{name}": spent for name, spent in seconds_of(folder).items()}
    if metrics is not None:
        scalars = {name: value for name, value in metrics.items() if isinstance(value, (int, float)) and name != "n"}
        logged |= {f"audit_{name}" if name.startswith("accuracy") else name: value for name, value in scalars.items()}
        if len(metrics["recall"]) <= MOST_RECALLS:
            logged |= {f"recall/{name}": value for name, value in metrics["recall"].items()}
        write_confusion_matrix(folder, metrics, work.settings.classes)
    if folder.has("outlook.json") and (expected := read_json(folder / "outlook.json")["forecast"]) is not None:
        logged |= {f"forecast_{name}": expected[name] for name in ("gain", "gain_low", "gain_high")}
    if folder.has("training.json"):
        logged |= _told_of_training(read_json(folder / "training.json"), work.settings)
    if (review := review_of(folder)) is not None:
        logged |= {"n_suspicious_labels": review["count"], "n_suspicious_labels_wrong": review["n_wrong"]}
    if folder.has("stability.json"):
        logged |= {name: value for name, value in read_json(folder / "stability.json").items() if value is not None}
    write_json(folder / "summary.json", {"step": n_paid, "metrics": logged})


def _told_of_training(training: dict[str, Any], settings: CampaignSettings) -> dict[str, float]:
    """The numbers of a training that the tracker gets."""
    pseudo = ("n_pseudo_labels", "pseudo_label_threshold") if settings.model.pseudo_labels.threshold > 0 else ()
    told = {name: training[name] for name in ("n_trained_on", *pseudo) if name in training}
    calibrations = [member.get("calibration") for member in training.get("members", [])]
    temperatures = [calibration["temperature"] for calibration in calibrations if calibration]
    return told | ({"temperature": fmean(temperatures)} if temperatures else {})


@timed_task
def log_summary(folder: RoundFolder, work: OpenCampaign, run_id: str) -> None:
    """Log the summary, the batch and what it was made from; said again after a crash, it leaves one record."""
    summary = read_json(folder / "summary.json")
    artifacts = [folder / name for name in ARTIFACTS if folder.has(name)]
    tags = {"changes": "\n".join(read_json(folder / "config.json").get("changes", [])) or "none"}
    training = read_json(folder / "training.json") if folder.has("training.json") else {}
    if training:
        findings = ", ".join(finding["name"] for finding in training["findings"]) or "none"
        preprocessing = json.dumps(training["preprocessing"])
        tags |= {"phase": training["phase"], "findings": findings, "preprocessing": preprocessing}
        tags["warnings"] = "\n".join(warnings_of(folder)) or "none"
    tags["description"] = f"{round_sentence(folder)}\n\n{', '.join(f'`{path.name}`' for path in artifacts)}: below."
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
        key=prefect_key(f"{work.settings.name}-round-{folder.number:04d}"),
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
