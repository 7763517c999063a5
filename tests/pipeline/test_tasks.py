import numpy as np
import pytest
import torch
from torch import nn

from pipeline.members.predict import predict_members
from pipeline.selection.batch import select_batch
from pipeline.selection.scoring import REDUCTIONS, score_columns
from pipeline.selection.settings import SelectionSettings
from pipeline.tasks import classification
from pipeline.training.fit import class_weights
from pipeline.types import Candidates
from tests.pipeline import dense_task
from tests.pipeline.training import train

CPU = torch.device("cpu")
N_CLASSES = 4
TASKS = {
    "classification": (classification, lambda g: torch.randn(6, N_CLASSES, generator=g), (6,)),
    "dense": (dense_task, lambda g: torch.randn(6, N_CLASSES, 3, 2, generator=g), (6, 3, 2)),
}


@pytest.fixture(params=sorted(TASKS))
def case(request):
    """A task, logits and targets of six images."""
    task, draw_logits, shape = TASKS[request.param]
    generator = torch.Generator().manual_seed(0)
    return task, draw_logits(generator), torch.randint(0, N_CLASSES, shape, generator=generator)


def by_decision(logits, targets):
    """Rows of log-probabilities and their target, in plain lists."""
    rows = logits.double().log_softmax(dim=1).movedim(1, -1).reshape(-1, N_CLASSES)
    return list(zip(rows.tolist(), targets.flatten().tolist(), strict=True))


def test_the_loss_is_the_mean_over_the_decisions(case):
    task, logits, targets = case
    expected = np.mean([-row[target] for row, target in by_decision(logits, targets)])
    assert task.loss(logits, targets).item() == pytest.approx(expected, rel=1e-5)


def test_class_weights_weigh_each_decision_by_its_class(case):
    task, logits, targets = case
    weights = [0.5, 1.0, 2.0, 4.0]
    rows = by_decision(logits, targets)
    expected = sum(-weights[t] * row[t] for row, t in rows) / sum(weights[t] for _, t in rows)
    assert task.loss(logits, targets, torch.tensor(weights)).item() == pytest.approx(expected, rel=1e-5)


def test_label_smoothing_gives_its_share_to_all_classes_evenly(case):
    task, logits, targets = case
    expected = np.mean([-0.9 * row[t] - 0.1 * np.mean(row) for row, t in by_decision(logits, targets)])
    assert task.loss(logits, targets, None, 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_decisions_are_probabilities_of_every_class(case):
    task, logits, targets = case
    decisions = task.decisions(logits)
    assert decisions.shape == (6, targets[0].numel(), N_CLASSES)
    torch.testing.assert_close(decisions.sum(dim=-1), torch.ones(decisions.shape[:2]))
    by_hand = torch.tensor([row for row, _ in by_decision(logits, targets)]).exp().float()
    torch.testing.assert_close(decisions.reshape(-1, N_CLASSES), by_hand)


def test_metrics_are_scalars_and_accuracy_counts_the_right_decisions(case):
    task, logits, targets = case
    metrics = task.metrics(logits, targets)
    assert all(value.shape == () for value in metrics.values())
    expected = np.mean([row[target] == max(row) for row, target in by_decision(logits, targets)])
    assert metrics["accuracy"].item() == pytest.approx(expected)


def test_every_image_has_one_stratum_and_every_label_is_counted(case):
    task, _, targets = case
    strata = task.strata(targets)
    assert strata.shape == (6,)
    assert strata.dtype == torch.int64
    counts = task.class_counts(targets, N_CLASSES)
    assert counts.tolist() == [(targets == label).sum() for label in range(N_CLASSES)]
    assert (class_weights(counts)[targets]).mean().item() == pytest.approx(1.0)


def test_targets_that_do_not_fit_are_refused(case):
    task, _, targets = case
    task.check_targets(targets, 6, N_CLASSES)
    for wrong, n in ((targets, 5), (targets[:0], 0), (targets - 1, 6), (targets + 1, 6)):
        with pytest.raises(ValueError, match="target"):
            task.check_targets(wrong, n, N_CLASSES)


@pytest.fixture(scope="module")
def dense():
    """A dense network, trained on 64 images of 7 x 7 labelled squares."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = dense_task.dense_model(n_classes=3, image_size=28)
    outcome = train(
        model,
        *dense_task.patchwork(64),
        task=dense_task,
        seed=0,
        device=CPU,
        learning_rate=3e-3,
        max_epochs=8,
        label_smoothing=0.05,
    )
    torch.set_num_threads(threads)
    return model, outcome


def test_a_dense_task_trains_with_the_same_fit(dense):
    model, outcome = dense
    images, targets = dense_task.patchwork(32, seed=1)
    with torch.inference_mode():
        accuracy = (model(images).argmax(dim=1) == targets).float().mean()
    assert accuracy > 0.8  # of three classes
    assert outcome.history[-1]["train_loss"] < outcome.history[0]["train_loss"]


def test_a_large_dense_labelled_set_has_a_validation_part():
    images, targets = dense_task.patchwork(300, size=12)
    model = dense_task.dense_model(n_classes=3, image_size=12)
    outcome = train(model, images, targets, task=dense_task, seed=0, device=CPU, max_epochs=1)
    assert len(outcome.held_out) == pytest.approx(30, abs=2)
    with torch.inference_mode():
        logits = model(images[outcome.held_out])
    weights = class_weights(dense_task.class_counts(targets[outcome.train], 3))
    expected = nn.functional.cross_entropy(logits, targets[outcome.held_out], weight=weights)
    assert outcome.history[0]["validation_loss"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("mc_dropout", [0, 4])
def test_members_scores_and_strategies_take_a_dense_task_as_it_is(dense, mc_dropout):
    """Grey images, between the brightness of two classes, are asked for before clear ones."""
    model, _ = dense
    clear, _ = dense_task.patchwork(20, seed=2)
    unsure = torch.full_like(clear[:4], 70) + clear[:4] % 4
    images = torch.cat([clear, unsure])
    decisions, embeddings = predict_members([model], images, task=dense_task, mc_dropout=mc_dropout, seed=0)
    assert decisions.shape == (24, 49, max(1, mc_dropout), 3)
    assert embeddings.shape == (24, 64)
    for reduce in REDUCTIONS:
        scores = score_columns(decisions, ["entropy", "margin"], reduce=reduce)
        assert all(values.shape == (24,) and values.isfinite().all() for values in scores.values())
    scores = score_columns(decisions, ["entropy"], reduce="mean")["entropy"]
    ids = np.array([f"image-{number:02d}" for number in range(24)])
    candidates = Candidates(ids=ids, scores=scores, embeddings=embeddings)
    batch = select_batch(candidates, SelectionSettings(strategy="top_k", query_size=4), round_number=1, seed=0)
    assert set(batch.ids) == set(ids[20:])
    diverse = select_batch(
        candidates, SelectionSettings(strategy="top_k_diverse", query_size=4), round_number=1, seed=0
    )
    assert len(diverse.ids) == 4
