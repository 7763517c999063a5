import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from pipeline.evaluation.metrics import (
    calibration_error,
    confusion_matrix,
    negative_log_likelihood,
    wilson_interval,
)
from pipeline.tasks import classification

CLASSES = ["cat", "dog", "owl", "fox"]


def predictions(n=400, n_classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    probs = (2 * torch.randn(n, n_classes, generator=generator)).softmax(dim=1)
    return probs, probs.multinomial(1, generator=generator).flatten()


def evaluate(probs, targets, *, classes):
    """Metrics of one decision for each image, `(n, C)`."""
    return classification.measure(probs[:, None], targets, classes)


def textbook_ece(probs, targets):
    gap = 0.0
    for number in range(15):
        lower, upper = number / 15, (number + 1) / 15
        inside = [i for i, row in enumerate(probs) if lower < max(row) <= upper]
        if inside:
            confidence = sum(max(probs[i]) for i in inside) / len(inside)
            accuracy = sum(int(np.argmax(probs[i])) == targets[i] for i in inside) / len(inside)
            gap += len(inside) / len(probs) * abs(confidence - accuracy)
    return gap


@pytest.mark.parametrize("seed", range(3))
def test_metrics_agree_with_scikit_learn(seed):
    probs, targets = predictions(seed=seed)
    metrics = evaluate(probs, targets, classes=CLASSES)
    predicted = probs.argmax(dim=1).numpy()
    assert metrics.n == 400
    assert metrics.headline == "accuracy"
    assert metrics.value == pytest.approx(sklearn.metrics.accuracy_score(targets, predicted))
    assert metrics.scalars["balanced_accuracy"] == pytest.approx(
        sklearn.metrics.balanced_accuracy_score(targets, predicted)
    )
    assert metrics.nll == pytest.approx(sklearn.metrics.log_loss(targets, probs.numpy()), rel=1e-5)
    assert list(metrics.by_class["recall"]) == CLASSES
    np.testing.assert_allclose(
        list(metrics.by_class["recall"].values()), sklearn.metrics.recall_score(targets, predicted, average=None)
    )
    np.testing.assert_array_equal(metrics.table, sklearn.metrics.confusion_matrix(targets, predicted))


@pytest.mark.parametrize("seed", range(3))
def test_calibration_error_agrees_with_a_textbook_loop_and_torchmetrics(seed):
    probs, targets = predictions(seed=seed)
    ours = calibration_error(probs, targets)
    assert ours == pytest.approx(textbook_ece(probs.double().tolist(), targets.tolist()), abs=1e-9)
    theirs = multiclass_calibration_error(probs, targets, num_classes=4, n_bins=15, norm="l1")
    assert ours == pytest.approx(theirs.item(), abs=1e-5)


def test_a_sure_prediction_is_in_the_last_bin_with_the_almost_sure():
    probs = torch.tensor([[1.0, 0.0], [0.96, 0.04]])
    targets = torch.tensor([1, 0])  # gaps +1 and -0.04 cancel in one bin, and would not in two
    assert calibration_error(probs, targets) == pytest.approx(0.96 / 2, abs=1e-6)
    assert textbook_ece(probs.double().tolist(), targets.tolist()) == pytest.approx(0.96 / 2, abs=1e-6)


def test_calibration_error_is_small_for_calibrated_and_large_for_overconfident_predictions():
    probs, targets = predictions(n=20_000)
    sharper = (4 * probs.log()).softmax(dim=1)
    assert calibration_error(probs, targets) < 0.02
    assert calibration_error(sharper, targets) > 0.1


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (0, 30), (30, 30), (17, 20), (940, 1000), (1, 10_000)])
def test_wilson_interval_agrees_with_scipy(successes, n):
    theirs = scipy.stats.binomtest(successes, n).proportion_ci(confidence_level=0.95, method="wilson")
    assert wilson_interval(successes, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_interval_covers_the_truth_about_95_times_in_100():
    hits = np.random.default_rng(0).binomial(50, 0.9, size=4000)
    covered = [low <= 0.9 <= high for low, high in (wilson_interval(int(k), 50) for k in hits)]
    assert 0.93 < np.mean(covered) < 0.98


def test_the_interval_holds_the_accuracy():
    metrics = evaluate(*predictions(), classes=CLASSES)
    assert 0 < metrics.low < metrics.value < metrics.high < 1


def test_confusion_has_the_truth_in_rows():
    matrix = confusion_matrix(torch.tensor([1, 1, 0]), torch.tensor([0, 0, 2]), n_classes=3)
    assert matrix.tolist() == [[0, 2, 0], [0, 0, 0], [1, 0, 0]]


def test_classes_that_do_not_occur_have_no_recall_and_do_not_count():
    probs = torch.tensor([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0], [0.2, 0.8, 0.0]])
    metrics = evaluate(probs, torch.tensor([0, 1, 1]), classes=["a", "b", "c"])
    assert metrics.by_class["recall"] == {"a": 1.0, "b": 0.5}
    assert metrics.scalars == {"balanced_accuracy": 0.75}
    assert metrics.table == ((1, 0, 0), (1, 1, 0), (0, 0, 0))


def test_the_order_of_classes_does_not_matter():
    probs, targets = predictions()
    order = torch.tensor([2, 0, 3, 1])
    there = evaluate(probs, targets, classes=CLASSES)
    back = evaluate(probs[:, order], order.argsort()[targets], classes=[CLASSES[i] for i in order])
    for name in ("value", "low", "high", "nll", "ece"):
        assert getattr(back, name) == pytest.approx(getattr(there, name))
    assert back.scalars == pytest.approx(there.scalars)
    assert back.by_class["recall"] == pytest.approx(there.by_class["recall"])


def test_a_sure_mistake_is_dear_and_finite():
    probs = torch.tensor([[1.0, 0.0]])
    assert negative_log_likelihood(probs, torch.tensor([1])) == pytest.approx(-np.log(np.finfo(np.float32).eps))
    assert evaluate(probs, torch.tensor([1]), classes=["a", "b"]).nll == pytest.approx(15.94, abs=0.01)


def test_one_image_is_enough():
    metrics = evaluate(torch.tensor([[0.7, 0.3]]), torch.tensor([0]), classes=["a", "b"])
    assert (metrics.n, metrics.value, metrics.high) == (1, 1.0, 1.0)
    assert metrics.low == pytest.approx(0.2065, abs=1e-4)
    assert metrics.ece == pytest.approx(0.3, abs=1e-6)


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="no images"):
        evaluate(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), classes=["a", "b"])


@pytest.mark.parametrize(
    ("probs", "targets", "message"),
    [
        (torch.full((3, 2), 0.5), torch.zeros(2, dtype=torch.long), r"\(2, 1, 2\), got \(3, 1, 2\)"),
        (torch.full((2, 3), 1 / 3), torch.zeros(2, dtype=torch.long), r"\(2, 1, 2\), got \(2, 1, 3\)"),
        (torch.full((2, 2), 0.5), torch.tensor([0, 2]), r"\[0, 2\), got 0 to 2"),
        (torch.full((2, 2), 0.5), torch.tensor([-1, 0]), r"\[0, 2\), got -1 to 0"),
        (torch.tensor([[2.0, -1.0]]), torch.tensor([0]), "prob"),
        (torch.tensor([[float("nan"), 1.0]]), torch.tensor([0]), "prob"),
    ],
)
def test_what_is_not_a_prediction_is_refused(probs, targets, message):
    with pytest.raises(ValueError, match=message):
        evaluate(probs, targets, classes=["a", "b"])
