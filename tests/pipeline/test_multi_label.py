"""Several labels for each image: what people give, what networks learn of it, how good they are at it."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score
from torchmetrics.functional.classification import (
    multilabel_average_precision,
    multilabel_exact_match,
    multilabel_f1_score,
)

from pipeline.evaluation.average_precision import average_precision, macro_average_precision
from pipeline.evaluation.metrics import wilson_interval
from pipeline.regions import OTHERS
from pipeline.selection.explain import least_settled
from pipeline.tasks import multi_label
from pipeline.training.fit import class_weights
from pipeline.types import Metrics, Region
from tests.pipeline.training import train

CLASSES = ("cat", "dog", "owl", "fox")
N_CLASSES = len(CLASSES)


def found(*names: str) -> tuple[Region, ...]:
    return tuple(Region("image", name) for name in names)


def drawn(n: int = 60, *, seed: int = 0, n_classes: int = N_CLASSES):
    """Probabilities that know something of the targets, rounded so that some tie; every class occurs."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.rand(n, n_classes, generator=generator) < 0.3
    targets[:n_classes] |= torch.eye(n_classes, dtype=torch.bool)
    there = (torch.randn(n, n_classes, generator=generator) + 1.5 * targets - 1).sigmoid().mul(20).round() / 20
    return torch.stack([1 - there, there], dim=2), targets.to(torch.int8)


def test_labels_of_a_manifest_come_back_as_they_were():
    for names in ((), ("cat",), ("cat", "dog"), ("cat", "dog", "owl")):
        assert multi_label.read_label(multi_label.write_label(found(*names))) == found(*names)
    assert multi_label.write_label(found("dog", "cat")) == "dog|cat"
    assert multi_label.read_label("dog|cat") == found("cat", "dog"), "in any order the same"
    assert multi_label.read_label("") == multi_label.read_label("|") == ()


@pytest.mark.parametrize(
    ("given", "agreed", "agreement"),
    [
        ([("cat",)], ("cat",), 1.0),
        ([()], (), 1.0),
        ([(), ()], (), 1.0),
        ([("cat", "dog"), ("dog", "cat")], ("cat", "dog"), 1.0),
        ([("cat", "dog"), ("cat",), ("cat", "owl")], ("cat",), (1 + 2 / 3 + 2 / 3) / 3),
        ([("cat",), ()], ("cat",), 0.5),
        ([(), ("cat",)], (), 0.5),
        ([("dog",), ("cat",), (), ("cat", "dog")], ("dog",), 0.5),
    ],
)
def test_each_label_is_what_most_people_say_and_of_a_tie_what_the_first_said(given, agreed, agreement):
    regions, share = multi_label.consensus([found(*names) for names in given])
    assert regions == found(*agreed)
    assert share == pytest.approx(agreement)


def test_part_of_an_image_is_no_label_of_it():
    box = Region("box", "cat", (0.0, 0.0, 0.5, 0.5))
    for refuse in (lambda: multi_label.consensus([(box,)]), lambda: multi_label.targets([(box,)], CLASSES)):
        with pytest.raises(ValueError, match="whole image"):
            refuse()


def test_targets_say_of_every_class_whether_it_is_there():
    targets = multi_label.targets([found("dog", "fox"), ()], CLASSES)
    assert targets.tolist() == [[0, 1, 0, 1], [0] * 4]
    multi_label.check_targets(targets, 2, N_CLASSES)
    for wrong, n in ((targets, 3), (targets[:, :3], 2), (targets[:0], 0), (targets.long(), 2), (targets + 1, 2)):
        with pytest.raises(ValueError, match="target"):
            multi_label.check_targets(wrong, n, N_CLASSES)
    assert multi_label.targets([], CLASSES).shape == (0, N_CLASSES)


def test_an_image_stands_for_its_rarest_class():
    labels = [found("cat"), found("cat", "dog"), found("cat", "dog", "fox"), (), found("owl", "fox"), found("cat")]
    targets = multi_label.targets(labels, CLASSES)
    assert multi_label.strata(targets).tolist() == [0, 1, 1, 4, 2, 0]
    assert multi_label.class_counts(targets, N_CLASSES).tolist() == [4.0, 2.0, 1.0, 2.0]
    assert multi_label.strata(targets[:0]).shape == (0,)


