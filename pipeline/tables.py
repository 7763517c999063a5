"""Tables whose columns are attributes: what steps hand to each other of images, labels and batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from pipeline.pool.columns import is_in
from pipeline.regions import OTHERS, classes_in_cell, regions_from_json, regions_in_words, regions_to_json, renamed_cell

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from pipeline.tasks.task_type import TaskType
    from pipeline.types import AskFor, Region


@dataclass(frozen=True)
class Rows:
    """A row for each image; `table` has an `item_id` column, and its order is that of the attributes."""

    table: pd.DataFrame

    def __len__(self) -> int:
        return len(self.table)

    @property
    def item_ids(self) -> list[str]:
        """Hashes of the images' content."""
        ids: list[str] = self.table["item_id"].tolist()
        return ids


@dataclass(frozen=True)
class PoolTable(Rows):
    """Every file of the pool, the files that are set aside included."""

    @cached_property
    def usable(self) -> pd.DataFrame:
        """Rows that are not set aside; `item_id` is distinct among them."""
        is_used = self.table["set_aside_reason"].isna()
        return self.table if is_used.all() else self.table[is_used]

    @cached_property
    def uris(self) -> pd.Series[str]:
        """Where each usable image is now, by item id."""
        return self.usable.set_index("item_id")["uri"]

    def renamed(self, names: Mapping[str, str], asks: AskFor) -> PoolTable:
        """The table whose labels have the names that their classes have now.

        Args:
            names: what a class was called -> what it is called now.
            asks: what people are asked for, and so what a label is.
        """
        if not names:
            return self
        label = self.table["label"].map(lambda cell: renamed_cell(cell, names, asks), na_action="ignore")
        return PoolTable(self.table.assign(label=label.astype(self.table["label"].dtype)))

    def given_labels(self) -> dict[str, str]:
        """The labels of the manifest on usable images, by item id."""
        given = self.usable[self.usable["label"].notna()]
        return dict(zip(given["item_id"], given["label"], strict=True))

    def count_given(self, asks: AskFor) -> Counter[str]:
        """How many labels of each class the manifest gives to usable images; `asks` as in `renamed`."""
        counts = Counter[str]()
        for cell, n_images in self.usable["label"].value_counts().items():
            for name in classes_in_cell(str(cell), asks):
                counts[name] += int(n_images)
        return counts

    def located_part(self, items: pd.DataFrame) -> pd.DataFrame:
        """What `located` gives, for one part of the pool after the other: the ids are sorted once, and then sought."""
        is_there, places = self._sought(items)
        if not is_there.any():
            return items
        uris = self.usable["uri"].take(places).set_axis(items.index)
        return items.assign(uri=uris.where(is_there, items["uri"]))

    def usable_part(self, items: pd.DataFrame) -> pd.DataFrame:
        """The items that are among the usable images; sought as in `located_part`."""
        return items[self._sought(items)[0]]

    def _sought(self, items: pd.DataFrame) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Whether each item is among the usable images, `(n,)`, and its row of these where it is."""
        ids, places = self._by_id
        wanted = _in_bytes(items["item_id"])
        if not len(ids) or not len(wanted):
            return np.zeros(len(wanted), dtype=np.bool_), np.zeros(len(wanted), dtype=np.int64)
        at = ids.searchsorted(wanted).clip(max=len(ids) - 1)
        return ids[at] == wanted, places[at]

    @cached_property
    def _by_id(self) -> tuple[NDArray[np.bytes_], NDArray[np.int64]]:
        """Sorted ids of the usable images, and the row of each; a million take 40 MB, a hash table 200."""
        ids = _in_bytes(self.usable["item_id"])
        order = ids.argsort()
        return ids[order], order

    def located(self, items: pd.DataFrame) -> pd.DataFrame:
        """The items with the `uri` at which the pool knows them now: files may move while a round lasts."""
        there = self.usable.loc[is_in(self.usable["item_id"], items["item_id"]), ["item_id", "uri"]]
        uris = there.set_index("item_id")["uri"]
        return items.assign(uri=items["item_id"].map(uris).fillna(items["uri"]))


@dataclass(frozen=True)
class Labels(Rows):
    """Labels that stand, a row for each image: see `labelled_set`; with uri, group and, of all sets together, split."""

    @cached_property
    def regions(self) -> list[tuple[Region, ...]]:
        """What was found in each image."""
        texts = self.table["regions"].tolist()
        known = {text: regions_from_json(text) for text in set(texts)}  # of whole images there are as many as classes
        return [known[text] for text in texts]

    @property
    def words(self) -> list[str]:
        """The labels of each image, in words."""
        return [regions_in_words(regions) for regions in self.regions]

    @property
    def complete(self) -> Labels:
        """The labels that tell of all classes, and not only of those that are there."""
        is_open = [any(region.label == OTHERS for region in regions) for regions in self.regions]
        return Labels(self.table[~np.array(is_open, dtype=bool)])

    @property
    def n_paid(self) -> int:
        """Labels that people gave; labels of the manifest are free."""
        return int((self.table["source"] == "annotators").sum())

    @property
    def n_groups(self) -> int | None:
        """Groups that the images are of, each without one its own; None where there is no group at all."""
        groups = self.table["group"]
        return None if groups.isna().all() else groups.nunique() + int(groups.isna().sum())

    @property
    def groups(self) -> Tensor | None:
        """Numbers `(n,)` of the groups; None where each image is its own."""
        from pipeline.pool.groups import group_codes

        return group_codes(self.table["group"], self.table["item_id"])

    def targets(self, task: TaskType, classes: Sequence[str]) -> Tensor:
        """What the labels are to a network, `(n, ...)`."""
        return task.targets(self.regions, classes)

    def of(self, split: str) -> Labels:
        """The labels of one split."""
        return Labels(self.table[self.table["split"] == split].drop(columns="split"))


@dataclass(frozen=True)
class Predicted(Rows):
    """What networks predict on labelled images, and where it is out of fold the `phase` they trained.

    `values` has a row of numbers for each image, `n_answers` for each decision.
    """

    @staticmethod
    def made(labels: Labels, values: Tensor, *, phase: str = "", epochs: int | None = None) -> Predicted:
        """A table of values `(n, U, C)` of all images of a labelled set, in its order."""
        table = labels.table[["item_id"]].assign(phase=phase)
        table = table if epochs is None else table.assign(epochs=epochs)
        return Predicted(table.assign(n_answers=values.shape[2], values=[*values.flatten(1).numpy()]))

    @staticmethod
    def none() -> Predicted:
        """A table without rows."""
        return Predicted(pd.DataFrame({"item_id": [], "n_answers": [], "values": []}))

    @property
    def phase(self) -> str | None:
        """What the networks trained; None where nothing was predicted."""
        return str(self.table["phase"].iloc[0]) if len(self.table) else None

    @property
    def epochs(self) -> int | None:
        """For how many epochs heads were trained; None where that was left to the settings."""
        return int(self.table["epochs"].iloc[0]) if "epochs" in self.table and len(self.table) else None

    @property
    def values(self) -> Tensor:
        """Logits or probabilities `(n, U, C)`, float32."""
        import torch

        rows = np.stack(self.table["values"].tolist())
        return torch.from_numpy(rows.reshape(len(rows), -1, int(self.table["n_answers"].iloc[0])))


@dataclass(frozen=True)
class Guesses(Rows):
    """What a round's model sees in the images that it asks for."""

    @staticmethod
    def made(item_ids: Sequence[str], guesses: Sequence[Sequence[Region]]) -> Guesses:
        """A table of what is seen in each image."""
        regions = [regions_to_json(guess) for guess in guesses]
        return Guesses(pd.DataFrame({"item_id": pd.Series(item_ids, dtype="str"), "regions": regions}))

    def by_item(self) -> dict[str, tuple[Region, ...]]:
        """The regions in each image."""
        return dict(zip(self.item_ids, map(regions_from_json, self.table["regions"]), strict=True))


