"""Kinds of regions as Label Studio writes and reads them: page, guess, answer."""

import base64
import io
import json
import random
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy
from PIL import ExifTags, Image

from connectors.annotation import Question, check_questions
from connectors.images.shown import size_shown
from connectors.label_studio import tasks as label_studio_tasks
from connectors.label_studio.kinds.kind import KEYS_BESIDE_TOOLS, LeftOut
from connectors.label_studio.kinds.masks import decode_runs
from connectors.label_studio.kinds.table import kind_of, kind_on
from connectors.label_studio.pages import (
    guess_of_size,
    hotkeys,
    labelling_page,
    page_differences,
    page_with_classes,
    task_to_import,
)
from connectors.label_studio.reading import HeldTask, read_answer
from connectors.mistakes import Mistakes, with_mistakes
from pipeline.masks import mask_from_png, mask_to_png
from pipeline.types import ONE_CLASS, Ask, AskFor, Region, Size, mask_size

CLASSES = ("cat", "dog")
SIZE = Size(40, 30)
ASK = Ask("i", 0, "seed")
BOX = AskFor("box", several=True)
POLYGON = AskFor("polygon", several=True)
MASK = AskFor("mask", several=True)
SEVERAL = AskFor("image", several=True)
ALL = [SEVERAL, BOX, POLYGON, MASK]
LABELS = st.sampled_from(CLASSES)
BOXES = st.builds(
    lambda label, x, y, width, height: Region(
        "box", label, (x / 40, y / 30, min(40, x + width) / 40, min(30, y + height) / 30), score=0.5
    ),
    *(LABELS, st.integers(0, 39), st.integers(0, 29), st.integers(1, 40), st.integers(1, 30)),
)
TRIANGLES = st.builds(
    lambda label, x, y, width, height: Region("polygon", label, (x, y, x + width, y, x, y + height)),
    *(LABELS, st.floats(0, 0.5), st.floats(0, 0.5), st.floats(0.1, 0.5), st.floats(0.1, 0.5)),
)
MASKS = st.builds(
    lambda label, mask: Region("mask", label, mask=mask_to_png(mask), score=0.25),
    LABELS,
    of_numpy.arrays(np.bool_, (30, 40)).filter(np.any),
)
TICKS = st.lists(LABELS, unique=True).map(lambda labels: [Region("image", label) for label in labels])
REGIONS = {SEVERAL: TICKS, BOX: st.lists(BOXES), POLYGON: st.lists(TRIANGLES), MASK: st.lists(MASKS, max_size=2)}
NOTHING = {"from_name": "nothing", "to_name": "image", "type": "choices", "value": {"choices": ["nothing here"]}}


def read(asks, *result, size=SIZE, **changes):
    annotation = {"id": 7, "result": list(result), "completed_by": 1, "updated_at": "2026-01-02T03:04:05Z"}
    return read_answer(annotation | changes, ask=ASK, task_id=3, classes=CLASSES, emails={}, asks=asks, size=size)


def guess_of(asks, regions, **options):
    question = Question(ASK, "a.png", 0, tuple(regions))
    task = task_to_import(question, image="/a.png", version="m", n_ranks=1, asks=asks, **options)
    return json.loads(json.dumps(task))


def box(label="cat", x=10, y=10, width=20, height=20, **changes):
    labels = {} if label is None else {"rectanglelabels": [label] if isinstance(label, str) else label}
    type_ = "rectangle" if label is None else "rectanglelabels"
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": 0} | labels
    return {
        "from_name": "label",
        "to_name": "image",
        "type": type_,
        "value": value | changes.pop("value", {}),
    } | changes


def polygon(*points, closed=True):
    value = {"points": [[*point] for point in points], "closed": closed, "polygonlabels": ["cat"]}
    return {"from_name": "label", "to_name": "image", "type": "polygonlabels", "value": value}


def mask(pixels, label="cat", **changes):
    """As a page gives a person's strokes: a picture in black, by its alpha."""
    picture = np.zeros((*pixels.shape, 4), dtype=np.uint8)
    picture[..., 3] = pixels
    return picture_part(Image.fromarray(picture), label, **changes)


