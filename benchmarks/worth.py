"""What a selection from a pool is worth, and what else is to be said of it."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import references
from benchmarks.measure import RUNS, Contender, side_by_side
from benchmarks.pools import N_LABELLED, Pool, adaptive_radius, gradient_factors, uncertainty
from pipeline.selection.acquisition import ACQUISITIONS
from pipeline.types import Batch

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
