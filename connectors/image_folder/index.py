"""Indexing a pool: which images lie in a folder or are named by a manifest, found by the content of their files.

The table that comes out is `pipeline.pool.table`; here files are found, hashed and decoded.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

import pandas as pd

from connectors.image_folder import object_pool
from connectors.image_folder.folder_times import FolderTimes
from connectors.image_folder.listing import NOT_UTF8, File, stat_file
from connectors.image_folder.region_cells import WrongCell, check_masks
from connectors.image_folder.source import PoolSource, list_pool
from connectors.images.containers import JPEG_MAGIC, PNG_MAGIC
from connectors.images.decode import open_image, reason_of, without_pillow_warnings
from connectors.images.examine import examine
from connectors.images.reading import WHOLE, Reading
from connectors.images.threads import map_in_threads
from pipeline.names import printable
from pipeline.pool.audit import check_groups, draw_audit, hold_out_of_audit
from pipeline.pool.columns import are_all_below, from_records, in_order, is_in
from pipeline.pool.merge import merge, refuse_waste
from pipeline.pool.notes import item_notes
from pipeline.pool.reasons import NOT_NAMED, PASSED_OVER, TOO_LARGE, UNREAD, PoolError, PoolUnavailable
from pipeline.pool.table import SAME_FILE, as_table, typed, usable
from pipeline.pool.unchanged import Unchanged, nothing, unchanged
from pipeline.types import OnProgress

CHUNK = 50_000
"""Files that are read before what they hold becomes columns."""
MAX_BYTES = 2 * 1024**3
"""Of a file; a larger one would take minutes to read, and is refused by its size."""


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
    times: FolderTimes | None = None,
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
        times: remembers the folders that were looked into; see `is_as_left`.

    Returns:
        The columns of `pipeline.pool.table`, sorted by uri.

    Raises:
        PoolError: `source` is missing, empty, badly formed or without a usable image, too much of it cannot be
            used, `audit_size` leaves nothing for the pool or cannot be drawn in whole groups, or the groups are not
            those that it was drawn by.
    """
    tell, name = tell or (lambda _line: None), str(source.path)
    earlier = as_table(pd.DataFrame(known))
    listed = list_pool(source, tell, times)
    if was_asked:
        same = unchanged(listed, earlier, is_manifest=not source.is_folder)
    else:
        earlier = typed(earlier[is_in(earlier["uri"], listed["uri"])].assign(split=None, label=None, group=None))
        same = nothing(listed, earlier)
    seen, same = _look(listed, earlier, same, source, reading, on_progress)
    rest, kept = earlier[~same.rows], earlier[same.rows]
    if was_asked:
        check_groups(seen, rest, name, rule=source.group, n_same=int(kept["item_id"].count()))
    if source.asks.kind == "mask":
        _check_masks(source.path, seen, rest)
    merged = merge(seen, rest, is_manifest=not source.is_folder)
    refuse_waste(name, seen, merged, rest, source.max_unused, kept=kept)
    table = hold_out_of_audit(in_order(pd.concat([kept, merged])) if len(merged) else kept.reset_index(drop=True))
    for line in item_notes(seen, table):
        tell(line)
    if was_asked and earlier["item_id"].notna().any():
        return table
    return draw_audit(table, audit_size, seed)


def is_as_left(table: pd.DataFrame, source: PoolSource, times: FolderTimes, reading: Reading = WHOLE) -> bool:
    """Whether indexing again would change nothing, as far as folders tell: their times are what they were.

    A look at each folder, and at each file that could not be read. Not found is a file that was written over in place,
    or that a link leads to in another folder. A store has no times of folders, and listing it costs as much as it is
    large: it counts as it was left.

    Args:
        table: the pool table.
        source: that it was made of.
        times: of the folders when it was.
        reading: the memory that decoding may take.
    """
    if isinstance(source.root, str):
        return True
    if not times.are_unchanged():
        return False
    inside = f"{os.path.normpath(source.root.absolute())}{os.sep}"
    if not are_all_below(usable(table)["uri"], inside):
        return False
    reasons = table["set_aside_reason"]
    unread = table.loc[reasons.str.startswith((UNREAD, TOO_LARGE), na=False) & (reasons != NOT_UTF8)]
    now = map_in_threads(lambda uri: reason_to_set_aside(uri, reading), unread["uri"].tolist())
    return all(before.startswith(after or "\n") for before, after in zip(unread["set_aside_reason"], now, strict=True))


def read_pool(path: Path) -> pd.DataFrame:
    """A pool table from its file."""
    return as_table(pd.read_parquet(path))


def reason_to_set_aside(uri: str, reading: Reading = WHOLE) -> str | None:
    """Read a file as the index does; why it cannot be used, or None."""
    with without_pillow_warnings():
        return _examine(uri, (), reading).set_aside_reason


def _look(
    listed: pd.DataFrame,
    earlier: pd.DataFrame,
    same: Unchanged,
    source: PoolSource,
    reading: Reading,
    on_progress: OnProgress | None,
) -> tuple[pd.DataFrame, Unchanged]:
    """What the files hold that are not the same, as `pipeline.pool.merge` takes it, and what is the same after all.

    An item that is seen among them, as of a copy, is not: all files of one content are gone through together.
    """
    files = _with_items_elsewhere(listed[~same.files], earlier[~same.rows], source, first=len(listed))
    seen = _read_contents(files, earlier, same, reading, on_progress)
    again = same.rows & is_in(earlier["item_id"], seen["item_id"]).to_numpy()
    if not again.any():
        return seen, same
    copied = same.files & again[same.places]
    rows = earlier.iloc[same.places[copied]][list(_Content._fields)].set_axis(listed.index[copied])
    more = listed[copied].drop(columns=list(_Content._fields), errors="ignore").join(rows).assign(listed=True)
    return pd.concat([seen, more]).sort_index(), same.but(again)


