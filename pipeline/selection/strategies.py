"""Query strategies: which candidates to ask for next.

A strategy's positional parameters name the columns of `Candidates` that it reads; only these are computed.
One with a default may be missing. Its keywords are `query_size`, `generator` and options with defaults. It returns
`min(query_size, N)` distinct positions, most wanted first, alone or with a note for the reason of each pick and the aim
of all, which is otherwise that of `AIMS`. Rows
come in a seeded random order, so it may break ties by position. They may be the caller's own memory: it writes to none.
"""

import heapq
import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from pipeline.randomness import seeded_generator
from pipeline.registries import look_up
from pipeline.selection.acquisition import bald, margin
from pipeline.selection.geometry import joint as information
from pipeline.selection.geometry.cover import facility_location, herd
from pipeline.selection.geometry.diversity import d2_sampling, k_center_greedy, kmeans, nearest_to_centroids, typicality
from pipeline.types import Aim, Batch, Candidates

Told = tuple[str, Aim]
"""A note on a pick, and what it was picked for."""

MOST_CLUSTERS = 500
"""Clusters of `typiclust`."""

MOST_REFERENCES = 10_000
"""Images that a covering is measured on; more cost time and change the picks little."""

MOST_JOINT = 2000
"""Images among which `batch_bald` looks."""

FEW_LABELS = 2
"""Labels for each class below which `auto` does not ask the model."""

MOST_COMPARED = 2000
"""Labelled images that are compared with all others to find how far apart the labelled ones are."""

WIDE_ENOUGH = 25
"""Images that `drop_query` clusters at least, for each one asked for, as long as the members differ on so many."""

LARGEST_TREE = 5000
"""Images that `cluster_margin` clusters, which takes time and memory of their square."""

TINY = 1e-12
"""Stands for a length of zero where something is divided by it."""


def select_batch(
    candidates: Candidates,
    strategy: str,
    *,
    query_size: int,
    round_number: int,
    seed: int,
    random_slice: float = 0.0,
    sub_pool: int | None = None,
    prefilter: float | None = None,
    class_balanced: bool = False,
    **options: object,
) -> Batch:
    """Choose what this round asks for.

    The same candidates and seed give the same batch, in whatever order they come; the seed breaks ties. What the
    strategy reads is copied, unless the candidates come in `seeded_order` already.

    Args:
        candidates: everything that may be asked for; a pool smaller than the batch is taken whole.
        strategy: a name in `STRATEGIES`.
        query_size: images in the batch, at least 1.
        seed: of the campaign.
        random_slice: share of the batch in [0, 1] that is drawn evenly from what the strategy leaves; it is
            spread through the batch. What is no whole number of images is rounded by lot: a tenth of 5 images is
            one image in every other round.
        sub_pool: the strategy sees at most this many candidates, drawn evenly (but never fewer than the batch
            needs); None is what `SUB_POOL` says, or all of them where there is a prefilter.
        prefilter: of these it sees the `prefilter * query_size` with the highest scores, at least 1; None: all.
        class_balanced: ask for each predicted class apart, for as many as make the labels most even; needs
            `guesses` and `labelled_targets`, and leaves no room for the option `max_class_share`.
        options: keywords of the strategy.
    """
    look_up(STRATEGIES, strategy, "strategy")
    check_options(strategy, options)
    if query_size < 1:
        raise ValueError(f"query_size must be at least 1, got {query_size}")
    if not 0 <= random_slice <= 1:
        raise ValueError(f"random_slice must be in [0, 1], got {random_slice}")
    if sub_pool is not None and sub_pool < 1:
        raise ValueError(f"sub_pool must be at least 1, got {sub_pool}")
    if prefilter is not None and not prefilter >= 1:
        raise ValueError(f"prefilter must be at least 1, got {prefilter}")
    if sub_pool is None and prefilter is None:
        sub_pool = SUB_POOL.get(strategy)
    if class_balanced and "max_class_share" in options:
        raise ValueError("a class-balanced batch decides how many of each class it has: it takes no max_class_share")
    order = seeded_order(candidates.ids, round_number=round_number, seed=seed)
    size = min(query_size, len(order))
    by_lot = seeded_generator(seed, round_number, "random slice")
    n_random = min(size, int(random_slice * size + float(torch.rand((), generator=by_lot, dtype=torch.float64))))
    seen = order if sub_pool is None else order[: max(sub_pool, size)]
    if prefilter is not None:
        best = candidates.scores[seen.to(candidates.scores.device)].argsort(descending=True, stable=True)
        seen = seen[best[: math.ceil(prefilter * query_size)].sort().values.cpu()]
    generator = seeded_generator(seed, round_number, "strategy")
    ask = _ask_each_class if class_balanced else _ask
    chosen, told = ask(candidates, strategy, seen, size - n_random, generator, options)
    drawn = _draw_from_the_rest(order, chosen, n_random, by_lot)
    return _batch(candidates, strategy, chosen, told, drawn, round_number)


