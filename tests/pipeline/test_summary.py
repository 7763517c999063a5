import json
import math

import numpy as np
import pandas as pd
import pytest

from pipeline.evaluation.summary import balance_of, evenness, ranked, summarise

METRICS = ("accuracy", "balanced_accuracy", "nll", "ece")


def curves_table(n_seeds=3):
    rng = np.random.default_rng(5)
    rows = [
        {
            "strategy": name,
            "seed": seed,
            "round": number,
            "n_trained_on": 10 + 10 * number,
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
    summary = summarise(table, dict.fromkeys(range(n_seeds), 0.9), METRICS)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    margin, random = (table[table["strategy"] == name] for name in ("margin", "random"))
    found = summary["strategies"]["margin"]
    assert found["aulc"]["mean"] == pytest.approx(margin["accuracy"].mean())
    assert found["aulc_thirds"][0]["mean"] == pytest.approx(margin[margin["round"] < 2]["accuracy"].mean())
    assert found["difference_to_random"]["mean"] == pytest.approx(margin["accuracy"].mean() - random["accuracy"].mean())
    assert found["final"]["nll"]["mean"] == pytest.approx(margin[margin["round"] == 3]["nll"].mean())
    assert (found["seconds_select"], found["seconds_score"]) == (0.5, None)
    assert len(found["labels_to"]["95"]["per_seed"]) == n_seeds
    assert summary["strategies"]["random"]["difference_to_random"] is None
    assert summary["n_trained_on"] == [10, 20, 30, 40]


def test_arms_are_ranked_by_their_area():
    table = curves_table()
    table.loc[table["strategy"] == "margin", "accuracy"] += 0.1
    assert ranked(summarise(table, dict.fromkeys(range(3), 0.9), METRICS)) == ["margin", "random"]


def test_balance_is_that_of_the_last_labelled_sets_in_the_order_of_the_arms():
    table = curves_table(n_seeds=2)
    table["class_histogram"] = [[1, 9]] * len(table)
    is_last = (table["strategy"] == "margin") & (table["round"] == 3)
    table.loc[is_last, "class_histogram"] = pd.Series([[20, 20], [10, 30]], index=table.index[is_last])
    found = balance_of(table, [60, 40], ("a", "b"))
    assert found == {
        "classes": ["a", "b"],
        "data": [60, 40],
        "labelled": {"random": [1.0, 9.0], "margin": [15.0, 25.0]},
    }
    assert list(found["labelled"]) == ["random", "margin"]


def test_evenness_is_the_entropy_of_the_shares_over_that_of_equal_ones():
    shares = np.array([0.5, 0.25, 0.25])
    assert evenness([20, 10, 10]) == pytest.approx(-(shares * np.log(shares)).sum() / np.log(3))
    assert evenness([7, 7, 7]) == pytest.approx(1)
    assert evenness([7, 0, 0]) == 0
