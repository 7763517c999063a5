import io
import json
import math
import os
import re
import shutil
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
from mlflow import MlflowClient
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner

from connectors.escaping import visible
from connectors.image_folder.index import index_pool, usable
from connectors.images.pixels import PoolError
from connectors.store import Campaign, CampaignChanged, write_table
from connectors.tracking import TrackerError
from flows.cli import app
from flows.config import load_settings
from flows.networks import RECIPE, share_frozen_trunk
from flows.replay.inputs import ReplayError, read_labels
from flows.replay.runs import Replay, _predict_network, _train_networks
from flows.replay.simulate import Options, _claim, _resolve, command_of, simulate
from flows.reports.replay_page import report_page, summary_table
from pipeline.evaluation.curves import summarise
from pipeline.labels.ledger import answers_to_table
from pipeline.selection.acquisition import ACQUISITIONS
from pipeline.selection.strategies import STRATEGIES, select_batch
from pipeline.types import Annotation, Answer, Ask, Region
from tests.hostile import HIDDEN, NAMES, Words

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
        "flows.replay.runs.select_batch",
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
    monkeypatch.setattr("flows.replay.runs.linear_head", None)
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
    with pytest.raises(CampaignChanged, match=r"replay: the labels, images or features changed\. Give"):
        simulate(options_of(digits, replayed, features=_shuffled(digits)))


def test_changed_setting_of_a_network_is_named_alone(digits, tmp_path):
    common = {"features": None, "images": digits / "images", "model": "small_cnn", "seeds": 1, "rounds": 2}
    options = options_of(digits, tmp_path / "out", **common, image_size=8)
    settings = _resolve(options, None, read_labels(digits / "labels.csv", images=digits / "images"), None, None)
    _claim(tmp_path, settings)
    _claim(tmp_path, settings.model_copy(update={"query_size": 3}))
    assert Replay(tmp_path).settings.query_size == 3, "nothing was computed yet, so that anything may change"
    (tmp_path / "images.npy").write_text("")
    network = settings.network.model_copy(update={"dropout": 0.25})
    with pytest.raises(CampaignChanged, match=r"another replay: network.dropout: 0.5 -> 0.25; query_size: 3 -> 20\."):
        _claim(tmp_path, settings.model_copy(update={"network": network}))


def test_networks_of_an_older_recipe_are_not_mixed_with_others(digits, tmp_path):
    options = options_of(digits, tmp_path / "out", features=None, images=digits / "images", model="small_cnn")
    settings = _resolve(options, None, read_labels(digits / "labels.csv", images=digits / "images"), None, None)
    assert settings.recipe == RECIPE
    written = settings.model_dump(mode="json")
    (tmp_path / "images.npy").write_text("")
    for older in (written | {"recipe": 0}, {name: value for name, value in written.items() if name != "recipe"}):
        (tmp_path / "replay.json").write_text(json.dumps(older))
        with pytest.raises(
            CampaignChanged, match=r"another replay: this version of labelcycle trains networks otherwise\. Give"
        ):
            _claim(tmp_path, settings)


def test_linear_head_does_not_care_how_its_network_would_be_trained(digits, tmp_path):
    options = options_of(digits, tmp_path / "out", features=None, images=digits / "images", model="small_cnn")
    settings = _resolve(options, None, read_labels(digits / "labels.csv", images=digits / "images"), None, None)
    network = settings.network.model_copy(update={"train": "head"})
    _claim(tmp_path, settings.model_copy(update={"network": network}))
    (tmp_path / "features.npy").write_text("")
    slower = network.model_copy(update={"learning_rate": 1e-3, "min_steps": 8})
    _claim(tmp_path, settings.model_copy(update={"network": slower}))
    with pytest.raises(CampaignChanged, match=r"network.dropout: 0.5 -> 0.25\."):
        _claim(tmp_path, settings.model_copy(update={"network": network.model_copy(update={"dropout": 0.25})}))


def test_networks_are_not_standardised_by_what_they_are_tested_on(replayed):
    replay = Replay(replayed)
    sample, test = replay.pool_sample(0), replay.data[replay.split(0).test]
    assert len(sample) == min(256, len(replay.data) - len(test))
    assert not (sample[:, None] == test).all(dim=2).any()


