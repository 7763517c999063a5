"""What a round's members decide about images on disk, a part of them at a time."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial

import pandas as pd
from torch import Tensor

from connectors.images.pixels import stream_images
from connectors.images.reading import WHOLE, Reading
from flows.cache import features_of
from pipeline.learning.networks import CHUNK
from pipeline.learning.predict import decide_on_features, decide_on_images, read_features
from pipeline.learning.settings import MemberSettings, ModelSettings
from pipeline.members.predict import Decided
from pipeline.networks.classifier import Classifier
from pipeline.networks.features import feature_bytes
from pipeline.tasks.task_type import TaskType
from pipeline.types import OnProgress

SHARD = 4096
"""Candidates in one file of scores, and images whose features are in memory at a time at most."""
MOST_BYTES = 2**30
"""Features that are in memory at a time, at most."""


def predictions(
    models: Sequence[Classifier],
    items: pd.DataFrame,
    settings: ModelSettings,
    members: MemberSettings | None = None,
    *,
    task: TaskType,
    reading: Reading = WHOLE,
    keep: bool = True,
    cache_gb: float | None = None,
    images: Iterable[Tensor] | None = None,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Iterator[Decided]:
    """What members decide about images, a part of them at a time; no more is in memory.

    A frozen trunk that all networks share is asked once for an image, whatever their number, and never again where its
    features are kept: see `features_of`.

    Args:
        items: item_id and uri.
        task: what the networks decide.
        members: how each network becomes several members; None for one each.
        reading: how the images are read.
        keep: whether features that are computed are kept.
        cache_gb: bound of all features that are kept; None leaves them alone.
        images: the same, decoded, in parts; None to decode them when they are needed.
        seed: of the members' draws.
        on_progress: called with (done, total) images.
    """
    if read_features(models, members):
        features_in_parts = partial(_features_in_parts, reading=reading, keep=keep, cache_gb=cache_gb)
        parts = features_in_parts(models[0], items, settings, on_progress=on_progress)
        for features in parts:
            yield from decide_on_features(models, features, members, task=task, seed=seed)
        return
    done, size, channels = 0, settings.image_size, settings.channels
    streamed = stream_images(items["uri"].tolist(), size=size, channels=channels, chunk=CHUNK, reading=reading)
    with closing(streamed):  # which begins when it is first asked
        decisions = decide_on_images(models, images or streamed, settings, members, task=task, seed=seed)
        for decided in decisions:
            yield decided
            done += len(decided.decisions)
            if on_progress is not None:
                on_progress(done, len(items))


def _features_in_parts(
    body: Classifier,
    items: pd.DataFrame,
    settings: ModelSettings,
    *,
    reading: Reading,
    keep: bool,
    cache_gb: float | None,
    on_progress: OnProgress | None,
) -> Iterator[Tensor]:
    """What the frozen trunk makes of the images; parts of large features have fewer images."""
    n_images = min(SHARD, max(1, MOST_BYTES // feature_bytes(body, image_size=settings.image_size)))
    for start in range(0, len(items), n_images):
        part = items.iloc[start : start + n_images]

        def count(done: int, _total: int, start: int = start) -> None:
            if on_progress is not None:
                on_progress(start + done, len(items))

        features = features_of(body, part, settings, reading=reading, keep=keep, max_gb=cache_gb, on_progress=count)
        count(len(part), len(part))
        yield features
