"""Masks of every class: what people paint, what networks learn of it, how good they are at it."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import jaccard_score
from torch.nn import functional
from torchmetrics.functional.classification import multiclass_jaccard_index

from pipeline.evaluation.intersection import intersection_over_union, mean_intersection, overlap
from pipeline.evaluation.metrics import wilson_interval
from pipeline.masks import mask_from_png, mask_to_png
from pipeline.members.predict import predict_members
from pipeline.networks.build import build_model
from pipeline.regions import regions_from_json
from pipeline.selection.scoring import score_images
from pipeline.tasks import segmentation
from pipeline.tasks.task_type import outputs_of
from pipeline.types import Region
from tests.pipeline.training import train

CLASSES = ("cat", "dog", "owl")
SIDE = segmentation.SIDE


def painted(label: str, pixels, score: float | None = None) -> Region:
    return Region("mask", label, mask=mask_to_png(np.asarray(pixels, dtype=bool)), score=score)


def regions_of(raster, classes=CLASSES) -> tuple[Region, ...]:
    """A mask of each class in a raster of answers."""
    return tuple(painted(name, raster == 1 + k) for k, name in enumerate(classes) if (raster == 1 + k).any())


def raster_of(regions, classes=CLASSES):
    """The answers at the size of the masks."""
    masks = [mask_from_png(region.mask) for region in regions]
    raster = np.zeros(masks[0].shape, dtype=np.uint8)
    for region, mask in zip(regions, masks, strict=True):
        raster[mask] = 1 + classes.index(region.label)
    return raster


def most_of(targets, n_answers, side):
    """The answer that most pixels of each cell have."""
    return segmentation._majority(segmentation._shares(targets, n_answers, side))


def loss_of(outputs, targets, *how):
    return segmentation.loss(outputs, segmentation.wanted(targets, outputs), *how)


def overlap_loss_of(outputs, targets):
    return segmentation.overlap_loss(outputs, segmentation.wanted(targets, outputs))


def drawn(n: int = 12, *, side: int = 16, n_classes: int = 3, seed: int = 0):
    """Probabilities of cells that know something of rasters of large patches; every class occurs."""
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randint(0, 1 + n_classes, (n, 4, 4), generator=generator)
    patches[:, :2] = 0
    patches[:, 3, 3] = torch.arange(n) % n_classes + 1
    targets = patches.repeat_interleave(SIDE // 4, dim=1).repeat_interleave(SIDE // 4, dim=2).to(torch.uint8)
    right = most_of(targets, 1 + n_classes, side)
    known = 2 * functional.one_hot(right, 1 + n_classes)
    return (torch.randn(known.shape, generator=generator) + known).softmax(dim=2), targets


def brought_up(probs):
    """The likeliest answer at each pixel of one image after another."""
    side = round(probs.shape[1] ** 0.5)
    maps = probs.transpose(1, 2).reshape(len(probs), -1, side, side)
    return functional.interpolate(maps, (SIDE, SIDE), mode="bilinear", align_corners=False).argmax(dim=1)


def test_targets_have_the_size_of_rasters_whatever_the_size_of_the_masks():
    for height, width in ((256, 256), (32, 64), (512, 1024), (100, 70), (300, 257)):
        left = np.zeros((height, width), dtype=bool)
        left[:, : width // 2] = True
        [raster] = segmentation.targets([(painted("dog", left),)], CLASSES).numpy()
        assert (raster.shape, raster.dtype) == ((SIDE, SIDE), np.uint8)
        edge = round(width // 2 * SIDE / width)
        assert (raster[:, :edge] == 2).all()
        assert not raster[:, edge + 1 :].any()


def test_later_regions_cover_earlier_ones_and_polygons_are_filled():
    all_of_it, left = np.ones((8, 8), dtype=bool), np.tile(np.arange(8) < 4, (8, 1))
    corners = (0.0, 0.5, 1.0, 0.5, 1.0, 1.0, 0.0, 1.0)
    regions = (painted("cat", all_of_it), painted("owl", left), Region("polygon", "dog", corners))
    [raster] = segmentation.targets([regions], CLASSES).numpy()
    assert (raster[128:] == 2).all()
    assert (raster[:128, :128] == 3).all()
    assert (raster[:128, 128:] == 1).all()
    assert not segmentation.targets([()], CLASSES).any()
    assert segmentation.targets([], CLASSES).shape == (0, SIDE, SIDE)


def test_what_is_no_part_of_an_image_is_refused():
    for region in (Region("image", "cat"), Region("box", "cat", (0.0, 0.0, 0.5, 0.5))):
        for refuse in (
            lambda one=region: segmentation.targets([(one,)], CLASSES),
            lambda one=region: segmentation.consensus([(one,)]),
        ):
            with pytest.raises(ValueError, match=r"wanted (a mask or a polygon|masks or polygons), got .* kind"):
                refuse()
    with pytest.raises(ValueError, match="254 classes at most, got 256"):
        segmentation.targets([()], [str(number) for number in range(256)])


def test_targets_that_do_not_fit_are_refused():
    _, targets = drawn(3)
    segmentation.check_targets(targets, 3, 3)
    for wrong, n in ((targets, 2), (targets[:0], 0), (targets[:, :100], 3), (targets.long(), 3), (targets + 1, 3)):
        with pytest.raises(ValueError, match="targets"):
            segmentation.check_targets(wrong, n, 3)


def test_labels_of_a_manifest_come_back_as_they_were():
    regions = (painted("cat", np.eye(5)), Region("polygon", "dog", (0.0, 0.0, 1.0, 0.0, 0.5, 1.0)))
    for found in (regions, ()):
        assert segmentation.read_label(segmentation.write_label(found)) == found
    assert segmentation.write_label(()) == "[]"


def test_an_image_stands_for_its_rarest_class():
    targets = torch.zeros(5, SIDE, SIDE, dtype=torch.uint8)
    for image, answers in enumerate([(1,), (1, 2), (1, 2, 3), (), (1,)]):
        for answer in answers:
            targets[image, 10 * answer, :50] = answer
    assert segmentation.strata(targets).tolist() == [0, 1, 2, 3, 0]
    assert segmentation.class_counts(targets, 3).tolist() == [4.0, 2.0, 1.0]
    assert segmentation.class_counts(targets, 4).tolist() == [4.0, 2.0, 1.0, 0.0]
    assert segmentation.strata(targets[3:4]).tolist() == [0]
    assert segmentation.strata(targets[:0]).shape == (0,)


def test_loss_is_the_cross_entropy_with_the_shares_of_each_cell():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(0, 4, (2, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    targets[0, :, :77] = 0
    for side in (1, 4, 14):
        outputs = torch.randn(2, 4, side, side, generator=generator)
        shares = segmentation._shares(targets, 4, side)
        if SIDE % side == 0:
            cells = targets.reshape(2, side, SIDE // side, side, SIDE // side)
            slow = torch.stack([(cells == one).double().mean(dim=(2, 4)) for one in range(4)], dim=1)
            torch.testing.assert_close(shares.double(), slow, atol=1e-6, rtol=0)
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(2, side, side))
        plain = functional.cross_entropy(outputs, shares)
        torch.testing.assert_close(loss_of(outputs, targets), plain)
        smoothed = functional.cross_entropy(outputs, shares, label_smoothing=0.2)
        torch.testing.assert_close(loss_of(outputs, targets, None, 0.2), smoothed)
        same = loss_of(outputs, targets, torch.ones(3), 0.2)
        torch.testing.assert_close(same, smoothed)


def test_class_weights_weigh_pixels_by_their_class_and_nothing_counts_once():
    _, targets = drawn(4)
    outputs = torch.randn(4, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    right = targets[:, 32::64, 32::64].long()
    for smoothing in (0.0, 0.2):
        weighted = functional.cross_entropy(
            outputs, right, weight=torch.tensor([1.0, 0.5, 2.0, 4.0]), label_smoothing=smoothing
        )
        found = loss_of(outputs, targets, torch.tensor([0.5, 2.0, 4.0]), smoothing)
        torch.testing.assert_close(found, weighted)


def half_known(targets):
    """The targets as somebody knows them who saw the left half of each image, less a bit of it."""
    known = targets.clone()
    known[:, :, SIDE // 2 :] = segmentation.UNKNOWN
    known[:, :7, :7] = segmentation.UNKNOWN
    return known


@pytest.mark.parametrize("loss", [loss_of, overlap_loss_of])
def test_unknown_pixels_teach_nothing(loss):
    _, targets = drawn(4)
    outputs = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(1), requires_grad=True)
    known = half_known(targets)
    value = loss(outputs, known)
    value.backward()
    assert not outputs.grad[:, :, :, 8:].any()
    assert outputs.grad[:, :, :, :8].any()
    left, painted_left = outputs[..., :8], targets[..., : SIDE // 2]
    mirrored = torch.cat([left, left.flip(3)], dim=3), torch.cat([painted_left, painted_left.flip(2)], dim=2)
    torch.testing.assert_close(loss(*mirrored), value)
    nothing = loss(outputs, torch.full_like(targets, segmentation.UNKNOWN))
    assert nothing.item() == 0


def test_unknown_pixels_are_neither_answered_for_nor_measured():
    probs, targets = drawn(8, side=16)
    known = half_known(targets)
    segmentation.check_targets(known, 8, 3)
    columns = segmentation.answered(probs, known).decision % 16
    assert columns.max() == 7
    assert (
        segmentation.class_counts(known, 3).tolist()
        == segmentation.class_counts(targets[:, :, : SIDE // 2], 3).tolist()
    )
    assert segmentation.strata(known).max() <= 3
    wrong_beyond = probs.clone().unflatten(1, (16, 16))
    wrong_beyond[:, :, 9:] = torch.tensor([0.0, 0.0, 0.0, 1.0])
    told, other = (segmentation.measure(each, known, CLASSES) for each in (probs, wrong_beyond.flatten(1, 2)))
    assert told == other
    assert segmentation.measure(probs, known.clamp(min=segmentation.UNKNOWN), CLASSES) is None
    outputs = probs.log().transpose(1, 2).unflatten(2, (16, 16))
    shown = segmentation.metrics(outputs, segmentation.wanted(known, outputs))
    right = most_of(targets, 4, 16).unflatten(1, (16, 16))[:, :, :8]
    assert shown["accuracy"] == pytest.approx((outputs.argmax(dim=1)[:, :, :8] == right).float().mean().item())


def test_overlap_loss_is_the_dice_of_each_class_over_all_images():
    _, targets = drawn(4, n_classes=2)
    outputs = torch.randn(4, 4, 14, 14, generator=torch.Generator().manual_seed(1))  # the third class is nowhere
    probs, shares = outputs.softmax(dim=1).double(), segmentation._shares(targets, 4, 14).double()
    slow = []
    for answer in (1, 2):
        seen, true = probs[:, answer].flatten().tolist(), shares[:, answer].flatten().tolist()
        both = sum(p * s for p, s in zip(seen, true, strict=True))
        slow.append(1 - 2 * both / (sum(p * p for p in seen) + sum(s * s for s in true)))
    assert overlap_loss_of(outputs, targets).item() == pytest.approx(sum(slow) / 2, rel=1e-5)
    right = segmentation._shares(targets, 4, 14).log()
    assert ((shares > 0) & (shares < 1)).any()
    assert segmentation.overlap_loss(right, right.exp()).item() == pytest.approx(0, abs=1e-6)
    assert overlap_loss_of(outputs, torch.zeros_like(targets)).item() == 0


def test_a_decision_is_a_cell_row_by_row():
    outputs = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    logits = segmentation.logits(outputs)
    for row, column in itertools.product(range(3), range(3)):
        assert torch.equal(logits[:, 3 * row + column], outputs[:, :, row, column])
    assert segmentation.places(outputs) is None
    assert segmentation.n_outputs(3) == segmentation.n_logits(3) == outputs.shape[1]


@pytest.mark.parametrize("side", [4, 16, 24])
def test_cells_that_are_answered_are_of_classes_by_half_where_there_are_so_many(side):
    probs, targets = drawn(6, side=side)
    targets[0], targets[1] = 0, 1
    targets[2, 3:] = 0
    values, right, image, decision = segmentation.answered(probs, targets)
    majority = most_of(targets, 4, side)
    assert torch.equal(values, probs[image, decision])
    assert torch.equal(right, majority[image, decision])
    assert len({*zip(image.tolist(), decision.tolist(), strict=True)}) == len(image), "each once"
    for each in range(6):
        n_with = int((majority[each] > 0).sum())
        n_without = side * side - n_with
        assert (image == each).sum() == min(256, side * side)
        assert (right[image == each] > 0).sum() == min(n_with, max(128, 256 - n_without))
    again = segmentation.answered(probs[2:4], targets[2:4])
    assert torch.equal(again.decision[again.image == 1], decision[image == 3]), "the same beside other images"


def test_answer_of_a_cell_is_that_of_most_of_its_pixels_and_of_a_tie_the_lowest():
    targets = torch.zeros(1, SIDE, SIDE, dtype=torch.uint8)
    targets[0, :, :65] = 2
    targets[0, :, 65:129] = 1
    assert most_of(targets, 4, 2)[0].tolist() == [2, 0, 2, 0]
    targets[0, :, :64] = 3
    targets[0, :, 64:128] = 1
    assert most_of(targets, 4, 2)[0].tolist() == [1, 0, 1, 0]


def test_answers_say_where_they_are():
    assert segmentation.in_words(0, 0, CLASSES, 1) == "nothing at 50 % from the left, 50 % from the top"
    assert segmentation.in_words(7, 3, CLASSES, 16) == "owl at 88 % from the left, 38 % from the top"


def test_measures_are_those_of_other_libraries():
    probs, targets = drawn(20)
    metrics = segmentation.measure(probs, targets, CLASSES)
    predicted = brought_up(probs)
    each = multiclass_jaccard_index(predicted, targets.long(), num_classes=4, average="none")
    assert metrics.value == pytest.approx(float(each[1:].mean()), abs=1e-4)
    of_sklearn = jaccard_score(targets.flatten(), predicted.flatten(), average=None)
    assert [metrics.scalars["background_IoU"], *metrics.by_class["IoU"].values()] == pytest.approx(
        of_sklearn.tolist(), abs=1e-4
    )
    assert list(metrics.by_class["IoU"]) == list(CLASSES)
    assert metrics.scalars["pixel_accuracy"] == pytest.approx(float((predicted == targets).float().mean()), abs=1e-4)
    assert metrics.headline == segmentation.headline == "mIoU"
    assert metrics.table is None
    values, right, _, _ = segmentation.answered(probs, targets)
    assert metrics.nll == pytest.approx(functional.nll_loss(values.log(), right).item(), rel=1e-4)


def test_measures_are_of_the_classes_that_images_have_and_the_same_in_parts():
    probs, targets = drawn(9)
    targets[targets == 2] = 0
    metrics = segmentation.measure(probs, targets, CLASSES)
    each = multiclass_jaccard_index(brought_up(probs), targets.long(), num_classes=4, average="none")
    assert metrics.by_class["IoU"] == pytest.approx({"cat": float(each[1]), "owl": float(each[3])}, abs=1e-4)
    assert metrics.value == pytest.approx(float(each[[1, 3]].mean()), abs=1e-4)
    assert segmentation.measure(probs, torch.zeros_like(targets), CLASSES) is None
    with pytest.raises(ValueError, match="no images"):
        segmentation.measure(probs[:0], targets[:0], CLASSES)
    with pytest.raises(ValueError, match="probs must be"):
        segmentation.measure(probs[:, :, :3], targets, CLASSES)
    with pytest.raises(ValueError, match="as many rows as columns, got 250"):
        segmentation.measure(probs[:, :250], targets, CLASSES)


def test_interval_is_that_of_draws_with_replacement():
    probs, targets = drawn(40, seed=3)
    found = overlap(brought_up(probs), targets, n_answers=4)
    of_classes = type(found)(*(counts[:, 1:] for counts in found))
    told = mean_intersection(of_classes)
    draw, values = np.random.default_rng(5), []
    for _ in range(400):
        rows = draw.integers(40, size=40)
        both, predicted, true = (counts[rows].sum(dim=0).numpy() for counts in of_classes)
        values.append((both / (predicted + true - both)).mean())
    assert [told.low, told.high] == pytest.approx(np.quantile(values, [0.025, 0.975]).tolist(), abs=0.01)
    assert told.low < told.value < told.high
    assert told == mean_intersection(of_classes), "the same draws each time"


def test_a_prediction_without_a_fault_is_as_sure_as_so_many_right_images():
    targets = torch.zeros(4, SIDE, SIDE, dtype=torch.uint8)
    targets[0, :, :128], targets[1, :, 128:] = 1, 3
    right = most_of(targets, 4, 8)
    metrics = segmentation.measure(functional.one_hot(right, 4).float(), targets, CLASSES)
    assert metrics.value == metrics.scalars["pixel_accuracy"] == metrics.scalars["background_IoU"] == 1.0
    assert (metrics.low, metrics.high) == wilson_interval(4, 4)
    assert metrics.by_class["IoU"] == {"cat": 1.0, "owl": 1.0}


def test_guess_is_a_mask_of_each_class_that_is_seen():
    probs = torch.zeros(2, 16, 4)
    probs[0, :, 0] = 1.0
    probs[1, :, 0] = 0.4
    probs[1, :, 2] = 0.6
    probs[1, 3::4] = torch.tensor([0.1, 0.0, 0.2, 0.7])
    nothing, [dog, owl] = segmentation.guess(probs, CLASSES)
    assert nothing == ()
    assert (dog.label, owl.label) == ("dog", "owl")
    assert 0.4 < dog.score <= 0.6 < owl.score <= 0.7
    seen = raster_of((dog, owl))
    assert seen.shape == (SIDE, SIDE)
    assert np.array_equal(seen, brought_up(probs)[1].numpy())
    columns = segmentation.in_columns(probs, CLASSES)
    assert columns["regions"].tolist()[0] == "[]"
    assert regions_from_json(columns["regions"][1]) == (dog, owl)
    merged, names = segmentation.merged(probs, CLASSES, {"owl": "bird", "dog": "cat"})
    assert names == ("cat", "bird")
    assert merged[1, 0].tolist() == pytest.approx([0.4, 0.6, 0.0])
    assert merged[1, 3].tolist() == pytest.approx([0.1, 0.2, 0.7])


def test_rasters_move_as_the_images_do():
    _, targets = drawn(2)
    mirrored = segmentation.warp(targets, torch.tensor([[-1.0, 0, 0], [0, 1, 0]]).expand(2, 2, 3))
    assert torch.equal(mirrored, targets.flip(2))
    turned = segmentation.warp(targets, torch.tensor([[0.0, 1, 0], [-1, 0, 0]]).expand(2, 2, 3))
    assert torch.equal(turned, targets.rot90(-1, (1, 2)))
    right_half = segmentation.warp(targets, torch.tensor([[0.5, 0, 0.5], [0, 1, 0]]).expand(2, 2, 3))
    assert torch.equal(right_half, targets[:, :, 128:].repeat_interleave(2, dim=2))
    beyond = segmentation.warp(targets, torch.tensor([[1.0, 0, 2], [0, 1, 0]]).expand(2, 2, 3))
    assert torch.equal(beyond, targets[:, :, -1:].expand(2, SIDE, SIDE)), "the edge is repeated"


def slow_consensus(rasters):
    """The majority at each pixel, of a tie what the earliest person painted; agreement by pairs of people."""
    agreed = np.zeros_like(rasters[0])
    for place in np.ndindex(agreed.shape):
        votes = [int(raster[place]) for raster in rasters]
        agreed[place] = max(votes, key=lambda vote: (votes.count(vote), -votes.index(vote)))
    shares = []
    for one, other in itertools.combinations(rasters, 2):
        either = [k for k in range(1, 4) if (one == k).any() or (other == k).any()]
        each = [((one == k) & (other == k)).sum() / ((one == k) | (other == k)).sum() for k in either]
        shares.append(np.mean(each) if each else 1.0)
    return agreed, np.mean(shares)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 5), st.integers(0, 1000))
def test_consensus_is_that_of_a_slow_look_at_each_pixel(n_people, seed):
    rng = np.random.default_rng(seed)
    rasters = [rng.choice(4, p=[0.6, 0.2, 0.1, 0.1], size=(6, 9)).astype(np.uint8) for _ in range(n_people)]
    rasters[-1] *= rng.integers(2, dtype=np.uint8)
    agreed, agreement = slow_consensus(rasters)
    regions, found = segmentation.consensus([regions_of(raster) for raster in rasters])
    assert found == pytest.approx(agreement)
    assert [region.label for region in regions] == [CLASSES[k - 1] for k in np.unique(agreed) if k]
    if regions:
        assert np.array_equal(raster_of(regions), agreed)


def test_people_may_paint_at_different_sizes_and_draw_outlines():
    left = np.tile(np.arange(8) < 4, (6, 1))
    outline = Region("polygon", "cat", (0.0, 0.0, 0.5, 0.0, 0.5, 1.0, 0.0, 1.0))
    small = np.tile(np.arange(4) < 2, (2, 1))
    [region], agreement = segmentation.consensus([(outline,), (painted("cat", left),), (painted("cat", small),)])
    assert np.array_equal(mask_from_png(region.mask), left), "as large as the first mask"
    assert agreement == 1.0
    [region], _ = segmentation.consensus([(outline,), (outline,)])
    assert mask_from_png(region.mask).shape == (SIDE, SIDE)
    assert segmentation.consensus([(outline,)]) == ((outline,), 1.0), "what one person gave stays as it is"


def test_people_who_find_nothing_agree_and_vote():
    cat = (painted("cat", np.eye(4)),)
    assert segmentation.consensus([(), ()]) == ((), 1.0)
    assert segmentation.consensus([cat, ()]) == (cat, 0.0)
    assert segmentation.consensus([(), cat]) == ((), 0.0)
    assert segmentation.consensus([(), cat, ()]) == ((), pytest.approx(1 / 3))


def test_intersection_over_union_of_what_nobody_has_is_unknown():
    found = overlap(torch.zeros(1, 5, dtype=torch.long), torch.zeros(1, 5, dtype=torch.long), n_answers=2)
    assert intersection_over_union(*found)[0].isnan().tolist() == [False, True]


def rectangles(n: int, *, seed: int, size: int = 32):
    """Images `(n, 1, size, size)` of rectangles on noise, whose brightness tells their class; their rasters."""
    rng = np.random.default_rng(seed)
    images = rng.normal(60, 15, (n, 1, size, size))
    answers = np.zeros((n, size, size), dtype=np.uint8)
    for image, raster in zip(images, answers, strict=True):
        for _ in range(rng.integers(3)):
            top, left = rng.integers(4, size - 12, 2)
            height, width = rng.integers(8, 14, 2)
            answer = rng.integers(1, 3)
            where = slice(top, top + height), slice(left, left + width)
            image[0][where], raster[where] = (130, 210)[answer - 1], answer
    rasters = torch.from_numpy(answers).repeat_interleave(SIDE // size, 1).repeat_interleave(SIDE // size, 2)
    return torch.from_numpy(images.clip(0, 255).astype(np.uint8)), rasters


@pytest.fixture(scope="module")
def trained():
    """A network that was trained on 60 drawn images that were moved about, in 3 CPU seconds."""
    form = {"n_classes": 2, "image_size": 32, "channels": 1}
    model = build_model("small_cnn", **form, outputs=outputs_of(segmentation, 2), seed=0)
    outcome = train(
        model,
        *rectangles(60, seed=0),
        task=segmentation,
        max_epochs=8,
        learning_rate=3e-3,
        augmentation="natural",
        class_balanced=True,
    )
    return model, outcome


def test_a_network_learns_masks_from_images_that_move(trained):
    model, outcome = trained
    images, targets = rectangles(40, seed=1)
    decisions, _, places = predict_members([model], images, task=segmentation, mc_dropout=3, seed=0)
    assert decisions.shape == (40, 64, 3, 3)
    assert places is None
    metrics = segmentation.measure(decisions.mean(dim=2), targets, ("dim", "bright"))
    assert metrics.value > 0.6
    assert outcome.history[-1]["train_loss"] < 0.5 * outcome.history[0]["train_loss"]
    assert outcome.history[-1]["train_image_mIoU"] > outcome.history[0]["train_image_mIoU"]


def test_what_a_trained_network_sees_is_what_people_would_paint(trained):
    model, _ = trained
    images, targets = rectangles(10, seed=2)
    decisions, _, _ = predict_members([model], images, task=segmentation, seed=0)
    classes = ("dim", "bright")
    guesses = segmentation.guess(decisions[:, :, 0], classes)
    seen = segmentation.targets(guesses, classes)
    assert (seen == targets).float().mean() > 0.95
    for image in range(10):
        _, agreement = segmentation.consensus([guesses[image], regions_of(targets[image].numpy(), classes)])
        assert 0 <= agreement <= 1


def test_images_with_doubtful_places_are_asked_for_first(trained):
    model, _ = trained
    images, _ = rectangles(20, seed=3)
    images[15:, :, 8:24, 8:24] = 170  # between the brightness of both classes
    decisions, _, _ = predict_members([model], images, task=segmentation, seed=0)
    for reduce in ("mean", "top_tenth", "foreground", "sum"):
        scores = score_images(decisions, "entropy", reduce=reduce)
        assert scores[15:].mean() > 1.2 * scores[:15].mean(), reduce
