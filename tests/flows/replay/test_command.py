import json
import re

import pytest
from typer.testing import CliRunner

from flows.cli import app
from pipeline.selection.acquisition import ACQUISITIONS
from pipeline.selection.strategies.rows import STRATEGIES


def test_summary_and_page_hold_what_came_out(replayed):
    summary = json.loads((replayed / "summary.json").read_text())
    margin = summary["strategies"]["margin"]
    assert margin["aulc"]["low"] < margin["aulc"]["mean"] < margin["aulc"]["high"]
    assert set(margin["labels_to"]) == set(margin["labelling_efficiency"]) == {"90", "95", "99"}
    assert summary["full_data"]["mean"] > margin["final"]["accuracy"]["mean"] - 0.05
    assert sum(summary["class_balance"]["labelled"]["margin"]) == pytest.approx(80)
    page = (replayed / "report.html").read_text()
    assert summary["verdict"] in page
    assert f"{100 * margin['aulc']['mean']:.2f} ±" in page
    assert page.count('class="chart"') == 4
    assert not re.search(r"(src|href)=|url\(|@import|https?://", page), "the page loads nothing from anywhere"
    assert "nan" not in page.lower()


def test_help_names_every_arm(monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    text = CliRunner().invoke(app, ["simulate", "--help"]).output
    words = set(re.findall(r"\w+", text))
    assert words >= {*STRATEGIES, *ACQUISITIONS}


def test_interrupted_command_says_that_the_same_one_goes_on(digits, tmp_path, monkeypatch):
    def interrupted(_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.replay.command.replay_strategies", interrupted)
    result = CliRunner().invoke(app, ["simulate", "--out", str(tmp_path / "out")])
    assert result.exit_code == 130
    assert "The same command goes on" in result.output


def test_command_prints_a_table_and_the_verdict(digits, replayed, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command = ["simulate", "--features", str(digits / "features.npy"), "--labels", str(digits / "labels.csv")]
    command += ["--strategies", "random,margin", "--seeds", "3", "--query-size", "20", "--rounds", "3"]
    result = CliRunner().invoke(app, [*command, "--workers", "1", "--out", str(replayed)])
    assert result.exit_code == 0, result.output
    assert re.search(r"margin +\d\d\.\d\d ± \d\.\d\d +[+-]\d\.\d\d ± ", result.output)
    assert "report.html" in result.output
    wrong = CliRunner().invoke(app, [*command, "--strategies", "margn", "--out", str(replayed)])
    assert wrong.exit_code == 2
    assert "did you mean 'margin'" in wrong.output
