"""The campaign folder: write-once files, each written whole or not at all."""

import json
import os
import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import filelock
import pandas as pd

ROUND_NAME = re.compile(r"\d{4,}")


class CampaignBusy(Exception):
    """Another process works on the campaign."""


class CampaignChanged(Exception):
    """The configuration would mix two experiments in one campaign folder.

    Attributes:
        settings: the names of those that changed.
    """

    def __init__(self, message: str, settings: Collection[str] = ()) -> None:
        super().__init__(message)
        self.settings = settings


def write_atomic(path: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary file beside `path`, then rename it: `path` is never seen half written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
    os.close(handle)
    try:
        write(Path(temporary))
        with Path(temporary).open("rb") as written:
            os.fsync(written.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def write_json(path: Path, value: Any) -> Path:
    """Write `value` as indented JSON, atomically; not-a-number is refused."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> Path:
    """Write `text` as UTF-8, atomically."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    return write_atomic(path, write)


def write_table(path: Path, table: pd.DataFrame) -> Path:
    """Write a table as Parquet, atomically."""
    return write_atomic(path, lambda temporary: table.to_parquet(temporary, index=False))


def read_json(path: Path) -> Any:
    """Read what `write_json` wrote."""
    return json.loads(path.read_text(encoding="utf-8"))


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values under dotted names.

    >>> flatten({"name": "pets", "model": {"channels": 3}})
    {'name': 'pets', 'model.channels': 3}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


class RoundFolder:
    """The artefacts of one round; one that exists is a step that is done."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = int(path.name)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def has(self, name: str) -> bool:
        """Whether the artefact is there; it is never there in part."""
        return (self.path / name).exists()

    @property
    def is_closed(self) -> bool:
        """Whether the round's labels are in and counted."""
        return self.has("round.json")


class Campaign:
    """One campaign's folder.

    Args:
        path: a folder on a local or shared disk; made when first written to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def pool(self) -> Path:
        """The pool table."""
        return self.path / "pool.parquet"

    @property
    def pool_notes(self) -> Path:
        """What people should know of the pool, and what of it no run has told yet."""
        return self.path / "pool_notes.json"

    def round(self, number: int) -> RoundFolder:
        """The folder of one round, whether it exists or not."""
        return RoundFolder(self.path / "rounds" / f"{number:04d}")

    def rounds(self) -> list[RoundFolder]:
        """The rounds that have begun, oldest first."""
        folder = self.path / "rounds"
        names = sorted(p.name for p in folder.iterdir() if ROUND_NAME.fullmatch(p.name)) if folder.is_dir() else []
        return [RoundFolder(folder / name) for name in sorted(names, key=int)]

    def claim(
        self,
        configuration: Mapping[str, Any],
        *,
        may_change: Collection[str] | None,
        defaults: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Write the configuration, or refuse one that differs from the written one in more than `may_change`.

        A setting that only one of them knows came or went with a version of labelcycle, not of the campaign.

        Args:
            may_change: names, of a nested setting with a dot, `section.key`; with None every setting may change.
            defaults: by such names, what a setting is taken to be that the written configuration does not know yet.

        Raises:
            CampaignChanged: with each changed setting, its old and its new value.
        """
        path = self.path / "campaign.json"
        if path.exists() and may_change is not None:
            written = read_json(path)
            after = flatten(configuration)
            before = {**defaults, **flatten(written)}
            known = before.keys() & after.keys()
            changed = sorted(key for key in known - set(may_change) if before[key] != after[key])
            if changed:
                changes = "; ".join(f"{key}: {before[key]!r} -> {after[key]!r}" for key in changed)
                raise CampaignChanged(
                    f"{self.path} holds another experiment: {changes}. "
                    "Give the changed campaign a name of its own, or set the values back.",
                    changed,
                )
            if written == configuration:
                return
        write_json(path, configuration)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep every other process from working on the campaign; a killed process gives the lock back.

        Raises:
            CampaignBusy: at once, when another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.path / "campaign.lock")
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout as exc:
            holder = self._read_holder()
            raise CampaignBusy(f"{self.path} is being worked on by {holder}; try again when it has ended") from exc
        try:
            write_json(self.path / "campaign.lock.json", {"pid": os.getpid()})
            yield
        finally:
            lock.release()

    def _read_holder(self) -> str:
        try:
            return f"process {read_json(self.path / 'campaign.lock.json')['pid']}"
        except (OSError, ValueError, KeyError):
            return "another process"
