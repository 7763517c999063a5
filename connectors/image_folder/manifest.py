"""The manifest of a pool: a table that names images and may give labels and groups, read strictly."""

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from connectors.image_folder.listing import Located
from connectors.image_folder.region_cells import WrongCell, checked_regions
from connectors.image_folder.strict_table import LONGEST_FIELD, StrictTable, nfc, read_strictly, trim
from pipeline.names import shorten
from pipeline.pool.reasons import PoolError
from pipeline.regions import OTHERS, PERHAPS, SEPARATOR, cell_of_labels
from pipeline.types import ONE_CLASS, AskFor

MANIFEST_SUFFIXES = frozenset({".csv", ".parquet"})
KNOWN = {
    "uri": frozenset(
        {"file", "files", "filename", "filenames", "filepath", "path", "paths", "image", "images", "img", "imagepath"}
        | {"imagefile", "imagename", "imgpath", "relpath", "fpath", "fname", "url", "urls", "source", "src", "location"}
    ),
    "label": frozenset(
        {"labels", "labelname", "class", "classes", "classname", "classlabel", "classid", "category", "categories"}
        | {"categoryname", "categoryid", "target", "targets", "groundtruth", "gt", "annotation", "y"}
    ),
    "group": frozenset({"groups", "groupid", "groupname", "groupkey"}),
}
"""Columns of a manifest, and other words that people have for them."""
OF_INDEXES = ("unnamed: 0", "__index_level_0__", "index", "level_0")
"""Names of columns that pandas writes by itself."""
SPLITS = frozenset({"split", "splits", "subset", "partition"})
TRAINED_ON = frozenset({"train", "training", "pool", "unlabelled", "unlabeled"})
HELD_BACK = frozenset({"test", "testing", "val", "valid", "validation", "dev", "holdout", "eval", "audit"})
NO_LABEL = frozenset({"na", "n/a", "nan", "null", "none", "?", "-", "unlabelled", "unlabeled", "unknown"})
N_CLASSES_NAMED = 20
LONGEST_REGIONS = 2**28
"""Characters of a label of regions: masks are long."""


def read_manifest(
    path: Path,
    classes: Sequence[str],
    renamed: Mapping[str, str] = MappingProxyType({}),
    asks: AskFor = ONE_CLASS,
    *,
    are_open: bool = False,
) -> StrictTable:
    """The rows of a manifest: `uri` as written, `label` (one of the classes) and `group`, None where there is none.

    Where an image may have several labels, a cell may hold several, as in "cat|dog", in any order; "|" alone says that
    none of the classes is there, and "cat|?" leaves open what else is. They come back in the order of the classes, each
    once. Labels of regions are JSON as `pipeline.regions` writes it; "[]" says that there is none.

    Args:
        path: of the file.
        classes: what labels may be.
        renamed: what a class was called, which labels may be too -> what it is called now.
        asks: what people are asked for, and so what a label is.
        are_open: whether a cell that names classes means the same as one with "|?" after them.

    Raises:
        PoolError: naming the file, the row and what to write.
    """
    table = read_strictly(path, KNOWN, longest=longest_label(asks))
    _refuse_labels_elsewhere(table, [*classes, *renamed])
    _refuse_splits(table)
    table.refuse(
        (not isinstance(uri, str) or not uri.strip() for uri in table.rows["uri"]),
        "has no uri",
        "name the file, or delete the row",
    )
    table = trim(trim(table, "label"), "group")
    names = {form: renamed.get(name, name) for form, name in forms_of([*renamed, *classes]).items()}
    meant: Mapping[str, str | None] = (
        _regions(table, asks, names, classes)
        if asks.kind != "image"
        else _classes(table, asks, names, classes, are_open=are_open)
    )
    label, group = table.rows["label"].map(meant), table.rows["group"].map(nfc, na_action="ignore")
    rows = table.rows[["uri"]].assign(label=label, group=group).astype(object)
    rows = rows.where(rows.notna(), None)
    return dataclasses.replace(table, rows=rows, others=(), notes=(*table.notes, *unused_columns(table)))


