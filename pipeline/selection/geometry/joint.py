"""What the labels of a batch would tell jointly: an image adds only what the others have not told already."""

from typing import NamedTuple

import torch
from torch import Tensor

from pipeline.selection.acquisition import score_all

BLOCK = 32
"""Candidates whose gain `batch_bald` brings up to date together."""

VALUES = 2**18
"""Numbers handled at a time, which bounds the memory and fits the cache of a CPU."""

CONFIGURATIONS = 256
"""The most combinations of labels handled at a time: with a block of candidates they fit the cache of a CPU."""

ROUNDING = 1e-6
"""What is nearer than this counts as equal, and the lowest position wins: sums depend on the machine."""


def batch_bald(probs: Tensor, n_picks: int, *, generator: torch.Generator, n_configurations: int = 10_000) -> Tensor:
    """Pick the batch whose labels tell most about the model, one image after the other (Kirsch et al., 2019).

    Labels and model share `H(y_1..y_b) - sum_i E_k H(y_i | k)`, so one more image gains its entropy given the
    labels of the earlier picks, less its entropy given the member. Gains only shrink with more picks: an old gain is
    an upper bound, and few are computed anew (Minoux, 1978). That is exact while all configurations of the picks'
    labels can be kept. Afterwards some are drawn, the same number from each member, and a gain may grow by the error
    of drawing, so the picks are greedy up to it.

    Args:
        probs: `(N, K, C)` class probabilities; member k is the same draw of the model for all images.
        n_picks: how many; with fewer images, all of them are picked.
        generator: draws configurations.
        n_configurations: the most combinations of the picks' labels that are looked at.

    Returns:
        `(min(n_picks, N),)` distinct positions, in the order of picking.

    >>> rivals, others = [[1.0, 0.0], [0.0, 1.0]], [[0.4, 0.6], [0.6, 0.4]]
    >>> probs = torch.tensor([[*rivals, *rivals], [*rivals, *rivals], [*others, *rivals[:1], *rivals[:1]]])
    >>> batch_bald(probs, 2, generator=torch.Generator()).tolist()
    [0, 2]
    """
    scores = score_all(probs, ["bald", "aleatoric"])
    gains, told_by_member = scores["bald"].double(), scores["aleatoric"].double()
    configurations = _no_labels(probs)
    seed = int(torch.randint(2**62, (), generator=generator))
    picks: list[int] = []
    while len(picks) < min(n_picks, len(probs)):
        best = -torch.inf
        for block in gains.argsort(descending=True, stable=True)[: len(probs) - len(picks)].split(BLOCK):
            if gains[block[0]] < best - ROUNDING:
                break
            gains[block] = _conditional_entropy(probs[block], configurations) - told_by_member[block]
            best = max(best, float(gains[block].max()))
        picks.append(_first_largest(gains, ROUNDING))
        gains[picks[-1]] = -torch.inf
        configurations = _with_label(configurations, probs[picks], n_configurations, seed)
    return torch.tensor(picks, dtype=torch.long, device=probs.device)


def bait(
    embeddings: Tensor,
    confidences: Tensor,
    labelled_embeddings: Tensor,
    labelled_confidences: Tensor,
    n_picks: int,
    *,
    length: Tensor | float = 1.0,
) -> Tensor:
    """Pick the batch after which the head is least uncertain about all images (Ash et al., 2021).

    In the fast form of Huseljic et al. (2024): the head tells the most likely class from the rest, so an image h of
    confidence p has the Fisher information `p (1 - p) h h^T`. With M the information of the labelled set plus the
    identity and F that of all images, 2n images are picked greedily to make `tr(M^-1 F)` small, picks included in
    M; then n of them are greedily dropped again. A pick costs one pass over the embeddings.

    Args:
        embeddings: `(N, D)`, of any floating-point type; computed in float32, or in float64 where that is given.
        confidences: `(N,)` probability of the most likely class.
        labelled_embeddings: `(M, D)`; none are needed.
        labelled_confidences: `(M,)`.
        n_picks: how many; with fewer images, all of them are picked.
        length: what the embeddings are divided by.

    Returns:
        `(min(n_picks, N),)` distinct positions, in the order in which they were picked first.
    """
    rows = _scaled(embeddings, confidences, length)
    labelled = _scaled(labelled_embeddings, labelled_confidences, length)
    known = _fisher(labelled)
    everything = known + _fisher(rows)
    known += torch.eye(len(known), dtype=known.dtype, device=known.device)
    picks = _greedy_trace(rows, known, everything, min(2 * n_picks, len(rows)), sign=1)
    picked = rows[picks]
    dropped = _greedy_trace(picked, known + _fisher(picked), everything, max(len(picks) - n_picks, 0), sign=-1)
    kept = torch.ones(len(picks), dtype=torch.bool, device=rows.device)
    kept[dropped] = False
    return picks[kept]


class _Configurations(NamedTuple):
    """Combinations of labels that some images may get.

    Attributes:
        weights: `(S,)` how probable each is, float64, sum 1.
        members: `(S, K)` how probable each member is after those labels, float64, rows sum to 1.
    """

    weights: Tensor
    members: Tensor


def _no_labels(probs: Tensor) -> _Configurations:
    """Return the one configuration of no images, in which all members are equally probable."""
    n_members = probs.shape[-2]
    weights = torch.ones(1, dtype=torch.float64, device=probs.device)
    return _Configurations(weights, (weights / n_members).expand(1, n_members))


