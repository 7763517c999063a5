import math
import re

import pytest
import torch
from scipy import stats

from pipeline.evaluation.stopping import (
    EXPONENTS,
    MeasuredRound,
    forecast,
    has_risen,
    is_plateau,
    lacks_for_forecast,
    level_of_look,
    reaches_target,
    stop_reason,
    surely_reached,
)

CURVES = [(0.95, 1.5, 0.5), (0.9, 0.8, 0.3), (0.97, 3.0, 0.8)]


def accuracy(curve, n_labels):
    """The inverse power law, a - b n^-c."""
    a, b, c = curve
    return a - b * n_labels**-c


def gain(curve, n_labels, n_more):
    return accuracy(curve, n_labels + n_more) - accuracy(curve, n_labels)


def exact(curve, labels, *, n_audit):
    """Rounds that lie on the curve, up to the rounding to whole images."""
    return [MeasuredRound(n, round(accuracy(curve, n) * n_audit), n_audit) for n in labels]


def drawn(curve, labels, *, n_audit, generator):
    """Rounds measured on one audit set: an image is right as soon as the model is good enough for it."""
    difficulty = torch.rand(n_audit, generator=generator, dtype=torch.float64)
    return [MeasuredRound(n, int((difficulty < accuracy(curve, n)).sum()), n_audit) for n in labels]


def drawn_apart(curve, labels, *, n_audit, generator):
    """Rounds each measured on an audit set of its own."""
    return [drawn(curve, [n], n_audit=n_audit, generator=generator)[0] for n in labels]


@pytest.mark.parametrize("draw", [drawn, drawn_apart])
def test_interval_holds_the_true_gain_as_often_as_it_says(draw):
    generator = torch.Generator().manual_seed(1)
    held, halves, errors = [], [], []
    for curve in CURVES:
        for n_rounds in (4, 7, 10):
            for _ in range(8):
                rounds = draw(curve, range(50, 50 * (n_rounds + 1), 50), n_audit=300, generator=generator)
                told = forecast(rounds, 50)
                truth = gain(curve, 50 * n_rounds, 50)
                held.append(told.gain_low <= truth <= told.gain_high)
                halves.append((told.gain_high - told.gain_low) / 2 / truth)
                errors.append((told.gain - truth) / truth)
    assert sum(held) / len(held) >= 0.9
    assert sum(halves) / len(halves) < 1.2, "an interval that is much wider than the gain says nothing"
    assert abs(sum(errors) / len(errors)) < 0.25


def test_agrees_with_weighing_random_curves():
    rounds = [MeasuredRound(n, right, 150) for n, right in ((40, 75), (80, 98), (120, 104), (160, 112), (200, 113))]
    generator = torch.Generator().manual_seed(0)
    first, last, exponent = torch.rand(3, 400_000, generator=generator, dtype=torch.float64)
    first, last = 0.3 + 0.5 * first, 0.6 + 0.3 * last  # what is outside weighs nothing
    low, high = EXPONENTS
    c = low * (high / low) ** exponent
    b = (last - first) / (40**-c - 200**-c)
    a = last + b * 200**-c

    weights = torch.ones_like(a)
    for measured in rounds:
        p = a - b * measured.n_trained_on**-c
        weights *= (p**measured.n_correct) * (1 - p) ** (150 - measured.n_correct) * 1e38
    weights[(last < first) | (a - b * 450**-c > 1)] = 0
    gains = b * (200**-c - 250**-c)
    order = gains.argsort()
    share = weights[order].cumsum(0) / weights.sum()
    limits = [float(gains[order][int((share < level).sum())]) for level in (0.025, 0.975)]

    told = forecast(rounds, 50)
    assert told.gain == pytest.approx(float((gains * weights).sum() / weights.sum()), rel=0.05)
    assert [told.gain_low, told.gain_high] == pytest.approx(limits, rel=0.1, abs=5e-4)


