import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from connectors.store import CampaignChanged
from flows.cli import app
from flows.replay_input import ReplayError
from flows.replay_runs import Replay
from flows.simulate import Options, simulate
from pipeline.strategies import select_batch

SECONDS = ["seconds_select", "seconds_train", "seconds_score"]
N = 300


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """A folder with the features, labels and images of 300 digits of 8 x 8 pixels."""
    folder = tmp_path_factory.mktemp("digits")
    data = load_digits()
    features = (data.data[:N] / 16).astype(np.float32)
    np.save(folder / "features.npy", features)
    table = pd.DataFrame({"file": [f"{number:03d}.png" for number in range(N)], "label": data.target[:N]})
    table.to_csv(folder / "labels.csv", index=False)
    (folder / "images").mkdir()
    for file, image in zip(table["file"], data.images, strict=False):
        Image.fromarray((image * 255 / 16).astype(np.uint8)).save(folder / "images" / file)
    return folder


def options_of(digits: Path, out: Path, **changes) -> Options:
    options = Options(
        out=out,
        features=digits / "features.npy",
        labels=digits / "labels.csv",
        strategies="random,margin",
        seeds=3,
        query_size=20,
        rounds=3,
        workers=1,
    )
    return replace(options, **changes)


@pytest.fixture(scope="module")
def replayed(digits, tmp_path_factory) -> Path:
    """The folder of a replay of two arms, three seeds and three rounds."""
    out = tmp_path_factory.mktemp("replayed") / "out"
    simulate(options_of(digits, out))
    return out


def curves_of(out: Path) -> pd.DataFrame:
    """The curves without the seconds, the lists as tuples, so that they can be compared."""
    table = pd.read_parquet(out / "curves.parquet").drop(columns=SECONDS)
    return table.map(lambda value: tuple(value) if isinstance(value, np.ndarray) else value)


def same(one: Path, two: Path) -> bool:
    return curves_of(one).equals(curves_of(two))


def test_every_point_is_that_of_a_regression_on_the_images_that_were_picked(digits, replayed):
    features, targets = np.load(digits / "features.npy").astype(np.float64), load_digits().target[:N]
    curves = pd.read_parquet(replayed / "curves.parquet")
    assert len(curves) == 2 * 3 * 4
    assert curves.groupby("round")["n_labels"].unique().map(list).tolist() == [[20], [40], [60], [80]]
    for (_, seed), run in curves.groupby(["strategy", "seed"]):
        split = Replay(replayed).split(int(seed))
        test, labelled = split.test.numpy(), split.start.tolist()
        assert len(test) == 75
        for row in run.itertuples():
            head = LogisticRegression(C=10, max_iter=2000).fit(features[labelled], targets[labelled])
            assert row.accuracy == pytest.approx(head.score(features[test], targets[test]))
            assert row.class_histogram.tolist() == np.bincount(targets[labelled], minlength=10).tolist()
            if row.picks is not None:
                assert not set(row.picks) & {*labelled, *test.tolist()}
                labelled += row.picks.tolist()


def test_arms_share_start_and_test_images_at_each_seed(replayed):
    first = curves_of(replayed).query("round == 0").drop(columns=["strategy", "picks"])
    random, margin = first.iloc[:3].reset_index(drop=True), first.iloc[3:].reset_index(drop=True)
    assert random.equals(margin)
    assert random["class_histogram"].nunique() == 3, "and seeds do not"


def test_images_marked_for_the_test_are_the_test_set_of_every_seed(digits, tmp_path):
    table = pd.read_csv(digits / "labels.csv", dtype=str)
    table["split"] = np.where(np.arange(N) % 4 == 1, "test", "pool")
    table.to_csv(tmp_path / "marked.csv", index=False)
    simulate(options_of(digits, tmp_path / "out", labels=tmp_path / "marked.csv", seeds=2, rounds=2))
    for seed in (0, 1):
        replay = Replay(tmp_path / "out")
        assert replay.split(seed).test.tolist() == list(range(1, N, 4))
        picks = pd.read_parquet(tmp_path / "out" / "runs" / f"margin-{seed}.parquet")["picks"].dropna()
        assert not set(np.concatenate(picks.to_list())) & set(range(1, N, 4))
    assert not torch.equal(replay.split(0).start, replay.split(1).start)


