"""What scoring makes, as files that are read by the columns that are asked for: the pool is never held whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from connectors.store import write_atomic, write_table

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


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

    def rows(self, start: int, n: int) -> pd.DataFrame:
        """Some of them, in their order."""
        return self.table.iloc[start : start + n]

    @staticmethod
    def made(path: Path, table: pd.DataFrame) -> ItemList:
        """Write a list, and return its handle."""
        write_table(path, table)
        return ItemList(path)


@dataclass(frozen=True)
class LabelledEmbeddings:
    """Embeddings of the labelled set and, where the strategy reads them, what the members say of it."""

    path: Path

    def write(self, columns: dict[str, pa.Array | NDArray[np.str_]]) -> LabelledEmbeddings:
        """Write `item_id`, `embedding` and perhaps `probs`."""
        write_atomic(self.path, lambda path: pq.write_table(pa.table(columns), path))
        return self

    @property
    def embeddings(self) -> Tensor:
        """`(M, D)`, float16."""
        return _read_lists(pq.read_table(self.path, columns=["embedding"])["embedding"])

    def probs(self, n_classes: int) -> Tensor:
        """`(M, K, C)`."""
        return _read_probs(self.path, "probs", n_classes)


@dataclass(frozen=True)
class ScoreFiles:
    """Scores, guesses and embeddings of the candidates, a file for each shard."""

    path: Path

    @property
    def parts(self) -> list[Path]:
        """The files, in the order of the candidates."""
        return sorted(self.path.glob("part-*.parquet"))

    def part(self, shard: int) -> Path:
        """The file of one shard."""
        return self.path / f"part-{shard:05d}.parquet"

    def write(self, shard: int, tables: Sequence[pa.Table]) -> None:
        """Write one shard."""
        table = pa.concat_tables(tables)
        write_atomic(self.part(shard), lambda path: pq.write_table(table, path))

    def has_column(self, name: str) -> bool:
        """Whether each shard has a column."""
        return all(name in pq.read_schema(path).names for path in self.parts)

    def column(self, name: str) -> pa.ChunkedArray:
        """One column of all candidates."""
        return pa.concat_tables([pq.read_table(path, columns=[name]) for path in self.parts])[name]

    def lists(self, name: str) -> Tensor:
        """A column of lists `(N, D)`."""
        return _read_lists(self.column(name))

    def probs(self, name: str, n_classes: int) -> Tensor:
        """A column of probabilities `(N, K, C)`."""
        import torch

        return torch.cat([_read_probs(path, name, n_classes) for path in self.parts])

    def rows(self, item_ids: Sequence[str]) -> pd.DataFrame:
        """What scoring wrote about a few candidates, indexed by item id."""
        wanted = pa.array(item_ids)
        tables = [pq.read_table(path, filters=[("item_id", "in", wanted)]) for path in self.parts]
        table: pd.DataFrame = pa.concat_tables(tables).to_pandas()
        return table.set_index("item_id")


def as_lists(values: Tensor) -> pa.Array:
    """Rows of numbers `(n, ...)` as lists of one length, `(n, 1)` of them where there is a single number."""
    rows = values.flatten(1).contiguous().numpy()
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])


def _read_lists(column: pa.ChunkedArray) -> Tensor:
    import torch

    values = column.combine_chunks()
    return torch.from_numpy(values.values.to_numpy(zero_copy_only=False).reshape(len(values), -1).copy())


def _read_probs(path: Path, column: str, n_classes: int) -> Tensor:
    rows = _read_lists(pq.read_table(path, columns=[column])[column])
    return rows.reshape(len(rows), -1, n_classes)