def longest_label(asks: AskFor) -> int:
    """Characters of a label, at most."""
    return LONGEST_FIELD if asks.kind == "image" else LONGEST_REGIONS


def _named(given: str, names: Mapping[str, str]) -> str | None:
    """The class that a text names; None for none."""
    return names.get(given) or names.get(nfc(given))


def _classes(
    table: StrictTable, asks: AskFor, names: Mapping[str, str], classes: Sequence[str], *, are_open: bool
) -> dict[str, str | None]:
    """What each label of whole images means; the first one that means nothing is refused."""
    read = (
        partial(_several, names=names, classes=classes, is_open=are_open)
        if asks.several
        else partial(_named, names=names)
    )
    meant = {cell: read(cell) for cell in table.rows["label"].dropna().unique()}
    _refuse_labels(table, meant, names, classes)
    return meant


def _regions(table: StrictTable, asks: AskFor, names: Mapping[str, str], classes: Sequence[str]) -> dict[str, str]:
    """Each label of regions by the names of the classes; the first one that is wrong is refused."""
    meant: dict[str, str] = {}
    for cell in table.rows["label"].dropna().unique():
        try:
            meant[cell] = checked_regions(cell, asks.kind, partial(_class_of, names=names, classes=classes))
        except WrongCell as exc:
            table.refuse(table.rows["label"] == cell, exc.what, exc.mend)
    return meant


def _class_of(given: str, names: Mapping[str, str], classes: Sequence[str]) -> str:
    if (name := _named(given, names)) is None:
        raise WrongCell(f"{shorten(given)}, which is not one of the classes {_listed(classes)}", _meant(given, classes))
    return name


def _several(cell: str, names: Mapping[str, str], classes: Sequence[str], *, is_open: bool) -> str | None:
    """The cell by the names and in the order of the classes; None where a part names none."""
    if cell == SEPARATOR:
        return cell
    parts = [part.strip() for part in cell.split(SEPARATOR)]
    if len(parts) > 1 and parts[-1] == PERHAPS:
        parts, is_open = parts[:-1], True
    meant = [_named(part, names) for part in parts]
    known = [name for name in meant if name is not None]
    others = [OTHERS] if is_open else []
    return cell_of_labels([*sorted(set(known), key=classes.index), *others]) if len(known) == len(meant) else None


def unused_columns(table: StrictTable) -> list[str]:
    """A line that names the columns that are not known, if there are any besides those that pandas writes."""
    names = [name for name in table.others if name.strip().casefold() not in OF_INDEXES]
    return [f"{table.path.name}: columns that are not used: {', '.join(map(shorten, names))}"] if names else []


def readings_in_words(table: StrictTable, column: str, located: Located) -> list[str]:
    """A line for each way in which names of files were read that are not there as written."""
    return [
        f"{table.path.name}: names of files are read {reading}, in {len(positions)} rows, such as "
        f"{shorten(table.rows[column].iloc[positions[0]])} in row {table.rows.index[positions[0]]}"
        for reading, positions in located.readings.items()
    ]


def forms_of(classes: Sequence[str]) -> dict[str, str]:
    """Each class by its name, in the Unicode form of `nfc`, and as tables for spreadsheets have it.

    There an apostrophe keeps a name from being taken for a formula, in front of names that begin with one as well.
    """
    safe = {f"'{name}": name for name in classes if name.lstrip("'").startswith(("=", "+", "-", "@"))}
    return safe | {nfc(name): name for name in classes} | {name: name for name in classes}


