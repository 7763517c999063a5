"""The pool table: which images there are, found by their content.

One row is one image (an item) or one file that holds no usable image:

| column | |
|---|---|
| `item_id` | hash of the file's bytes; missing where the file holds no image that can be decoded |
| `uri` | absolute path; a file that changed has a row for each content it had |
| `width`, `height` | pixels, turned upright as EXIF says; missing without an item |
| `split` | "pool" or "audit" |
| `set_aside_reason` | why the row is not used; missing where it is |
| `size_bytes`, `modified_ns` | of the file when it was read; missing where it was not |
| `label` | from a manifest; missing otherwise and for the audit set |
| `group` | which images depend on each other, see `pipeline.pool.groups`; missing where an image is on its own |
| `pages` | pages or frames of a file that holds several, of which the first is used; missing otherwise |
| `pixels` | the kind of pixels deeper than 8 bits; missing for 8 bits |
"""

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, NamedTuple

import pandas as pd
import torch

from connectors.image_folder.listing import (
    CHANGED,
    IN_AUDIT,
    NO_SUFFIX,
    NOT_BY_NAME,
    NOT_NAMED,
    PASSED_OVER,
    File,
    PassedOver,
    locate,
    stat_file,
    walk,
)
from connectors.image_folder.manifest import MANIFEST_SUFFIXES, distinct, read_manifest
from connectors.image_folder.notes import readings_in_words, unused_lines
from connectors.image_folder.strict_table import printable
from connectors.images.containers import JPEG_MAGIC, PNG_MAGIC
from connectors.images.deep_pixels import Reading
from connectors.images.pixels import (
    TOO_LARGE,
    UNREAD,
    WHOLE,
    PoolError,
    examine,
    map_in_threads,
    open_image,
    reason_of,
    without_pillow_warnings,
)
from pipeline.pool.groups import draw_groups, group_codes, groups_of
from pipeline.randomness import seeded_generator

