"""When to stop paying for labels, and what the next ones are worth: rules over the rounds that have been measured.

The audit set is the same in every round, so that the errors of successive audit accuracies go together: images that
happen to be hard lower all of them. Such an error moves the whole learning curve and cancels in a gain. Here the errors
count as independent, which makes the interval of a gain wider than the audit set alone would; the room is for what the
audit set does not show, the luck of each training.

A rule is asked again after every round, and stops at the first that passes. At 2.5 % each time it would stop too early
in 8 to 25 % of campaigns of 20 rounds; so the looks share the 2.5 %, see `level_of_look`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


N_PARAMETERS = 3
MIN_ROUNDS = N_PARAMETERS + 1
"""Measured rounds with different numbers of labels that a forecast needs."""
ALPHA = 0.025
"""Chance that a rule stops a campaign too early, over all of its looks."""
EXPONENTS = (0.05, 2.0)
"""Range of the curve's exponent, evenly likely on a logarithmic scale: from almost a logarithm to a sharp bend."""
N_EXPONENTS, N_ACCURACIES = 24, 40
"""Points of the grid on which the curve's parameters are weighed."""
N_ZOOMS = 3
"""How often the grid is laid, each time over what was likely, so that a large audit set meets no coarse ruler."""
NEGLIGIBLE = 12.0
"""Parameters this much below the best, in nats, count for nothing."""


@dataclass(frozen=True, slots=True)
class MeasuredRound:
    """A point of the learning curve.

    Attributes:
        n_trained_on: labels that the round's model learnt from, at least 1.
        n_correct: images of the audit set that it got right.
        n_audit: images of the audit set, at least 1; where another measure counts, as many as would know it as well.
    """

    n_trained_on: int
    n_correct: int
    n_audit: int

    def __post_init__(self) -> None:
        if self.n_trained_on < 1 or not 0 <= self.n_correct <= self.n_audit or self.n_audit < 1:
            raise ValueError(f"a measured round needs labels, and a count of right ones of an audit set, got {self}")


@dataclass(frozen=True, slots=True)
class Forecast:
    """What the next labels are worth.

    Attributes:
        n_labels: how many they are.
        gain: expected gain in accuracy, a share; `gain_low` and `gain_high` are its interval, of 95 % by default.
    """

    n_labels: int
    gain: float
    gain_low: float
    gain_high: float

    def __str__(self) -> str:
        middle, half = 50 * (self.gain_high + self.gain_low), 50 * (self.gain_high - self.gain_low)
        return f"the next {self.n_labels} labels are worth {middle:+.1f} ± {half:.1f} points"  # the interval, exactly


def level_of_look(look: int) -> float:
    """What the look of this number, from 1, may spend of `ALPHA`: `ALPHA * 6 / (pi k)^2`, in all `ALPHA` for ever.

    >>> [round(level_of_look(look), 5) for look in (1, 2, 10)]
    [0.0152, 0.0038, 0.00015]
    """
    return ALPHA * 6 / (math.pi * look) ** 2


def surely_reached(rounds: Sequence[MeasuredRound], *, look: int) -> float | None:
    """The accuracy that the newest round has at least, by the exact limit at the level of the look; None before one."""
    if not rounds:
        return None
    return exact_lower_limit(rounds[-1].n_correct, rounds[-1].n_audit, alpha=level_of_look(look))


def exact_lower_limit(successes: int, n: int, *, alpha: float) -> float:
    """What a share is above with a confidence of `1 - alpha` at least (Clopper and Pearson, 1934), one-sided.

    Unlike Wilson's it is never too high, however small `alpha` is: at 30 % of 100 and the levels of twenty looks the
    other errs up to 2.5 times as often as its level. Near 1, where targets are, it is higher than Wilson's too.

    >>> round(exact_lower_limit(59, 59, alpha=0.05), 3)
    0.95
    """
    from scipy.special import betaincinv

    return float(betaincinv(successes, n - successes + 1, alpha)) if successes else 0.0


def reaches_target(rounds: Sequence[MeasuredRound], target_accuracy: float, *, look: int) -> bool:
    """Whether the newest round is surely at the target or above it.

    Args:
        look: how often the rule has been asked, this time included.
    """
    reached = surely_reached(rounds, look=look)
    return reached is not None and reached >= target_accuracy


