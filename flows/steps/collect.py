"""The end of a round: how far the annotators are, what they answered, and closing the books."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta

from connectors.annotation import AnnotationTool, AnnotationToolError, AnswersUnusable, Asked, Progress, Pulled, Tended
from connectors.tracking import Tracker
from flows.artefacts import ANSWERS, BATCH, COLLECTED, GUESSES, NOT_USED, PROGRESS, PUSHED, ROUND, WITHDRAWN
from flows.campaign import OpenCampaign
from flows.config import CampaignSettings
from flows.folder import RoundFolder
from flows.records import AuditMetrics, ClosedRound, Collected, Pages, Pushed, SeenProgress
from flows.step import step
from flows.steps.push import model_version, questions_of
from pipeline.labels.answers import current, reconcile
from pipeline.labels.ledger import Ledger
from pipeline.tables import BatchTable, Labels, PoolTable
from pipeline.types import Answer

UNUSED = ("empty", "invalid")
"""Outcomes of answers that a person gave and that tell nothing; a skip tells that the image cannot be judged."""
MOST_REASONS = 5
LOOK_AT_ALL_EVERY = timedelta(days=1)
"""Between looks at all tasks when a round closes: they find what a look at changes cannot see."""

COPIED = (
    "{n} answers are copies of the model's guesses or of other answers, as made by \"Create annotations from "
    'predictions", such as {address}: nobody looked at the image, and they are not labels. Delete them in Label Studio '
    "(select the tasks, Delete Annotations), so that people are asked"
)


@step()
def look(
    pushed: Pushed,
    pool: PoolTable,
    ledger: Ledger,
    *,
    tool: AnnotationTool,
    rounds: Sequence[RoundFolder],
    settings: CampaignSettings,
    round_number: int,
) -> Tended:
    """See that what is with the annotators is whole, and ask how far they are; `labelcycle status` shows it.

    Raises:
        AnnotationToolError: when not one of the round's tasks is left, which is an accident rather than an answer.
    """
    out = {*ledger.rounds_out(), round_number}
    folders = {folder.number: folder for folder in rounds if folder.number in out}
    asked = [asked_in(f, pool, settings) for f in folders.values()]
    tended = tool.tend(asked, asked=ledger.asked_tasks)
    for n in {ask.round_number for ask, task_id in tended.task_ids.items() if task_id != ledger.asked_tasks[ask]}:
        tasks = {ask.item_id: task_id for ask, task_id in tended.task_ids.items() if ask.round_number == n}
        folders[n].write(PUSHED, replace(folders[n].read(PUSHED), tasks=tasks))
    here, n_pushed = folders[round_number], len(pushed.tasks)
    if n_pushed and not tended.progress.n_tasks:
        raise AnnotationToolError(
            f"the {n_pushed} tasks of round {round_number} are gone from project {settings.project!r}. "
            f"Bring the project back; or delete {here.path_of(PUSHED)} to push them again"
        )
    seen_at = datetime.now(UTC).isoformat(timespec="seconds")
    here.write(PROGRESS, SeenProgress(**asdict(tended.progress), seen_at=seen_at))
    return tended


def asked_in(folder: RoundFolder, pool: PoolTable, settings: CampaignSettings) -> Asked:
    """What a round asked, whose batch is out."""
    n = folder.number
    questions = questions_of(folder.read(BATCH), folder.get(GUESSES), pool, settings, n)
    return Asked(n, questions, model_version(settings.name, n), folder.read(PUSHED).of_asks(n))


def notes_of(standing: Pulled, answers: Sequence[Answer], tool: AnnotationTool) -> list[str]:
    """Which answers are not used, and why; a line each."""
    notes = []
    unused = [answer for answer in answers if answer.outcome in UNUSED]
    if unused:
        n_given = sum(answer.outcome != "deleted" for answer in answers)
        notes.append(f"{len(unused)} of {n_given} answers are not used: {_reasons(unused, tool)}")
    in_part = [answer for answer in answers if answer.outcome == "labelled" and answer.message]
    if in_part:
        notes.append(f"{len(in_part)} answers are used in part: {_reasons(in_part, tool)}")
    if standing.copied:
        address = tool.task_address(standing.copied[0])
        notes.append(COPIED.format(n=len(standing.copied), address=address))
    return [*notes, *standing.notes]


def _reasons(unused: Sequence[Answer], tool: AnnotationTool) -> str:
    kinds: dict[str, list[Answer]] = defaultdict(list)
    for answer in unused:
        kinds[answer.message or "submitted without a class"].append(answer)
    frequent = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
    told = [f"{len(of_kind)} {why} ({tool.task_address(of_kind[0].task_id)})" for why, of_kind in frequent]
    more = f"; and {len(told) - MOST_REASONS} more reasons" if len(told) > MOST_REASONS else ""
    return "; ".join(told[:MOST_REASONS]) + more


def check_used(standing: Pulled, answers: Sequence[Answer], *, tool: AnnotationTool, max_unused: float) -> None:
    """Raise AnswersUnusable where more of the new answers cannot be used than the campaign allows."""
    given = [answer for answer in answers if answer.outcome != "deleted"]
    n_unused = sum(answer.outcome in UNUSED for answer in given) + len(standing.copied)
    n_given = len(given) + len(standing.copied)
    if n_unused > max_unused * n_given:
        raise AnswersUnusable(
            f"{n_unused} of {n_given} new answers cannot be used, more than max_unused = "
            f"{max_unused:g} allows, and nothing was collected. "
            + ". ".join(notes_of(standing, given, tool))
            + ". Mend or delete these answers in Label Studio and run again; or raise max_unused to go on without them"
        )


def may_close(
    progress: Progress, *, n_pushed: int, close_at: float, close_after: timedelta | None, waited: timedelta
) -> bool:
    """Whether enough tasks are answered, or enough time has passed since the push."""
    answered = progress.n_labelled + progress.n_set_aside + (n_pushed - progress.n_tasks)
    return answered >= close_at * n_pushed or (close_after is not None and waited >= close_after)


def is_ready_to_close(pushed: Pushed, progress: Progress, work: OpenCampaign) -> bool:
    """Whether the round may close now, by the campaign's rules.

    A round that had nothing to ask for stays open while tasks of earlier rounds are out. It closes when one of them
    is answered, so that the next round learns from it, or when there is something to ask for after all.
    """
    if not pushed.tasks:
        if not work.ledger.n_outstanding or work.can_ask():
            return True
        known = mark_of(work.folder.rounds()[:-1])
        return bool(news(work.ledger, work.tool, since=_since(known, datetime.now(UTC))).answers)
    return may_close(
        progress,
        n_pushed=len(pushed.tasks),
        close_at=work.settings.close_at,
        close_after=work.settings.close_after,
        waited=datetime.now(UTC) - datetime.fromisoformat(pushed.pushed_at),
    )


@dataclass(frozen=True)
class News:
    """What is not known yet of the annotators' tasks.

    Attributes:
        answers: that are new, changed or withdrawn.
        pulled: what stands on the tasks that were looked at.
        gone: items whose task is not there, and that nobody answered; sorted.
    """

    answers: list[Answer]
    pulled: Pulled
    gone: list[str]


def news(ledger: Ledger, tool: AnnotationTool, *, since: str | None) -> News:
    """What the ledger does not know; all tasks are looked at where one seems to be gone.

    Args:
        since: the mark of a look all of whose answers the ledger has; None to look at all tasks.
    """
    asked = ledger.asked_tasks
    pulled = tool.pull(asked, since=since)
    answers = reconcile(ledger.answers, pulled.answers, task_ids=pulled.task_ids, doubles=pulled.doubles)
    answered = {answer.item_id for answer in current([*ledger.answers, *answers])}
    there = {ask.item_id for ask in (*pulled.task_ids, *pulled.doubles.values())}
    gone = sorted(set(ledger.asked_items) - there - answered)
    if gone and not pulled.is_whole:
        return news(ledger, tool, since=None)
    return News(answers, pulled, gone)


def mark_of(rounds: Sequence[RoundFolder]) -> Collected | None:
    """How far the looks came that brought in all that the ledger has; None where some of it may be missing.

    Args:
        rounds: those that are closed, oldest first.
    """
    has_all = bool(rounds) and all(folder.has(ANSWERS) for folder in rounds)
    return rounds[-1].get(COLLECTED) if has_all else None


@step(NOT_USED, WITHDRAWN, ANSWERS, COLLECTED)
def collect(
    ledger: Ledger,
    batch: BatchTable,
    *,
    tool: AnnotationTool,
    earlier: Sequence[RoundFolder],
    max_unused: float,
    round_number: int,
) -> tuple[list[str], list[str], list[Answer], Collected]:
    """Every answer that is new, changed or withdrawn since the last round closed, late ones included.

    All tasks are looked at once a day, and where a round asked for nothing, since it may be the last.

    Returns:
        Lines on answers that are not used, items whose task was deleted before it was answered, the answers, and how
        far the look came: written last, so that the answers up to there are known wherever it stands.

    Raises:
        AnswersUnusable: more of them cannot be used than the campaign allows; nothing is written.
    """
    now = datetime.now(UTC)
    known = mark_of(earlier) if len(batch) else None
    found = news(_before(ledger, round_number), tool, since=_since(known, now))
    check_used(found.pulled, found.answers, tool=tool, max_unused=max_unused)
    whole_at = now.isoformat(timespec="seconds") if known is None or found.pulled.is_whole else known.whole_at
    collected = Collected(found.pulled.mark, whole_at)
    return notes_of(found.pulled, found.answers, tool), found.gone, found.answers, collected


def _since(known: Collected | None, now: datetime) -> str | None:
    """The mark to go on from; None where all tasks are to be looked at."""
    if known is None or not timedelta(0) <= now - datetime.fromisoformat(known.whole_at) < LOOK_AT_ALL_EVERY:
        return None
    return known.mark


def _before(ledger: Ledger, number: int) -> Ledger:
    """The ledger before a round collects, whose files may be there in part: a run may have ended between them."""
    rounds = [replace(each, answers=None, withdrawn=()) if each.number == number else each for each in ledger.rounds]
    return Ledger(rounds, ledger.renamed)


@step(ROUND)
def close(
    labelled: Labels,
    audit: Labels,
    batch: BatchTable,
    metrics: AuditMetrics | None,
    pages: Pages,
    seconds: dict[str, float],
    ledger: Ledger,
    *,
    tracker: Tracker,
    folder: RoundFolder,
    budget_left: int,
    round_number: int,
) -> ClosedRound:
    """Count what the round brought, log it, and close it."""
    outcomes = dict(Counter[str](answer.outcome for answer in ledger.of(round_number).answers or ()))
    logged = {f"n_{name}": float(count) for name, count in outcomes.items()}
    waited = ledger.seconds_to_batch(round_number)
    logged |= {} if waited is None else {"seconds_to_batch": waited}
    n_paid = labelled.n_paid + audit.n_paid
    tracker.log_round(pages.run_id, metrics=logged, step=n_paid, artifacts=[folder.path_of(ANSWERS)])
    tracker.finish_round(pages.run_id)
    return ClosedRound(
        round_number=round_number,
        closed_at=datetime.now(UTC).isoformat(timespec="seconds"),
        n_asked=len(batch),
        n_labels_paid=ledger.n_labels_paid,
        budget_left=budget_left,
        outcomes=outcomes,
        metrics=metrics,
        seconds=seconds,
        run_id=pages.run_id,
    )
