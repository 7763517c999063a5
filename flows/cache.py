"""Features of frozen networks and decoded images, kept between rounds and campaigns: where, and what they take."""

from pathlib import Path

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from connectors.feature_store import FeatureCache, shrink, usage
from connectors.frozen_features import cached_features, open_cache
from connectors.images.reading import WHOLE, Reading
from connectors.kept_images import kept_images, open_images
from flows.home import home
from flows.kept_objects import GIGABYTE
from pipeline.image_rows import Images
from pipeline.learning.settings import ModelSettings
from pipeline.networks.classifier import Classifier
from pipeline.types import OnProgress

UNWATCHED = 0.01
"""Share of the bound that a process may append before it looks whether all is still within."""


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
    max_gb: float | None = None,
    on_progress: OnProgress | None = None,
) -> Tensor:
    """What a network's frozen trunk makes of images, `(n, ...)` in float16; only what is not kept is computed.

    Args:
        body: on the device that computes.
        items: item_id and uri.
        reading: how the images are read.
        keep: whether what is computed is kept.
        max_gb: bound of the features of all campaigns; it is looked after now and then, as all files are listed for it.
        on_progress: called with (done, total) images.
    """
    cache = open_cache(features_folder(), body, image_size=settings.image_size, ranges=reading.ranges)
    features = cached_features(
        cache,
        body,
        items["item_id"].tolist(),
        items["uri"].tolist(),
        image_size=settings.image_size,
        reading=reading,
        keep=keep,
        on_progress=on_progress,
    )
    _keep_within(cache, max_gb)
    return features


def kept_features_of(
    body: Classifier, items: pd.DataFrame, settings: ModelSettings, *, reading: Reading = WHOLE
) -> Tensor | None:
    """What `features_of` gives, where all of it is kept; else None, and nothing is computed."""
    cache = open_cache(features_folder(), body, image_size=settings.image_size, ranges=reading.ranges)
    missing, features = cache.read_kept(items["item_id"].tolist())
    return None if len(missing) else features


def images_of(
    items: pd.DataFrame,
    settings: ModelSettings,
    *,
    reading: Reading = WHOLE,
    max_gb: float | None = None,
    on_progress: OnProgress | None = None,
) -> Images:
    """Images `(n, channels, S, S)` as networks take them, on the disk; only what is not kept is decoded.

    Args:
        items: item_id and uri, at least one.
        reading: how the images are read.
        max_gb: as of `features_of`.
        on_progress: called with (done, total) images.
    """
    size, channels = settings.image_size, settings.channels
    cache = open_images(features_folder(), size=size, channels=channels, ranges=reading.ranges)
    images = kept_images(
        cache,
        items["item_id"].tolist(),
        items["uri"].tolist(),
        size=size,
        channels=channels,
        reading=reading,
        on_progress=on_progress,
    )
    _keep_within(cache, max_gb)
    return images


def _keep_within(cache: FeatureCache, max_gb: float | None) -> None:
    """Keep all that is kept within a bound, as soon as a process has appended more than a small share of that."""
    if max_gb is not None and cache.n_fresh > UNWATCHED * max_gb * GIGABYTE:
        shrink(features_folder(), int(max_gb * GIGABYTE))
        cache.n_fresh = 0


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