def is_plateau(rounds: Sequence[MeasuredRound], *, n_labels: int, min_gain: float, look: int) -> bool:
    """Whether the next `n_labels` labels are worth less than `min_gain`, by the upper end of the forecast.

    A curve is a plateau only if it rose before: one that is flat from the start may belong to a model that has not
    begun to learn, and says nothing about more labels (see `has_risen`).

    Args:
        min_gain: in accuracy, a share.
        look: how often the rule has been asked, this time included; both questions are asked at its level.
    """
    level = level_of_look(look)
    if not has_risen(rounds, alpha=level):
        return False
    expected = forecast(rounds, n_labels, alpha=level)
    return expected is not None and expected.gain_high < min_gain


def has_risen(rounds: Sequence[MeasuredRound], *, alpha: float) -> bool:
    """Whether the newest accuracy is above the first by a two-proportion z test at `alpha` (Fleiss, 1981, 2.3).

    The rounds count as independent, which on one audit set is on the safe side.
    """
    if not rounds:
        return False
    first, last = rounds[0], rounds[-1]
    share = (first.n_correct + last.n_correct) / (first.n_audit + last.n_audit)
    error = math.sqrt(share * (1 - share) * (1 / first.n_audit + 1 / last.n_audit))
    return last.n_correct / last.n_audit - first.n_correct / first.n_audit > NormalDist().inv_cdf(1 - alpha) * error


def forecast(rounds: Sequence[MeasuredRound], n_labels: int, *, alpha: float = ALPHA) -> Forecast | None:
    """What the next `n_labels` labels are worth, by the learning curve; None with fewer than `MIN_ROUNDS` points.

    The curve is the inverse power law `a - b n^-c` (Cortes et al., 1994; Figueroa et al., 2012) that does not fall.
    It is not fitted to one answer: every curve of a grid is weighed by its likelihood, each round with the
    binomial error of its audit accuracy, so that a few rounds give a wide interval and nothing is left to an optimiser
    or to chance. Where the rounds scatter more than that around the best curve, the likelihood is flattened by as
    much (quasi-likelihood: McCullagh & Nelder, 1989, 4.5). The curve is a guide to the next few batches and not to
    where it ends: a may be above 1, as long as the accuracy is not at twice the labels.

    Args:
        rounds: oldest first; the labels are added to those of the last.
        n_labels: at least 1.
        alpha: chance that the gain is below the interval, and that it is above.
    """
    if n_labels < 1:
        raise ValueError(f"a forecast is about at least 1 label, got {n_labels}")
    if lacks_for_forecast(rounds) is not None:
        return None
    gains, weights = _gains(rounds, n_labels)
    order = gains.argsort()
    gains, weights = gains[order], weights[order]
    ends = np.searchsorted(weights.cumsum(), [alpha, 1 - alpha])
    low, high = gains[ends.clip(max=len(gains) - 1)].tolist()
    return Forecast(n_labels, gain=float(gains @ weights), gain_low=low, gain_high=high)


def lacks_for_forecast(rounds: Sequence[MeasuredRound]) -> str | None:
    """Why there can be no forecast yet, for people to read; None when there can."""
    n_points = len({measured.n_trained_on for measured in rounds})
    if n_points >= MIN_ROUNDS:
        return None
    return f"a forecast needs {MIN_ROUNDS} measured rounds with different numbers of labels, there are {n_points}"


def stop_reason(
    rounds: Sequence[MeasuredRound],
    *,
    target_accuracy: float | None,
    min_gain: float | None,
    query_size: int,
    looks_at_target: int,
    looks_at_gain: int,
    headline: str = "accuracy",
) -> str | None:
    """Why to stop, for people to read; None to go on.

    Args:
        target_accuracy: of `reaches_target`, None for no such rule.
        min_gain: of `is_plateau`, None for no such rule.
        query_size: labels that would be asked for next.
        looks_at_target: how often that rule has been asked, this time included; `looks_at_gain` likewise.
        headline: what the rounds are measured by, in words.
    """
    if target_accuracy is not None and reaches_target(rounds, target_accuracy, look=looks_at_target):
        return f"the audit {headline} is at least {100 * target_accuracy:g} %, {_sure(looks_at_target)}"
    if min_gain is not None and is_plateau(rounds, n_labels=query_size, min_gain=min_gain, look=looks_at_gain):
        return f"the next {query_size} labels are worth less than {100 * min_gain:.2f} points, {_sure(looks_at_gain)}"
    return None


