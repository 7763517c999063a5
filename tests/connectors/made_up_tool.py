"""A made-up annotation tool: its tasks and answers are JSON files in a folder, which people write by hand."""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from connectors.annotation import (
    AnnotationTool,
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
from pipeline.names import checked_classes
from pipeline.regions import regions_from_json, regions_to_json
from pipeline.types import ONE_CLASS, Annotation, Answer, Ask, AskFor, Region


class FolderTool(AnnotationTool):
    """A project that is a folder: `task-7.json` asks, `answer-7-8.json` answers it."""

    def __init__(self, folder: Path, classes: Sequence[str], asks: AskFor = ONE_CLASS) -> None:
        self.folder = folder
        self.classes = checked_classes(classes, fewest=asks.fewest_classes)
        self.asks = asks

    def prepare(self) -> str:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder.as_uri()

    def push(self, questions: Sequence[Question], *, model_version: str, asked: Mapping[Ask, int]) -> dict[Ask, int]:
        check_questions(questions, self.classes, self.asks)
        number = questions[0].ask.round_number if questions else None
        held = {ask: task_id for ask, task_id in self._held().items() if ask.round_number == number}
        if held.keys() - {question.ask for question in questions}:
            raise PushMismatch(f"{self.folder} holds tasks of round {number} that this campaign did not select")
        for question in questions:
            if question.ask not in held:
                guess = regions_to_json(question.guess or ())
                held[question.ask] = self._write(
                    "task", {"model_version": model_version, **asdict(replace(question, guess=None)), "guess": guess}
                )
        return {question.ask: held[question.ask] for question in questions}

    def tend(self, rounds: Sequence[Asked], *, asked: Mapping[Ask, int]) -> Tended:
        pulled = self.pull(asked)
        answered = {ask: set() for ask in pulled.task_ids if ask.round_number == rounds[-1].round_number}
        for answer in pulled.answers:
            if answer.ask in answered:
                answered[answer.ask].add(answer.outcome)
        n_labelled = sum("labelled" in outcomes for outcomes in answered.values())
        n_answered = sum(bool(outcomes) for outcomes in answered.values())
        return Tended(Progress(len(answered), n_labelled, n_answered - n_labelled), asked, pulled)

    def pull(self, asked: Mapping[Ask, int], *, since: str | None = None) -> Pulled:
        there = set(self._held().values())
        held = {ask: task_id for ask, task_id in asked.items() if task_id in there}
        answers = [answer for ask, task_id in held.items() for answer in self._answers(ask, task_id)]
        return Pulled(answers, held)

    def task_address(self, task_id: int) -> str:
        return (self.folder / f"task-{task_id}.json").as_uri()

    def check(self, rounds: Sequence[Asked]) -> Iterator[Finding]:
        """See `AnnotationTool.check`."""
        yield Finding("project", f"{self.folder} holds {len(list(self.folder.glob('task-*')))} tasks")

    def save(self, asked: Mapping[Ask, int]) -> Iterator[dict[str, Any]]:
        for task_id in asked.values():
            path = self.folder / f"task-{task_id}.json"
            if path.exists():
                answers = {path.stem: read(path) for path in sorted(self.folder.glob(f"answer-{task_id}-*.json"))}
                yield {"task": task_id, "content": read(path), "answers": answers}

    def restore(
        self, saved: Iterable[Mapping[str, Any]], *, asked: Mapping[Ask, int], uris: Mapping[str, str]
    ) -> Restored | None:
        here = self._held()
        if any(here.get(ask) == task_id for ask, task_id in asked.items()):
            return None
        done = self.folder / "restored.txt"
        if done.exists():
            tasks, answers = ({int(old): new for old, new in ids.items()} for ids in read(done))
            if any(here.get(ask, 0) == tasks.get(task_id) for ask, task_id in asked.items()):
                there = {int(path.stem.rpartition("-")[2]) for path in self.folder.glob("*.json")}
                tasks, answers = ({old: new for old, new in ids.items() if new in there} for ids in (tasks, answers))
                return Restored(self.prepare(), tasks, answers, was_there=True)
        if here.keys() - asked.keys():
            raise ProjectMismatch(f"{self.folder} holds tasks that were not saved")
        tasks: dict[int, int] = {}
        answers: dict[int, int] = {}
        for record in saved:
            content = record["content"] | {
                "uri": uris.get(record["content"]["ask"]["item_id"], record["content"]["uri"])
            }
            new = tasks[record["task"]] = here.get(Ask(**content["ask"])) or self._write("task", content)
            there = {json.dumps(read(path)): path for path in self.folder.glob(f"answer-{new}-*.json")}
            for name, answer in record["answers"].items():
                known = there.get(json.dumps(answer))
                number = int(known.stem.rpartition("-")[2]) if known else self._write(f"answer-{new}", answer)
                answers[int(name.rpartition("-")[2])] = number
        done.write_text(json.dumps([tasks, answers]), encoding="utf-8")
        return Restored(self.prepare(), tasks, answers)

    def served(self) -> list[int]:
        """The tasks that nobody has answered, in the order in which people take them."""
        open_ones = {
            task_id: read(self.folder / f"task-{task_id}.json")
            for task_id in self._held().values()
            if not list(self.folder.glob(f"answer-{task_id}-*.json"))
        }
        return sorted(open_ones, key=lambda task_id: (-round_of(open_ones[task_id]), open_ones[task_id]["rank"]))

    def answer(self, task_id: int, *regions: Region) -> int:
        """Answer a task as a person does; return the answer's id."""
        return self._give(task_id, regions_to_json(regions))

    def skip(self, task_id: int) -> int:
        """Skip a task as a person does; return the answer's id."""
        return self._give(task_id, None)

    def _give(self, task_id: int, regions: str | None) -> int:
        return self._write(
            f"answer-{task_id}", {"regions": regions, "seconds": 2.5, "at": datetime.now(UTC).isoformat(), "who": "ann"}
        )

    def take_back(self, answer_id: int) -> None:
        """Delete an answer."""
        [path] = self.folder.glob(f"answer-*-{answer_id}.json")
        path.unlink()

    def delete(self, task_id: int) -> None:
        """Delete a task."""
        (self.folder / f"task-{task_id}.json").unlink()

    def change(self, answer_id: int, *regions: Region) -> None:
        """Give an answer other regions."""
        [path] = self.folder.glob(f"answer-*-{answer_id}.json")
        told = {"regions": regions_to_json(regions), "at": datetime.now(UTC).isoformat()}
        path.write_text(json.dumps(read(path) | told), encoding="utf-8")

    def _write(self, kind: str, content: Mapping[str, Any]) -> int:
        taken = {int(path.stem.rpartition("-")[2]) for path in self.folder.glob("*.json")}
        number = next(number for number in itertools.count(1) if number not in taken)
        (self.folder / f"{kind}-{number}.json").write_text(json.dumps(content), encoding="utf-8")
        return number

    def _held(self) -> dict[Ask, int]:
        paths = self.folder.glob("task-*.json")
        return {Ask(**read(path)["ask"]): int(path.stem.rpartition("-")[2]) for path in paths}

    def _answers(self, ask: Ask, task_id: int) -> list[Answer]:
        return [
            Answer(
                ask,
                task_id,
                answer_id=int(path.stem.rpartition("-")[2]),
                outcome="labelled" if given["regions"] else "skipped",
                annotator=given["who"],
                updated_at=given["at"],
                annotation=Annotation(ask.item_id, regions_from_json(given["regions"]), given["who"], given["seconds"])
                if given["regions"]
                else None,
                seconds=given["seconds"],
            )
            for path in sorted(self.folder.glob(f"answer-{task_id}-*.json"))
            for given in [read(path)]
        ]


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def round_of(task: Mapping[str, Any]) -> int:
    return int(task["ask"]["round_number"])
