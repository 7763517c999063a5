import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from connectors.image_folder.index import index_pool
from flows.artefacts import ANSWERS, POOL
from flows.config import load_settings
from flows.folder import Campaign
from flows.replay.command import replay_strategies
from flows.replay.folder import Replay
from flows.replay.inputs import ReplayError, read_features, read_labels
from flows.replay.options import Options
from pipeline.tables import PoolTable
from pipeline.tasks import classification
from tests.flows.replay.conftest import N, options_of, options_of_images
from tests.flows.rounds import answer


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
        replay_strategies(options)


def test_labels_are_read_as_they_were_meant_and_what_was_forgiven_is_told(digits, tmp_path):
    (tmp_path / "labels.csv").write_text(
        "File;label ;Split;width\n000.png;cafe\u0301;pool;8\n.\\001.png;caf\u00e9 ;test;8\n002.png;Caf\u00e9;pool;8\n"
    )
    told = []
    rows = read_labels(tmp_path / "labels.csv", images=digits / "images", task=classification, tell=told.append)
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
    rows = read_labels(tmp_path / "labels.csv", images=None, task=classification, classes=classes)
    assert rows["label"].tolist() == ["cafe\u0301", "cafe\u0301", "Caf\u00e9"]


def test_letters_of_a_class_in_another_form_are_no_other_class(digits, tmp_path):
    table = pd.read_csv(digits / "labels.csv", dtype=str)
    forms = {"0": "caf\xe9", "1": "cafe\u0301"}
    table["label"] = table["label"].replace(forms)
    table.to_csv(tmp_path / "labels.csv", index=False)
    assert set(read_labels(tmp_path / "labels.csv", images=None, task=classification)["label"]) == {
        "caf\xe9",
        *"23456789",
    }


def test_features_come_from_parquet_as_columns_or_lists(digits, tmp_path):
    features = read_features(digits / "features.npy", N)
    pd.DataFrame(features).rename(columns=str).to_parquet(tmp_path / "columns.parquet")
    pd.DataFrame({"embedding": list(features)}).to_parquet(tmp_path / "lists.parquet")
    for name in ("columns", "lists"):
        found = read_features(tmp_path / f"{name}.parquet", N)
        assert found.dtype == np.float32
        assert np.array_equal(found, features)


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
        replay_strategies(options_of(digits, tmp_path / "out", features=tmp_path / "features.npy"))


def test_empty_features_file_is_refused(digits, tmp_path):
    (tmp_path / "features.npy").write_bytes(b"")
    with pytest.raises(ReplayError, match="cannot be read as a table of numbers"):
        replay_strategies(options_of(digits, tmp_path / "out", features=tmp_path / "features.npy"))


def begin_campaign(digits, folder, *, splits):
    """A campaign on the digits whose first images of each split were labelled by people; no label is given before."""
    (folder / "campaign.toml").write_text(
        f'name = "digits"\npool = "{digits / "images"}"\nclasses = {[str(n) for n in range(10)]}\nbudget = 300\n'
        f'audit_size = 60\nquery_size = 15\nfolder = "{folder / "campaign"}"\n'
    )
    settings = load_settings(folder / "campaign.toml")
    pool = PoolTable(index_pool(settings.pool_source, None, audit_size=60, seed=0))
    campaign = Campaign(settings.folder)
    campaign.write(POOL, pool)
    asked = pd.concat([pool.usable.query("split == @split").head(n) for split, n in splits.items()])
    truth = pd.read_csv(digits / "labels.csv", dtype=str).set_index("file")["label"]
    answers = [
        answer(row.item_id, truth[Path(row.uri).name], answer_id=number)
        for number, row in enumerate(asked.itertuples())
    ]
    campaign.round(0).write(ANSWERS, answers)
    options = {"model": "pixels", "image_size": 8, "seeds": 1, "rounds": 2, "start": 20, "workers": 1}
    return Options(out=folder / "out", campaign=folder / "campaign.toml", **options)


def test_audit_set_of_a_campaign_is_what_is_tested_on(digits, tmp_path):
    options = begin_campaign(digits, tmp_path, splits={"audit": 40, "pool": 110})
    summary = replay_strategies(options)
    replay = Replay(options.out)
    audit = pd.read_parquet(tmp_path / "campaign" / "pool.parquet").query("split == 'audit'")["item_id"]
    tested = replay.labels["file"].iloc[replay.split(0).test.numpy()]
    assert len(tested) == summary["settings"]["test_size"] == 40
    assert set(tested) <= set(audit)
    assert "partly picked" not in summary["verdict"]
    with pytest.raises(ReplayError, match="40 images are marked to be tested on, so leave --test-size out"):
        replay_strategies(replace(options, out=tmp_path / "other", test_size=0.3))


def test_campaign_without_audit_labels_says_that_a_model_picked_the_test_images(digits, tmp_path):
    options = begin_campaign(digits, tmp_path, splits={"audit": 0, "pool": 110})
    summary = replay_strategies(options)
    assert "the test images are drawn from those that a model partly picked" in summary["verdict"]
    assert "that a model partly picked" in (options.out / "report.html").read_text()


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


def test_frames_of_a_film_flatter_until_whole_films_are_on_one_side(tmp_path):
    folder = films(tmp_path)
    plain = replay_strategies(options_of_images(folder, tmp_path / "plain", seeds=3))
    assert plain["full_data"]["mean"] > 0.95
    by_name, by_look = plain["notes"]
    rule = re.search(r"group = '(.+)'$", by_name)[1]
    assert "40 of 40 images of the test part have a near-copy" in by_look
    assert by_look.split(".")[0] in (tmp_path / "plain" / "report.html").read_text()

    honest = replay_strategies(options_of_images(folder, tmp_path / "honest", seeds=3, group=rule))
    assert honest["full_data"]["mean"] < 0.75
    assert honest["notes"] == []
    replay = Replay(tmp_path / "honest")
    films_of = replay.labels["file"].str[:6].to_numpy()
    for seed in range(3):
        split = replay.split(seed)
        assert not set(films_of[split.test]) & set(films_of[torch.cat([split.start, split.rest])])
        assert len(split.test) == 40

    table = pd.read_csv(folder / "labels.csv")
    table.assign(group=table["file"].str[:6]).to_csv(folder / "labels.csv", index=False)
    named = replay_strategies(options_of_images(folder, tmp_path / "named", seeds=3))
    assert named["curves"] == honest["curves"], "a column says the same"
    with pytest.raises(ReplayError, match="leave --group out, or the column"):
        replay_strategies(options_of_images(folder, tmp_path / "both", group=rule))


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
        replay_strategies(options_of_images(folder, tmp_path / "out", group=rule))


def test_group_on_both_sides_of_a_given_test_part_is_refused(tmp_path):
    folder = films(tmp_path)
    table = pd.read_csv(folder / "labels.csv")
    table["split"] = np.where(np.arange(160) < 45, "test", "pool")
    table.to_csv(folder / "labels.csv", index=False)
    with pytest.raises(ReplayError, match=r"group 'film04' has images to test on \(film04_frame00.png\) and others"):
        replay_strategies(options_of_images(folder, tmp_path / "out", group="^(.+)_frame"))
