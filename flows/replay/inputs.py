"""What a replay reads: labels, images or ready-made features, or all of a campaign; wrong input is refused first."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from operator import not_
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from connectors.image_folder.index import index_pool
from connectors.image_folder.listing import locate
from connectors.image_folder.manifest import KNOWN as MANIFEST_COLUMNS
from connectors.image_folder.manifest import forms_of, longest_label, readings_in_words, unused_columns
from connectors.image_folder.region_cells import WrongCell, checked_regions
from connectors.image_folder.strict_table import StrictTable, nfc, read_strictly, trim
from connectors.objects.addresses import is_address
from flows.artefacts import POOL
from flows.campaign import standing_labels, task_type
from flows.config import CampaignSettings, ConfigError
from flows.folder import Campaign
from flows.ledger import read_ledger
from pipeline.names import shorten
from pipeline.pool.group_rules import check_rule, groups_of
from pipeline.pool.reasons import PoolError
from pipeline.regions import is_open
from pipeline.tables import PoolTable
from pipeline.tasks.task_type import TaskType

KNOWN = {
    "file": MANIFEST_COLUMNS["uri"] - {"file"} | {"uri"},
    "label": MANIFEST_COLUMNS["label"],
    "split": frozenset({"splits", "subset", "partition"}),
    "group": MANIFEST_COLUMNS["group"],
}
"""Columns of a labels file, and other words that people have for them."""
PICKED = (
    "The campaign's audit set has no labels, so the test images are drawn from those that a model partly picked: "
    "accuracies here are not those on the pool."
)
"""What is said where the test images are no fair sample."""


class ReplayError(ConfigError):
    """The replay cannot be done as asked; the message has what to change."""


def read_labels(
    path: Path,
    *,
    images: Path | None,
    task: TaskType,
    classes: Sequence[str] = (),
    tell: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """`file`, `label`, `uri`, `is_test` and `group` of a labels file, in its order.

    A column `split` may mark images that are only tested on, "test"; the others are "pool". A column `group` may name
    the images that depend on each other; it is empty for one that is on its own. Without `images` the files
    need not be there.

    Args:
        path: of the file.
        images: folder that the files lie in.
        task: whose labels they are.
        classes: names that labels are brought into the Unicode form of.
        tell: called with each line on what was read otherwise than written.

    Raises:
        ReplayError: naming the file, the row (counted from 1 below the header) and what is wrong there.
    """
    try:
        table = trim(
            trim(trim(read_strictly(path, KNOWN, longest=longest_label(task.asks)), "label"), "split"), "group"
        )
        if table.rows.empty:
            raise PoolError(f"{path}: has no row below its first line")
        rows = _checked(table, task, classes)
        if images is None:
            uris, notes = rows["file"].tolist(), list[str]()
        else:
            uris, notes = _find(table, images)
    except PoolError as exc:
        raise ReplayError(str(exc)) from exc
    for line in (
        *table.notes,
        *unused_columns(table),
        *notes,
        *([] if classes else _alike(classes_in(rows["label"], task))),
    ):
        if tell is not None:
            tell(line)
    return rows.assign(uri=uris).reset_index(drop=True)


def _checked(table: StrictTable, task: TaskType, classes: Sequence[str]) -> pd.DataFrame:
    """`file`, `label`, `is_test` and `group` of the rows, each of which has a label and names another file."""
    rows = table.rows
    table.refuse(rows["file"].isna() | (rows["file"].str.strip() == ""), "has no file", "name it, or delete the row")
    table.refuse(rows["label"].isna(), "has no label", "add one, or delete the row")
    table.refuse(rows["file"].duplicated(), "names a file for the second time", "delete one of the two rows")
    split = rows["split"] if rows["split"].notna().any() else pd.Series("pool", rows.index)
    table.refuse(~split.isin(["pool", "test"]), "has a split that is neither pool nor test")
    labels = rows["label"].map(_meant(table, task, forms_of(classes)))
    group = rows["group"].map(nfc, na_action="ignore")
    rows = rows[["file"]].assign(label=labels, is_test=split == "test", group=group)
    return rows.astype(dict.fromkeys(("file", "label", "group"), "str"))


def _meant(table: StrictTable, task: TaskType, names: Mapping[str, str]) -> dict[str, str]:
    """Each label as the task writes it, with names in the forms of `names` or of `nfc`; a wrong one is refused."""

    def form(name: str) -> str:
        name = name.strip()
        if not name:
            raise WrongCell("has an empty name", "name the class")
        return names.get(name) or names.get(nfc(name)) or nfc(name)

    def of_image(cell: str) -> str:
        if is_open(cell):
            raise WrongCell("leaves open what else is there", "a replay needs all labels of an image; delete the row")
        regions = [replace(one, label=form(one.label)) for one in task.read_label(cell)]
        return task.write_label(sorted(regions, key=lambda one: one.label))

    meant: dict[str, str] = {}
    for cell in table.rows["label"].unique():
        try:
            meant[cell] = of_image(cell) if task.asks.kind == "image" else checked_regions(cell, task.asks.kind, form)
        except WrongCell as exc:
            table.refuse(table.rows["label"] == cell, exc.what, exc.mend)
    return meant


def _find(table: StrictTable, images: Path) -> tuple[list[str], list[str]]:
    """Paths of the rows' files, and lines on names that are written otherwise on the disk."""
    if not images.is_dir():
        raise ReplayError(f"{images}: no such folder of images")
    names = table.rows["file"].tolist()
    located = locate(names, images.resolve(), follow_links=True)
    # Nobody has to be shown them, so that they may lie anywhere.
    is_there = [file.modified_ns is not None or Path(file.uri).is_file() for file in located.files]
    reasons = [file.set_aside_reason or "" for file, there in zip(located.files, is_there, strict=True) if not there]
    table.refuse(map(not_, is_there), f"names a file that is not in {images}", next(iter(reasons), ""))
    uris = pd.Series([file.uri for file in located.files])
    table.refuse(uris.duplicated(), "names a file for the second time", "delete one of the two rows")
    return uris.tolist(), readings_in_words(table, "file", located)


