"""Batch sizes that fit into the memory of this machine's GPUs, kept for later runs."""

from contextlib import suppress
from pathlib import Path

from connectors.store import StoreError, read_json, write_json
from flows.home import home
from flows.progress import say
from flows.step import log
from pipeline.networks.halving import FITTING

NAME = "batch-sizes.json"
"""In the home: what was computed -> so many inputs at a time fit. Without it, larger ones are tried again."""


def keep_batch_sizes() -> None:
    """Begin with the sizes that earlier runs found, or smaller ones, and keep those that this process finds."""
    for work, n in read_sizes().items():
        FITTING.known[work] = min(n, FITTING.known.get(work, n))
    FITTING.on_found = _keep


def read_sizes() -> dict[str, int]:
    """The sizes that are kept; none where the file cannot be read, as they can be found again."""
    try:
        held = read_json(_path())
    except (StoreError, OSError):
        return {}
    sizes = held.items() if isinstance(held, dict) else ()
    return {work: n for work, n in sizes if isinstance(n, int) and n > 0}


def sizes_on(device: str) -> list[str]:
    """The sizes that are kept for a device, a line each."""
    return [f"{work}: {n}" for work, n in read_sizes().items() if work.endswith(f", {device}")]


def _keep(work: str, n: int) -> None:
    if read_sizes().get(work) == n:  # another process that trains the same network was first
        return
    told = f"memory is too small for more: {n} at a time from now on ({work})"
    log().info(told)
    say(told)
    with suppress(StoreError):  # the next run finds it again
        write_json(_path(), read_sizes() | {work: n})


def _path() -> Path:
    return home() / NAME
