"""Every file of a campaign and of its rounds: its name, the record or handle that it holds, how one becomes the other.

A step names artefacts by its parameters: `ROUND_ARTEFACTS` has the artefact of each name.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar, cast, get_args

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import TypeAdapter, ValidationError

from connectors.image_folder.folder_times import FolderTimes
from connectors.image_folder.index import read_pool
from connectors.member_files import MemberFiles
from connectors.score_files import ItemList, LabelledEmbeddings, ScoreFiles
from connectors.store import FORMAT, Damaged, check_format, read_json, write_atomic, write_json, write_table
from flows.records import (
    AnnotatorsPage,
    AuditMetrics,
    CampaignId,
    ClosedRound,
    Collected,
    Dependence,
    DrawnAudit,
    KnownNetwork,
    Notified,
    Outlook,
    Pages,
    PixelRanges,
    Plan,
    PoolNotes,
    Pushed,
    Pushing,
    Registered,
    Review,
    RoundConfig,
    SeenProgress,
    Stability,
    Summary,
    Training,
)
from pipeline.labels.answers import answers_from_columns, answers_to_table
from pipeline.settings import Plain
from pipeline.tables import BatchTable, Guesses, Labels, PoolTable, Predicted, Rows
from pipeline.types import Answer

T = TypeVar("T")
R = TypeVar("R", bound=Rows)


@dataclass(frozen=True)
class Artefact(Generic[T]):
    """One file, or one folder of files.

    Attributes:
        holds: what stands in it, for docs/reference/campaign-folder.md; `keys` are those of a JSON record.
        is_handle: whether it is too large to be held; a step gets it, there or not, and reads and writes parts of it.
        goes: which of it is removed of old rounds, and by which rule; empty where it stays for ever.
    """

    name: str
    holds: str
    read: Callable[[Path], T]
    write: Callable[[Path, T], None]
    is_handle: bool = False
    keys: tuple[str, ...] = ()
    goes: str = ""


AnyArtefact = Artefact[Any]
"""An artefact of any record."""


def json_of(name: str, record: type[T], holds: str | None = None) -> Artefact[T]:
    """A JSON file that holds a record; without `holds` the first line of the record's docstring describes it."""
    kind = next((one for one in (record, *get_args(record)) if is_dataclass(one)), None)
    caption = (kind.__doc__ or "").strip().partition("\n")[0].removesuffix(".")
    keys = tuple(each.name for each in fields(kind)) if kind else ()

    @cache
    def adapter() -> TypeAdapter[T]:
        return TypeAdapter(record)

    def read(path: Path) -> T:
        try:
            return adapter().validate_python(read_json(path))
        except ValidationError as exc:
            first = exc.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise Damaged(path, f"{where}: {first['msg']}; or it is of another version") from exc

    def write(path: Path, value: T) -> None:
        write_json(path, adapter().dump_python(value, mode="json"))

    return Artefact(name, holds or caption, read, write, keys=keys)


def rows_of(name: str, record: type[R], holds: str) -> Artefact[R]:
    """A Parquet file that holds a table whose columns are attributes."""

    def read(path: Path) -> R:
        return record(pd.read_parquet(path))

    def write(path: Path, rows: R) -> None:
        write_table(path, rows.table)

    return Artefact(name, holds, read, write)


def handle_of(name: str, handle: Callable[[Path], T], holds: str, *, goes: str = "") -> Artefact[T]:
    """A file or folder that is too large to be held: its maker writes it through the handle."""
    return Artefact(name, holds, handle, lambda _path, _value: None, is_handle=True, goes=goes)


def _read_settings(path: Path) -> Plain:
    held = read_json(path)
    check_format(path, held)
    return {name: value for name, value in held.items() if name != "format"}


def _write_settings(path: Path, settings: Plain) -> None:
    write_json(path, {"format": FORMAT, **settings})


CAMPAIGN: Artefact[Plain] = Artefact(
    "campaign.json", "The settings of the last run, and the format of the folder", _read_settings, _write_settings
)
POOL: Artefact[PoolTable] = Artefact(
    "pool.parquet",
    "A row for each file: content, path, part (pool or audit), label, group, and the reason if it is not used",
    lambda path: PoolTable(read_pool(path)),
    lambda path, pool: _drop(write_table(path, pool.table)),
)
POOL_FOLDERS: Artefact[FolderTimes] = Artefact(
    "pool_folders.parquet",
    "The folders of the pool with their times when a run last looked at all files",
    FolderTimes.read,
    lambda path, times: _drop(write_atomic(path, times.write)),
)
POOL_NOTES = json_of("pool_notes.json", PoolNotes)
PIXEL_RANGES = json_of("pixel_ranges.json", PixelRanges)
DEPENDENCE = json_of("dependence.json", Dependence)
PAGE = json_of("page.json", AnnotatorsPage)
KNOWN_NETWORK = json_of("known_network.json", KnownNetwork)
CAMPAIGN_ID = json_of("campaign.id.json", CampaignId)
DRAWN_AUDIT = json_of("drawn_audit.json", DrawnAudit)
NOTIFIED = json_of("notified.json", Notified)
WHOLE_ROUNDS = json_of(
    "whole_rounds.json",
    dict[str, str],
    "The closed rounds whose files were found whole, with a digest of the names, sizes and times of then",
)
"""Of a campaign."""

