"""The labelled sets as images in memory."""

import pytest
import torch
from PIL import Image

from benchmarks.labelled_sets import read_set
from pipeline.pool import load_images


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
