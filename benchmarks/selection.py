"""Choosing a batch, beside the Python peers: python -m benchmarks.selection [--json OUT] [--only NAME ...] [--quick]

Data: pools of ten Gaussian clusters (benchmarks/pools.py), drawn with seed 0; run i of a contender has seed i.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from benchmarks import peers, references
from benchmarks.measure import (
    RUNS,
    Case,
    Contender,
    Row,
    arguments,
    report,
    run,
    side_by_side,
)
from benchmarks.pools import CHUNK, N_LABELLED, Pool, make_pool
from pipeline.acquisition import ACQUISITIONS, margin, score_all
from pipeline.covering import herd
from pipeline.diversity import d2_sampling, k_center_greedy
from pipeline.information import batch_bald
from pipeline.strategies import STRATEGIES, columns_of, select_batch
from pipeline.types import Candidates

SMALL = partial(make_pool, 600, 16, 10)
"""A pool that takes no time."""

ON_GPU = ("k_center", "badge_500", "uherding", "batch_bald")
"""Cases that run once more where there is a GPU."""

GROWTH = ("k_center", "badge", "typiclust", "uherding", "auto")
GROWTH_SIZES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
GROWTH_LIMIT_S = 60.0
"""A strategy that took longer is not given a larger pool."""

HEURISTICS = {
    "bald": "BALD",
    "entropy": "Entropy",
    "least_confidence": "Certainty",
    "margin": "Margin",
    "variance": "Variance",
}
"""Acquisition function -> the same in baal."""


def main() -> None:
    """Measure, print, write."""
    options = arguments(__doc__)
    rows = run(cases(), options)
    points = {}
    if not options.only or "growth" in options.only:
        points = growth((1000, 2000, 4000) if options.quick else GROWTH_SIZES)
        rows += growth_rows(points)
    report(rows, "pools of ten Gaussian clusters, drawn with seed 0", options.json)
    if options.json and points:
        draw_growth(points, options.json.with_name(f"{options.json.stem}-growth.png"))


def cases() -> list[Case]:
    """Return everything that is measured, except growth."""
    listed = [*k_center_cases(), *other_cases(), *score_cases()]
    return listed + (gpu_cases(listed) if torch.cuda.is_available() else [])


def k_center_cases() -> list[Case]:
    """Return the cases of k-center greedy."""
    case = partial(Case, small=SMALL, ours=Contender("ours", k_center), quality=cover, quality_of=COVER)
    one_by_one = Contender("NumPy, one pick at a time, float64", k_center_reference)
    mundig = Contender("lightly-mundig", peers.mundig, "lightly-mundig")
    core = Contender("lightly-mundig, data loaded,", peers.mundig_core, "lightly-mundig", peers.mundig_loaded)
    skactiveml = Contender("CoreSet of scikit-activeml", peers.core_set, "scikit-activeml")
    small_text = Contender("greedy_coreset of small-text", peers.greedy_coreset, "small-text")
    listed = [
        case(
            name="k_center",
            work="k-center",
            inputs=partial(make_pool, 50_000, 512, 500),
            peers=(mundig, core, skactiveml, one_by_one),
            note=compared_with_one_at_a_time,
        ),
        case(
            name="k_center_10k",
            work="k-center",
            inputs=partial(make_pool, 10_000, 256, 100),
            peers=(mundig, skactiveml, small_text),
            note=compared_with_one_at_a_time,
        ),
    ]
    wanted_gb = 6  # the pool twice, in this process and in the one that measures memory, and room to work
    if psutil.virtual_memory().available < wanted_gb * 1e9:
        Console(stderr=True).print(f"k_center_million is left out: it needs {wanted_gb} GB of free memory")
        return listed
    million = partial(make_pool, 1_000_000, 384, 1000, n_members=0)
    alone = case(name="k_center_million", work="k-center", inputs=million, note=compared_with_bare_passes)
    return [*listed, replace(alone, quality=None, quality_of="")]


def other_cases() -> list[Case]:
    """Return the cases of the other ways to choose."""
    skactiveml = partial(Contender, package="scikit-activeml")
    factored = Contender("NumPy, factored, one pick at a time", badge_reference)
    return [
        Case(
            name="badge",
            work="BADGE",
            inputs=partial(make_fitted_pool, 50_000, 512, 100),
            small=partial(make_fitted_pool, 600, 16, 10),
            ours=Contender("ours", badge),
            peers=(skactiveml("Badge of scikit-activeml", peers.badge, prepare=peers.fitted_classifier), factored),
            quality=badge_potential,
            quality_of=POTENTIAL,
        ),
        Case(
            name="badge_500",
            work="BADGE",
            inputs=partial(make_fitted_pool, 50_000, 512, 500),
            small=partial(make_fitted_pool, 600, 16, 10),
            ours=Contender("ours", badge),
            peers=(factored,),
            quality=badge_potential,
            quality_of=POTENTIAL,
        ),
        Case(
            name="typiclust",
            work="TypiClust",
            inputs=partial(make_pool, 20_000, 512, 100),
            small=SMALL,
            ours=Contender("ours", partial(ask, "typiclust"), prepare=as_candidates),
            peers=(skactiveml("TypiClust of scikit-activeml", peers.typiclust),),
            quality=distance_to_labels,
            quality_of="mean distance of a candidate to the nearest label or pick, lower is better",
        ),
        Case(
            name="max_herding",
            work="MaxHerding on rows of length 1, radius 1",
            inputs=partial(make_unit_pool, 5000, 256, 100),
            small=partial(make_unit_pool, 600, 16, 10),
            ours=Contender("ours", max_herding),
            peers=(skactiveml("MaxHerding of scikit-activeml", peers.max_herding),),
            quality=herding_coverage,
            quality_of="objective: mean kernel with the nearest label or pick, higher is better",
        ),
        Case(
            name="uherding",
            work="UHerding on rows of length 1, weights 1 - margin, adaptive radius",
            inputs=partial(make_unit_pool, 5000, 256, 100),
            small=partial(make_unit_pool, 600, 16, 10),
            ours=Contender("ours", uherding),
            peers=(Contender("NumPy, whole kernel, one pick at a time", uherding_reference),),
            quality=uherding_coverage,
            quality_of="objective: weighted mean kernel with the nearest label or pick, higher is better",
        ),
        Case(
            name="batch_bald",
            work="BatchBALD",
            inputs=partial(make_pool, 2000 + N_LABELLED, 64, 20, n_members=20),
            small=partial(make_pool, 60 + N_LABELLED, 16, 4, n_members=20),
            ours=Contender("ours", joint_bald),
            peers=(
                Contender("batchbald_redux", peers.batch_bald_redux, "batchbald-redux", peers.redux_log_probs),
                Contender("BatchBALD of baal", peers.batch_bald_baal, "baal", peers.classes_before_members),
            ),
            quality=joint_information,
            quality_of="objective: what the picks' labels tell together, nats, higher is better",
        ),
        Case(
            name="ranked_batch",
            work="uncertainty and distance in one pass (the peer has another objective)",
            inputs=partial(make_pool, 10_000, 256, 100),
            small=SMALL,
            ours=Contender("ours, weighted_k_center", partial(ask, "weighted_k_center"), prepare=as_candidates),
            peers=(Contender("ranked batch of modAL", peers.ranked_batch, "modAL-python", peers.fitted_learner),),
            quality=cover,
            quality_of=COVER,
        ),
    ]


def score_cases() -> list[Case]:
    """Return the cases of acquisition functions: each beside baal's, and all together beside the slowest."""
    stream = partial(Case, inputs=partial(make_stream, 1_000_000), small=partial(make_stream, 2000))
    listed = [
        stream(
            name=f"score_{name}",
            work=name,
            ours=Contender("ours", partial(score_stream, name)),
            peers=(Contender(f"{heuristic} of baal", partial(score_with_baal, name), "baal", baal_layout),),
            quality=partial(largest_error, name),
            quality_of="largest difference from the formula in float64",
        )
        for name, heuristic in HEURISTICS.items()
    ]
    slowest = slowest_score(make_stream(20_000))
    together = stream(
        name="score_all",
        work=f"all {len(ACQUISITIONS)} scores in one pass",
        ours=Contender("ours", score_stream_at_once),
        peers=(Contender(f"the slowest of ours alone, {slowest}", partial(score_stream, slowest)),),
    )
    return [*listed, together]


