"""What a registered model takes, and what it gives."""

import io
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from connectors.mlflow.loader import Ensemble
from connectors.mlflow.saved_model import columns_of
from pipeline.networks.build import build_model
from pipeline.tasks import multi_label

CLASSES = ("ant", "class", "probability")


@pytest.fixture(scope="module")
def ensemble():
    networks = [build_model("small_cnn", n_classes=3, image_size=8, channels=3, weights=None, seed=s) for s in (0, 1)]
    return Ensemble(networks, classes=CLASSES, image_size=8, channels=3)


@pytest.fixture(scope="module")
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8))


@pytest.fixture
def path(picture, tmp_path):
    picture.save(tmp_path / "a picture.png")
    return tmp_path / "a picture.png"


def as_bytes(picture):
    content = io.BytesIO()
    picture.save(content, "PNG")
    return content.getvalue()


FORMS = {
    "a path": lambda picture, path: str(path),
    "a Path": lambda picture, path: path,
    "bytes": lambda picture, path: as_bytes(picture),
    "a picture": lambda picture, path: picture,
    "an array": lambda picture, path: np.asarray(picture),
    "channels first": lambda picture, path: np.asarray(picture).transpose(2, 0, 1),
    "floats": lambda picture, path: np.asarray(picture) / 255,
    "a tensor": lambda picture, path: torch.from_numpy(np.array(picture)),
    "a list": lambda picture, path: [path],
    "a column": lambda picture, path: pd.Series([str(path)]),
    "a table": lambda picture, path: pd.DataFrame({"image": [str(path)]}),
    "a batch": lambda picture, path: np.asarray(picture)[None],
    "an array of paths": lambda picture, path: np.array([str(path)]),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_an_image_is_the_same_in_whatever_form_it_is_given(form, ensemble, picture, path):
    said = ensemble.predict(form(picture, path))
    wanted = ensemble.predict([str(path)])
    assert list(said.columns) == ["class", "probability", "p_ant", "p_class", "p_probability"]
    pd.testing.assert_frame_equal(said, wanted)
    row = said.iloc[0]
    assert row["probability"] == row[f"p_{row['class']}"] == row[["p_ant", "p_class", "p_probability"]].max()
    assert row[["p_ant", "p_class", "p_probability"]].sum() == pytest.approx(1, abs=1e-6)


def test_images_of_any_size_keep_their_order(ensemble):
    colours = np.random.default_rng(1).integers(0, 256, (600, 3), dtype=np.uint8)
    images = [np.broadcast_to(colour, (10 + place % 7, 9, 3)).copy() for place, colour in enumerate(colours)]
    together = ensemble.predict(images)
    assert len(together) == 600
    for place in (0, 255, 256, 599):
        pd.testing.assert_frame_equal(ensemble.predict(images[place]), together.iloc[[place]].reset_index(drop=True))


def test_a_photograph_is_turned_upright(ensemble, tmp_path):
    half_black = Image.fromarray(np.repeat(np.uint8([0, 255]), 8 * 16 * 3).reshape(16, 16, 3))
    exif = Image.Exif()
    exif[274] = 6
    half_black.save(tmp_path / "turned.png", exif=exif)
    upright = ensemble.predict(half_black.transpose(Image.Transpose.ROTATE_270))
    with Image.open(tmp_path / "turned.png") as turned:
        for form in (str(tmp_path / "turned.png"), turned):
            pd.testing.assert_frame_equal(ensemble.predict(form), upright, atol=1e-5)
    assert not np.allclose(ensemble.predict(half_black)["p_ant"], upright["p_ant"], atol=1e-3)


def test_nothing_gives_an_empty_table(ensemble):
    assert ensemble.predict([]).empty


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (3, "wanted images: paths, bytes, pictures, arrays"),
        ([3], "image 0: wanted a path, bytes, a picture or an array"),
        (pd.DataFrame({"a": [1], "b": [2]}), "one column, this one has a, b"),
        (np.full((4, 4), 7.0), r"image 0: .* floats in \[0, 1\], got \(4, 4\) of float64"),
        ([np.zeros((4, 4), np.uint8), np.zeros((0, 3), np.uint8)], "image 1: "),
        ([b"no image"], "image 0: not an image"),
        (["nowhere.png"], "nowhere.png: cannot be read"),
    ],
)
def test_what_is_no_image_is_named(images, message, ensemble):
    with pytest.raises(ValueError, match=message):
        ensemble.predict(images)


def test_a_model_of_several_labels_gives_each_label_that_is_rather_there(ensemble, picture):
    several = replace(ensemble, task=multi_label)
    table = several.predict([picture, picture.rotate(90)])
    assert list(table.columns) == ["labels", *(f"p_{name}" for name in CLASSES)]
    for row in table.to_dict("records"):
        assert row["labels"] == ("|".join(name for name in CLASSES if row[f"p_{name}"] > 0.5) or "|")
    schema = columns_of({"task": "multi_label", "classes": list(CLASSES)})
    assert schema.input_names() == list(table.columns)
    assert [kind.name for kind in schema.input_types()] == ["string", "float", "float", "float"]
    assert columns_of({"classes": list(CLASSES)}).input_names()[:2] == ["class", "probability"], "as it was before"
