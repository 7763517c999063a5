"""Tables of labels in one word for each image, as tests read and write them."""

from collections.abc import Iterable

import pandas as pd

from pipeline.regions import regions_to_json
from pipeline.tables import Labels
from pipeline.tasks import classification


def words_of(table: pd.DataFrame) -> "pd.Series[str]":
    """The label of each image."""
    return pd.Series(Labels(table).words, index=table.index)


def regions_of(words: Iterable[str]) -> list[str]:
    """The column `regions` of images with these labels."""
    return [regions_to_json(classification.read_label(word)) for word in words]