def _with_items_elsewhere(
    listed: pd.DataFrame, earlier: pd.DataFrame, source: PoolSource, *, first: int
) -> pd.DataFrame:
    """The listed files and, not `listed`, where items of the earlier table were found last; counted from `first` on."""
    homes = earlier.loc[earlier["item_id"].notna(), "uri"].drop_duplicates()
    if isinstance(source.path, str) and source.is_folder:
        others = object_pool.frame(object_pool.elsewhere(listed, earlier, source.path))
    elif isinstance(source.path, Path) and source.is_folder:
        folder = os.path.normpath(source.path.absolute()) + os.sep
        # An item stays one whatever its suffix: a manifest may have named it.
        is_kept = listed["modified_ns"].notna() | ~is_in(listed["uri"], homes)
        away = homes[~is_in(homes, listed["uri"])]
        elsewhere = map_in_threads(stat_file, [*listed.loc[~is_kept, "uri"], *away[~away.str.startswith(folder)]])
        elsewhere += [_pass_over(stat_file(uri)) for uri in away[away.str.startswith(folder)]]
        listed = listed[is_kept]
        others = from_records(elsewhere, File._fields)
    else:
        unnamed = [File(uri, None, None, NOT_NAMED) for uri in homes[~is_in(homes, listed["uri"])]]
        others = from_records(unnamed, File._fields)
    others = others.assign(label=None, group=None)
    others = typed(others.set_axis(pd.RangeIndex(first, first + len(others))))
    return pd.concat([listed.assign(listed=True), others.assign(listed=False)])


def _pass_over(file: File) -> File:
    """A file of the folder that the walk did not come to."""
    return file if file.modified_ns is None else File(file.uri, None, None, PASSED_OVER)


def _read_contents(
    files: pd.DataFrame, earlier: pd.DataFrame, same: Unchanged, reading: Reading, on_progress: OnProgress | None
) -> pd.DataFrame:
    """`files` with `item_id`, `width`, `height`, reason; read only what the earlier table does not know."""
    if "item_id" in files:
        is_stored = files["item_id"].notna()
        stored = object_pool.seen_in_store(files[is_stored], earlier, lambda uri: reason_to_set_aside(uri, reading))
        rest = _read_contents(files[~is_stored].drop(columns="item_id"), earlier, same, reading, on_progress)
        return pd.concat([stored, rest]).sort_index()
    key = ["uri", *SAME_FILE]
    remembered = earlier[~same.rows].dropna(subset=["modified_ns"]).drop_duplicates(key)[[*key, *_Content._fields]]
    seen = files.merge(remembered, on=key, how="left", suffixes=("", "_earlier")).set_axis(files.index)
    seen["set_aside_reason"] = seen.pop("set_aside_reason_earlier").fillna(seen["set_aside_reason"])
    unread = seen["item_id"].isna() & seen["set_aside_reason"].isna()
    n_known = int(same.files.sum()) + len(seen) - int(unread.sum())
    read = _read(seen.loc[unread, "uri"].tolist(), earlier, reading, n_known, on_progress)
    read = read.set_axis(seen.index[unread])
    for name in _Content._fields:
        seen[name] = seen[name].fillna(read[name])
    items = earlier[is_in(earlier["item_id"], seen["item_id"])].set_index("item_id")
    known = seen[["item_id"]].join(items[["width", "height", "pages", "pixels"]], on="item_id")
    for name in ("width", "height", "pages", "pixels"):
        seen[name] = seen[name].fillna(known[name])
    # What may be used another time is looked at again: the disk may have mended, and the limit on memory may be raised.
    not_read = seen["set_aside_reason"].str.startswith((UNREAD, TOO_LARGE), na=False)
    seen.loc[not_read, list(SAME_FILE)] = pd.NA
    return seen


def _read(
    uris: Sequence[str], earlier: pd.DataFrame, reading: Reading, n_known: int, on_progress: OnProgress | None
) -> pd.DataFrame:
    """What files hold, a row for each.

    Args:
        earlier: the content of its items is not decoded again, but for one that is set aside, maybe as it cannot be.
        n_known: files that need not be read.
    """
    used = earlier.loc[earlier["set_aside_reason"].isna(), "item_id"]
    known_ids = frozenset(used.dropna()) if uris else frozenset[str]()
    parts, n_files = [from_records([], _Content._fields)], n_known + len(uris)

    def count(n_read: int, _n_unread: int = 0) -> None:
        if on_progress is not None:
            on_progress(n_known + start + n_read, n_files)

    start = 0
    count(0)
    with without_pillow_warnings():
        for start in range(0, len(uris), CHUNK):
            part = uris[start : start + CHUNK]
            parts.append(
                from_records(
                    map_in_threads(lambda uri: _examine(uri, known_ids, reading), part, count), _Content._fields
                )
            )
    return pd.concat(parts[1:] or parts)


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
