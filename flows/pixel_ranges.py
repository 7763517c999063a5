"""What black and white are in a campaign's deep pixels: measured once, written down, and the same in every round."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from connectors.images.ranges import SAMPLED_PER_KIND, measure_ranges
from connectors.images.reading import Range, Reading
from connectors.store import read_json, write_json
from pipeline.pool.table import usable

FILE = "pixel_ranges.json"


def read_ranges(folder: Path) -> tuple[Range, ...]:
    """The ranges that are written down in a folder, of a campaign or a replay."""
    path = folder / FILE
    return tuple(Range(**told) for told in read_json(path)["ranges"]) if path.exists() else ()


def write_ranges(folder: Path, ranges: Sequence[Range]) -> None:
    """Write ranges down; there may be none."""
    write_json(folder / FILE, {"ranges": [asdict(one) for one in ranges]})


def settle_ranges(folder: Path, pool: pd.DataFrame, *, memory_gb: float) -> tuple[Range, ...]:
    """Measure the kinds of deep pixels that have no range yet, and write them down beside those that have.

    A range never changes, so that rounds stay comparable. The sample is the first images by item id, which is a hash of
    the content, those of the audit set last: the order and the names of the files are nothing to it.

    Returns:
        The ranges that are new.
    """
    known = read_ranges(folder)
    rows = usable(pool).assign(is_audit=lambda table: table["split"] != "pool").sort_values(["is_audit", "item_id"])
    kinds = sorted(set(rows["pixels"].dropna()) - {one.kind for one in known})
    samples = [rows.loc[rows["pixels"] == kind, "uri"].head(SAMPLED_PER_KIND) for kind in kinds]
    is_first = not (folder / FILE).exists()
    if is_first:  # tables of older versions do not know what pixels are
        samples.append(rows.loc[rows["pixels"].isna(), "uri"].head(SAMPLED_PER_KIND))
    uris = [uri for sample in samples for uri in sample]
    measured = measure_ranges(uris, reading=Reading(memory_gb=memory_gb)) if uris else ()
    new = tuple(one for one in measured if one.kind not in {other.kind for other in known})
    if new or is_first:
        write_ranges(folder, [*known, *new])
    return new


def range_text(one: Range) -> str:
    """A range for people to read."""
    images = "1 image" if one.n_images == 1 else f"{one.n_images} images"
    return f"{one.kind}: {one.low:g} to {one.high:g} become black to white, by {images}"


def pages_text(n_files: int) -> str:
    """What is said of files with several pages."""
    files = "1 file holds" if n_files == 1 else f"{n_files} files hold"
    return f"{files} several pages or frames: the first is used"


def count_multipage(pool: pd.DataFrame) -> int:
    """Files in use that hold several pages or frames; none is known in a table of an older version."""
    return int(usable(pool)["pages"].notna().sum()) if "pages" in pool else 0
