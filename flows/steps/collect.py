"""The end of a round: how far the annotators are, what they answered, and closing the books."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd

from connectors.annotation import AnnotationToolError, AnswersUnusable, Asked, Progress, Pulled, Tended
from connectors.store import RoundFolder, read_json, write_json, write_table
from flows.campaign import OpenCampaign
from flows.ledger import answered_items, asked_items, asked_tasks, known_answers, labels_paid, of_round
from flows.step import seconds_of, step, timed_task
from flows.steps.ask import model_version, questions_of
from pipeline.labels.ledger import answers_from_table, answers_to_table, reconcile
from pipeline.types import Answer

UNUSED = ("empty", "invalid")
"""Outcomes of answers that a person gave and that tell nothing; a skip tells that the image cannot be judged."""
MOST_REASONS = 5


COPIED = (
    "{n} answers are copies of the model's guesses or of other answers, as made by \"Create annotations from "
    'predictions", such as {address}: nobody looked at the image, and they are not labels. Delete them in Label Studio '
    "(select the tasks, Delete Annotations), so that people are asked"
)


@timed_task
def look(folder: RoundFolder, work: OpenCampaign) -> Tended:
    """See that what is with the annotators is whole, and ask how far they are; `labelcycle status` tells it.

    Raises:
        AnnotationToolError: when not one of the round's tasks is left, which is an accident rather than an answer.
    """
    recorded = asked_tasks(work.folder)
    tended = work.tool.tend(
        [
            Asked(f.number, questions_of(f, work), model_version(f, work), of_round(recorded, f.number))
            for f in _out(folder, work)
        ],
        asked=recorded,
    )
    for number in {ask.round_number for ask, task_id in tended.task_ids.items() if task_id != recorded[ask]}:
        path = work.folder.round(number) / "pushed.json"
        tasks = {ask.item_id: task_id for ask, task_id in of_round(tended.task_ids, number).items()}
        write_json(path, read_json(path) | {"tasks": tasks})
    progress = tended.progress
    n_pushed = len(read_json(folder / "pushed.json")["tasks"])
    if n_pushed and not progress.n_tasks:
        raise AnnotationToolError(
            f"the {n_pushed} tasks of round {folder.number} are gone from project {work.settings.project!r}. "
            f"Bring the project back; or delete {folder / 'pushed.json'} to push them again"
        )
    seen_at = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(folder / "progress.json", asdict(progress) | {"seen_at": seen_at})
    return tended


def _out(folder: RoundFolder, work: OpenCampaign) -> list[RoundFolder]:
    """The rounds with tasks that are out, as far as is known, and the open round last."""
    answered = answered_items(known_answers(work.folder))
    numbers = {number for item_id, number in asked_items(work.folder).items() if item_id not in answered}
    return [work.folder.round(number) for number in sorted(numbers - {folder.number})] + [folder]


def notes_of(standing: Pulled, answers: Sequence[Answer], work: OpenCampaign) -> list[str]:
    """Which answers are not used, and why; a line each."""
    notes = []
    unused = [answer for answer in answers if answer.outcome in UNUSED]
    if unused:
        n_given = sum(answer.outcome != "deleted" for answer in answers)
        notes.append(f"{len(unused)} of {n_given} answers are not used: {_reasons(unused, work)}")
    if standing.copied:
        address = work.tool.task_address(standing.copied[0])
        notes.append(COPIED.format(n=len(standing.copied), address=address))
    return [*notes, *standing.notes]


def _reasons(unused: Sequence[Answer], work: OpenCampaign) -> str:
    kinds: dict[str, list[Answer]] = defaultdict(list)
    for answer in unused:
        kinds[answer.message or "submitted without a class"].append(answer)
    frequent = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    told = [f"{len(of_kind)} {why} ({work.tool.task_address(of_kind[0].task_id)})" for why, of_kind in frequent]
    more = f"; and {len(told) - MOST_REASONS} more reasons" if len(told) > MOST_REASONS else ""
    return "; ".join(told[:MOST_REASONS]) + more


def check_used(standing: Pulled, answers: Sequence[Answer], work: OpenCampaign) -> None:
    """Raise AnswersUnusable where more of the new answers cannot be used than the campaign allows."""
    given = [answer for answer in answers if answer.outcome != "deleted"]
    n_unused = sum(answer.outcome in UNUSED for answer in given) + len(standing.copied)
    n_given = len(given) + len(standing.copied)
    if n_unused > work.settings.max_unused * n_given:
        raise AnswersUnusable(
            f"{n_unused} of {n_given} new answers cannot be used, more than max_unused = "
            f"{work.settings.max_unused:g} allows, and nothing was collected. "
            + ". ".join(notes_of(standing, given, work))
            + ". Mend or delete these answers in Label Studio and run again; or raise max_unused to go on without them"
        )


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


def news(work: OpenCampaign) -> tuple[list[Answer], Pulled]:
    """Answers that no closed round has brought in, and what stands on all tasks."""
    asked = asked_tasks(work.folder)
    pulled = work.tool.pull(asked)
    answers = reconcile(
        known_answers(work.folder, work.settings.former_classes),
        pulled.answers,
        task_ids=pulled.task_ids,
        doubles=pulled.doubles,
    )
    return answers, pulled


@step("annotations.parquet")
def collect(folder: RoundFolder, work: OpenCampaign) -> None:
    """Write every answer that is new, changed or withdrawn since the last round closed, late ones included.

    Raises:
        AnswersUnusable: more of them cannot be used than the campaign allows; nothing is written.
    """
    answers, pulled = news(work)
    check_used(pulled, answers, work)
    answered = answered_items([*known_answers(work.folder), *answers])
    there = {ask.item_id for ask in (*pulled.task_ids, *pulled.doubles.values())}
    gone = sorted(set(asked_items(work.folder)) - there - answered)
    write_json(folder / "not_used.json", notes_of(pulled, answers, work))
    write_json(folder / "withdrawn.json", gone)
    write_table(folder / "annotations.parquet", answers_to_table(answers))


def told_when_collected(folder: RoundFolder) -> list[str]:
    """Which of the answers that the round collected are not used; a line each."""
    path = folder / "not_used.json"  # which older versions did not write
    return read_json(path) if path.exists() else []


@step("round.json")
def close(folder: RoundFolder, work: OpenCampaign, run_id: str) -> None:
    """Count what the round brought, log it, and close it."""
    metrics = read_json(folder / "metrics.json") if folder.has("metrics.json") else None
    batch_size = len(pd.read_parquet(folder / "batch.parquet"))
    record: dict[str, Any] = {
        "round_number": folder.number,
        "closed_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "n_asked": batch_size,
        "n_labels_paid": work.labels_used(),
        "budget_left": work.budget_left(),
        "outcomes": outcomes(folder),
        "metrics": metrics,
        "seconds": seconds_of(folder),
        "run_id": run_id,
    }
    logged = {f"n_{name}": float(count) for name, count in record["outcomes"].items()}
    artifacts = [folder / name for name in ("annotations.parquet",) if folder.has(name)]
    work.tracker.log_round(run_id, metrics=logged, step=labels_paid(folder), artifacts=artifacts)
    work.tracker.finish_round(run_id)
    write_json(folder / "round.json", record)


def outcomes(folder: RoundFolder) -> dict[str, int]:
    """How many answers of each kind the round collected."""
    if not folder.has("annotations.parquet"):
        return {}
    answers = answers_from_table(pd.read_parquet(folder / "annotations.parquet"))
    return dict(Counter(answer.outcome for answer in answers))
