"""Every file of a campaign and of its rounds: its name, the record or handle that it holds, how one becomes the other.

A step names artefacts by its parameters: `ROUND_ARTEFACTS` and `CAMPAIGN_ARTEFACTS` say which name means which file.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import pandas as pd
from pydantic import JsonValue, TypeAdapter, ValidationError

from connectors.image_folder.index import read_pool
from connectors.images.reading import Range
from connectors.member_files import MemberFiles
from connectors.score_files import ItemList, LabelledEmbeddings, ScoreFiles
from connectors.store import FORMAT, StoreError, check_format, read_json, write_atomic, write_json, write_table
from pipeline.evaluation.stopping import Forecast
from pipeline.labels.answers import answers_from_table, answers_to_table
from pipeline.tables import BatchTable, Labels, PoolTable, Predicted
from pipeline.types import Answer, Ask, Calibration, Finding, Metrics, Purpose

T = TypeVar("T")
Plain = dict[str, JsonValue]
"""Settings as JSON has them."""


@dataclass(frozen=True)
class Artefact(Generic[T]):
    """One file, or one folder of files, and what it holds."""

    name: str
    read: Callable[[Path], T]
    write: Callable[[Path, T], None]
    is_handle: bool = False
    """Whether it is too large to be held: steps are given it, there or not, to read and write parts of it."""


def json_of(name: str, record: type[T]) -> Artefact[T]:
    """A JSON file that holds a record."""

    @cache
    def adapter() -> TypeAdapter[T]:
        return TypeAdapter(record)

    def read(path: Path) -> T:
        try:
            return adapter().validate_python(read_json(path))
        except ValidationError as exc:
            first = exc.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise StoreError(
                f"{path} is damaged, or of another version: {where}: {first['msg']}. Bring it back from a copy of the "
                "folder"
            ) from exc

    def write(path: Path, value: T) -> None:
        write_json(path, adapter().dump_python(value, mode="json"))

    return Artefact(name, read, write)


def table_of(name: str, record: Callable[[pd.DataFrame], T], table: Callable[[T], pd.DataFrame]) -> Artefact[T]:
    """A Parquet file that holds a table."""

    def read(path: Path) -> T:
        return record(pd.read_parquet(path))

    def write(path: Path, value: T) -> None:
        write_table(path, table(value))

    return Artefact(name, read, write)


def handle_of(name: str, handle: Callable[[Path], T]) -> Artefact[T]:
    """A file or folder that is too large to be held: its maker writes it through the handle."""
    return Artefact(name, handle, lambda _path, _value: None, is_handle=True)


@dataclass(frozen=True)
class RoundConfig:
    """What a round is made with.

    Attributes:
        query_size: labels that it may ask for: what the budget leaves.
        settings: the campaign's, resolved.
        changes: what changed since the round before, a line for each setting.
    """

    round_number: int
    begun_at: str
    query_size: int
    settings: Plain
    changes: Sequence[str]

    @property
    def classes(self) -> list[str]:
        """The classes, by the names of then."""
        classes = self.settings["classes"]
        return [str(name) for name in classes] if isinstance(classes, list) else []


@dataclass(frozen=True)
class Pages:
    """The round's run in the tracker, and where people see it."""

    run_id: str
    tracker: str | None
    flow_run: str | None


@dataclass(frozen=True)
class Plan:
    """What a round trains.

    Attributes:
        phase: what it trains; `wanted` is what its labels are enough for.
        minutes: an estimate for each phase that was thought of.
        max_minutes: the campaign's limit.
        text: what people should know of it; None where there is nothing to say.
    """

    phase: str
    wanted: str
    minutes: dict[str, float]
    max_minutes: float | None
    text: str | None


@dataclass(frozen=True)
class Member:
    """One trained network; `weights` are names of files beside its record."""

    name: str
    seed: int
    weights: tuple[str, ...]
    epochs: list[dict[str, float]]
    best_epoch: int
    findings: tuple[Finding, ...]
    calibration: Calibration | None
    preprocessing: Plain


@dataclass(frozen=True)
class NetworkForm:
    """What it takes to build a round's networks again, and to read their output."""

    name: str
    image_size: int
    channels: int
    dropout: float
    head: str
    phase: str
    n_classes: int
    classes: list[str]
    pixel_ranges: tuple[Range, ...] = ()


@dataclass(frozen=True)
class MembersFinding:
    """What is wrong with the members that are named."""

    name: str
    what: str
    advice: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class Training:
    """How a round's networks were made."""

    device: str
    n_trained_on: int
    labelled_digest: str
    n_pseudo_labels: int
    pseudo_label_threshold: float
    phase: str
    plan: Plan
    preprocessing: Plain
    findings: tuple[MembersFinding, ...]
    members: tuple[Member, ...]
    model: NetworkForm

    @property
    def weights(self) -> list[str]:
        """Names of the weight files of all members, in order."""
        return [name for member in self.members for name in member.weights]


