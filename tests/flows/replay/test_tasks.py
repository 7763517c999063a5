"""Replays of tasks that ask for several regions: the same loop, measured as the task measures."""

import json
import unicodedata
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.config import ConfigError
from flows.replay.command import replay_strategies
from flows.replay.inputs import ReplayError, read_labels
from flows.replay.options import Options
from flows.replay.results import _metrics
from flows.scenes import CLASSES, compose_scenes, write_scenes
from pipeline.masks import mask_to_png
from pipeline.tasks import TASKS, segmentation
from pipeline.types import Region

N = 60
SEVERAL = [name for name, task in TASKS.items() if task.asks.several]
FILE = """\
name = "scenes"
task = "{task}"
pool = "images"
classes = {classes}
budget = 30
audit_size = 10
seed_set_size = 6

[model]
name = "small_cnn"
image_size = 32
max_epochs = 1
min_steps = 1
"""
each_task = pytest.mark.parametrize("task", SEVERAL)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """A folder with scenes, and the labels and a campaign of each task."""
    folder = tmp_path_factory.mktemp("scenes")
    named = write_scenes(folder / "images", compose_scenes(N, seed=0), lambda *_: None)
    for task in SEVERAL:
        kind, write = TASKS[task].asks.kind, TASKS[task].write_label
        rows = [{"file": name, "label": write(scene.regions(kind))} for name, scene in named.items()]
        pd.DataFrame(rows).to_csv(folder / f"{task}.csv", index=False)
        (folder / f"{task}.toml").write_text(FILE.format(task=task, classes=json.dumps(sorted(CLASSES))))
    return folder


def options_of(scenes, task, out) -> Options:
    return Options(
        out=out,
        images=scenes / "images",
        labels=scenes / f"{task}.csv",
        campaign=scenes / f"{task}.toml",
        strategies="random,entropy,auto",
        seeds=2,
        query_size=6,
        rounds=2,
        test_size=24,
        workers=1,
    )


@each_task
def test_arms_are_compared_by_the_headline_of_the_task(task, scenes, tmp_path):
    summary = replay_strategies(options_of(scenes, task, tmp_path / "out"))
    headline = TASKS[task].headline
    assert summary["headline"] == headline
    assert list(summary["strategies"]) == ["random", "entropy", "auto"]
    for arm in summary["strategies"].values():
        assert {headline, "nll", "ece"} <= arm["final"].keys()
        assert 0 <= arm["final"][headline]["mean"] <= 1
    assert summary["n_trained_on"] == [6, 12, 18]
    assert summary["class_balance"]["classes"] == sorted(CLASSES)
    curves = pd.read_parquet(tmp_path / "out" / "curves.parquet")
    asked = [row for rows in curves["picks"].dropna() for row in rows]
    assert len(asked) == 3 * 2 * 2 * 6
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"mean {headline.replace('_', ' ')} over the curve" in page


def test_measures_are_those_that_all_seeds_have_the_headline_first():
    first, other = {"n_trained_on": 6, "AP": 0.1, "AP50": 0.2, "nll": 0.3}, {"AP50": 0.2, "nll": 0.4, "recall": 0.5}
    for measured in ([first, other], [other, first]):
        assert _metrics(TASKS["detection"], measured) == ["AP50", "nll"]


def test_replay_that_was_stopped_goes_on_to_the_same_end(scenes, tmp_path):
    whole = replay_strategies(options_of(scenes, "detection", tmp_path / "whole"))
    first = options_of(scenes, "detection", tmp_path / "parts")
    replay_strategies(replace(first, seeds=1))
    parts = replay_strategies(first)
    assert json.dumps(parts["curves"]) == json.dumps(whole["curves"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strategies": "random,badge"}, "strategy = 'badge' reads probs"),
        ({"task": "detection"}, "leave --task out"),
        ({"campaign": None, "task": "detection"}, "knows one class for each image: name a network"),
        ({"campaign": None, "task": "detektion"}, "--task: .* did you mean 'detection'"),
        ({"campaign": None, "task": "segmentation"}, r"row \d+ .* has a label whose region 1 is .*task asks for"),
    ],
)
def test_what_cannot_be_replayed_is_refused_first(changes, message, scenes, tmp_path):
    with pytest.raises(ConfigError, match=message):
        replay_strategies(replace(options_of(scenes, "detection", tmp_path / "out"), **changes))
    assert not (tmp_path / "out").exists()