def classes_in(labels: pd.Series, task: TaskType) -> list[str]:
    """The classes that labels name, sorted."""
    return sorted({region.label for label in labels.unique() for region in task.read_label(label)})


def _alike(names: Sequence[str]) -> list[str]:
    """A line on classes whose names differ in small and capital letters alone."""
    forms: dict[str, list[str]] = {}
    for name in names:
        forms.setdefault(name.casefold(), []).append(name)
    return [f"{' and '.join(map(shorten, names))} are taken for two classes" for names in forms.values() if names[1:]]


def read_campaign_labels(settings: CampaignSettings) -> tuple[pd.DataFrame, str | None]:
    """The same columns for the images that a campaign has labels for, from its folder and its manifest.

    A label that leaves open what else is there is none here.

    The labelled part of the audit set is the test set: no model chose it.

    Returns:
        The rows, and where no audit set has labels a line on the test images, else None.
    """
    folder = Campaign(settings.folder)
    pool = folder.read(POOL) if folder.has(POOL) else PoolTable(_index(settings))
    pool = pool.renamed(settings.former_classes, settings.asks)
    ledger = read_ledger(folder, settings)
    task, standing = task_type(settings), standing_labels(pool, ledger, settings).complete
    labels = standing.table[["item_id"]].assign(label=[task.write_label(regions) for regions in standing.regions])
    table = pool.usable[["item_id", "uri", "split", "group"]].merge(labels, on="item_id")
    if table.empty:
        raise ReplayError(
            f"campaign {settings.name!r} has no labels yet: run it first, give its manifest a column label, or name "
            "a labels file with --labels"
        )
    _refuse_gone(table["uri"])
    is_test = table["split"] == "audit"
    caveat = None if is_test.any() or not ledger.answers else PICKED
    return table.drop(columns="split").rename(columns={"item_id": "file"}).assign(is_test=is_test), caveat


def _index(settings: CampaignSettings) -> pd.DataFrame:
    """The pool of a campaign that has none yet, without an audit set."""
    return index_pool(settings.pool_source, None, audit_size=0, seed=settings.seed)


def _refuse_gone(uris: Iterable[str]) -> None:
    gone = [uri for uri in uris if not is_address(uri) and not Path(uri).is_file()]
    if gone:
        raise ReplayError(f"{gone[0]}: is not there, and {len(gone) - 1} more labelled images; bring the files back")