@pytest.mark.parametrize("curve", CURVES)
def test_finds_the_curve_that_the_rounds_lie_on(curve):
    told = forecast(exact(curve, range(50, 550, 50), n_audit=1_000_000), 200)
    assert told.gain == pytest.approx(gain(curve, 500, 200), rel=0.15)
    assert told.gain_high - told.gain_low < 0.6 * told.gain


def test_agrees_with_a_least_squares_fit():
    from scipy.optimize import curve_fit

    curve = CURVES[0]
    labels = range(50, 850, 50)
    generator = torch.Generator().manual_seed(3)
    rounds = drawn_apart(curve, labels, n_audit=5000, generator=generator)
    shares = [measured.n_correct / 5000 for measured in rounds]
    errors = [math.sqrt(p * (1 - p) / 5000) for p in shares]
    fitted, _ = curve_fit(
        lambda n, a, b, c: a - b * n**-c, list(map(float, labels)), shares, p0=(0.9, 1, 0.5), sigma=errors
    )
    told = forecast(rounds, 200)
    assert told.gain_low < gain(fitted, 800, 200) < told.gain_high


def test_larger_audit_set_gives_a_narrower_interval():
    widths = []
    for n_audit in (100, 1000, 10_000):
        told = forecast(exact(CURVES[0], range(50, 550, 50), n_audit=n_audit), 100)
        widths.append(told.gain_high - told.gain_low)
    assert widths[0] > 1.5 * widths[1] > 2 * widths[2]


def test_rounds_that_scatter_more_than_their_audit_set_explains_widen_the_interval():
    smooth = exact(CURVES[0], range(50, 550, 50), n_audit=5000)
    uneven = [
        MeasuredRound(r.n_trained_on, r.n_correct + (100 if index % 2 else -100), 5000)
        for index, r in enumerate(smooth)
    ]
    calm, wild = forecast(smooth, 100), forecast(uneven, 100)
    assert wild.gain_high - wild.gain_low > 2 * (calm.gain_high - calm.gain_low)


@pytest.mark.parametrize(
    "shares", [[1.0] * 5, [0.0] * 5, [0.9, 0.8, 0.7, 0.6, 0.5], [0.5] * 5, [0.1, 0.3, 0.5, 0.7, 0.9]]
)
def test_any_history_gives_a_gain_that_can_be(shares):
    rounds = [MeasuredRound(30 * index, round(200 * share), 200) for index, share in enumerate(shares, start=1)]
    told = forecast(rounds, 1000)
    assert 0 <= told.gain_low <= told.gain <= told.gain_high <= 1


def test_no_forecast_before_there_are_enough_points():
    rounds = exact(CURVES[0], (50, 100, 150), n_audit=200)
    assert forecast(rounds, 100) is None
    assert lacks_for_forecast(rounds).endswith("there are 3")
    again = [*rounds, rounds[-1]]
    assert forecast(again, 100) is None, "the same labels measured twice are one point of the curve"
    assert lacks_for_forecast(exact(CURVES[0], (50, 100, 150, 200), n_audit=200)) is None


def test_forecast_is_told_in_points():
    told = str(forecast(exact(CURVES[0], range(50, 550, 50), n_audit=200), 200))
    assert re.fullmatch(r"the next 200 labels are worth \+\d\.\d ± \d\.\d points", told)


