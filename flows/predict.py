"""What a round's members decide about images on disk, a part of them at a time."""

from collections.abc import Iterator, Sequence
from contextlib import closing

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
from pipeline.tasks.task_type import TaskType
from pipeline.types import OnProgress

SHARD = 4096
"""Candidates in one file of scores, and images whose features are in memory at a time."""


def predictions(
    models: Sequence[Classifier],
    items: pd.DataFrame,
    settings: ModelSettings,
    members: MemberSettings | None = None,
    *,
    task: TaskType,
    reading: Reading = WHOLE,
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> Iterator[Decided]:
    """What members decide about images, a part of them at a time; no more is in memory.

    A frozen trunk that all networks share is asked once for an image and never again: see `features_of`.

    Args:
        items: item_id and uri.
        task: what the networks decide.
        members: how each network becomes several members; None for one each.
        reading: how the images are read.
        seed: of the members' draws.
        on_progress: called with (done, total) images.
    """
    if read_features(models, members):
        for features in _features_in_shards(models[0], items, settings, reading=reading, on_progress=on_progress):
            yield from decide_on_features(models, features, members, task=task, seed=seed)
        return
    uris, done = items["uri"].tolist(), 0
    size, channels = settings.image_size, settings.channels
    with closing(stream_images(uris, size=size, channels=channels, chunk=CHUNK, reading=reading)) as images:
        for decided in decide_on_images(models, images, settings, members, task=task, seed=seed):
            yield decided
            done += len(decided.decisions)
            if on_progress is not None:
                on_progress(done, len(items))


def _features_in_shards(
    body: Classifier,
    items: pd.DataFrame,
    settings: ModelSettings,
    *,
    reading: Reading,
    on_progress: OnProgress | None,
) -> Iterator[Tensor]:
    """What the frozen trunk makes of the images."""
    for start in range(0, len(items), SHARD):
        shard = items.iloc[start : start + SHARD]

        def count(done: int, _total: int, start: int = start) -> None:
            if on_progress is not None:
                on_progress(start + done, len(items))

        features = features_of(body, shard, settings, reading=reading, on_progress=count)
        count(len(shard), len(shard))
        yield features
