"""Indexing a pool: which images lie in a folder or are named by a manifest, found by the content of their files.

The table that comes out is `pipeline.pool.table`; here files are found, hashed and decoded.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pandas as pd

from connectors.image_folder import object_pool
from connectors.image_folder.listing import File, PassedOver, stat_file, walk
from connectors.image_folder.manifest import MANIFEST_SUFFIXES, distinct, read_manifest, readings_in_words
from connectors.image_folder.region_cells import WrongCell, check_masks
from connectors.images.containers import JPEG_MAGIC, PNG_MAGIC
from connectors.images.decode import open_image, reason_of, without_pillow_warnings
from connectors.images.examine import examine
from connectors.images.reading import WHOLE, Reading
from connectors.images.threads import map_in_threads
from connectors.objects.addresses import is_address
from pipeline.names import printable
from pipeline.pool.audit import check_groups, draw_audit, hold_out_of_audit
from pipeline.pool.group_rules import groups_of
from pipeline.pool.merge import merge, refuse_waste
from pipeline.pool.notes import item_notes
from pipeline.pool.reasons import NOT_NAMED, PASSED_OVER, TOO_LARGE, UNREAD, PoolError, PoolUnavailable
from pipeline.pool.table import as_table, is_in, typed
from pipeline.types import ONE_CLASS, AskFor, OnProgress

MAX_BYTES = 2 * 1024**3
"""Of a file; a larger one would take minutes to read, and is refused by its size."""


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


class _Content(NamedTuple):
    """What a file holds: an image with its id and upright size, or the reason why not."""

    item_id: str | None
    width: int | None
    height: int | None
    set_aside_reason: str | None
    pages: int | None = None
    pixels: str | None = None


def index_pool(
    source: PoolSource,
    known: pd.DataFrame | None,
    *,
    audit_size: int,
    seed: int,
    reading: Reading = WHOLE,
    was_asked: bool = True,
    on_progress: OnProgress | None = None,
    tell: Callable[[str], None] | None = None,
) -> pd.DataFrame:
    """Pool table of all images of `source`, with those of an earlier table.

    A broken file gets a row with the reason and stops nothing. Of several files with the same content the
    first by path stands for all. Hidden files, folders that systems make and what labelcycle wrote are passed
    over.

    With an earlier table, a file of unchanged size and time is not read again, a moved file keeps its
    `item_id` and its split, and no item ever leaves the table: what vanished or changed is set aside, and
    used again once it is back. Items of the earlier table that lie outside of a folder stay as they are. A
    manifest is the whole truth: an image that it names no longer is set aside, and labels are those that it
    gives now.

    The audit set is drawn from the usable images without a label when the first table is made, by item id,
    whatever the order and the names of the files. It stays fixed: images found later are "pool", and a label
    that a later manifest gives to an image of the audit set is ignored, so that it is never trained on.

    Whole groups are drawn, in a random order, each that still fits: the audit set has `audit_size` images, or less
    than the smallest group that was left out fewer. A group with a label, or of more images than `audit_size`, is not
    in it. An image that is found later in one of its groups is set aside. An image keeps the group that it was found
    in first, wherever its file goes; of copies in several groups the first by name counts.

    Args:
        source: of the images.
        known: table of an earlier call.
        audit_size: images of the audit set.
        seed: that the audit set is drawn with.
        reading: the memory that decoding may take.
        was_asked: people were asked for images of the earlier table. Until then it only spares reading files again:
            the audit set is drawn anew, and images outside of `source` are forgotten.
        on_progress: called with (done, total) files.
        tell: called with each line that people should read: what was read otherwise than written, passed over, or
            is there twice.

    Returns:
        The columns of `pipeline.pool.table`, sorted by uri.

    Raises:
        PoolError: `source` is missing, empty, badly formed or without a usable image, too much of it cannot be
            used, `audit_size` leaves nothing for the pool or cannot be drawn in whole groups, or the groups are not
            those that it was drawn by.
    """
    tell, name = tell or (lambda _line: None), str(source.path)
    earlier = as_table(pd.DataFrame(known))
    listed = list_pool(source, tell)
    if not was_asked:
        earlier = typed(earlier[is_in(earlier["uri"], listed["uri"])].assign(split=None, label=None, group=None))
    seen = _read_contents(_with_items_elsewhere(listed, earlier, source), earlier, reading, on_progress)
    if was_asked:
        check_groups(seen, earlier, name, rule=source.group)
    if source.asks.kind == "mask":
        _check_masks(source.path, seen, earlier)
    table = merge(seen, earlier, is_manifest=not source.is_folder)
    refuse_waste(name, seen, table, earlier, source.max_unused)
    table = hold_out_of_audit(table)
    for line in item_notes(seen, table):
        tell(line)
    if was_asked and earlier["item_id"].notna().any():
        return table
    return draw_audit(table, audit_size, seed)


def read_pool(path: Path) -> pd.DataFrame:
    """A pool table from its file."""
    return as_table(pd.read_parquet(path))


# Listing: which files there are.


def list_pool(source: PoolSource, tell: Callable[[str], None]) -> pd.DataFrame:
    """The files of a pool, none of which is read: `uri`, size, time, `label`, `group`, the reason if one is not used.

    Raises:
        PoolError: as `index_pool`, where the listing tells.
    """
    return _with_groups(_list_source(source, tell), source)


def reason_to_set_aside(uri: str, reading: Reading = WHOLE) -> str | None:
    """Read a file as the index does; why it cannot be used, or None."""
    with without_pillow_warnings():
        return _examine(uri, (), reading).set_aside_reason


def _list_source(source: PoolSource, tell: Callable[[str], None]) -> pd.DataFrame:
    """Files of a folder or manifest: `uri`, `size_bytes`, `modified_ns`, `set_aside_reason`, `label`, `group`."""
    path = source.path
    if isinstance(path, str) and source.is_folder:
        listed = map(object_pool.shown, object_pool.list_folder(path, tell))
        files = object_pool.frame(listed).assign(label=None, group=None)
    elif isinstance(path, Path) and source.is_folder:
        passed = PassedOver()
        found = walk(path, follow_links=source.follow_links, passed=passed)
        files = _frame(found, File).assign(label=None, group=None)
        for line in passed.notes():
            tell(line)
    elif isinstance(path, Path) and path.suffix.lower() not in MANIFEST_SUFFIXES:
        missing = "" if path.exists() else ", which does not exist"
        raise PoolError(f"wanted a folder of images or a manifest (.csv, .parquet), got {path}{missing}")
    else:
        files = _list_manifest(source, tell)
    if files.empty:
        raise PoolError(f"{path} is empty: wanted at least one image")
    return typed(files)


def _list_manifest(source: PoolSource, tell: Callable[[str], None]) -> pd.DataFrame:
    with object_pool.manifest_on_disk(source.path) as path:
        table = read_manifest(path, source.classes, source.renamed, source.asks, are_open=source.are_open)
        uris = table.rows["uri"].tolist()
        located, found = object_pool.locate_all(table, source.root, follow_links=source.follow_links)
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
    paths = paths_below(listed["uri"][found].tolist(), source.root)
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


def _with_items_elsewhere(listed: pd.DataFrame, earlier: pd.DataFrame, source: PoolSource) -> pd.DataFrame:
    """The listed files and, not `listed`, where items of the earlier table were found last."""
    homes = earlier.loc[earlier["item_id"].notna(), "uri"].drop_duplicates()
    if isinstance(source.path, str) and source.is_folder:
        others = object_pool.frame(object_pool.elsewhere(listed, homes, source.path))
    elif isinstance(source.path, Path) and source.is_folder:
        folder = os.path.normpath(source.path.absolute()) + os.sep
        # An item stays one whatever its suffix: a manifest may have named it.
        is_kept = listed["modified_ns"].notna() | ~is_in(listed["uri"], homes)
        away = homes[~is_in(homes, listed["uri"])]
        elsewhere = map_in_threads(stat_file, [*listed.loc[~is_kept, "uri"], *away[~away.str.startswith(folder)]])
        elsewhere += [_pass_over(stat_file(uri)) for uri in away[away.str.startswith(folder)]]
        listed = listed[is_kept]
        others = _frame(elsewhere, File)
    else:
        others = _frame((File(uri, None, None, NOT_NAMED) for uri in homes[~is_in(homes, listed["uri"])]), File)
    files = pd.concat([listed, typed(others.assign(label=None, group=None))], ignore_index=True)
    return files.assign(listed=files.index < len(listed))


def _pass_over(file: File) -> File:
    """A file of the folder that the walk did not come to."""
    return file if file.modified_ns is None else File(file.uri, None, None, PASSED_OVER)


# Reading: what the files hold.


def _read_contents(
    files: pd.DataFrame, earlier: pd.DataFrame, reading: Reading, on_progress: OnProgress | None
) -> pd.DataFrame:
    """`files` with `item_id`, `width`, `height`, reason; read only what the earlier table does not know."""
    if "item_id" in files:
        is_stored = files["item_id"].notna()
        stored = object_pool.seen_in_store(files[is_stored], earlier, lambda uri: reason_to_set_aside(uri, reading))
        rest = _read_contents(files[~is_stored].drop(columns="item_id"), earlier, reading, on_progress)
        return pd.concat([stored, rest], ignore_index=True)
    unchanged = ["uri", "size_bytes", "modified_ns"]
    remembered = earlier.dropna(subset=["modified_ns"]).drop_duplicates(unchanged)
    remembered = remembered[[*unchanged, *_Content._fields]]
    seen = files.merge(remembered, on=unchanged, how="left", suffixes=("", "_earlier"))
    seen["set_aside_reason"] = seen.pop("set_aside_reason_earlier").fillna(seen["set_aside_reason"])
    unread = seen["item_id"].isna() & seen["set_aside_reason"].isna()
    n_before = len(seen) - int(unread.sum())

    def count(n_read: int, _n_unread: int) -> None:
        if on_progress is not None:
            on_progress(n_before + n_read, len(seen))

    items = earlier.dropna(subset=["item_id"]).set_index("item_id")
    ids = frozenset(items.index)
    count(0, len(seen) - n_before)
    with without_pillow_warnings():
        contents = map_in_threads(lambda uri: _examine(uri, ids, reading), seen.loc[unread, "uri"].tolist(), count)
    read = _frame(contents, _Content).set_index(seen.index[unread])
    for name in _Content._fields:
        seen[name] = seen[name].fillna(read[name])
    known = seen[["item_id"]].join(items[["width", "height", "pages", "pixels"]], on="item_id")
    for name in ("width", "height", "pages", "pixels"):
        seen[name] = seen[name].fillna(known[name])
    # What may be used another time is looked at again: the disk may have mended, and the limit on memory may be raised.
    not_read = seen["set_aside_reason"].str.startswith((UNREAD, TOO_LARGE), na=False)
    seen.loc[not_read, ["size_bytes", "modified_ns"]] = pd.NA
    return seen


def _check_masks(path: Path | str, seen: pd.DataFrame, earlier: pd.DataFrame) -> None:
    """Raise PoolError for the first mask that does not fit its image, of those that the earlier table does not have."""
    columns = ["item_id", "label"]
    known = set(earlier[columns].dropna().itertuples(index=False, name=None))
    for uri, item_id, label, width, height in (
        seen[["uri", *columns, "width", "height"]].dropna().itertuples(index=False, name=None)
    ):
        if (item_id, label) in known:
            continue
        try:
            check_masks(label, width, height)
        except WrongCell as exc:
            raise PoolError(f"{path}: {printable(uri)} {exc}") from exc


def _examine(uri: str, known_ids: Collection[str], reading: Reading) -> _Content:
    """Hash and decode a file; the content of a known item is not decoded again."""
    try:
        with reading.open(uri) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(0)
            if size == 0:
                return _Content(None, None, None, "empty: the file has no content")
            if size > MAX_BYTES:
                raise PoolError(f"too large: {size:,} bytes, more than {MAX_BYTES:,}")
            _refuse_other_files(file)
            item_id = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
            if item_id in known_ids:
                return _Content(item_id, None, None, None)
            seen = examine(file, reading)
            return _Content(item_id, seen.width, seen.height, None, seen.pages, seen.pixels)
    except PoolUnavailable:
        raise
    except Exception as exc:  # a decoder raises anything when it is given any bytes
        return _Content(None, None, None, reason_of(exc))


def _refuse_other_files(file: BinaryIO) -> None:
    """Raise by its header for what is no image, which is not to be read to its end."""
    file.seek(0)
    if not file.read(len(PNG_MAGIC)).startswith((PNG_MAGIC, JPEG_MAGIC)):  # their metadata may yet be forgiven
        open_image(file)
    file.seek(0)


def _frame(records: Iterable[File | _Content], kind: type[File] | type[_Content]) -> pd.DataFrame:
    # As objects first: a column of integers with a None would become floats, which cannot tell nanoseconds apart.
    return typed(pd.DataFrame(list(records), columns=list(kind._fields), dtype=object))
