"""Ids of images as bytes of one width, and where they are found: a million take 32 MB, and no string of Python."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def as_bytes(ids: Sequence[str] | pa.ChunkedArray) -> NDArray[np.bytes_]:
    """Ids `(n,)` in UTF-8; where all are of one length, as hashes are, they are not copied one by one."""
    column = ids if isinstance(ids, pa.ChunkedArray) else pa.chunked_array([pa.array(ids, pa.string())])
    joined = column.cast(pa.large_binary()).combine_chunks()
    lengths = pc.min_max(pc.binary_length(joined)).as_py()
    if not lengths["max"] or lengths["min"] != lengths["max"]:
        return np.array(joined.to_pylist(), dtype=np.bytes_)
    _, offsets, values = joined.buffers()
    first = int(np.frombuffer(offsets, dtype=np.int64)[joined.offset])
    return np.frombuffer(values, dtype=f"S{lengths['max']}", count=len(joined), offset=first)


class Run(NamedTuple):
    """Where items are: sorted ids, which a million of finds thousands in milliseconds, with file and row."""

    ids: NDArray[np.bytes_]
    files: NDArray[np.int32]
    rows: NDArray[np.int32]

    def without(self, numbers: Sequence[int]) -> Run:
        """The run without files of these numbers."""
        kept = ~np.isin(self.files, numbers)
        return Run(self.ids[kept], self.files[kept], self.rows[kept])


def merged(runs: Sequence[Run]) -> Run:
    """One run of several; of equal items the first comes first.

    Runs are merged as their sizes become alike, so that a million items cost twenty merges each, and not one for each
    file that is appended.
    """
    ids, files, rows = (np.concatenate(parts) for parts in zip(*runs, strict=True))
    order = ids.argsort(kind="stable")  # quick where most is sorted already
    return Run(ids[order], files[order], rows[order])
