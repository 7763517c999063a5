"""The manifest of a pool: a table that names images and may give labels, read strictly."""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pipeline.pixels import PoolError

MANIFEST_SUFFIXES = frozenset({".csv", ".parquet"})


def read_manifest(path: Path, classes: Sequence[str]) -> pd.DataFrame:
    """Distinct `uri` (absolute), `label` and `group` of a manifest, checked."""
    rows = _read_rows(path)
    if "uri" not in rows:
        raise PoolError(f"{path} needs a column uri, has {', '.join(map(str, rows.columns)) or 'no columns'}")
    rows = rows.reindex(columns=["uri", "label", "group"]).reset_index(drop=True).astype("str").replace("", None)
    _refuse(path, rows, rows["uri"].isna(), "has no uri")
    wrong = rows["label"].notna() & ~rows["label"].isin(list(classes))
    _refuse(path, rows, wrong, f"has a label that is not one of the classes {', '.join(classes)}")
    folder = path.parent.absolute()
    rows["uri"] = [os.path.normpath(folder / uri) for uri in rows["uri"]]
    groups = rows.dropna(subset=["group"]).drop_duplicates(["uri", "group"])
    _refuse(path, groups, groups["uri"].duplicated(), "gives a second group to an image")
    rows["group"] = rows["uri"].map(groups.set_index("uri")["group"]).astype("str")
    rows = rows.sort_values("label", kind="stable").drop_duplicates()
    rows = rows[rows["label"].notna() | ~rows["uri"].duplicated()].sort_index()
    _refuse(path, rows, rows["uri"].duplicated(), "gives a second label to an image")
    return rows


def _read_rows(path: Path) -> pd.DataFrame:
    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        # A class may be called "NA" or "1": only an empty field is missing, and nothing is a number.
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (OSError, ValueError) as exc:
        raise PoolError(f"cannot read the manifest {path}: {exc}") from exc


def _refuse(path: Path, rows: pd.DataFrame, wrong: "pd.Series[bool]", what: str) -> None:
    """Raise with the first wrong row, counted from 1 below the header."""
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        named = ", ".join(f"{name} {value!r}" for name, value in rows.iloc[row].dropna().items())
        raise PoolError(f"{path}: row {int(rows.index[row]) + 1} ({named}) {what}")