def _sure(look: int) -> str:
    return f"{100 * (1 - level_of_look(look)):.4g} % sure at look {look}"


def _gains(rounds: Sequence[MeasuredRound], n_more: int) -> tuple[Floats, Floats]:
    """Return `(G,)` the gain that each curve of the grid foresees, and `(G,)` its weight, summing to 1."""
    labels = np.array([measured.n_trained_on for measured in rounds], dtype=np.float64)
    exponents = np.exp(_middles(math.log(EXPONENTS[0]), math.log(EXPONENTS[1]), N_EXPONENTS))
    now, fewest, most = float(labels[-1]), float(labels.min()), float(labels.max())
    first = last = _middles(0.0, 1.0, N_ACCURACIES)
    for _ in range(N_ZOOMS):
        curves = _Curves(first, last, exponents, shortest=fewest, longest=most)
        fit = _log_likelihood(curves, rounds)
        fit[curves.accuracy(2 * most + n_more) > 1] = -np.inf
        likely = fit > fit.max() - NEGLIGIBLE
        first = _narrowed(first, likely.any(axis=(1, 2)))
        last = _narrowed(last, likely.any(axis=(0, 2)))
    gains = curves.accuracy(now + n_more) - curves.accuracy(now)
    weights = np.exp(fit[likely] - fit.max())
    return gains[likely], weights / weights.sum()


@dataclass(frozen=True)
class _Curves:
    """A grid of learning curves, by their accuracy at the fewest and at the most labels so far and their exponent.

    Both accuracies are known about as well as the audit set is large, unlike a, b and c themselves.

    Attributes:
        first: `(A,)` accuracies at `shortest` labels; `last` are those at `longest`.
        exponents: `(E,)`.
    """

    first: Floats
    last: Floats
    exponents: Floats
    shortest: float
    longest: float

    def accuracy(self, n_labels: float) -> Floats:
        """Accuracies `(A, A, E)` at a number of labels, by first accuracy, last accuracy and exponent."""
        done = 1 - (n_labels / self.shortest) ** -self.exponents
        first = self.first[:, None, None]
        return first + (self.last[:, None] - first) * done / (1 - (self.longest / self.shortest) ** -self.exponents)


def _log_likelihood(curves: _Curves, rounds: Sequence[MeasuredRound]) -> Floats:
    """Return `(A, A, E)` in nats, minus infinity for a curve that falls."""
    total = np.zeros((len(curves.first), len(curves.last), len(curves.exponents)))
    deviance = np.zeros_like(total)
    for measured in rounds:
        right, size = measured.n_correct, measured.n_audit
        accuracy = curves.accuracy(measured.n_trained_on).clip(0, 1)
        total += _times_log(right, accuracy) + _times_log(size - right, 1 - accuracy)
        spread = (accuracy * (1 - accuracy)).clip(min=1 / size)
        deviance += np.square(right / size - accuracy) * size / spread
    total[curves.first[:, None] > curves.last] = -np.inf
    scatter = deviance.flat[total.argmax()] / (len(rounds) - N_PARAMETERS)
    return total / max(scatter, 1.0)


def _times_log(n: int, share: Floats) -> Floats | float:
    """Return n times the logarithm of a share, 0 where there is nothing to count."""
    with np.errstate(divide="ignore"):
        return n * np.log(share) if n else 0.0


def _middles(low: float, high: float, n: int) -> Floats:
    """Return `(n,)` the middles of as many equal parts of a range."""
    return low + (high - low) * (np.arange(n) + 0.5) / n


def _narrowed(accuracies: Floats, likely: NDArray[np.bool_]) -> Floats:
    """Return `(A,)` accuracies over the range of the likely ones, with one part more on either side."""
    margin = 1.5 * float(accuracies[1] - accuracies[0])
    kept = accuracies[likely]
    return _middles(max(0.0, float(kept[0]) - margin), min(1.0, float(kept[-1]) + margin), N_ACCURACIES)
