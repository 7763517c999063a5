"""What a campaign gives besides rounds: labels as a table, predictions of any images."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from flows import results
from flows.artefacts import CAMPAIGN, METRICS, POOL, TRAINING
from flows.changes import CampaignChanged
from flows.config import ConfigError, resolved
from flows.results import predict_files, write_labels
from pipeline.tables import PoolTable
from tests.flows.conftest import CLASSES, PLAIN, TINY, ready_round
from tests.flows.rounds import learn, metrics_of, training_of


@pytest.fixture
def make_work(make_work):
    """A campaign that has claimed its folder."""

    def make(**options):
        work = make_work(**options)
        work.folder.write(CAMPAIGN, resolved(work.settings))
        return work

    return make


@pytest.fixture
def trained(make_work):
    """A campaign whose first round has learnt from the 24 labels of the manifest."""

    def make(**options):
        work = make_work(**options)
        learn(work, ready_round(work, 0))
        return work

    return make


@pytest.fixture
def strangers(tmp_path):
    """Images of any size with a bright stripe, and files that are none."""
    folder = tmp_path / "strangers"
    (folder / "deep").mkdir(parents=True)
    for place, name in enumerate(["left.png", "deep/middle.png", "right.png"]):
        image = np.zeros((24, 24), dtype=np.uint8)
        image[:, 8 * place : 8 * place + 6] = 220
        Image.fromarray(image).save(folder / name)
    (folder / "torn.png").write_bytes((folder / "left.png").read_bytes()[:60])
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.mark.parametrize("network", [PLAIN.replace("epochs = 2", "epochs = 20"), TINY], ids=["own trunks", "one trunk"])
def test_files_are_predicted_each_with_a_row(network, trained, strangers, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "CHUNK", 4)
    work = trained(network=network)
    done = predict_files(work.settings, strangers, tmp_path / "said.csv")
    assert (done.round_number, done.n_images, len(done.reasons)) == (0, 3, 2)
    table = pd.read_csv(tmp_path / "said.csv").set_index("uri")
    assert list(table.columns) == ["class", "probability", *(f"p_{name}" for name in CLASSES), "reason"]
    said = table["class"]
    wanted = {
        str(strangers / name): name.removeprefix("deep/").removesuffix(".png")
        for name in ("left.png", "deep/middle.png", "right.png")
    }
    assert said.dropna().to_dict() == wanted
    assert table.loc[str(strangers / "torn.png"), "reason"].startswith("damaged: ")
    assert table.loc[str(strangers / "notes.txt"), "reason"] == "not an image: suffix .txt"
    sums = table[[f"p_{name}" for name in CLASSES]].sum(axis=1)[said.notna()]
    assert sums.to_numpy() == pytest.approx(1, abs=1e-5)


def test_one_file_is_predicted_as_among_others(trained, strangers, tmp_path):
    work = trained()
    predict_files(work.settings, strangers, tmp_path / "all.parquet")
    predict_files(work.settings, strangers / "right.png", tmp_path / "one.parquet")
    together = pd.read_parquet(tmp_path / "all.parquet").set_index("uri")
    [alone] = pd.read_parquet(tmp_path / "one.parquet").to_dict("records")
    assert alone["probability"] == pytest.approx(together.loc[alone["uri"], "probability"], abs=1e-5)


def test_the_best_measured_round_predicts_unless_another_is_asked_for(trained, strangers, tmp_path):
    work = trained()
    later = work.folder.round(1)
    for folder, low in ((work.folder.round(0), 0.8), (later, 0.7)):
        folder.write(METRICS, metrics_of(low=low))
    later.write(TRAINING, training_of())
    assert predict_files(work.settings, strangers, tmp_path / "said.csv").round_number == 0
    with pytest.raises(ConfigError, match="round 7 has no model; these have: 0, 1"):
        predict_files(work.settings, strangers, tmp_path / "others.csv", round_number=7)


def test_an_older_model_speaks_of_classes_by_the_names_that_they_have_now(trained, make_work, strangers, tmp_path):
    work = trained()
    predict_files(work.settings, strangers, tmp_path / "before.parquet")
    merged = make_work(classes=["middle", "side"], renamed='left = "side"\nright = "side"')
    predict_files(merged.settings, strangers, tmp_path / "after.parquet")
    before, after = (pd.read_parquet(tmp_path / f"{name}.parquet") for name in ("before", "after"))
    assert list(after.columns) == ["uri", "class", "probability", "p_side", "p_middle", "reason"]
    said = after["reason"].isna()
    assert said.any()
    assert (~said).any()
    assert after["p_side"].to_numpy() == pytest.approx((before["p_left"] + before["p_right"]).to_numpy(), nan_ok=True)
    assert (after["class"][said] == np.where(after["p_side"] > after["p_middle"], "side", "middle")[said]).all()
    assert after["class"][~said].isna().all()
    assert after["probability"][said].to_numpy() == pytest.approx(after[["p_side", "p_middle"]].max(axis=1)[said])


def test_what_cannot_be_predicted_is_told(make_work, trained, strangers, tmp_path):
    with pytest.raises(ConfigError, match="has no model yet: label the first batch"):
        predict_files(make_work().settings, strangers, tmp_path / "said.csv")
    work = trained(name="other")
    with pytest.raises(ConfigError, match=r"wanted a \.csv or \.parquet file to write, got .*said\.xlsx"):
        predict_files(work.settings, strangers, tmp_path / "said.xlsx")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty: wanted an image, or a folder of images"):
        predict_files(work.settings, tmp_path / "empty", tmp_path / "said.csv")
    done = predict_files(work.settings, tmp_path / "nowhere.png", tmp_path / "said.csv")
    assert done.n_images == 0
    assert "nowhere.png: cannot be read: No such file" in str(done)


def test_no_file_is_written_over_and_no_cell_is_a_formula(make_work, tmp_path):
    work = make_work()
    (tmp_path / "labels.csv").write_text("uri,label\n")
    with pytest.raises(ConfigError, match=r"labels\.csv exists already"):
        write_labels(work.settings, tmp_path / "labels.csv")
    assert (tmp_path / "labels.csv").read_text() == "uri,label\n"
    table = pd.DataFrame({"class": ["=1+1", "-1", "cat", None], "p_-1": [-0.5, 0.5, 0.5, None]})
    results._write(table, tmp_path / "said.csv")
    rows = (tmp_path / "said.csv").read_text().splitlines()
    assert rows == ["class,p_-1", "'=1+1,-0.5", "'-1,0.5", "cat,0.5", ","]


def test_labels_are_written_with_their_files(make_work, tmp_path):
    work = make_work()
    assert write_labels(work.settings, tmp_path / "labels.csv") == 24
    table = pd.read_csv(tmp_path / "labels.csv")
    assert list(table.columns) == ["uri", "label", "split", "source", "n_answers", "agreement", "item_id"]
    assert set(table["source"]) == {"manifest"}
    places = table["uri"].str.extract(r"(\d+)\.png")[0].astype(int)
    assert (table["label"] == [CLASSES[place % 3] for place in places]).all()


def test_labels_of_a_class_that_is_gone_are_told_with_the_way_out(make_work, tmp_path):
    work = make_work()
    fewer = work.settings.model_copy(update={"classes": ("left", "middle")})
    with pytest.raises(CampaignChanged, match=r"8 of 'right'.*write \[renamed\] \"right\" = "):
        write_labels(fewer, tmp_path / "labels.csv")


def test_label_of_a_row_that_left_with_its_class_stops_nothing(make_work, tmp_path):
    work = make_work()
    pool = work.pool.table
    reasons = pool["set_aside_reason"].mask(pool["label"] == "right", "no longer in the manifest")
    work.folder.write(POOL, PoolTable(pool.assign(set_aside_reason=reasons)))
    fewer = work.settings.model_copy(update={"classes": ("left", "middle")})
    assert write_labels(fewer, tmp_path / "labels.csv") == 16