COLUMNS = {
    "item_id": "str",
    "uri": "str",
    "width": "Int64",
    "height": "Int64",
    "split": "str",
    "set_aside_reason": "str",
    "size_bytes": "Int64",
    "modified_ns": "Int64",
    "label": "str",
    "group": "str",
    "pages": "Int64",
    "pixels": "str",
}
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
    source: Path,
    known: pd.DataFrame | None,
    *,
    audit_size: int,
    seed: int,
    classes: Sequence[str],
    group: str | None = None,
    follow_links: bool = False,
    max_unused: float = 1.0,
    reading: Reading = WHOLE,
    renamed: Mapping[str, str] = MappingProxyType({}),
    was_asked: bool = True,
    progress: Callable[[int, int], None] | None = None,
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
        source: folder, or manifest (.csv, .parquet) with a column `uri`, relative to the manifest's folder,
            and optionally `label` and `group`. A labelled image is never in the audit set; one content under two
            labels is set aside.
        known: table of an earlier call.
        audit_size: images of the audit set.
        classes: labels that a manifest may give.
        group: rule for the group of an image by its path relative to `source`, or to the manifest's folder (see
            `pipeline.pool.groups`); None for the groups of the manifest's column `group`, if there is one.
        follow_links: whether symbolic links may lead out of the folder of the images.
        max_unused: share of the images, or of those of the earlier table, above which it is an error that they
            cannot be used.
        reading: the memory that decoding may take.
        renamed: what a class was called, which a manifest may give too -> what it is called now.
        was_asked: people were asked for images of the earlier table. Until then it only spares reading files again:
            the audit set is drawn anew, and images outside of `source` are forgotten.
        progress: called with the files done and all files.
        tell: called with each line that people should read: what was read otherwise than written, passed over, or
            is there twice.

    Returns:
        The columns of the module's table, sorted by uri.

    Raises:
        PoolError: `source` is missing, empty, badly formed or without a usable image, too much of it cannot be
            used, `audit_size` leaves nothing for the pool or cannot be drawn in whole groups, or the groups are not
            those that it was drawn by.
    """
    tell = tell or (lambda _line: None)
    earlier = _as_table(pd.DataFrame(known))
    listed = _with_groups(_list_source(source, classes, renamed, follow_links, tell), source, group)
    if not was_asked:
        earlier = _typed(earlier[_is_in(earlier["uri"], listed["uri"])].assign(split=None, label=None, group=None))
    seen = _read_contents(_with_items_elsewhere(listed, earlier, source), earlier, reading, progress)
    if was_asked:
        _check_groups(seen, earlier, source, rule=group)
    table = _join(seen, earlier, is_manifest=not source.is_dir())
    _refuse_waste(source, seen, table, earlier, max_unused)
    table = _hold_out_of_audit(table)
    _tell_of_items(seen, table, tell)
    if was_asked and earlier["item_id"].notna().any():
        return table
    return _draw_audit(table, audit_size, seed)


def read_pool(path: Path) -> pd.DataFrame:
    """A pool table from its file; columns that an older version did not write are missing values."""
    return _as_table(pd.read_parquet(path))


def usable(pool: pd.DataFrame) -> pd.DataFrame:
    """Rows of the pool table that are not set aside; `item_id` is distinct among them."""
    return pool[pool["set_aside_reason"].isna()]


def set_aside_counts(pool: pd.DataFrame) -> dict[str, int]:
    """How many rows are set aside for each kind of reason, most frequent first."""
    kinds = pool["set_aside_reason"].dropna().str.split(":", n=1).str[0]
    return {str(kind): int(n) for kind, n in kinds.value_counts().items()}


# Listing: which files there are.


def _list_source(
    source: Path,
    classes: Sequence[str],
    renamed: Mapping[str, str],
    follow_links: bool,
    tell: Callable[[str], None],
) -> pd.DataFrame:
    """Files of a folder or manifest: `uri`, `size_bytes`, `modified_ns`, `set_aside_reason`, `label`, `group`."""
    if source.is_dir():
        passed = PassedOver()
        files = _frame(walk(source, follow_links=follow_links, passed=passed), File).assign(label=None, group=None)
        for line in passed.notes():
            tell(line)
    elif source.suffix.lower() not in MANIFEST_SUFFIXES:
        missing = "" if source.exists() else ", which does not exist"
        raise PoolError(f"wanted a folder of images or a manifest (.csv, .parquet), got {source}{missing}")
    else:
        files = _list_manifest(source, classes, renamed, follow_links, tell)
    if files.empty:
        raise PoolError(f"{source} is empty: wanted at least one image")
    return _typed(files)


def _list_manifest(
    source: Path,
    classes: Sequence[str],
    renamed: Mapping[str, str],
    follow_links: bool,
    tell: Callable[[str], None],
) -> pd.DataFrame:
    table = read_manifest(source, classes, renamed)
    uris = table.rows["uri"].tolist()
    found = locate(uris, source.parent, follow_links=follow_links)
    lost = [file.modified_ns is None for file in found.files]
    has_break = [is_lost and ("\n" in uri or "\r" in uri) for uri, is_lost in zip(uris, lost, strict=True)]
    table.refuse(has_break, "holds a line break, and no file is named so", "is a quote left open?")
    for line in (*table.notes, *readings_in_words(table, "uri", found)):
        tell(line)
    return distinct(table, _frame(found.files, File))


def _with_groups(listed: pd.DataFrame, source: Path, rule: str | None) -> pd.DataFrame:
    """The listed files with the group that a rule gives to their paths; as they are without one."""
    if rule is None:
        return listed
    if listed["group"].notna().any():
        raise PoolError(
            f"{source} has groups in its column group: take the setting group = {rule!r} away, or the column"
        )
    root = f"{os.path.normpath((source if source.is_dir() else source.parent).absolute())}{os.sep}"
    found = listed["modified_ns"].notna()
    paths = [
        uri.removeprefix(root) if uri.startswith(root) else os.path.relpath(uri, root) for uri in listed["uri"][found]
    ]
    try:
        groups = groups_of(paths, rule)
    except ValueError as exc:
        raise PoolError(str(exc)) from exc
    return listed.assign(group=pd.Series(groups, index=listed.index[found], dtype="str"))


def _with_items_elsewhere(listed: pd.DataFrame, earlier: pd.DataFrame, source: Path) -> pd.DataFrame:
    """The listed files and, not `listed`, where items of the earlier table were found last."""
    homes = earlier.loc[earlier["item_id"].notna(), "uri"].drop_duplicates()
    if source.is_dir():
        folder = os.path.normpath(source.absolute()) + os.sep
        # An item stays one whatever its suffix: a manifest may have named it.
        is_kept = listed["modified_ns"].notna() | ~_is_in(listed["uri"], homes)
        away = homes[~_is_in(homes, listed["uri"])]
        elsewhere = map_in_threads(stat_file, [*listed.loc[~is_kept, "uri"], *away[~away.str.startswith(folder)]])
        elsewhere += [_pass_over(stat_file(uri)) for uri in away[away.str.startswith(folder)]]
        listed = listed[is_kept]
    else:
        elsewhere = [File(uri, None, None, NOT_NAMED) for uri in homes[~_is_in(homes, listed["uri"])]]
    others = _typed(_frame(elsewhere, File).assign(label=None, group=None))
    files = pd.concat([listed, others], ignore_index=True)
    return files.assign(listed=files.index < len(listed))


def _pass_over(file: File) -> File:
    """A file of the folder that the walk did not come to."""
    return file if file.modified_ns is None else File(file.uri, None, None, PASSED_OVER)


# Reading: what the files hold.


def _read_contents(
    files: pd.DataFrame, earlier: pd.DataFrame, reading: Reading, progress: Callable[[int, int], None] | None
) -> pd.DataFrame:
    """`files` with `item_id`, `width`, `height`, reason; read only what the earlier table does not know."""
    unchanged = ["uri", "size_bytes", "modified_ns"]
    remembered = earlier.dropna(subset=["modified_ns"]).drop_duplicates(unchanged)
    remembered = remembered[[*unchanged, *_Content._fields]]
    seen = files.merge(remembered, on=unchanged, how="left", suffixes=("", "_earlier"))
    seen["set_aside_reason"] = seen.pop("set_aside_reason_earlier").fillna(seen["set_aside_reason"])
    unread = seen["item_id"].isna() & seen["set_aside_reason"].isna()
    n_before = len(seen) - int(unread.sum())

    def report(n_read: int) -> None:
        if progress is not None:
            progress(n_before + n_read, len(seen))

    items = earlier.dropna(subset=["item_id"]).set_index("item_id")
    ids = frozenset(items.index)
    report(0)
    with without_pillow_warnings():
        contents = map_in_threads(lambda uri: _examine(uri, ids, reading), seen.loc[unread, "uri"].tolist(), report)
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


def _examine(uri: str, known_ids: Collection[str], reading: Reading) -> _Content:
    """Hash and decode a file; the content of a known item is not decoded again."""
    try:
        with Path(uri).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
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
    except Exception as exc:  # a decoder raises anything when it is given any bytes
        return _Content(None, None, None, reason_of(exc))


def _refuse_other_files(file: BinaryIO) -> None:
    """Raise by its header for what is no image, which is not to be read to its end."""
    file.seek(0)
    if not file.read(len(PNG_MAGIC)).startswith((PNG_MAGIC, JPEG_MAGIC)):  # their metadata may yet be forgiven
        open_image(file)
    file.seek(0)


# Joining: what was seen with what is known.


def _join(seen: pd.DataFrame, earlier: pd.DataFrame, *, is_manifest: bool) -> pd.DataFrame:
    """The pool table: items found, items lost, and the listed files that hold no image."""
    earlier_items = earlier[earlier["item_id"].notna()]
    found = _found_items(seen, earlier_items, is_manifest=is_manifest)
    lost = earlier_items[~_is_in(earlier_items["item_id"], found["item_id"])]
    there = seen.drop_duplicates("uri").set_index("uri").loc[lost["uri"]]
    reason = there["set_aside_reason"].where(there["modified_ns"].isna(), CHANGED)
    lost = lost.assign(set_aside_reason=reason.to_numpy())
    broken = seen[seen["item_id"].isna() & seen["listed"]].assign(split="pool", label=None, group=None)
    # An item that cannot be read for now carries the reason itself.
    broken = broken[broken["modified_ns"].notna() | ~_is_in(broken["uri"], lost["uri"])]
    table = pd.concat([_as_table(part) for part in (found, lost, broken)])
    return table.sort_values(["uri", "item_id"], ignore_index=True)


def _check_groups(seen: pd.DataFrame, earlier: pd.DataFrame, source: Path, *, rule: str | None) -> None:
    """Refuse a pool whose groups are not those that the audit set was drawn by.

    A file that moved keeps its group, whatever a rule makes of its new path; a pool that moved as a whole does not,
    because the same rule would give a new frame of a film another group than the old ones have.
    """
    known = earlier.loc[earlier["item_id"].notna(), ["item_id", "group"]].fillna("")
    now = seen.loc[seen["item_id"].notna() & seen["listed"], ["item_id", "uri", "group"]].fillna("")
    both = now.merge(known, on="item_id", suffixes=("", "_before"))
    is_same = (both["group"] == both["group_before"]).groupby(both["item_id"]).transform("any")
    if rule is not None:
        if 2 * int((~is_same).sum()) > len(is_same):
            first = both[~is_same].iloc[0]
            raise PoolError(
                f"{source}: group = {rule!r} puts {first['uri']} into {first['group']!r} where it was in "
                f"{first['group_before']!r} when the audit set was drawn, and most images with it: a rule goes by the "
                "path below the pool. Set pool back to a folder, or a table in the folder, that it was drawn with; or "
                "begin another campaign: labelcycle init NEW.toml --from OLD.toml"
            )
        return
    if not is_same.all() and (known["group"] == "").all():
        raise PoolError(
            f"{source}: has groups in its column group, and people were asked before there were any: take the column "
            "away; or begin another campaign with them, which has all labels from its start: labelcycle init NEW.toml "
            "--from OLD.toml"
        )
    if not is_same.all():
        first = both[~is_same].iloc[0]
        before, after = (repr(name) if name else "no group" for name in (first["group_before"], first["group"]))
        raise PoolError(
            f"{source}: {first['uri']} was in {before} when the audit set was drawn and is in {after} now, and "
            f"{int((~is_same).sum()) - 1} more images changed theirs: the audit set was kept apart by groups. Put the "
            "column group back, or begin another campaign: labelcycle init NEW.toml --from OLD.toml"
        )


def _hold_out_of_audit(table: pd.DataFrame) -> pd.DataFrame:
    """Set the images aside that were found after the audit set was drawn, in one of its groups."""
    groups = table.loc[table["split"] == "audit", "group"].dropna().unique()
    is_late = (table["split"] == "pool") & table["item_id"].notna() & table["group"].isin(groups)
    is_late &= table["set_aside_reason"].isna()
    return table.assign(set_aside_reason=table["set_aside_reason"].mask(is_late, IN_AUDIT))


def _found_items(seen: pd.DataFrame, earlier_items: pd.DataFrame, *, is_manifest: bool) -> pd.DataFrame:
    """One row for each content that was seen; it stays at its earlier path while it is there.

    Labels are those of the manifest; a folder gives none, and takes none away. Groups stay as they were found first.
    """
    known = earlier_items[["item_id", "uri", "split", "label", "group"]]
    copies = seen[seen["item_id"].notna()].merge(known, on="item_id", how="left", suffixes=("", "_earlier"))
    copies["moved"] = copies["uri"] != copies["uri_earlier"]
    labels = copies.loc[copies["label"].notna(), ["item_id", "label"]].drop_duplicates()
    labels = labels.sort_values("label")
    disputed = labels[labels["item_id"].duplicated(keep=False)]
    reasons = disputed.groupby("item_id")["label"].agg(" and ".join).radd("labelled more than one way: ")
    items = copies.sort_values(["moved", "uri"]).drop_duplicates("item_id")
    given = items["item_id"].map(labels.drop_duplicates("item_id").set_index("item_id")["label"])
    # Copies in two groups are rare, and the first by name is the same in each run.
    groups = copies.dropna(subset=["group"]).groupby("item_id")["group"].min()
    group = items["item_id"].map(groups).astype("str")
    label = given.astype("str") if is_manifest else given.astype("str").fillna(items["label_earlier"])
    label = label.mask(_is_in(items["item_id"], disputed["item_id"]) | (items["split"] == "audit"), None)
    return items.assign(
        split=items["split"].fillna("pool"),
        label=label,
        group=items["group_earlier"].where(items["split"].notna(), group),
        set_aside_reason=items["item_id"].map(reasons),
    )


def _refuse_waste(source: Path, seen: pd.DataFrame, table: pd.DataFrame, earlier: pd.DataFrame, limit: float) -> None:
    """Raise where no image can be used, or fewer than the limit allows, now or of the earlier table's."""
    used = usable(table)["item_id"]
    reasons = "; ".join(unused_lines(table))
    if used.empty:
        raise PoolError(f"{source} has no usable image: {reasons}")
    named = seen["listed"] & ~seen["set_aside_reason"].str.startswith((NOT_BY_NAME, NO_SUFFIX), na=False)
    wasted = named & ~_is_in(seen["item_id"], used)
    mend = f"more than max_unused = {limit:g} allows. Mend them, or raise max_unused in the campaign's file"
    if wasted.sum() > limit * named.sum():
        raise PoolError(f"{source}: {wasted.sum()} of {named.sum()} images cannot be used, {mend}. {reasons}")
    before = usable(earlier)["item_id"]
    gone = before[~_is_in(before, used)]
    if len(gone) > limit * len(before):
        first = table[table["item_id"] == gone.iloc[0]].iloc[0]
        raise PoolError(
            f"{source}: {len(gone)} of the {len(before)} images of the last run cannot be used any more, {mend} for "
            f"one run if that is meant. Such as {printable(first['uri'])}: {first['set_aside_reason']}"
        )


