import itertools
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.linear_model import LogisticRegression

import pipeline.evaluation.curves
from pipeline.evaluation.curves import (
    FEWEST_SEEDS,
    METRICS,
    area_under_curve,
    draw_split,
    holm,
    labelling_efficiency,
    labels_to,
    linear_head,
    mean_interval,
    median_of_reached,
    paired_difference,
    parse_arm,
    penalty_matrix,
    seeds_needed,
    summarise,
    thirds,
    verdict,
    win_rate,
)
from pipeline.training.fit import TrainingError


def numbers(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_area_and_thirds_are_means_over_the_points():
    curves = np.array([[0.1, 0.2, 0.3, 0.4, 0.5], [0.5, 0.5, 0.5, 0.5, 1.0]])
    assert area_under_curve(curves).tolist() == pytest.approx([0.3, 0.6])
    assert np.array(thirds(curves)) == pytest.approx(np.array([[0.15, 0.5], [0.35, 0.5], [0.5, 1.0]]))


def test_labels_to_a_target_agree_with_interpolation_of_a_rising_curve():
    n_labels, curve = list(range(20, 320, 20)), np.sort(numbers().random(15))
    for target in np.linspace(curve[0], curve[-1], 30):
        assert labels_to(curve.tolist(), n_labels, target) == pytest.approx(np.interp(target, curve, n_labels))


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


@pytest.mark.parametrize("n_classes", [2, 4])
def test_linear_head_is_scikit_learns_regression(n_classes):
    features, targets = torch.randn(60, 5, generator=seeded()), torch.arange(60) % n_classes
    features[:, 0] += targets
    weights, biases = linear_head(features, targets, n_classes=n_classes, l2=0.1)
    ours = (features.double() @ weights.T + biases).softmax(dim=1)
    reference = LogisticRegression(C=10, max_iter=5000).fit(features.double().numpy(), targets.numpy())
    assert ours.numpy() == pytest.approx(reference.predict_proba(features.double().numpy()), abs=1e-6)


def test_linear_head_is_at_the_minimum_of_its_loss():
    features = torch.randn(80, 6, generator=seeded(), dtype=torch.float64)
    targets = torch.randint(0, 3, (80,), generator=seeded(1))
    weights, biases = (part.requires_grad_() for part in linear_head(features, targets, n_classes=3, l2=0.5))
    loss = torch.nn.functional.cross_entropy(features @ weights.T + biases, targets, reduction="sum")
    (loss + 0.25 * weights.square().sum()).backward()
    assert max(weights.grad.abs().max(), biases.grad.abs().max()) < 0.02


def test_class_without_a_label_has_no_probability():
    features = torch.randn(40, 3, generator=seeded())
    for targets in (torch.arange(40) % 2 * 2 + 1, torch.full((40,), 1)):
        weights, biases = linear_head(features, targets, n_classes=5, l2=0.1)
        probs = (features.double() @ weights.T + biases).softmax(dim=1)
        absent = [label for label in range(5) if label not in targets.unique()]
        assert probs[:, absent].sum() == 0
        assert probs.sum(dim=1).numpy() == pytest.approx(1)


def test_fit_that_does_not_converge_is_an_error(monkeypatch):
    monkeypatch.setattr(pipeline.evaluation.curves, "ITERATIONS", (1, 2))
    with pytest.raises(TrainingError, match="does not converge on 90 labels in 2 iterations"):
        linear_head(torch.randn(90, 8, generator=seeded()), torch.arange(90) % 3, n_classes=3, l2=0.01)


def test_fit_gets_more_iterations_until_it_converges(monkeypatch):
    features, targets = torch.randn(90, 8, generator=seeded()), torch.arange(90) % 3
    wanted = linear_head(features, targets, n_classes=3, l2=0.01)
    monkeypatch.setattr(pipeline.evaluation.curves, "ITERATIONS", (1, 2, 1000))
    for ours, theirs in zip(linear_head(features, targets, n_classes=3, l2=0.01), wanted, strict=True):
        assert torch.equal(ours, theirs)


def test_split_is_disjoint_takes_its_share_of_each_class_and_hangs_on_the_seed_alone():
    targets = torch.arange(200) % 4
    split = draw_split(targets, test_size=40, start=20, seed=3)
    assert torch.cat(split).sort().values.tolist() == list(range(200))
    assert targets[split.test].bincount().tolist() == [10, 10, 10, 10]
    again, other = (draw_split(targets, test_size=40, start=20, seed=seed) for seed in (3, 4))
    assert all(torch.equal(one, two) for one, two in zip(split, again, strict=True))
    assert not torch.equal(split.start, other.start)
    assert not torch.equal(split.test, other.test)


def test_split_takes_a_test_set_that_is_given():
    test = torch.tensor([7, 150, 3, 44])
    splits = [draw_split(torch.arange(200) % 4, test_size=4, start=20, seed=seed, test=test) for seed in (3, 3, 4)]
    assert all(split.test.tolist() == [3, 7, 44, 150] for split in splits)
    assert all(torch.cat(split).sort().values.tolist() == list(range(200)) for split in splits)
    assert len(splits[0].start) == 20
    assert torch.equal(splits[0].start, splits[1].start)
    assert not torch.equal(splits[0].start, splits[2].start)


def test_split_is_drawn_evenly_where_a_class_is_too_rare_to_give_a_test_image():
    targets = torch.tensor([0] * 20 + [1])
    assert len(draw_split(targets, test_size=5, start=4, seed=0).test) == 5
    with pytest.raises(ValueError, match="21 images cannot give 18 to test on and 4 to start with"):
        draw_split(targets, test_size=18, start=4, seed=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("margn", "did you mean 'margin'"),
        ("powr:bald", "unknown strategy 'powr', did you mean 'power'"),
        ("power:", "unknown acquisition function ''"),
    ],
)
def test_unknown_arm_is_refused_with_a_near_name(name, message):
    with pytest.raises(ValueError, match=message):
        parse_arm(name)


def curves_table(n_seeds=3):
    rng = np.random.default_rng(5)
    rows = [
        {
            "strategy": name,
            "seed": seed,
            "round": number,
            "n_labels": 10 + 10 * number,
            **{metric: float(rng.uniform(0.4, 0.6) + 0.1 * number) for metric in METRICS},
            "seconds_select": 0.5 if number < 3 else math.nan,
            "seconds_train": 1.0,
            "seconds_score": math.nan,
        }
        for name in ("random", "margin")
        for seed in range(n_seeds)
        for number in range(4)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_summary_is_strict_json_and_agrees_with_the_table(n_seeds):
    table = curves_table(n_seeds)
    summary = summarise(table, dict.fromkeys(range(n_seeds), 0.9))
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    margin, random = (table[table["strategy"] == name] for name in ("margin", "random"))
    found = summary["strategies"]["margin"]
    assert found["aulc"]["mean"] == pytest.approx(margin["accuracy"].mean())
    assert found["aulc_thirds"][0]["mean"] == pytest.approx(margin[margin["round"] < 2]["accuracy"].mean())
    assert found["difference_to_random"]["mean"] == pytest.approx(margin["accuracy"].mean() - random["accuracy"].mean())
    assert found["final_nll"]["mean"] == pytest.approx(margin[margin["round"] == 3]["nll"].mean())
    assert (found["seconds_select"], found["seconds_score"]) == (0.5, None)
    assert len(found["labels_to"]["95"]["per_seed"]) == n_seeds
    assert summary["strategies"]["random"]["difference_to_random"] is None
    assert summary["n_labels"] == [10, 20, 30, 40]
