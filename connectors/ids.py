"""Ids of images as bytes of one width, and where they are found: a million take 32 MB, in a `Run` 48, and no string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def as_bytes(ids: Sequence[str] | pa.ChunkedArray) -> NDArray[np.bytes_]:
    """Ids `(n,)` in UTF-8; where all are of one length, as hashes are, they are not copied one by one."""
    kind = pa.large_binary()
    joined = ids.cast(kind).combine_chunks() if isinstance(ids, pa.ChunkedArray) else pa.array(ids, kind)
    lengths = pc.min_max(pc.binary_length(joined)).as_py()
    if not lengths["max"] or lengths["min"] != lengths["max"]:
        return np.array(joined.to_pylist(), dtype=np.bytes_)
    _, offsets, values = joined.buffers()
    first = int(np.frombuffer(offsets, dtype=np.int64)[joined.offset])
    return np.frombuffer(values, dtype=f"S{lengths['max']}", count=len(joined), offset=first)


class Run(NamedTuple):
    """Where items are: ids with file and row, in the order of their keys, in which a million of finds take moments."""

    keys: NDArray[np.uint64]
    ids: NDArray[np.bytes_]
    files: NDArray[np.int32]
    rows: NDArray[np.int32]

    @staticmethod
    def of_file(number: int, ids: NDArray[np.bytes_]) -> Run:
        """The items of a file, a row each."""
        n = len(ids)
        return Run(_keys_of(ids), ids, np.full(n, number, np.int32), np.arange(n, dtype=np.int32)).in_order()

    def without(self, numbers: Sequence[int]) -> Run:
        """The run without files of these numbers."""
        return self._at(~np.isin(self.files, numbers))

    def in_order(self) -> Run:
        """The run in the order of its keys; of equal items the first stays the first."""
        return self._at(self.keys.argsort(kind="stable"))  # quick where most is sorted already

    def _at(self, some: NDArray[np.bool_] | NDArray[np.int64]) -> Run:
        return Run(self.keys[some], self.ids[some], self.files[some], self.rows[some])

    def find(self, ids: NDArray[np.bytes_]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Whether each of the ids `(n,)` is there, and its position in the run, where it is."""
        is_there, at = np.zeros(len(ids), dtype=np.bool_), np.zeros(len(ids), dtype=np.int64)
        if not len(self.ids):
            return is_there, at
        keys = _keys_of(ids)
        order = keys.argsort()  # what is sought in order is found in memory that is at hand
        at[order] = self.keys.searchsorted(keys[order])
        sought = np.arange(len(ids))
        while len(sought := sought[at[sought] < len(self.keys)]):
            sought = sought[self.keys[at[sought]] == keys[sought]]
            is_there[sought] = self.ids[at[sought]] == ids[sought]
            sought = sought[~is_there[sought]]  # two items in 2^64 share a key
            at[sought] += 1
        return is_there, at


def merged(runs: Sequence[Run]) -> Run:
    """One run of several; of equal items the first comes first.

    Runs are merged as their sizes become alike, so that a million items cost twenty merges each, and not one for each
    file that is appended.
    """
    keys, ids, files, rows = (np.concatenate(parts) for parts in zip(*runs, strict=True))
    return Run(keys, ids, files, rows).in_order()


def _keys_of(ids: NDArray[np.bytes_]) -> NDArray[np.uint64]:
    """A number for each id `(n,)`, which hardly another one shares; zeros at its end change nothing."""
    n_words = -(-ids.dtype.itemsize // 8)
    words = ids.astype(f"S{8 * n_words}", copy=False).view(np.uint64).reshape(len(ids), n_words)
    factors = np.random.default_rng(0).integers(1, 2**63, n_words, dtype=np.uint64) * 2 + 1
    keys: NDArray[np.uint64] = words @ factors
    return keys ^ (keys >> np.uint64(31))