def gpu_cases(listed: list[Case]) -> list[Case]:
    """Return some of the cases for ours on the GPU, beside ours on the CPU."""
    return [
        replace(
            case,
            name=f"gpu_{case.name}",
            work=f"{case.work}, on {torch.cuda.get_device_name()}",
            ours=replace(case.ours, prepare=on_gpu),
            peers=(replace(case.ours, name="ours on the CPU"),),
            note=None,
        )
        for case in listed
        if case.name in ON_GPU
    ]


# What is timed of ours. Each takes a pool and a seed and returns positions in the whole pool, on the CPU.


def k_center(pool: Pool, seed: int) -> Tensor:
    """The farthest point again and again."""
    picks = k_center_greedy(pool.candidates, pool.n_picks, centres=pool.labelled, generator=seeded(seed))
    return N_LABELLED + picks.cpu()


def badge(pool: Pool, seed: int) -> Tensor:
    """D^2 sampling of gradients."""
    return N_LABELLED + d2_sampling(gradient_factors(pool), pool.n_picks, generator=seeded(seed)).cpu()


def max_herding(pool: Pool, seed: int) -> Tensor:
    """Greatest coverage of the candidates."""
    picks = herd(pool.candidates, pool.n_picks, centres=pool.labelled, radius=1.0)
    return N_LABELLED + picks.cpu()


