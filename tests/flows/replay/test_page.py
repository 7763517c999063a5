import io
import json
import re

import pandas as pd
import pytest
from rich.console import Console

from connectors.escaping import visible
from flows.replay.command import replay_strategies
from flows.reports.replay_page import report_page, summary_table
from pipeline.evaluation.summary import SECONDS, summarise
from tests.flows.replay.conftest import options_of
from tests.hostile import HIDDEN, NAMES, Words

METRICS = ("accuracy", "balanced_accuracy", "nll", "ece")


def test_names_in_the_page_are_escaped(digits, tmp_path):
    table = pd.read_csv(digits / "labels.csv", dtype=str)
    table["label"] = table["label"].replace({"0": "<script>alert(1)</script>", "1": "</script>&amp;"})
    table.to_csv(tmp_path / "labels.csv", index=False)
    replay_strategies(options_of(digits, tmp_path / "out", labels=tmp_path / "labels.csv", seeds=1, rounds=2))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page
    assert page.count("</script>") == 1


@pytest.mark.parametrize("part", range(4))
def test_page_of_a_replay_shows_names_as_they_are(replayed, part):
    summary = json.loads((replayed / "summary.json").read_text())

    def page(names: tuple[str, ...]) -> Words:
        counts = list(range(1, len(names) + 1))
        labelled = dict.fromkeys(summary["class_balance"]["labelled"], counts)
        told = {"verdict": " / ".join(names), "command": " / ".join(names)}
        balance = {"classes": names, "data": counts, "labelled": labelled}
        return Words(report_page(summary | told | {"class_balance": balance}))

    names = (*NAMES[part::4], *HIDDEN[part::4])[:40]
    found, told = page(names), [visible(name) for name in names]
    assert f"rarest class{''.join(told)}" in found.words
    assert found.words.count(" / ".join(told)) == 2
    assert found.tags == page(("plain",) * len(names)).tags


def summary_of(**accuracies):
    """A summary of invented curves of three points, `(S, 3)` for each arm, of images of which all labels give 0.9."""
    table = pd.DataFrame(
        [
            {"strategy": name, "seed": seed, "round": point, "n_trained_on": 1000 + 1000 * point, "accuracy": value}
            | {"balanced_accuracy": value, "nll": 1 - value, "ece": 0.01 * seed, **dict.fromkeys(SECONDS, 0.5)}
            for name, curves in accuracies.items()
            for seed, curve in enumerate(curves)
            for point, value in enumerate(curve)
        ]
    )
    n_seeds = len(accuracies["random"])
    counts = {"classes": ["a", "b"], "data": [12345, 8], "labelled": {name: [2990.5, 9.5] for name in accuracies}}
    extra = {
        "class_balance": counts,
        "settings": {"members": {"ensemble": 1}},
        "command": "labelcycle simulate --out r",
    }
    return summarise(table, dict.fromkeys(range(n_seeds), 0.9), METRICS) | extra


def test_page_and_table_say_who_reached_the_target_alone():
    summary = summary_of(random=[[0.1, 0.2, 0.3]] * 3, auto=[[0.1, 0.89, 0.9]] * 3, novel=[[0.1, 0.2, 0.25]] * 3)
    table = printed(summary_table(summary))
    for text in (report_page(summary), table):
        assert "only auto reached it (3 seeds)" in text
    assert "auto: only auto reached it (3 seeds)." in table
    assert re.search(r"novel .* not reached \(0/3\)", table)


def printed(table) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def test_charts_stay_inside_what_a_metric_can_be():
    summary = summary_of(random=[[0.1, 0.9, 1.0], [0.9, 0.1, 1.0]], auto=[[0.1, 0.9, 0.99], [0.9, 0.1, 0.99]])
    assert summary["curves"]["accuracy"]["auto"][0]["low"] < 0
    page = report_page(summary)
    charts = json.loads(re.search(r"const charts = (.*);", page)[1])
    ticks = {chart["metric"]: [float(tick["text"]) for tick in chart["y_ticks"]] for chart in charts}
    assert (min(ticks["accuracy"]), max(ticks["accuracy"])) == (0, 1)
    assert min(ticks["nll"]) == min(ticks["ece"]) == 0
    heights = [float(at.split(",")[1]) for chart in charts for line in chart["lines"] for at in line["band"].split()]
    assert min(heights) >= 14 - 0.1
    assert max(heights) <= 356 + 0.1


def test_page_shows_the_command_and_thousands():
    page = report_page(summary_of(random=[[0.1, 0.2, 0.3]] * 3, auto=[[0.1, 0.89, 0.9]] * 3))
    for text in ("<code>labelcycle simulate --out r</code>", "1,000 to 3,000 labels", "12,345", "2,990", ">9.5<"):
        assert text in page
