"""Choosing a batch, beside the Python peers: python -m benchmarks.selection [--json OUT] [--only NAME ...] [--quick]

Data: pools of ten Gaussian clusters (benchmarks/pools.py), drawn with seed 0; run i of a contender has seed i.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import peers, references
from benchmarks.measure import (
    RUNS,
    Case,
    Contender,
    Row,
    Runs,
    arguments,
    report,
    run,
    side_by_side,
    write,
)
from benchmarks.pools import CHUNK, N_LABELLED, Pool, make_pool
from pipeline.selection.acquisition import ACQUISITIONS, margin, score_all
from pipeline.selection.batch import seeded_order, select_batch
from pipeline.selection.geometry.cover import herd
from pipeline.selection.geometry.joint import batch_bald
from pipeline.selection.geometry.spread import d2_sampling, k_center_greedy
from pipeline.selection.settings import SelectionSettings
from pipeline.selection.strategies.rows import STRATEGIES
from pipeline.types import Batch, Candidates

DATA = "pools of ten Gaussian clusters, drawn with seed 0"

SMALL = partial(make_pool, 600, 16, 10)
"""A pool that takes no time."""

MILLION_GB = 8
"""Free memory that the largest pool needs: it is in this process and, twice, in the one that measures memory."""

ON_GPU = ("k_center", "badge_500", "uherding", "batch_bald")
"""Cases that run once more where there is a GPU."""

GROWTH = ("k_center", "badge", "typiclust", "uherding", "max_herding", "auto")
GROWTH_SIZES = (3000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
GROWTH_RUNS = 3
GROWTH_LIMIT_S = 20.0
"""A strategy that took longer is not given a larger pool."""

WHOLE = 30_000
"""Up to so many candidates, a strategy that draws a sub-pool is also timed without one."""

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
    listed = cases()
    options = arguments(__doc__, [*(case.name for case in listed), "growth"])
    rows = run(listed, options, DATA)
    lines = {}
    if not options.only or "growth" in options.only:
        for label, line in growth((1000, 2000, 4000) if options.quick else GROWTH_SIZES):
            rows += growth_rows(label, line)
            lines[label] = line
            write(rows, DATA, options.json)
    report(rows, DATA)
    if options.json and lines:
        draw_growth(lines, options.json.with_name(f"{options.json.stem}-growth.png"))


def cases() -> list[Case]:
    """Return everything that can be measured, except growth; nothing is computed yet."""
    listed = [*k_center_cases(), *other_cases(), *score_cases()]
    return listed + (gpu_cases(listed) if torch.cuda.is_available() else [])


def k_center_cases() -> list[Case]:
    """Return the cases of k-center greedy."""
    case = partial(Case, small=SMALL, ours=Contender("ours", k_center), quality=cover, quality_of=COVER)
    one_by_one = Contender("NumPy, one pick at a time, float32", k_center_reference)
    mundig = Contender("lightly-mundig", peers.mundig, "lightly-mundig")
    core = Contender("lightly-mundig, data loaded,", peers.mundig_core, "lightly-mundig", peers.mundig_loaded)
    skactiveml = Contender("CoreSet of scikit-activeml", peers.core_set, "scikit-activeml")
    small_text = Contender("greedy_coreset of small-text", peers.greedy_coreset, "small-text")
    million = partial(case, inputs=make_million, note=compared_with_bare_passes, quality=None, quality_of="")
    return [
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
        million(name="k_center_million", work="k-center, the bare function k_center_greedy"),
        million(
            name="k_center_million_batch",
            work="k-center, as a round does: Candidates, then select_batch",
            ours=Contender("ours", k_center_batch, prepare=with_ids),
        ),
    ]


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
            work="TypiClust on rows of length 1",
            inputs=partial(make_unit_pool, 20_000, 512, 100),
            small=partial(make_unit_pool, 600, 16, 10),
            ours=Contender("ours", partial(ask, "typiclust"), prepare=as_candidates),
            peers=(skactiveml("TypiClust of scikit-activeml", peers.typiclust),),
            quality=distance_to_labels,
            quality_of="mean distance of a candidate to the nearest label or pick, lower is better",
            note=about_clustering,
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
        *batch_bald_cases(),
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


def batch_bald_cases() -> list[Case]:
    """Return the cases of BatchBALD; the peers are slow and run once."""
    once = partial(Contender, runs=1)
    case = partial(
        Case,
        small=partial(make_pool, 60 + N_LABELLED, 16, 4, n_members=20),
        ours=Contender("ours", joint_bald),
        peers=(
            once("batchbald_redux, float32", peers.batch_bald_redux, "batchbald-redux", peers.redux_log_probs),
            once("BatchBALD of baal", peers.batch_bald_baal, "baal", peers.classes_before_members),
        ),
        quality=joint_information,
        quality_of="objective: what the picks' labels tell together, nats, higher is better",
    )
    pool = partial(make_pool, n_features=64, n_members=20)
    unsure = partial(pool, 200 + N_LABELLED, n_picks=8, sharpness=0.25, disagreement=1.0)
    return [
        case(
            name="batch_bald",
            work="BatchBALD",
            inputs=partial(pool, 2000 + N_LABELLED, n_picks=20),
            note=disagreement,
        ),
        case(name="batch_bald_unsure", work="BatchBALD, members that disagree", inputs=unsure, note=disagreement),
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
    together = stream(
        name="score_all",
        work=f"all {len(ACQUISITIONS)} scores in one pass",
        ours=Contender("ours", score_stream_at_once),
        peers=(Contender("the slowest of ours alone", score_slowest, prepare=with_slowest_score),),
        note=about_slowest,
    )
    return [*listed, together]


def gpu_cases(listed: list[Case]) -> list[Case]:
    """Return some of the cases for ours on the GPU, beside ours on the CPU."""
    return [
        replace(
            case,
            name=f"gpu_{case.name}",
            work=f"{case.work}, on {torch.cuda.get_device_name()}",
            ours=replace(case.ours, prepare=on_gpu, device="cuda"),
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


def k_center_batch(pool_with_ids: tuple[Pool, NDArray[np.str_]], seed: int) -> Batch:
    """The same, with the checks, the shuffling and the records of a round."""
    pool, ids = pool_with_ids
    candidates = Candidates(ids, torch.zeros(len(ids)), pool.candidates, pool.labelled)
    how = SelectionSettings(strategy="k_center", query_size=pool.n_picks)
    return select_batch(candidates, how, round_number=0, seed=0)


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
    columns = [getattr(candidates, name) for name in STRATEGIES[strategy].columns]
    answer = STRATEGIES[strategy].ask(*columns, query_size=n_picks, generator=seeded(seed))
    return N_LABELLED + (answer[0] if isinstance(answer, tuple) else answer).cpu()


# The same by the textbook.


def k_center_reference(pool: Pool, seed: int) -> NDArray[np.int64]:
    """The farthest point again and again, one pass over all points for each."""
    return N_LABELLED + references.one_at_a_time(pool.candidates, pool.n_picks, pool.labelled, dtype=np.float32)


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


def make_million() -> Pool:
    """Return a pool of a million without probabilities, or refuse where memory is short."""
    free_gb = psutil.virtual_memory().available / 1e9
    if free_gb < MILLION_GB:
        raise MemoryError(f"needs {MILLION_GB} GB of free memory, there are {free_gb:.1f}")
    return make_pool(1_000_000, 384, 1000, n_members=0)


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
        ids=make_ids(pool),
        scores=uncertainty(pool),
        embeddings=pool.candidates,
        labelled_embeddings=pool.labelled,
        probs=pool.probs[N_LABELLED:],
        guesses=mean[N_LABELLED:].argmax(dim=1),
        labelled_probs=pool.probs[:N_LABELLED],
        labelled_targets=pool.targets[:N_LABELLED],
    )
    return candidates, pool.n_picks


def make_ids(pool: Pool) -> NDArray[np.str_]:
    """Return `(N - M,)` ids of the candidates."""
    return np.char.zfill(np.arange(len(pool.candidates)).astype(str), 7)


def with_ids(pool: Pool) -> tuple[Pool, NDArray[np.str_]]:
    """Return the pool and the ids of its candidates, in the order in which scoring writes them."""
    ids = make_ids(pool)
    return pool, ids[seeded_order(ids, round_number=0, seed=0).numpy()]


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


@cache
def slowest_score() -> str:
    """Return the name of the acquisition function that takes longest."""
    contenders = [Contender(name, partial(score_stream, name)) for name in ACQUISITIONS]
    stream = make_stream(20_000)
    measured = side_by_side(contenders, stream, stream, runs=RUNS)
    return contenders[int(np.argmax([np.median(runs.seconds) for runs in measured]))].name


def with_slowest_score(stream: Stream) -> tuple[str, Stream]:
    """Return the name of the slowest acquisition function, and the stream."""
    return slowest_score(), stream


def score_slowest(named: tuple[str, Stream], seed: int) -> list[Tensor]:
    """Score the chunks with the acquisition function that takes longest."""
    return score_stream(*named, seed)


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
    textbook = N_LABELLED + references.one_at_a_time(pool.candidates, pool.n_picks, pool.labelled)
    differ = np.flatnonzero(picks.numpy() != textbook)
    if len(differ):
        return (
            f"PICKS DIFFER from those made one at a time in float64, {len(differ)} of them, first pick {differ[0] + 1}"
        )
    return "picks identical to those made one at a time in float64"


def compared_with_bare_passes(pool: Pool, picks: Tensor | Batch, seconds: float, peak: float | None) -> str:
    """Say how a pick compares with reading all features once."""
    data = (pool.embeddings, pool.embeddings[0])
    (passes,) = side_by_side([Contender("a bare pass", bare_pass)], data, data, runs=RUNS)
    bare = float(np.median(passes.seconds))
    features = pool.embeddings.nbytes / 1e6
    held = "not measured" if peak is None else f"{1 + peak / features:.2f} x the features ({features:,.0f} MB)"
    return f"a pick takes {seconds / pool.n_picks / bare:.3f} of a bare pass X @ v ({bare:.3f} s); peak memory {held}"


def bare_pass(data: tuple[Tensor, Tensor], seed: int) -> Tensor:
    """Read all features once."""
    points, vector = data
    return points @ vector


def about_clustering(pool: Pool, picks: Tensor, seconds: float, peak: float | None) -> str:
    """Say what else is not the same in the two versions of TypiClust."""
    return (
        "ours always clusters on the unit sphere, so both are given rows of length 1 and judged there; "
        "our k-means stops when a step gains less than 0.1 %, scikit-learn's when the centroids hardly move"
    )


def disagreement(pool: Pool, picks: Tensor, seconds: float, peak: float | None) -> str:
    """Say how sure the members are, and how far from agreeing."""
    probs = pool.probs[N_LABELLED:]
    sure, apart = float(probs.amax(dim=2).mean()), float(ACQUISITIONS["bald"](probs).mean())
    return f"a member gives its likeliest class {sure:.2f} on average; mean BALD of a candidate {apart:.3f} nats"


def about_slowest(stream: Stream, scores: list[dict[str, Tensor]], seconds: float, peak: float | None) -> str:
    """Say which acquisition function is the slowest."""
    return f"the slowest alone is {slowest_score()}"


# Growth.


Line = list[tuple[int, Runs]]
"""Candidates, and the timed runs on so many."""


def growth(sizes: tuple[int, ...]) -> Iterator[tuple[str, Line]]:
    """Time whole `select_batch`es of 100 picks, D = 64, for one strategy after the other.

    Yields:
        What is timed, for people, and its line. A strategy that draws a sub-pool is timed again without.
    """
    for strategy in GROWTH:
        sub_pool = STRATEGIES[strategy].sub_pool
        if sub_pool is None:
            yield strategy, growth_line(strategy, sizes)
            continue
        yield f"{strategy}, sub-pool of {sub_pool:,}", growth_line(strategy, sizes)
        whole = tuple(n for n in sizes if n <= WHOLE)
        yield f"{strategy}, no sub-pool", growth_line(strategy, whole, is_whole=True)


def growth_line(strategy: str, sizes: tuple[int, ...], *, is_whole: bool = False) -> Line:
    """Return pairs of candidates and runs, up to the first size that fails or takes too long.

    Args:
        is_whole: the strategy sees all candidates.
    """
    line: Line = []
    for n in sizes:
        who = Contender(strategy, partial(batch_of, strategy, n if is_whole else None), prepare=growth_candidates)
        (runs,) = side_by_side([who], n, sizes[0], runs=GROWTH_RUNS)
        line.append((n, runs))
        if runs.error or max(runs.seconds) > GROWTH_LIMIT_S:
            break
    return line


@cache
def growth_candidates(n: int) -> Candidates:
    """Return candidates with all columns."""
    return as_candidates(make_pool(n + N_LABELLED, 64, 0))[0]


def batch_of(strategy: str, sub_pool: int | None, candidates: Candidates, seed: int) -> Batch:
    """A batch of 100, as a round chooses it."""
    how = SelectionSettings(strategy=strategy, query_size=100, sub_pool=sub_pool)
    return select_batch(candidates, how, round_number=0, seed=seed)


def exponent(line: Line) -> float:
    """Return e of seconds ~ N^e, fitted to the logarithms of the medians; NaN of fewer than two sizes.

    >>> round(exponent([(10, Runs([3.0])), (100, Runs([300.0])), (1000, Runs([30000.0]))]), 6)
    2.0
    """
    points = [(n, runs.median) for n, runs in line if runs.median]
    if len(points) < 2:
        return float("nan")
    sizes, seconds = np.log(np.array(points)).T
    return float(np.polyfit(sizes, seconds, 1)[0])


def growth_rows(label: str, line: Line) -> list[Row]:
    """Return a row for each size; the exponent is a note on the last."""
    return [
        Row(
            work=f"growth, select_batch with {label}: {n:,} x 64, 100 picks",
            ours_s=runs.median,
            ours_runs=len(runs.seconds),
            note=f"seconds grow as N^{exponent(line):.2f} from {line[0][0]:,} on" if n == line[-1][0] else "",
            error=runs.error,
        )
        for n, runs in line
    ]


def draw_growth(lines: dict[str, Line], path: Path) -> None:
    """Draw seconds over candidates, both logarithmic, as PNG; dashed where a strategy sees all candidates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    axes = figure.subplots()
    colours: dict[str, str] = {}
    for label, line in lines.items():
        points = [(n, runs.median) for n, runs in line if runs.median]
        if not points:
            continue
        colour = colours.setdefault(label.split(",")[0], f"C{len(colours)}")
        style = "--" if label.endswith("no sub-pool") else "-"
        named = f"{label}: N^{exponent(line):.2f}"
        axes.loglog(*zip(*points, strict=True), style, marker="o", color=colour, label=named)
    axes.set(xlabel="candidates N", ylabel="seconds for 100 picks", title="select_batch, D = 64")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