CONFIG = json_of("config.json", RoundConfig)
LABELLED = rows_of("labelled.parquet", Labels, "The labels that the round learns from")
AUDIT = rows_of("audit.parquet", Labels, "The labels that the round's model is measured on")
PAGES = json_of("pages.json", Pages)
CANDIDATES = handle_of("candidates.parquet", ItemList, "The images that the round may ask for")
PLAN = json_of("plan.json", Plan)
OUT_OF_FOLD = rows_of("out_of_fold.parquet", Predicted, "Predictions of labels by networks that have not seen them")
MEMBERS = handle_of(
    "members",
    MemberFiles,
    "The networks: a record and weights for each, and the trunk that they share",
    goes="the weights, by `keep.models`; not those of the best round",
)
TRAINING = json_of("training.json", Training)
AUDIT_PREDICTIONS = rows_of("audit_predictions.parquet", Predicted, "What the model predicts on the audit set")
METRICS: Artefact[AuditMetrics | None] = json_of("metrics.json", cast("type[AuditMetrics | None]", AuditMetrics | None))
REVIEW = json_of("review.json", Review)
SUSPICIOUS: Artefact[pd.DataFrame] = Artefact(
    "suspicious_labels.parquet",
    "Labels that are probably wrong, the likeliest first",
    pd.read_parquet,
    lambda path, table: _drop(write_table(path, table)),
)
MODEL = json_of("model.json", Registered)
OUTLOOK = json_of("outlook.json", Outlook)
SCORES = handle_of(
    "scores",
    ScoreFiles,
    "Scores and guesses of the candidates in their order, a file for each part; until the batch is chosen, beside it "
    "what only choosing reads",
    goes="by `keep.scores`",
)
LABELLED_EMBEDDINGS = handle_of(
    "labelled_embeddings.parquet",
    LabelledEmbeddings,
    "Where the labelled images lie among the others, by the networks",
    goes="by `keep.scores`",
)
GUESSES = rows_of(
    "guesses.parquet", Guesses, "What the model sees in each image of the batch, as regions with their probability"
)
BATCH = rows_of("batch.parquet", BatchTable, "The images asked for, most wanted first, with reason and guess")
STABILITY = json_of("stability.json", Stability)
CONFUSION_TABLE: Artefact[pd.DataFrame] = Artefact(
    "confusion_matrix.csv",
    "How often each class was taken for each other, as a table; rows are true classes",
    lambda path: pd.read_csv(path, index_col=0),
    lambda path, counts: _drop(write_atomic(path, lambda file: counts.to_csv(file, index_label="true class"))),
)
CONFUSION_PICTURE: Artefact[bytes] = Artefact(
    "confusion_matrix.png",
    "The same as a picture",
    lambda path: path.read_bytes(),
    lambda path, picture: _drop(write_atomic(path, lambda file: _drop(file.write_bytes(picture)))),
)
SUMMARY = json_of("summary.json", Summary)
PUSHING = json_of("pushing.json", Pushing)
PUSHED = json_of("pushed.json", Pushed)
PROGRESS = json_of("progress.json", SeenProgress)
NOT_USED = json_of("not_used.json", list[str], "Lines on answers that are not used")
WITHDRAWN = json_of("withdrawn.json", list[str], "Images whose task was deleted before it was answered")
ANSWERS: Artefact[list[Answer]] = Artefact(
    "annotations.parquet",
    "The answers that are new, changed or withdrawn since the last round closed",
    lambda path: answers_from_columns(_columns_of(path)),
    lambda path, answers: _drop(write_table(path, answers_to_table(answers))),
)
COLLECTED = json_of("collected.json", Collected)
ROUND = json_of("round.json", ClosedRound)
SECONDS = json_of("seconds.json", dict[str, float], "Seconds that each step of the round took")
"""Of a round."""

CAMPAIGN_ARTEFACTS: tuple[AnyArtefact, ...] = (
    *(CAMPAIGN, CAMPAIGN_ID, POOL, POOL_FOLDERS, POOL_NOTES, DRAWN_AUDIT, DEPENDENCE, PIXEL_RANGES, KNOWN_NETWORK),
    *(PAGE, NOTIFIED, WHOLE_ROUNDS),
)
ROUND_ARTEFACTS: dict[str, AnyArtefact] = {
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
    "guesses": GUESSES,
    "batch": BATCH,
    "stability": STABILITY,
    "confusion_table": CONFUSION_TABLE,
    "confusion_picture": CONFUSION_PICTURE,
    "summary": SUMMARY,
    "pushing": PUSHING,
    "pushed": PUSHED,
    "progress": PROGRESS,
    "not_used": NOT_USED,
    "withdrawn": WITHDRAWN,
    "answers": ANSWERS,
    "collected": COLLECTED,
    "closed": ROUND,
    "seconds": SECONDS,
}
"""What a parameter of a step means."""


def _columns_of(path: Path) -> dict[str, list[Any]]:
    """The columns of a small table, in a tenth of the time that pandas takes."""
    columns: dict[str, list[Any]] = (
        pq.ParquetFile(pa.BufferReader(path.read_bytes())).read(use_threads=False).to_pydict()
    )
    return columns


def _drop(_value: object) -> None:
    """Return nothing, for writers that return a path."""
