"""The end of a round: how far the annotators are, what they answered, and closing the books."""

from collections import Counter
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd

from connectors.annotation import AnnotationToolError, Progress
from connectors.store import RoundFolder, read_json, write_json, write_table
from flows.campaign import OpenCampaign
from flows.learn import tracked_model
from flows.ledger import answered_items, asked_items, known_answers
from flows.steps import seconds_of, step, timed_task
from pipeline.labels import answers_from_table, answers_to_table, reconcile
from pipeline.types import Answer


@timed_task
def look(folder: RoundFolder, work: OpenCampaign) -> Progress:
    """Ask how far the annotators are with the round, and keep it for `labelcycle status`.

    Raises:
        AnnotationToolError: when not one of the round's tasks is left, which is an accident rather than an answer.
    """
    progress = work.tool.progress(round_number=folder.number)
    n_pushed = len(read_json(folder / "pushed.json")["tasks"])
    if n_pushed and not progress.n_tasks:
        raise AnnotationToolError(
            f"the {n_pushed} tasks of round {folder.number} are gone from project {work.settings.project!r}. "
            f"Bring the project back; or delete {folder / 'pushed.json'} to push them again"
        )
    seen_at = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(folder / "progress.json", asdict(progress) | {"seen_at": seen_at})
    return progress


def may_close(
    progress: Progress, *, n_pushed: int, close_at: float, close_after: timedelta | None, waited: timedelta
) -> bool:
    """Whether enough tasks are answered, or enough time has passed since the push."""
    answered = progress.n_labelled + progress.n_set_aside + (n_pushed - progress.n_tasks)
    return answered >= close_at * n_pushed or (close_after is not None and waited >= close_after)


def is_ready_to_close(folder: RoundFolder, work: OpenCampaign, progress: Progress) -> bool:
    """Whether the round may close now, by the campaign's rules.

    A round that had nothing to ask for stays open while tasks of earlier rounds are out. It closes when one of them
    is answered, so that the next round learns from it, or when there is something to ask for after all.
    """
    pushed = read_json(folder / "pushed.json")
    if not pushed["tasks"]:
        return not work.outstanding() or work.can_ask() or bool(news(work)[0])
    return may_close(
        progress,
        n_pushed=len(pushed["tasks"]),
        close_at=work.settings.close_at,
        close_after=work.settings.close_after,
        waited=datetime.now(UTC) - datetime.fromisoformat(pushed["pushed_at"]),
    )


def news(work: OpenCampaign) -> tuple[list[Answer], set[str]]:
    """Answers that no closed round has brought in, and the items whose tasks exist now."""
    rounds = [folder.number for folder in work.folder.rounds() if folder.has("pushed.json")]
    pulled = work.tool.pull(round_numbers=rounds)
    known = known_answers(work.folder, work.settings.former_classes)
    answers = reconcile(known, pulled.answers, round_numbers=set(rounds), task_ids=pulled.task_ids)
    return answers, set(pulled.task_ids)


@step("annotations.parquet")
def collect(folder: RoundFolder, work: OpenCampaign) -> None:
    """Write every answer that is new, changed or withdrawn since the last round closed, late ones included."""
    answers, task_ids = news(work)
    answered = answered_items([*known_answers(work.folder), *answers])
    gone = sorted(set(asked_items(work.folder)) - task_ids - answered)
    write_json(folder / "withdrawn.json", gone)
    write_table(folder / "annotations.parquet", answers_to_table(answers))


@step("round.json")
def close(folder: RoundFolder, work: OpenCampaign, run_id: str) -> None:
    """Count what the round brought, log it, and close it; a round that is the best so far gives the champion."""
    metrics = read_json(folder / "metrics.json") if folder.has("metrics.json") else None
    batch_size = len(pd.read_parquet(folder / "batch.parquet"))
    record: dict[str, Any] = {
        "round_number": folder.number,
        "closed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "n_asked": batch_size,
        "n_labelled": labels_known_to(folder),
        "labels_used": work.labels_used(),
        "budget_left": work.budget_left(),
        "outcomes": outcomes(folder),
        "metrics": metrics,
        "seconds": seconds_of(folder),
        "run_id": run_id,
    }
    logged = {f"n_{name}": float(count) for name, count in record["outcomes"].items()}
    artifacts = [folder / name for name in ("annotations.parquet",) if folder.has(name)]
    work.tracker.log_round(run_id, metrics=logged, step=labels_known_to(folder), artifacts=artifacts)
    work.tracker.finish_round(run_id, champion=tracked_model(folder) if is_best(folder, work) else None)
    write_json(folder / "round.json", record)


def outcomes(folder: RoundFolder) -> dict[str, int]:
    """How many answers of each kind the round collected."""
    if not folder.has("annotations.parquet"):
        return {}
    answers = answers_from_table(pd.read_parquet(folder / "annotations.parquet"))
    return dict(Counter(answer.outcome for answer in answers))


def labels_known_to(folder: RoundFolder) -> int:
    """Labels that the round's model was trained and measured on, the audit set's included."""
    names = [name for name in ("labelled.parquet", "audit.parquet") if folder.has(name)]
    return sum(len(pd.read_parquet(folder / name, columns=["item_id"])) for name in names)


def is_best(folder: RoundFolder, work: OpenCampaign) -> bool:
    """Whether no earlier model of the same classes has a higher audit accuracy, by the lower end of its interval.

    A model that lacks a class, or names one as it was called before, is no champion any more. The lower end, because
    early rounds may be measured on fewer images: 5 of 5 right is worth less than 190 of 200.
    """
    if not folder.has("metrics.json") or read_json(folder / "metrics.json") is None:
        return False
    classes = _classes_of(folder)
    earlier = [
        f
        for f in work.folder.rounds()
        if f.number < folder.number and f.has("metrics.json") and _classes_of(f) == classes
    ]
    lows = [metrics["accuracy_low"] for f in earlier if (metrics := read_json(f / "metrics.json")) is not None]
    return bool(read_json(folder / "metrics.json")["accuracy_low"] >= max(lows, default=0.0))


def _classes_of(folder: RoundFolder) -> list[str]:
    """What the round's model tells apart; nothing where it trained none."""
    return sorted(read_json(folder / "training.json")["model"]["classes"]) if folder.has("training.json") else []
