"""An annotation tool and a tracker that live in this process: for tests and replays of whole campaigns."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from connectors.annotation import (
    AnnotationTool,
    AnnotationToolError,
    Asked,
    Progress,
    Pulled,
    PushMismatch,
    Task,
    Tended,
)
from connectors.label_studio.pages import check_tasks, checked_classes
from connectors.tracking import MemberHistory, TrackedModel, Tracker, TrackerError
from pipeline.types import Annotation, Answer, Outcome, Region

T = TypeVar("T")


class MemoryTool(AnnotationTool):
    """One project that asks for one class for each image, and people who answer by calling `answer` and `skip`.

    Args:
        classes: the answers that a person can give.
        clock: tells the time of an answer.
    """

    def __init__(self, classes: Sequence[str], *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.classes = checked_classes(classes)
        self.tasks: dict[int, Task] = {}
        self.answers: dict[int, Answer] = {}
        self._clock = clock
        self._ids = itertools.count(1)

    def prepare(self) -> str:
        """See `AnnotationTool.prepare`; there is nothing to make."""
        return "memory:"

    def push(
        self, tasks: Sequence[Task], *, round_number: int, model_version: str, asked: Mapping[int, Mapping[str, int]]
    ) -> dict[str, int]:
        """See `AnnotationTool.push`."""
        check_tasks(tasks, round_number, self.classes)
        held = {task.item_id: task_id for task_id, task in self._of(round_number)}
        unknown = held.keys() - {task.item_id for task in tasks}
        if tasks and unknown:
            raise PushMismatch(f"round {round_number} has {len(unknown)} tasks that this campaign did not select")
        for task in tasks:
            if task.item_id not in held:
                held[task.item_id] = next(self._ids)
                self.tasks[held[task.item_id]] = task
        return {task.item_id: held[task.item_id] for task in tasks}

    def tend(self, rounds: Sequence[Asked], *, asked: Mapping[int, Mapping[str, int]]) -> Tended:
        """See `AnnotationTool.tend`; nothing gets lost here."""
        held = dict(self._of(rounds[-1].round_number)) if rounds else {}
        outcomes = [{answer.outcome for answer in self._on(task_id)} for task_id in held]
        progress = Progress(
            n_tasks=len(outcomes),
            n_labelled=sum("labelled" in some for some in outcomes),
            n_set_aside=sum(bool(some) and "labelled" not in some for some in outcomes),
        )
        return Tended(progress, {one.round_number: one.task_ids for one in rounds}, self.pull(asked))

    def pull(self, asked: Mapping[int, Mapping[str, int]]) -> Pulled:
        """See `AnnotationTool.pull`."""
        held = [pair for number in asked for pair in self._of(number)]
        return Pulled(
            answers=[answer for task_id, _ in held for answer in self._on(task_id)],
            task_ids={task.item_id: task_id for task_id, task in held},
            n_drafts=0,
        )

    def task_address(self, task_id: int) -> str:
        """See `AnnotationTool.task_address`."""
        return f"memory:{task_id}"

    def served(self) -> list[Task]:
        """The tasks that nobody has answered, in the order of the newest round first, most wanted first."""
        answered = {answer.task_id for answer in self.answers.values()}
        waiting = [task for task_id, task in self.tasks.items() if task_id not in answered]
        return sorted(waiting, key=lambda task: (-task.round_number, task.rank))

    def answer(self, item_id: str, label: str, *, annotator: str = "somebody", seconds: float = 1.0) -> int:
        """Answer the newest task of an item as a person does; return the answer's id."""
        if label not in self.classes:
            raise AnnotationToolError(f"the page has no class {label!r}")
        labelled = Annotation(item_id, (Region("image", label),), annotator, seconds)
        return self._add(item_id, "labelled", labelled, annotator, seconds)

    def skip(self, item_id: str, *, annotator: str = "somebody", seconds: float = 1.0) -> int:
        """Skip the newest task of an item; return the answer's id."""
        return self._add(item_id, "skipped", None, annotator, seconds)

    def delete(self, answer_id: int) -> None:
        """Take an answer back, as a person does who deletes it."""
        del self.answers[answer_id]

    def _add(
        self, item_id: str, outcome: Outcome, annotation: Annotation | None, annotator: str, seconds: float
    ) -> int:
        task_ids = [task_id for task_id, task in self.tasks.items() if task.item_id == item_id]
        if not task_ids:
            raise AnnotationToolError(f"no task asks for item {item_id}")
        answer_id = next(self._ids)
        self.answers[answer_id] = Answer(
            item_id=item_id,
            task_id=task_ids[-1],
            answer_id=answer_id,
            round_number=self.tasks[task_ids[-1]].round_number,
            outcome=outcome,
            annotator=annotator,
            updated_at=self._clock().isoformat(),
            annotation=annotation,
            seconds=seconds,
        )
        return answer_id

    def _of(self, round_number: int) -> list[tuple[int, Task]]:
        return [(task_id, task) for task_id, task in self.tasks.items() if task.round_number == round_number]

    def _on(self, task_id: int) -> list[Answer]:
        return [answer for answer in self.answers.values() if answer.task_id == task_id]


