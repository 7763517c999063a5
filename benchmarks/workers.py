"""What workers of Ray cost beside one process, and what many would come to: python -m benchmarks.workers

A private cluster on this machine, two workers. A shard is a ResNet-18 over as many random images as take some seconds
on one thread, and a small file; a tiny piece does nothing. Efficiency of many workers is worked out by list
scheduling: shards of the seconds that were measured, given to whichever worker is free first, plus what Ray takes to
begin and for each piece, in one process after another.
Options: [--json OUT]
"""

import argparse
import heapq
import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter

import torch
from torchvision.models import resnet18

from flows.workers.cluster import joined
from flows.workers.ray import Spread
from flows.workers.settings import WorkerSettings

N_SHARDS, N_TINY, N_WORKERS = 8, 200, 2
BATCH, BATCHES, SIDE = 32, 12, 128
POOL_SHARDS = 245
"""Shards of a million images."""
MANY = (8, 64)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        rows = measured(Path(place))
    for row in rows:
        print(f"{row['work']:<48} {row['value']:>10.4g} {row['unit']}")  # noqa: T201
    if asked.json is not None:
        asked.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def measured(folder: Path) -> list[dict[str, str | float]]:
    """A row for each figure: work, value, unit."""
    local = [timed(partial(shard, folder, n)) for n in range(N_SHARDS)][1:]  # the first loads torch's kernels
    settings = WorkerSettings(workers="ray")
    begun = perf_counter()
    with joined(settings, folder):
        to_begin = perf_counter() - begun
        do = Spread(settings, folder, tiny).do
        first = timed(lambda: do(range(N_WORKERS), ignore))
        of_tiny = timed(lambda: do(range(N_TINY), ignore)) / N_TINY
        run = Spread(settings, folder, shard).do
        run(range(N_WORKERS), ignore)
        side_by_side = timed(lambda: run(range(N_SHARDS), ignore))
    of_shard = sum(local) / len(local)
    rows: list[tuple[str, float, str]] = [
        ("a shard in one process", of_shard, "s"),
        ("begin a private cluster, each machine asked", to_begin, "s"),
        ("the first pieces of two workers", first, "s"),
        ("a tiny piece on Ray", 1000 * of_tiny, "ms"),
        (f"{N_SHARDS} shards on Ray, two workers", side_by_side, "s"),
        ("two workers beside one process", N_SHARDS * of_shard / side_by_side, "times"),
    ]
    pool = [local[n % len(local)] for n in range(POOL_SHARDS)]
    for n_workers in MANY:
        share = efficiency(pool, n_workers, serial=to_begin + first, of_piece=of_tiny)
        rows.append((f"a million images on {n_workers} workers, simulated", share, "efficiency"))
    return [{"work": work, "value": value, "unit": unit} for work, value, unit in rows]


def efficiency(seconds: Sequence[float], n_workers: int, *, serial: float, of_piece: float) -> float:
    """Seconds of all pieces over seconds of all workers, idle or not, by list scheduling (Graham, 1969).

    Args:
        seconds: of each piece, in the order in which they are begun.
        serial: seconds before the first piece, in which all workers wait.
        of_piece: seconds that each piece keeps the one process that hands them out.

    >>> efficiency([1.0] * 8, 4, serial=0.0, of_piece=0.0)
    1.0
    >>> efficiency([1.0] * 9, 4, serial=0.0, of_piece=0.0)
    0.75
    """
    free = [serial] * n_workers
    handed = serial
    for one in seconds:
        handed += of_piece
        heapq.heappush(free, max(heapq.heappop(free), handed) + one)
    return sum(seconds) / (n_workers * max(free))


def shard(folder: Path, n: int) -> None:
    """Pass random images through a network, and write a number."""
    generator = torch.Generator().manual_seed(n)
    images = torch.rand((BATCH, 3, SIDE, SIDE), generator=generator)
    model = resnet18().eval()
    with torch.inference_mode():
        total = sum(float(model(images).sum()) for _ in range(BATCHES))
    (folder / f"{n}.txt").write_text(str(total), encoding="ascii")


def tiny(_folder: Path, _n: int) -> None:
    """Do nothing."""


def ignore(_n: int) -> None:
    """Do nothing."""


def timed(work: Callable[[], None]) -> float:
    """Seconds that something takes."""
    begun = perf_counter()
    work()
    return perf_counter() - begun


if __name__ == "__main__":
    main()