def test_labels_are_read_as_a_manifest_is(tmp_path):
    noise = mask_to_png(np.random.default_rng(0).integers(0, 2, (1200, 1200)).astype(bool))
    regions = (Region("mask", unicodedata.normalize("NFD", "café"), mask=noise),)
    pd.DataFrame({"file": ["a.png"], "label": [segmentation.write_label(regions)]}).to_csv(tmp_path / "l.csv")
    [label] = read_labels(tmp_path / "l.csv", images=None, task=segmentation)["label"]
    assert len(label) > 131_072, "longer than other fields may be"
    assert segmentation.read_label(label) == (Region("mask", "café", mask=noise),)


@pytest.mark.parametrize(
    ("task", "label", "message"),
    [
        ("detection", "café", "row 1 .* has a label that is no JSON"),
        ("detection", '[{"kind": "box", "label": "a", "geometry": [0, 0, 2, 1]}]', "row 1 .* region 1 is wrong"),
        ("detection", '[{"kind": "box", "label": "", "geometry": [0, 0, 1, 1]}]', "row 1 .* has an empty name"),
        ("multi_label", "a|?", "row 1 .* leaves open what else is there"),
        ("multi_label", "a||b", "row 1 .* has an empty name"),
        ("multi_label", "a|", "row 1 .* has an empty name"),
    ],
)
def test_a_wrong_label_is_refused_with_its_row(task, label, message, tmp_path):
    label = unicodedata.normalize("NFD", label)
    pd.DataFrame({"file": ["a.png"], "label": [label]}).to_csv(tmp_path / "l.csv", index=False)
    with pytest.raises(ReplayError, match=message):
        read_labels(tmp_path / "l.csv", images=None, task=TASKS[task])


def test_names_beside_a_bar_may_have_spaces(tmp_path):
    pd.DataFrame({"file": ["a.png"], "label": ["a | b"]}).to_csv(tmp_path / "l.csv", index=False)
    assert read_labels(tmp_path / "l.csv", images=None, task=TASKS["multi_label"])["label"].tolist() == ["a|b"]


def test_test_images_without_an_object_are_refused_before_anything_is_read_or_trained(scenes, tmp_path):
    labels = pd.read_csv(scenes / "detection.csv")
    labels["split"] = np.where(labels["label"] == "[]", "test", "pool")
    assert 0 < (labels["split"] == "test").sum() < N
    labels.to_csv(tmp_path / "labels.csv", index=False)
    options = options_of(scenes, "detection", tmp_path / "out")
    with pytest.raises(ReplayError, match=r"AP50 cannot be measured: the .* to test on hold none of the classes"):
        replay_strategies(replace(options, labels=tmp_path / "labels.csv", test_size=None))
    assert not (tmp_path / "out" / "images.npy").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("[members]\nlaplace = 2", "laplace needs one decision"),
        ("[members]\nviews = 2", "views move what is in an image"),
        ("[model.pseudo_labels]\nthreshold = 0.1", "pseudo_labels needs one decision"),
    ],
)
def test_what_a_campaign_refuses_is_refused_by_its_replay(more, message, scenes, tmp_path):
    file = scenes / "wrong.toml"
    file.write_text(f"{(scenes / 'detection.toml').read_text()}\n{more}\n")
    with pytest.raises(ConfigError, match=message):
        replay_strategies(replace(options_of(scenes, "detection", tmp_path / "out"), campaign=file))


def test_command_takes_the_task_of_the_labels(scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    command = ["simulate", "--images", str(scenes / "images"), "--labels", str(scenes / "multi_label.csv")]
    command += ["--task", "multi_label", "--model", "small_cnn", "--image-size", "8", "--strategies", "random"]
    command += ["--seeds", "1", "--query-size", "3", "--rounds", "2", "--workers", "1", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "AULC: mean macro AP over 3 points" in result.output
