"""An annotation tool and a tracker that live in this process: for tests and replays of whole campaigns."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from pydantic import ConfigDict, TypeAdapter

from connectors.annotation import (
    AnnotationTool,
    AnnotationToolError,
    Asked,
    Progress,
    ProjectMismatch,
    Pulled,
    PushMismatch,
    Question,
    Restored,
    Tended,
    check_questions,
)
from connectors.health import Finding
from connectors.tracking import LaterRounds, MemberHistory, TrackedModel, Tracker, TrackerError
from pipeline.names import checked_classes
from pipeline.settings import Plain
from pipeline.types import ONE_CLASS, Annotation, Answer, Ask, AskFor, Outcome, Region

T = TypeVar("T")
NOW = partial(datetime.now, UTC)


class MemoryTool(AnnotationTool):
    """One project that asks for regions of each image, and people who answer by calling `answer` and `skip`.

    Args:
        classes: the answers that a person can give.
        asks: for what: one class for each image, or regions of a kind.
        clock: tells the time of an answer.
    """

    def __init__(
        self, classes: Sequence[str], *, asks: AskFor = ONE_CLASS, clock: Callable[[], datetime] = NOW
    ) -> None:
        self.classes = checked_classes(classes, fewest=asks.fewest_classes)
        self.asks = asks
        self.tasks: dict[int, Question] = {}
        self.answers: dict[int, Answer] = {}
        self._restored = Restored(self.prepare(), {}, {})
        self._looks: dict[str | None, dict[int, list[Answer]]] = {}
        self._clock = clock
        self._ids = itertools.count(1)

    def prepare(self) -> str:
        """See `AnnotationTool.prepare`; there is nothing to make."""
        return "memory:"

    def push(self, questions: Sequence[Question], *, model_version: str, asked: Mapping[Ask, int]) -> dict[Ask, int]:
        """See `AnnotationTool.push`."""
        check_questions(questions, self.classes, self.asks)
        if not questions:
            return {}
        held = self._of(questions[0].ask.round_number)
        unknown = held.keys() - {question.ask for question in questions}
        if unknown:
            raise PushMismatch(
                f"round {questions[0].ask.round_number} has {len(unknown)} tasks that this campaign did not select"
            )
        for question in questions:
            if question.ask not in held:
                held[question.ask] = next(self._ids)
                self.tasks[held[question.ask]] = question
        return {question.ask: held[question.ask] for question in questions}

    def tend(self, rounds: Sequence[Asked], *, asked: Mapping[Ask, int]) -> Tended:
        """See `AnnotationTool.tend`; nothing gets lost here."""
        outcomes = [
            {answer.outcome for answer in self._on(task_id)} for task_id in self._of(rounds[-1].round_number).values()
        ]
        progress = Progress(
            n_tasks=len(outcomes),
            n_labelled=sum("labelled" in some for some in outcomes),
            n_set_aside=sum(bool(some) and "labelled" not in some for some in outcomes),
        )
        return Tended(progress, asked, self.pull(asked))

    def pull(self, asked: Mapping[Ask, int], *, since: str | None = None) -> Pulled:
        """See `AnnotationTool.pull`; a mark is known to the object that gave it."""
        now: dict[int, list[Answer]] = {task_id: [] for task_id in self.tasks}
        for answer in self.answers.values():
            now.get(answer.task_id, []).append(answer)
        before = self._looks.get(since)
        mark = str(len(self._looks))
        self._looks[mark] = now
        held = {ask: task_id for ask, task_id in asked.items() if task_id in now}
        if before is not None:
            held = {ask: n for ask, n in held.items() if not now[n] or now[n] != before.get(n)}
        answers = [answer for task_id in held.values() for answer in now[task_id]]
        return Pulled(answers, held, mark=mark, is_whole=before is None)

    def task_address(self, task_id: int) -> str:
        """See `AnnotationTool.task_address`."""
        return f"memory:{task_id}"

    def check(self, rounds: Sequence[Asked]) -> Iterator[Finding]:
        """See `AnnotationTool.check`."""
        yield Finding("annotation tool", f"in this process, {len(self.served())} tasks are open")

    def save(self, asked: Mapping[Ask, int]) -> Iterator[Plain]:
        """See `AnnotationTool.save`."""
        for task_id in asked.values():
            if task_id in self.tasks:
                held = _saved().dump_python((task_id, self.tasks[task_id], self._on(task_id)), mode="json")
                yield {"saved": held}

    def restore(self, saved: Iterable[Plain], *, asked: Mapping[Ask, int], uris: Mapping[str, str]) -> Restored | None:
        """See `AnnotationTool.restore`."""
        here = {question.ask: task_id for task_id, question in self.tasks.items()}
        if any(here.get(ask) == task_id for ask, task_id in asked.items()):
            return None
        before = self._restored
        if any(here.get(ask, 0) == before.task_ids.get(task_id) for ask, task_id in asked.items()):
            return Restored(
                before.address,
                task_ids={old: new for old, new in before.task_ids.items() if new in self.tasks},
                answer_ids={old: new for old, new in before.answer_ids.items() if new in self.answers},
                was_there=True,
            )
        if here:
            raise ProjectMismatch(f"the project has {len(here)} tasks that were not saved")
        held = [_saved().validate_python(record["saved"]) for record in saved]  # all, before anything is made of it
        task_ids: dict[int, int] = {}
        answer_ids: dict[int, int] = {}
        for old, question, answers in held:
            task_ids[old] = next(self._ids)
            self.tasks[task_ids[old]] = replace(question, uri=uris.get(question.item_id, question.uri))
            for answer in answers:
                new = answer_ids[answer.answer_id] = next(self._ids)
                self.answers[new] = replace(answer, task_id=task_ids[old], answer_id=new)
        self._restored = Restored(self.prepare(), task_ids, answer_ids)
        return self._restored

    def served(self) -> list[Question]:
        """The questions that nobody has answered, in the order of the newest round first, most wanted first."""
        answered = {answer.task_id for answer in self.answers.values()}
        waiting = [question for task_id, question in self.tasks.items() if task_id not in answered]
        return sorted(waiting, key=lambda question: (-question.ask.round_number, question.rank))

    def answer(self, ask: Ask, *given: str | Region, annotator: str = "somebody", seconds: float = 1.0) -> int:
        """Answer as a person does: with labels of the whole image or with regions; return the answer's id.

        None of them says that the person looked and found nothing.
        """
        regions = tuple(Region("image", one) if isinstance(one, str) else one for one in given)
        for region in regions:
            if region.label not in self.classes:
                raise AnnotationToolError(f"the page has no class {region.label!r}")
            if region.kind != self.asks.kind:
                raise AnnotationToolError(f"the page asks for regions of kind {self.asks.kind!r}, got {region.kind!r}")
        return self._add(ask, "labelled", Annotation(ask.item_id, regions, annotator, seconds), annotator, seconds)

    def skip(self, ask: Ask, *, annotator: str = "somebody", seconds: float = 1.0) -> int:
        """Skip as a person does; return the answer's id."""
        return self._add(ask, "skipped", None, annotator, seconds)

    def delete(self, answer_id: int) -> None:
        """Take an answer back, as a person does who deletes it."""
        del self.answers[answer_id]

    def _add(self, ask: Ask, outcome: Outcome, annotation: Annotation | None, annotator: str, seconds: float) -> int:
        task_ids = [task_id for task_id, question in self.tasks.items() if question.ask == ask]
        if not task_ids:
            raise AnnotationToolError(f"no task asks for {ask}")
        answer_id = next(self._ids)
        self.answers[answer_id] = Answer(
            ask=ask,
            task_id=task_ids[-1],
            answer_id=answer_id,
            outcome=outcome,
            annotator=annotator,
            updated_at=self._clock().isoformat(),
            annotation=annotation,
            seconds=seconds,
        )
        return answer_id

    def _of(self, round_number: int) -> dict[Ask, int]:
        return {
            question.ask: task_id
            for task_id, question in self.tasks.items()
            if question.ask.round_number == round_number
        }

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
    is_model_dropped: bool = False
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
        self.refuse_later(round_number)
        run_id = f"round-{round_number}"
        run = self.runs.setdefault(run_id, MemoryRun(dict(params)))
        _log_once(run.params, params)
        run.tags.update(tags)
        return run_id

    def refuse_later(self, last: int) -> None:
        """See `Tracker.refuse_later`."""
        newest = max((int(run_id.removeprefix("round-")) for run_id in self.runs), default=-1)
        if newest > last:
            raise LaterRounds("memory", last=last, newest=newest)

    def discard_rounds(self, first: int) -> int:
        """See `Tracker.discard_rounds`."""
        gone = [run_id for run_id in self.runs if int(run_id.removeprefix("round-")) >= first]
        for run_id in gone:
            del self.runs[run_id]
        return len(gone)

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

    def drop_models(self, models: Sequence[TrackedModel]) -> list[str]:
        """See `Tracker.drop_models`."""
        dropped = [model for model in models if model != self.champion and not self.runs[model.run_id].is_model_dropped]
        for model in dropped:
            self.runs[model.run_id].is_model_dropped = True
        return [model.version for model in dropped]

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

    def check(self) -> Iterator[Finding]:
        """See `Tracker.check`."""
        yield Finding("tracker", f"in this process, with {len(self.runs)} rounds")


@cache
def _saved() -> TypeAdapter[tuple[int, Question, list[Answer]]]:
    """A task with its answers as JSON values."""
    held = tuple[int, Question, list[Answer]]
    return TypeAdapter(held, config=ConfigDict(ser_json_bytes="base64", val_json_bytes="base64"))


def _log_once(logged: dict[str, T], values: Mapping[str, T]) -> None:
    changed = [
        f"{key}: {logged[key]!r} -> {value!r}" for key, value in values.items() if logged.get(key, value) != value
    ]
    if changed:
        raise TrackerError(f"values are logged once: {'; '.join(changed)}")
    logged.update(values)
