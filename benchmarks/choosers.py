"""Ways to choose that are timed: ours and the textbook's, from a pool and a seed to positions in the pool."""

from dataclasses import replace

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import peers, references
from benchmarks.pools import (
    N_LABELLED,
    Pool,
    adaptive_radius,
    as_candidates,
    gradient_factors,
    make_ids,
    make_pool,
    uncertainty,
)
from pipeline.selection.batch import seeded_order, select_batch
from pipeline.selection.geometry.cover import herd
from pipeline.selection.geometry.joint import batch_bald
from pipeline.selection.geometry.spread import d2_sampling, k_center_greedy
from pipeline.selection.settings import SelectionSettings
from pipeline.selection.strategies.rows import STRATEGIES
from pipeline.types import Batch, Candidates

MILLION_GB = 8
"""Free memory that the largest pool needs: it is in this process and, twice, in the one that measures memory."""


# Ours. Each returns positions in the whole pool, on the CPU.


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


def ask(strategy: str, prepared: tuple[Candidates, int], seed: int) -> Tensor:
    """A strategy of the registry."""
    candidates, n_picks = prepared
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


def asked(strategy: str, pool: Pool) -> tuple[Candidates, int]:
    """Return what a strategy is asked with, and for how many."""
    return as_candidates(pool, SelectionSettings(strategy=strategy)), pool.n_picks


def with_ids(pool: Pool) -> tuple[Pool, NDArray[np.str_]]:
    """Return the pool and the ids of its candidates, in the order in which scoring writes them."""
    ids = make_ids(pool)
    return pool, ids[seeded_order(ids, round_number=0, seed=0).numpy()]
