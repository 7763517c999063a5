from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from flows.replay.command import replay_strategies
from flows.replay.folder import Replay
from flows.replay.inputs import ReplayError
from flows.replay.options import Options
from flows.replay.runs import _decide, _lesson
from pipeline.learning.predict import share_frozen_trunk
from pipeline.learning.train import learn
from pipeline.selection.batch import select_batch
from tests.flows.replay.conftest import N, curves_of, options_of


def test_every_point_is_that_of_a_regression_on_the_images_that_were_picked(digits, replayed):
    features, targets = np.load(digits / "features.npy").astype(np.float64), load_digits().target[:N]
    curves = pd.read_parquet(replayed / "curves.parquet")
    assert len(curves) == 2 * 3 * 4
    assert curves.groupby("round")["n_trained_on"].unique().map(list).tolist() == [[20], [40], [60], [80]]
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
    replay_strategies(options_of(digits, tmp_path / "out", labels=tmp_path / "marked.csv", seeds=2, rounds=2))
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
    replay_strategies(options_of(digits, tmp_path / "out", strategies="random,margin", seeds=1, sub_pool=50))
    assert sizes == [50] * 6


def test_margin_takes_the_smallest_gaps(digits, replayed):
    features, targets = np.load(digits / "features.npy").astype(np.float64), load_digits().target[:N]
    split = Replay(replayed).split(0)
    head = LogisticRegression(C=10, max_iter=2000).fit(features[split.start], targets[split.start])
    top = np.sort(head.predict_proba(features[split.rest]), axis=1)
    smallest = split.rest.numpy()[np.argsort(top[:, -1] - top[:, -2])[:20]]
    row = curves_of(replayed).query("strategy == 'margin' and seed == 0 and round == 0").iloc[0]
    assert set(row["picks"]) == set(smallest.tolist())


def test_networks_are_not_standardised_by_what_they_are_tested_on(replayed):
    replay = Replay(replayed)
    sample, test = replay.pool_sample(0), replay.data[replay.split(0).test]
    assert len(sample) == min(256, len(replay.data) - len(test))
    assert not (sample[:, None] == test).all(dim=2).any()


def test_pixels_of_images_are_features_at_a_small_side(digits, tmp_path):
    options = options_of(digits, tmp_path / "out", features=None, images=digits / "images", image_size=8, seeds=1)
    summary = replay_strategies(options)
    features = np.load(tmp_path / "out" / "features.npy")
    expected = np.stack([np.asarray(Image.open(path)) for path in sorted((digits / "images").iterdir())])
    assert features == pytest.approx(expected.reshape(N, 64) / 255, abs=1e-6)
    assert summary["settings"]["channels"] == 1
    assert summary["strategies"]["random"]["final"]["accuracy"]["mean"] > 0.7


def test_dropped_features_give_a_linear_head_members_and_leave_what_is_measured_alone(digits, replayed, tmp_path):
    options = options_of(digits, tmp_path / "out", strategies="random,bald", mc_dropout=8, seeds=1)
    replay_strategies(options)
    curves = curves_of(options.out)
    plain = curves_of(replayed).query("strategy == 'random' and seed == 0")
    assert curves.query("strategy == 'random'").reset_index(drop=True).equals(plain.reset_index(drop=True))
    picks = curves.query("round == 0")["picks"].tolist()
    assert picks[0] != picks[1]
    assert picks[1] == curves_of(replayed_again(options)).query("round == 0")["picks"].tolist()[1]


def replayed_again(options: Options) -> Path:
    again = options.out.parent / "again"
    replay_strategies(replace(options, out=again))
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
    replay_strategies(options)
    curves = curves_of(options.out)
    assert curves.query("round == 0")["nll"].nunique() == 1
    assert curves.query("round == 1")["picks"].nunique() == 2
    before = curves_of(options.out)
    (options.out / "runs" / "bald-0.parquet").unlink()
    replay_strategies(options)
    assert curves_of(options.out).equals(before), "the same seeds train the same networks"


def test_frozen_network_gives_the_features(digits, tmp_path):
    from pipeline.networks.build import build_model

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
    replay_strategies(options)
    assert np.load(options.out / "features.npy").shape == (60, 512)


def learn_from(replay, labelled):
    """The networks of a replay that learn from the labelled positions."""
    settings = replay.settings
    lesson = _lesson(replay, settings.network, labelled, seed=0)
    return learn(lesson, settings.network, settings.members, seed=0, round_number=0)


@pytest.mark.parametrize("members", ["mc_dropout = 3", "swag = 2\nlaplace = 2"])
def test_heads_of_a_pretrained_network_are_members_too(digits, tmp_path, members):
    pd.read_csv(digits / "labels.csv", dtype=str).iloc[:60].to_csv(tmp_path / "few.csv", index=False)
    (tmp_path / "campaign.toml").write_text(
        f'name = "digits"\npool = "images"\nclasses = {[str(n) for n in range(10)]}\nbudget = 100\naudit_size = 20\n'
        '[model]\nname = "tests.flows.tiny:tiny_network"\nweights = "factory"\nimage_size = 8\nchannels = 1\n'
        f"max_epochs = 2\nall_from = 3\n[members]\nensemble = 2\n{members}\n"
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
        test_size=31,
        workers=1,
    )
    with pytest.raises(ReplayError, match=r"--l2 is of a linear head, and tests\.flows\.tiny:tiny_network is trained"):
        replay_strategies(replace(options, l2=0.1))
    summary = replay_strategies(options)
    assert summary["settings"]["network"]["train"] == "auto", "and that is the head, with a label for each class"
    replay = Replay(options.out)
    with_trunk = learn_from(replay, torch.arange(40))
    assert not share_frozen_trunk(with_trunk), "there are four labels for each class"
    network, own = replay.settings.network, replay.settings.members
    [few] = _decide(replay, network, with_trunk, own, 0, torch.arange(3))
    assert few.decisions.isfinite().all()
    assert all(float(model.temperature) != 1 for model in with_trunk), "from networks without a third of the labels"
    (options.out / "images.npy").rename(tmp_path / "images.npy")  # heads read features alone
    replay = Replay(options.out)
    models = learn_from(replay, torch.arange(20))
    [(decisions, embeddings, _)] = _decide(replay, network, models, None, 0, torch.arange(60))
    images = torch.from_numpy(np.load(tmp_path / "images.npy"))
    with torch.no_grad():
        torch.testing.assert_close(decisions[:, 0, 0], models[0](images).softmax(dim=1), rtol=0, atol=1e-3)
    torch.testing.assert_close(embeddings, models[0].embed(images), rtol=1e-2, atol=1e-2)
    assert len(models) == (2 if "mc" in members else 4)
    assert all(model.trunk is models[0].trunk for model in models)
    assert len({float(model.tail[1].weight.detach()[0, 0]) for model in models}) == len(models)
