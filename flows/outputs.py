"""What commands write for people: kinds of files, and never over something that is there."""

import os
from pathlib import Path

from connectors.image_folder.listing import is_below
from flows.config import ConfigError


def check_table(out: Path) -> None:
    """Raise ConfigError for a table that would not be written; a file that is there may be somebody's manifest."""
    if out.suffix.lower() not in (".csv", ".parquet"):
        raise ConfigError(f"wanted a .csv or .parquet file to write, got {out}")
    _check_absent(out)


def check_folder(out: Path, pool: Path) -> None:
    """Raise ConfigError for a folder that would not be written, or whose pictures would become images of the pool."""
    if out.suffix.lower() in (".csv", ".parquet"):
        raise ConfigError(f"wanted a folder to write, got {out}")
    _check_absent(out)
    if pool.is_dir() and is_below(os.path.realpath(out), os.path.realpath(pool)):
        raise ConfigError(f"{out} lies in the pool, whose images would be looked for in it: name a folder elsewhere")


def _check_absent(out: Path) -> None:
    if os.path.lexists(out):
        raise ConfigError(f"{out} exists already; give another name, or move it away")
