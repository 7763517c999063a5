"""Regions: what one must be like, as JSON, masks as PNG, outlines, colours."""

import io
import itertools
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy
from PIL import Image

from pipeline.colours import class_colours
from pipeline.masks import filled, mask_from_png, mask_to_png, pixels_of, resized
from pipeline.polygons import area, crosses_itself
from pipeline.regions import regions_from_json, regions_to_json
from pipeline.types import Region, mask_size

MASK = mask_to_png(np.eye(3, dtype=bool))
MASKS = of_numpy.arrays(np.bool_, st.tuples(st.integers(1, 20), st.integers(1, 40)))
SQUARE = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"kind": "image", "geometry": (0.0, 0.0, 1.0, 1.0)}, "do not go together"),
        ({"kind": "box"}, "do not go together"),
        ({"kind": "polygon", "mask": MASK}, "do not go together"),
        ({"kind": "mask"}, "a mask belongs to a region of kind 'mask'"),
        ({"kind": "image", "mask": MASK}, "a mask belongs to a region of kind 'mask'"),
        ({"kind": "box", "geometry": (0.1, 0.1, 1.2, 0.5)}, "fractions in"),
        ({"kind": "box", "geometry": (0.1, 0.1, float("nan"), 0.5)}, "fractions in"),
        ({"kind": "box", "geometry": (0.1, 0.1, 0.1, 0.5)}, "and a size"),
        ({"kind": "box", "geometry": (0.1, 0.1, 0.5)}, "and a size"),
        ({"kind": "polygon", "geometry": (0.1, 0.1, 0.5, 0.5)}, "three corners"),
        ({"kind": "polygon", "geometry": (0.1,) * 7}, "three corners"),
        ({"kind": "mask", "mask": b"GIF89a"}, "1 bit a pixel"),
        ({"kind": "mask", "mask": MASK[:20]}, "1 bit a pixel"),
    ],
)
def test_a_region_that_cannot_be_is_refused(fields, complaint):
    with pytest.raises(ValueError, match=complaint):
        Region(label="cat", **fields)


def test_regions_of_every_kind_come_back_from_json():
    regions = (
        Region("image", "cat", score=0.5),
        Region("box", "cät", (0.1, 0.2, 1 / 3, 1.0)),
        Region("polygon", "dog", (0.0, 0.0, 1.0, 0.0, 0.5, 1.0), 0.25),
        Region("mask", "dog", mask=MASK),
    )
    assert regions_from_json(regions_to_json(regions)) == regions
    assert regions_from_json(regions_to_json(())) == ()


@settings(deadline=None)
@given(MASKS)
def test_a_mask_comes_back_as_it_was_and_the_same_mask_is_the_same_file(mask):
    png = mask_to_png(mask)
    assert np.array_equal(mask_from_png(png), mask)
    assert mask_size(png) == mask.shape[::-1]
    assert mask_to_png(mask_from_png(png)) == png


@settings(deadline=None)
@given(MASKS)
def test_another_reader_finds_what_is_not_the_mask_transparent(mask):
    with Image.open(io.BytesIO(mask_to_png(mask))) as picture:
        assert (picture.format, picture.size) == ("PNG", mask.shape[::-1])
        assert np.array_equal(np.asarray(picture.convert("RGBA"))[..., 3], mask * np.uint8(255))


@pytest.mark.parametrize(
    "mask", [np.zeros((0, 3), dtype=bool), np.zeros((2, 2), dtype=np.uint8), np.ones(3, dtype=bool)]
)
def test_what_is_no_mask_is_not_written(mask):
    with pytest.raises(ValueError, match=r"a mask is \(H, W\) of bool"):
        mask_to_png(mask)


def test_a_damaged_or_foreign_mask_is_refused():
    large = mask_to_png(np.random.default_rng(0).random((60, 60)) < 0.5)
    with pytest.raises(ValueError, match="damaged"):
        mask_from_png(large[:120])
    with pytest.raises(ValueError, match="damaged"):
        mask_from_png(large.replace(zlib.compress(b"")[:2], b"xx"))
    file = io.BytesIO()
    picture = Image.fromarray(np.tri(64, dtype=np.uint8)).convert("P")
    picture.putpalette([0] * 6)
    picture.save(file, format="PNG", bits=1)
    assert np.array_equal(mask_from_png(file.getvalue()), np.tri(64, dtype=bool)), "rows stored plainly are read"


