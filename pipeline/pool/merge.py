"""The pool table after a refresh: the items that were seen now, merged with the items that are known.

What was seen is one row for each file, with `uri`, `size_bytes`, `modified_ns`, `set_aside_reason`, `label`, `group`,
what its content is, and `listed`: whether the folder or the manifest has it now, or an item was there.
"""

from __future__ import annotations

import pandas as pd

from pipeline.names import printable
from pipeline.pool.columns import in_order, is_in
from pipeline.pool.notes import unused_lines
from pipeline.pool.reasons import CHANGED, NO_SUFFIX, NOT_BY_NAME, PoolError
from pipeline.pool.table import as_table, usable

LONGEST_TOLD = 80
"""Characters of a label in a reason."""


def merge(seen: pd.DataFrame, earlier: pd.DataFrame, *, is_manifest: bool) -> pd.DataFrame:
    """The pool table: items found, items lost, and the listed files that hold no image; sorted by uri.

    Args:
        seen: see the module.
        earlier: the pool table of the last run.
        is_manifest: what was listed gives all labels that there are.
    """
    earlier_items = earlier[earlier["item_id"].notna()]
    found = _found_items(seen, earlier_items, is_manifest=is_manifest)
    lost = earlier_items[~is_in(earlier_items["item_id"], found["item_id"])]
    there = seen.drop_duplicates("uri").set_index("uri").loc[lost["uri"]]
    reason = there["set_aside_reason"].where(there["modified_ns"].isna(), CHANGED)
    lost = lost.assign(set_aside_reason=reason.to_numpy())
    broken = seen[seen["item_id"].isna() & seen["listed"]].assign(split="pool", label=None, group=None)
    # An item that cannot be read for now carries the reason itself.
    broken = broken[broken["modified_ns"].notna() | ~is_in(broken["uri"], lost["uri"])]
    return in_order(pd.concat([as_table(part) for part in (found, lost, broken)]))


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
    reasons = disputed.groupby("item_id")["label"].agg(_in_short).radd("labelled more than one way: ")
    items = copies.sort_values(["moved", "uri"]).drop_duplicates("item_id")
    given = items["item_id"].map(labels.drop_duplicates("item_id").set_index("item_id")["label"])
    # Copies in two groups are rare, and the first by name is the same in each run.
    groups = copies.dropna(subset=["group"]).groupby("item_id")["group"].min()
    group = items["item_id"].map(groups).astype("str")
    label = given.astype("str") if is_manifest else given.astype("str").fillna(items["label_earlier"])
    label = label.mask(is_in(items["item_id"], disputed["item_id"]) | (items["split"] == "audit"), None)
    return items.assign(
        split=items["split"].fillna("pool"),
        label=label,
        group=items["group_earlier"].where(items["split"].notna(), group),
        set_aside_reason=items["item_id"].map(reasons),
    )


def refuse_waste(
    source: str, seen: pd.DataFrame, merged: pd.DataFrame, earlier: pd.DataFrame, limit: float, *, kept: pd.DataFrame
) -> None:
    """Raise where no image can be used, or too many of them cannot, now or of the earlier table's.

    Args:
        source: what the pool is called in the message.
        seen: see the module.
        merged: the rows that were made of it.
        earlier: rows of the pool table of the last run that were gone through.
        limit: share of the images that may be unusable.
        kept: the other rows of that table, which stay as they are.
    """
    used, n_kept = usable(merged)["item_id"], int(kept["item_id"].count())
    if used.empty and not n_kept:
        raise PoolError(f"{source} has no usable image: {_reasons(kept, merged)}")
    named = seen["listed"] & ~_is_other(seen)
    wasted = named & ~is_in(seen["item_id"], used)
    n_kept_named = int((~_is_other(kept)).sum())
    n_named, n_wasted = int(named.sum()) + n_kept_named, int(wasted.sum()) + n_kept_named - n_kept
    mend = f"more than max_unused = {limit:g} allows. Mend them, or raise max_unused in the campaign's file"
    if n_wasted > limit * n_named:
        raise PoolError(f"{source}: {n_wasted} of {n_named} images cannot be used, {mend}. {_reasons(kept, merged)}")
    before = usable(earlier)["item_id"]
    gone, n_before = before[~is_in(before, used)], len(before) + len(usable(kept))
    if len(gone) > limit * n_before:
        first = merged[merged["item_id"] == gone.iloc[0]].iloc[0]
        raise PoolError(
            f"{source}: {len(gone)} of the {n_before} images of the last run cannot be used any more, {mend} for "
            f"one run if that is meant. Such as {printable(first['uri'])}: {first['set_aside_reason']}"
        )


def _is_other(rows: pd.DataFrame) -> pd.Series[bool]:
    """Whether the name of each file is not that of an image."""
    return rows["set_aside_reason"].str.startswith((NOT_BY_NAME, NO_SUFFIX), na=False)


def _reasons(*parts: pd.DataFrame) -> str:
    return "; ".join(unused_lines(in_order(pd.concat(parts))))


def _in_short(labels: pd.Series[str]) -> str:
    """The labels that one image has; how many there are where they are long, as of regions."""
    is_long = bool((labels.str.len() > LONGEST_TOLD).any())
    return f"{len(labels)} lists of regions" if is_long else " and ".join(labels)
