"""What large pools cost, beside bare limits: python -m benchmarks.scale [--json OUT] [--only NAME ...] [--quick]

Each work runs in a process of its own, on pools of 10,000, 100,000 and 1,000,000 images: of tiny files where files are
read, else of features that are kept. Bare limits stand in the column of the peer: a walk over the folder, a
memory-mapped read of the same bytes, the bare product with the weights. With --json the growth is drawn beside OUT.
"""

import multiprocessing
import statistics
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Concatenate, ParamSpec

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import big_campaigns as big
from benchmarks import small_rounds as small
from benchmarks.measure import Row, arguments, report, write
from connectors.feature_store import FeatureCache

DATA = "ten Gaussian clusters of 384 features, tiny PNGs of noise; labels by number"
SIZES, QUICK_SIZES = (10_000, 100_000, 1_000_000), (1000, 2000, 4000)
STRATEGIES = ("auto", "k_center", "badge", "random")
N_ROUNDS, QUICK_ROUNDS = 100, 4
P = ParamSpec("P")


@dataclass(frozen=True)
class Point:
    """What some work took on n images; `bare_s` is the limit beside it.

    Attributes:
        note: what else is to be said.
    """

    n: int
    seconds: float
    peak_mb: float | None
    bare_s: float | None = None
    note: str = ""


Lines = dict[str, list[Point]]
"""Points of growing size by what is done."""


def main() -> None:
    """Measure, print, write, draw."""
    options = arguments(__doc__, ["features", "rounds", "files", "hundred"])
    sizes = QUICK_SIZES if options.quick else SIZES
    cases: dict[str, Callable[[Path], Lines]] = {
        "features": partial(feature_lines, sizes=sizes),
        "rounds": partial(round_lines, sizes=sizes),
        "files": partial(file_lines, sizes=sizes),
    }
    lines: Lines = {}
    rows: list[Row] = []
    for name, measured in cases.items():
        if not options.only or name in options.only:
            Console(stderr=True).print(f"{name} ...", style="dim")
            with tempfile.TemporaryDirectory(prefix="labelcycle-scale-") as place:
                lines |= measured(Path(place))
            rows = [row for line in lines.items() for row in rows_of(*line)]
            write(rows, DATA, options.json)
    if not options.only or "hundred" in options.only:
        rows.append(hundred_row(QUICK_ROUNDS if options.quick else N_ROUNDS))
        write(rows, DATA, options.json)
    report(rows, DATA)
    if options.json and lines:
        draw(lines, options.json.with_suffix(".png"))


# Features that are kept


def feature_lines(place: Path, *, sizes: Sequence[int]) -> Lines:
    """The store of features beside memory-mapped files of the same bytes."""
    lines: Lines = {name: [] for name in ("features appended", "features found", "features read", "features drawn")}
    for n in sizes:
        folder = place / str(n)
        folder.mkdir()
        bare_write, bare_read = apart(write_bare, folder, n), apart(read_bare, folder)
        lines["features appended"].append(Point(n, *apart(append_features, folder, n), bare_s=bare_write[0]))
        lines["features found"].append(Point(n, *apart(find_features, folder, n)))
        lines["features read"].append(
            Point(n, *apart(read_features, folder, n), bare_s=bare_read[0], note="in their order, checked before")
        )
        first = apart(read_first, folder, n)
        note = f"in another order; the first look, which checks every byte: {first[0]:.2f} s"
        drawn = apart(read_shuffled, folder, n)
        lines["features drawn"].append(Point(n, *drawn, bare_s=apart(read_bare_shuffled, folder)[0], note=note))
    return lines


