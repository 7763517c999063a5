"""What commands write for people: kinds of files, and never over something that is there."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from connectors.image_folder.listing import is_below
from connectors.store import write_atomic
from flows.config import ConfigError

if TYPE_CHECKING:
    import pandas as pd


def write_rows(table: "pd.DataFrame", out: Path) -> None:
    """Write a table as its name asks for, .csv or .parquet, so that a manifest of it is read as the same rows."""
    if out.suffix.lower() == ".csv":  # with a carriage return in the end of a line, one in a name is quoted
        write_atomic(out, lambda path: table.to_csv(path, index=False, lineterminator="\r\n"))
    else:
        write_atomic(out, lambda path: table.to_parquet(path, index=False))


def check_table(out: Path) -> None:
    """Raise ConfigError for a table that would not be written; a file that is there may be somebody's manifest."""
    if out.suffix.lower() not in (".csv", ".parquet"):
        raise ConfigError(f"wanted a .csv or .parquet file to write, got {out}")
    check_absent(out)


def check_folder(out: Path, pool: Path | str) -> None:
    """Raise ConfigError for a folder that would not be written, or whose pictures would become images of the pool."""
    if out.suffix.lower() in (".csv", ".parquet"):
        raise ConfigError(f"wanted a folder to write, got {out}")
    check_absent(out)
    if isinstance(pool, Path) and pool.is_dir() and is_below(os.path.realpath(out), os.path.realpath(pool)):
        raise ConfigError(f"{out} lies in the pool, whose images would be looked for in it: name a folder elsewhere")


def check_absent(out: Path) -> None:
    """Raise ConfigError where there is something already."""
    if os.path.lexists(out):
        raise ConfigError(f"{out} exists already; give another name, or move it away")
