import itertools
import math
import re

import numpy as np
import pytest
from scipy import stats

from pipeline.evaluation.comparison import (
    FEWEST_SEEDS,
    holm,
    mean_interval,
    paired_difference,
    penalty_matrix,
    seeds_needed,
    verdict,
)


def numbers(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_intervals_and_p_values_agree_with_scipy():
    a, b = numbers(1).normal(size=8), numbers(2).normal(0.5, size=8)
    reference = stats.ttest_rel(b, a)
    low, high = reference.confidence_interval()
    assert paired_difference(a, b) == pytest.approx(
        {"mean": (b - a).mean(), "low": low, "high": high, "p": reference.pvalue}
    )
    low, high = stats.t.interval(0.95, 7, loc=a.mean(), scale=stats.sem(a))
    assert mean_interval(a) == pytest.approx({"mean": a.mean(), "low": low, "high": high})


def test_one_seed_has_no_interval_and_equal_curves_no_difference():
    assert paired_difference([0.5], [0.6]) == {"mean": pytest.approx(0.1), "low": None, "high": None, "p": None}
    assert paired_difference([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])["p"] == 1
    assert paired_difference([0.1, 0.2, 0.3], [0.2, 0.3, 0.4])["p"] == 0


def test_penalty_matrix_agrees_with_a_t_test_at_each_point():
    rng = numbers()
    curves = {name: rng.normal(shift, 0.05, size=(5, 9)) for name, shift in (("a", 0.0), ("b", 0.05), ("c", 0.1))}
    found = penalty_matrix(curves)
    expected = np.zeros((3, 3))
    for (i, winner), (j, loser) in itertools.permutations(enumerate("abc"), 2):
        for point in range(1, 9):
            test = stats.ttest_rel(curves[winner][:, point], curves[loser][:, point])
            expected[i, j] += (test.pvalue < 0.05 and test.statistic > 0) / 8
    assert expected.any()
    assert np.array(found["matrix"]) == pytest.approx(expected)
    assert found["column_mean"]["a"] == pytest.approx(expected[:, 0].sum() / 2)


def test_holm_agrees_with_the_step_down_procedure():
    rng = numbers()
    for _ in range(50):
        p_values = (rng.random(6) ** 3).tolist()
        for alpha in (0.01, 0.05, 0.2):
            rejected = set()
            for rank, position in enumerate(np.argsort(p_values)):
                if p_values[position] > alpha / (6 - rank):
                    break
                rejected.add(position)
            assert {i for i, p in enumerate(holm(p_values)) if p <= alpha} == rejected


def test_seeds_needed_give_a_power_near_80_percent():
    differences = numbers().normal(0.3, 1.0, size=10)
    differences = (differences - differences.mean()) / differences.std(ddof=1) * 1.0 + 0.4
    n = seeds_needed(differences, alpha=0.05)
    limit = stats.t.ppf(0.975, n - 1)
    power = 1 - stats.nct.cdf(limit, n - 1, 0.4 * math.sqrt(n))
    assert 0.78 < power < 0.85
    assert seeds_needed(differences - 0.39, alpha=0.05) is None


def arms(**means):
    """Ten seeds and five points of each arm, with noise of 0.01 that the arms do not share."""
    rng = np.random.default_rng(1)
    return {name: mean + rng.normal(0, 0.01, size=(10, 5)) for name, mean in means.items()}


def test_a_clear_winner_is_named():
    found = verdict(arms(random=0.8, margin=0.9, badge=0.85))
    assert (found["winner"], found["tied"]) == ("margin", ["margin"])
    assert "margin wins: its AULC is" in found["text"]
    assert "above badge, the next best" in found["text"]


def test_no_winner_is_declared_inside_the_noise():
    found = verdict(arms(random=0.8, margin=0.9, badge=0.9))
    assert found["winner"] is None
    assert set(found["tied"]) == {"margin", "badge"}
    assert "No winner: " in found["text"]
    assert "cannot be told apart" in found["text"]
    interval = re.search(r"is (\S+) points above \w+, 95 % interval (\S+) to (\S+)\.(?: |$)", found["text"])
    mean, low, high = map(float, interval.groups())
    assert low < 0 <= mean < high
    assert "equal" not in found["text"]
    assert found["text"].endswith("is above random.")


def test_equal_arms_seldom_give_a_winner():
    rng = np.random.default_rng(2)
    wins = [verdict({n: rng.normal(0.9, 0.01, (10, 5)) for n in "abc"})["winner"] for _ in range(200)]
    assert sum(w is not None for w in wins) <= 10, "at most 5 % by the correction for all pairs"


@pytest.mark.parametrize("n_seeds", [1, 2, FEWEST_SEEDS - 1])
def test_few_seeds_have_no_winner_and_foretell_nothing(n_seeds):
    found = verdict({name: curve[:n_seeds] for name, curve in arms(random=0.8, margin=0.9).items()})
    assert found["winner"] is None
    assert found["text"].endswith("too little about the noise; replay at least 5 (--seeds).")
    assert "More seeds" not in found["text"]


def test_fewest_seeds_can_have_a_winner_and_one_arm_has_none():
    few = {name: curve[:FEWEST_SEEDS] for name, curve in arms(random=0.8, margin=0.9).items()}
    assert verdict(few)["winner"] == "margin"
    assert verdict(arms(margin=0.9))["winner"] is None