def _tell_of_items(seen: pd.DataFrame, table: pd.DataFrame, tell: Callable[[str], None]) -> None:
    """Say which files are copies, and which labels are not used."""
    items = seen.loc[seen["listed"] & seen["item_id"].notna(), ["item_id", "uri", "label"]]
    copies = items[items["item_id"].duplicated()]
    if not copies.empty:
        copy, item_id = copies.iloc[0][["uri", "item_id"]]
        first = items.loc[items["item_id"] == item_id, "uri"].iloc[0]
        what = "1 file has" if len(copies) == 1 else f"{len(copies)} files have"
        tell(
            f"{what} the same content as another, and each content is one image: such as {printable(copy)}, which is "
            f"a copy of {printable(first)}"
        )
    audit = table.loc[(table["split"] == "audit") | (table["set_aside_reason"] == IN_AUDIT), "item_id"]
    ignored = items[items["label"].notna() & _is_in(items["item_id"], audit)]
    if not ignored.empty:
        tell(
            f"{len(ignored)} labels of the manifest are not used: their images, such as "
            f"{printable(ignored.iloc[0]['uri'])}, are in the audit set, which people label, or in one of its groups"
        )


def _draw_audit(table: pd.DataFrame, audit_size: int, seed: int) -> pd.DataFrame:
    rows = usable(table)
    labelled = rows["label"].notna()
    labelled |= rows["group"].isin(rows.loc[labelled, "group"].dropna())
    # By item id, so that neither the order nor the names of the files decide.
    candidates = rows[~labelled].sort_values("item_id")
    if audit_size and len(candidates) <= audit_size:
        whole = "are usable and have no label" if rows["group"].isna().all() else "are in groups without a label"
        raise PoolError(
            f"an audit set of {audit_size} leaves nothing for the pool: {len(candidates)} images {whole}. Lower "
            "audit_size, or add images"
        )
    groups = group_codes(candidates["group"], candidates["item_id"])
    codes = torch.arange(len(candidates)) if groups is None else groups
    is_drawn = draw_groups(codes, size=audit_size, generator=seeded_generator(seed, 0, "audit")).numpy()
    if is_drawn.sum() < audit_size / 2:
        sizes = codes.bincount()
        raise PoolError(
            f"an audit set of {audit_size} cannot be drawn in whole groups: there are {len(sizes)} without a label, of "
            f"{int(sizes.min())} to {int(sizes.max())} images. Raise audit_size, or make the groups smaller (group)"
        )
    return table.assign(split=table["split"].mask(table["item_id"].isin(candidates["item_id"][is_drawn]), "audit"))


def _as_table(rows: pd.DataFrame) -> pd.DataFrame:
    return _typed(rows.reindex(columns=list(COLUMNS)))


def _frame(records: Iterable[File | _Content], kind: type[File] | type[_Content]) -> pd.DataFrame:
    # As objects first: a column of integers with a None would become floats, which cannot tell nanoseconds apart.
    return _typed(pd.DataFrame(list(records), columns=list(kind._fields), dtype=object))


def _typed(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.astype({name: dtype for name, dtype in COLUMNS.items() if name in rows})


def _is_in(values: "pd.Series[str]", others: "pd.Series[str]") -> "pd.Series[bool]":
    """`values.isin(others)`, which takes twenty times as long while they are strings of Arrow."""
    return values.astype(object).isin(others.astype(object))