@settings(deadline=None)
@given(MASKS, st.integers(1, 50), st.integers(1, 50))
def test_a_mask_at_another_size_is_the_nearest_pixel_or_the_majority_along_each_axis(mask, width, height):
    def picks(length, size):
        """Which pixels of a row each new pixel is made of."""
        if size >= length:
            return [[int((place + 0.5) * length / size)] for place in range(size)]
        return [[old for old in range(length) if int((old + 0.5) * size / length) == place] for place in range(size)]

    rows, columns = picks(mask.shape[0], height), picks(mask.shape[1], width)
    slow = [[mask[np.ix_(row, column)].mean() >= 0.5 for column in columns] for row in rows]
    assert np.array_equal(resized(mask, width, height), slow)
    assert resized(mask, *mask.shape[::-1]) is mask


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=7, unique=True))
def test_a_polygon_holds_the_pixels_from_whose_centre_a_line_meets_its_outline_an_odd_number_of_times(points):
    corners = np.array(points) / 9
    edges = list(zip(points, [*points[1:], points[0]], strict=True))

    def is_inside(x, y):
        meets = [
            ax + (y - ay) / (by - ay) * (bx - ax) for (ax, ay), (bx, by) in edges if min(ay, by) <= y < max(ay, by)
        ]
        return sum(each <= x for each in meets) % 2 == 1

    slow = [[is_inside((column + 0.37) * 9 / 12, (row + 0.5) * 9 / 10) for column in range(12)] for row in range(10)]
    shifted = (corners * 12 + (0.13, 0)) / (12, 12)  # so that no centre lies on an edge but for rounding
    found = filled(np.stack([shifted[:, 0], corners[:, 1]], axis=1), 12, 10)
    assert np.array_equal(found, slow)


def test_a_polygon_as_pixels_is_a_mask_of_the_same_area():
    angles = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    corners = 0.5 + 0.4 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    pixels = pixels_of(Region("polygon", "cat", tuple(corners.flatten().tolist())), 300, 200)
    assert pixels.shape == (200, 300)
    assert pixels.mean() == pytest.approx(area(corners), abs=2e-3)
    assert np.array_equal(pixels_of(Region("mask", "cat", mask=mask_to_png(pixels)), 300, 200), pixels)
    with pytest.raises(ValueError, match="wanted a mask or a polygon, got a region of kind 'box'"):
        pixels_of(Region("box", "cat", (0.0, 0.0, 1.0, 1.0)), 3, 3)


@settings(deadline=None)
@given(*(st.floats(0.1, 9) for _ in range(4)))
def test_area_of_an_upright_rectangle_is_width_times_height(x, y, width, height):
    corners = np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])
    assert area(corners) == pytest.approx(width * height)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=7, unique=True))
def test_crossing_is_what_a_slow_look_at_all_pairs_of_edges_finds(points):
    corners = np.array(points, dtype=np.float64)
    edges = list(zip(points, [*points[1:], points[0]], strict=True))
    slow = any(cut(*first, *second) for first, second in itertools.combinations(edges, 2))
    assert crosses_itself(corners) is slow


def cut(a, b, c, d) -> bool:
    """Whether a point inside the edge a b lies inside the edge c d, and not along it."""

    def side(p, q, r):
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0


def test_a_square_does_not_cross_itself_and_a_bow_tie_does():
    assert not crosses_itself(SQUARE)
    assert crosses_itself(SQUARE[[0, 2, 1, 3]])


@pytest.mark.parametrize("n", [2, 19, 60])
def test_every_class_has_a_colour_of_its_own_that_later_classes_do_not_change(n):
    classes = [f"class {place}" for place in range(n)]
    colours = class_colours(classes)
    assert len(set(colours.values())) == n
    assert class_colours(classes[:2]) == {label: colours[label] for label in classes[:2]}
    assert all(len(colour) == 7 and int(colour[1:], 16) >= 0 for colour in colours.values())
