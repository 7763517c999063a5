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
| `group` | which images depend on each other, see `pipeline.groups`; missing where an image is on its own |
"""

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch

from pipeline.groups import draw_groups, group_codes, groups_of
from pipeline.listing import File, stat_file, walk
from pipeline.manifest import MANIFEST_SUFFIXES, read_manifest
from pipeline.pixels import (
    UNREAD,
    PoolError,
    decode,
    map_in_threads,
    open_image,
    reason_of,
    to_eight_bits,
    without_pillow_warnings,
)
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
}
CHANGED = "file changed since it was indexed"
IN_AUDIT = "of a group in the audit set: found later, and not to be trained on"


class _Content(NamedTuple):
    """What a file holds: an image with its id and upright size, or the reason why not."""

    item_id: str | None
    width: int | None
    height: int | None
    set_aside_reason: str | None


def index_pool(
    source: Path,
    known: pd.DataFrame | None,
    *,
    audit_size: int,
    seed: int,
    classes: Sequence[str],
    group: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Pool table of all images of `source`, with those of an earlier table.

    A broken file gets a row with the reason and stops nothing. Of several files with the same content the
    first by path stands for all. Folders behind symbolic links are entered, each once; hidden files are
    passed over.

    With an earlier table, a file of unchanged size and time is not read again, a moved file keeps its
    `item_id` and its split, and no item ever leaves the table: what vanished or changed is set aside, and
    used again once it is back. Items of the earlier table that lie outside of `source` stay as they are.

    The audit set is drawn from the usable images without a label when the first table is made, by item id,
    whatever the order and the names of the files. It stays fixed: images found later are "pool", and a label
    that a later manifest gives to an image of the audit set is ignored, so that it is never trained on.

    Whole groups are drawn, in a random order, each that still fits: the audit set has `audit_size` images, or less
    than the smallest group that was left out fewer. A group with a label, or of more images than `audit_size`, is not
    in it. An image that is found later in one of its groups is set aside. An image keeps the group that it was found
    in first, wherever its file goes; of copies in several groups the first by path counts.

    Args:
        source: folder, or manifest (.csv, .parquet) with a column `uri`, relative to the manifest's folder,
            and optionally `label`. A labelled image is never in the audit set; one content under two labels
            is set aside.
        known: table of an earlier call.
        audit_size: images of the audit set.
        classes: labels that a manifest may give.
        group: rule for the group of an image by its path relative to `source`, or to the manifest's folder (see
            `pipeline.groups`); None for the groups of the manifest's column `group`, if there is one.
        progress: called with the files done and all files.

    Returns:
        The columns of the module's table, sorted by uri.

    Raises:
        PoolError: `source` is missing, empty, badly formed or without a usable image, `audit_size` leaves
            nothing for the pool or cannot be drawn in whole groups, or the groups are not those that it was drawn by.
    """
    earlier = _as_table(pd.DataFrame(known))
    listed = _with_groups(_list_source(source, classes), source, group)
    seen = _read_contents(_with_items_elsewhere(listed, earlier), earlier, progress)
    if group is None:
        _check_groups(seen, earlier, source)
    table = _hold_out_of_audit(_join(seen, earlier))
    if usable(table).empty:
        raise PoolError(f"{source} has no usable image: {_in_words(set_aside_counts(table))}")
    if earlier["item_id"].notna().any():
        return table
    return _draw_audit(table, audit_size, seed)


def usable(pool: pd.DataFrame) -> pd.DataFrame:
    """Rows of the pool table that are not set aside; `item_id` is distinct among them."""
    return pool[pool["set_aside_reason"].isna()]


def set_aside_counts(pool: pd.DataFrame) -> dict[str, int]:
    """How many rows are set aside for each kind of reason, most frequent first."""
    kinds = pool["set_aside_reason"].dropna().str.split(":", n=1).str[0]
    return {str(kind): int(n) for kind, n in kinds.value_counts().items()}