def uherding(pool: Pool, seed: int) -> Tensor:
    """Greatest coverage of the uncertain candidates."""
    weights, radius = uncertainty(pool), adaptive_radius(pool)
    picks = herd(pool.candidates, pool.n_picks, centres=pool.labelled, weights=weights, radius=radius)
    return N_LABELLED + picks.cpu()


def joint_bald(pool: Pool, seed: int) -> Tensor:
    """BatchBALD, 10,000 sampled configurations."""
    return N_LABELLED + batch_bald(pool.probs[N_LABELLED:], pool.n_picks, generator=seeded(seed)).cpu()


def ask(strategy: str, asked: tuple[Candidates, int], seed: int) -> Tensor:
    """A strategy of the registry."""
    candidates, n_picks = asked
    columns = [getattr(candidates, name) for name in columns_of(strategy)]
    answer = STRATEGIES[strategy](*columns, query_size=n_picks, generator=seeded(seed))
    return N_LABELLED + (answer[0] if isinstance(answer, tuple) else answer).cpu()


# The same by the textbook.


def k_center_reference(pool: Pool, seed: int) -> NDArray[np.int64]:
    """The farthest point again and again, one pass over all points for each."""
    return N_LABELLED + references.one_at_a_time(pool.candidates, pool.n_picks, pool.labelled)


def badge_reference(pool: Pool, seed: int) -> NDArray[np.int64]:
    """D^2 sampling of gradients, one pass over all points for each."""
    factors = [factor.numpy() for factor in gradient_factors(pool)]
    return N_LABELLED + references.d2_one_at_a_time(factors, pool.n_picks, seed)


def uherding_reference(pool: Pool, seed: int) -> NDArray[np.int64]:
    """Greatest coverage of the uncertain candidates, with all kernel values in memory."""
    weights, radius = uncertainty(pool), adaptive_radius(pool)
    return N_LABELLED + references.herd_one_at_a_time(pool.candidates, pool.n_picks, pool.labelled, weights, radius)


# Inputs.


def seeded(seed: int) -> torch.Generator:
    """Return a generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def make_unit_pool(n: int, n_features: int, n_picks: int) -> Pool:
    """Return a pool whose embeddings have length 1."""
    return make_pool(n, n_features, n_picks).unit()


def make_fitted_pool(n: int, n_features: int, n_picks: int) -> Pool:
    """Return a pool with the probabilities that scikit-activeml's Badge works with."""
    pool = make_pool(n, n_features, n_picks)
    probs = peers.classifier().fit(pool.labelled, pool.targets[:N_LABELLED]).predict_proba(pool.embeddings)
    return replace(pool, probs=torch.from_numpy(probs).float().unsqueeze(1))


def on_gpu(pool: Pool) -> Pool:
    """Return the pool on the GPU."""
    return pool.on("cuda")


def gradient_factors(pool: Pool) -> list[Tensor]:
    """Return `(N - M, C)` and `(N - M, D)`, whose products of rows are BADGE's gradients (Ash et al., 2020)."""
    mean = pool.probs[N_LABELLED:].mean(dim=1)
    guesses = torch.nn.functional.one_hot(mean.argmax(dim=1), mean.shape[1])
    return [mean - guesses, pool.candidates]


def uncertainty(pool: Pool) -> Tensor:
    """Return `(N - M,)` one minus the margin."""
    return margin(pool.probs[N_LABELLED:])


