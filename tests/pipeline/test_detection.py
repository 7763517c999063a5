"""Boxes around objects: what people draw, what networks learn of it, how good they are at it."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional
from torchvision.ops import box_iou

from pipeline.evaluation.box_matching import OVERLAPS, Found, average_precision, box_precision, judge, rank
from pipeline.evaluation.metrics import wilson_interval
from pipeline.members.predict import predict_members
from pipeline.networks.build import build_model
from pipeline.regions import regions_from_json
from pipeline.tasks import detection
from pipeline.tasks.task_type import outputs_of
from pipeline.training.augmentation import AUGMENTATIONS
from pipeline.types import Region
from tests.pipeline.training import train

CLASSES = ("cat", "dog", "owl")


def box(label: str, *edges: float, score: float | None = None) -> Region:
    return Region("box", label, edges, score)


def targets_of(*images, classes=CLASSES):
    """Targets of images, each a list of boxes."""
    return detection.targets(images, classes)


def outputs_that_say(targets, side, n_classes=3, sure=8.0):
    """Outputs of a network that knows what it should tell, of every cell."""
    wanted = detection._wanted(targets, side)
    scores = sure * functional.one_hot(wanted[..., 0].long().clamp(min=0), 1 + n_classes).float()
    centres = detection._centres(side, targets)
    away = torch.cat([centres - wanted[..., 1:3], wanted[..., 3:] - centres], dim=2).clamp(min=1e-3)
    outputs = torch.cat([scores, (away / detection.USUAL).log()], dim=2)
    return outputs.transpose(1, 2).unflatten(2, (side, side))


def loss_of(outputs, targets, *how):
    return detection.loss(outputs, detection.wanted(targets, outputs), *how)


def drawn(n: int = 40, *, seed: int = 0, n_classes: int = 3, n_boxes: int = 12):
    """Boxes that know something of the objects in n images: moved, doubled, of another class, missed, added.

    Scores are rounded, so that some tie.
    """
    generator = np.random.default_rng(seed)
    labels, found = [], []
    for _ in range(n):
        start, size = generator.uniform(0, 0.7, (2, int(generator.integers(0, 6)))), generator.uniform(0.1, 0.3)
        objects = [(x, y, x + size, y + size * generator.uniform(0.5, 1)) for x, y in start.T]
        classes = generator.integers(n_classes, size=len(objects)).tolist()
        labels.append([box(CLASSES[k], *edges) for k, edges in zip(classes, objects, strict=True)])
        rows = []
        for _ in range(int(generator.integers(0, n_boxes))):
            if objects and generator.random() < 0.8:
                which = int(generator.integers(len(objects)))
                edges = np.array(objects[which]) + generator.normal(0, 0.01, 4)
                label = classes[which] if generator.random() < 0.8 else int(generator.integers(n_classes))
            else:
                edges, label = np.array([0.1, 0.2, 0.3, 0.5]) + generator.uniform(0, 0.4), 0
            rows.append((round(float(generator.random()), 1), label, *edges))
        rows.sort(key=lambda row: -row[0])
        table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 6)
        found.append(Found(table[:, 2:], table[:, 0], table[:, 1].long()))
    return found, detection.targets(labels, CLASSES)


def textbook_average_precision(found, targets, label, overlap, images):
    """One class at one overlap, box by box, as pycocotools counts it; an image may come several times.

    Of objects that a box overlaps as much as each other, pycocotools takes the last.
    """
    rows = []
    n_objects = 0
    for image in images:
        objects = [row[1:] for row in targets[image].double() if int(row[0]) == label]
        n_objects += len(objects)
        free = set(range(len(objects)))
        seen = found[image]
        for place, (edges, score, of) in enumerate(
            zip(seen.boxes, seen.scores.tolist(), seen.labels.tolist(), strict=True)
        ):
            if of != label:
                continue
            shared = {one: float(box_iou(edges[None], objects[one][None])) for one in sorted(free, reverse=True)}
            best = max(shared, key=lambda one: shared[one], default=None)
            is_hit = best is not None and shared[best] >= overlap
            free -= {best} if is_hit else set()
            rows.append((-score, image, place, is_hit))
    if not n_objects:
        return math.nan
    rows.sort(key=lambda row: row[:3])
    curve, n_right = [], 0
    for n_seen, (*_, is_hit) in enumerate(rows, start=1):
        n_right += is_hit
        curve.append((n_right / n_objects, n_right / n_seen))
    reached = [
        max((precision for recall, precision in curve if recall >= wanted), default=0.0)
        for wanted in np.linspace(0, 1, 101)
    ]
    return float(np.mean(reached))


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_is_that_of_a_slow_look_at_each_box(seed):
    found, targets = drawn(seed=seed)
    ranked = rank(found, targets, n_classes=3)
    everyone = torch.ones(1, len(found), dtype=torch.float64)
    for label, (place, overlap) in itertools.product(range(3), list(enumerate(OVERLAPS))[::3]):
        expected = textbook_average_precision(found, targets, label, overlap, range(len(found)))
        [value] = average_precision(ranked[label], ranked[label].is_hit[place], everyone).tolist()
        assert value == pytest.approx(expected, abs=1e-9)
        assert 0 < value < 1 or overlap > 0.75


def test_a_box_that_overlaps_two_objects_alike_has_the_later_one_as_in_pycocotools():
    targets = targets_of([box("cat", 0.0, 0.0, 0.25, 0.5), box("cat", 0.125, 0.0, 0.375, 0.5)])
    assert targets[0, :, 1].tolist() == [0.0, 0.125]
    between, first, last = [0.0625, 0.0, 0.3125, 0.5], [0.0, 0.0, 0.25, 0.5], [0.125, 0.0, 0.375, 0.5]
    for second, is_hit in ((first, True), (last, False)):
        seen = Found(torch.tensor([between, second]), torch.tensor([0.9, 0.8]), torch.tensor([0, 0]))
        assert judge(seen, targets[0])[0].tolist() == [True, is_hit]


def test_a_hundred_boxes_of_each_class_count_in_an_image():
    side = 24
    corners = detection._centres(side, torch.zeros(())).double() - 0.5 / side
    boxes = torch.cat([corners, corners + 1 / side], dim=1)[None]
    probs = torch.full((1, side * side, 4), 0.001)
    probs[0, torch.arange(side * side), 1 + torch.arange(side * side) % 4 % 3] = 0.9
    found = detection._found(probs[0], boxes[0].float())
    assert found.labels.bincount().tolist() == [100, 100, 100]
    assert [len(guess) for guess in detection.guess(probs, CLASSES, boxes.float())] == [detection.MOST]


def test_images_count_as_often_as_they_are_drawn():
    found, targets = drawn(12, seed=5)
    [ranked, *_] = rank(found, targets, n_classes=3)
    generator = np.random.default_rng(0)
    drawings = [sorted(generator.integers(12, size=12).tolist()) for _ in range(8)]
    weights = torch.tensor([np.bincount(images, minlength=12).tolist() for images in drawings], dtype=torch.float64)
    values = average_precision(ranked, ranked.is_hit[0], weights)
    for value, images in zip(values.tolist(), drawings, strict=True):
        assert value == pytest.approx(textbook_average_precision(found, targets, 0, 0.5, images), abs=1e-9)


def test_precision_over_classes_leaves_out_those_that_no_image_has():
    found, targets = drawn()
    targets[targets[..., 0] == 1] = torch.tensor([-1.0, 0, 0, 0, 0])
    precision = box_precision(rank(found, targets, n_classes=3))
    each = [textbook_average_precision(found, targets, label, 0.5, range(40)) for label in (0, 2)]
    assert precision.ap50 == pytest.approx(np.mean(each))
    assert precision.of_classes.isnan().tolist() == [False, True, False]
    all_overlaps = [
        textbook_average_precision(found, targets, label, overlap, range(40))
        for label, overlap in itertools.product((0, 2), OVERLAPS)
    ]
    assert precision.ap == pytest.approx(np.mean(all_overlaps))
    assert precision.low < precision.ap50 < precision.high
    assert precision.ap < precision.ap50
    assert precision.ap < precision.recall < 1


def test_interval_is_that_of_draws_with_replacement():
    found, targets = drawn(30, seed=3)
    precision = box_precision(rank(found, targets, n_classes=3))
    generator, everyone = np.random.default_rng(1), torch.ones(1, 30, dtype=torch.float64)
    values = []
    for _ in range(300):
        images = generator.integers(30, size=30)
        again = rank([found[image] for image in images], targets[images], n_classes=3)
        values.append(np.nanmean([float(average_precision(each, each.is_hit[0], everyone)) for each in again]))
    low, high = np.quantile(values, [0.025, 0.975])
    assert precision.low == pytest.approx(low, abs=0.03)
    assert precision.high == pytest.approx(high, abs=0.03)


def test_nothing_seen_has_no_precision_and_nothing_there_has_no_measure():
    targets = targets_of([box("cat", 0.1, 0.1, 0.5, 0.5)], [])
    blind = torch.tensor([1.0, 0, 0, 0]).expand(2, 16, 4)
    boxes = torch.tensor([0.0, 0, 1, 1]).expand(2, 16, 4)
    metrics = detection.measure(blind, targets, CLASSES, boxes)
    assert (metrics.value, metrics.low, metrics.high) == (0.0, 0.0, 0.0)
    assert metrics.by_class == {"AP50": {"cat": 0.0}}
    assert detection.measure(blind, targets_of([], []), CLASSES, boxes) is None
    with pytest.raises(ValueError, match=r"boxes need places \(n, U, 4\) = \(2, 16, 4\), got None"):
        detection.measure(blind, targets, CLASSES)


def test_targets_are_padded_rows_of_classes_and_edges():
    targets = targets_of([box("owl", 0.5, 0.0, 1.0, 0.25), box("cat", 0.0, 0.25, 0.5, 1.0)], [])
    assert targets.dtype == torch.float32
    assert targets.tolist() == [
        [[0, 0, 0.25, 0.5, 1], [2, 0.5, 0, 1, 0.25]],
        [[-1, 0, 0, 0, 0], [-1, 0, 0, 0, 0]],
    ]
    assert targets_of([]).shape == (1, 1, 5)
    assert targets_of().shape == (0, 1, 5)
    assert detection.class_counts(targets, 4).tolist() == [1.0, 0.0, 1.0, 0.0]


def test_targets_that_do_not_fit_are_refused():
    targets = targets_of([box("owl", 0.5, 0.0, 1.0, 0.25)], [])
    detection.check_targets(targets, 2, 3)
    high, broken, turned = targets.clone(), targets.clone(), targets.clone()
    high[0, 0, 3], broken[0, 0, 0] = 1.5, 0.5
    turned[0, 0, 1:] = torch.tensor([1.0, 0.0, 0.5, 0.25])
    for wrong, n in (
        (targets, 1),
        (targets[:0], 0),
        (targets[:, :0], 2),
        (targets[..., :4], 2),
        (targets.double(), 2),
        (targets - 1, 2),
        (targets + 1, 2),
        (high, 2),
        (broken, 2),
        (turned, 2),
    ):
        with pytest.raises(ValueError, match="targets"):
            detection.check_targets(wrong, n, 3)


def test_what_is_no_box_is_refused():
    whole = Region("image", "cat")
    for refuse in (
        lambda: targets_of([whole]),
        lambda: detection.consensus([(whole,)]),
        lambda: detection.write_label((whole,)),
        lambda: detection.read_label('[{"kind": "image", "label": "cat"}]'),
    ):
        with pytest.raises(ValueError, match="wanted boxes"):
            refuse()


def test_labels_of_a_manifest_come_back_as_they_were():
    regions = (box("cat", 0.1, 0.2, 0.3, 0.4), box("owl", 0.0, 0.0, 1.0, 1.0))
    for found in (regions, ()):
        assert detection.read_label(detection.write_label(found)) == found
    assert detection.write_label(()) == "[]"


def test_an_image_stands_for_its_rarest_class():
    boxes = {name: box(name, 0.1, 0.1, 0.4, 0.4) for name in CLASSES}
    images = [("cat",), ("cat", "dog"), ("cat", "dog", "owl"), (), ("cat", "cat")]
    targets = targets_of(*([boxes[name] for name in names] for names in images))
    assert detection.strata(targets).tolist() == [0, 1, 2, 3, 0]
    assert detection.class_counts(targets, 3).tolist() == [5.0, 2.0, 1.0]
    assert detection.strata(targets[3:4]).tolist() == [0]
    assert detection.strata(targets[:0]).tolist() == []


def test_cells_in_the_middle_of_a_box_tell_its_class_and_those_around_tell_nothing_or_are_left_out():
    wanted = detection._wanted(targets_of([box("dog", 0.0, 0.0, 0.5, 1.0)]), 8)
    rows = wanted[..., 0].reshape(8, 8).tolist()
    outer, middle = [-1, -1, -1, -1, 0, 0, 0, 0], [-1, 2, 2, -1, 0, 0, 0, 0]
    assert rows == [outer, outer, middle, middle, middle, middle, outer, outer]
    assert (wanted[..., 1:][wanted[..., 0] > 0] == torch.tensor([0.0, 0.0, 0.5, 1.0])).all()


def test_the_smallest_of_several_objects_has_the_cell():
    targets = targets_of([box("dog", 0.0, 0.0, 1.0, 1.0), box("cat", 0.32, 0.32, 0.47, 0.47)])
    wanted = detection._wanted(targets, 8)
    answers = wanted[..., 0].reshape(8, 8)
    assert (answers == 1).nonzero().tolist() == [[3, 3]]
    assert (answers == 2).sum() == 15
    assert wanted[..., 1:].reshape(8, 8, 4)[3, 3].tolist() == pytest.approx([0.32, 0.32, 0.47, 0.47])


@pytest.mark.parametrize("size", [1e-3, 1e-6])
def test_an_object_smaller_than_a_cell_has_the_cell_that_its_centre_is_in(size):
    corners = [(0.0, 0.0), (1 - size, 1 - size), (0.4, 0.7)]
    targets = targets_of(*([box("owl", x, y, x + size, y + size)] for x, y in corners))
    answers = detection._wanted(targets, 8)[..., 0].reshape(3, 8, 8)
    assert (answers == 3).nonzero().tolist() == [[0, 0, 0], [1, 7, 7], [2, 5, 3]]
    assert ((answers != 3) == (answers == 0)).all()
    outputs = torch.zeros(3, 8, 8, 8, requires_grad=True)
    loss_of(outputs, targets).backward()
    assert outputs.grad.isfinite().all()


def test_loss_is_the_mean_cross_entropy_of_the_cells_and_the_mean_overlap_of_boxes():
    generator = torch.Generator().manual_seed(0)
    targets = targets_of([box("dog", 0.0, 0.0, 0.5, 1.0)], [box("cat", 0.2, 0.2, 0.9, 0.8)])
    outputs = torch.randn(2, 8, 8, 8, generator=generator)
    wanted = detection._wanted(targets, 8)
    weights = [0.5, 2.0, 1.0]
    answers, counted, boxes, n_cells = 0.0, 0.0, 0.0, 0
    for image, cell in itertools.product(range(2), range(64)):
        answer = int(wanted[image, cell, 0])
        values = outputs[image, :, cell // 8, cell % 8]
        if answer >= 0:
            weight = weights[answer - 1] if answer else detection.NOTHING
            counted += weight
            answers -= weight * float(values[:4].log_softmax(dim=0)[answer])
        if answer > 0:
            x, y = (cell % 8 + 0.5) / 8, (cell // 8 + 0.5) / 8
            left, up, right, down = (math.exp(value) / 8 for value in values[4:].tolist())
            boxes += 1 - generalised_overlap((x - left, y - up, x + right, y + down), wanted[image, cell, 1:])
            n_cells += 1
    value = loss_of(outputs, targets, torch.tensor(weights))
    assert value.item() == pytest.approx(detection.DECIDES * answers / counted + boxes / n_cells, rel=1e-4)


def generalised_overlap(one, other):
    """Intersection over union, less the part of the box around both that neither has."""
    x0, y0, x1, y1 = one
    a0, b0, a1, b1 = other.tolist()
    both = max(0.0, min(x1, a1) - max(x0, a0)) * max(0.0, min(y1, b1) - max(y0, b0))
    either = (x1 - x0) * (y1 - y0) + (a1 - a0) * (b1 - b0) - both
    around = (max(x1, a1) - min(x0, a0)) * (max(y1, b1) - min(y0, b0))
    return both / either - (around - either) / around


def test_images_without_objects_teach_that_nothing_is_there():
    outputs = torch.zeros(2, 8, 4, 4, requires_grad=True)
    targets = targets_of([], [])
    loss_of(outputs, targets).backward()
    assert (outputs.grad[:, 0] < 0).all()
    assert (outputs.grad[:, 1:4] > 0).all()
    assert not outputs.grad[:, 4:].any()
    assert all(value == 0 for value in detection.metrics(outputs.detach(), detection.wanted(targets, outputs)).values())


def test_images_without_objects_teach_as_much_as_others_that_nothing_is_there():
    cat = box("cat", 0.4, 0.4, 0.6, 0.6)
    sizes = []
    for images in ([], []), ([], [cat]), ([cat], [cat]):
        outputs = torch.zeros(2, 8, 16, 16, requires_grad=True)
        loss_of(outputs, targets_of(*images)).backward()
        sizes.append(outputs.grad[0, 0, :3].norm().item())
    assert max(sizes) < 2 * min(sizes)


@pytest.mark.parametrize("seed", range(6))
def test_boxes_of_one_object_are_those_that_share_the_most_of_what_is_left(seed):
    generator = np.random.default_rng(seed)
    corners = generator.integers(0, 5, (2, 40, 2)) / 8  # on a grid, so that many share as much
    ones, others = ([box("cat", x, y, x + 3 / 8, y + 3 / 8) for x, y in each] for each in corners)
    shared, slow = box_iou(detection._edges(ones), detection._edges(others)), []
    while shared.max() >= detection.SAME:
        one, other = divmod(int(shared.argmax()), len(others))
        shared[one], shared[:, other] = 0, 0
        slow.append((one, other))
    assert [*detection._pairs(ones, others)] == slow
    assert len(slow) > 10


def test_places_are_boxes_within_the_image():
    outputs = torch.zeros(1, 8, 2, 2)
    outputs[0, 4:, 0, 0] = torch.tensor([100.0, -100.0, 0.0, 1.0])
    boxes = detection.places(outputs)
    assert boxes.shape == (1, 4, 4)
    assert boxes[0, 0].tolist() == pytest.approx([0.0, 0.25, 0.375, 0.25 + math.e / 8], abs=1e-3)
    assert boxes[0, 1].tolist() == pytest.approx([0.625, 0.125, 0.875, 0.375]), "right of it, in the same row"
    assert ((boxes >= 0) & (boxes <= 1)).all()


@pytest.mark.parametrize("side", [4, 16, 24])
def test_cells_that_are_answered_are_of_objects_by_half_where_there_are_so_many(side):
    whole, half = box("cat", 0.0, 0.0, 1.0, 1.0), box("dog", 0.0, 0.0, 0.5, 1.0)
    targets = targets_of([whole], [half], [])
    right = detection._wanted(targets, side)[..., 0].long()
    values = torch.arange(3 * side * side * 4).reshape(3, side * side, 4).float()
    known = detection.answered(values, targets)
    assert torch.equal(known.right, right[known.image, known.decision])
    assert torch.equal(known.values, values[known.image, known.decision])
    for image, answers in enumerate(right):
        n_with, n_without = int((answers > 0).sum()), int((answers == 0).sum())
        taken = known.right[known.image == image]
        assert len(taken) == min(256, n_with + n_without)
        assert (taken > 0).sum() >= min(n_with, 128)
    assert known.right.min() >= 0, "the outer part of an object has no answer"


def test_a_guess_is_a_box_for_each_object_that_is_seen():
    labels = [
        [box("dog", 0.0, 0.0, 0.5, 0.5), box("cat", 0.5, 0.5, 1.0, 0.75)],
        [],
        [box("owl", 0.25, 0.25, 0.3, 0.3)],
    ]
    outputs = outputs_that_say(targets_of(*labels), 16)
    probs, places = detection.logits(outputs).softmax(dim=2), detection.places(outputs)
    guesses = detection.guess(probs, CLASSES, places)
    for regions, expected in zip(guesses, labels, strict=True):
        assert sorted(region.label for region in regions) == sorted(region.label for region in expected)
        for region in regions:
            [same] = [one for one in expected if one.label == region.label]
            assert region.geometry == pytest.approx(same.geometry, abs=2e-3)
            assert region.score > 0.99
    unsure = 0.21 * torch.eye(4)[1] + 0.79 * torch.eye(4)[0]
    assert detection.guess(unsure.expand(1, 9, 4), CLASSES, torch.rand(1, 9, 4)) == [()]
    [row] = detection.in_columns(probs[:1], CLASSES, places[:1])["regions"]
    assert regions_from_json(row) == guesses[0]


def test_a_model_that_wavers_between_two_classes_guesses_one_box():
    probs = torch.tensor([[[0.1, 0.5, 0.4, 0.0], [0.1, 0.4, 0.5, 0.0]]])
    places = torch.tensor([[[0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.49]]])
    [[region]] = detection.guess(probs, CLASSES, places)
    assert region.score == pytest.approx(0.5)


def test_neighbouring_cells_tell_together_where_an_object_is():
    probs = torch.tensor([[[0.1, 0.8, 0.1, 0.0], [0.3, 0.4, 0.3, 0.0], [0.2, 0.8, 0.0, 0.0], [0.8, 0.2, 0.0, 0.0]]])
    places = torch.tensor([[[0.1, 0.1, 0.5, 0.5], [0.16, 0.1, 0.56, 0.5], [0.7, 0.7, 0.7, 0.9], [0.1, 0.1, 0.4, 0.5]]])
    [[region]] = detection.guess(probs, CLASSES, places)
    assert region.geometry == pytest.approx((0.12, 0.1, 0.52, 0.5)), "by their scores; what has no area is no box"
    found = detection._found(probs[0], places[0])
    assert found.scores.tolist() == pytest.approx([0.8, 0.8, 0.3])
    assert found.labels.tolist() == [0, 0, 1]


def test_at_most_a_hundred_boxes_are_guessed():
    probs = torch.tensor([0.1, 0.9, 0.0, 0.0]).expand(1, 400, 4)
    place = torch.arange(400)
    left, upper = place % 20 / 20, place // 20 / 20
    places = torch.stack([left, upper, left + 0.05, upper + 0.05], dim=1)[None].clamp(max=1)
    assert [len(regions) for regions in detection.guess(probs, CLASSES, places)] == [100]


def test_measure_of_a_model_that_knows_all_is_one_and_as_sure_as_so_many_right_images():
    _, targets = drawn(20)
    outputs = outputs_that_say(targets, 32)
    probs, places = detection.logits(outputs).softmax(dim=2), detection.places(outputs)
    apart = targets_of([box("dog", 0.0, 0.0, 0.5, 0.5), box("cat", 0.5, 0.5, 1.0, 0.75)], [])
    outputs = outputs_that_say(apart, 32)
    perfect = detection.measure(detection.logits(outputs).softmax(dim=2), apart, CLASSES, detection.places(outputs))
    assert (perfect.value, perfect.low, perfect.high) == (1.0, *wilson_interval(2, 2))
    assert perfect.scalars["AP"] == perfect.scalars["recall"] == 1.0
    assert perfect.by_class == {"AP50": {"cat": 1.0, "dog": 1.0}}
    metrics = detection.measure(probs, targets, CLASSES, places)
    assert metrics.value > 0.8, "objects that cover each other share cells"
    assert not metrics.is_share_of_images
    assert metrics.nll < 0.01


def test_answers_of_classes_that_are_one_now_are_added_up():
    probs = torch.tensor([[[0.1, 0.2, 0.3, 0.4]]])
    merged, names = detection.merged(probs, CLASSES, {"owl": "cat"})
    assert names == ("cat", "dog")
    torch.testing.assert_close(merged, torch.tensor([[[0.1, 0.6, 0.3]]]))


@pytest.mark.parametrize("augmentation", ["digits", "natural"])
def test_boxes_move_as_the_images_do(augmentation):
    """A bright rectangle is looked for in the changed image."""
    size, n = 96, 24
    generator = np.random.default_rng(0)
    edges = np.concatenate([generator.integers(8, 40, (n, 2)), generator.integers(48, 88, (n, 2))], axis=1)
    images = torch.zeros(n, 1, size, size, dtype=torch.uint8)
    for image, (left, upper, right, lower) in zip(images, edges, strict=True):
        image[:, upper:lower, left:right] = 255
    targets = targets_of(*([box("dog", *(row / size).tolist())] for row in edges))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        changed, affine = AUGMENTATIONS[augmentation](images)
    moved = detection.warp(targets, affine)
    detection.check_targets(moved, n, 3)
    assert (moved[:, 0, 0] == 1).sum() > n / 2
    for image, row in zip(changed, moved[:, 0], strict=True):
        if row[0] == 1 and (row[1:] > 0).all() and (row[1:] < 1).all():  # at the edge, images repeat their last pixel
            rows, columns = (image[0] > 0.4).nonzero().unbind(dim=1)
            seen = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / size
            torch.testing.assert_close(row[1:], seen, atol=2.5 / size, rtol=0)


def test_objects_that_leave_the_image_leave_the_targets():
    targets = targets_of([box("dog", 0.0, 0.0, 0.5, 0.5), box("cat", 0.5, 0.5, 1.0, 1.0)], [])
    affine = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).repeat(2, 1, 1)
    assert torch.equal(detection.warp(targets, affine), targets)
    for shift, kept in ((0.7, 0.15), (0.9, None)):
        affine[:, 0, 2] = shift
        rows = detection.warp(targets, affine)[0]
        assert rows[0].tolist() == pytest.approx([0, 0.5 - shift / 2, 0.5, 1 - shift / 2, 1.0])
        gone = [-1, 0, 0, 0, 0]
        assert rows[1].tolist() == pytest.approx([1, 0, 0, kept, 0.5] if kept else gone)


CAT, DOG = box("cat", 0.1, 0.1, 0.3, 0.3), box("dog", 0.6, 0.6, 0.9, 0.9)
NEAR = box("cat", 0.12, 0.1, 0.32, 0.3)
"""Overlaps with the cat by 0.82."""


@pytest.mark.parametrize(
    ("given", "agreed", "agreement"),
    [
        ([(CAT, DOG)], (CAT, DOG), 1.0),
        ([()], (), 1.0),
        ([(), ()], (), 1.0),
        ([(CAT,), ()], (CAT,), 0.0),
        ([(CAT,), (), ()], (), 1 / 3),
        ([(CAT, DOG), (CAT,), (CAT,)], (CAT,), (2 / 3 + 2 / 3 + 1) / 3),
        ([(CAT,), (DOG, CAT), (DOG,)], (CAT, DOG), (2 / 3 + 0 + 2 / 3) / 3),
        ([(CAT,), (CAT,), (NEAR,)], (CAT,), 1.0),
        ([(CAT,), (NEAR,)], (box("cat", 0.11, 0.1, 0.31, 0.3),), 1.0),
        ([(CAT,), (box("dog", *CAT.geometry),), (box("dog", *CAT.geometry),)], (box("dog", *CAT.geometry),), 1 / 3),
        ([(CAT, NEAR), (CAT,), (NEAR,)], None, (2 / 3 + 2 / 3 + 1) / 3),
    ],
)
def test_consensus_is_what_at_least_half_of_the_people_drew(given, agreed, agreement):
    regions, share = detection.consensus(given)
    assert share == pytest.approx(agreement)
    if agreed is not None:
        assert [region.label for region in regions] == [region.label for region in agreed]
        for region, expected in zip(regions, agreed, strict=True):
            assert region.geometry == pytest.approx(expected.geometry)


def test_nobody_marks_an_object_twice():
    """Of two boxes of one person on one object, the one that fits better is of it; the other is one of its own."""
    regions, _ = detection.consensus([(CAT,), (NEAR, CAT), (CAT,)])
    assert [region.geometry for region in regions] == [CAT.geometry]
    regions, _ = detection.consensus([(CAT,), (NEAR, CAT)])
    assert [region.geometry for region in regions] == [CAT.geometry, NEAR.geometry]


def shapes(n: int, *, seed: int, size: int = 64):
    """Grey images of up to four squares, full or hollow, and their boxes."""
    generator = np.random.default_rng(seed)
    images, labels = generator.integers(0, 40, (n, 1, size, size)), []
    for image in images[:, 0]:
        found = []
        for upper, left in itertools.product((0, 32), (0, 32)):
            label = CLASSES[generator.integers(3)]
            side = int(generator.integers(14, 27))
            top, start = (int(generator.integers(33 - side)) + corner for corner in (upper, left))
            if label == "owl":
                continue
            image[top : top + side, start : start + side] += 150
            if label == "dog":
                image[top + 4 : top + side - 4, start + 4 : start + side - 4] -= 150
            found.append(box(label, start / size, top / size, (start + side) / size, (top + side) / size))
        labels.append(found)
    return torch.from_numpy(images).to(torch.uint8), targets_of(*labels, classes=CLASSES[:2])


def test_a_network_learns_boxes_from_few_images():
    model = build_model(
        "small_cnn", n_classes=2, image_size=64, channels=1, dropout=0.2, outputs=outputs_of(detection, 2), seed=0
    )
    images, targets = shapes(40, seed=0)
    train(
        model,
        images,
        targets,
        task=detection,
        seed=0,
        device=torch.device("cpu"),
        max_epochs=6,
        patience=None,
        augmentation="natural",
    )
    unseen, wanted = shapes(30, seed=1)
    decided = predict_members([model], unseen, task=detection, mc_dropout=2, seed=0)
    assert decided.decisions.shape == (30, 64, 2, 3)
    assert decided.places.shape == (30, 64, 4)
    metrics = detection.measure(decided.decisions.mean(dim=2), wanted, CLASSES[:2], decided.places)
    assert metrics.low > 0.6
    assert metrics.nll < 0.1
