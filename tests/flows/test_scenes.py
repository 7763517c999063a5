"""Scenes whose answers are known, for every kind of region that people are asked for."""

import numpy as np
import pytest
from PIL import Image

from flows.scenes import CLASSES, HEIGHTS, MOST, SIDE, compose_scenes, write_scenes
from pipeline.masks import mask_from_png, mask_size


@pytest.fixture(scope="module")
def scenes():
    return compose_scenes(200, seed=0)


def test_the_same_seed_composes_the_same_scenes(scenes):
    for one, other in zip(compose_scenes(3, seed=0), scenes, strict=False):
        assert np.array_equal(one.pixels, other.pixels)
        assert one.names == other.names
    assert not np.array_equal(compose_scenes(1, seed=1)[0].pixels, scenes[0].pixels)


def test_some_scenes_are_empty_and_none_has_more_than_the_most(scenes):
    counts = np.bincount([len(scene.names) for scene in scenes])
    assert len(counts) == MOST + 1
    assert counts.min() > 20
    assert {name for scene in scenes for name in scene.names} == set(CLASSES)


def test_boxes_enclose_what_masks_cover_and_labels_name_it(scenes):
    for scene in scenes:
        assert [region.label for region in scene.regions("image")] == sorted(set(scene.names))
        masks = {region.label: mask_from_png(region.mask) for region in scene.regions("mask")}
        boxes = scene.regions("box")
        assert tuple(region.label for region in boxes) == scene.names
        rebuilt = {name: np.zeros((SIDE, SIDE), dtype=np.bool_) for name in masks}
        for box, mask in zip(boxes, scene.masks, strict=True):
            left, upper, right, lower = (round(SIDE * edge) for edge in box.geometry)
            inside = mask[upper:lower, left:right]
            assert inside.sum() == mask.sum(), "nothing is outside of the box"
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
            assert lower - upper <= HEIGHTS[1]
            rebuilt[box.label] |= mask
        assert all(np.array_equal(rebuilt[name], mask) for name, mask in masks.items())
        assert scene.masks.sum(axis=0, dtype=int).max(initial=0) <= 1, "no pixel belongs to two"


def test_digits_are_brighter_than_the_canvas(scenes):
    for scene in scenes:
        taken = scene.masks.any(axis=0)
        if taken.any():
            assert scene.pixels[taken].mean() > scene.pixels[~taken].mean() + 40


def test_scenes_are_written_once_and_read_as_they_are(scenes, tmp_path):
    told = []
    named = write_scenes(tmp_path / "images", scenes[:3], lambda *counts: told.append(counts))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert sorted(path.name for path in (tmp_path / "images").iterdir()) == list(named)
    for name, scene in named.items():
        with Image.open(tmp_path / "images" / name) as picture:
            assert np.array_equal(np.asarray(picture), scene.pixels)
        assert all(mask_size(region.mask) == (SIDE, SIDE) for region in scene.regions("mask"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "images").iterdir()}
    write_scenes(tmp_path / "images", scenes[:3], lambda *_: None)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "images").iterdir()}


def test_scenes_have_no_polygons(scenes):
    with pytest.raises(ValueError, match="no region of kind 'polygon'"):
        scenes[0].regions("polygon")