# Listing: which files there are.


def _list_source(source: Path, classes: Sequence[str]) -> pd.DataFrame:
    """Files of a folder or manifest: `uri`, `size_bytes`, `modified_ns`, `set_aside_reason`, `label`, `group`."""
    if source.is_dir():
        files = _frame(walk(source), File).assign(label=None, group=None)
    elif source.suffix.lower() not in MANIFEST_SUFFIXES:
        missing = "" if source.exists() else ", which does not exist"
        raise PoolError(f"wanted a folder of images or a manifest (.csv, .parquet), got {source}{missing}")
    else:
        rows = read_manifest(source, classes)
        files = _frame(map_in_threads(stat_file, rows["uri"].tolist()), File)
        files = files.assign(label=rows["label"].to_numpy(), group=rows["group"].to_numpy())
    if files.empty:
        raise PoolError(f"{source} is empty: wanted at least one image")
    return _typed(files)


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


def _with_items_elsewhere(listed: pd.DataFrame, earlier: pd.DataFrame) -> pd.DataFrame:
    """The listed files and, not `listed`, where items of the earlier table were found last."""
    homes = earlier.loc[earlier["item_id"].notna(), "uri"].drop_duplicates()
    # An item stays one whatever its suffix: a manifest may have named it.
    listed = listed[listed["modified_ns"].notna() | ~listed["uri"].isin(homes)]
    elsewhere = map_in_threads(stat_file, homes[~homes.isin(listed["uri"])].tolist())
    others = _typed(_frame(elsewhere, File).assign(label=None, group=None))
    files = pd.concat([listed, others], ignore_index=True)
    return files.assign(listed=files.index < len(listed))


# Reading: what the files hold.