@dataclass(frozen=True)
class AuditMetrics(Metrics):
    """How good a round's model is on the audit set, with its temperatures and without them."""

    nll_uncalibrated: float = field(kw_only=True)
    ece_uncalibrated: float = field(kw_only=True)


@dataclass(frozen=True)
class ReviewedSet:
    """What the model thinks of one set of labels.

    Attributes:
        what: "labels" or "audit labels".
        share_right: of predictions by networks that have not seen them.
        n_contradicted: labels that the model contradicts; `n_contradicted_wrong` of them are wrong, on average.
        n_listed: labels that are listed as wrong; `n_wrong` of them are, on average.
    """

    what: str
    n: int
    share_right: float
    n_contradicted: int
    n_contradicted_wrong: float
    n_listed: int
    n_wrong: float


@dataclass(frozen=True)
class Review:
    """What the list of suspicious labels is worth; `text` is for people, None where nothing was judged."""

    sets: tuple[ReviewedSet, ...]
    text: str | None

    @property
    def n_listed(self) -> int:
        """Labels that are listed as wrong."""
        return sum(each.n_listed for each in self.sets)

    @property
    def n_wrong(self) -> float:
        """How many of the listed labels are wrong, on average."""
        return sum(each.n_wrong for each in self.sets)


@dataclass(frozen=True)
class Registered:
    """The round's model in the tracker."""

    run_id: str
    model_uri: str
    version: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Look:
    """How a stopping rule was asked: the number of the look, the level it may err at, where it is (None: unknown)."""

    look: int
    level: float
    now: float | None


@dataclass(frozen=True)
class Outlook:
    """What the next labels are worth, and why not to ask for them.

    Attributes:
        forecast: of accuracy, in shares; None where `no_forecast` says why.
        stop: the reason to stop; None to go on.
        looks: of each stopping rule that is on.
    """

    forecast: Forecast | None
    no_forecast: str | None
    stop: str | None
    looks: dict[str, Look]


@dataclass(frozen=True)
class Stability:
    """How much of a batch is the luck of the members' draws; None where nothing is drawn."""

    batch_kept_with_half_the_members: float | None


@dataclass(frozen=True)
class Summary:
    """The round's numbers as the tracker gets them; `step` is the number of labels paid for."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class Pushing:
    """When a push began; people may see some of the batch from then on."""

    begun_at: str


@dataclass(frozen=True)
class Pushed:
    """A batch that is with the annotators: of each item its task and what it was asked for."""

    pushed_at: str
    address: str
    tasks: dict[str, int]
    purposes: dict[str, Purpose]

    @staticmethod
    def now(address: str, task_ids: Mapping[Ask, int]) -> "Pushed":
        """The record of a push that has just been proven."""
        tasks = {ask.item_id: task_id for ask, task_id in task_ids.items()}
        purposes = {ask.item_id: ask.purpose for ask in task_ids}
        return Pushed(datetime.now(UTC).isoformat(timespec="seconds"), address, tasks, purposes)

    def of_asks(self, round_number: int) -> dict[Ask, int]:
        """The task of each ask of the round."""
        return {Ask(item_id, round_number, self.purposes[item_id]): task_id for item_id, task_id in self.tasks.items()}


@dataclass(frozen=True)
class SeenProgress:
    """How far the annotators were when a run last looked; see `connectors.annotation.Progress`."""

    n_tasks: int
    n_labelled: int
    n_set_aside: int
    seen_at: str


@dataclass(frozen=True)
class ClosedRound:
    """What a round came to."""

    round_number: int
    closed_at: str
    n_asked: int
    n_labels_paid: int
    budget_left: int
    outcomes: dict[str, int]
    metrics: AuditMetrics | None
    seconds: dict[str, float]
    run_id: str


@dataclass(frozen=True)
class PoolNotes:
    """What people should know of the pool: what stands, and what no run has told yet."""

    standing: list[str]
    untold: list[str]


@dataclass(frozen=True)
class Dependence:
    """What was said of images that depend on each other, and of which draw of the audit set."""

    audit_set: str
    notes: list[str]


@dataclass(frozen=True)
class PixelRanges:
    """What becomes black and white of each kind of deep pixels."""

    ranges: tuple[Range, ...] = ()


@dataclass(frozen=True)
class AnnotatorsPage:
    """What the annotators' page was made for."""

    url: str
    project: str
    instructions: str | None
    classes: list[str]
    renamed: list[tuple[str, str]]


@dataclass(frozen=True)
class KnownNetwork:
    """A network whose name is right, and the side in pixels of the images that its weights were trained at.

    Attributes:
        image_size: None where it was not looked up, or a factory says it.
    """

    name: str
    weights: str | None
    image_size: int | None


@dataclass(frozen=True)
class CampaignId:
    """By which a run in Prefect is known to be of this campaign."""

    id: str


