"""The campaign's images as steps see them: pixels, features of a frozen trunk, predictions; read in parts."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from connectors.image_folder.index import reason_to_set_aside
from connectors.images.pixels import load_images, stream_images
from connectors.images.reading import Reading
from connectors.images.threads import map_in_threads
from connectors.objects.addresses import is_address
from connectors.objects.reading import Objects
from connectors.score_files import GROUP, ItemList
from flows.cache import features_of, images_of, kept_features_of
from flows.kept_objects import GIGABYTE, image_cache
from flows.predict import predictions
from pipeline.image_rows import Images
from pipeline.learning.networks import CHUNK
from pipeline.learning.predict import read_features
from pipeline.learning.settings import MemberSettings, ModelSettings
from pipeline.members.predict import Decided, is_linear
from pipeline.networks.classifier import Classifier
from pipeline.networks.features import feature_bytes
from pipeline.pool.reasons import ImageError
from pipeline.tables import PoolTable
from pipeline.tasks.task_type import TaskType
from pipeline.types import OnProgress


@dataclass(frozen=True)
class PoolImages:
    """The images of a pool, as the networks of a campaign take them.

    Attributes:
        pool: knows where an image is now.
        model: the size and channels of what the networks take.
        task: what the networks decide.
        reading: how the images are read.
        cache_gb: bound of the features and images that are kept on the disk.
        image_cache_gb: bound of the images of object stores that are.
    """

    pool: PoolTable
    model: ModelSettings
    task: TaskType
    reading: Reading
    cache_gb: float
    image_cache_gb: float = 0.0

    def load(self, items: pd.DataFrame) -> Tensor:
        """Pixels `(n, channels, S, S)` of images that are given by item_id and uri."""
        located = self.pool.located_part(items)
        how = {"size": self.model.image_size, "channels": self.model.channels}
        return load_images(located["uri"].tolist(), **how, reading=self.reading_of(located))

    def kept(self, items: pd.DataFrame, on_progress: OnProgress | None = None) -> Images:
        """The same of images that later rounds need too: on the disk, where each is decoded once."""
        if not self._keeps(items):
            return self.load(items)
        located = self.pool.located_part(items)
        reading = self.reading_of(located)
        return images_of(located, self.model, reading=reading, max_gb=self.cache_gb, on_progress=on_progress)

    def small(self, items: pd.DataFrame, side: int) -> Tensor:
        """Pixels `(n, 3 * side * side)` in [0, 1], float16: a description of images before there is a model."""
        located = self.pool.located_part(items)
        reading = self.reading_of(located, of_pool=True)
        chunks = stream_images(located["uri"].tolist(), size=side, channels=3, chunk=CHUNK, reading=reading)
        return torch.cat([images.flatten(1).half() / 255 for images in chunks])

    def features(self, body: Classifier, items: pd.DataFrame, on_progress: OnProgress | None = None) -> Tensor:
        """What a frozen trunk makes of images, `(n, ...)` in float16; only what is not kept is computed."""
        located = self.pool.located_part(items)
        reading = self.reading_of(located)
        return features_of(body, located, self.model, reading=reading, max_gb=self.cache_gb, on_progress=on_progress)

    def keeps_embeddings(self, networks: Sequence[Classifier], members: MemberSettings | None) -> bool:
        """Whether the features that are kept are the embeddings: nothing but dropout is before the last layer."""
        body = networks[0]
        if not read_features(networks, members) or not is_linear(body.tail) or not self._fits(body):
            return False
        as_vector = cast("nn.Linear", body.tail[-1]).in_features * torch.half.itemsize
        return as_vector == feature_bytes(body, image_size=self.model.image_size)

    def embeddings(self, body: Classifier, items: ItemList, rows: NDArray[np.int64]) -> Tensor:
        """Embeddings `(R, D)` of images of a list at sorted positions, float16, where `keeps_embeddings`."""
        found: Tensor | None = None
        for start in range(0, int(rows[-1]) + 1 if len(rows) else 0, GROUP):
            first, last = np.searchsorted(rows, (start, start + GROUP))
            if first == last:
                continue
            some = items.rows(start, GROUP).iloc[rows[first:last] - start]
            kept = kept_features_of(body, some, self.model, reading=self.reading)
            part = self.features(body, some) if kept is None else kept
            found = part.new_empty((len(rows), *part.shape[1:])) if found is None else found
            found[first:last] = part
        return torch.empty(0) if found is None else found

    def feature_gb(self, of_image: int) -> float:
        """What the features of the whole pool take, gigabytes, where those of an image take so many bytes."""
        return len(self.pool.usable) * of_image / GIGABYTE

    def predict(
        self,
        networks: Sequence[Classifier],
        items: pd.DataFrame,
        members: MemberSettings | None = None,
        *,
        of_pool: bool = False,
        seed: int = 0,
        on_progress: OnProgress | None = None,
    ) -> Iterator[Decided]:
        """What members decide, a part of the images at a time.

        Args:
            items: item_id and uri.
            members: how each network becomes several members; None for one each.
            of_pool: these are all candidates or a part of them, whose features are kept only where those of the whole
                pool fit within the bound: else they would be written to be thrown away, and those of labelled images
                with them. Decoded images are kept of others alone.
            seed: of the members' draws.
            on_progress: called with (done, total) images.
        """
        located = self.pool.located_part(items)
        on_features = read_features(networks, members)
        keep = not of_pool or not on_features or self._fits(networks[0])
        images = self.kept(items).split(CHUNK) if self._keeps(items) and not of_pool and not on_features else None
        yield from predictions(
            networks,
            located,
            self.model,
            members,
            task=self.task,
            reading=self.reading_of(located, of_pool=of_pool),
            keep=keep,
            cache_gb=self.cache_gb,
            images=images,
            seed=seed,
            on_progress=on_progress,
        )

    def _keeps(self, items: pd.DataFrame) -> bool:
        n_bytes = len(items) * self.model.channels * self.model.image_size**2
        return 0 < n_bytes <= self.cache_gb * GIGABYTE

    def reading_of(self, located: pd.DataFrame, *, of_pool: bool = False) -> Reading:
        """How images are read: objects must be those that the index has, and are kept on the disk.

        Args:
            located: item_id and uri.
            of_pool: these are all candidates or a part of them, which are kept only where the whole pool fits within
                the bound: else each would be thrown away before it is read again.
        """
        is_stored = located["uri"].map(is_address).astype(bool)
        if not is_stored.any():
            return self.reading
        items = dict(zip(located["uri"][is_stored], located["item_id"][is_stored], strict=True))
        n_bytes = self.pool.usable["size_bytes"].sum() if of_pool else 0
        keep = n_bytes <= self.image_cache_gb * GIGABYTE
        return replace(self.reading, objects=Objects(items, image_cache(self.image_cache_gb) if keep else None))

    def there(self, items: pd.DataFrame) -> pd.DataFrame:
        """The images that can still be used: one that could not be read is set aside in the middle of a round."""
        return self.pool.usable_part(items)

    def check(self, items: pd.DataFrame) -> None:
        """Read the images of object stores, which the index has not read: nobody should be asked for a broken one.

        Raises:
            ImageError: one cannot be used.
        """
        located = self.pool.located_part(items)
        reading = self.reading_of(located)
        uris = [uri for uri in located["uri"] if is_address(uri)]
        reasons = map_in_threads(lambda uri: reason_to_set_aside(uri, reading), uris, n_threads=reading.n_threads(uris))
        for uri, reason in zip(uris, reasons, strict=True):
            if reason is not None:
                raise ImageError(uri, reason)

    def _fits(self, body: Classifier) -> bool:
        return self.feature_gb(feature_bytes(body, image_size=self.model.image_size)) <= self.cache_gb