@dataclass
class MemoryRun:
    """What a tracker holds of one round.

    Attributes:
        metrics: name -> (value, step).
        artifacts: name -> content.
    """

    params: dict[str, str | int | float | bool]
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, tuple[float, int]] = field(default_factory=dict)
    members: dict[str, MemberHistory] = field(default_factory=dict)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    model: TrackedModel | None = None
    is_finished: bool = False


class MemoryTracker(Tracker):
    """One campaign's rounds; `champion` is its best model so far."""

    def __init__(self) -> None:
        self.runs: dict[str, MemoryRun] = {}
        self.champion: TrackedModel | None = None

    def start_round(
        self,
        round_number: int,
        *,
        params: Mapping[str, str | int | float | bool],
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> str:
        """See `Tracker.start_round`."""
        run_id = f"round-{round_number}"
        run = self.runs.setdefault(run_id, MemoryRun(dict(params)))
        _log_once(run.params, params)
        run.tags.update(tags)
        return run_id

    def discard_round(self, round_number: int) -> None:
        """See `Tracker.discard_round`."""
        self.runs.pop(f"round-{round_number}", None)

    def log_members(self, run_id: str, members: Sequence[MemberHistory]) -> None:
        """See `Tracker.log_members`."""
        _log_once(self.runs[run_id].members, {member.name: member for member in members})

    def log_model(
        self, run_id: str, *, weights: Sequence[Path], trunk: Path | None = None, description: Path
    ) -> TrackedModel:
        """See `Tracker.log_model`; the weights stay where they are."""
        run = self.runs[run_id]
        if run.model is None:
            version = str(1 + sum(other.model is not None for other in self.runs.values()))
            run.model = TrackedModel(run_id=run_id, model_uri=f"memory:/{version}", version=version)
        return run.model

    def log_round(
        self,
        run_id: str,
        *,
        metrics: Mapping[str, float],
        step: int,
        artifacts: Sequence[Path],
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """See `Tracker.log_round`."""
        run = self.runs[run_id]
        _log_once(run.metrics, {name: (value, step) for name, value in metrics.items()})
        run.artifacts |= {path.name: path.read_bytes() for path in artifacts}
        run.tags.update(tags)

    def name_champion(self, model: TrackedModel) -> None:
        """See `Tracker.name_champion`."""
        self.champion = model

    def address(self, run_id: str) -> str | None:
        """See `Tracker.address`; it has no pages."""
        return None

    def finish_round(self, run_id: str) -> None:
        """See `Tracker.finish_round`."""
        self.runs[run_id].is_finished = True

    @contextmanager
    def monitor(self, run_id: str) -> Iterator[None]:
        """See `Tracker.monitor`; nobody looks at the load."""
        yield


def _log_once(logged: dict[str, T], values: Mapping[str, T]) -> None:
    changed = [
        f"{key}: {logged[key]!r} -> {value!r}" for key, value in values.items() if logged.get(key, value) != value
    ]
    if changed:
        raise TrackerError(f"values are logged once: {'; '.join(changed)}")
    logged.update(values)
