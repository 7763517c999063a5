"""What is written down of a project for a backup: records of its page and tasks; who gave answers that came back."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from connectors.label_studio.reading import HeldProject, HeldTask
from connectors.store import StoreError, read_json, write_json
from pipeline.settings import Plain
from pipeline.types import Answer, Ask

KEPT = ("label_config", "expert_instruction", "show_instruction", "color", "model_version")
"""What is kept of a project beside what every project of ours has."""
RESTORED = "Restored by labelcycle from project"


class SavedAnswer(BaseModel):
    """An annotation with the person and the time that the campaign knows of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: int
    result: list[Any]
    was_cancelled: bool
    lead_time: Any
    annotator: str
    updated_at: str

    @property
    def content(self) -> str:
        """What tells one answer to a task from the others."""
        return content_of(self.model_dump())


class SavedTask(BaseModel):
    """A task with its guess.

    Attributes:
        of: the task that asks the same and stands for the ask; its own id but for doubles.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: int
    of: int
    item_id: str
    round_number: int
    data: dict[str, Any]
    prediction: dict[str, Any]
    answers: list[SavedAnswer]


class SavedPage(BaseModel):
    """A project without its tasks."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    project: int
    created_at: str
    saved_at: str
    page: dict[str, Any]

    @property
    def mark(self) -> str:
        """In the description of the project that is made of it."""
        return f"{RESTORED} {self.project} of {self.created_at}, saved {self.saved_at}"

    @property
    def done(self) -> str:
        """Likewise, as soon as all of it is there."""
        return f"{self.mark}: done"


def content_of(annotation: Mapping[str, Any]) -> str:
    """What tells one answer to a task from the others, as text."""
    result = annotation.get("result")
    told = (result if isinstance(result, list) else [], bool(annotation.get("was_cancelled")))
    return json.dumps([*told, annotation.get("lead_time")], sort_keys=True)


def save_page(held: HeldProject, now: datetime) -> Plain:
    """The record of a project; its time tells one backup from another."""
    page = {name: value for name in KEPT if (value := getattr(held, name, None)) is not None}
    saved_at = now.isoformat()
    return SavedPage(project=held.id, created_at=held.created_at, saved_at=saved_at, page=page).model_dump(mode="json")


def save_task(task: HeldTask, ask: Ask, own: int, answers: Sequence[tuple[Mapping[str, Any], Answer]]) -> Plain:
    """The record of a task.

    Args:
        own: the task that stands for the ask.
        answers: each annotation and what is read of it.
    """
    ours = [guess for guess in task.predictions if (guess.model_version or "").startswith(f"round {ask.round_number}:")]
    guess = ours[-1] if ours else None
    return SavedTask(
        task=task.id,
        of=own,
        item_id=ask.item_id,
        round_number=ask.round_number,
        data=task.data | {"item_id": ask.item_id, "round_number": ask.round_number},
        prediction={
            "model_version": guess.model_version if guess else f"round {ask.round_number}: restored",
            "score": guess.score if guess and guess.score is not None else 1.0,
            "result": guess.result if guess else [],
        },
        answers=[_saved(raw, answer) for raw, answer in answers],
    ).model_dump(mode="json")


def _saved(raw: Mapping[str, Any], answer: Answer) -> SavedAnswer:
    result = raw.get("result")
    return SavedAnswer(
        id=answer.answer_id,
        result=result if isinstance(result, list) else [],
        was_cancelled=bool(raw.get("was_cancelled")),
        lead_time=raw.get("lead_time"),
        annotator=answer.annotator,
        updated_at=answer.updated_at,
    )


class Given(BaseModel):
    """Who gave an answer that was restored, and when; `noted_at` is the time that Label Studio tells of it."""

    model_config = ConfigDict(frozen=True)

    annotator: str
    updated_at: str
    noted_at: str


class GivenAnswers:
    """Who gave the answers of a project that was restored, as Label Studio notes the time and the person of a restore.

    Args:
        file: keeps it; None to keep it in memory alone.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file

    @cached_property
    def known(self) -> dict[int, Given]:
        """By the id of the answer."""
        if self._file is None or not self._file.exists():
            return {}
        try:
            return TypeAdapter(dict[int, Given]).validate_python(read_json(self._file))
        except ValidationError as exc:
            raise StoreError(f"{self._file} is damaged. Bring it back from a backup") from exc

    def keep(self, known: Mapping[int, Given]) -> None:
        """Know these from now on."""
        self.known = dict(known)
        if self._file is not None:
            write_json(self._file, TypeAdapter(dict[int, Given]).dump_python(self.known, mode="json"))

    def present(self, answer: Answer) -> Answer:
        """The answer with the person who gave it and, where nobody changed it since, the time when."""
        given = self.known.get(answer.answer_id)
        if given is None:
            return answer
        named = answer.annotation and replace(answer.annotation, annotator=given.annotator)
        time = given.updated_at if answer.updated_at == given.noted_at else answer.updated_at
        return replace(answer, annotator=given.annotator, updated_at=time, annotation=named)