def campaigns(truth, *, n_audit, n_rounds, n_campaigns, seed, churn):
    """Right ones of the audit set `(campaigns, rounds)`; each round `churn` of the images are drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    right = torch.rand(n_campaigns, n_audit, generator=generator) < truth
    counts = [right.sum(dim=1)]
    for _ in range(n_rounds - 1):
        anew = torch.rand(n_campaigns, n_audit, generator=generator) < truth
        right = torch.where(torch.rand(n_campaigns, n_audit, generator=generator) < churn, anew, right)
        counts.append(right.sum(dim=1))
    return torch.stack(counts, dim=1)


def fewest_right(target, *, n_audit, look):
    """The fewest right ones that stop a campaign."""
    low, high = 0, n_audit + 1
    while low < high:
        middle = (low + high) // 2
        if reaches_target([MeasuredRound(1, min(middle, n_audit), n_audit)], target, look=look):
            high = middle
        else:
            low = middle + 1
    return low


@pytest.mark.parametrize(("n_audit", "target"), [(200, 0.5), (200, 0.9), (300, 0.7), (500, 0.95), (1000, 0.9)])
@pytest.mark.parametrize("churn", [1.0, 0.1])
def test_campaigns_at_the_target_stop_falsely_as_rarely_as_they_say_and_better_ones_stop(n_audit, target, churn):
    size = {"n_audit": n_audit, "n_rounds": 20, "n_campaigns": 1000, "churn": churn}
    at_target = campaigns(target, **size, seed=0)
    paid = torch.tensor([fewest_right(target, n_audit=n_audit, look=look) for look in range(1, 21)])
    stops = int((at_target >= paid).any(dim=1).sum())
    assert stats.binomtest(stops, 1000, 0.025, alternative="greater").pvalue > 0.01
    assert stops <= 25
    free = int((at_target >= paid[0]).any(dim=1).sum())
    assert free > 40, "what each look would cost if none were paid for"
    if n_audit >= 500:
        above = campaigns(target + 0.03, **size, seed=1)
        assert float((above >= paid).any(dim=1).double().mean()) > 0.6


@pytest.mark.parametrize("target", [0.3, 0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("n_audit", [20, 100, 1000])
def test_each_look_errs_at_most_at_its_level_by_the_binomial_distribution(target, n_audit):
    errs = [
        float(stats.binom.sf(fewest_right(target, n_audit=n_audit, look=look) - 1, n_audit, target))
        for look in (1, 2, 5, 20)
    ]
    assert all(err <= level_of_look(look) for err, look in zip(errs, (1, 2, 5, 20), strict=True))


def test_all_looks_together_spend_two_and_a_half_percent():
    assert sum(level_of_look(look) for look in range(1, 200_000)) == pytest.approx(0.025, rel=1e-4)
    assert level_of_look(1) > level_of_look(2)


def test_target_is_reached_by_the_exact_limit_of_the_newest_round():
    rounds = [MeasuredRound(50, 200, 200), MeasuredRound(100, 190, 200)]
    for look in (1, 7):
        limit = surely_reached(rounds, look=look)
        exact = stats.binomtest(190, 200, alternative="greater")
        assert limit == pytest.approx(exact.proportion_ci(1 - level_of_look(look), method="exact").low)
        assert reaches_target(rounds, limit - 1e-6, look=look)
        assert not reaches_target(rounds, limit + 1e-6, look=look)
    assert surely_reached(rounds, look=7) < surely_reached(rounds, look=1)
    assert not reaches_target([], 0.1, look=1)
    assert surely_reached([], look=1) is None
    assert surely_reached([MeasuredRound(1, 0, 9)], look=1) == 0


def test_flat_curve_is_a_plateau_and_a_rising_one_is_not():
    flat = [MeasuredRound(20, 120, 200), *(MeasuredRound(100 * index, 180, 200) for index in range(1, 11))]
    assert is_plateau(flat, n_labels=50, min_gain=0.01, look=1)
    assert not is_plateau(flat, n_labels=50, min_gain=0.00001, look=1), "nobody knows as much from 200 images"
    assert not is_plateau(exact(CURVES[0], range(50, 350, 50), n_audit=1000), n_labels=50, min_gain=0.005, look=1)
    assert not is_plateau(flat[:3], n_labels=50, min_gain=0.5, look=1), "without a forecast there is no plateau"


def test_a_later_look_at_the_gain_needs_more_to_stop():
    flat = [MeasuredRound(20, 120, 200), *(MeasuredRound(100 * index, 180, 200) for index in range(1, 11))]
    ends = [forecast(flat, 50, alpha=level_of_look(look)).gain_high for look in (1, 5, 20)]
    assert ends == sorted(ends)
    assert ends[0] < ends[-1]
    assert is_plateau(flat, n_labels=50, min_gain=sum(ends[::2]) / 2, look=1)
    assert not is_plateau(flat, n_labels=50, min_gain=sum(ends[::2]) / 2, look=20)


def test_campaign_that_never_rose_is_no_plateau():
    at_chance = [MeasuredRound(10 * index, 50, 500) for index in range(1, 5)]
    assert forecast(at_chance, 10).gain_high < 0.01, "the curve alone says that nothing will come"
    assert not is_plateau(at_chance, n_labels=10, min_gain=0.01, look=1)
    looks = {"looks_at_target": 1, "looks_at_gain": 1}
    assert stop_reason(at_chance, target_accuracy=None, min_gain=0.01, query_size=10, **looks) is None


def test_model_at_chance_hardly_ever_seems_to_have_risen():
    counts = campaigns(0.33, n_audit=300, n_rounds=20, n_campaigns=300, seed=0, churn=0.5).tolist()
    curves = [[MeasuredRound(50 * n, right, 300) for n, right in enumerate(row, start=1)] for row in counts]
    risen = sum(any(has_risen(curve[:end], alpha=level_of_look(end - 3)) for end in range(4, 21)) for curve in curves)
    assert risen <= 0.025 * 300
    assert sum(any(has_risen(curve[:end], alpha=0.025) for end in range(4, 21)) for curve in curves) > 30


@pytest.mark.parametrize(("first", "last"), [((100, 200), (119, 200)), ((100, 200), (120, 200)), ((10, 50), (30, 90))])
def test_rise_is_significant_by_the_chi_square_test(first, last):
    table = [[n_correct, n - n_correct] for n_correct, n in (first, last)]
    p_value = stats.chi2_contingency(table, correction=False).pvalue
    rounds = [MeasuredRound(10, *first), MeasuredRound(15, 1, 200), MeasuredRound(20, *last)]
    assert has_risen(rounds, alpha=0.025) == (p_value < 0.05)
    assert not has_risen(rounds[::-1], alpha=0.025), "the other way it fell"


def test_curve_without_two_accuracies_has_not_risen():
    for rounds in ([], [MeasuredRound(10, 5, 10)], [MeasuredRound(10, 10, 10), MeasuredRound(20, 10, 10)]):
        assert not has_risen(rounds, alpha=0.025)


def test_reason_says_which_rule_it_was():
    flat = [MeasuredRound(20, 120, 200), *(MeasuredRound(100 * index, 180, 200) for index in range(1, 11))]
    looks = {"looks_at_target": 11, "looks_at_gain": 8}
    rules = {"target_accuracy": None, "min_gain": None, "query_size": 50, **looks}
    assert stop_reason(flat, **rules) is None
    assert "at least 80 %, 99.99 % sure at look 11" in stop_reason(flat, **rules | {"target_accuracy": 0.8})
    assert "the next 50 labels are worth less than 1.00 points" in stop_reason(flat, **rules | {"min_gain": 0.01})
    assert stop_reason(flat, **rules | {"target_accuracy": 0.9, "min_gain": 0.0001}) is None


@pytest.mark.parametrize("counts", [(0, 1, 2), (10, -1, 2), (10, 3, 2), (10, 0, 0)])
def test_impossible_round_is_refused(counts):
    with pytest.raises(ValueError, match="a measured round needs"):
        MeasuredRound(*counts)


def test_forecast_of_no_label_is_refused():
    with pytest.raises(ValueError, match="at least 1 label, got 0"):
        forecast(exact(CURVES[0], range(50, 550, 50), n_audit=200), 0)
