import itertools
import math

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from pipeline.networks.build import build_model
from pipeline.networks.classifier import Classifier
from pipeline.training.diagnosis import (
    BLOWN_UP,
    N_SHUFFLES,
    batch_norm_statistics,
    chance_of_labels,
    claimed_knowledge,
    compare_batch_norm,
    diagnose,
    loss_against_guess,
)
from tests.pipeline.training import train

QUIET = [{"train_loss": 1.0}]
"""A history in which nothing blew up."""


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def digits(n, *, seed=0):
    pixels, labels = load_digits(return_X_y=True)
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:n]
    images = torch.tensor(pixels * 15.9, dtype=torch.uint8).reshape(-1, 1, 8, 8)
    return images[rows], torch.tensor(labels)[rows]


def findings_of_training(images, targets, *, seed=0, held_out_targets=None, **options):
    """Names of what is found after a training; its held-out part may be given other labels."""
    model = build_model("small_cnn", n_classes=10, image_size=8, channels=1, seed=seed)
    outcome = train(model, images, targets, seed=seed, **options)
    with torch.inference_mode():
        logits = model(images)
    held_out = outcome.held_out
    return names(
        outcome.history,
        logits=logits[outcome.train],
        targets=targets[outcome.train],
        held_out_logits=logits[held_out],
        held_out_targets=targets[held_out] if held_out_targets is None else held_out_targets[held_out],
    )


def names(history=QUIET, **predictions):
    return [finding.name for finding in diagnose(history, generator=torch.Generator().manual_seed(0), **predictions)]


def shuffled(targets, *, seed=1):
    return targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))]


def logits_of(targets, *, n_classes=5, margin=5.0, noise=1.0, seed=0):
    """What a network would give that knows these labels."""
    noise = noise * torch.randn(len(targets), n_classes, generator=torch.Generator().manual_seed(seed))
    return margin * functional.one_hot(targets, n_classes) + noise


@pytest.mark.parametrize("n", [1, 2, 5, 50, 400])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_training_that_works_has_no_findings(n, seed):
    assert findings_of_training(*digits(n, seed=seed), seed=seed) == []


def test_rare_classes_alone_are_no_finding():
    images, labels = digits(1000)
    rare = labels == 3
    keep = ~rare | (rare.cumsum(dim=0) <= 15)
    assert findings_of_training(images[keep][:300], rare[keep][:300].long()) == []


@pytest.mark.parametrize("n", [5, 50, 400])
@pytest.mark.parametrize("learning_rate", [1.0, 10.0])
def test_a_learning_rate_that_is_far_too_high_is_found_and_nothing_that_comes_of_it(n, learning_rate):
    assert findings_of_training(*digits(n), learning_rate=learning_rate) == ["learning_rate_too_high"]


def test_a_network_that_hardly_moves_is_found_at_the_prior():
    assert findings_of_training(*digits(60), learning_rate=1e-7) == ["stuck_at_prior"]


def test_held_out_labels_of_other_images_do_not_line_up():
    images, targets = digits(400)
    other = shuffled(targets)
    assert findings_of_training(images, targets, held_out_targets=other) == ["labels_do_not_line_up"]


def test_a_high_loss_that_was_got_over_is_no_finding():
    targets = torch.arange(60) % 5
    history = [{"train_loss": 2 * BLOWN_UP * math.log(5)}, {"train_loss": 0.1}]
    assert names(history, logits=logits_of(targets), targets=targets) == []
    assert names(history, logits=torch.zeros(60, 5), targets=targets) == ["learning_rate_too_high"]


def test_one_predicted_class_is_found_though_its_loss_is_below_that_of_a_guess():
    targets = torch.tensor([0] * 90 + [1] * 10)
    logits = torch.stack([torch.full((100,), 2.0), 1.5 * targets], dim=1)
    assert loss_against_guess(logits, targets) < 1
    assert names(logits=logits, targets=targets) == ["constant_predictions"]


def test_probabilities_that_are_all_but_the_same_are_constant_predictions():
    targets = torch.arange(60) % 5
    assert names(logits=1e-4 * logits_of(targets), targets=targets) == ["constant_predictions"]


def test_classes_in_another_order_do_not_line_up():
    targets = torch.arange(60) % 5
    assert names(logits=logits_of((targets + 1) % 5), targets=targets) == ["labels_do_not_line_up"]