def test_loss_is_the_binary_cross_entropy_of_every_class():
    outputs, (_, targets) = torch.randn(60, N_CLASSES, generator=torch.Generator().manual_seed(0)), drawn()
    z, y = outputs.double().numpy(), targets.double().numpy()
    weights = np.array([0.5, 1.0, 2.0, 4.0])
    for smoothing in (0.0, 0.2):
        wanted = y * (1 - smoothing) + smoothing / 2
        losses = wanted * np.logaddexp(0, -z) + (1 - wanted) * np.logaddexp(0, z)
        assert multi_label.loss(outputs, targets, None, smoothing).item() == pytest.approx(losses.mean(), rel=1e-5)
        weighted = multi_label.loss(outputs, targets, torch.tensor(weights).float(), smoothing).item()
        assert weighted == pytest.approx((losses.mean(axis=0) @ weights) / weights.sum(), rel=1e-5)
    probs = multi_label.logits(outputs).softmax(dim=2)
    torch.testing.assert_close(probs[..., 1], outputs.sigmoid())


OPEN = [found("cat", OTHERS), found("dog", "fox", OTHERS), found("cat"), ()]
"""Labels of which the first two leave open what else is there."""


def test_label_that_leaves_open_what_else_is_there_is_read_and_written():
    assert multi_label.read_label("dog|cat|?") == found("cat", "dog", OTHERS)
    for cell in ("cat|dog|?", "cat|?", "cat", "|"):
        assert multi_label.write_label(multi_label.read_label(cell)) == cell


def test_class_that_a_label_leaves_open_is_unknown():
    targets = multi_label.targets(OPEN, CLASSES)
    assert targets.tolist() == [[1, -1, -1, -1], [-1, 1, -1, 1], [1, 0, 0, 0], [0] * 4]
    multi_label.check_targets(targets, 4, N_CLASSES)
    assert multi_label.strata(targets).tolist() == [0, 1, 0, 4]
    assert multi_label.class_counts(targets, N_CLASSES).tolist() == [2.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0, 4.0]])
def test_unknown_class_counts_little_in_the_loss_and_as_absent(weights):
    targets = multi_label.targets(OPEN, CLASSES)
    outputs = torch.randn(4, N_CLASSES, generator=torch.Generator().manual_seed(0))
    total = weight = 0.0
    for z_row, y_row in zip(outputs.tolist(), targets.tolist(), strict=True):
        for place, (z, y) in enumerate(zip(z_row, y_row, strict=True)):
            each = (weights[place] if weights else 1.0) * (multi_label.UNLISTED if y < 0 else 1.0)
            total += each * np.logaddexp(0, -z if y == 1 else z)
            weight += each
    loss = multi_label.loss(outputs, targets, None if weights is None else torch.tensor(weights))
    assert loss.item() == pytest.approx(total / weight, rel=1e-5)


def test_networks_are_judged_by_complete_labels_alone():
    targets, (probs, _) = multi_label.targets(OPEN, CLASSES), drawn(4)
    answered = multi_label.answered(probs, targets)
    assert answered.image.tolist() == [2] * 4 + [3] * 4
    assert answered.right.tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
    assert torch.equal(answered.values, probs[2:].flatten(0, 1))
    assert len(multi_label.answered(probs[:2], targets[:2]).right) == 0
    with pytest.raises(ValueError, match="labels that tell of every class"):
        multi_label.measure(probs, targets, CLASSES)
    shown = multi_label.metrics(torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1], [1, -1, -1, -1], [-1, -1, -1, 1]]), targets)
    assert (shown["accuracy"].item(), shown["exact_match"].item()) == pytest.approx((10 / 11, 3 / 4))


def test_classes_without_any_label_weigh_as_much_as_the_others():
    assert class_weights(torch.zeros(3, dtype=torch.float64)).tolist() == [1.0] * 3


def test_every_decision_is_answered_once():
    probs, targets = drawn(6)
    values, right, image, decision = multi_label.answered(probs, targets)
    assert torch.equal(values, probs[image, decision])
    assert torch.equal(right, targets[image, decision].long())
    assert len({*zip(image.tolist(), decision.tolist(), strict=True)}) == 24
    assert [multi_label.in_words(1, answer, CLASSES, 4) for answer in (0, 1)] == ["no dog", "dog"]