def _with_label(before: _Configurations, images: Tensor, n_configurations: int, seed: int) -> _Configurations:
    """Add each label of the last of some images, `(b, K, C)`, to each configuration; of too many, draw some."""
    image, n_classes = images[-1], images.shape[2]
    if len(before.weights) * n_classes > n_configurations:
        return _draw(images, n_configurations, seed)
    weights = (before.weights.unsqueeze(1) * (before.members @ image.double())).flatten()
    possible = weights.nonzero().flatten()
    members = before.members[possible // n_classes] * image.T[possible % n_classes]
    return _Configurations(weights[possible], members / members.sum(dim=1, keepdim=True))


def _draw(images: Tensor, n_configurations: int, seed: int) -> _Configurations:
    """Draw labels of some images, `(b, K, C)`, as many times from each member; each image has even draws of its own.

    The same seed gives an image the same labels however many follow it, so that gains change by what is told and not
    by chance. With more members than configurations each member gives one.
    """
    generator = torch.Generator().manual_seed(seed)
    n_members, n_classes = images.shape[1:]
    n_draws = max(1, n_configurations // n_members)
    posterior = torch.zeros(n_members, n_draws, n_members, dtype=torch.float64, device=images.device)
    for image in images.double():
        order = torch.rand(n_members, n_draws, generator=generator).argsort(dim=1)
        even = (order + torch.rand(n_members, n_draws, generator=generator, dtype=torch.float64)) / n_draws
        cumulative = image.cumsum(dim=1)
        chances = even.to(images.device) * cumulative[:, -1:]
        labels = torch.searchsorted(cumulative, chances, right=True).clamp_max(n_classes - 1)
        posterior += image.T.log()[labels]
    members = posterior.softmax(dim=2).flatten(0, 1)
    return _Configurations(torch.full_like(members[:, 0], 1 / len(members)), members)


def _conditional_entropy(probs: Tensor, configurations: _Configurations) -> Tensor:
    """Return `(B,)` the entropy of each image's label, `(B, K, C)`, given the labels of the configurations; nats.

    The sums over configurations are in float64: in float32 they differ by more than `ROUNDING` from one size of block
    or number of threads to another.
    """
    probs = probs if probs.dtype == torch.float64 else probs.float()
    by_member = probs.transpose(0, 1).flatten(1)
    tiny = torch.finfo(probs.dtype).tiny
    n_rows = max(1, min(CONFIGURATIONS, VALUES // by_member.shape[1]))
    total = torch.zeros(by_member.shape[1], dtype=torch.float64, device=probs.device)
    for weights, members in zip(*(part.split(n_rows) for part in configurations), strict=True):
        mixed = members.to(probs.dtype) @ by_member
        total -= weights @ mixed.clamp_min(tiny).log_().mul_(mixed).double()
    return total.view(len(probs), -1).sum(dim=1)


def _scaled(embeddings: Tensor, confidences: Tensor, length: Tensor | float) -> Tensor:
    """Return `(N, D)` rows whose outer products are the Fisher information of each image; the only copy of them."""
    wide = embeddings.dtype if embeddings.dtype == torch.float64 else torch.float32
    confidences = confidences.to(wide)
    scales = (confidences * (1 - confidences)).sqrt_().unsqueeze(1)
    return embeddings.to(wide, copy=True).div_(length).mul_(scales)


def _fisher(rows: Tensor) -> Tensor:
    """Return `(D, D)` the sum of the outer products of the rows, in float64."""
    return (rows.T @ rows).double()


def _greedy_trace(rows: Tensor, information: Tensor, everything: Tensor, n_picks: int, *, sign: int) -> Tensor:
    """Pick again and again the row v whose `sign v v^T`, added to M, makes `tr(M^-1 F)` smallest.

    By the formula of Sherman and Morrison it falls by `v^T M^-1 F M^-1 v / (sign + v^T M^-1 v)`; both products are
    kept for all rows, and corrected after each pick.

    Args:
        rows: `(N, D)`.
        information: `(D, D)` M, positive definite, float64.
        everything: `(D, D)` F, float64.
        n_picks: at most N.
        sign: 1 to add, -1 to take away.
    """
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(information))
    lengths, spreads = _products(rows, inverse, everything)
    picks = torch.empty(n_picks, dtype=torch.long, device=rows.device)
    for place in range(n_picks):
        falls = spreads / (sign + lengths)
        falls[picks[:place]] = -torch.inf
        pick = picks[place] = _first_largest(falls, ROUNDING * float(falls.max().abs()))
        row = rows[pick].double()
        direction = inverse @ row
        pulled = everything @ direction
        scale = sign + row @ direction
        along, across = (rows @ torch.stack([direction, inverse @ pulled], dim=1).to(rows.dtype)).double().T
        spreads += along / scale * (along / scale * (direction @ pulled) - 2 * across)
        lengths -= along.square() / scale
        inverse -= torch.outer(direction, direction) / scale
    return picks


def _products(rows: Tensor, inverse: Tensor, everything: Tensor) -> tuple[Tensor, Tensor]:
    """Return `(N,)` `v^T M^-1 v` and `(N,)` `v^T M^-1 F M^-1 v` of each row, in float64."""
    inverse, everything = inverse.to(rows.dtype), everything.to(rows.dtype)
    lengths, spreads = [], []
    for chunk in rows.split(max(1, VALUES // rows.shape[1])):
        directions = chunk @ inverse
        lengths.append((directions * chunk).sum(dim=1))
        spreads.append((directions @ everything * directions).sum(dim=1))
    return torch.cat(lengths).double(), torch.cat(spreads).double()


def _first_largest(values: Tensor, tolerance: float) -> int:
    return int((values >= values.max() - tolerance).nonzero()[0])
