"""What labelcycle asks of an annotation tool, and how such a tool may fail."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from connectors.health import Finding
from pipeline.settings import Plain
from pipeline.types import ONE_CLASS, Answer, Ask, AskFor, Region


class AnnotationToolError(Exception):
    """The annotation tool refuses or contradicts us; trying again does not help."""


class AnnotationToolUnavailable(AnnotationToolError):
    """The annotation tool does not answer; worth a retry."""


class AuthenticationFailed(AnnotationToolError):
    """The token is missing, wrong or of a kind that the server does not take."""


class AnswersUnusable(AnnotationToolError):
    """Too many answers cannot be used for the campaign to go on before a person looked at them."""


class ProjectMismatch(AnnotationToolError):
    """A project of that name exists and is not the one this campaign needs."""


class PushMismatch(AnnotationToolError):
    """What the annotation tool holds after a push is not the batch that was selected."""


@dataclass(frozen=True, slots=True)
class Question:
    """An ask as people see it.

    Attributes:
        rank: place in the batch; 0 is the most wanted.
        guess: what the model sees there, with its probability: nothing, where empty; None hides it (cold start,
            audit set).
        reason: why the image was chosen, in words that stand above it. They tell no purpose that people must not know.
        columns: what people sort tasks by (`uncertainty`, `confused_classes`, …).
    """

    ask: Ask
    uri: str
    rank: int
    guess: tuple[Region, ...] | None = None
    reason: str = ""
    columns: Mapping[str, str | float] = field(default_factory=dict)

    @property
    def item_id(self) -> str:
        """The image that is asked for."""
        return self.ask.item_id


def check_questions(questions: Sequence[Question], classes: Sequence[str], asks: AskFor = ONE_CLASS) -> None:
    """Raise ValueError for a batch that an annotation tool would take and then show wrongly, or in the wrong order."""
    seen: set[str] = set()
    for question in questions:
        ask, guess = question.ask, question.guess
        if ask.item_id in seen:
            raise ValueError(f"item {ask.item_id} is in the batch twice")
        seen.add(ask.item_id)
        if ask.round_number != questions[0].ask.round_number:
            raise ValueError(
                f"item {ask.item_id} belongs to round {ask.round_number}, not {questions[0].ask.round_number}"
            )
        if question.rank < 0:
            raise ValueError(f"item {ask.item_id}: a rank counts from 0, got {question.rank}")
        _check_guess(ask.item_id, guess or (), classes, asks)
        for name, value in question.columns.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"item {ask.item_id}: column {name!r} is not a finite number")


def _check_guess(item_id: str, guess: Sequence[Region], classes: Sequence[str], asks: AskFor) -> None:
    wanted = "for the whole image" if asks.kind == "image" else f"for a {asks.kind}"
    for region in guess:
        if region.kind != asks.kind:
            raise ValueError(f"item {item_id}: a guess must be {wanted}, got a region of kind {region.kind!r}")
        if region.label not in classes:
            raise ValueError(
                f"item {item_id}: a guess must be one of {', '.join(classes)} {wanted}, got {region.label!r}"
            )
        if region.kind == "polygon" and _crosses_itself(region):
            raise ValueError(f"item {item_id}: a guess is a polygon that crosses itself, of {region.label!r}")
    labels = [region.label for region in guess]
    if len(guess) > 1 and not asks.several:
        raise ValueError(f"item {item_id}: a guess must be one label, got {', '.join(labels)}")
    if asks.kind == "image" and len(set(labels)) != len(labels):
        raise ValueError(f"item {item_id}: a guess has a label twice: {', '.join(labels)}")


def _crosses_itself(polygon: Region) -> bool:
    import numpy as np

    from pipeline.polygons import crosses_itself

    return crosses_itself(np.reshape(polygon.geometry or (), (-1, 2)))


@dataclass(frozen=True, slots=True)
class Asked:
    """What a round asked.

    Attributes:
        model_version: of the model that guessed; the tool shows guesses by it.
        task_ids: the tool's task of each ask, as the push of the round returned them.
    """

    round_number: int
    questions: Sequence[Question]
    model_version: str
    task_ids: Mapping[Ask, int]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the annotators are with one round, in tasks; each task is counted once.

    Attributes:
        n_tasks: tasks of the round that exist now.
        n_labelled: with a submitted answer; whether it can be used is known after `pull`.
        n_set_aside: skipped, and answered by nobody.
    """

    n_tasks: int
    n_labelled: int
    n_set_aside: int


