"""Work in threads: a map over many files, and a bound on the memory that all threads take together."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from pipeline.types import OnProgress

T = TypeVar("T")
R = TypeVar("R")


class MemoryGate:
    """Lets threads in as long as the bytes that all of them hold stay below a limit."""

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


def map_in_threads(
    function: Callable[[T], R],
    values: Sequence[T],
    on_progress: OnProgress | None = None,
    *,
    n_threads: int | None = None,
) -> list[R]:
    """`[function(value) for value in values]`; in chunks, as a million futures would fill the memory.

    Args:
        on_progress: called with (done, total).
        n_threads: None for what suits the cores; more where the function waits for a network.
    """
    n_each = 64 if n_threads is None else 8
    chunks = [values[start : start + n_each] for start in range(0, len(values), n_each)]
    results: list[R] = []
    with ThreadPoolExecutor(n_threads) as pool:
        for part in pool.map(lambda chunk: [function(value) for value in chunk], chunks):
            results += part
            if on_progress is not None:
                on_progress(len(results), len(values))
    return results