def picture_part(picture, label="cat", **changes):
    file = io.BytesIO()
    picture.save(file, format="PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    value = {"imageDataURL": url, "bitmasklabels": [label]}
    return {"from_name": "label", "to_name": "image", "type": "bitmasklabels", "value": value} | changes


def brush(runs, label="cat", **changes):
    value = {"format": "rle", "rle": runs, "brushlabels": [label]}
    return {"from_name": "label", "to_name": "image", "type": "brushlabels", "value": value} | changes


class TestPages:
    @pytest.mark.parametrize("asks", ALL)
    def test_a_page_asks_for_its_kind_and_for_nothing_and_shows_image_and_reasons(self, asks):
        page = ElementTree.fromstring(labelling_page(CLASSES, asks))
        control, nothing, header, image = page
        assert (control.tag, control.get("name")) == (kind_of(asks).tag, "label")
        assert [option.get("value") for option in control] == list(CLASSES)
        assert (nothing.get("name"), nothing[0].get("value")) == ("nothing", kind_of(asks).nothing)
        assert nothing.get("required") is None, "an empty submit is an answer of its own"
        assert (header.get("value"), image.get("value")) == ("$reasons", "$image")

    def test_boxes_cannot_be_turned_and_small_objects_can_be_seen(self):
        control, _, _, image = ElementTree.fromstring(labelling_page(CLASSES, BOX))
        assert control.get("canRotate") == "false"
        assert (image.get("maxWidth"), image.get("zoom"), image.get("rotateControl")) == (None, "true", "false")

    @pytest.mark.parametrize("asks", [BOX, POLYGON, MASK])
    def test_classes_have_colours_and_keys_that_no_tool_has(self, asks):
        classes = [*CLASSES, *(f"class {n}" for n in range(40)), "0", "b", "r"]
        options = list(ElementTree.fromstring(labelling_page(classes, asks))[0])
        keys = [option.get("hotkey") for option in options if option.get("hotkey")]
        assert len({option.get("background") for option in options}) == len(classes)
        assert len(set(keys)) == len(keys) == len(KEYS_BESIDE_TOOLS)
        assert not set(keys) & set("0behkmopruvw[]")

    def test_the_key_of_nothing_is_nobody_elses(self):
        assert "0" not in hotkeys([str(digit) for digit in range(10)], kind_of(SEVERAL).keys).values()
        assert hotkeys([str(digit) for digit in range(10)])["0"] == "0", "where one class is asked for, it is free"

    @pytest.mark.parametrize("asks", ALL)
    def test_classes_that_were_renamed_and_merged_keep_their_stored_names_and_their_colours(self, asks):
        page = labelling_page(["cat", "dog", "puppy"], asks)
        changed = ElementTree.fromstring(
            page_with_classes(
                page, ["hound", "feline", "fox"], {"cat": "feline", "dog": "hound", "puppy": "hound"}, asks
            )
        )
        shown = {option.get("value"): option for option in changed[0].iter(kind_of(asks).option)}
        assert [shown[name].get("alias") for name in ("hound", "feline", "fox")] == ["dog", "cat", None]
        assert shown["puppy"] in list(changed[0].find("View"))
        assert shown["puppy"].get("background") == shown["hound"].get("background")

    @pytest.mark.parametrize("asks", ALL)
    @pytest.mark.parametrize("other", [ONE_CLASS, *ALL])
    def test_a_page_of_another_kind_differs(self, asks, other):
        differences = page_differences(
            controls_of(labelling_page(CLASSES, other)), labelling_page(CLASSES, other), asks
        )
        assert bool(differences) is (asks != other)

    def test_each_page_is_known_by_its_controls(self):
        for asks in (ONE_CLASS, *ALL):
            kind = kind_of(asks)
            assert kind_on(kind.tag, can_be_none=kind.nothing is not None) is kind
        assert kind_on("Ranker", can_be_none=True) is None


def controls_of(page):
    """What a server tells of a page."""
    return {
        control.get("name"): {
            "type": control.tag,
            "to_name": ["image"],
            "inputs": [{"type": "Image", "value": "image"}],
            "labels_attrs": {option.get("value"): option.attrib for option in control},
        }
        for control in ElementTree.fromstring(page)
        if control.get("toName")
    }


class TestRoundTrips:
    @pytest.mark.parametrize("asks", ALL)
    @settings(deadline=None)
    @given(data=st.data())
    def test_a_guess_that_is_submitted_comes_back_without_its_scores(self, asks, data):
        regions = data.draw(REGIONS[asks])
        result = guess_of(asks, regions, size=SIZE)["predictions"][0]["result"]
        assert not any("id" in part for part in result), "two regions of one id lose the place of one"
        answer = read(asks, *result)
        if not regions:
            assert answer.outcome == "empty"
            return
        found = answer.annotation.regions
        assert (answer.outcome, answer.message, len(found)) == ("labelled", "", len(regions))
        for asked, came in zip(regions, found, strict=True):
            assert (came.kind, came.label, came.score, came.mask) == (asked.kind, asked.label, None, asked.mask)
            if asked.geometry:
                assert np.abs(np.subtract(asked.geometry, came.geometry)).max() < 0.01 / 40

    @pytest.mark.parametrize("asks", ALL)
    def test_names_that_the_page_keeps_are_written(self, asks):
        [region] = [one for one in SAMPLES[asks] if one.label == "cat"]
        [part] = kind_of(asks).write([region], {"cat": "feline"})
        assert "feline" in str(part["value"])
        answer = read_answer(
            {"id": 7, "result": [part], "updated_at": "2026-01-02T03:04:05Z"},
            **{"ask": ASK, "task_id": 3, "classes": CLASSES, "emails": {}, "asks": asks},
            renamed={"feline": "cat"},
        )
        assert answer.annotation.regions[0].label == "cat"

    def test_a_task_knows_the_size_of_its_image_where_it_matters(self):
        assert HeldTask(id=1, data=guess_of(BOX, [], size=SIZE)["data"]).size == SIZE
        assert HeldTask(id=1, data=guess_of(ONE_CLASS, [])["data"]).size is None
        assert HeldTask(id=1, data={"width": "40", "height": 30}).size is None


FULL = np.full((30, 40), 255, dtype=np.uint8)
SAMPLES = {
    SEVERAL: [Region("image", "cat")],
    BOX: [Region("box", "cat", (0.1, 0.1, 0.5, 0.5))],
    POLYGON: [Region("polygon", "cat", (0.1, 0.1, 0.5, 0.1, 0.1, 0.5))],
    MASK: [Region("mask", "cat", mask=mask_to_png(FULL > 0))],
}


class TestAnswers:
    @pytest.mark.parametrize("asks", ALL)
    def test_nothing_is_only_what_somebody_ticked(self, asks):
        sample = kind_of(asks).write(SAMPLES[asks], {})
        comment = {"from_name": "comment", "to_name": "image", "type": "textarea", "value": {"text": ["blurred"]}}
        ticked = read(asks, NOTHING)
        assert (ticked.outcome, ticked.annotation.regions) == ("labelled", ())
        assert read(asks).outcome == read(asks, comment).outcome == "empty"
        assert read(asks, NOTHING | {"value": {"choices": []}}).outcome == "empty"
        both = read(asks, *sample, NOTHING)
        assert both.outcome == "invalid"
        assert "is ticked, and there is something" in both.message
        assert read(asks, comment, *sample).outcome == "labelled"
        assert read(asks, *sample, was_cancelled=True).outcome == "skipped"

    @pytest.mark.parametrize(
        ("part", "message"),
        [
            (box(value={"rotation": 30}), "box 2 (cat) is turned by 30 degrees: draw it upright"),
            (box(image_rotation=90), "box 2 (cat) was drawn on an image that was turned by 90 degrees"),
            (box(None), "box 2 has no label"),
            (box([]), "box 2 has no label"),
            (box(["cat", "dog"]), "box 2 has 2 labels, cat, dog"),
            (box([5]), "box 2: wanted the name of a class, got [5]"),
            (box(x=None), 'box 2 (cat) has no place: {"x": null'),
            (box(width=float("nan")), "box 2 (cat) has no place"),
            (box(type="ellipselabels"), "box 2: wanted label of type rectanglelabels, got ellipselabels"),
            (box(type=["x"]), 'box 2: wanted label of type rectanglelabels, got ["x"]'),
            ({"from_name": "label", "type": "rectanglelabels", "value": 5}, "box 2: wanted label of type"),
        ],
    )
    def test_a_box_that_cannot_be_understood_makes_the_answer_invalid_and_is_named(self, part, message):
        answer = read(BOX, box(), part)
        assert (answer.outcome, answer.annotation) == ("invalid", None)
        assert answer.message.startswith(message)

    @pytest.mark.parametrize(
        ("part", "message"),
        [
            (box("owl"), "box 2: 'owl' is not a class of this campaign"),
            (box(x=120), "box 2 (cat) is outside of the image, or has no size"),
            (box(width=0), "box 2 (cat) is outside of the image, or has no size"),
            (box(height=-3), "box 2 (cat) is outside of the image, or has no size"),
            (box(width=1), "box 2 (cat) is smaller than a pixel"),
        ],
    )
    def test_a_box_that_is_none_is_left_out_and_named_and_the_rest_is_kept(self, part, message):
        answer = read(BOX, box(), part)
        assert (answer.outcome, answer.message) == ("labelled", f"left out: {message}")
        assert [region.geometry for region in answer.annotation.regions] == [pytest.approx((0.1, 0.1, 0.3, 0.3))]
        alone = read(BOX, part)
        assert (alone.outcome, alone.message) == ("invalid", message.replace("box 2", "box 1"))

    def test_a_box_over_the_edge_ends_there(self):
        answer = read(BOX, box(x=-10, y=90, width=30, height=20))
        assert answer.annotation.regions[0].geometry == pytest.approx((0.0, 0.9, 0.2, 1.0))

    def test_what_a_browser_says_of_the_image_is_believed(self):
        assert read(BOX, box(width=1), size=SIZE).outcome == "invalid"
        assert read(BOX, box(width=1, original_width=4000, original_height=3000), size=SIZE).outcome == "labelled"
        assert read(BOX, box(width=1), size=None).outcome == "labelled"

    def test_where_one_box_is_asked_for_two_are_too_many(self):
        one = AskFor("box", several=False)
        assert read(one, box()).outcome == "labelled"
        assert read(one, box(), box("dog")).message == "wanted one box, got 2"

    def test_many_problems_are_told_in_one_line(self):
        answer = read(BOX, *[box(None)] * 5)
        assert answer.message == "box 1 has no label; box 2 has no label; box 3 has no label; and 2 more"

    @pytest.mark.parametrize(
        ("part", "message"),
        [
            (polygon((0, 0), (50, 50), (50, 0), (0, 50)), "crosses itself: draw two"),
            (polygon((0, 0), (50, 0), (50, 50), closed=False), "is not closed: click on its first corner"),
            (polygon((0, 0), (50, 0)), "is outside of the image, or has no size"),
            (polygon((0, 0), (50, 50), (80, 80)), "is outside of the image, or has no size"),
            (polygon((110, 0), (120, 0), (120, 9)), "is outside of the image, or has no size"),
            (polygon((0, 0), (1, 0), (1, 1)), "is smaller than a pixel"),
            (polygon((0, 0), (1, None), (1, 1)), "has corners that are no numbers"),
            (polygon((0, 0), (1, 1, 1), (1, 1)), "has no corners"),
        ],
    )
    def test_a_polygon_that_cannot_be_used_is_named(self, part, message):
        answer = read(POLYGON, part)
        assert answer.outcome == "invalid"
        assert answer.message.startswith(f"polygon 1 (cat) {message}")

    def test_corners_that_were_clicked_twice_are_one(self):
        answer = read(POLYGON, polygon((0, 0), (0, 0), (50, 0), (50, 50), (50, 50), (0, 0)))
        assert answer.annotation.regions[0].geometry == (0.0, 0.0, 0.5, 0.0, 0.5, 0.5)

    def test_ticks_of_unknown_classes_are_left_out_and_the_rest_is_kept(self):
        def ticks(*labels, **changes):
            value = {"choices": [*labels]}
            return {"from_name": "label", "to_name": "image", "type": "choices", "value": value} | changes

        answer = read(SEVERAL, ticks("dog", "owl", "cat", "dog"))
        assert [region.label for region in answer.annotation.regions] == ["dog", "cat"]
        assert (answer.outcome, answer.message) == ("labelled", "left out: 'owl' is not a class of this campaign")
        assert read(SEVERAL, ticks("owl")).message == "'owl' is not a class of this campaign"
        assert read(SEVERAL, ticks(5)).message == 'wanted the name of a class, got {"choices": [5]}'
        assert read(SEVERAL, ticks("cat", type="rating")).outcome == "invalid"

    @pytest.mark.parametrize("asks", ALL)
    @settings(deadline=None)
    @given(data=st.data())
    def test_whatever_stands_in_a_part_is_an_answer(self, asks, data):
        junk = (
            st.none()
            | st.booleans()
            | st.floats()
            | st.text(max_size=3)
            | st.lists(st.integers() | st.text(), max_size=3)
        )
        [sample] = kind_of(asks).write(SAMPLES[asks], {})
        value = {key: data.draw(st.just(given) | junk) for key, given in sample["value"].items()}
        more = {key: data.draw(junk) for key in ("original_width", "original_height", "image_rotation")}
        answer = read(asks, sample | {"value": value} | more)
        assert answer.outcome in ("labelled", "invalid", "empty")
        assert (answer.outcome == "invalid") <= bool(answer.message)


class TestMasks:
    def test_what_is_more_opaque_than_half_belongs_to_a_mask(self):
        alpha = np.arange(1200).reshape(30, 40) % 256
        [region] = read(MASK, mask(alpha)).annotation.regions
        assert np.array_equal(mask_from_png(region.mask), alpha > 127)

    @pytest.mark.parametrize("size", [None, SIZE])
    def test_a_mask_of_another_size_is_refused(self, size):
        part = mask(FULL.T, original_width=40, original_height=30)
        answer = read(MASK, mask(FULL, "dog"), part, size=size)
        assert [region.label for region in answer.annotation.regions] == ["dog"]
        assert answer.message == (
            "left out: mask 2 (cat) has 30 x 40 pixels, and its image 40 x 30: it is in the wrong place. Draw it again"
        )

    @pytest.mark.parametrize(
        ("part", "message"),
        [
            (mask(np.zeros((30, 40))), "mask 1 (cat) has no pixel"),
            (picture_part(Image.new("L", SIZE, 255)), "mask 1 (cat) has no transparent part"),
            (picture_part(Image.new("LA", (10_000, 10_000))), "mask 1 (cat) has 10000 x 10000 pixels, more than"),
            (mask(FULL) | {"value": {"bitmasklabels": ["cat"]}}, "mask 1 (cat) has no picture"),
            (
                mask(FULL) | {"value": {"imageDataURL": "data:image/png;base64,xx$", "bitmasklabels": ["cat"]}},
                "mask 1 (cat) has a picture that cannot be read",
            ),
            (
                mask(FULL) | {"value": {"imageDataURL": "data:image/png;base64,R0lG", "bitmasklabels": ["cat"]}},
                "mask 1 (cat) cannot be read",
            ),
            (brush([]), "mask 1 (cat) cannot be read"),
            (brush([0] * 20), "mask 1 (cat) was painted on an image of another size"),
            (brush([1, 2.5]), "mask 1 (cat) cannot be read: bytes are wanted"),
            (brush(None), "mask 1 (cat) has no run lengths"),
        ],
    )
    def test_a_mask_that_cannot_be_used_is_named(self, part, message):
        answer = read(MASK, part)
        assert answer.outcome == "invalid"
        assert answer.message.startswith(message)

    @settings(deadline=None)
    @given(of_numpy.arrays(np.uint8, (6, 5), elements=st.sampled_from([0, 100, 140, 255])), st.randoms())
    def test_what_a_brush_painted_is_read(self, alpha, rng):
        values = np.zeros((6, 5, 4), dtype=np.uint8)
        values[..., 3] = alpha
        assert np.array_equal(decode_runs(slow_runs(values.flatten().tolist(), rng), 120), values.flatten())
        answer = read(MASK, brush(slow_runs(values.flatten().tolist(), rng)), size=Size(5, 6))
        if (alpha > 127).any():
            assert np.array_equal(mask_from_png(answer.annotation.regions[0].mask), alpha > 127)
        else:
            assert answer.message == "mask 1 (cat) has no pixel"

    def test_runs_that_end_early_or_are_of_another_image_are_refused(self):
        runs = slow_runs([7, 7, 7, 1, 2, 3, 4, 5], random.Random(0))
        with pytest.raises(ValueError, match="end early"):
            decode_runs(runs[:-2], 8)
        with pytest.raises(LeftOut, match="another size"):
            decode_runs(runs, 16)

    def test_a_guess_has_masks_as_large_as_the_image_that_people_see(self):
        left = np.tile(np.arange(16) < 8, (16, 1))
        masks = tuple(Region("mask", name, mask=mask_to_png(left), score=0.5) for name in ("cat", "dog"))
        guess = guess_of_size(Question(ASK, "a.png", 0, masks), SIZE).guess
        assert [(one.label, one.score, mask_size(one.mask)) for one in guess] == [
            ("cat", 0.5, SIZE),
            ("dog", 0.5, SIZE),
        ]
        assert all(np.array_equal(mask_from_png(one.mask), np.tile(np.arange(40) < 20, (30, 1))) for one in guess)
        fitting = Question(ASK, "a.png", 0, tuple(SAMPLES[MASK]))
        assert guess_of_size(fitting, SIZE) == fitting

    @pytest.mark.parametrize("orientation", [1, 6])
    def test_a_guess_lies_on_the_picture_as_it_is_turned_upright(self, tmp_path, orientation):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg", exif=exif)
        corner = Region("mask", "cat", mask=mask_to_png(np.tri(2, dtype=bool)))
        size = Size(*size_shown(str(tmp_path / "a.jpg")))
        [seen] = guess_of_size(Question(ASK, "a.jpg", 0, (corner,)), size).guess
        height, width = (60, 40) if orientation == 6 else (40, 60)
        wanted = np.tri(2, dtype=bool).repeat(height // 2, axis=0).repeat(width // 2, axis=1)
        assert np.array_equal(mask_from_png(seen.mask), wanted)

    def test_a_mask_is_no_guess_for_an_image_whose_size_nobody_knows(self):
        question = Question(ASK, "s3://bucket/a.png", 0, tuple(SAMPLES[MASK]))
        assert guess_of_size(question, None).guess is None
        for guess in (tuple(SAMPLES[BOX]), (), None):
            assert guess_of_size(replace(question, guess=guess), None).guess == guess


def slow_runs(values, rng) -> list[int]:
    """Run lengths as the textbook writes them, bit after bit; runs and plain records as chance has it."""
    widths = [3, 4, 8, 16]
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{width - 1:04b}" for width in widths)
    place = 0
    while place < len(values):
        which = rng.randrange(4)
        longest = min(2 ** widths[which], len(values) - place)
        run = next((n for n in range(1, longest) if values[place + n] != values[place]), longest)
        if rng.random() < 0.5:
            bits += f"1{which:02b}{run - 1:0{widths[which]}b}{values[place]:08b}"
            place += run
        else:
            n = rng.randint(1, min(longest, 5))
            bits += f"0{which:02b}{n - 1:0{widths[which]}b}" + "".join(f"{v:08b}" for v in values[place : place + n])
            place += n
    bits += "0" * (-len(bits) % 8)
    return [int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)]


class TestChecks:
    @pytest.mark.parametrize(
        ("asks", "guess", "complaint"),
        [
            (ONE_CLASS, SAMPLES[BOX], "must be for the whole image, got a region of kind 'box'"),
            (BOX, SAMPLES[SEVERAL], "must be for a box, got a region of kind 'image'"),
            (BOX, [Region("box", "owl", (0.0, 0.0, 1.0, 1.0))], "must be one of cat, dog for a box, got 'owl'"),
            (ONE_CLASS, [Region("image", "cat"), Region("image", "dog")], "must be one label, got cat, dog"),
            (SEVERAL, [Region("image", "cat"), Region("image", "cat")], "has a label twice"),
            (
                POLYGON,
                [Region("polygon", "cat", (0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 1.0))],
                "is a polygon that crosses",
            ),
        ],
    )
    def test_a_guess_that_was_not_asked_for_is_refused(self, asks, guess, complaint):
        with pytest.raises(ValueError, match=f"item i: a guess {complaint}"):
            check_questions([Question(ASK, "a.png", 0, tuple(guess))], CLASSES, asks)

    @pytest.mark.parametrize("asks", ALL)
    def test_a_guess_that_was_asked_for_is_taken(self, asks):
        check_questions([Question(ASK, "a.png", 0, tuple(SAMPLES[asks]))], CLASSES, asks)

    def test_large_guesses_are_sent_in_smaller_chunks(self, monkeypatch):
        monkeypatch.setattr(label_studio_tasks, "CHUNK", 3)
        monkeypatch.setattr(label_studio_tasks, "CHUNK_BYTES", 100)
        contents = [{"task": place, "mask": "x" * n} for place, n in enumerate([1, 1, 1, 1, 60, 60, 500, 1])]
        chunks = list(label_studio_tasks._chunks(contents))
        assert [one for chunk in chunks for one in chunk] == contents
        assert [len(chunk) for chunk in chunks] == [3, 1, 1, 1, 1, 1]


class TestMistakes:
    @pytest.mark.parametrize("asks", ALL)
    def test_nobody_errs_unless_told(self, asks):
        regions = tuple(SAMPLES[asks])
        assert with_mistakes(regions, Mistakes(), asks.kind, CLASSES, random.Random(0)) == regions

    @pytest.mark.parametrize("asks", ALL)
    def test_regions_are_dropped_added_and_named_otherwise(self, asks):
        regions, rng = tuple(SAMPLES[asks]), random.Random(0)
        assert with_mistakes(regions, Mistakes(drop_rate=1.0), asks.kind, CLASSES, rng) == ()
        [wrong] = with_mistakes(regions, Mistakes(relabel_rate=1.0), asks.kind, CLASSES, rng)
        assert (wrong.label, wrong.geometry, wrong.mask) == ("dog", regions[0].geometry, regions[0].mask)
        first, added = with_mistakes(regions, Mistakes(add_rate=1.0), asks.kind, CLASSES, rng, size=SIZE)
        assert (first, added.kind) == (regions[0], asks.kind)
        assert read(asks, *kind_of(asks).write([added], {})).outcome == "labelled"

    @settings(deadline=None)
    @given(BOXES | TRIANGLES, st.integers(0, 99))
    def test_what_is_shifted_keeps_its_size_and_stays_near(self, region, seed):
        mistakes = Mistakes(shift=0.2)
        [moved] = with_mistakes([region], mistakes, region.kind, CLASSES, random.Random(seed))
        for axis in (0, 1):
            before, after = np.array(region.geometry[axis::2]), np.array(moved.geometry[axis::2])
            assert np.ptp(after) == pytest.approx(np.ptp(before))
            assert np.abs(after - before).max() <= 0.2 * np.ptp(before) + 1e-9

    def test_a_mask_is_shifted_by_pixels(self):
        pixels = np.zeros((30, 40), dtype=bool)
        pixels[10:20, 10:20] = True
        moves = set()
        for seed in range(9):
            region = Region("mask", "cat", mask=mask_to_png(pixels))
            [moved] = with_mistakes([region], Mistakes(shift=0.3), "mask", CLASSES, random.Random(seed))
            ys, xs = mask_from_png(moved.mask).nonzero()
            assert (len(xs), np.ptp(xs), np.ptp(ys)) == (100, 9, 9)
            moves.add((xs.min() - 10, ys.min() - 10))
        assert len(moves) > 3
        assert np.abs(list(moves)).max() <= 3

    def test_rates_are_shares(self):
        with pytest.raises(ValueError, match=r"drop_rate must be in \[0, 1\], got 2"):
            Mistakes(drop_rate=2)
