"""Every file of a campaign and of its rounds: its name, the record or handle that it holds, how one becomes the other.

A step names artefacts by its parameters: `ROUND_ARTEFACTS` and `CAMPAIGN_ARTEFACTS` say which name means which file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import pandas as pd
from pydantic import TypeAdapter, ValidationError

from connectors.image_folder.index import read_pool
from connectors.member_files import MemberFiles
from connectors.score_files import ItemList, LabelledEmbeddings, ScoreFiles
from connectors.store import FORMAT, StoreError, check_format, read_json, write_atomic, write_json, write_table
from flows.records import (
    AnnotatorsPage,
    AuditMetrics,
    CampaignId,
    ClosedRound,
    Dependence,
    KnownNetwork,
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
from pipeline.labels.answers import answers_from_table, answers_to_table
from pipeline.settings import Plain
from pipeline.tables import BatchTable, Guesses, Labels, PoolTable, Predicted
from pipeline.types import Answer

T = TypeVar("T")


@dataclass(frozen=True)
class Artefact(Generic[T]):
    """One file, or one folder of files, and what it holds."""

    name: str
    read: Callable[[Path], T]
    write: Callable[[Path, T], None]
    is_handle: bool = False
    """Whether it is too large to be held: steps are given it, there or not, to read and write parts of it."""


AnyArtefact = Artefact[Any]
"""One of those that hold different records."""


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
GUESSES = table_of("guesses.parquet", Guesses, lambda guesses: guesses.table)
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
