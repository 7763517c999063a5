import numpy as np
import pandas as pd
from PIL import Image

from flows.replay.command import replay_strategies
from tests.flows.replay.conftest import options_of, options_of_images


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
    summary = replay_strategies(options_of_images(folder, tmp_path / "out", seeds=10, rounds=2))
    assert summary["notes"][0] == "80 of 120 files are copies of others, to the last byte: an image counts once"
    assert pd.read_parquet(tmp_path / "out" / "labels.parquet")["file"].tolist() == [
        f"{n:02d}-0.png" for n in range(40)
    ]
    assert 0.3 < summary["full_data"]["mean"] < 0.7, "noise cannot be learnt; with copies it was 83 %"


def test_copies_with_different_labels_are_set_aside_and_named(tmp_path):
    folder = copies(tmp_path, labels=["ab", "aab", *["a", "b"] * 20])
    summary = replay_strategies(options_of_images(folder, tmp_path / "out"))
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
    summary = replay_strategies(options_of_images(folder, tmp_path / "out"))
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
    plain = replay_strategies(options_of(digits, tmp_path / "plain", **how))
    doubled = replay_strategies(options_of(tmp_path, tmp_path / "doubled", **how))
    assert doubled["notes"] == [
        "7 of 307 rows of features are copies of others, to the last byte: an image counts once"
    ]
    assert doubled["curves"] == plain["curves"]
