"""The tasks of a project: what each must be like, and the requests that read and change them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from connectors.annotation import AnnotationToolError
from connectors.label_studio.api import Api, Filter, where
from connectors.label_studio.connection import NotThere
from connectors.label_studio.kinds.table import kind_of
from connectors.label_studio.pages import IMAGE
from connectors.label_studio.project import Project
from connectors.label_studio.reading import HeldTask
from pipeline.types import Ask

MOST_TASKS = 2_000_000
CHUNK = 500
"""Tasks or guesses that are sent together at most."""
CHUNK_BYTES = 8 * 2**20
"""Of these, unless one has more: masks are large."""
UNANSWERED = (where("total_annotations", "equal", 0), where("cancelled_annotations", "equal", 0))
"""Tasks that nobody answered or skipped."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a task must be like.

    Attributes:
        prediction: guess, place in the order and model version.
        uri: of the image.
    """

    ask: Ask
    data: Mapping[str, Any]
    prediction: Mapping[str, Any]
    uri: str

    @property
    def address(self) -> str:
        """What a browser loads the image from."""
        return str(self.data[IMAGE])

    def has_data(self, task: HeldTask) -> bool:
        """Whether the task asks this and shows the image."""
        return task.asks(self.ask) and task.data.get(IMAGE) == self.address

    def guesses(self, task: HeldTask) -> list[int]:
        """Ids of the task's predictions of this round's model."""
        version = self.prediction["model_version"]
        return [guess.id for guess in task.predictions if guess.model_version == version]

    def is_guessed(self, task: HeldTask) -> bool:
        """Whether the task has this one prediction of the round's model."""
        version = self.prediction["model_version"]
        ours = [guess for guess in task.predictions if guess.model_version == version]
        return len(ours) == 1 and ours[0].shows(self.prediction)


class Tasks:
    """The tasks of one project."""

    def __init__(self, api: Api, project: Project) -> None:
        self._api = api
        self.project = project

    def between(self, after: int, until: int | None = None, *, only: Sequence[Filter] = ()) -> Iterator[HeldTask]:
        """All tasks with an id above `after`, by id: pages that begin after an id stay right while tasks come and go.

        Args:
            until: the last id.
            only: what must be true of them besides.

        Raises:
            AnnotationToolError: for a server that goes on for ever.
        """
        for page in self.parts(after, until, only=only):
            yield from page

    def parts(
        self, after: int = 0, until: int | None = None, *, only: Sequence[Filter] = ()
    ) -> Iterator[list[HeldTask]]:
        """The same, as many at a time as the server gives at once."""
        last, n_seen = after, 0
        while True:
            page, total = self._page(last, until, only)
            yield page
            n_seen += len(page)
            if not page or len(page) >= total:
                return
            ids = [task.id for task in page]
            if min(ids) <= last or n_seen > MOST_TASKS:
                raise AnnotationToolError(
                    f"{self._api.connection.url} does not answer as Label Studio does: asked for tasks after {last}, "
                    f"it gives task {min(ids)}, and {n_seen} in all"
                )
            last = max(ids)

    def _page(self, last: int, until: int | None, only: Sequence[Filter]) -> tuple[list[HeldTask], int]:
        n = kind_of(self.project.asks).tasks_a_page
        return self._api.connection.repeatable(lambda: self._api.tasks(self.project.id, last, until, only=only, n=n))

    def add(self, wanted: Sequence[Wanted]) -> None:
        """Make tasks, yet without guesses. Not repeated: what was sent may have arrived although no answer came."""
        for data in _chunks([one.data for one in wanted]):
            self._api.import_tasks(self.project.id, data)

    def write_data(self, task: HeldTask, one: Wanted) -> None:
        """Give a task its data again; what else is in them stays."""
        self._api.connection.repeatable(lambda: self._api.change_task(task.id, {**task.data, **one.data}))

    def guess_again(self, pairs: Sequence[tuple[HeldTask, Wanted]]) -> None:
        """Give tasks the one right prediction. Adding is not repeated."""
        for task, one in pairs:
            for guess_id in one.guesses(task):
                self._delete_guess(guess_id)
        for guesses in _chunks([{"task": task.id, **one.prediction} for task, one in pairs]):
            self._api.import_guesses(self.project.id, guesses)

    def _delete_guess(self, guess_id: int) -> None:
        with suppress(NotThere):  # it is gone already
            self._api.connection.repeatable(lambda: self._api.delete_guess(guess_id))

    def delete(self, task_ids: Sequence[int]) -> None:
        """Delete tasks, with all that is on them."""
        self._api.connection.repeatable(lambda: self._api.delete_tasks(self.project.id, task_ids))

    def show_guesses_of(self, version: str) -> None:
        """Serve by the order of one model version, and tick its guesses."""
        self.project.change({"model_version": version})


def _chunks(contents: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """What is sent together, in order."""
    chunk: list[Mapping[str, Any]] = []
    n_bytes = 0
    for content in contents:
        size = len(json.dumps(content))
        if chunk and (len(chunk) >= CHUNK or n_bytes + size > CHUNK_BYTES):
            yield chunk
            chunk, n_bytes = [], 0
        chunk.append(content)
        n_bytes += size
    if chunk:
        yield chunk
