"""The manifest of a pool: a table that names images and may give labels, read strictly."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from pipeline.pixels import PoolError

MANIFEST_SUFFIXES = frozenset({".csv", ".parquet"})


def read_manifest(
    path: Path, classes: Sequence[str], renamed: Mapping[str, str] = MappingProxyType({})
) -> pd.DataFrame:
    """Distinct `uri` (absolute) and `label` of a manifest, checked; `renamed` gives former names of classes theirs."""
    rows = _read_rows(path)
    if "uri" not in rows:
        raise PoolError(f"{path} needs a column uri, has {', '.join(map(str, rows.columns)) or 'no columns'}")
    rows = rows.reindex(columns=["uri", "label"]).reset_index(drop=True).astype("str").replace("", None)
    _refuse(path, rows, rows["uri"].isna(), "has no uri")
    rows["label"] = rows["label"].replace(dict(renamed))
    wrong = rows["label"].notna() & ~rows["label"].isin(list(classes))
    _refuse(path, rows, wrong, f"has a label that is not one of the classes {', '.join(classes)}")
    folder = path.parent.absolute()
    rows["uri"] = [os.path.normpath(folder / uri) for uri in rows["uri"]]
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
