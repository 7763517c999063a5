"""Trainings that are kept in a file, and what is made of them; no network is trained here."""

import argparse
import json

import numpy as np
import pytest

from benchmarks import posteriors, transfer
from benchmarks.measure import do_jobs, read_lines


def double(job):
    return {"doubled": 2 * job["number"]}


def never(job):
    raise AssertionError(f"{job} was done again")


JOBS = [{"number": number, "how": {"rate": 0.1, "names": ["a"]}} for number in range(3)]


def test_a_job_that_has_its_line_is_not_done_again(tmp_path):
    path = tmp_path / "new" / "runs.jsonl"
    assert do_jobs(JOBS[:2], double, path) == [{**job, "doubled": 2 * job["number"]} for job in JOBS[:2]]
    assert [line["doubled"] for line in do_jobs(JOBS[1::-1], never, path)] == [2, 0]
    assert [line["doubled"] for line in do_jobs(JOBS, double, path)] == [0, 2, 4]
    assert len(path.read_text().splitlines()) == 3


def test_a_job_with_another_setting_is_another_job(tmp_path):
    path = tmp_path / "runs.jsonl"
    do_jobs(JOBS[:1], double, path)
    with pytest.raises(AssertionError, match="done again"):
        do_jobs([{"number": 0, "how": {"rate": 0.2, "names": ["a"]}}], never, path)


def test_a_line_that_a_kill_cut_off_is_done_again(tmp_path):
    path = tmp_path / "runs.jsonl"
    do_jobs(JOBS[:2], double, path)
    path.write_text(path.read_text()[:-7])
    assert [line["doubled"] for line in do_jobs(JOBS[:2], double, path)] == [0, 2]
    assert len(read_lines(path)) == 2


def test_what_was_done_before_a_failure_is_kept(tmp_path):
    def fails_at_1(job):
        return double(job) if job["number"] != 1 else never(job)

    with pytest.raises(AssertionError):
        do_jobs(JOBS, fails_at_1, tmp_path / "runs.jsonl")
    assert [line["number"] for line in read_lines(tmp_path / "runs.jsonl")] == [0]


def test_a_set_gives_no_more_labels_than_it_has():
    options = argparse.Namespace(labels=[10, 2000], seeds=2, phases=["head", "scratch"])
    settings = {name: transfer.lite0_settings(name) for name in ("imbalanced", "mnist")}
    jobs = transfer.list_jobs(options, settings)
    assert [(job["set"], job["n_labels"]) for job in jobs if job["seed"] == 0 and job["phase"] == "head"] == [
        ("imbalanced", 10),
        ("mnist", 10),
        ("mnist", 2000),
    ]
    other = transfer.list_jobs(
        options, {name: how.model_copy(update={"all_from": 7.0}) for name, how in settings.items()}
    )
    assert jobs == other == json.loads(json.dumps(jobs))  # thresholds choose among trainings and change none


def test_auto_has_the_numbers_of_the_phase_that_it_chooses(capsys):
    accuracies = {"head": (0.7, 0.9), "all": (0.6, 0.7)}
    runs = [
        {"n_labels": 100, "phase": phase, "accuracy": accuracy, "seconds": 2.0}
        for phase, values in accuracies.items()
        for accuracy in values
    ]
    settings = transfer.lite0_settings("mnist")
    transfer._print("mnist", runs, settings.model_copy(update={"all_from": 20.0}))
    assert "0.0 ± 0.0 (head)" in capsys.readouterr().out
    transfer._print("mnist", runs, settings.model_copy(update={"all_from": 10.0}))
    assert "-15.0 ± 63.5 (head)" in capsys.readouterr().out  # 10 and 20 points, t of two seeds is 12.706


def test_the_summary_of_members_is_of_the_mean_over_the_curve_at_each_seed():
    rng = np.random.default_rng(0)
    curves = {arm: rng.random((3, 4)) for arm in ("plain", "ensemble of 5")}
    runs = [
        {"arm": arm, "seconds": 1.0 + seed, **{name: curves[arm][seed].tolist() for name in posteriors.MEASURED}}
        for arm in curves
        for seed in range(3)
    ]
    summary = posteriors.summarise(runs)
    assert summary["plain"]["nll"]["mean"] == pytest.approx(curves["plain"].mean())
    gaps = (curves["ensemble of 5"] - curves["plain"]).mean(axis=1)
    half = 4.302653 * gaps.std(ddof=1) / 3**0.5  # Student's t, two degrees of freedom
    told = summary["ensemble of 5"]["nll_to_plain"]
    assert (told["mean"], told["high"]) == pytest.approx((gaps.mean(), gaps.mean() + half))
    assert summary["plain"]["ece_to_plain"]["mean"] == 0
    assert summary["plain"]["seconds"] == 2


def test_without_the_plain_arm_there_are_no_differences():
    runs = [{"arm": "bagged 5", "seconds": 1.0, **{name: [0.5, 0.7] for name in posteriors.MEASURED}}]
    assert "nll_to_plain" not in posteriors.summarise(runs)["bagged 5"]