def _read_contents(
    files: pd.DataFrame, earlier: pd.DataFrame, progress: Callable[[int, int], None] | None
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
        contents = map_in_threads(lambda uri: _examine(uri, ids), seen.loc[unread, "uri"].tolist(), report)
    read = _frame(contents, _Content).set_index(seen.index[unread])
    for name in _Content._fields:
        seen[name] = seen[name].fillna(read[name])
    for name in ("width", "height"):
        seen[name] = seen[name].fillna(seen["item_id"].map(items[name]))
    not_read = seen["set_aside_reason"].str.startswith(UNREAD, na=False)
    seen.loc[not_read, ["size_bytes", "modified_ns"]] = pd.NA
    return seen


def _examine(uri: str, known_ids: Collection[str]) -> _Content:
    """Hash and decode a file; the content of a known item is not decoded again."""
    try:
        with Path(uri).open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return _Content(None, None, None, "empty: the file has no content")
            item_id = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
            if item_id in known_ids:
                return _Content(item_id, None, None, None)
            image = open_image(file)
            width, height = image.size
            orientation, _ = decode(image, at_least=1)
            to_eight_bits(image.crop((0, 0, 1, 1)), channels=1)
            return _Content(item_id, *((height, width) if orientation >= 5 else (width, height)), None)
    except Exception as exc:  # a decoder raises anything when it is given any bytes
        return _Content(None, None, None, reason_of(exc))


# Joining: what was seen with what is known.


def _join(seen: pd.DataFrame, earlier: pd.DataFrame) -> pd.DataFrame:
    """The pool table: items found, items lost, and the listed files that hold no image."""
    earlier_items = earlier[earlier["item_id"].notna()]
    found = _found_items(seen, earlier_items)
    lost = earlier_items[~earlier_items["item_id"].isin(found["item_id"])]
    there = seen.drop_duplicates("uri").set_index("uri").loc[lost["uri"]]
    reason = there["set_aside_reason"].where(there["modified_ns"].isna(), CHANGED)
    lost = lost.assign(set_aside_reason=reason.to_numpy())
    broken = seen[seen["item_id"].isna() & seen["listed"]].assign(split="pool", label=None)
    # An item that cannot be read for now carries the reason itself.
    broken = broken[broken["modified_ns"].notna() | ~broken["uri"].isin(lost["uri"])]
    table = pd.concat([_as_table(part) for part in (found, lost, broken)])
    return table.sort_values(["uri", "item_id"], ignore_index=True)


def _check_groups(seen: pd.DataFrame, earlier: pd.DataFrame, source: Path) -> None:
    """Refuse a manifest whose groups are not those that the audit set was drawn by."""
    known = earlier.loc[earlier["item_id"].notna(), ["item_id", "group"]].fillna("")
    now = seen.loc[seen["item_id"].notna() & seen["listed"], ["item_id", "uri", "group"]].fillna("")
    both = now.merge(known, on="item_id", suffixes=("", "_before"))
    is_same = (both["group"] == both["group_before"]).groupby(both["item_id"]).transform("any")
    if not is_same.all():
        first = both[~is_same].iloc[0]
        before, after = (repr(name) if name else "no group" for name in (first["group_before"], first["group"]))
        raise PoolError(
            f"{source}: {first['uri']} was in {before} when the audit set was drawn and is in {after} now, and "
            f"{int((~is_same).sum()) - 1} more images changed theirs: the audit set was kept apart by groups. Put the "
            "column group back, or begin a campaign of another name"
        )


def _hold_out_of_audit(table: pd.DataFrame) -> pd.DataFrame:
    """Set the images aside that were found after the audit set was drawn, in one of its groups."""
    groups = table.loc[table["split"] == "audit", "group"].dropna().unique()
    is_late = (table["split"] == "pool") & table["item_id"].notna() & table["group"].isin(groups)
    return table.assign(set_aside_reason=table["set_aside_reason"].mask(is_late, IN_AUDIT))


def _found_items(seen: pd.DataFrame, earlier_items: pd.DataFrame) -> pd.DataFrame:
    """One row for each content that was seen; it stays at its earlier path while it is there."""
    known = earlier_items[["item_id", "uri", "split", "label", "group"]]
    copies = seen[seen["item_id"].notna()].merge(known, on="item_id", how="left", suffixes=("", "_earlier"))
    copies["moved"] = copies["uri"] != copies["uri_earlier"]
    labels = copies.loc[copies["label"].notna(), ["item_id", "label"]].drop_duplicates()
    labels = labels.sort_values("label")
    disputed = labels[labels["item_id"].duplicated(keep=False)]
    reasons = disputed.groupby("item_id")["label"].agg(" and ".join).radd("labelled more than one way: ")
    copies = copies.sort_values(["moved", "uri"])
    items = copies.drop_duplicates("item_id")
    group = items["item_id"].map(copies.groupby("item_id")["group"].first()).astype("str")
    given = items["item_id"].map(labels.drop_duplicates("item_id").set_index("item_id")["label"])
    label = given.astype("str").fillna(items["label_earlier"])
    label = label.mask(items["item_id"].isin(disputed["item_id"]) | (items["split"] == "audit"), None)
    return items.assign(
        split=items["split"].fillna("pool"),
        label=label,
        group=items["group_earlier"].where(items["split"].notna(), group),
        set_aside_reason=items["item_id"].map(reasons),
    )


def _draw_audit(table: pd.DataFrame, audit_size: int, seed: int) -> pd.DataFrame:
    rows = usable(table)
    labelled = rows["label"].notna()
    labelled |= rows["group"].isin(rows.loc[labelled, "group"].dropna())
    # By item id, so that neither the order nor the names of the files decide.
    candidates = rows[~labelled].sort_values("item_id")
    if audit_size and len(candidates) <= audit_size:
        whole = "are usable and have no label" if rows["group"].isna().all() else "are in groups without a label"
        raise PoolError(f"an audit set of {audit_size} leaves nothing for the pool: {len(candidates)} images {whole}")
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


def _in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in counts.items())
