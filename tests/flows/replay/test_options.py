import math
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from flows.replay.command import replay_strategies
from flows.replay.inputs import ReplayError
from flows.replay.options import Options, command_of
from pipeline.selection.batch import select_batch
from pipeline.selection.settings import SelectionSettings
from tests.flows.replay.conftest import options_of


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "--features needs --labels"),
        ({"labels": None, "features": None}, "name the labels with --labels"),
        ({"labels": None, "campaign": Path("campaign.toml")}, "--features needs --labels"),
        ({"labels": Path("nowhere.csv")}, "nowhere.csv: no such file"),
        ({"features": None}, "--labels needs --images"),
        ({"features": None, "images": Path("nowhere")}, "nowhere: no such folder of images"),
        ({"features": Path("nowhere.npy")}, "nowhere.npy: no such features file"),
        ({"features": Path("nowhere.txt")}, "features are a .npy or a .parquet file"),
        ({"strategies": "random,margn"}, "did you mean 'margin'"),
        ({"strategies": ","}, "--strategies names no arm"),
        ({"strategies": "random,bald"}, "arm 'bald' measures how members disagree: set --mc-dropout to at least 2"),
        ({"strategies": "drop_query"}, "arm 'drop_query' measures how members disagree"),
        ({"members": 3}, "a linear head is one model: use --mc-dropout"),
        ({"rounds": 20}, "too few: start 20 [+] 20 rounds x 20 [+] 75 to test on = 495; lower --rounds"),
        ({"rounds": 1}, "--rounds must be at least 2, got 1"),
        ({"seeds": 0}, "--seeds must be at least 1, got 0"),
        ({"test_size": 300}, "--test-size must be a share below 1 or a number of images below 300, got 300"),
        ({"test_size": math.nan}, "--test-size must be a share below 1 .* got nan"),
        ({"test_size": math.inf}, "--test-size must be a share below 1 .* got inf"),
        ({"model": "pixels"}, "leave --model out"),
        ({"images": Path("images")}, "leave --images out"),
        ({"image_size": 8}, "leave --image-size out"),
        ({"mc_dropout": -1}, "--mc-dropout must be at least 0, got -1"),
        ({"members": 1000}, "--members must be at most 100, got 1000"),
        ({"seed": -1}, "--seed must be at least 0, got -1"),
        ({"l2": 0.0}, "--l2 must be above 0"),
        ({"l2": math.nan}, "--l2 must be above 0"),
    ],
)
def test_wrong_options_are_refused_and_leave_nothing_behind(digits, tmp_path, changes, message):
    (tmp_path / "campaign.toml").write_text(
        'name = "abc"\npool = "x"\nclasses = ["1", "2"]\nbudget = 90\naudit_size = 9'
    )
    if "campaign" in changes:
        changes = changes | {"campaign": tmp_path / changes["campaign"]}
    options = options_of(digits, tmp_path / "out", **changes)
    with pytest.raises(ReplayError, match=message):
        replay_strategies(options)
    assert not (tmp_path / "out").exists()


def test_replay_of_one_head_refuses_members_that_it_does_not_have(digits, tmp_path):
    (tmp_path / "campaign.toml").write_text(
        f'name = "digits"\npool = "x"\nclasses = {[str(n) for n in range(10)]}\nbudget = 90\naudit_size = 9\n'
        '[model]\nname = "tests.flows.tiny:tiny_network"\nweights = "factory"\nimage_size = 8\ntrain = "head"\n'
        "[members]\nlaplace = 2\nviews = 3\n"
    )
    options = options_of(
        digits, tmp_path / "out", features=None, images=digits / "images", campaign=tmp_path / "campaign.toml"
    )
    with pytest.raises(ReplayError, match="one linear head, which has no views and no laplace"):
        replay_strategies(options)