def distinct(table: StrictTable, found: pd.DataFrame) -> pd.DataFrame:
    """One row for each `uri` of `found`, the files of the table's rows, with its `label` and `group`.

    Raises:
        PoolError: a row gives a second label or group to an image.
    """
    rows = found.reset_index(drop=True).assign(
        label=table.rows["label"].to_numpy(), group=table.rows["group"].to_numpy()
    )
    if not rows["uri"].duplicated().any():
        return rows
    for name in ("label", "group"):
        given = rows.dropna(subset=[name])
        first = given.drop_duplicates("uri").set_index("uri")[name]
        other = rows[name].notna() & (rows[name] != rows["uri"].map(first))
        if other.any():
            position = int(other.to_numpy().argmax())
            same = (rows["uri"] == rows["uri"].iloc[position]) & rows[name].notna()
            earlier = int(same.to_numpy().argmax())
            table.refuse(
                other,
                f"gives a second {name} to an image",
                f"row {table.rows.index[earlier]} says {shorten(rows[name].iloc[earlier])}; keep one of the two",
            )
    given = rows.groupby("uri", sort=False)[["label", "group"]].first()
    rows = rows.drop_duplicates("uri").drop(columns=["label", "group"])
    return rows.join(given, on="uri").reset_index(drop=True)


def _refuse_labels(
    table: StrictTable, meant: Mapping[str, str | None], names: Mapping[str, str], classes: Sequence[str]
) -> None:
    labels = table.rows["label"]
    wrong = labels.notna() & labels.map(meant).isna()
    if not wrong.any():
        return
    given = labels[wrong].iloc[0]
    parts = [part.strip() for part in re.split(r"[|,;/]", given)]
    are_several = len(parts) > 1 and any(_named(part, names) for part in parts)
    given = next((part for part in parts if _named(part, names) is None), given) if are_several else given
    mend = _meant(given, classes)
    if are_several and (not given or given not in parts):
        mend = (
            f"several labels of an image have {SEPARATOR} between them, where the campaign's task takes several, and "
            "nothing else does"
        )
    elif not mend and given.casefold() in NO_LABEL:
        mend = "leave the field empty where there is no label"
    table.refuse(wrong, f"has a label that is not one of the classes {_listed(classes)}", mend)


def _listed(classes: Sequence[str]) -> str:
    more = f" and {len(classes) - N_CLASSES_NAMED} more" if len(classes) > N_CLASSES_NAMED else ""
    return ", ".join(classes[:N_CLASSES_NAMED]) + more


def _meant(given: str, classes: Sequence[str]) -> str:
    """A question for the class that a text is nearly; empty where there is none."""
    alike = [name for name in classes if name.casefold() == given.casefold()]
    alike += difflib.get_close_matches(given, classes, n=1, cutoff=0.6)
    # Letters of two alphabets may look the same.
    code = f" (not {given!a})" if not given.isascii() else ""
    return f"did you mean {shorten(alike[0])}{code}?" if alike else ""


def _refuse_labels_elsewhere(table: StrictTable, classes: Sequence[str]) -> None:
    """Raise where there is no label, and a column of another name holds nothing but names of classes."""
    if table.rows["label"].notna().any():
        return
    names = {nfc(name).casefold() for name in classes}
    for other in table.others:
        values = {nfc(value).strip().casefold() for value in table.rows[other].dropna()}
        # Numbers may count anything; all classes and nothing else are no chance.
        if values and (values == names or (values <= names and not all(value.isdecimal() for value in values))):
            raise PoolError(
                f"{table.path}: the column {shorten(other)} holds names of classes: call it label if these are the "
                "labels, or take it away"
            )


def _refuse_splits(table: StrictTable) -> None:
    """Raise where a column keeps images back for a test, which a campaign does not do as a manifest says."""
    for other in table.others:
        values = table.rows[other].map(lambda value: value.strip().casefold(), na_action="ignore")
        is_split = values.isin([*TRAINED_ON, *HELD_BACK, ""]) | values.isna()
        if other.strip().casefold() in SPLITS or (is_split.all() and values.isin(HELD_BACK).any()):
            wrong = values.notna() & ~values.isin([*TRAINED_ON, ""])
            if wrong.any():
                table.refuse(
                    wrong,
                    f"says {shorten(table.rows[other][wrong].iloc[0])} in the column {shorten(other)}",
                    "a campaign draws its audit set itself (audit_size) and uses every row; delete the rows that are "
                    "not for it, and then the column",
                )
