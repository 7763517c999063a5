"""What Label Studio gives back, checked before anything of it is believed: projects, tasks, guesses, answers.

The server stores whatever it is sent: a choice that is a number, an answer without a result, a time in the year 1.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from connectors.label_studio.kinds.kind import Given, words
from connectors.label_studio.kinds.parts import told
from connectors.label_studio.kinds.table import kind_of
from connectors.label_studio.pages import HEIGHT, WIDTH
from pipeline.types import ONE_CLASS, Annotation, Answer, Ask, AskFor, Outcome, Region, Size

READ_FIELDS = (
    "id,data,annotations,predictions,result,was_cancelled,completed_by,lead_time,updated_at,"
    "parent_prediction,parent_annotation,score,model_version"
)
YEARS = range(2000, 2101)
LONGEST_SECONDS = 10 * 365 * 86400.0
NO_TIME = "1970-01-01T00:00:00+00:00"
"""Stands for a time that cannot be read, on an answer that cannot be used: it takes the place of no other answer."""


def _list_or_none(value: Any) -> Any:
    return value if isinstance(value, list) else []


def _dict_or_none(value: Any) -> Any:
    return value if isinstance(value, dict) else {}


def _time_or_none(value: Any) -> datetime | None:
    time = datetime.fromisoformat(value) if isinstance(value, str) and _is_time(value) else None
    return time if time is not None and time.tzinfo else None


def _text_or_none(value: Any) -> Any:
    return value if isinstance(value, str) else None


def _number_or_none(value: Any) -> Any:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) < 1e300 and math.isfinite(value) else None


def _id_or_none(value: Any) -> Any:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63 else None


def _seconds_or_none(value: Any) -> Any:
    seconds = _number_or_none(value)
    return seconds if seconds is not None and 0 <= seconds <= LONGEST_SECONDS else None


Id = Annotated[int, Field(gt=0, lt=2**63)]


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class HeldProject(_Read, extra="allow"):
    """A project that Label Studio holds; its settings are attributes as well."""

    id: Id
    title: str
    created_at: str
    task_number: int | None = None
    label_config: str = ""
    parsed_label_config: Annotated[dict[str, Any], BeforeValidator(_dict_or_none)] = {}
    model_version: Annotated[str | None, BeforeValidator(_text_or_none)] = None


class HeldStorage(_Read):
    """Where a project shows images from; Label Studio never tells the keys.

    Attributes:
        path: of a folder.
        bucket: in an object store; `container` in Azure's.
        presign_ttl: minutes.
    """

    id: Id
    title: str | None = None
    path: str | None = None
    bucket: str | None = None
    container: str | None = None
    presign: bool | None = None
    presign_ttl: int | None = None


class HeldGuess(_Read):
    """A prediction that Label Studio holds."""

    id: Id
    model_version: Annotated[str | None, BeforeValidator(_text_or_none)] = None
    score: Annotated[float | None, BeforeValidator(_number_or_none)] = None
    result: Any = None

    def shows(self, prediction: Mapping[str, Any]) -> bool:
        """Whether it is the prediction that was sent."""
        is_placed = self.score is not None and math.isclose(self.score, prediction["score"], abs_tol=1e-9)
        return is_placed and self.result == prediction["result"]


class HeldTask(_Read):
    """A task that Label Studio holds."""

    id: Id
    updated_at: Annotated[datetime | None, BeforeValidator(_time_or_none)] = None
    data: Annotated[dict[str, Any], BeforeValidator(_dict_or_none)] = {}
    annotations: Annotated[list[Any], BeforeValidator(_list_or_none)] = []
    predictions: Annotated[list[HeldGuess], BeforeValidator(lambda value: _guesses(value))] = []

    @property
    def is_answered(self) -> bool:
        """Whether anybody gave an answer of any kind, which must not be lost."""
        return bool(self.annotations)

    @property
    def item_id(self) -> str:
        """The item that its data name."""
        return str(self.data.get("item_id"))

    @property
    def size(self) -> Size | None:
        """Of the image when it was asked for, where that was noted."""
        width, height = _id_or_none(self.data.get(WIDTH)), _id_or_none(self.data.get(HEIGHT))
        return Size(width, height) if width and height else None

    def asks(self, ask: Ask) -> bool:
        """Whether its data name the item and the round of an ask."""
        return self.data.get("item_id") == ask.item_id and self.data.get("round_number") == ask.round_number


class _Stored(_Read):
    """An annotation as Label Studio stores it."""

    id: Id
    result: Any = None
    was_cancelled: Annotated[bool, BeforeValidator(bool)] = False
    completed_by: Any = None
    lead_time: Annotated[float | None, BeforeValidator(_seconds_or_none)] = None
    updated_at: Annotated[str | None, BeforeValidator(_text_or_none)] = None


def _guesses(value: Any) -> list[Any]:
    guesses = []
    for each in _list_or_none(value):
        try:
            guesses.append(HeldGuess.model_validate(each))
        except ValidationError:
            continue
    return guesses


def is_copied(annotation: Any) -> bool:
    """Whether nobody looked at the image for an answer: a guess, or another answer, was copied onto many tasks.

    The page notes how long a person took, also where the ticked guess is submitted as it is; the actions "Create
    annotations from predictions" and "Propagate annotations" note what they copied, and no time.
    """
    if not isinstance(annotation, Mapping) or annotation.get("lead_time") is not None:
        return False
    return any(_id_or_none(annotation.get(parent)) for parent in ("parent_prediction", "parent_annotation"))


def is_skip(annotation: Any) -> bool:
    """Whether an answer says that the person skipped the task."""
    return isinstance(annotation, Mapping) and bool(annotation.get("was_cancelled"))


def read_answer(
    annotation: Any,
    *,
    ask: Ask,
    task_id: int,
    classes: Sequence[str],
    emails: Mapping[int, str],
    renamed: Mapping[str, str] = MappingProxyType({}),
    asks: AskFor = ONE_CLASS,
    size: Size | None = None,
) -> Answer | None:
    """One annotation of Label Studio as an answer; what cannot be used says why.

    Args:
        annotation: as its API gives it, with `result`, `was_cancelled`, `completed_by`, `lead_time`, `updated_at`.
        emails: address by user id; a person who is not in it is named by the id.
        renamed: what a class was called -> what it is called now.
        size: of the image that was asked about, where it is known; a browser that says another one is believed.

    Returns:
        None for what has no id, so that nobody could tell it from another answer.
    """
    try:
        stored = _Stored.model_validate(annotation)
    except ValidationError:
        return None
    person = stored.completed_by.get("id") if isinstance(stored.completed_by, dict) else stored.completed_by
    known = _id_or_none(person)
    annotator = emails.get(known, f"user {known}") if known else "user unknown"
    outcome, regions, message = _judge(stored, Given(stored.result, classes, renamed, size), asks)
    updated_at = stored.updated_at
    if updated_at is None or not _is_time(updated_at):
        outcome = "invalid"
        message = f"wanted a time of change, got {words(stored.updated_at)}"
        updated_at = NO_TIME
    labelled = Annotation(ask.item_id, regions, annotator, stored.lead_time) if outcome == "labelled" else None
    return Answer(
        ask=ask,
        task_id=task_id,
        answer_id=stored.id,
        outcome=outcome,
        annotator=annotator,
        updated_at=updated_at,
        annotation=labelled,
        seconds=stored.lead_time,
        message=message,
    )


def _judge(stored: _Stored, given: Given, asks: AskFor) -> tuple[Outcome, tuple[Region, ...], str]:
    """Outcome, regions, message; other controls beside ours are ignored.

    Scores are those of a guess, which Label Studio leaves on what a person submits: they are not read.
    """
    if stored.was_cancelled:
        return "skipped", (), ""
    if not stored.result:
        return "empty", (), ""
    kind = kind_of(asks)
    regions, left_out, spoilt = kind.read(given)
    if given.says_nothing and kind.nothing is not None and (regions or left_out):
        spoilt = (*spoilt, f"{kind.nothing!r} is ticked, and there is something: take away one of them")
    if not asks.several and len(regions) > 1:
        spoilt = (*spoilt, f"wanted one {asks.kind}, got {len(regions)}")
    if spoilt or (left_out and not regions):
        return "invalid", (), told((*spoilt, *left_out))
    if not regions and not (given.says_nothing and kind.nothing is not None):
        return "empty", (), ""
    return "labelled", regions, f"left out: {told(left_out)}" if left_out else ""


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).year in YEARS
    except ValueError:
        return False
