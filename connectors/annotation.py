"""What labelcycle asks of an annotation tool, and how such a tool may fail."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from pipeline.types import Answer, Region


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
class Task:
    """One image to ask for.

    Attributes:
        rank: place in the batch; 0 is the most wanted.
        guess: what the model sees there, with its probability; None hides it (cold start, audit set).
        columns: why it was picked: `reason`, in words, stands above the image; people sort tasks by the others
            (`uncertainty`, `confused_classes`, …).
    """

    item_id: str
    uri: str
    round_number: int
    rank: int
    guess: Region | None = None
    columns: Mapping[str, str | float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a round asked for.

    Attributes:
        model_version: of the model that guessed; the tool shows guesses by it.
        task_ids: item id -> task id, as the push of the round returned them.
    """

    round_number: int
    tasks: Sequence[Task]
    model_version: str
    task_ids: Mapping[str, int]


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
        task_ids: for each round, its tasks by item id as they are now: where one was answered in a double, the double.
        standing: what stands on the tasks that were looked at.
        mended: for people, a line each: what was mended, and what a person has to mend.
    """

    progress: Progress
    task_ids: Mapping[int, Mapping[str, int]]
    standing: "Pulled"
    mended: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pulled:
    """The present state of some tasks.

    Attributes:
        answers: all that stand on the tasks now.
        task_ids: the tasks that exist now, by item id.
        n_drafts: answers begun and not submitted; they are not labels.
        doubles: further tasks that ask for an item of the round: task id -> item id. Their answers count as well.
        copied: ids of tasks with an answer that nobody gave: a guess or another answer, copied in bulk; one for each.
        notes: for people, a line each: what stands in the project and is not used.
    """

    answers: Sequence[Answer]
    task_ids: Mapping[str, int]
    n_drafts: int
    doubles: Mapping[int, str] = field(default_factory=dict)
    copied: Sequence[int] = ()
    notes: tuple[str, ...] = ()


class AnnotationTool(Protocol):
    """A tool in which people label; one object stands for one project of it."""

    def prepare(self) -> str:
        """Create the project or adopt it, check its shape, and return the address where people label."""

    def push(
        self, tasks: Sequence[Task], *, round_number: int, model_version: str, asked: Mapping[int, Mapping[str, int]]
    ) -> dict[str, int]:
        """Make the round's tasks exist exactly once, most wanted first, and return item id -> task id.

        Pushing again finds what is there and adds what is missing. After the push the tool is read back: each task
        has its data, its guess and its place in the order, and its image is shown. `PushMismatch` says what differs.

        Args:
            asked: for each earlier round, item id -> task id.
        """

    def tend(self, rounds: Sequence[Asked], *, asked: Mapping[int, Mapping[str, int]]) -> Tended:
        """See that what is out is still as it was pushed, mend what is not, and count how far the annotators are.

        A task that was deleted stays deleted.

        Args:
            rounds: those with tasks that are out, oldest first; the last is the open one.
            asked: for every round, item id -> task id.
        """

    def pull(self, asked: Mapping[int, Mapping[str, int]]) -> Pulled:
        """Read what stands on all tasks of these rounds.

        Args:
            asked: for each round, item id -> task id. Which image a task shows is known from here, not from what
                people may have written into the task.
        """

    def task_address(self, task_id: int) -> str:
        """Where a person looks at a task."""