def _read_settings(path: Path) -> Plain:
    held = read_json(path)
    check_format(path, held)
    return {name: value for name, value in held.items() if name != "format"}


def _write_settings(path: Path, settings: Plain) -> None:
    write_json(path, {"format": FORMAT, **settings})


CAMPAIGN: Artefact[Plain] = Artefact("campaign.json", _read_settings, _write_settings)
POOL: Artefact[PoolTable] = Artefact(
    "pool.parquet", lambda path: PoolTable(read_pool(path)), lambda path, pool: _drop(write_table(path, pool.table))
)
POOL_NOTES = json_of("pool_notes.json", PoolNotes)
PIXEL_RANGES = json_of("pixel_ranges.json", PixelRanges)
DEPENDENCE = json_of("dependence.json", Dependence)
PAGE = json_of("page.json", AnnotatorsPage)
KNOWN_NETWORK = json_of("known_network.json", KnownNetwork)
CAMPAIGN_ID = json_of("campaign.id.json", CampaignId)
"""Of a campaign."""

CONFIG = json_of("config.json", RoundConfig)
LABELLED = table_of("labelled.parquet", Labels, lambda labels: labels.table)
AUDIT = table_of("audit.parquet", Labels, lambda labels: labels.table)
PAGES = json_of("pages.json", Pages)
CANDIDATES = handle_of("candidates.parquet", ItemList)
PLAN = json_of("plan.json", Plan)
OUT_OF_FOLD = table_of("out_of_fold.parquet", Predicted, lambda found: found.table)
MEMBERS = handle_of("members", MemberFiles)
TRAINING = json_of("training.json", Training)
AUDIT_PREDICTIONS = table_of("audit_predictions.parquet", Predicted, lambda found: found.table)
METRICS: Artefact[AuditMetrics | None] = json_of("metrics.json", cast("type[AuditMetrics | None]", AuditMetrics | None))
REVIEW = json_of("review.json", Review)
SUSPICIOUS = table_of("suspicious_labels.parquet", lambda table: table, lambda table: table)
MODEL = json_of("model.json", Registered)
OUTLOOK = json_of("outlook.json", Outlook)
SCORES = handle_of("scores", ScoreFiles)
LABELLED_EMBEDDINGS = handle_of("labelled_embeddings.parquet", LabelledEmbeddings)
BATCH = table_of("batch.parquet", BatchTable, lambda batch: batch.table)
STABILITY = json_of("stability.json", Stability)
CONFUSION_TABLE: Artefact[pd.DataFrame] = Artefact(
    "confusion_matrix.csv",
    lambda path: pd.read_csv(path, index_col=0),
    lambda path, counts: _drop(write_atomic(path, lambda file: counts.to_csv(file, index_label="true class"))),
)
CONFUSION_PICTURE: Artefact[bytes] = Artefact(
    "confusion_matrix.png",
    lambda path: path.read_bytes(),
    lambda path, picture: _drop(write_atomic(path, lambda file: _drop(file.write_bytes(picture)))),
)
SUMMARY = json_of("summary.json", Summary)
PUSHING = json_of("pushing.json", Pushing)
PUSHED = json_of("pushed.json", Pushed)
PROGRESS = json_of("progress.json", SeenProgress)
NOT_USED = json_of("not_used.json", list[str])
WITHDRAWN = json_of("withdrawn.json", list[str])
ANSWERS: Artefact[list[Answer]] = Artefact(
    "annotations.parquet",
    lambda path: answers_from_table(pd.read_parquet(path)),
    lambda path, answers: _drop(write_table(path, answers_to_table(answers))),
)
ROUND = json_of("round.json", ClosedRound)
SECONDS = json_of("seconds.json", dict[str, float])
"""Of a round."""

ROUND_ARTEFACTS: dict[str, Artefact[Any]] = {
    "config": CONFIG,
    "labelled": LABELLED,
    "audit": AUDIT,
    "pages": PAGES,
    "candidates": CANDIDATES,
    "plan": PLAN,
    "out_of_fold": OUT_OF_FOLD,
    "networks": MEMBERS,
    "training": TRAINING,
    "audit_predictions": AUDIT_PREDICTIONS,
    "metrics": METRICS,
    "review": REVIEW,
    "suspicious": SUSPICIOUS,
    "registered": MODEL,
    "outlook": OUTLOOK,
    "scores": SCORES,
    "labelled_embeddings": LABELLED_EMBEDDINGS,
    "batch": BATCH,
    "stability": STABILITY,
    "summary": SUMMARY,
    "pushing": PUSHING,
    "pushed": PUSHED,
    "progress": PROGRESS,
    "not_used": NOT_USED,
    "withdrawn": WITHDRAWN,
    "answers": ANSWERS,
    "closed": ROUND,
    "seconds": SECONDS,
}
"""What a parameter of a step means."""


def _drop(_value: object) -> None:
    """Nothing, of whatever was computed."""
