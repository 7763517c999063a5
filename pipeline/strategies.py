"""Query strategies: which candidates to ask for next.

A strategy's positional parameters name the columns of `Candidates` that it reads; only these are computed.
Its keywords are `query_size`, `generator` and options with defaults. It returns `min(query_size, N)` distinct
positions, most wanted first. Rows come in a seeded random order, so it may break ties by position.
"""

import inspect
import math
from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.diversity import k_center_greedy, kmeans, nearest_to_centroids
from pipeline.randomness import seeded_generator
from pipeline.registries import look_up
from pipeline.types import Batch, Candidates


def select_batch(
    candidates: Candidates,
    strategy: str,
    *,
    query_size: int,
    round_number: int,
    seed: int,
    random_slice: float = 0.0,
    **options: object,
) -> Batch:
    """Choose what this round asks for.

    The same candidates and seed give the same batch, in whatever order they come; the seed breaks ties.

    Args:
        candidates: everything that may be asked for; a pool smaller than the batch is taken whole.
        strategy: a name in `STRATEGIES`.
        query_size: images in the batch, at least 1.
        seed: of the campaign.
        random_slice: share of the batch in [0, 1] that is drawn evenly from what the strategy leaves; it is
            spread through the batch.
        options: keywords of the strategy.
    """
    query = look_up(STRATEGIES, strategy, "strategy")
    check_options(strategy, options)
    if query_size < 1:
        raise ValueError(f"query_size must be at least 1, got {query_size}")
    if not 0 <= random_slice <= 1:
        raise ValueError(f"random_slice must be in [0, 1], got {random_slice}")
    order = _seeded_order(candidates.ids, seeded_generator(seed, round_number, "order"))
    columns = _columns(candidates, strategy, order)
    size = min(query_size, len(order))
    n_random = round(random_slice * size)
    chosen = torch.empty(0, dtype=torch.long)
    if size > n_random:
        generator = seeded_generator(seed, round_number, "strategy")
        chosen = query(*columns, query_size=size - n_random, generator=generator, **options).cpu()
    _check_positions(chosen, strategy, size - n_random, len(order))
    drawn = _draw_from_the_rest(chosen, len(order), n_random, seeded_generator(seed, round_number, "random slice"))
    return _batch(candidates, strategy, order[chosen], order[drawn], round_number)


def columns_of(strategy: str) -> tuple[str, ...]:
    """Return the columns of `Candidates` that a strategy reads.

    >>> columns_of("k_center")
    ('embeddings', 'labelled_embeddings')
    """
    parameters = inspect.signature(look_up(STRATEGIES, strategy, "strategy")).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY)


def check_options(strategy: str, options: Iterable[str]) -> None:
    """Refuse the name of an option that the strategy does not have."""
    parameters = inspect.signature(look_up(STRATEGIES, strategy, "strategy")).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.default is not parameter.empty]
    for name in options:
        if name not in known:
            has = f"its options are: {', '.join(known)}" if known else "it has no options"
            raise ValueError(f"strategy {strategy!r} has no option {name!r}; {has}")


def random(scores: Tensor, *, query_size: int, generator: torch.Generator) -> Tensor:
    """Draw evenly, the control for every other strategy.

    Args:
        scores: `(N,)`; only their number counts.
    """
    return torch.randperm(len(scores), generator=generator)[:query_size]


def top_k(scores: Tensor, *, query_size: int, generator: torch.Generator) -> Tensor:
    """Take the most informative.

    Args:
        scores: `(N,)`, higher is more informative.
        generator: not used: nothing is left to chance.
    """
    return scores.argsort(descending=True, stable=True)[:query_size]


def power(scores: Tensor, *, query_size: int, generator: torch.Generator, beta: float = 1.0) -> Tensor:
    """Draw without replacement with odds `scores ** beta`: cheap diversity (Kirsch et al., 2023).

    Adding Gumbel noise to the logarithms and taking the largest is the same draw (Kool et al., 2019).

    Args:
        scores: `(N,)`, at least 0; images with a score of 0 come last.
        beta: above 0; near 0 is random, infinitely large is `top_k`.
    """
    if not beta > 0:
        raise ValueError(f"beta must be above 0, got {beta}")
    if (scores < 0).any():
        raise ValueError(f"strategy 'power' needs scores of at least 0, got {scores.min():.6g}")
    noise = torch.empty(len(scores), dtype=torch.float64).exponential_(generator=generator)
    gumbel = -noise.log()
    return top_k(beta * scores.cpu().double().log() + gumbel, query_size=query_size, generator=generator)


def k_center(embeddings: Tensor, labelled_embeddings: Tensor, *, query_size: int, generator: torch.Generator) -> Tensor:
    """Take again and again what is farthest from all that is labelled or picked (Sener & Savarese, 2018).

    Args:
        embeddings: `(N, D)`.
        labelled_embeddings: `(M, D)`; with M = 0 the first pick is random.
    """
    return k_center_greedy(embeddings, query_size, centres=labelled_embeddings, generator=generator)