def test_measures_are_those_of_other_libraries():
    probs, targets = drawn(200)
    metrics = multi_label.measure(probs, targets, CLASSES)
    there, y = probs[..., 1], targets.long()
    known = {
        "value": multilabel_average_precision(there, y, N_CLASSES, average="macro"),
        "macro_f1": multilabel_f1_score(there, y, N_CLASSES, average="macro"),
        "micro_f1": multilabel_f1_score(there, y, N_CLASSES, average="micro"),
        "exact_match": multilabel_exact_match(there, y, N_CLASSES),
    }
    told = {"value": metrics.value, **metrics.scalars}
    assert told == pytest.approx({name: float(value) for name, value in known.items()}, abs=1e-4)
    assert metrics.value == pytest.approx(average_precision_score(y, there, average="macro"), abs=1e-4)
    guessed = there > 0.5
    assert metrics.scalars["macro_f1"] == pytest.approx(f1_score(y, guessed, average="macro"), abs=1e-4)
    each = [average_precision_score(y[:, place], there[:, place]) for place in range(N_CLASSES)]
    assert metrics.by_class == {"average_precision": pytest.approx(dict(zip(CLASSES, each, strict=True)), abs=1e-4)}
    assert metrics.headline == multi_label.headline == "macro_AP"
    assert metrics.table is None


def test_a_draw_of_images_counts_as_if_they_were_there_so_often():
    probs, targets = drawn(30)
    weights = torch.randint(3, (5, 30), generator=torch.Generator().manual_seed(1))
    weights[:, 0] = 1
    precision = average_precision(probs[:, 0, 1], targets[:, 0] == 1, weights.double())
    for row, value in zip(weights, precision.tolist(), strict=True):
        there, y = probs[:, 0, 1].repeat_interleave(row), targets[:, 0].repeat_interleave(row)
        assert value == pytest.approx(average_precision_score(y, there))


def test_interval_is_that_of_draws_with_replacement():
    probs, targets = drawn(80)
    targets = targets == 1
    told = macro_average_precision(probs[..., 1], targets)
    draw, values = np.random.default_rng(5), []
    for _ in range(300):
        rows = torch.from_numpy(draw.integers(80, size=80))
        if targets[rows].any(dim=0).all():
            values.append(average_precision_score(targets[rows], probs[rows][..., 1], average="macro"))
    assert [told.low, told.high] == pytest.approx(np.quantile(values, [0.025, 0.975]).tolist(), abs=0.03)
    assert told.low < told.value < told.high
    assert told == macro_average_precision(probs[..., 1], targets), "the same draws each time"


def test_interval_holds_the_truth_about_as_often_as_it_says():
    _, targets = drawn(4000)
    big, big_targets = drawn(4000, seed=1)
    truth = macro_average_precision(big[..., 1], big_targets == 1).value
    told = [macro_average_precision(probs[..., 1], y == 1) for probs, y in (drawn(100, seed=s) for s in range(40))]
    assert sum(one.low <= truth <= one.high for one in told) >= 34, "of 40; 38 are expected"
    assert targets.any(dim=0).all()


def test_a_ranking_without_a_fault_is_as_sure_as_so_many_right_images():
    targets = multi_label.targets([found("cat"), found("dog"), (), found("cat", "dog")], CLASSES)
    metrics = multi_label.measure(torch.stack([1 - targets, targets], dim=2).float(), targets, CLASSES)
    assert metrics.value == metrics.scalars["exact_match"] == metrics.scalars["macro_f1"] == 1.0
    assert (metrics.low, metrics.high) == wilson_interval(4, 4)
    assert metrics.by_class["average_precision"] == {"cat": 1.0, "dog": 1.0}, "of classes that occur"
    assert metrics.effective_n == 4


def test_nothing_is_measured_where_no_image_has_a_class():
    probs, targets = drawn(5)
    assert multi_label.measure(probs, torch.zeros_like(targets), CLASSES) is None
    with pytest.raises(ValueError, match="no images"):
        multi_label.measure(probs[:0], targets[:0], CLASSES)
    with pytest.raises(ValueError, match="probs must be"):
        multi_label.measure(probs[:, :3], targets, CLASSES)


