"""Where the images of a pool are: folder, object store or manifest; and the table of its files, all of them unread."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from connectors.image_folder import object_pool
from connectors.image_folder.folder_times import FolderTimes
from connectors.image_folder.listing import File, PassedOver, walk
from connectors.image_folder.manifest import MANIFEST_SUFFIXES, distinct, read_manifest, readings_in_words
from connectors.objects.addresses import is_address
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
            optionally `label` and `group`; or the address of one, as text. A manifest may name addresses, too. A
            labelled image is never in the audit set; one content under two labels is set aside.
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

    path: Path | str
    classes: Sequence[str]
    group: str | None = None
    follow_links: bool = False
    max_unused: float = 1.0
    renamed: Mapping[str, str] = field(default_factory=dict)
    asks: AskFor = ONE_CLASS
    are_open: bool = False

    @property
    def is_folder(self) -> bool:
        """Whether the images are found by a walk or a listing, and not by a manifest."""
        return self.path.is_dir() if isinstance(self.path, Path) else not object_pool.is_manifest(self.path)

    @property
    def root(self) -> Path | str:
        """The folder that paths are relative to, or its address."""
        if self.is_folder:
            return self.path
        return self.path.parent if isinstance(self.path, Path) else self.path.rpartition("/")[0]


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
    if isinstance(path, str) and source.is_folder:
        listed = map(object_pool.shown, object_pool.list_folder(path, tell))
        files = object_pool.frame(listed).assign(label=None, group=None)
    elif isinstance(path, Path) and source.is_folder:
        passed = PassedOver()
        found = walk(path, follow_links=source.follow_links, passed=passed, times=times)
        files = from_records(found, File._fields).assign(label=None, group=None)
        for line in passed.notes():
            tell(line)
    elif isinstance(path, Path) and path.suffix.lower() not in MANIFEST_SUFFIXES:
        missing = "" if path.exists() else ", which does not exist"
        raise PoolError(f"wanted a folder of images or a manifest (.csv, .parquet), got {path}{missing}")
    else:
        files = _list_manifest(source, tell, times)
    if files.empty:
        raise PoolError(f"{path} is empty: wanted at least one image")
    return typed(files)


def _list_manifest(source: PoolSource, tell: Callable[[str], None], times: FolderTimes) -> pd.DataFrame:
    if isinstance(source.path, Path):
        times.add(str(source.path), source.path.stat() if source.path.exists() else None)
    with object_pool.manifest_on_disk(source.path) as path:
        table = read_manifest(path, source.classes, source.renamed, source.asks, are_open=source.are_open)
        uris = table.rows["uri"].tolist()
        located, found = object_pool.locate_all(table, source.root, follow_links=source.follow_links)
        if isinstance(source.root, Path):
            times.add_parents((file.uri for file in located.files), os.path.normpath(source.root.absolute()))
        lost = found["modified_ns"].isna()
        has_break = [is_lost and ("\n" in uri or "\r" in uri) for uri, is_lost in zip(uris, lost, strict=True)]
        table.refuse(has_break, "holds a line break, and no file is named so", "is a quote left open?")
        for line in (*table.notes, *readings_in_words(table, "uri", located)):
            tell(line)
        return distinct(table, found)


def _with_groups(listed: pd.DataFrame, source: PoolSource) -> pd.DataFrame:
    """The listed files with the group that a rule gives to their paths; as they are without one."""
    if source.group is None:
        return listed
    if listed["group"].notna().any():
        raise PoolError(
            f"{source.path} has groups in its column group: take the setting group = {source.group!r} away, or the "
            "column"
        )
    found = listed["modified_ns"].notna()
    paths = paths_below(listed.loc[found, "uri"].tolist(), source.root)
    try:
        groups = groups_of(paths, source.group)
    except ValueError as exc:
        raise PoolError(str(exc)) from exc
    return listed.assign(group=pd.Series(groups, index=listed.index[found], dtype="str"))


def paths_below(uris: Sequence[str], root: Path | str) -> list[str]:
    """Paths and addresses as they are below a folder or its address; an address elsewhere stays as it is."""
    start = f"{os.path.normpath(root.absolute())}{os.sep}" if isinstance(root, Path) else f"{root.rstrip('/')}/"
    return [
        uri.removeprefix(start) if uri.startswith(start) or is_address(uri) else os.path.relpath(uri, start)
        for uri in uris
    ]
