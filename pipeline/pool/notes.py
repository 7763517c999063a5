"""What people should know of a pool: what is new in it, and what of it is not used, a line each."""

from collections.abc import Iterator

import pandas as pd

from pipeline.names import printable
from pipeline.pool.columns import is_in
from pipeline.pool.reasons import (
    ADDRESS,
    CHANGED,
    IN_AUDIT,
    LINKED,
    NO_SUFFIX,
    NOT_BY_NAME,
    NOT_NAMED,
    NOT_SHOWN,
    OTHER_FORMAT,
    OUTSIDE,
    PASSED_OVER,
    UNREAD,
)
from pipeline.pool.table import usable

MENDS = {
    UNREAD: "check their paths, and that they may be read",
    "damaged": "copy them anew from where they came from",
    "empty": "copy them anew from where they came from",
    OTHER_FORMAT: "save them as JPEG or PNG",
    OUTSIDE: "move them there, or the manifest to a folder above",
    LINKED: "set follow_links = true if annotators may see what links lead to",
    NOT_SHOWN: "rename the objects",
    ADDRESS: "download them, and name the files",
    "labelled more than one way": "give all copies of an image the same label",
}
"""What to do about images that are set aside, by the kind of the reason."""
EXPECTED = frozenset(reason.partition(":")[0] for reason in (NOT_NAMED, CHANGED, PASSED_OVER, IN_AUDIT))
"""Kinds that come of what a person did."""
NOT_AN_IMAGE = "not an image"


def changes(before: pd.DataFrame | None, after: pd.DataFrame) -> list[str]:
    """What is new between two pool tables, in lines for people; none where nothing is."""
    now = usable(after)
    if before is None:
        labels = int(now["label"].notna().sum())
        return [f"the pool has {_count(len(now), 'image')}{f', {labels} of them with a label' if labels else ''}"]
    was = usable(before)
    added = now[~is_in(now["item_id"], was["item_id"])]
    is_back = is_in(added["item_id"], before["item_id"])
    new, back, gone = added[~is_back], added[is_back], was[~is_in(was["item_id"], now["item_id"])]
    said = [
        f"{_count(len(rows), 'image')} {what}, such as {printable(rows.iloc[0]['uri'])}"
        for rows, what in ((new, "new"), (back, "used again"), (gone, "not used any more"))
        if len(rows)
    ]
    lines = [f"the pool has {_count(len(now), 'image')}: {'; '.join(said)}"] if said else []
    return [*lines, *_changed_labels(was, now)]


def item_notes(seen: pd.DataFrame, table: pd.DataFrame) -> list[str]:
    """A line where files are copies, and one where labels are not used.

    Args:
        seen: see `pipeline.pool.merge`.
        table: the pool table that was made of it.
    """
    lines = []
    items = seen.loc[seen["listed"] & seen["item_id"].notna(), ["item_id", "uri", "label"]]
    copies = items[items["item_id"].duplicated()]
    if not copies.empty:
        copy, item_id = copies.iloc[0][["uri", "item_id"]]
        first = items.loc[items["item_id"] == item_id, "uri"].iloc[0]
        what = "1 file has" if len(copies) == 1 else f"{len(copies)} files have"
        lines.append(
            f"{what} the same content as another, and each content is one image: such as {printable(copy)}, which is "
            f"a copy of {printable(first)}"
        )
    audit = table.loc[(table["split"] == "audit") | (table["set_aside_reason"] == IN_AUDIT), "item_id"]
    ignored = items[items["label"].notna() & is_in(items["item_id"], audit)]
    if not ignored.empty:
        lines.append(
            f"{len(ignored)} labels of the manifest are not used: their images, such as "
            f"{printable(ignored.iloc[0]['uri'])}, are in the audit set, which people label, or in one of its groups"
        )
    return lines


def unused_lines(pool: pd.DataFrame, *, wrong_only: bool = False) -> list[str]:
    """What of a pool is not used, by the kind of the reason and most first, each with an example and what to do.

    Args:
        pool: the pool table.
        wrong_only: leave out what a person did on purpose, and files whose names are not those of images.
    """
    rows = pool.loc[pool["set_aside_reason"].notna(), ["uri", "set_aside_reason"]]
    kinds = rows["set_aside_reason"].str.split(":", n=1).str[0]
    lines = []
    for kind, count in kinds.value_counts().items():
        some = rows[kinds == kind]
        by_name = some["set_aside_reason"].str.startswith((NOT_BY_NAME, NO_SUFFIX))
        if wrong_only and (kind in EXPECTED or by_name.all()):
            continue
        lines.append(_unused(str(kind), int(count), some))
    return lines


def _unused(kind: str, count: int, rows: pd.DataFrame) -> str:
    first = rows.iloc[0]
    reason = rows["set_aside_reason"].str.partition(":")[2].str.strip()
    example = f"such as {printable(first['uri'])}"
    if kind in (NOT_AN_IMAGE, OTHER_FORMAT):
        by_reason = reason.value_counts()
        named = ", ".join(f"{n} {printable(str(what))}" for what, n in by_reason.head(4).items())
        example = f"{named}{', ...' if len(by_reason) > 4 else ''}, {example}"
    elif reason.iloc[0]:
        example += f": {printable(reason.iloc[0])}"
    mend = f" ({MENDS[kind]})" if kind in MENDS else ""
    return f"{count:,} {kind}: {example}{mend}"


def _changed_labels(before: pd.DataFrame, after: pd.DataFrame) -> Iterator[str]:
    """Lines on images of both tables whose label the manifest has changed."""
    labelled = pd.concat([rows.loc[rows["label"].notna(), "item_id"] for rows in (before, after)])
    was_there, is_there = (rows.loc[is_in(rows["item_id"], labelled), ["item_id", "label"]] for rows in (before, after))
    both = was_there.merge(is_there, on="item_id", suffixes=("_was", ""))
    was, now = both["label_was"], both["label"]
    counts = {
        "new": int((was.isna() & now.notna()).sum()),
        "changed": int((was.notna() & now.notna() & (was != now)).sum()),
        "withdrawn": int((was.notna() & now.isna()).sum()),
    }
    said = [f"{n} {what}" for what, n in counts.items() if n]
    if said:
        yield f"labels of the manifest: {', '.join(said)}"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"