def test_a_sub_pool_is_all_that_is_scored_and_asked_from(digits, tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        "flows.replay_runs.select_batch",
        lambda candidates, *args, **given: (
            sizes.append(len(candidates.ids)) or select_batch(candidates, *args, **given)
        ),
    )
    simulate(options_of(digits, tmp_path / "out", strategies="random,margin", seeds=1, sub_pool=50))
    assert sizes == [50] * 6


def test_margin_takes_the_smallest_gaps(digits, replayed):
    features, targets = np.load(digits / "features.npy").astype(np.float64), load_digits().target[:N]
    split = Replay(replayed).split(0)
    head = LogisticRegression(C=10, max_iter=2000).fit(features[split.start], targets[split.start])
    top = np.sort(head.predict_proba(features[split.rest]), axis=1)
    smallest = split.rest.numpy()[np.argsort(top[:, -1] - top[:, -2])[:20]]
    row = curves_of(replayed).query("strategy == 'margin' and seed == 0 and round == 0").iloc[0]
    assert set(row["picks"]) == set(smallest.tolist())


def test_summary_and_page_hold_what_came_out(replayed):
    summary = json.loads((replayed / "summary.json").read_text())
    margin = summary["strategies"]["margin"]
    assert margin["aulc"]["low"] < margin["aulc"]["mean"] < margin["aulc"]["high"]
    assert set(margin["labels_to"]) == set(margin["labelling_efficiency"]) == {"90", "95", "99"}
    assert summary["full_data_accuracy"]["mean"] > margin["final_accuracy"]["mean"] - 0.05
    assert sum(summary["class_balance"]["labelled"]["margin"]) == pytest.approx(80)
    page = (replayed / "report.html").read_text()
    assert summary["verdict"] in page
    assert f"{100 * margin['aulc']['mean']:.2f} ±" in page
    assert page.count('class="chart"') == 4
    assert not re.search(r"(src|href)=|url\(|@import|https?://", page), "the page loads nothing from anywhere"
    assert "nan" not in page.lower()


def test_more_seeds_arms_and_rounds_add_to_a_replay(digits, replayed, tmp_path):
    grown = options_of(digits, tmp_path / "grown", strategies="margin", seeds=1, rounds=2)
    simulate(grown)
    first = grown.out / "runs" / "margin-0.parquet"
    before = pd.read_parquet(first).iloc[:2]
    simulate(options_of(digits, grown.out))
    assert same(grown.out, replayed)
    assert before.equals(pd.read_parquet(first).iloc[:2]), "what was done, seconds too, was not done again"


def test_a_finished_replay_trains_nothing_again(digits, replayed, monkeypatch):
    monkeypatch.setattr("flows.replay_runs.linear_head", None)
    before = (replayed / "curves.parquet").read_bytes()
    simulate(options_of(digits, replayed))
    assert (replayed / "curves.parquet").read_bytes() == before


def test_killed_replay_goes_on_and_comes_out_the_same(digits, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    options = options_of(digits, whole, rounds=6, query_size=10, strategies="random,k_center")
    simulate(options)
    command = [sys.executable, "-m", "flows.cli", "simulate", "--features", str(options.features)]
    command += ["--labels", str(options.labels), "--strategies", "random,k_center", "--seeds", "3"]
    command += ["--query-size", "10", "--rounds", "6", "--workers", "2", "--out", str(killed)]
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
    while not list(killed.glob("runs/*.parquet")):
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.002)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    assert psutil.wait_procs(workers, timeout=20)[1] == [], "workers end with the process that began them"
    assert not (killed / "curves.parquet").exists()
    assert Replay(killed).jobs(), "it was killed in the midst"
    simulate(replace(options, out=killed))
    assert same(whole, killed)


def test_another_replay_in_the_same_folder_is_refused(digits, replayed):
    with pytest.raises(CampaignChanged, match="holds another replay: query_size: 20 -> 10; start: 20 -> 10"):
        simulate(options_of(digits, replayed, query_size=10))
    with pytest.raises(CampaignChanged, match="data: "):
        simulate(options_of(digits, replayed, features=_shuffled(digits)))