def test_image_that_was_broken_can_be_mended_and_the_same_command_goes_on(digits, tmp_path):
    shutil.copytree(digits / "images", tmp_path / "images")
    image = tmp_path / "images" / "007.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:60])
    options = options_of(digits, tmp_path / "out", features=None, images=tmp_path / "images", seeds=1, rounds=2)
    options = replace(options, image_size=8)
    with pytest.raises((PoolError, ReplayError), match=r"007\.png"):
        simulate(options)
    image.write_bytes(whole)
    (tmp_path / "out" / ".images.npy.abc.part").write_text("what a killed process was writing")
    simulate(options)
    assert not list((tmp_path / "out").rglob(".*.part"))
    (tmp_path / "images").rename(tmp_path / "moved")
    simulate(replace(options, images=tmp_path / "moved"))
    assert Replay(tmp_path / "out").labels["uri"][0] == str((tmp_path / "moved" / "000.png").resolve())


def _shuffled(digits: Path) -> Path:
    np.save(digits / "shuffled.npy", np.load(digits / "features.npy")[::-1])
    return digits / "shuffled.npy"


def test_folder_with_files_of_somebody_else_is_left_alone(digits, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ReplayError, match=r"holds other files \(thesis.tex\); name a new folder"):
        simulate(options_of(digits, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_hidden_files_make_no_folder_somebody_elses(digits, tmp_path):
    (tmp_path / ".DS_Store").write_text("")
    simulate(options_of(digits, tmp_path, seeds=1, rounds=2))
    assert (tmp_path / "report.html").exists()


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
        start=10,
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
    from pipeline.networks.classifier import build_model

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


@pytest.mark.parametrize("members", ["mc_dropout = 3", "swag = 2\nlaplace = 2"])
def test_heads_of_a_pretrained_network_are_members_too(digits, tmp_path, members):
    pd.read_csv(digits / "labels.csv", dtype=str).iloc[:60].to_csv(tmp_path / "few.csv", index=False)
    (tmp_path / "campaign.toml").write_text(
        f'name = "digits"\npool = "images"\nclasses = {[str(n) for n in range(10)]}\nbudget = 100\naudit_size = 20\n'
        '[model]\nname = "tests.flows.tiny:tiny_network"\nweights = "factory"\nimage_size = 8\nchannels = 1\n'
        f"max_epochs = 2\nlast_stage_from = 3\n[members]\nensemble = 2\n{members}\n"
    )
    options = Options(
        out=tmp_path / "out",
        campaign=tmp_path / "campaign.toml",
        images=digits / "images",
        labels=tmp_path / "few.csv",
        strategies="bald",
        seeds=1,
        query_size=5,
        rounds=2,
        start=10,
        workers=1,
    )
    with pytest.raises(ReplayError, match=r"--l2 is of a linear head, and tests\.flows\.tiny:tiny_network is trained"):
        simulate(replace(options, l2=0.1))
    summary = simulate(options)
    assert summary["settings"]["network"]["train"] == "auto", "and that is the head, with a label for each class"
    replay = Replay(options.out)
    with_trunk = _train_networks(replay, torch.arange(40), seed=0, round_number=0)
    assert not share_frozen_trunk(with_trunk), "there are four labels for each class"
    assert all(float(model.temperature) != 1 for model in with_trunk), "from networks without a third of the labels"
    (options.out / "images.npy").rename(tmp_path / "images.npy")  # heads read features alone
    replay = Replay(options.out)
    models = _train_networks(replay, torch.arange(20), seed=0, round_number=0)
    probs, embeddings = _predict_network(replay, models, None, 0, torch.arange(60))
    images = torch.from_numpy(np.load(tmp_path / "images.npy"))
    with torch.no_grad():
        torch.testing.assert_close(probs[:, 0], models[0](images).softmax(dim=1), rtol=0, atol=1e-3)
    torch.testing.assert_close(embeddings, models[0].embed(images), rtol=1e-2, atol=1e-2)
    assert len(models) == (2 if "mc" in members else 4)
    assert all(model.trunk is models[0].trunk for model in models)
    assert len({float(model.tail[1].weight.detach()[0, 0]) for model in models}) == len(models)


def test_replay_of_an_older_version_goes_on(digits, replayed, tmp_path):
    shutil.copytree(replayed, tmp_path / "older")
    settings = json.loads((replayed / "replay.json").read_text())
    settings["members"] = {name: settings["members"][name] for name in ("ensemble", "mc_dropout")}
    (tmp_path / "older" / "replay.json").write_text(json.dumps(settings))
    simulate(options_of(digits, tmp_path / "older"))
    assert same(tmp_path / "older", replayed)


def begin_campaign(digits, folder, *, splits):
    """A campaign on the digits whose first images of each split were labelled by people; no label is given before."""
    (folder / "campaign.toml").write_text(
        f'name = "digits"\npool = "{digits / "images"}"\nclasses = {[str(n) for n in range(10)]}\nbudget = 300\n'
        f'audit_size = 60\nquery_size = 15\nfolder = "{folder / "campaign"}"\n'
    )
    settings = load_settings(folder / "campaign.toml")
    pool = index_pool(settings.pool, None, audit_size=60, seed=0, classes=settings.classes)
    write_table(Campaign(settings.folder).pool, pool)
    asked = pd.concat([usable(pool).query("split == @split").head(n) for split, n in splits.items()])
    truth = pd.read_csv(digits / "labels.csv", dtype=str).set_index("file")["label"]
    answers = [
        Answer(
            ask=Ask(row.item_id, 0, "seed"),
            task_id=number,
            answer_id=number,
            outcome="labelled",
            annotator="ann",
            updated_at="2026-01-01T00:00:00+00:00",
            annotation=Annotation(row.item_id, (Region("image", truth[Path(row.uri).name]),), "ann"),
        )
        for number, row in enumerate(asked.itertuples())
    ]
    write_table(Campaign(settings.folder).round(0) / "annotations.parquet", answers_to_table(answers))
    options = {"model": "pixels", "image_size": 8, "seeds": 1, "rounds": 2, "start": 20, "workers": 1}
    return Options(out=folder / "out", campaign=folder / "campaign.toml", **options)


def test_audit_set_of_a_campaign_is_what_is_tested_on(digits, tmp_path):
    options = begin_campaign(digits, tmp_path, splits={"audit": 40, "pool": 110})
    summary = simulate(options)
    replay = Replay(options.out)
    audit = pd.read_parquet(tmp_path / "campaign" / "pool.parquet").query("split == 'audit'")["item_id"]
    tested = replay.labels["file"].iloc[replay.split(0).test.numpy()]
    assert len(tested) == summary["settings"]["test_size"] == 40
    assert set(tested) <= set(audit)
    assert "partly picked" not in summary["verdict"]
    with pytest.raises(ReplayError, match="40 images are marked to be tested on, so leave --test-size out"):
        simulate(replace(options, out=tmp_path / "other", test_size=0.3))


def test_campaign_without_audit_labels_says_that_a_model_picked_the_test_images(digits, tmp_path):
    options = begin_campaign(digits, tmp_path, splits={"audit": 0, "pool": 110})
    summary = simulate(options)
    assert "the test images are drawn from those that a model partly picked" in summary["verdict"]
    assert "that a model partly picked" in (options.out / "report.html").read_text()


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
        out=tmp_path / "out", campaign=tmp_path / "campaign.toml", model="pixels", seeds=2, rounds=2, workers=1
    )
    told = {}

    def watch(candidates, strategy, *, query_size, round_number, seed, **how):
        told[strategy] = how
        return select_batch(candidates, strategy, query_size=query_size, round_number=round_number, seed=seed, **how)

    monkeypatch.setattr("flows.replay.runs.select_batch", watch)
    summary = simulate(options)
    assert list(summary["strategies"]) == ["random", "power:entropy"]
    settings = summary["settings"]
    assert [settings[name] for name in ("query_size", "start", "sub_pool", "seeds")] == [15, 25, 90, [3, 4]]
    own = {"prefilter": 4.0, "class_balanced": True, "random_slice": 0.2, "beta": 2.5}
    assert told["power"] == own
    assert told["random"] == {}, "the control asks as always"
    assert "partly picked" not in summary["verdict"], "no model had a hand in the manifest's labels"
    n_items = sum(summary["class_balance"]["data"])
    assert 200 < n_items <= 250, "the labelled ones, and of equal images one"

    chosen = replace(options, out=tmp_path / "other", seed=0, start=20, sub_pool=50, strategies="margin,power:entropy")
    settings = simulate(chosen)["settings"]
    assert [settings[name] for name in ("start", "sub_pool", "seeds")] == [20, 50, [0, 1]]
    assert told["power"] == own, "under whatever name it is asked for"
    assert told["top_k"] == {}, "only the campaign's own arm asks as the campaign does"


def test_names_in_the_page_are_escaped(digits, tmp_path):
    table = pd.read_csv(digits / "labels.csv", dtype=str)
    table["label"] = table["label"].replace({"0": "<script>alert(1)</script>", "1": "</script>&amp;"})
    table.to_csv(tmp_path / "labels.csv", index=False)
    simulate(options_of(digits, tmp_path / "out", labels=tmp_path / "labels.csv", seeds=1, rounds=2))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page
    assert page.count("</script>") == 1


def test_letters_of_a_class_in_another_form_are_no_other_class(digits, tmp_path):
    table = pd.read_csv(digits / "labels.csv", dtype=str)
    forms = {"0": "caf\xe9", "1": "cafe\u0301"}
    table["label"] = table["label"].replace(forms)
    table.to_csv(tmp_path / "labels.csv", index=False)
    assert set(read_labels(tmp_path / "labels.csv", images=None)["label"]) == {"caf\xe9", *"23456789"}


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
        simulate(options)
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
        simulate(options)


@pytest.mark.parametrize("model", ["small_cnn", None])
def test_side_that_a_network_cannot_have_is_refused(digits, tmp_path, model):
    (tmp_path / "campaign.toml").write_text(
        f'name = "digits"\npool = "x"\nclasses = {[str(n) for n in range(10)]}\nbudget = 90\naudit_size = 9\n'
        '[model]\nname = "small_cnn"\n'
    )
    options = options_of(digits, tmp_path / "out", features=None, images=digits / "images", model=model, image_size=4)
    with pytest.raises(ReplayError, match=r"--image-size: .* greater than or equal to 8 \(got 4\)"):
        simulate(replace(options, campaign=None if model else tmp_path / "campaign.toml"))


@pytest.mark.parametrize("out", ["file/out", "file", "/proc/out"])
def test_folder_that_cannot_be_made_is_refused(digits, tmp_path, out):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ReplayError, match=r"--out .*(cannot be made: (Not a dir|No such file)|is a file; name a folder)"
    ):
        simulate(options_of(digits, tmp_path / out))