@pytest.mark.parametrize("model", ["small_cnn", None])
def test_side_that_a_network_cannot_have_is_refused(digits, tmp_path, model):
    (tmp_path / "campaign.toml").write_text(
        f'name = "digits"\npool = "x"\nclasses = {[str(n) for n in range(10)]}\nbudget = 90\naudit_size = 9\n'
        '[model]\nname = "small_cnn"\n'
    )
    options = options_of(digits, tmp_path / "out", features=None, images=digits / "images", model=model, image_size=4)
    with pytest.raises(ReplayError, match=r"--image-size: .* greater than or equal to 8 \(got 4\)"):
        replay_strategies(replace(options, campaign=None if model else tmp_path / "campaign.toml"))


def test_number_of_test_images_and_marked_ones_are_refused_together(digits, tmp_path):
    (tmp_path / "labels.csv").write_text("file,label,split\n000.png,1,test\n001.png,2,pool\n")
    options = options_of(digits, tmp_path / "out", features=None, images=digits / "images", test_size=0.25)
    with pytest.raises(ReplayError, match="1 images are marked to be tested on, so leave --test-size out"):
        replay_strategies(replace(options, labels=tmp_path / "labels.csv"))


def test_command_asks_for_the_same_again():
    options = Options(out=Path("my out"), features=Path("f.npy"), labels=Path("l.csv"), mc_dropout=4, workers=3)
    told = "labelcycle simulate --out 'my out' --labels l.csv --features f.npy --mc-dropout 4"
    assert command_of(options) == told


def test_campaign_gives_images_labels_classes_and_its_strategy(digits, tmp_path, monkeypatch):
    shutil.copytree(digits / "images", tmp_path / "images")
    table = pd.read_csv(digits / "labels.csv", dtype=str).assign(uri=lambda t: "images/" + t["file"])
    table.loc[250:, "label"] = ""
    table[["uri", "label"]].to_csv(tmp_path / "manifest.csv", index=False)
    (tmp_path / "campaign.toml").write_text(
        f'name = "digits"\npool = "manifest.csv"\nclasses = {[str(n) for n in range(10)]}\nbudget = 100\n'
        'audit_size = 20\nquery_size = 15\nstrategy = "power"\nacquisition = "entropy"\nseed = 3\n'
        "seed_set_size = 25\nsub_pool = 90\nstrategy_options = { beta = 2.5 }\nprefilter = 4.0\n"
        "balance_classes = true\nrandom_slice = 0.2\n"
    )
    options = Options(
        out=tmp_path / "out",
        campaign=tmp_path / "campaign.toml",
        model="pixels",
        image_size=8,
        seeds=2,
        rounds=2,
        workers=1,
    )
    told = {}

    def watch(candidates, how, *, round_number, seed):
        told[how.strategy] = how
        return select_batch(candidates, how, round_number=round_number, seed=seed)

    monkeypatch.setattr("flows.replay.runs.select_batch", watch)
    summary = replay_strategies(options)
    assert list(summary["strategies"]) == ["random", "power:entropy"]
    settings = summary["settings"]
    assert [settings[name] for name in ("query_size", "start", "sub_pool", "seeds")] == [15, 25, 90, [3, 4]]
    own = SelectionSettings(
        strategy="power",
        acquisition="entropy",
        query_size=15,
        strategy_options={"beta": 2.5},
        prefilter=4.0,
        balance_classes=True,
        random_slice=0.2,
    )
    assert told["power"] == own
    assert told["random"] == SelectionSettings(strategy="random", query_size=15), "the control asks as always"
    assert "partly picked" not in summary["verdict"], "no model had a hand in the manifest's labels"
    n_items = sum(summary["class_balance"]["data"])
    assert 200 < n_items <= 250, "the labelled ones, and of equal images one"

    chosen = replace(
        options, out=tmp_path / "other", seeds=1, seed=0, start=20, sub_pool=50, strategies="margin,power:entropy"
    )
    settings = replay_strategies(chosen)["settings"]
    assert [settings[name] for name in ("start", "sub_pool", "seeds")] == [20, 50, [0]]
    assert told["power"] == own, "under whatever name it is asked for"
    plain = SelectionSettings(strategy="top_k", query_size=15)
    assert told["top_k"] == plain, "only the campaign's own arm asks as the campaign does"