def test_effective_images_are_those_of_a_share_with_the_same_error():
    low, high = wilson_interval(160, 200)
    share = Metrics(n=200, headline="accuracy", value=0.8, low=low, high=high, nll=0, ece=0)
    assert share.effective_n == 200
    half = 1.959964 * np.sqrt(0.8 * 0.2 / 500)
    other = Metrics(200, "macro_AP", 0.8, 0.8 - half, 0.8 + half, 0, 0, is_share_of_images=False)
    assert other.effective_n == 500


def test_guess_and_columns_are_the_classes_that_are_rather_there():
    there = torch.tensor([[0.9, 0.2, 0.6, 0.5], [0.1, 0.2, 0.3, 0.4]])
    probs = torch.stack([1 - there, there], dim=2)
    guess, nothing = multi_label.guess(probs, CLASSES)
    assert [(region.label, region.score) for region in guess] == [
        ("cat", pytest.approx(0.9)),
        ("owl", pytest.approx(0.6)),
    ]
    assert nothing == ()
    columns = multi_label.in_columns(probs, CLASSES)
    assert columns["labels"].tolist() == ["cat|owl", "|"]
    assert columns["p_fox"].tolist() == pytest.approx([0.5, 0.4])
    merged, names = multi_label.merged(probs, CLASSES, {"owl": "bird", "fox": "cat"})
    assert names == ("cat", "dog", "bird")
    assert merged[..., 1].tolist() == [pytest.approx([0.9, 0.2, 0.6]), pytest.approx([0.4, 0.2, 0.3])]
    assert least_settled(probs)[0].tolist() == [3, 3]
    assert least_settled(probs)[1][1].tolist() == [0, 1]


def test_positives_teach_more_where_what_is_not_listed_is_weakly_absent(monkeypatch):
    def value_with(unlisted: float, seed: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        features = torch.randn(600, 24, generator=generator)
        is_there = features @ torch.randn(24, 3, generator=generator) > 3.5
        is_listed = is_there & (torch.rand(600, 3, generator=generator) < 0.4)
        targets = torch.where(is_listed, 1, multi_label.UNKNOWN).to(torch.int8)
        targets[:20] = is_there[:20].to(torch.int8)
        monkeypatch.setattr(multi_label, "UNLISTED", unlisted)
        weights, bias = torch.zeros(24, 3, requires_grad=True), torch.zeros(3, requires_grad=True)
        optimiser = torch.optim.AdamW([weights, bias], lr=0.1, weight_decay=0.1)
        for _ in range(60):
            optimiser.zero_grad()
            multi_label.loss(features[:150] @ weights + bias, targets[:150]).backward()
            optimiser.step()
        return macro_average_precision((features[150:] @ weights + bias).detach(), is_there[150:]).value

    chosen, absent, left_out = (
        np.mean([value_with(unlisted, seed) for seed in range(6)]) for unlisted in (multi_label.UNLISTED, 1.0, 0.0)
    )
    assert chosen > absent + 0.01, (chosen, absent)
    assert chosen > left_out + 0.01, (chosen, left_out)


def test_a_network_learns_several_labels():
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(120, 3, generator=generator) < 0.4).to(torch.int8)
    images = torch.randint(0, 60, (120, 1, 12, 12), generator=generator, dtype=torch.uint8)
    for place in range(3):
        images[targets[:, place] == 1, :, :, 4 * place : 4 * place + 3] += 150
    from pipeline.networks.build import build_model

    model = build_model("small_cnn", n_classes=3, image_size=12, channels=1, weights=None, seed=0)
    outcome = train(model, images[:80], targets[:80], task=multi_label, max_epochs=15, class_balanced=True)
    assert outcome.history[-1]["train_loss"] < 0.5 * outcome.history[0]["train_loss"]
    with torch.inference_mode():
        probs = multi_label.logits(model(images[80:])).softmax(dim=2)
    assert multi_label.measure(probs, targets[80:], CLASSES[:3]).value > 0.95