def test_number_of_test_images_and_marked_ones_are_refused_together(digits, tmp_path):
    (tmp_path / "labels.csv").write_text("file,label,split\n000.png,1,test\n001.png,2,pool\n")
    options = options_of(digits, tmp_path / "out", features=None, images=digits / "images", test_size=0.25)
    with pytest.raises(ReplayError, match="1 images are marked to be tested on, so leave --test-size out"):
        simulate(replace(options, labels=tmp_path / "labels.csv"))


@pytest.mark.parametrize(
    ("uri", "message"),
    [("local", "the server of `labelcycle up`, which is not running"), ("http://127.0.0.1:9", "--mlflow: MLflow at ")],
)
def test_mlflow_is_looked_for_before_anything_runs(digits, tmp_path, monkeypatch, uri, message):
    monkeypatch.setenv("LABELCYCLE_HOME", str(tmp_path / "home"))
    with pytest.raises((ReplayError, TrackerError), match=message):
        simulate(options_of(digits, tmp_path / "out", mlflow=uri))
    assert not (tmp_path / "out").exists()


def test_replay_in_mlflow_has_its_settings_its_winner_and_the_areas(digits, tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    summary = simulate(options_of(digits, tmp_path / "digits replay", seeds=2, rounds=2, mlflow=uri))
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name("replay digits replay")
    runs = {run.info.run_name: run.data for run in client.search_runs([experiment.experiment_id])}
    replay = next(data for name, data in runs.items() if name.startswith("replay "))
    assert replay.params["members.ensemble"] == "1"
    assert (replay.params["winner"], replay.params["seeds"]) == ("none", "0,1")
    area = summary["strategies"]["margin"]["aulc"]
    assert {end: runs["margin"].metrics[f"aulc_{end}"] for end in area} == pytest.approx(area)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,label\na.png,1\n", "needs a column file, has name, label"),
        ("file,label\n000.png,1\n001.png,\n", r"row 2 \(file '001.png'\) has no label"),
        ("file,label\n000.png,1\n,2\n", "row 2 .* has no file"),
        ("file,label\n000.png,1\n000.png,2\n", "row 2 .* names a file for the second time"),
        ("file,label\n000.png,1\nnot there.png,2\n", "row 2 .* names a file that is not in"),
        ("file,label,split\n000.png,1,pool\n001.png,2,train\n", "row 2 .* has a split that is neither pool nor test"),
        ("file,label\n000.png,1\n001.png,1\n", "nothing to learn: all 2 labels are '1'"),
        ("", "needs a column file, has no columns: the file is empty"),
        ("file,label\n", "has no row below its first line"),
        ("uri,label\n000.png,1\n", "needs a column file, has uri, label: call 'uri' file in the first line"),
        ("file,class\n000.png,1\n", "the column 'class' is not known: call it label"),
        ("file,label,subset\n000.png,1,test\n", "the column 'subset' is not known: call it split"),
        ("file,label\n000.png,1\n001.png\n", "row 2 has fewer fields than the first line, 1 for 2"),
        ("file,label\n000.png,1\n.\\000.png,2\n", r"row 2 .* names a file for the second time"),
        ("file,label\n000.png,1\n001.PNG,2\n", r"row 2 .* names a file that is not in .*there is 001\.png"),
        ("file,label\n000.png,1,\n001.png,2,\n", "row 1 has more fields than the first line, .* ends of lines away"),
        ("file,label\n000.png,cat,tabby\n001.png,cat,tabby\n", "row 1 has more fields than the first line"),
    ],
)
def test_wrong_labels_are_refused_with_their_row(digits, tmp_path, text, message):
    (tmp_path / "labels.csv").write_text(text)
    options = options_of(
        digits, tmp_path / "out", features=None, images=digits / "images", labels=tmp_path / "labels.csv"
    )
    with pytest.raises(ReplayError, match=message):
        simulate(options)


