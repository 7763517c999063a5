"""What changed in a project since a look: the mark that a look leaves, and the tasks that the next one reads again.

A change of a task's answers moves its `updated_at`. What does not, and what the clock of the server hides, is found by
looks at all tasks: see docs/decisions/0038-what-grows-with-the-rounds.md.
"""

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from connectors.annotation import AnnotationToolError, AnnotationToolUnavailable
from connectors.label_studio.api import Api, where
from connectors.label_studio.project import Project
from connectors.label_studio.reading import HeldTask
from connectors.label_studio.tasks import UNANSWERED, Tasks

OVERLAP = timedelta(minutes=10)
"""How much of what was looked at is looked at again: a change may become visible after a later one, and the clocks of
several servers of one Label Studio differ."""


class Mark(BaseModel):
    """How far a look came.

    Attributes:
        reading: digest of whatever else decides how answers are read; with another one the mark is not good.
        newest: the last change that was seen, by the server's clock.
        since: what changed after this may not have been seen.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    reading: str
    newest: AwareDatetime
    since: AwareDatetime


class Changes:
    """Looks at a project that go on from each other.

    Args:
        emails: address of each user, by id: a person's other address changes all their answers.
    """

    def __init__(self, api: Api, project: Project, tasks: Tasks, emails: Mapping[int, str]) -> None:
        self._tasks = tasks
        held = project.held()
        people = sorted(emails.items())
        how = [held.id, held.created_at, project.classes, sorted(project.renamed.items()), project.asks, people]
        self._reading = hashlib.blake2b(json.dumps(how).encode(), digest_size=16).hexdigest()
        self._now = _time_of(api)

    def read(self, since: str | None) -> tuple[dict[int, HeldTask], bool]:
        """The tasks of the project, and whether these are all.

        Else they are those that changed since the mark, and those that nobody answered.
        """
        changed = self._changed(since)
        if changed is None:
            return {task.id: task for task in self._tasks.between(0)}, True
        return changed, False

    def _changed(self, since: str | None) -> dict[int, HeldTask] | None:
        """None where the mark is not good, or the server does not show again the last change that it showed."""
        try:
            mark = Mark.model_validate_json(since or "")
        except ValidationError:
            return None
        if mark.reading != self._reading:
            return None
        try:
            # In this order: what is answered meanwhile is among the changes.
            open_tasks = list(self._tasks.between(0, only=UNANSWERED))
            changed = list(self._tasks.between(0, only=[where("updated_at", "greater", mark.since)]))
        except AnnotationToolUnavailable:
            raise
        except AnnotationToolError:  # a server that knows no such filter
            return None
        if not any(task.updated_at and task.updated_at >= mark.newest for task in changed):
            return None
        return {task.id: task for task in (*open_tasks, *changed)}

    def mark(self, held: Mapping[int, HeldTask]) -> str | None:
        """The mark of a look that saw these tasks; None where the server tells no time."""
        newest = max((task.updated_at for task in held.values() if task.updated_at), default=None)
        if newest is None or self._now is None:
            return None
        return Mark(reading=self._reading, newest=newest, since=min(newest, self._now) - OVERLAP).model_dump_json()


def _time_of(api: Api) -> datetime | None:
    """The time by the server's clock, before anything is read."""
    _, told = api.connection.repeatable(api.version)
    try:
        return parsedate_to_datetime(told or "").astimezone(UTC)
    except ValueError:
        return None
