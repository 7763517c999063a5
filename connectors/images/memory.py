"""A bound on the memory that threads take together."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class MemoryGate:
    """Lets threads in as long as what they say they take, all together, stays below a limit."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._n_bytes = 0

    @property
    def n_bytes(self) -> int:
        """What those inside take."""
        return self._n_bytes

    @contextmanager
    def hold(self, n_bytes: int, *, limit: float) -> Iterator[None]:
        """Wait until there is room; who is alone always has it."""
        with self._changed:
            self._changed.wait_for(lambda: self._n_bytes == 0 or self._n_bytes + n_bytes <= limit)
            self._n_bytes += n_bytes
        try:
            yield
        finally:
            with self._changed:
                self._n_bytes -= n_bytes
                self._changed.notify_all()
