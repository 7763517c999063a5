"""Notes on images that depend on each other, printed once, when the audit set is drawn."""

import hashlib
from typing import TYPE_CHECKING

import pandas as pd

from flows.artefacts import DEPENDENCE
from flows.campaign import OpenCampaign
from flows.progress import progress_bar
from flows.records import Dependence
from pipeline.pool.table import group_counts

if TYPE_CHECKING:
    from torch import Tensor


def look_for_dependence(work: OpenCampaign) -> tuple[str, ...]:
    """Lines on how the images are grouped, or on signs that they should be; none where they were printed before."""
    before, pool = work.folder.get(DEPENDENCE), work.pool.table
    drawn = _digest_of_audit(pool)
    if before is not None and before.audit_set == drawn:
        return ()
    counts = group_counts(pool)
    notes = [groups_text(counts)] if counts else _advice(work, pool)
    work.folder.write(DEPENDENCE, Dependence(drawn, notes))
    return tuple(notes)


def _digest_of_audit(pool: pd.DataFrame) -> str:
    """Of the items of the audit set and their groups: before people are asked it may be drawn anew."""
    rows = pool.loc[pool["split"] == "audit", ["item_id", "group"]].fillna("").sort_values("item_id")
    return hashlib.blake2b(repr(rows.to_numpy().tolist()).encode(), digest_size=16).hexdigest()


def groups_text(counts: dict[str, int]) -> str:
    """How the images are grouped, for people to read."""
    if counts["largest"] == 1:
        return f"each of the {counts['n_groups']:,} groups has one image: they keep nothing together"
    alone = f", {counts['n_alone']:,} images in none" if counts["n_alone"] else ""
    return (
        f"{counts['n_groups']:,} groups of images, the largest of {counts['largest']:,}{alone}; the audit set has "
        f"{counts['n_audit_groups']:,} whole groups, {counts['n_audit']:,} images. Its interval counts the images as "
        "independent, and is too narrow for that"
    )


def _advice(work: OpenCampaign, pool: pd.DataFrame) -> list[str]:
    import torch  # with all of these; a run that only looks for labels needs none of them

    from connectors.image_folder.source import paths_below
    from connectors.images.pixels import load_images
    from pipeline.pool.dependence import N_LEFT, N_RIGHT, THUMB_SIDE, advice, find_series, near_copies
    from pipeline.randomness import seeded_generator

    rows = pool[pool["set_aside_reason"].isna()]
    paths = paths_below(rows["uri"].tolist(), work.settings.pool_source.root)
    series = find_series(paths, classes=work.settings.classes)
    generator = seeded_generator(work.settings.seed, 0, "near-copies")

    def thumbs(split: str, most: int) -> "Tensor":
        uris = rows.loc[rows["split"] == split].sort_values("item_id")["uri"].tolist()
        drawn = torch.randperm(len(uris), generator=generator)[:most].tolist()
        return load_images([uris[row] for row in drawn], size=THUMB_SIDE, channels=1, reading=work.reading)

    with progress_bar("comparing audit set and pool", unit="sides") as on_progress:
        audit = thumbs("audit", N_LEFT)
        on_progress(1, 2)
        near = near_copies(audit, thumbs("pool", N_RIGHT))
        on_progress(2, 2)
    return advice(series, near, measured_on="the audit set")