def test_labels_are_read_as_they_were_meant_and_what_was_forgiven_is_told(digits, tmp_path):
    (tmp_path / "labels.csv").write_text(
        "File;label ;Split;width\n000.png;cafe\u0301;pool;8\n.\\001.png;caf\u00e9 ;test;8\n002.png;Caf\u00e9;pool;8\n"
    )
    told = []
    rows = read_labels(tmp_path / "labels.csv", images=digits / "images", tell=told.append)
    assert rows["label"].tolist() == ["caf\u00e9", "caf\u00e9", "Caf\u00e9"]
    assert [Path(uri).name for uri in rows["uri"]] == ["000.png", "001.png", "002.png"]
    assert rows["is_test"].tolist() == [False, True, False]
    for word in (
        "separated by semicolons",
        "'File' is read as file",
        "'label ' is read as label",
        "white space around values of label is passed over, in 1 rows, such as 'caf\u00e9 ' in row 2",
        "columns that are not used: 'width'",
        "with / for back-slashes",
        "'Caf\u00e9' and 'caf\u00e9' are taken for two classes",
    ):
        assert word in "\n".join(told)
    classes = ("cafe\u0301", "Caf\u00e9")
    rows = read_labels(tmp_path / "labels.csv", images=None, classes=classes)
    assert rows["label"].tolist() == ["cafe\u0301", "cafe\u0301", "Caf\u00e9"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[:-1], "one row of features for each of the 300 rows"),
        (lambda x: x[:, 0], r"got the shape \(300,\)"),
        (lambda x: x[:, :0], r"at least one number, got the shape \(300, 0\)"),
        (lambda x: np.where(np.arange(N)[:, None] == 7, np.nan, x), "row 8 holds a value that is not finite"),
        (lambda x: np.full(x.shape, "a"), "cannot be read as a table of numbers"),
    ],
)
def test_wrong_features_are_refused(digits, tmp_path, change, message):
    np.save(tmp_path / "features.npy", change(np.load(digits / "features.npy")))
    with pytest.raises(ReplayError, match=message):
        simulate(options_of(digits, tmp_path / "out", features=tmp_path / "features.npy"))