class BatchRow(NamedTuple):
    """One image of a batch; what only a model knows is None without a model."""

    item_id: str
    uri: str
    rank: int
    reason: str
    why: str
    confused_classes: str | None = None
    uncertainty: float | None = None
    novelty: float | None = None


@dataclass(frozen=True)
class BatchTable(Rows):
    """What a round asks for, most wanted first by `rank`; why, and what the model sees where there is one."""

    @property
    def reasons(self) -> pd.Series[str]:
        """Why each image was chosen, with the numbers."""
        return self.table["reason"]

    def rows(self, pool: PoolTable) -> list[BatchRow]:
        """The images, with the places where the pool knows them now."""
        there = pool.located(self.table).reindex(columns=BatchRow._fields).astype(object)
        known = there.where(there.notna(), None)
        return [BatchRow(*row) for row in known.itertuples(index=False, name=None)]


def _in_bytes(ids: pd.Series[str]) -> NDArray[np.bytes_]:
    """Ids of the pool, which are hashes in ASCII."""
    return np.array(ids.tolist(), dtype=np.bytes_)


def class_indices(names: Sequence[str], classes: Sequence[str]) -> Tensor:
    """Class index `(n,)` of each name."""
    import torch

    index = {name: position for position, name in enumerate(classes)}
    return torch.tensor([index[name] for name in names], dtype=torch.long)
