import numpy as np
import pytest

from pipeline.evaluation.curves import (
    area_under_curve,
    labelling_efficiency,
    labels_to,
    median_of_reached,
    thirds,
    win_rate,
)


def test_area_and_thirds_are_means_over_the_points():
    curves = np.array([[0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.5, 0.5, 0.5, 1.0]])
    assert area_under_curve(curves).tolist() == pytest.approx([0.3, 0.6])
    assert np.array(thirds(curves)) == pytest.approx(np.array([[0.15, 0.5], [0.35, 0.5], [0.5, 1.0]]))


def test_labels_to_a_target_agree_with_interpolation_of_a_rising_curve():
    n_trained_on, curve = list(range(20, 320, 20)), np.sort(np.random.default_rng(0).random(15))
    for target in np.linspace(curve[0], curve[-1], 30):
        assert labels_to(curve.tolist(), n_trained_on, target) == pytest.approx(np.interp(target, curve, n_trained_on))


def test_labels_to_a_target_count_from_the_first_time_it_is_reached():
    assert labels_to([0.5, 0.9, 0.6, 0.95], [10, 20, 30, 40], 0.8) == pytest.approx(17.5)
    assert labels_to([0.9, 0.2], [10, 20], 0.8) == 10
    assert labels_to([0.1, 0.2], [10, 20], 0.8) is None


def test_seeds_that_do_not_reach_the_target_are_censored_and_not_left_out():
    assert median_of_reached([10, 20, 30]) == 20
    assert median_of_reached([10, 20, None, None, 30]) == 30
    assert median_of_reached([10, None, None]) is None


def test_efficiency_is_the_median_of_the_seeds_ratios():
    found = labelling_efficiency([100, 90, None, None, 60], [50, 30, 40, None, None])
    assert found["per_seed"] == [2.0, 3.0, None, None, None]
    assert found["median"] == 2.5, "of 0, 2, 3 and infinity"
    counts = ("both", "only_arm", "only_random", "neither")
    assert [found[name] for name in counts] == [2, 1, 1, 1]


@pytest.mark.parametrize(
    ("random", "arm", "counts"),
    [
        ([None, None], [30, 40], (0, 2, 0, 0)),
        ([30, 40], [None, None], (0, 0, 2, 0)),
        ([None, None], [None, None], (0, 0, 0, 2)),
        ([None, None, 80], [40, 50, 40], (1, 2, 0, 0)),
        ([None, 40], [30, None], (0, 1, 1, 0)),
    ],
)
def test_efficiency_without_a_number_says_who_reached_the_target(random, arm, counts):
    found = labelling_efficiency(random, arm)
    assert found["median"] is None
    assert tuple(found[name] for name in ("both", "only_arm", "only_random", "neither")) == counts


def test_win_rate_counts_ties_as_half_and_leaves_the_start_out():
    control, arm = np.array([[0.5, 0.6, 0.7], [0.5, 0.6, 0.7]]), np.array([[0.5, 0.7, 0.7], [0.5, 0.5, 0.8]])
    assert win_rate(control, arm) == (1 + 0.5 + 0 + 1) / 4