def test_empty_features_file_is_refused(digits, tmp_path):
    (tmp_path / "features.npy").write_bytes(b"")
    with pytest.raises(ReplayError, match="cannot be read as a table of numbers"):
        simulate(options_of(digits, tmp_path / "out", features=tmp_path / "features.npy"))


def summary_of(**accuracies):
    """A summary of invented curves of three points, `(S, 3)` for each arm, of images of which all labels give 0.9."""
    table = pd.DataFrame(
        [
            {"strategy": name, "seed": seed, "round": point, "n_labels": 1000 + 1000 * point, "accuracy": value}
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
    return summarise(table, dict.fromkeys(range(n_seeds), 0.9)) | extra


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


def test_command_asks_for_the_same_again():
    options = Options(out=Path("my out"), features=Path("f.npy"), labels=Path("l.csv"), mc_dropout=4, workers=3)
    told = "labelcycle simulate --out 'my out' --labels l.csv --features f.npy --mc-dropout 4"
    assert command_of(options) == told


def test_help_names_every_arm(monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    text = CliRunner().invoke(app, ["simulate", "--help"]).output
    words = set(re.findall(r"\w+", text))
    assert words >= {*STRATEGIES, *ACQUISITIONS}


def test_interrupted_command_says_that_the_same_one_goes_on(digits, tmp_path, monkeypatch):
    def interrupted(_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("flows.replay.simulate.simulate", interrupted)
    result = CliRunner().invoke(app, ["simulate", "--out", str(tmp_path / "out")])
    assert result.exit_code == 130
    assert "The same command goes on" in result.output


def test_processes_of_a_replay_load_no_prefect():
    code = "import sys, flows.replay.runs; print([name for name in ('prefect', 'mlflow') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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


def films(folder, *, n_films=16, n_frames=10, seed=0):
    """Films of frames that are nearly equal, each of one class that cannot be told from its pictures."""
    draw, rows = np.random.default_rng(seed), []
    (folder / "images").mkdir(parents=True)
    for film in range(n_films):
        base = draw.integers(0, 255, (8, 8, 3))
        for frame in range(n_frames):
            pixels = np.clip(base + draw.integers(-6, 6, (8, 8, 3)), 0, 255).astype(np.uint8)
            name = f"film{film:02d}_frame{frame:02d}.png"
            Image.fromarray(pixels).save(folder / "images" / name)
            rows.append((name, "ab"[film % 2]))
    pd.DataFrame(rows, columns=["file", "label"]).to_csv(folder / "labels.csv", index=False)
    return folder


def options_of_images(folder: Path, out: Path, **changes) -> Options:
    options = Options(
        out=out,
        images=folder / "images",
        labels=folder / "labels.csv",
        strategies="random",
        seeds=5,
        query_size=8,
        rounds=2,
        workers=1,
    )
    return replace(options, **changes)


def test_frames_of_a_film_flatter_until_whole_films_are_on_one_side(tmp_path):
    folder = films(tmp_path)
    plain = simulate(options_of_images(folder, tmp_path / "plain"))
    assert plain["full_data_accuracy"]["mean"] > 0.95
    by_name, by_look = plain["notes"]
    rule = re.search(r"group = '(.+)'$", by_name)[1]
    assert "40 of 40 images of the test part have a near-copy" in by_look
    assert by_look.split(".")[0] in (tmp_path / "plain" / "report.html").read_text()

    honest = simulate(options_of_images(folder, tmp_path / "honest", group=rule))
    assert honest["full_data_accuracy"]["mean"] < 0.75
    assert honest["notes"] == []
    replay = Replay(tmp_path / "honest")
    films_of = replay.labels["file"].str[:6].to_numpy()
    for seed in range(5):
        split = replay.split(seed)
        assert not set(films_of[split.test]) & set(films_of[torch.cat([split.start, split.rest])])
        assert len(split.test) == 40

    table = pd.read_csv(folder / "labels.csv")
    table.assign(group=table["file"].str[:6]).to_csv(folder / "labels.csv", index=False)
    named = simulate(options_of_images(folder, tmp_path / "named"))
    assert named["curves"] == honest["curves"], "a column says the same"
    with pytest.raises(ReplayError, match="leave --group out, or the column"):
        simulate(options_of_images(folder, tmp_path / "both", group=rule))


@pytest.mark.parametrize(
    ("rule", "told"),
    [
        ("clip(.)", r"--group 'clip\(.\)' names no group in any of 160 paths, for example 'film00_frame00.png'"),
        ("film", r"--group 'film' must be 'parent', or a regular expression with one part in round brackets"),
        ("parent", "the smallest has 160 images"),
    ],
)
def test_group_rule_that_makes_no_groups_is_refused(tmp_path, rule, told):
    folder = films(tmp_path)
    with pytest.raises(ReplayError, match=told):
        simulate(options_of_images(folder, tmp_path / "out", group=rule))


def test_group_on_both_sides_of_a_given_test_part_is_refused(tmp_path):
    folder = films(tmp_path)
    table = pd.read_csv(folder / "labels.csv")
    table["split"] = np.where(np.arange(160) < 45, "test", "pool")
    table.to_csv(folder / "labels.csv", index=False)
    with pytest.raises(ReplayError, match=r"group 'film04' has images to test on \(film04_frame00.png\) and others"):
        simulate(options_of_images(folder, tmp_path / "out", group="^(.+)_frame"))


def copies(folder, *, labels, split=None, seed=0):
    """Images of noise, each in as many files as it has labels."""
    draw, rows = np.random.default_rng(seed), []
    (folder / "images").mkdir(parents=True)
    for number, given in enumerate(labels):
        image = Image.fromarray(draw.integers(0, 255, (8, 8, 3)).astype(np.uint8))
        for copy, label in enumerate(given):
            name = f"{number:02d}-{copy}.png"
            image.save(folder / "images" / name)
            rows.append((name, label))
    table = pd.DataFrame(rows, columns=["file", "label"])
    if split is not None:
        table["split"] = table["file"].map(split)
    table.to_csv(folder / "labels.csv", index=False)
    return folder


def test_copies_to_the_byte_are_one_image(tmp_path):
    draw = np.random.default_rng(1)
    folder = copies(tmp_path, labels=["ab"[draw.integers(2)] * 3 for _ in range(40)])
    summary = simulate(options_of_images(folder, tmp_path / "out", seeds=10, rounds=2))
    assert summary["notes"][0] == "80 of 120 files are copies of others, to the last byte: an image counts once"
    assert pd.read_parquet(tmp_path / "out" / "labels.parquet")["file"].tolist() == [
        f"{n:02d}-0.png" for n in range(40)
    ]
    assert 0.3 < summary["full_data_accuracy"]["mean"] < 0.7, "noise cannot be learnt; with copies it was 83 %"


def test_copies_with_different_labels_are_set_aside_and_named(tmp_path):
    folder = copies(tmp_path, labels=["ab", "aab", *["a", "b"] * 20])
    summary = simulate(options_of_images(folder, tmp_path / "out"))
    assert summary["notes"] == [
        "5 files are copies with different labels and are set aside, for example 00-0.png (a) and 00-1.png (b)"
    ]
    assert len(pd.read_parquet(tmp_path / "out" / "labels.parquet")) == 40


def test_copy_of_an_image_of_the_test_part_is_not_learnt_from(tmp_path):
    labels = ["aa", "bb", *["a", "b"] * 20]
    folder = copies(tmp_path, labels=labels, split=lambda name: "test" if name[3] == "1" or name < "12" else "pool")
    table = pd.read_csv(folder / "labels.csv")
    table.loc[table["file"].isin(["00-0.png", "01-0.png"]), "split"] = "pool"
    table.to_csv(folder / "labels.csv", index=False)
    summary = simulate(options_of_images(folder, tmp_path / "out"))
    assert summary["notes"][:2] == [
        "2 of 44 files are copies of others, to the last byte: an image counts once",
        "2 images to test on are outside of the test part too, for example 00-1.png and 00-0.png: they are only "
        "tested on",
    ]
    kept = pd.read_parquet(tmp_path / "out" / "labels.parquet").set_index("file")["is_test"]
    assert kept[["00-1.png", "01-1.png"]].all()
    assert "00-0.png" not in kept.index


def test_rows_of_equal_features_are_one_image(digits, tmp_path):
    features, table = np.load(digits / "features.npy"), pd.read_csv(digits / "labels.csv")
    np.save(tmp_path / "features.npy", np.concatenate([features, features[:7]]))
    again = table.head(7).assign(file=[f"again{number}.png" for number in range(7)])
    pd.concat([table, again]).to_csv(tmp_path / "labels.csv", index=False)
    how = {"seeds": 1, "rounds": 2}
    plain = simulate(options_of(digits, tmp_path / "plain", **how))
    doubled = simulate(options_of(tmp_path, tmp_path / "doubled", **how))
    assert doubled["notes"] == [
        "7 of 307 rows of features are copies of others, to the last byte: an image counts once"
    ]
    assert doubled["curves"] == plain["curves"]
