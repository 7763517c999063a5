"""Objects opened as files are, for whoever decodes images: from the cache, or from the store and proved unchanged."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from time import monotonic

from connectors.images.threads import MemoryGate
from connectors.objects.addresses import place_of
from connectors.objects.cache import ImageCache
from connectors.objects.store import Content, get
from pipeline.pool.reasons import CHANGED, TOO_LARGE, PoolError

MAX_BYTES = 2 * 1024**3
"""Of an object; a larger one would take minutes to read."""
BYTES_AT_ONCE = 2**30
"""Of all objects that threads hold while they are decoded; one alone may be larger."""
LONGEST_WAIT = 10.0
"""Seconds that an answer which has begun may wait for room; its end is `store.ANSWER_TIME` from its begin."""

_GATE = MemoryGate()


@dataclass(frozen=True)
class Objects:
    """How objects are opened.

    Attributes:
        items: address -> the item id that the index has for it; an object without one is taken as it is, and not kept.
        cache: keeps what is read; None for nothing.
    """

    items: Mapping[str, str] = field(default_factory=dict)
    cache: ImageCache | None = None

    @contextmanager
    def open(self, uri: str) -> Iterator[BytesIO]:
        """The bytes of an object, in memory.

        Raises:
            PoolError: it is not there, may not be read, or is another one than the index has; the message is the
                reason.
            PoolUnavailable: the store does not answer, or lets nobody in.
        """
        item_id = self.items.get(uri)
        if self.cache and item_id and (held := self.cache.read(item_id)) is not None:
            yield BytesIO(held)
            return
        content, begun = self._get(uri, item_id), monotonic()
        with _GATE.hold(content.found.size_bytes, limit=BYTES_AT_ONCE):
            if monotonic() - begun > LONGEST_WAIT:
                content = self._get(uri, item_id)
            held = content.read()
            if self.cache and item_id:
                self.cache.keep(item_id, held)
            yield BytesIO(held)

    def _get(self, uri: str, item_id: str | None) -> Content:
        content = get(place_of(uri))
        if item_id is not None and content.found.item_id != item_id:
            raise PoolError(CHANGED)
        if content.found.size_bytes > MAX_BYTES:
            raise PoolError(f"{TOO_LARGE}: {content.found.size_bytes:,} bytes, more than {MAX_BYTES:,}")
        return content