def seeded_order(ids: NDArray[np.str_], *, round_number: int, seed: int) -> Tensor:
    """Return `(N,)` positions: the random order in which `select_batch` shows candidates to a strategy.

    It depends on the ids and the seed, not on the order the ids come in.
    """
    by_id = torch.from_numpy(np.argsort(ids))
    return by_id[torch.randperm(len(ids), generator=seeded_generator(seed, round_number, "order"))]


def columns_of(strategy: str) -> tuple[str, ...]:
    """Return the columns of `Candidates` that a strategy reads.

    >>> columns_of("k_center")
    ('embeddings', 'labelled_embeddings')
    """
    return tuple(p.name for p in _parameters(strategy) if p.kind is not p.KEYWORD_ONLY)


def check_options(strategy: str, options: Iterable[str]) -> None:
    """Refuse the name of an option that the strategy does not have."""
    keywords = [p for p in _parameters(strategy) if p.kind is p.KEYWORD_ONLY]
    known = [keyword.name for keyword in keywords if keyword.default is not keyword.empty]
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
        beta: above 0 and finite; near 0 is random, very large is `top_k`.
    """
    if not 0 < beta < math.inf:
        raise ValueError(f"beta must be above 0 and finite, got {beta}")
    _check_no_negative(scores, "power")
    noise = torch.empty(len(scores), dtype=torch.float64).exponential_(generator=generator)
    gumbel = -noise.log()
    return top_k(beta * scores.cpu().double().log() + gumbel, query_size=query_size, generator=generator)


def anti(scores: Tensor, *, query_size: int, generator: torch.Generator) -> Tensor:
    """Take the least informative, which must lose against every other strategy: a check, not a choice.

    Args:
        scores: `(N,)`, higher is more informative.
        generator: not used: nothing is left to chance.
    """
    return scores.argsort(stable=True)[:query_size]


def falcun(probs: Tensor, *, query_size: int, generator: torch.Generator, gamma: float = 10.0) -> Tensor:
    """Draw what is uncertain and predicted unlike all that is drawn already (FALCUN; Gilhuber et al., 2024).

    The odds are `(uncertainty + distance) ** gamma`. The uncertainty is the margin score of the mean prediction.
    The distance is that to the nearest draw, the sum of the absolute differences of the class probabilities; it
    starts as the uncertainty, never grows, and is scaled to [0, 1] over what is left at each draw.

    Args:
        probs: `(N, K, C)`.
        gamma: at least 0; 0 is random, infinitely large takes the best each time.
    """
    if not gamma >= 0:
        raise ValueError(f"gamma must be at least 0, got {gamma}")
    mean, uncertainty = _mean_of_members(probs), margin(probs).double()
    distance = uncertainty.clone()
    left = torch.ones(len(probs), dtype=torch.bool, device=probs.device)
    chances = torch.rand(min(query_size, len(probs)), generator=generator, dtype=torch.float64).tolist()
    picks: list[int] = []
    for chance in chances:
        low, high = distance[left].aminmax()
        relevance = uncertainty + (distance - low) / (high - low).clamp_min(TINY)
        # The largest becomes 1, so that no power overflows, and not all powers underflow.
        odds = torch.where(left, (relevance / relevance[left].max().clamp_min(TINY)) ** gamma, 0.0)
        odds = odds if odds.any() else left.double()
        picks.append(_draw(odds, chance))
        left[picks[-1]] = False
        distance = torch.minimum(distance, (mean - mean[picks[-1]]).abs().sum(dim=1))
    return torch.tensor(picks, dtype=torch.long, device=probs.device)


def k_center(embeddings: Tensor, labelled_embeddings: Tensor, *, query_size: int, generator: torch.Generator) -> Tensor:
    """Take again and again what is farthest from all that is labelled or picked (Sener & Savarese, 2018).

    Args:
        embeddings: `(N, D)`.
        labelled_embeddings: `(M, D)`; with M = 0 the first pick is random.
    """
    return k_center_greedy(embeddings, query_size, centres=labelled_embeddings, generator=generator)


def weighted_k_center(
    scores: Tensor,
    embeddings: Tensor,
    labelled_embeddings: Tensor,
    guesses: Tensor | None = None,
    *,
    query_size: int,
    generator: torch.Generator,
    strength: float = 1.0,
    max_class_share: float = 1.0,
    min_distance: float = 0.0,
) -> Tensor:
    """Take again and again the largest `scores ** strength` times distance to all that is labelled or picked.

    The weighted greedy pass of selection engines such as lightly-mundig, with their limits on one class and on
    near-duplicates; without scores it is `k_center`. Where the limits leave too little, fewer are returned, and
    `select_batch` fills the batch with the highest scores, which the limits do not bind.

    Args:
        scores: `(N,)`, at least 0.
        embeddings: `(N, D)`.
        labelled_embeddings: `(M, D)`.
        guesses: `(N,)` predicted classes, only needed for `max_class_share`.
        strength: of the scores against the distance, at least 0; 0 is `k_center`.
        max_class_share: at most this share of the batch, but at least one image, is of one predicted class; in (0, 1].
        min_distance: nothing is picked that is nearer than this to a labelled image or an earlier pick.
    """
    _check_no_negative(scores, "weighted_k_center")
    if not strength >= 0:
        raise ValueError(f"strength must be at least 0, got {strength}")
    if not 0 < max_class_share <= 1:
        raise ValueError(f"max_class_share must be in (0, 1], got {max_class_share}")
    if not min_distance >= 0:
        raise ValueError(f"min_distance must be at least 0, got {min_distance}")
    quota = None
    if max_class_share < 1:
        if guesses is None:
            raise ValueError("option 'max_class_share' needs guesses, which scoring did not compute")
        n_classes = int(guesses.max()) + 1
        most = max(1, math.floor(max_class_share * query_size + 1e-9))  # 0.29 * 100 rounds to less than 29
        quota = torch.full((n_classes,), most, device=guesses.device)
    return k_center_greedy(
        embeddings,
        query_size,
        centres=labelled_embeddings,
        generator=generator,
        weights=scores.float() ** strength,
        groups=guesses if quota is not None else None,
        quota=quota,
        min_distance=min_distance,
    )


def novel(
    embeddings: Tensor,
    labelled_embeddings: Tensor,
    labelled_targets: Tensor,
    *,
    query_size: int,
    generator: torch.Generator,
) -> Tensor:
    """Take what is farthest from the mean of every labelled class: unlike all that is known.

    Args:
        embeddings: `(N, D)`.
        labelled_embeddings: `(M, D)`; with M = 0 the distance is that to the mean of the pool.
        labelled_targets: `(M,)` class indices.
        generator: not used: nothing is left to chance.
    """
    distance = _distance_to_class_means(embeddings, labelled_embeddings, labelled_targets)
    return top_k(distance, query_size=query_size, generator=generator)


def typical(
    embeddings: Tensor,
    labelled_embeddings: Tensor,
    labelled_targets: Tensor,
    *,
    query_size: int,
    generator: torch.Generator,
) -> Tensor:
    """Take what is nearest to the mean of a labelled class: the plainest examples, the opposite of `novel`.

    Args:
        embeddings: `(N, D)`.
        labelled_embeddings: `(M, D)`; with M = 0 the distance is that to the mean of the pool.
        labelled_targets: `(M,)` class indices.
        generator: not used: nothing is left to chance.
    """
    distance = _distance_to_class_means(embeddings, labelled_embeddings, labelled_targets)
    return top_k(-distance, query_size=query_size, generator=generator)


def top_k_diverse(
    scores: Tensor,
    embeddings: Tensor,
    *,
    query_size: int,
    generator: torch.Generator,
    shortlist: float = 10,
) -> Tensor:
    """Cluster the most informative and take the most informative of each cluster (after Zhdanov, 2019).

    Where duplicates leave fewer clusters than wanted, the next most informative fill the batch.

    Args:
        scores: `(N,)`, higher is more informative.
        embeddings: `(N, D)`.
        shortlist: how many times `query_size` enter the clustering, at least 1; with 1 this is `top_k`.
    """
    rows = _shortlist(scores, shortlist, query_size, generator)
    _, clusters = kmeans(embeddings[rows], query_size, generator=generator)
    later = torch.ones(len(rows), dtype=torch.bool)
    later[np.unique(clusters.cpu().numpy(), return_index=True)[1]] = False
    return rows[later.to(rows.device).to(torch.uint8).argsort(stable=True)[:query_size]]


def cluster_margin(
    scores: Tensor, embeddings: Tensor, *, query_size: int, generator: torch.Generator, shortlist: float = 10
) -> Tensor:
    """Cluster the most informative and draw from each cluster in turn, the smallest first (Citovsky et al., 2021).

    The clusters come from average linkage, which leaves a rare kind of image a cluster of its own. They are made
    of the shortlist, at most `LARGEST_TREE` images of it, and there are half as many as images wanted: with as many,
    each would get one turn, and outliers, each a cluster of its own, would fill the batch.

    Args:
        scores: `(N,)`, higher is more informative; the paper's is the margin.
        embeddings: `(N, D)`.
        shortlist: how many times `query_size` enter the clustering, at least 1; with 1 this is `top_k`.
    """
    from sklearn.cluster import AgglomerativeClustering  # takes a second to load

    rows = _shortlist(scores, shortlist, query_size, generator)[: max(LARGEST_TREE, query_size)]
    if len(rows) <= query_size:
        return rows
    tree = AgglomerativeClustering(math.ceil(query_size / 2), linkage="average")
    clusters = torch.from_numpy(tree.fit_predict(embeddings[rows].float().cpu().numpy()))
    shuffled = torch.randperm(len(rows), generator=generator)
    places = clusters.bincount().argsort(stable=True).argsort()[clusters]
    smallest_first = shuffled[places[shuffled].argsort(stable=True)]
    turns = take_turns(places[smallest_first])
    return rows[smallest_first[turns[:query_size]].to(rows.device)]


def suggestive(
    scores: Tensor, embeddings: Tensor, *, query_size: int, generator: torch.Generator, shortlist: float = 10
) -> Tensor:
    """Of the most informative take those that stand for all candidates (suggestive annotation; Yang et al., 2017).

    A candidate is stood for by the most similar pick, by cosine: see `covering.facility_location`.

    Args:
        scores: `(N,)`, higher is more informative; the paper's is the variance.
        embeddings: `(N, D)`.
        shortlist: how many times `query_size` may be picked from, at least 1; with 1 this is `top_k`'s choice.
    """
    rows = _shortlist(scores, shortlist, query_size, generator)
    return facility_location(
        embeddings, query_size, candidates=rows, references=_even_rows(embeddings, MOST_REFERENCES)
    )


def coverage(embeddings: Tensor, *, query_size: int, generator: torch.Generator) -> Tensor:
    """Cover the pool: cluster it and take what is nearest to each centroid, largest cluster first.

    A cold start, which needs neither labels nor a model (Gupte et al., 2024, arXiv 2401.14555).

    Args:
        embeddings: `(N, D)`.
    """
    centres, clusters = kmeans(embeddings, query_size, generator=generator)
    sizes = clusters.bincount(minlength=len(centres))
    return nearest_to_centroids(embeddings, centres)[sizes.argsort(descending=True, stable=True)]


def typiclust(
    embeddings: Tensor, labelled_embeddings: Tensor, *, query_size: int, generator: torch.Generator
) -> Tensor:
    """Cluster all images and take the most typical of the clusters with the fewest labels (Hacohen et al., 2022).

    There are as many clusters as labels after this batch, at most `MOST_CLUSTERS`, on the unit sphere. Among
    those with equally few labels the largest comes first; clusters of fewer than 5 images come last. An image is
    typical where it lies dense: see `diversity.typicality`.

    Args:
        embeddings: `(N, D)`.
        labelled_embeddings: `(M, D)`.
    """
    n, n_labelled = len(embeddings), len(labelled_embeddings)
    rows = normalize(torch.cat([embeddings, labelled_embeddings.to(embeddings.dtype)]).float(), dim=1)
    centroids, clusters = kmeans(rows, min(n_labelled + query_size, MOST_CLUSTERS), generator=generator)
    sizes = clusters.bincount(minlength=len(centroids)).tolist()
    labels = clusters[n:].bincount(minlength=len(centroids)).tolist()
    here = clusters[:n].unique().tolist()
    here.sort(key=lambda cluster: (sizes[cluster] < 5, labels[cluster], -sizes[cluster], cluster))
    place = torch.full((len(centroids),), len(here), device=embeddings.device)
    place[here] = torch.arange(len(here), device=embeddings.device)
    places = place[clusters[:n]]
    # Only these clusters are drawn from: one place each, and all of them where there are too few.
    asked = (places < query_size).nonzero().flatten()
    typical_first = asked[typicality(rows[asked], places[asked]).argsort(descending=True, stable=True)]
    in_place = typical_first[places[typical_first].argsort(stable=True)]
    return in_place[take_turns(places[in_place])[:query_size]]


def max_herding(
    embeddings: Tensor, labelled_embeddings: Tensor, *, query_size: int, generator: torch.Generator
) -> Tensor:
    """Cover the pool: each pick adds most to how near every image has a label (MaxHerding; Bae et al., 2024).

    On the unit sphere and with a kernel of radius 1; see `covering.herd`.

    Args:
        embeddings: `(N, D)`.
        labelled_embeddings: `(M, D)`.
    """
    rows, labelled = _on_the_sphere(embeddings), _on_the_sphere(labelled_embeddings)
    references = _even_rows(embeddings, MOST_REFERENCES)
    return herd(rows, query_size, centres=labelled, radius=1.0, references=references)


def uherding(
    scores: Tensor,
    embeddings: Tensor,
    labelled_embeddings: Tensor,
    *,
    query_size: int,
    generator: torch.Generator,
) -> Tensor:
    """Cover what is uncertain: `max_herding` weighted by the scores (UHerding; Bae et al., 2025).

    The radius is the smallest distance between labelled images (see `MOST_COMPARED`). It shrinks as labels come in,
    and so the strategy goes over from covering the pool to taking the most uncertain. Without labels all weights are 1.

    Args:
        scores: `(N,)`, at least 0; the paper's is the margin, which is in [0, 1].
        embeddings: `(N, D)`.
        labelled_embeddings: `(M, D)`.
    """
    _check_no_negative(scores, "uherding")
    rows, labelled = _on_the_sphere(embeddings), _on_the_sphere(labelled_embeddings)
    return herd(
        rows,
        query_size,
        centres=labelled,
        weights=scores.float() if len(labelled) else None,
        radius=_distance_between(labelled, share=0),
        references=_even_rows(embeddings, MOST_REFERENCES),
    )


def auto(
    scores: Tensor,
    probs: Tensor,
    embeddings: Tensor,
    labelled_embeddings: Tensor,
    labelled_targets: Tensor,
    *,
    query_size: int,
    generator: torch.Generator,
) -> tuple[Tensor, str, Aim]:
    """Cover the pool while labels are few, then what is uncertain: the default, for every number of labels.

    Below `FEW_LABELS` for each class the model's word counts for nothing and every image is to be covered, as in
    `max_herding`. Then images count by their score, as in `uherding`, and one covers another only as far as both are
    predicted alike: the kernel is multiplied by the Bhattacharyya coefficient of the two predictions, a labelled image
    counting as sure of its label. So a label is worth most where the model wavers between classes that no label near by
    has settled. The radius is the distance that a quarter of the labelled images (see `MOST_COMPARED`) have a labelled
    neighbour within; it shrinks as labels come in.

    The kernel and the rule were chosen on MNIST digits (pixels, principal components and an imbalanced part of them,
    logistic regression, 10 to 300 labels): docs/decisions/0005.

    Args:
        scores: `(N,)`, at least 0.
        probs: `(N, K, C)`.
        embeddings: `(N, D)`.
        labelled_embeddings: `(M, D)`.
        labelled_targets: `(M,)`.
    """
    _check_no_negative(scores, "auto")
    n_labels, n_classes = len(labelled_embeddings), probs.shape[2]
    few = n_labels < FEW_LABELS * n_classes
    rows, labelled = _on_the_sphere(embeddings), _on_the_sphere(labelled_embeddings)
    picks = herd(
        rows,
        query_size,
        centres=labelled,
        weights=None if few else scores.float(),
        radius=_distance_between(labelled, share=0.25),
        references=_even_rows(embeddings, MOST_REFERENCES),
        affinity=None if few else _mean_of_members(probs).sqrt(),
        centre_affinity=None if few else one_hot(labelled_targets, n_classes).float(),
    )
    aim = "the whole pool" if few else "what is uncertain"
    compared = "fewer than" if few else "at least"
    note = f"covers {aim}: {n_labels} labels are {compared} {FEW_LABELS} for each of {n_classes} classes"
    return picks, note, "typical" if few else "unsure"


def badge(probs: Tensor, embeddings: Tensor, *, query_size: int, generator: torch.Generator) -> Tensor:
    """Draw gradients that are long and far apart (BADGE; Ash et al., 2020).

    The gradient is that of the loss at the last layer, were the prediction right: the outer product of the error
    that this makes of the mean prediction, and the embedding. It is never computed: see `diversity.d2_sampling`.

    Args:
        probs: `(N, K, C)`.
        embeddings: `(N, D)`.
    """
    mean = _mean_of_members(probs)
    error = mean - one_hot(mean.argmax(dim=1), mean.shape[1])
    return d2_sampling([error, embeddings], query_size, generator=generator)


def batch_bald(probs: Tensor, *, query_size: int, generator: torch.Generator, n_configurations: int = 10_000) -> Tensor:
    """Take what tells most about the model jointly (BatchBALD; Kirsch et al., 2019); for small batches.

    Looks at the `MOST_JOINT` images with the highest BALD. See `information.batch_bald`.

    Args:
        probs: `(N, K, C)`, K >= 2.
        n_configurations: joint labels that the entropy is computed from; fewer are faster and noisier.
    """
    _check_several_members(probs, "batch_bald")
    rows = top_k(bald(probs), query_size=max(MOST_JOINT, query_size), generator=generator).sort().values
    picks = information.batch_bald(probs[rows], query_size, generator=generator, n_configurations=n_configurations)
    return rows[picks]


def bait(
    embeddings: Tensor,
    probs: Tensor,
    labelled_embeddings: Tensor,
    labelled_probs: Tensor,
    *,
    query_size: int,
    generator: torch.Generator,
) -> Tensor:
    """Take what leaves the last layer least in doubt over the whole pool (BAIT; Ash et al., 2021).

    In its fast form, where a prediction is the most likely class against the rest (Huseljic et al., 2024): see
    `information.bait`. The embeddings are divided by their mean length, because the prior that it starts from
    has a fixed scale: without this, long embeddings would make it count for nothing and short ones for all.

    Args:
        embeddings: `(N, D)`.
        probs: `(N, K, C)`.
        labelled_embeddings: `(M, D)`.
        labelled_probs: `(M, K, C)`.
        generator: not used: nothing is left to chance.
    """
    length = embeddings.float().norm(dim=1).mean().clamp_min(TINY)
    return information.bait(
        embeddings.float() / length,
        _mean_of_members(probs).amax(dim=1),
        labelled_embeddings.float() / length,
        _mean_of_members(labelled_probs).amax(dim=1),
        query_size,
    )


def drop_query(probs: Tensor, embeddings: Tensor, *, query_size: int, generator: torch.Generator) -> Tensor:
    """Cluster what the members do not agree on and take the middle of each cluster (DropQuery; Gupte et al., 2024).

    Clustered is what more than half of the members predict unlike their mean; where this is less than `WIDE_ENOUGH`
    times the batch, so many of what any member does, those first on which most do. The rest of the batch is random.
    The paper's members are three passes with dropout on the embedding, compared with the pass without it.

    Args:
        probs: `(N, K, C)`, K >= 2.
        embeddings: `(N, D)`, clustered on the unit sphere.
    """
    _check_several_members(probs, "drop_query")
    differ = (probs.argmax(dim=2) != _mean_of_members(probs).argmax(dim=1, keepdim=True)).float().mean(dim=1)
    n_open = max(int((differ > 0.5).sum()), min(int((differ > 0).sum()), WIDE_ENOUGH * query_size))
    open_ones = top_k(differ, query_size=n_open, generator=generator)
    shuffled = torch.randperm(len(probs), generator=generator).to(probs.device)
    if len(open_ones) == 0:
        return shuffled[:query_size]
    rows = _on_the_sphere(embeddings[open_ones])
    centroids, _ = kmeans(rows, query_size, generator=generator)
    picks = open_ones[nearest_to_centroids(rows, centroids)]
    others = shuffled[~torch.isin(shuffled, picks)]
    return torch.cat([picks, others[: query_size - len(picks)]])


def _shortlist(scores: Tensor, shortlist: float, query_size: int, generator: torch.Generator) -> Tensor:
    """Return the positions of the `shortlist * query_size` highest scores, highest first."""
    if not shortlist >= 1:
        raise ValueError(f"shortlist must be at least 1, got {shortlist}")
    return top_k(scores, query_size=math.ceil(shortlist * query_size), generator=generator)


def _check_no_negative(scores: Tensor, strategy: str) -> None:
    if (scores < 0).any():
        raise ValueError(f"strategy {strategy!r} needs scores of at least 0, got {scores.min():.6g}")


def _check_several_members(probs: Tensor, strategy: str) -> None:
    if probs.shape[1] < 2:
        raise ValueError(f"strategy {strategy!r} needs the probabilities of at least 2 members, got {probs.shape[1]}")


def _mean_of_members(probs: Tensor) -> Tensor:
    """Return `(N, C)`, at least in float32."""
    return probs.float().mean(dim=1)


def _draw(odds: Tensor, chance: float) -> int:
    """Return the position that a number drawn evenly from [0, 1) falls on; `torch.multinomial` ends at 2**24 odds."""
    cumulative = odds.cumsum(dim=0)
    total = float(cumulative[-1])
    return int(torch.searchsorted(cumulative, min(chance * total, math.nextafter(total, 0)), right=True))


def take_turns(groups: Tensor) -> Tensor:
    """Return the positions in the order in which groups take turns: the first of each, then the second of each.

    Args:
        groups: `(N,)` int64, at least 0; within a turn the lowest position comes first.

    >>> take_turns(torch.tensor([1, 1, 0, 1, 0])).tolist()
    [0, 2, 1, 4, 3]
    """
    by_group = groups.argsort(stable=True)
    sizes = groups.bincount()
    turns = torch.empty_like(groups)
    turns[by_group] = torch.arange(len(groups), device=groups.device) - (sizes.cumsum(0) - sizes)[groups[by_group]]
    return turns.argsort(stable=True)


def _on_the_sphere(embeddings: Tensor) -> Tensor:
    """Return `(N, D)` in float32, each row of length 1, or 0 where it was 0."""
    return normalize(embeddings.float(), dim=1)


def _even_rows(embeddings: Tensor, most: int) -> Tensor:
    """Return the positions of at most so many rows, evenly spread."""
    n = min(len(embeddings), most)
    return torch.arange(n, device=embeddings.device) * len(embeddings) // max(n, 1)


def _distance_between(rows: Tensor, *, share: float) -> float:
    """Return the distance within which a share of the rows have another that is no duplicate; 1 where none has.

    The share is that of at most `MOST_COMPARED` rows, evenly spread; the others are sought among all.
    """
    if len(rows) < 2:
        return 1.0
    asked = rows[_even_rows(rows, MOST_COMPARED)].double()  # float32 rounds small distances to multiples of about 1e-3
    nearest = torch.full((len(asked),), torch.inf, dtype=torch.float64, device=rows.device)
    for some in rows.split(1024):
        distance = torch.cdist(asked, some.double())
        nearest = torch.minimum(nearest, distance.masked_fill_(distance <= 1e-6, torch.inf).amin(dim=1))
    apart = nearest[nearest < torch.inf]
    return float(apart.quantile(share)) if len(apart) else 1.0


def _distance_to_class_means(embeddings: Tensor, labelled_embeddings: Tensor, labelled_targets: Tensor) -> Tensor:
    """Return `(N,)` the distance to the nearest class mean; to the mean of the embeddings where nothing is labelled."""
    origin = embeddings.mean(dim=0, dtype=torch.float32)
    means = torch.zeros_like(origin)[None]
    if len(labelled_embeddings):
        _, classes, counts = labelled_targets.unique(return_inverse=True, return_counts=True)
        members = one_hot(classes).T.float() / counts[:, None]
        means = members @ (labelled_embeddings.float() - origin)
    return torch.cat([torch.cdist(some.float() - origin, means).amin(dim=1) for some in embeddings.split(4096)])


def _parameters(strategy: str) -> list[inspect.Parameter]:
    return list(inspect.signature(look_up(STRATEGIES, strategy, "strategy")).parameters.values())


def _columns(candidates: Candidates, strategy: str, rows: Tensor) -> list[Tensor | None]:
    """Return the columns that a strategy reads, those of the candidates in `rows`; None for an optional one."""
    in_order = torch.equal(rows, torch.arange(len(rows)))  # then a view does, and a large pool is held once
    columns = []
    for parameter in _parameters(strategy):
        if parameter.kind is parameter.KEYWORD_ONLY:
            continue
        values = getattr(candidates, parameter.name)
        if values is None and parameter.default is parameter.empty:
            raise ValueError(f"strategy {strategy!r} needs {parameter.name}, which scoring did not compute")
        if values is not None and not parameter.name.startswith("labelled_"):
            values = values[: len(rows)] if in_order else values[rows.to(values.device)]
        columns.append(values)
    return columns


def _ask(
    candidates: Candidates,
    strategy: str,
    rows: Tensor,
    size: int,
    generator: torch.Generator,
    options: Mapping[str, object],
) -> tuple[Tensor, list[Told]]:
    """Return `(size,)` of the rows, and what is told of each; what the strategy leaves open is filled by score."""
    columns = _columns(candidates, strategy, rows)
    if size == 0:
        return rows[:0], []
    answer = STRATEGIES[strategy](*columns, query_size=size, generator=generator, **options)
    positions, note, aim = answer if isinstance(answer, tuple) else (answer, "", AIMS.get(strategy, "unsure"))
    positions = positions.cpu()
    _check_positions(positions, strategy, size, len(rows))
    left = torch.ones(len(rows), dtype=torch.bool)
    left[positions] = False
    rest = rows[left]
    scores = candidates.scores[rest.to(candidates.scores.device)]
    filling = rest[top_k(scores, query_size=size - len(positions), generator=generator).cpu()]
    filled: list[Told] = [("filled by score", "unsure")] * len(filling)
    return torch.cat([rows[positions], filling]), [(note, aim)] * len(positions) + filled


def _ask_each_class(
    candidates: Candidates,
    strategy: str,
    rows: Tensor,
    size: int,
    generator: torch.Generator,
    options: Mapping[str, object],
) -> tuple[Tensor, list[Told]]:
    """Ask as `_ask` for each predicted class apart, and let the classes take turns, the most wanted first."""
    if candidates.guesses is None or candidates.labelled_targets is None:
        raise ValueError("a class-balanced batch needs guesses and labelled_targets, which scoring did not compute")
    guesses, labels = candidates.guesses.cpu()[rows], candidates.labelled_targets.cpu()
    n_classes = 1 + max((int(column.max()) for column in (guesses, labels) if len(column)), default=-1)
    available = guesses.bincount(minlength=n_classes)
    turns = _even_turns(labels.bincount(minlength=n_classes).tolist(), available.tolist(), size, generator)
    chosen = torch.empty(size, dtype=torch.long)
    told: list[Told] = [("", "unsure")] * size
    for guess in turns.unique().tolist():
        places = (turns == guess).nonzero().flatten()
        of_class = rows[guesses == guess]
        chosen[places], of_these = _ask(candidates, strategy, of_class, len(places), generator, options)
        for place, each in zip(places.tolist(), of_these, strict=True):
            told[place] = each
    return chosen, told


def _even_turns(n_labels: Sequence[int], available: Sequence[int], size: int, generator: torch.Generator) -> Tensor:
    """Return `(size,)` classes: each turn is for the class with the fewest labels so far that has any left.

    Args:
        n_labels: `(C,)` labels there are of each class.
        available: `(C,)` candidates of each class, at least `size` in all.
        generator: decides which of the classes with equally many labels comes first.
    """
    lots = torch.randperm(len(n_labels), generator=generator).tolist()
    waiting = [(n, lot, guess) for guess, (n, lot) in enumerate(zip(n_labels, lots, strict=True)) if available[guess]]
    heapq.heapify(waiting)
    left = list(available)
    turns = []
    for _ in range(size):
        n, lot, guess = waiting[0]
        turns.append(guess)
        left[guess] -= 1
        if left[guess]:
            heapq.heapreplace(waiting, (n + 1, lot, guess))
        else:
            heapq.heappop(waiting)
    return torch.tensor(turns, dtype=torch.long)


def _check_positions(positions: Tensor, strategy: str, wanted: int, n_candidates: int) -> None:
    """Refuse what a strategy must never return, before it costs anybody's time."""
    got = positions.tolist()
    in_range = all(0 <= position < n_candidates for position in got)
    enough = len(got) == wanted or (strategy in MAY_FALL_SHORT and len(got) < wanted)
    if not enough or len(set(got)) != len(got) or not in_range:
        raise RuntimeError(
            f"strategy {strategy!r} must return {wanted} distinct positions below {n_candidates}, got {got}"
        )


