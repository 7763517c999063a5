"""Ids of images as bytes of one width: a million take 32 MB, and none of them becomes a string of Python."""

from __future__ import annotations

from collections.abc import Sequence

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
