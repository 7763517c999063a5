"""Intervals by drawing the images again, with replacement (Efron, 1979)."""

import torch
from torch import Tensor

from pipeline.evaluation.metrics import wilson_interval

N_DRAWS = 1000
"""Draws of the images that an interval is taken from."""


def draw_images(n: int, *, seed: int = 0) -> Tensor:
    """How often each of n images counts, `(1 + N_DRAWS, n)` float64: all once in row 0, then as often as drawn."""
    drawn = torch.randint(n, (N_DRAWS, n), generator=torch.Generator().manual_seed(seed))
    weights = torch.zeros(1 + N_DRAWS, n, dtype=torch.float64)
    weights[0] = 1
    weights[1:].scatter_add_(1, drawn, torch.ones(1, 1, dtype=torch.float64).expand(N_DRAWS, n))
    return weights


def percentile_interval(values: Tensor, n: int) -> tuple[float, float]:
    """The 95 % interval of a measure of n images, around its value.

    Draws of predictions without a fault are all without one, which tells nothing of the next fault: then the interval
    is Wilson's of as many images that are all right.

    Args:
        values: `(1 + N_DRAWS,)` of the measure by the rows of `draw_images`, in [0, 1]; NaN where a draw has none.
    """
    value, of_draws = float(values[0]), values[1:]
    low, high = torch.quantile(of_draws[~of_draws.isnan()], torch.tensor([0.025, 0.975]).to(values)).tolist()
    if value == 1.0:
        low, high = wilson_interval(n, n)
    return min(low, value), max(high, value)
