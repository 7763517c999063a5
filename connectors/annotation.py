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
class Pulled:
    """The present state of some tasks.

    Attributes:
        answers: all that stand on the tasks now.
        task_ids: the tasks that exist now, by item id.
        n_drafts: answers begun and not submitted; they are not labels.
    """

    answers: Sequence[Answer]
    task_ids: Mapping[str, int]
    n_drafts: int


class AnnotationTool(Protocol):
    """A tool in which people label; one object stands for one project of it."""

    def prepare(self) -> str:
        """Create the project or adopt it, check its shape, and return the address where people label."""

    def push(self, tasks: Sequence[Task], *, round_number: int, model_version: str) -> dict[str, int]:
        """Make the round's tasks exist exactly once, most wanted first, and return item id -> task id.

        Pushing again finds what is there and adds what is missing. After the push the tool is read back;
        `PushMismatch` says how it differs from `tasks`.
        """

    def progress(self, *, round_number: int) -> Progress:
        """Count how far the annotators are with a round, cheaply."""

    def pull(self, *, round_numbers: Sequence[int]) -> Pulled:
        """Read what stands on all tasks of these rounds."""
