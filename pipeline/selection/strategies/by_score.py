"""Strategies that read scores only."""

import math

import torch
from torch import Tensor

from pipeline.selection.strategies.columns import check_no_negative


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
    check_no_negative(scores, "power")
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


def best_by_score(scores: Tensor, shortlist: float, query_size: int, generator: torch.Generator) -> Tensor:
    """Return the positions of the `shortlist * query_size` highest scores, highest first."""
    if not shortlist >= 1:
        raise ValueError(f"shortlist must be at least 1, got {shortlist}")
    return top_k(scores, query_size=math.ceil(shortlist * query_size), generator=generator)