def _shuffled(digits: Path) -> Path:
    np.save(digits / "shuffled.npy", np.load(digits / "features.npy")[::-1])
    return digits / "shuffled.npy"


def test_folder_with_files_of_somebody_else_is_left_alone(digits, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ReplayError, match=r"holds other files \(thesis.tex\); name a new folder"):
        simulate(options_of(digits, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_features_come_from_parquet_as_columns_or_lists(digits, replayed, tmp_path):
    features = np.load(digits / "features.npy")
    pd.DataFrame(features).rename(columns=str).to_parquet(tmp_path / "columns.parquet")
    pd.DataFrame({"embedding": list(features)}).to_parquet(tmp_path / "lists.parquet")
    for name in ("columns", "lists"):
        simulate(options_of(digits, tmp_path / name, features=tmp_path / f"{name}.parquet"))
        assert same(tmp_path / name, replayed)


def test_pixels_of_images_are_features_at_a_small_side(digits, tmp_path):
    options = options_of(digits, tmp_path / "out", features=None, images=digits / "images", image_size=8, seeds=1)
    summary = simulate(options)
    features = np.load(tmp_path / "out" / "features.npy")
    expected = np.stack([np.asarray(Image.open(path)) for path in sorted((digits / "images").iterdir())])
    assert features == pytest.approx(expected.reshape(N, 64) / 255, abs=1e-6)
    assert summary["settings"]["channels"] == 1
    assert summary["strategies"]["random"]["final_accuracy"]["mean"] > 0.7


def test_dropped_features_give_a_linear_head_members_and_leave_what_is_measured_alone(digits, replayed, tmp_path):
    options = options_of(digits, tmp_path / "out", strategies="random,bald", mc_dropout=8, seeds=1)
    simulate(options)
    curves = curves_of(options.out)
    plain = curves_of(replayed).query("strategy == 'random' and seed == 0")
    assert curves.query("strategy == 'random'").reset_index(drop=True).equals(plain.reset_index(drop=True))
    picks = curves.query("round == 0")["picks"].tolist()
    assert picks[0] != picks[1]
    assert picks[1] == curves_of(simulated_again(options)).query("round == 0")["picks"].tolist()[1]


def simulated_again(options: Options) -> Path:
    again = options.out.parent / "again"
    simulate(replace(options, out=again))
    return again


def test_network_is_trained_anew_and_its_members_disagree(digits, tmp_path):
    pd.read_csv(digits / "labels.csv", dtype=str).iloc[:80].to_csv(tmp_path / "few.csv", index=False)
    (tmp_path / "campaign.toml").write_text(
        f'name = "digits"\npool = "images"\nclasses = {[str(n) for n in range(10)]}\nbudget = 100\naudit_size = 20\n'
        '[model]\nname = "small_cnn"\nimage_size = 8\nchannels = 1\nmax_epochs = 2\naugmentation = "none"\n'
        "[members]\nensemble = 2\nmc_dropout = 3\n"
    )
    options = Options(
        out=tmp_path / "out",
        campaign=tmp_path / "campaign.toml",
        images=digits / "images",
        labels=tmp_path / "few.csv",
        strategies="bald,k_center",
        seeds=1,
        query_size=10,
        rounds=2,
        workers=1,
    )
    simulate(options)
    curves = curves_of(options.out)
    assert curves.query("round == 0")["nll"].nunique() == 1
    assert curves.query("round == 1")["picks"].nunique() == 2
    before = curves_of(options.out)
    for path in (options.out / "runs").iterdir():
        path.unlink()
    simulate(options)
    assert curves_of(options.out).equals(before), "the same seeds train the same networks"


def test_frozen_network_gives_the_features(digits, tmp_path):
    from pipeline.models import build_model

    torch.manual_seed(0)
    model = build_model("torchvision:resnet18", n_classes=1000, image_size=32, channels=3, seed=0).trunk
    model.fc = torch.nn.Linear(512, 1000)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    few = pd.read_csv(digits / "labels.csv", dtype=str).iloc[:60]
    few.to_csv(tmp_path / "few.csv", index=False)
    options = Options(
        out=tmp_path / "out",
        images=digits / "images",
        labels=tmp_path / "few.csv",
        strategies="k_center",
        model="torchvision:resnet18",
        weights=str(tmp_path / "weights.pt"),
        image_size=32,
        seeds=1,
        query_size=5,
        rounds=2,
        workers=1,
    )
    simulate(options)
    assert np.load(options.out / "features.npy").shape == (60, 512)


def test_campaign_gives_images_labels_classes_and_its_strategy(digits, tmp_path):
    table = pd.read_csv(digits / "labels.csv", dtype=str).assign(
        uri=lambda t: str(digits / "images/") + "/" + t["file"]
    )
    table.loc[250:, "label"] = ""
    table[["uri", "label"]].to_csv(tmp_path / "manifest.csv", index=False)
    (tmp_path / "campaign.toml").write_text(
        f'name = "digits"\npool = "manifest.csv"\nclasses = {[str(n) for n in range(10)]}\nbudget = 100\n'
        'audit_size = 20\nquery_size = 15\nstrategy = "power"\nacquisition = "entropy"\n'
    )
    options = Options(
        out=tmp_path / "out", campaign=tmp_path / "campaign.toml", model="pixels", seeds=2, rounds=2, workers=1
    )
    summary = simulate(options)
    assert list(summary["strategies"]) == ["random", "power:entropy"]
    assert summary["settings"]["query_size"] == 15
    n_items = sum(summary["class_balance"]["data"])
    assert 200 < n_items <= 250, "the labelled ones, and of equal images one"


def test_names_in_the_page_are_escaped(digits, tmp_path):
    table = pd.read_csv(digits / "labels.csv", dtype=str)
    table["label"] = table["label"].replace({"0": "<script>alert(1)</script>", "1": "</script>&amp;"})
    table.to_csv(tmp_path / "labels.csv", index=False)
    simulate(options_of(digits, tmp_path / "out", labels=tmp_path / "labels.csv", seeds=1, rounds=2))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page
    assert page.count("</script>") == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": None}, "name the labels with --labels"),
        ({"labels": Path("nowhere.csv")}, "nowhere.csv: no such labels file"),
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
        ({"model": "pixels"}, "leave --model and --weights out"),
        ({"l2": 0.0}, "--l2 must be above 0"),
    ],
)
def test_wrong_options_are_refused_and_leave_nothing_behind(digits, tmp_path, changes, message):
    options = options_of(digits, tmp_path / "out", **changes)
    with pytest.raises(ReplayError, match=message):
        simulate(options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na.png,1\n", "needs a column 'file', has name, label"),
        ("file,label\n000.png,1\n001.png,\n", r"row 2 \('001.png', ''\) has no label"),
        ("file,label\n000.png,1\n,2\n", "row 2 .* has no file"),
        ("file,label\n000.png,1\n000.png,2\n", "row 2 .* names a file for the second time"),
        ("file,label\n000.png,1\nnot there.png,2\n", "row 2 .* names a file that is not in"),
        ("file,label,split\n000.png,1,pool\n001.png,2,train\n", "row 2 .* has a split that is neither pool nor test"),
        ("file,label\n000.png,1\n001.png,1\n", "nothing to learn: all 2 labels are '1'"),
        ("", "cannot be read as CSV"),
    ],
)
def test_wrong_labels_are_refused_with_their_row(digits, tmp_path, text, message):
    (tmp_path / "labels.csv").write_text(text)
    options = options_of(
        digits, tmp_path / "out", features=None, images=digits / "images", labels=tmp_path / "labels.csv"
    )
    with pytest.raises(ReplayError, match=message):
        simulate(options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:-1], "one row of features for each of the 300 rows"),
        (lambda x: x[:, 0], r"got the shape \(300,\)"),
        (lambda x: np.where(np.arange(N)[:, None] == 7, np.nan, x), "row 8 holds a value that is not finite"),
        (lambda x: np.full(x.shape, "a"), "cannot be read as a table of numbers"),
    ],
)
def test_wrong_features_are_refused(digits, tmp_path, change, message):
    np.save(tmp_path / "features.npy", change(np.load(digits / "features.npy")))
    with pytest.raises(ReplayError, match=message):
        simulate(options_of(digits, tmp_path / "out", features=tmp_path / "features.npy"))


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
