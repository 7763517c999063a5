"""Columns of a million rows, made, compared, found and sorted as Arrow has them: texts are not copied one by one."""

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.pool.table import COLUMNS

CHUNK = 1000
"""Records that become columns at a time: Python looks through all tuples that live, again and again."""
TO_PANDAS = {pa.int64(): pd.Int64Dtype(), pa.large_string(): pd.StringDtype(storage="pyarrow", na_value=np.nan)}
Flags = NDArray[np.bool_]


def from_records(records: Iterable[tuple[object, ...]], names: Sequence[str]) -> pd.DataFrame:
    """Records as columns of the pool table; some at a time, as the tuples of a million files would fill the memory."""
    schema = pa.schema([(name, pa.large_string() if COLUMNS[name] == "str" else pa.int64()) for name in names])
    left, batches = iter(records), list[pa.RecordBatch]()
    while part := list(islice(left, CHUNK)):
        columns = zip(zip(*part, strict=True), schema.types, strict=True)
        batches.append(pa.record_batch([pa.array(column, of) for column, of in columns], schema))
    table = pa.Table.from_batches(batches, schema).combine_chunks()
    rows: pd.DataFrame = table.to_pandas(types_mapper=TO_PANDAS.get)
    return rows


def positions(values: "pd.Series[str]", others: "pd.Series[str]") -> NDArray[np.int64]:
    """Where each value is first among others, `(n,)`; -1 where it is not, or is missing."""
    found = pc.index_in(_arrow(values), value_set=_arrow(others), skip_nulls=True)
    places: NDArray[np.int64] = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    return places


def is_in(values: "pd.Series[str]", others: "pd.Series[str]") -> "pd.Series[bool]":
    """Whether each value is among others; a missing one never is."""
    found = pc.is_in(_arrow(values), value_set=_arrow(others).drop_null())
    return pd.Series(_flags(found), index=values.index)


def same(some: pd.Series, others: pd.Series) -> Flags:
    """Where two columns hold the same, `(n,)`; of two missing values, too."""
    one, other = _arrow(some), _arrow(others)
    equal: Flags = _flags(pc.equal(one, other)) | _flags(pc.and_(pc.is_null(one), pc.is_null(other)))
    return equal


def is_doubled(values: "pd.Series[str]") -> Flags:
    """Whether each value of a sorted column is there more than once, `(n,)`."""
    column = _arrow(values)
    if not len(column):
        return np.zeros(0, dtype=bool)
    is_next = _flags(pc.equal(column[1:], column[:-1]))
    doubled: Flags = np.append(is_next, False) | np.append(False, is_next)
    return doubled


def are_all_below(uris: "pd.Series[str]", folder: str) -> bool:
    """Whether each path begins with that of a folder, which ends in a separator."""
    return bool(_flags(pc.starts_with(_arrow(uris), folder)).all())


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of a pool table sorted by path, then by item, and those without one last."""
    keys = pa.table({name: _arrow(table[name]) for name in ("uri", "item_id")})
    order = pc.sort_indices(keys, sort_keys=[("uri", "ascending"), ("item_id", "ascending")])
    return table.take(order.to_numpy()).reset_index(drop=True)


def _arrow(values: pd.Series) -> pa.ChunkedArray:
    column = pa.array(values.array, from_pandas=True)
    return column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])


def _flags(values: pa.ChunkedArray) -> Flags:
    flags: Flags = pc.fill_null(values, False).to_numpy()
    return flags