def adaptive_radius(pool: Pool) -> float:
    """Return the smallest distance between two labelled images (Bae et al., 2025)."""
    return float(torch.nn.functional.pdist(pool.labelled.cpu()).min())


def as_candidates(pool: Pool) -> tuple[Candidates, int]:
    """Return what a strategy is asked with, and for how many."""
    mean = pool.probs.mean(dim=1)
    candidates = Candidates(
        ids=np.char.zfill(np.arange(len(pool.candidates)).astype(str), 7),
        scores=uncertainty(pool),
        embeddings=pool.candidates,
        labelled_embeddings=pool.labelled,
        probs=pool.probs[N_LABELLED:],
        guesses=mean[N_LABELLED:].argmax(dim=1),
        labelled_probs=pool.probs[:N_LABELLED],
        labelled_targets=pool.targets[:N_LABELLED],
    )
    return candidates, pool.n_picks


@dataclass(frozen=True)
class Stream:
    """Class probabilities in chunks.

    Attributes:
        chunks: each `(n, K, C)`; as baal wants them `(n, C, K)`.
    """

    chunks: list[Tensor]

    def __str__(self) -> str:
        n = sum(map(len, self.chunks))
        _, n_members, n_classes = self.chunks[0].shape
        return f"{n:,} x {n_members} members x {n_classes} classes, in chunks of {len(self.chunks[0]):,}"


def make_stream(n: int) -> Stream:
    """Return probabilities of 20 members for 10 classes; each chunk is a copy of the first, in memory of its own."""
    first = make_pool(min(n, CHUNK), 16, 0, n_members=20).probs
    return Stream([first.clone() for _ in range(0, n, CHUNK)])


def baal_layout(stream: Stream) -> Stream:
    """Return the chunks with the members last."""
    return Stream([chunk.swapaxes(1, 2).contiguous() for chunk in stream.chunks])


# Scores, one tensor for each chunk.


def score_stream(name: str, stream: Stream, seed: int) -> list[Tensor]:
    """Score the chunks with one acquisition function."""
    return [ACQUISITIONS[name](chunk) for chunk in stream.chunks]


def score_stream_at_once(stream: Stream, seed: int) -> list[dict[str, Tensor]]:
    """Score the chunks with all acquisition functions."""
    return [score_all(chunk, list(ACQUISITIONS)) for chunk in stream.chunks]


def score_with_baal(name: str, stream: Stream, seed: int) -> list[NDArray[np.float32]]:
    """Score the chunks with baal's function, in the direction that ours has."""
    scores = [peers.baal_scores(HEURISTICS[name], chunk.numpy()) for chunk in stream.chunks]
    return [1 - some for some in scores] if name in ("margin", "least_confidence") else scores


def slowest_score(stream: Stream) -> str:
    """Return the name of the acquisition function that takes longest."""
    contenders = [Contender(name, partial(score_stream, name)) for name in ACQUISITIONS]
    seconds = [runs.median for runs in side_by_side(contenders, stream, runs=RUNS)]
    return contenders[int(np.argmax(seconds))].name


def largest_error(name: str, stream: Stream, scores: list[Tensor] | list[NDArray[np.float32]]) -> float:
    """Return the largest difference from the formula in float64, in the first chunk."""
    p = stream.chunks[0].double().numpy()
    mean = p.mean(axis=1)
    ordered = np.sort(mean, axis=1)
    entropy = -(mean * np.log(mean)).sum(axis=1)
    formulas = {
        "bald": entropy + (p * np.log(p)).sum(axis=2).mean(axis=1),
        "entropy": entropy,
        "least_confidence": 1 - ordered[:, -1],
        "margin": 1 - ordered[:, -1] + ordered[:, -2],
        "variance": p.var(axis=1).mean(axis=1),
    }
    return float(np.abs(formulas[name] - np.asarray(scores[0])).max())


# What a selection is worth.

COVER = "cover radius, the largest distance of a candidate to the nearest label or pick, lower is better"
POTENTIAL = "mean squared distance of a gradient to the nearest pick, lower is better; random draws, so it varies"


def cover(pool: Pool, picks: NDArray[np.int64]) -> float:
    """Return the cover radius."""
    return references.cover_radius(pool.candidates, covering(pool, picks))


def distance_to_labels(pool: Pool, picks: NDArray[np.int64]) -> float:
    """Return the mean distance of a candidate to the nearest label or pick."""
    return references.mean_distance(pool.candidates, covering(pool, picks))