def _draw_from_the_rest(order: Tensor, chosen: Tensor, n_draws: int, generator: torch.Generator) -> Tensor:
    """Return `(n_draws,)` of `order`, each of those not chosen equally likely."""
    shuffled = order[torch.randperm(len(order), generator=generator)]
    return shuffled[~torch.isin(shuffled, chosen)][:n_draws]


def _batch(
    candidates: Candidates, strategy: str, chosen: Tensor, told: list[Told], drawn: Tensor, round_number: int
) -> Batch:
    """Spread what was drawn evenly through what was chosen, and say why each is there."""
    size = len(chosen) + len(drawn)
    is_drawn = torch.zeros(size, dtype=torch.bool)
    is_drawn[((torch.arange(len(drawn)) + 0.5) * size / max(len(drawn), 1)).long()] = True
    positions = torch.empty(size, dtype=torch.long)
    positions[is_drawn], positions[~is_drawn] = drawn, chosen
    scores = candidates.scores.cpu()
    picked = scores[positions]
    shares = torch.searchsorted(scores.sort().values, picked) / max(len(scores), 1)
    notes, aims = iter(note for note, _ in told), iter(aim for _, aim in told)
    reasons = tuple(
        "random slice" if random_pick else _reason(strategy, score, share, next(notes))
        for random_pick, score, share in zip(is_drawn.tolist(), picked.tolist(), shares.tolist(), strict=True)
    )
    ids = tuple(str(item_id) for item_id in candidates.ids[positions.numpy()])
    return Batch(
        ids=ids,
        scores=tuple(picked.tolist()),
        reasons=reasons,
        round_number=round_number,
        aims=tuple("check" if random_pick else next(aims) for random_pick in is_drawn.tolist()),
    )


