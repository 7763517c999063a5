"""What black and white are in a campaign's deep pixels: measured once, written down, and the same in every round."""

import pandas as pd

from connectors.images.ranges import SAMPLED_PER_KIND, measure_ranges
from connectors.images.reading import Range, Reading
from connectors.objects.addresses import is_address
from connectors.objects.reading import Objects
from flows.artefacts import PIXEL_RANGES
from flows.folder import Folder
from flows.records import PixelRanges
from pipeline.tables import PoolTable

EIGHT_BITS = (".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".webp")
"""Endings of files that never have deeper pixels."""


def settle_ranges(folder: Folder, pool: PoolTable, *, memory_gb: float) -> tuple[Range, ...]:
    """Measure each kind of deep pixels that has no range yet, and add the range to the file.

    Of objects of a store nothing is known before they are read: the first few hundred are, once, in the first run.

    A range never changes, so that rounds stay comparable. The sample is the first images by item id, which is a hash of
    the content, with the audit set last: order and names of the files play no part.

    Returns:
        The ranges that are new.
    """
    written = folder.get(PIXEL_RANGES)
    known = written.ranges if written else ()
    kinds = sorted(set(pool.usable["pixels"].dropna().unique()) - {one.kind for one in known})
    rows = _in_order(pool.usable[pool.usable["pixels"].isin(kinds)])
    samples = [rows.loc[rows["pixels"] == kind, "uri"].head(SAMPLED_PER_KIND) for kind in kinds]
    uris = [uri for sample in samples for uri in sample]
    if written is None:
        uris += [uri for uri in _in_order(pool.usable)["uri"] if is_address(uri) and _may_be_deep(uri)][
            :SAMPLED_PER_KIND
        ]
    measured = measure_ranges(uris, reading=Reading((), memory_gb, Objects())) if uris else ()
    new = tuple(one for one in measured if one.kind not in {other.kind for other in known})
    if new or written is None:
        folder.write(PIXEL_RANGES, PixelRanges((*known, *new)))
    return new


def _in_order(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.assign(is_audit=rows["split"] != "pool").sort_values(["is_audit", "item_id"])


def _may_be_deep(uri: str) -> bool:
    return not uri.lower().endswith(EIGHT_BITS)


def range_text(one: Range) -> str:
    """A range for people to read."""
    images = "1 image" if one.n_images == 1 else f"{one.n_images} images"
    return f"{one.kind}: {one.low:g} to {one.high:g} become black to white, by {images}"


def pages_text(n_files: int) -> str:
    """A line on files with several pages."""
    files = "1 file holds" if n_files == 1 else f"{n_files} files hold"
    return f"{files} several pages or frames: the first is used"


def count_multipage(pool: PoolTable) -> int:
    """Files in use that hold several pages or frames."""
    return int(pool.usable["pages"].notna().sum())