def write_bare(folder: Path, n: int) -> big.Told:
    """The features in one file that is mapped and written through to the disk."""
    chunks = [(start, chunk) for start, chunk in big.drawn_features(min(n, 100 * big.CHUNK))]
    values = np.memmap(folder / "bare.f16", dtype=np.float16, mode="w+", shape=(n, big.D))

    def write_all() -> None:
        for start in range(0, n, big.CHUNK):
            chunk = chunks[start // big.CHUNK % len(chunks)][1][: n - start]
            values[start : start + len(chunk)] = chunk[: len(values[start : start + len(chunk)])]
        values.flush()

    return big.timed(write_all)


def read_bare(folder: Path) -> big.Told:
    """All of that file copied into memory."""
    values = np.memmap(folder / "bare.f16", dtype=np.float16, mode="r")
    return big.timed(lambda: np.array(values))


def read_bare_shuffled(folder: Path) -> big.Told:
    """Its rows in another order."""
    values = np.memmap(folder / "bare.f16", dtype=np.float16, mode="r").reshape(-1, big.D)
    order = np.random.default_rng(0).permutation(len(values))
    return big.timed(lambda: values[order])


def ids_of(n: int) -> list[str]:
    """Ids as hashes are."""
    return [bytes(row).hex() for row in np.random.default_rng(0).integers(0, 256, (n, 16), dtype=np.uint8)]


def append_features(folder: Path, n: int) -> big.Told:
    """The same features, chunk by chunk, as scoring appends them."""
    cache, ids = FeatureCache(folder, "key"), ids_of(n)
    chunks = [torch.from_numpy(chunk) for _, chunk in big.drawn_features(min(n, 100 * big.CHUNK))]

    def append_all() -> None:
        for start in range(0, n, big.CHUNK):
            some = ids[start : start + big.CHUNK]
            cache.append(some, chunks[start // big.CHUNK % len(chunks)][: len(some)])

    return big.timed(append_all)


def opened(folder: Path, n: int) -> tuple[FeatureCache, list[str]]:
    """The store, each file of which was looked at, and the ids."""
    cache, ids = FeatureCache(folder, "key"), ids_of(n)
    cache.missing(ids)
    return cache, ids


def find_features(folder: Path, n: int) -> big.Told:
    """Where the features of all ids are."""
    cache, ids = opened(folder, n)
    return big.timed(lambda: cache.missing(ids))


def read_features(folder: Path, n: int) -> big.Told:
    """All features, in the order in which they were appended."""
    cache, ids = opened(folder, n)
    return big.timed(lambda: cache.read(ids))


def read_first(folder: Path, n: int) -> big.Told:
    """The first look at all files."""
    cache, ids = FeatureCache(folder, "key"), ids_of(n)
    return big.timed(lambda: cache.missing(ids))


def read_shuffled(folder: Path, n: int) -> big.Told:
    """All features in another order."""
    cache, ids = opened(folder, n)
    order = np.random.default_rng(0).permutation(n)
    shuffled = [ids[row] for row in order]
    return big.timed(lambda: cache.read(shuffled))


# A round on features that are kept


def round_lines(place: Path, *, sizes: Sequence[int]) -> Lines:
    """Score, select, push and collect, of campaigns whose images are on no disk."""
    lines: Lines = {"score from kept features": []}
    for n in sizes:
        apart(make, place, n)
        folders = [big.make_alike(place / f"{n}-auto", strategy) for strategy in STRATEGIES[1:]]
        for strategy, folder in zip(STRATEGIES, (place / f"{n}-auto", *folders), strict=True):
            scored = apart(big.stage_score, folder)
            bare = apart(bare_pass, place)
            chosen = Point(n, *apart(big.stage_select, folder), bare_s=bare[0])
            lines.setdefault(f"select by {strategy}", []).append(chosen)
            if strategy == "auto":
                pushed, collected = apart(big.stage_push, folder), apart(big.stage_collect, folder)
                note = f"the scores take {big.megabytes_of_scores(folder):.2f} MB on the disk"
                product = apart(bare_product, place)[0]
                lines["score from kept features"].append(Point(n, *scored, bare_s=product, note=note))
                n_asked = min(big.N_ASKED, n // 10)
                lines.setdefault(f"push {n_asked:,}, in memory", []).append(Point(n, *pushed))
                lines.setdefault(f"collect {n_asked:,}, in memory", []).append(Point(n, *collected))
        remove_features(place)
    return lines


def make(place: Path, n: int) -> big.Told:
    """A campaign that is about to score."""
    with big.home_at(place):
        return big.timed(lambda: big.make_campaign(place, n))


def remove_features(place: Path) -> None:
    """Make room for the features of a larger pool."""
    for path in (place / "home" / "features").rglob("*"):
        if path.is_file():
            path.unlink()


def mapped_features(place: Path) -> list[NDArray[np.uint8]]:
    """The files of the store as bytes, as an operating system maps them."""
    return [np.memmap(path, dtype=np.uint8, mode="r") for path in (place / "home" / "features").rglob("*.arrow")]


def bare_pass(place: Path) -> big.Told:
    """One memory-mapped read of all features."""
    return big.timed(lambda: [np.array(values) for values in mapped_features(place)])


def bare_product(place: Path) -> big.Told:
    """The features, read and multiplied by the weights of two heads."""
    weights = torch.randn(big.D, 2 * big.N_CLASSES)

    def multiply() -> None:
        for values in mapped_features(place):
            n = len(values) // (2 * big.D) * 2 * big.D
            features = torch.from_numpy(np.array(values[:n])).view(torch.float16).view(-1, big.D)
            (features.float() @ weights).unflatten(1, (2, -1)).softmax(dim=2)

    return big.timed(multiply)


# Files


def file_lines(place: Path, *, sizes: Sequence[int]) -> Lines:
    """Index, index again, and a run that finds labels missing, on tiny files."""
    lines: Lines = {"index": [], "index again": [], "a run that finds labels missing": []}
    for n in sizes:
        folder = small.write_campaign(place / str(n), n)
        walk = apart(small.walk, folder)
        lines["index"].append(Point(n, *apart(small.index, folder), bare_s=walk[0]))
        walk = apart(small.walk, folder)
        lines["index again"].append(Point(n, *apart(small.index, folder), bare_s=walk[0]))
        apart(small.ask_first, folder)
        idle = apart(small.idle, folder)
        lines["a run that finds labels missing"].append(Point(n, *idle, bare_s=walk[0]))
    return lines


# Rows


def hundred_row(n_rounds: int) -> Row:
    """Rounds on one pool: seconds of the last over those of the first."""
    with tempfile.TemporaryDirectory(prefix="labelcycle-scale-") as place, ProcessPoolExecutor(1, spawned()) as process:
        seconds = process.submit(small.rounds, Path(place), n_rounds).result()
    few = max(1, n_rounds // 10)
    first, last = statistics.median(seconds[1 : 1 + few]), statistics.median(seconds[-few:])
    return Row(
        work=f"{n_rounds} rounds of {small.N_ASKED} labels on {small.N_IMAGES:,} images",
        ours_s=sum(seconds),
        ours_runs=1,
        last_over_first=last / first,
        note=f"seconds of a round, median of {few}: {first:.2f} at first, {last:.2f} at last",
    )


def rows_of(work: str, line: Sequence[Point]) -> list[Row]:
    """A row for each size; the exponent is that of the whole line."""
    grows_as = exponent(line)
    return [
        Row(
            work=f"{work}: {point.n:,} images",
            ours_s=point.seconds,
            peer=None if point.bare_s is None else "bare limit",
            peer_s=point.bare_s,
            ratio=None if point.bare_s is None else point.bare_s / point.seconds,
            peak_mb=point.peak_mb,
            ours_runs=1,
            peer_runs=0 if point.bare_s is None else 1,
            exponent=grows_as,
            note="; ".join(filter(None, (point.note, f"seconds grow as N^{grows_as:.2f}" if grows_as else ""))),
        )
        for point in line
    ]


def exponent(line: Sequence[Point]) -> float | None:
    """Return e of seconds ~ N^e, fitted to the logarithms; None of fewer than two sizes.

    >>> round(exponent([Point(10, 1.0, None), Point(100, 10.0, None), Point(1000, 100.0, None)]), 6)
    1.0
    """
    if len(line) < 2:
        return None
    sizes, seconds = np.log([[point.n, point.seconds] for point in line]).T
    return float(np.polyfit(sizes, seconds, 1)[0])


def draw(lines: Lines, path: Path) -> None:
    """Draw seconds over images, both logarithmic, as PNG; dotted are bare limits."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6.5), layout="constrained")
    axes = figure.subplots()
    for number, (work, line) in enumerate(lines.items()):
        grows_as, colour = exponent(line), colormaps["tab20"](number % 20)
        label = work if grows_as is None else f"{work}: N^{grows_as:.2f}"
        axes.loglog([p.n for p in line], [p.seconds for p in line], marker="o", color=colour, label=label)
        bare = [(p.n, p.bare_s) for p in line if p.bare_s is not None]
        axes.loglog([n for n, _ in bare], [seconds for _, seconds in bare], ":", color=colour)
    axes.set(xlabel="images N", ylabel="seconds", title="What a pool costs, step by step; dotted: the bare limit")
    axes.grid(which="both", alpha=0.3)
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=130)


def spawned() -> multiprocessing.context.SpawnContext:
    """How a process of its own begins: with nothing of this one."""
    return multiprocessing.get_context("spawn")


def apart(work: Callable[Concatenate[Path, P], big.Told], place: Path, *args: P.args, **kwargs: P.kwargs) -> big.Told:
    """Do some work in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=spawned()) as process:
        return process.submit(work, place, *args, **kwargs).result()


if __name__ == "__main__":
    main()