def _reason(strategy: str, score: float, share: float, note: str) -> str:
    told = f"{strategy}: score {score:.3g}, above {100 * share:.1f} % of the candidates"
    return f"{told}; {note}" if note else told


STRATEGIES: dict[str, Callable[..., Tensor | tuple[Tensor, str, Aim]]] = {
    "anti": anti,
    "auto": auto,
    "badge": badge,
    "bait": bait,
    "batch_bald": batch_bald,
    "cluster_margin": cluster_margin,
    "coverage": coverage,
    "drop_query": drop_query,
    "falcun": falcun,
    "k_center": k_center,
    "max_herding": max_herding,
    "novel": novel,
    "power": power,
    "random": random,
    "suggestive": suggestive,
    "top_k": top_k,
    "top_k_diverse": top_k_diverse,
    "typical": typical,
    "typiclust": typiclust,
    "uherding": uherding,
    "weighted_k_center": weighted_k_center,
}

AIMS: dict[str, Aim] = {
    "coverage": "typical",
    "k_center": "unlike",
    "max_herding": "typical",
    "novel": "unlike",
    "random": "check",
    "typical": "typical",
    "typiclust": "typical",
    "weighted_k_center": "unlike",
}
"""What a strategy picks an image for, where it is not that the model is unsure of it."""

SUB_POOL = {"auto": 10_000, "max_herding": 10_000, "typiclust": 50_000, "uherding": 10_000}
"""Candidates that a strategy sees unless the caller says otherwise, for those that cost more than linear time."""

MAY_FALL_SHORT = frozenset({"weighted_k_center"})
"""Strategies whose options can rule out so much that they return fewer positions than asked for."""

SANITY = frozenset({"anti"})
"""Not for campaigns: a strategy that must lose, which shows in tests and replays that the others are no accident."""
