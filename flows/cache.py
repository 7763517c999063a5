"""The features of frozen networks, kept between rounds and campaigns: where they are and what they take."""

from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from connectors.feature_store import shrink, usage
from connectors.frozen_features import cached_features, open_cache
from connectors.images.reading import WHOLE, Reading
from flows.home import home
from pipeline.learning.settings import ModelSettings
from pipeline.networks.classifier import Classifier
from pipeline.types import OnProgress

GIGABYTE = 1e9


def features_folder() -> Path:
    """Where the features are: beside the local servers, for all campaigns that run from here."""
    return home() / "features"


def features_of(
    body: Classifier,
    items: pd.DataFrame,
    settings: ModelSettings,
    *,
    reading: Reading = WHOLE,
    keep: bool = True,
    on_progress: OnProgress | None = None,
) -> Tensor:
    """What a network's frozen trunk makes of images, `(n, ...)` in float16; only what is not kept is computed.

    Args:
        body: on the device that computes.
        items: item_id and uri.
        reading: how the images are read.
        keep: whether what is computed is kept.
        on_progress: called with (done, total) images.
    """
    return cached_features(
        open_cache(features_folder(), body, image_size=settings.image_size, ranges=reading.ranges),
        body,
        items["item_id"].tolist(),
        items["uri"].tolist(),
        image_size=settings.image_size,
        reading=reading,
        keep=keep,
        on_progress=on_progress,
    )


def shrink_features(max_gb: float) -> None:
    """Keep the features of all campaigns within a bound."""
    shrink(features_folder(), int(max_gb * GIGABYTE))


def cache_table(folder: Path) -> Table:
    """A row for each network whose features are kept: images, size, when they were last used."""
    kept = usage(folder)
    total = sum(one.n_bytes for one in kept) / GIGABYTE
    table = Table(title=str(folder), caption=f"{total:.3f} GB in all", box=SIMPLE_HEAD)
    for name, justify in (("network", "left"), ("images", "right"), ("GB", "right"), ("last used", "left")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for one in kept:
        used = f"{one.last_used.astimezone():%Y-%m-%d %H:%M}"
        table.add_row(one.key, f"{one.n_items:,}", f"{one.n_bytes / GIGABYTE:.3f}", used)
    return table
