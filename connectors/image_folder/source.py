"""Where the images of a pool are: a folder or a manifest, and the table of its files, none of which is read."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from connectors.image_folder.folder_times import FolderTimes
from connectors.image_folder.listing import File, PassedOver, locate, walk
from connectors.image_folder.manifest import MANIFEST_SUFFIXES, distinct, read_manifest, readings_in_words
from pipeline.pool.columns import from_records
from pipeline.pool.group_rules import groups_of
from pipeline.pool.reasons import PoolError
from pipeline.pool.table import typed
from pipeline.types import ONE_CLASS, AskFor


@dataclass(frozen=True)
class PoolSource:
    """Where the images of a pool are, and what is asked of them.

    Attributes:
        path: folder, or manifest (.csv, .parquet) with a column `uri`, relative to the manifest's folder, and
            optionally `label` and `group`. A labelled image is never in the audit set; one content under two labels is
            set aside.
        classes: labels that a manifest may give.
        group: rule for the group of an image by its path relative to the folder, or to the manifest's folder (see
            `pipeline.pool.group_rules`); None for the groups of the manifest's column `group`, if there is one.
        follow_links: whether symbolic links may lead out of the folder of the images.
        max_unused: share of the images, or of those of the earlier table, above which it is an error that they
            cannot be used.
        renamed: what a class was called, which a manifest may give too -> what it is called now.
        asks: what people are asked for, and so what a label in a manifest is; see `read_manifest`.
        are_open: whether the labels of a manifest list only what is there; see `read_manifest`.
    """

    path: Path
    classes: Sequence[str]
    group: str | None = None
    follow_links: bool = False
    max_unused: float = 1.0
    renamed: Mapping[str, str] = field(default_factory=dict)
    asks: AskFor = ONE_CLASS
    are_open: bool = False

    @property
    def is_folder(self) -> bool:
        """Whether the images are found by a walk, and not by a manifest."""
        return self.path.is_dir()

    @property
    def root(self) -> Path:
        """The folder that paths are relative to."""
        return self.path if self.is_folder else self.path.parent


def list_pool(source: PoolSource, tell: Callable[[str], None], times: FolderTimes | None = None) -> pd.DataFrame:
    """The files of a pool, none of which is read: `uri`, size, time, `label`, `group`, the reason if one is not used.

    Args:
        times: remembers the folders that were looked into.

    Raises:
        PoolError: as `index_pool`, where the listing tells.
    """
    return _with_groups(_list_source(source, tell, times or FolderTimes()), source)


def _list_source(source: PoolSource, tell: Callable[[str], None], times: FolderTimes) -> pd.DataFrame:
    """Files of a folder or manifest: `uri`, `size_bytes`, `modified_ns`, `set_aside_reason`, `label`, `group`."""
    path = source.path
    if source.is_folder:
        passed = PassedOver()
        found = walk(path, follow_links=source.follow_links, passed=passed, times=times)
        files = from_records(found, File._fields).assign(label=None, group=None)
        for line in passed.notes():
            tell(line)
    elif path.suffix.lower() not in MANIFEST_SUFFIXES:
        missing = "" if path.exists() else ", which does not exist"
        raise PoolError(f"wanted a folder of images or a manifest (.csv, .parquet), got {path}{missing}")
    else:
        files = _list_manifest(source, tell, times)
    if files.empty:
        raise PoolError(f"{path} is empty: wanted at least one image")
    return typed(files)


def _list_manifest(source: PoolSource, tell: Callable[[str], None], times: FolderTimes) -> pd.DataFrame:
    times.add(str(source.path), source.path.stat() if source.path.exists() else None)
    table = read_manifest(source.path, source.classes, source.renamed, source.asks, are_open=source.are_open)
    uris = table.rows["uri"].tolist()
    found = locate(uris, source.root, follow_links=source.follow_links)
    times.add_parents((file.uri for file in found.files), os.path.normpath(source.root.absolute()))
    lost = [file.modified_ns is None for file in found.files]
    has_break = [is_lost and ("\n" in uri or "\r" in uri) for uri, is_lost in zip(uris, lost, strict=True)]
    table.refuse(has_break, "holds a line break, and no file is named so", "is a quote left open?")
    for line in (*table.notes, *readings_in_words(table, "uri", found)):
        tell(line)
    return distinct(table, from_records(found.files, File._fields))


def _with_groups(listed: pd.DataFrame, source: PoolSource) -> pd.DataFrame:
    """The listed files with the group that a rule gives to their paths; as they are without one."""
    if source.group is None:
        return listed
    if listed["group"].notna().any():
        raise PoolError(
            f"{source.path} has groups in its column group: take the setting group = {source.group!r} away, or the "
            "column"
        )
    root = f"{os.path.normpath(source.root.absolute())}{os.sep}"
    found = listed["modified_ns"].notna()
    uris = listed.loc[found, "uri"].tolist()
    paths = [uri.removeprefix(root) if uri.startswith(root) else os.path.relpath(uri, root) for uri in uris]
    try:
        groups = groups_of(paths, source.group)
    except ValueError as exc:
        raise PoolError(str(exc)) from exc
    return listed.assign(group=pd.Series(groups, index=listed.index[found], dtype="str"))