def badge_potential(pool: Pool, picks: NDArray[np.int64]) -> float:
    """Return the mean squared distance of a gradient to the nearest pick."""
    return references.potential(gradient_factors(pool), torch.as_tensor(picks) - N_LABELLED)


def herding_coverage(pool: Pool, picks: NDArray[np.int64]) -> float:
    """Return MaxHerding's objective."""
    return references.coverage(pool.candidates, covering(pool, picks), torch.ones(len(pool.candidates)), 1.0)


def uherding_coverage(pool: Pool, picks: NDArray[np.int64]) -> float:
    """Return UHerding's objective."""
    return references.coverage(pool.candidates, covering(pool, picks), uncertainty(pool), adaptive_radius(pool))


def joint_information(pool: Pool, picks: NDArray[np.int64]) -> float:
    """Return BatchBALD's objective, in nats."""
    return references.batch_bald_score(pool.probs[torch.as_tensor(picks)])


def covering(pool: Pool, picks: NDArray[np.int64]) -> Tensor:
    """Return the embeddings of what is labelled and picked."""
    return torch.cat([pool.labelled, pool.embeddings[torch.as_tensor(picks)]])


def compared_with_one_at_a_time(pool: Pool, picks: Tensor, seconds: float, peak: float | None) -> str:
    """Say whether ours are the picks of the textbook."""
    differ = np.flatnonzero(picks.numpy() != k_center_reference(pool, 0))
    if len(differ):
        return (
            f"PICKS DIFFER from those made one at a time in float64, {len(differ)} of them, first pick {differ[0] + 1}"
        )
    return "picks identical to those made one at a time in float64"


def compared_with_bare_passes(pool: Pool, picks: Tensor, seconds: float, peak: float | None) -> str:
    """Say how a pick compares with reading all features once."""
    vector = pool.embeddings[0]
    (passes,) = side_by_side([Contender("a bare pass", bare_pass)], (pool.embeddings, vector), runs=RUNS)
    features = pool.embeddings.nbytes / 1e6
    held = "not measured" if peak is None else f"{1 + peak / features:.2f} x the features ({features:,.0f} MB)"
    share = seconds / pool.n_picks / passes.median
    return f"a pick takes {share:.3f} of a bare pass X @ v ({passes.median:.3f} s); peak memory {held}"


def bare_pass(data: tuple[Tensor, Tensor], seed: int) -> Tensor:
    """Read all features once."""
    points, vector = data
    return points @ vector


# Growth.


def growth(sizes: tuple[int, ...]) -> dict[str, list[tuple[int, float]]]:
    """Return, for each strategy, pairs of candidates and seconds: one whole `select_batch`, 100 picks, D = 64."""
    points: dict[str, list[tuple[int, float]]] = {name: [] for name in GROWTH}
    for n in sizes:
        candidates, n_picks = as_candidates(make_pool(n + N_LABELLED, 64, 100))
        for name in GROWTH:
            if points[name] and points[name][-1][1] > GROWTH_LIMIT_S:
                continue
            if not points[name]:
                select_batch(candidates, name, query_size=n_picks, round_number=0, seed=0)  # warms up
            started = perf_counter()
            select_batch(candidates, name, query_size=n_picks, round_number=0, seed=0)
            points[name].append((n, perf_counter() - started))
    return {name: line for name, line in points.items() if line}


def exponent(line: list[tuple[int, float]]) -> float:
    """Return e of seconds ~ N^e, fitted to the logarithms.

    >>> round(exponent([(10, 3.0), (100, 300.0), (1000, 30000.0)]), 6)
    2.0
    """
    sizes, seconds = np.log(np.array(line)).T
    return float(np.polyfit(sizes, seconds, 1)[0])


def growth_rows(points: dict[str, list[tuple[int, float]]]) -> list[Row]:
    """Return a row for each strategy and size; the exponent is a note."""
    return [
        Row(
            work=f"growth, select_batch with {name}: {n:,} x 64, 100 picks",
            ours_s=seconds,
            note=f"seconds grow as N^{exponent(line):.2f}" if n == line[-1][0] else "",
        )
        for name, line in points.items()
        for n, seconds in line
    ]


def draw_growth(points: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Draw seconds over candidates, both logarithmic, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for name, line in points.items():
        axes.loglog(*zip(*line, strict=True), marker="o", label=f"{name}: N^{exponent(line):.2f}")
    axes.set(xlabel="candidates N", ylabel="seconds for 100 picks", title="select_batch, D = 64")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
