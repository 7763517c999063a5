"""What scoring makes, as files that are read by the columns and rows that are asked for: the pool is never held whole.

Scores are in the order of the candidates, whose list has their ids: a million take a few megabytes. What only choosing
the batch reads lies beside them, and goes when the batch is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from connectors.ids import as_bytes
from connectors.store import write_atomic
from pipeline.tables import class_indices

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

Columns = Mapping[str, "pa.Array | NDArray[np.str_] | NDArray[np.float32] | NDArray[np.int32]"]
"""Columns of one length by name."""

GROUP = 32_768
"""Images of a list that are read together: whoever wants some of them reads a few groups, however long the list is."""
COMPRESSION = "zstd"


@dataclass(frozen=True)
class ItemList:
    """Images as item_id and uri, in a file."""

    path: Path

    def __len__(self) -> int:
        return int(pq.read_metadata(self.path).num_rows)

    @property
    def table(self) -> pd.DataFrame:
        """All of them."""
        return pd.read_parquet(self.path)

    @property
    def ids(self) -> NDArray[np.bytes_]:
        """Item ids `(N,)` in UTF-8."""
        return as_bytes(pq.read_table(self.path, columns=["item_id"])["item_id"])

    def rows(self, start: int, n: int) -> pd.DataFrame:
        """Some of them by their place in the list; no others are read, but for those of their groups."""
        with pq.ParquetFile(self.path) as file:
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            ends = list(accumulate(sizes, initial=0))
            groups = [g for g in range(len(sizes)) if ends[g] < start + n and start < ends[g + 1]]
            first = ends[groups[0]] if groups else 0
            found: pd.DataFrame = file.read_row_groups(groups).slice(start - first, n).to_pandas()
        return found.set_axis(range(start, start + len(found)))

    @staticmethod
    def made(path: Path, table: pd.DataFrame) -> ItemList:
        """Write a list, and return its handle."""

        def write(temporary: Path) -> None:
            pq.write_table(pa.Table.from_pandas(table, preserve_index=False), temporary, GROUP, compression=COMPRESSION)

        write_atomic(path, write)
        return ItemList(path)


@dataclass(frozen=True)
class LabelledEmbeddings:
    """Embeddings of the labelled set and, where the strategy reads them, what the members say of it."""

    path: Path

    def write(self, columns: Columns) -> LabelledEmbeddings:
        """Write `item_id`, `embedding` and perhaps `probs`."""
        _write(self.path, pa.table(dict(columns)))
        return self

    @property
    def embeddings(self) -> Tensor:
        """`(M, D)`, float16."""
        return _tensor(_numbers(self.path, "embedding").copy())

    def probs(self, n_classes: int) -> Tensor:
        """`(M, K, C)`."""
        rows = _numbers(self.path, "probs").copy()
        return _tensor(rows.reshape(len(rows), -1, n_classes))


@dataclass(frozen=True)
class ScoreFiles:
    """Scores and guesses of candidates, a file for each shard; beside it what only choosing the batch reads.

    A row tells the candidate's place in the list, as some may be gone when their shard is scored. Versions before kept
    all columns in one file, with the ids of all candidates in place of their places; it is read likewise.
    """

    path: Path

    @property
    def parts(self) -> list[Path]:
        """The files, in the order of the candidates."""
        return sorted(self.path.glob("part-*.parquet"))

    def part(self, shard: int) -> Path:
        """The file of one shard."""
        return self.path / f"part-{shard:05d}.parquet"

    def write(self, shard: int, kept: Sequence[Columns], passing: Sequence[Columns]) -> None:
        """Write one shard.

        Args:
            kept: columns of a number or a word for each candidate, a part of the shard each.
            passing: what only choosing the batch reads, likewise.
        """
        tables = pa.concat_tables([pa.table(dict(columns)) for columns in passing])
        if tables.num_columns:
            _write(_beside(self.part(shard)), tables)
        _write(self.part(shard), pa.concat_tables([pa.table(dict(columns)) for columns in kept]))

    def forget_passing(self) -> None:
        """Remove what only choosing the batch reads."""
        for path in self.path.glob("choosing-*.parquet"):
            path.unlink(missing_ok=True)

    def has_column(self, name: str) -> bool:
        """Whether the first shard has a column: where it is of a part of the candidates, these come first."""
        return any(_file_of(path, name) is not None for path in self.parts[:1])

    @property
    def places(self) -> NDArray[np.int64]:
        """Where the scored candidates `(N,)` stand in the list of all; it rises."""
        if not self.has_column("place"):
            return np.arange(sum(pq.read_metadata(path).num_rows for path in self.parts))
        return self.values("place").numpy().astype(np.int64)

    def values(self, name: str, rows: NDArray[np.int64] | None = None) -> Tensor:
        """A column of numbers `(N,)` or of lists `(N, D)`; the files of other rows are not read.

        Args:
            rows: `(R,)` sorted positions, whose values are read; by default those of all candidates.
        """
        ends = np.cumsum([0, *(pq.read_metadata(path).num_rows for path in self.parts)])
        rows = np.arange(ends[-1]) if rows is None else rows
        found: NDArray[np.float32] | None = None
        for path, start, end in zip(self.parts, ends, ends[1:], strict=False):
            first, last = np.searchsorted(rows, (start, end))
            if first == last:
                continue
            file = _file_of(path, name)
            if file is None:
                raise KeyError(f"{path} has no column {name}")
            values = _numbers(file, name)
            if found is None:
                found = np.empty((len(rows), *values.shape[1:]), dtype=values.dtype)
            found[first:last] = values[rows[first:last] - start]
        return _tensor(np.empty(0, dtype=np.float32) if found is None else found)

    def probs(self, name: str, n_classes: int, rows: NDArray[np.int64] | None = None) -> Tensor:
        """A column of probabilities `(N, K, C)`; `rows` as in `values`."""
        values = self.values(name, rows)
        return values.reshape(len(values), -1, n_classes)

    def words(self, name: str, words: Sequence[str]) -> Tensor:
        """Which of the words each candidate has in a column, `(N,)` int64."""
        import torch

        found = [torch.empty(0, dtype=torch.long)]
        for path in self.parts:
            told = pq.read_table(path, columns=[name])[name].combine_chunks().dictionary_encode()
            place = class_indices(told.dictionary.to_pylist(), words)
            found.append(place[_tensor(told.indices.to_numpy().astype(np.int64))])
        return torch.cat(found)


def as_lists(values: Tensor) -> pa.Array:
    """Rows of numbers `(n, ...)` as lists of one length, `(n, 1)` of them where there is a single number."""
    rows = values.flatten(1).contiguous().numpy()
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])


def _beside(part: Path) -> Path:
    """The file of what only choosing the batch reads."""
    return part.with_name(part.name.replace("part-", "choosing-"))


def _file_of(part: Path, name: str) -> Path | None:
    """The file of a shard that has a column."""
    there = (path for path in (_beside(part), part) if path.exists())
    return next((path for path in there if name in pq.read_schema(path).names), None)


def _write(path: Path, table: pa.Table) -> None:
    repeated = [field.name for field in table.schema if pa.types.is_string(field.type)]  # numbers hardly are
    rising = {field.name: "DELTA_BINARY_PACKED" for field in table.schema if pa.types.is_integer(field.type)}
    how = {"compression": COMPRESSION, "use_dictionary": repeated, "column_encoding": rising, "write_statistics": False}
    write_atomic(path, lambda temporary: pq.write_table(table, temporary, **how))


def _numbers(path: Path, name: str) -> NDArray[np.float32]:
    """A column of numbers `(n,)` or of lists `(n, D)`; not to be written to."""
    column = pq.read_table(path, columns=[name])[name].combine_chunks()
    if not pa.types.is_fixed_size_list(column.type):
        return column.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]
    return column.values.to_numpy(zero_copy_only=False).reshape(len(column), -1)  # type: ignore[no-any-return]


def _tensor(values: NDArray[np.float32]) -> Tensor:
    import torch

    return torch.from_numpy(values)