def read_features(path: Path, n_rows: int) -> NDArray[np.float32]:
    """Ready-made features `(n_rows, D)`: a .npy array, or a .parquet of D columns or of one column of lists."""
    try:
        if path.suffix == ".npy":
            values = np.load(path)
        elif path.suffix == ".parquet":
            values = _matrix(pd.read_parquet(path))
        else:
            raise ReplayError(f"{path}: features are a .npy or a .parquet file")
        features = np.require(values, np.float32, ["C", "W"])
    except FileNotFoundError as exc:
        raise ReplayError(f"{path}: no such features file") from exc
    except (EOFError, OSError, TypeError, ValueError) as exc:
        if isinstance(exc, ReplayError):
            raise
        raise ReplayError(f"{path}: cannot be read as a table of numbers: {exc}") from exc
    _check_features(features, path, n_rows)
    return features


def _check_features(features: NDArray[np.float32], path: Path, n_rows: int) -> None:
    if features.ndim != 2 or len(features) != n_rows:
        raise ReplayError(
            f"{path}: wanted one row of features for each of the {n_rows} rows of the labels file, in its order; "
            f"got the shape {features.shape}"
        )
    if features.shape[1] == 0:
        raise ReplayError(f"{path}: rows of features need at least one number, got the shape {features.shape}")
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise ReplayError(f"{path}: row {int((~finite).argmax()) + 1} holds a value that is not finite")


def with_groups(rows: pd.DataFrame, rule: str | None) -> pd.DataFrame:
    """The rows with the groups that a rule gives to their files, checked: none is on both sides of a given test part.

    Raises:
        ReplayError: the rule is none, finds nothing or there are groups already; or a group is on both sides.
    """
    if rule is not None:
        if rows["group"].notna().any():
            raise ReplayError("the labels have a column group: leave --group out, or the column")
        try:
            groups = groups_of(rows["file"].tolist(), check_rule(rule))
        except ValueError as exc:
            told = str(exc).removeprefix("group = ")
            raise ReplayError(f"--group {told}" if told.startswith(repr(rule)) else f"--group {rule!r} {told}") from exc
        rows = rows.assign(group=pd.Series(groups, rows.index, dtype="str"))
    _refuse_groups_on_both_sides(rows)
    return rows


def _refuse_groups_on_both_sides(rows: pd.DataFrame) -> None:
    grouped = rows.dropna(subset=["group"])
    on_both = grouped.groupby("group")["is_test"].nunique()
    on_both = on_both[on_both > 1]
    if len(on_both):
        named = grouped[grouped["group"] == on_both.index[0]]
        test, pool = (named.loc[named["is_test"] == side, "file"].iloc[0] for side in (True, False))
        raise ReplayError(
            f"group {on_both.index[0]!r} has images to test on ({test}) and others ({pool}), and so have "
            f"{len(on_both) - 1} more groups: put each on one side in the column split"
        )


def count_classes(labels: pd.Series, task: TaskType, classes: Sequence[str] | None) -> tuple[str, ...]:
    """The classes, sorted, or those of a campaign in its order; fewer with labels than a campaign has are refused."""
    present = classes_in(labels, task)
    if len(present) < task.asks.fewest_classes:
        what = f"are {present[0]!r}" if present else "have no class"
        raise ReplayError(f"there is nothing to learn: all {len(labels)} labels {what}")
    unknown = sorted(set(present) - set(classes)) if classes else []
    if unknown:
        raise ReplayError(f"the labels {', '.join(unknown)} are not among the campaign's classes")
    return tuple(classes or present)


def digest_of(rows: pd.DataFrame, features: NDArray[np.float32] | None) -> str:
    """Hash of the files, labels, parts and groups in order, and of the features or the files' sizes; 32 hex digits."""
    hashed = hashlib.blake2b(digest_size=16)
    if rows["group"].notna().any():
        hashed.update(repr(rows["group"].fillna("").tolist()).encode())
    for file, label, uri, is_test in rows[["file", "label", "uri", "is_test"]].itertuples(index=False):
        size = Path(uri).stat().st_size if features is None and not is_address(uri) else 0
        hashed.update(f"{file}\0{label}\0{size}\0{is_test}\n".encode())
    if features is not None:
        hashed.update(features.data)
    return hashed.hexdigest()


def _matrix(table: pd.DataFrame) -> NDArray[np.generic]:
    if table.shape[1] == 1 and pd.api.types.is_object_dtype(table.iloc[:, 0]):
        return np.stack(table.iloc[:, 0].to_list())
    return table.to_numpy()