@dataclass(frozen=True, slots=True)
class Tended:
    """What was found and mended on the tasks that are out.

    Attributes:
        progress: of the last round.
        task_ids: the task of each ask as it is now: where one was answered in a double, the double.
        standing: what stands on the tasks that were looked at.
        mended: for people, a line each: what was mended, and what a person has to mend.
    """

    progress: Progress
    task_ids: Mapping[Ask, int]
    standing: "Pulled"
    mended: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pulled:
    """The present state of some tasks.

    Attributes:
        answers: all that stand on the tasks now.
        task_ids: the tasks that exist now, by ask.
        doubles: further tasks of an ask: task id -> ask. Their answers count as well.
        copied: ids of tasks with an answer that nobody gave: a guess or another answer, copied in bulk; one for each.
        notes: for people, a line each: what stands in the project and is not used.
        mark: how far this look came, for the next one to go on from; None where that one has to look at all.
        is_whole: whether all tasks were looked at. Else those are missing on which nothing changed since the mark, and
            which somebody had answered.
    """

    answers: Sequence[Answer]
    task_ids: Mapping[Ask, int]
    doubles: Mapping[int, Ask] = field(default_factory=dict)
    copied: Sequence[int] = ()
    notes: tuple[str, ...] = ()
    mark: str | None = field(default=None, compare=False)
    is_whole: bool = True


@dataclass(frozen=True, slots=True)
class Restored:
    """What became of tasks and answers that were saved.

    Attributes:
        address: where people label now.
        task_ids: old id -> new id; without tasks that somebody had deleted before they were saved.
        answer_ids: likewise of answers.
        notes: for people, a line each: what is not as it was.
        was_there: it was restored before; all that people did since was left as it is.
    """

    address: str
    task_ids: Mapping[int, int]
    answer_ids: Mapping[int, int]
    notes: tuple[str, ...] = ()
    was_there: bool = False


class AnnotationTool(Protocol):
    """A tool in which people label; one object stands for one project of it."""

    def prepare(self) -> str:
        """Create the project or adopt it, check its shape, and return the address where people label."""

    def push(self, questions: Sequence[Question], *, model_version: str, asked: Mapping[Ask, int]) -> dict[Ask, int]:
        """Make a task for each question of a round exactly once, most wanted first, and return the task of each ask.

        Pushing again finds what is there and adds what is missing. After the push the tool is read back: each task
        has its data, its guess and its place in the order, and its image is shown. `PushMismatch` names what differs.

        Args:
            questions: all of one round, each item once.
            asked: the task of each ask of earlier rounds.
        """

    def tend(self, rounds: Sequence[Asked], *, asked: Mapping[Ask, int]) -> Tended:
        """See that what is out is still as it was pushed, mend what is not, and count how far the annotators are.

        A task that was deleted stays deleted.

        Args:
            rounds: those with tasks that are out, oldest first; the last is the open one.
            asked: the task of each ask of every round.
        """

    def pull(self, asked: Mapping[Ask, int], *, since: str | None = None) -> Pulled:
        """Read what stands on the tasks of these asks: on all, or on those where something may have changed.

        Args:
            asked: the task of each ask. What a task asks is known from here, not from what people may have written
                into the task.
            since: the mark of an earlier look, all of whose answers are known. A tool that cannot go on from it, or
                has a doubt, looks at all.
        """

    def task_address(self, task_id: int) -> str:
        """Where a person looks at a task."""

    def check(self, rounds: Sequence[Asked]) -> Iterator[Finding]:
        """Look whether people can label, one finding after the other; nothing is changed.

        The first failure is the last finding where the others depend on what failed. No error is raised.

        Args:
            rounds: as of `tend`; none before the first push.
        """

    def save(self, asked: Mapping[Ask, int]) -> Iterator[Plain]:
        """What these tasks hold, one record after the other, for `restore`: the page, guesses, all answers.

        Args:
            asked: the task of each ask.
        """

    def restore(self, saved: Iterable[Plain], *, asked: Mapping[Ask, int], uris: Mapping[str, str]) -> Restored | None:
        """Make a project that holds what was saved; one that was broken off goes on, and makes nothing twice.

        Tasks come in the order in which they were, with new ids. From then on `pull` gives their answers with the same
        people and times as before. A project that was restored already is left as people have it since: the ids are
        those of what is still there.

        Args:
            saved: what `save` gave.
            asked: the task of each ask when it was saved.
            uris: where the image of an item is now.

        Returns:
            None where the project that was saved still has some of these tasks: it is left as it is.

        Raises:
            ProjectMismatch: there is a project of this title with tasks that were not saved.
        """