def test_labels_learned_by_heart_line_up_until_held_out_images_are_shown():
    targets = shuffled(torch.arange(60) % 5)
    trained = {"logits": logits_of(targets), "targets": targets}
    assert names(**trained) == []
    unseen = {"held_out_logits": logits_of(shuffled(targets, seed=2)), "held_out_targets": targets}
    assert names(**trained, **unseen) == ["labels_do_not_line_up"]


@pytest.mark.parametrize(("per_class", "expected"), [(1, []), (4, []), (5, ["labels_do_not_line_up"])])
def test_classes_that_out_of_fold_heads_have_hardly_seen_say_nothing(per_class, expected):
    targets = torch.arange(12 * per_class) % 12
    trained = {"logits": logits_of(targets, n_classes=12), "targets": targets}
    out_of_fold = logits_of(targets, n_classes=12, margin=-3.0)  # its own class is the rarest for each of them
    assert names(**trained, held_out_logits=out_of_fold, held_out_targets=targets) == expected


def test_a_network_that_knows_nothing_of_many_absent_classes_is_stuck():
    targets = torch.arange(40) % 20
    logits = torch.randn(40, 200, generator=torch.Generator().manual_seed(0)) / 2
    assert loss_against_guess(logits, targets) > 1.7
    assert names(logits=logits, targets=targets) == ["stuck_at_prior"]


def test_an_empty_held_out_part_is_none():
    targets = torch.arange(60) % 5
    logits = logits_of((targets + 1) % 5)
    nothing = {"held_out_logits": logits[:0], "held_out_targets": targets[:0]}
    assert names(logits=logits, targets=targets, **nothing) == ["labels_do_not_line_up"]


@pytest.mark.parametrize("n_rare", [0, 1, 2])
def test_a_held_out_part_with_few_orders_of_its_labels_says_nothing(n_rare):
    targets = torch.arange(60) % 5
    labels = torch.tensor([0] * (30 - n_rare) + [1] * n_rare)
    unseen = {"held_out_logits": logits_of(1 - labels), "held_out_targets": labels}
    assert names(logits=logits_of(targets), targets=targets, **unseen) == []


def test_labels_of_one_class_have_no_findings():
    assert names(logits=torch.zeros(20, 3), targets=torch.ones(20, dtype=torch.long)) == []


def test_a_sure_network_that_is_mostly_wrong_is_no_better_than_a_guess():
    targets = torch.arange(100) % 5
    logits = logits_of(torch.where(torch.arange(100) % 10 < 4, targets, (targets + 1) % 5), margin=20.0)
    assert names(logits=logits, targets=targets) == ["stuck_at_prior"]