def top_k_diverse(
    scores: Tensor,
    embeddings: Tensor,
    *,
    query_size: int,
    generator: torch.Generator,
    prefilter: int = 10,
) -> Tensor:
    """Cluster the most informative and take the most informative of each cluster (after Zhdanov, 2019).

    Where duplicates leave fewer clusters than wanted, the next most informative fill the batch.

    Args:
        scores: `(N,)`, higher is more informative.
        embeddings: `(N, D)`.
        prefilter: how many times `query_size` enter the clustering, at least 1; with 1 this is `top_k`.
    """
    if prefilter < 1:
        raise ValueError(f"prefilter must be at least 1, got {prefilter}")
    shortlist = top_k(scores, query_size=math.ceil(prefilter * query_size), generator=generator)
    _, clusters = kmeans(embeddings[shortlist], query_size, generator=generator)
    later = torch.ones(len(shortlist), dtype=torch.bool)
    later[np.unique(clusters.cpu().numpy(), return_index=True)[1]] = False
    return shortlist[later.to(shortlist.device).to(torch.uint8).argsort(stable=True)[:query_size]]


def coverage(embeddings: Tensor, *, query_size: int, generator: torch.Generator) -> Tensor:
    """Cover the pool: cluster it and take what is nearest to each centroid, largest cluster first.

    A cold start, which needs neither labels nor a model (Gupte et al., 2024, arXiv 2401.14555).

    Args:
        embeddings: `(N, D)`.
    """
    centres, clusters = kmeans(embeddings, query_size, generator=generator)
    sizes = clusters.bincount(minlength=len(centres))
    return nearest_to_centroids(embeddings, centres)[sizes.argsort(descending=True, stable=True)]


def _seeded_order(ids: NDArray[np.str_], generator: torch.Generator) -> Tensor:
    """Return a random order that depends on the ids and the seed, not on the order the ids came in."""
    by_id = torch.from_numpy(np.argsort(ids))
    return by_id[torch.randperm(len(ids), generator=generator)]


def _columns(candidates: Candidates, strategy: str, order: Tensor) -> list[Tensor]:
    """Return the columns that a strategy reads, those of the candidates in `order`."""
    columns = []
    for name in columns_of(strategy):
        values = getattr(candidates, name)
        if values is None:
            raise ValueError(f"strategy {strategy!r} needs {name}, which scoring did not compute")
        columns.append(values if name == "labelled_embeddings" else values[order.to(values.device)])
    return columns


def _check_positions(positions: Tensor, strategy: str, wanted: int, n_candidates: int) -> None:
    """Refuse what a strategy must never return, before it costs anybody's time."""
    got = positions.tolist()
    in_range = all(0 <= position < n_candidates for position in got)
    if len(got) != wanted or len(set(got)) != wanted or not in_range:
        raise RuntimeError(
            f"strategy {strategy!r} must return {wanted} distinct positions below {n_candidates}, got {got}"
        )


def _draw_from_the_rest(chosen: Tensor, n_candidates: int, n_draws: int, generator: torch.Generator) -> Tensor:
    """Return `(n_draws,)` positions, each of those not chosen equally likely."""
    shuffled = torch.randperm(n_candidates, generator=generator)
    return shuffled[~torch.isin(shuffled, chosen)][:n_draws]


def _batch(candidates: Candidates, strategy: str, chosen: Tensor, drawn: Tensor, round_number: int) -> Batch:
    """Spread what was drawn evenly through what was chosen, and say why each is there."""
    size = len(chosen) + len(drawn)
    is_drawn = torch.zeros(size, dtype=torch.bool)
    is_drawn[((torch.arange(len(drawn)) + 0.5) * size / max(len(drawn), 1)).long()] = True
    positions = torch.empty(size, dtype=torch.long)
    positions[is_drawn], positions[~is_drawn] = drawn, chosen
    scores = candidates.scores.cpu()
    picked = scores[positions]
    shares = torch.searchsorted(scores.sort().values, picked) / max(len(scores), 1)
    reasons = tuple(
        "random slice" if random_pick else f"{strategy}: score {score:.3g}, above {100 * share:.1f} % of the candidates"
        for random_pick, score, share in zip(is_drawn.tolist(), picked.tolist(), shares.tolist(), strict=True)
    )
    ids = tuple(str(item_id) for item_id in candidates.ids[positions.numpy()])
    return Batch(ids, tuple(picked.tolist()), reasons, round_number)


STRATEGIES: dict[str, Callable[..., Tensor]] = {
    "coverage": coverage,
    "k_center": k_center,
    "power": power,
    "random": random,
    "top_k": top_k,
    "top_k_diverse": top_k_diverse,
}
