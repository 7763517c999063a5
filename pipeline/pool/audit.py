"""The audit set of a pool: drawn once in whole groups, and kept apart from what is trained on ever after."""

import pandas as pd

from pipeline.pool.columns import is_in
from pipeline.pool.reasons import IN_AUDIT, PoolError
from pipeline.pool.table import has_complete_label, usable

SHARE_OF_NEW = 0.2
"""Of the images of a pool, so many may have come after the audit set was drawn: see `outgrown_text`."""


def draw_audit(table: pd.DataFrame, audit_size: int, seed: int) -> pd.DataFrame:
    """The pool table with an audit set, drawn from the usable images without a complete label.

    Raises:
        PoolError: `audit_size` leaves nothing for the pool, or cannot be drawn in whole groups.
    """
    import torch  # with both of these; only the first run of a campaign draws

    from pipeline.pool.groups import draw_groups, group_codes
    from pipeline.randomness import seeded_generator

    rows = usable(table)
    labelled = has_complete_label(rows)
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
    is_audit = table["item_id"].isin(candidates["item_id"][is_drawn])
    return table.assign(split=table["split"].mask(is_audit, "audit"), label=table["label"].mask(is_audit))


def check_groups(seen: pd.DataFrame, earlier: pd.DataFrame, source: str, *, rule: str | None, n_same: int) -> None:
    """Refuse a pool whose groups are not those that the audit set was drawn by.

    A file that moved keeps its group, whatever a rule makes of its new path; a pool that moved as a whole does not,
    because the same rule would give a new frame of a film another group than the old ones have.

    Args:
        seen: see `pipeline.pool.merge`.
        earlier: the pool table of the last run.
        source: what the pool is called in the message.
        rule: by which groups were found in paths; None where a manifest gives them, or nothing does.
        n_same: further images, which are not in `seen` and whose groups are those that they were.
    """
    known = earlier.loc[is_in(earlier["item_id"], seen["item_id"]), ["item_id", "group"]].fillna("")
    now = seen.loc[seen["item_id"].notna() & seen["listed"], ["item_id", "uri", "group"]].fillna("")
    both = now.merge(known, on="item_id", suffixes=("", "_before"))
    is_same = (both["group"] == both["group_before"]).groupby(both["item_id"]).transform("any")
    if rule is not None:
        if 2 * int((~is_same).sum()) > len(is_same) + n_same:
            first = both[~is_same].iloc[0]
            raise PoolError(
                f"{source}: group = {rule!r} puts {first['uri']} into {first['group']!r} where it was in "
                f"{first['group_before']!r} when the audit set was drawn, and most images with it: a rule goes by the "
                "path below the pool. Set pool back to a folder, or a table in the folder, that it was drawn with; or "
                "begin another campaign: labelcycle init NEW.toml --from OLD.toml"
            )
        return
    if not is_same.all() and earlier["group"].isna().all():
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


def hold_out_of_audit(table: pd.DataFrame) -> pd.DataFrame:
    """Set the images aside that were found after the audit set was drawn, in one of its groups."""
    groups = table.loc[table["split"] == "audit", "group"].dropna().unique()
    if not len(groups):
        return table
    is_late = (table["split"] == "pool") & table["item_id"].notna() & table["group"].isin(groups)
    is_late &= table["set_aside_reason"].isna()
    return table.assign(set_aside_reason=table["set_aside_reason"].mask(is_late, IN_AUDIT))


def count_known(table: pd.DataFrame) -> int:
    """Images that a pool table knows, used or not, but for those that came late into a group of the audit set."""
    return int((table["item_id"].notna() & (table["set_aside_reason"] != IN_AUDIT)).sum())


def outgrown_text(table: pd.DataFrame, n_then: int) -> str | None:
    """That many images came after the audit set was drawn, for people to read; None where they are few.

    The audit set is a random sample of the images of then. With a share s of new images the accuracy on all of them is
    anywhere from `(1 - s) low` to `(1 - s) high + s`, where low and high are the ends of the audit interval: the
    worst-case bounds of Manski (2003), Partial Identification of Probability Distributions, 1.1. Nobody looks at the
    images: new ones that are like the old do no harm, and count all the same.

    Args:
        table: the pool table of now, which forgets no image.
        n_then: of `count_known`, when the audit set was drawn.
    """
    n_now = len(usable(table))
    n_new = min(count_known(table) - n_then, n_now)
    if n_now == 0 or n_new / n_now < SHARE_OF_NEW:
        return None
    return (
        f"{n_new:,} of {n_now:,} images came after the audit set was drawn, and it does not speak for them: measured "
        f"accuracies may be off by up to {100 * n_new / n_now:.0f} points on all images. For an audit set of all, "
        "begin another campaign with all labels: labelcycle init NEW.toml --from OLD.toml"
    )