@pytest.mark.parametrize("seed", range(3))
def test_loss_against_a_guess_agrees_with_a_textbook_loop(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(50, 6, generator=generator)
    targets = torch.tensor([0.6, 0.25, 0.1, 0.05]).multinomial(50, replacement=True, generator=generator) + 1
    losses, counts = {}, {}
    for row, target in zip(logits.double().tolist(), targets.tolist(), strict=True):
        loss = math.log(sum(math.exp(value) for value in row)) - row[target]
        losses[target] = losses.get(target, 0.0) + loss
        counts[target] = counts.get(target, 0) + 1
    plain = sum(losses.values()) / -sum(count * math.log(count / 50) for count in counts.values())
    balanced = sum(losses[c] / counts[c] for c in counts) / len(counts) / math.log(len(counts))
    assert loss_against_guess(logits, targets) == pytest.approx(min(plain, balanced))


def test_no_constant_prediction_is_better_than_a_guess():
    targets = torch.tensor([0] * 15 + [1] * 4 + [2])
    frequencies = torch.tensor([0.75, 0.2, 0.05, 1e-9])
    even = torch.tensor([1.0, 1.0, 1.0, 1e-9])
    for best in (frequencies, even):
        assert loss_against_guess(best.log().expand(20, 4), targets) == pytest.approx(1.0)
    for constant in 3 * torch.randn(200, 4, generator=torch.Generator().manual_seed(0)):
        assert loss_against_guess(constant.expand(20, 4), targets) >= 1


def test_knowledge_that_is_claimed_runs_from_none_to_all():
    targets = torch.arange(30) % 5
    assert claimed_knowledge(torch.randn(5).expand(30, 5)) == pytest.approx(0.0, abs=1e-12)
    assert claimed_knowledge(1000.0 * functional.one_hot(targets, 5)) == pytest.approx(1.0)
    halves = torch.stack([torch.tensor([0.0, 0.0, -1e4, -1e4]), torch.tensor([-1e4, -1e4, 0.0, 0.0])])
    assert claimed_knowledge(halves) == pytest.approx(0.5)  # one of two bits


def test_chance_of_the_labels_agrees_with_all_their_orders():
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        logits, targets = torch.randn(6, 3, generator=generator), torch.tensor([0, 0, 1, 1, 2, 2])
        losses = -logits.double().log_softmax(dim=1)
        all_orders = torch.tensor(list(itertools.permutations(targets.tolist())))
        sums = losses[torch.arange(6), all_orders].sum(dim=1)
        truth = (sums <= losses[torch.arange(6), targets].sum() + 1e-9).double().mean().item()
        error = math.sqrt(truth * (1 - truth) / N_SHUFFLES)
        assert chance_of_labels(logits, targets, generator=generator) == pytest.approx(truth, abs=4 * error)


def test_the_same_generator_gives_the_same_finding():
    targets = torch.arange(60) % 5
    predictions = {"logits": logits_of((targets + 1) % 5, margin=2.0), "targets": targets}
    first, second = (diagnose(QUIET, **predictions, generator=torch.Generator().manual_seed(3)) for _ in range(2))
    assert first == second != ()


def test_refuses_logits_that_do_not_go_with_the_labels():
    with pytest.raises(ValueError, match=r"\(n, C\)"):
        names(logits=torch.zeros(3, 2), targets=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="finite"):
        names(logits=torch.tensor([[0.0, math.nan], [0.0, 1.0]]), targets=torch.tensor([0, 1]))


def batch_norm_model():
    """Batch-norm layers "trunk.1" and "trunk.10", and one with neither statistics nor a finding."""
    between = [nn.ReLU() for _ in range(7)]
    silent = nn.BatchNorm2d(8, track_running_stats=False)
    trunk = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), silent, *between, nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1)
    )
    return Classifier(trunk, nn.Sequential(nn.Flatten(), nn.Linear(8, 10)), n_classes=10, channels=1)


def after_running(model):
    """What is found after the network, in the mode it is in, has seen images."""
    before = batch_norm_statistics(model)
    assert list(before) == ["trunk.1", "trunk.10"]
    model(digits(16)[0])
    return [(finding.name, finding.what.partition("layers ")[2]) for finding in compare_batch_norm(before, model)]


def test_batch_norm_that_moves_where_it_is_trained_and_rests_where_it_is_frozen_is_no_finding():
    model = batch_norm_model()
    assert after_running(model.train()) == []
    model.freeze("trunk.1")
    assert after_running(model.train()) == []
    model.freeze("trunk")
    assert after_running(model.train()) == []


def test_batch_norm_left_in_evaluation_mode_or_without_momentum_is_found():
    model = batch_norm_model()
    assert after_running(model.eval()) == [("batch_norm_stuck", "trunk.1, trunk.10")]
    model.trunk[10].momentum = 0.0
    assert after_running(model.train()) == [("batch_norm_stuck", "trunk.10")]


def test_batch_norm_of_a_frozen_part_in_training_mode_is_found():
    model = batch_norm_model()
    model.freeze("trunk.1")
    model.trunk.train()
    assert after_running(model) == [("frozen_batch_norm_moved", "trunk.1")]
    model.freeze("trunk")
    model.trunk.train()
    assert after_running(model) == [("frozen_batch_norm_moved", "trunk.1, trunk.10")]


def test_batch_norm_of_pretrained_weights_is_to_rest_and_found_where_it_moves():
    model = batch_norm_model()
    model.pretrained = True
    assert after_running(model.train()) == []
    model.trunk[10].train()
    assert after_running(model) == [("frozen_batch_norm_moved", "trunk.10")]


@pytest.mark.parametrize("n", [1, 16])
def test_training_with_one_image_keeps_its_statistics_on_purpose(n):
    model = batch_norm_model()
    before = batch_norm_statistics(model)
    images, targets = digits(n)
    train(model, images, targets, max_epochs=1)
    assert compare_batch_norm(before, model, smallest_batch=n) == ()
    if n == 1:
        assert [finding.name for finding in compare_batch_norm(before, model)] == ["batch_norm_stuck"]
