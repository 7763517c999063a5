"""A device that is out of memory: a trunk raises torch's error for more than so many images."""

import copy
import re

import pytest
import torch
from torch import nn

from pipeline.learning.networks import compute_in_parts
from pipeline.members.predict import predict_members
from pipeline.members.swag import swag_draws
from pipeline.networks.classifier import Classifier
from pipeline.networks.features import extract
from pipeline.networks.halving import FITTING, DoesNotFit
from pipeline.tasks import classification, segmentation
from pipeline.tasks.task_type import outputs_of
from pipeline.training.fit import loss_of
from pipeline.training.gradients import Learner
from pipeline.training.recipe import Recipe
from tests.pipeline.training import CPU, train

N, SIDE, N_CLASSES = 20, 8, 3
RECIPE = Recipe(max_epochs=2, min_steps=1, batch_size=16)


class Small(nn.Module):
    """Has memory for so many images."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room, self.seen = room, []

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(images))
        if len(images) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return images


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    monkeypatch.setattr(FITTING, "known", {})


def network(room=10**9, *, task=classification, norm=False, dropout=0.0):
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(4)] if norm else []
    layers = [Small(room), nn.Conv2d(1, 4, 3, padding=1), *norms, nn.Tanh()]
    if task is classification:
        tail = nn.Sequential(nn.Dropout(dropout), nn.Linear(4 * SIDE * SIDE, N_CLASSES))
        trunk = nn.Sequential(*layers, nn.Flatten())
    else:
        tail = nn.Sequential(nn.Dropout(dropout), nn.Conv2d(4, task.n_outputs(N_CLASSES), 1))
        trunk = nn.Sequential(*layers)
    outputs = outputs_of(task, N_CLASSES)
    return Classifier(trunk, tail, n_classes=N_CLASSES, channels=1, image_size=SIDE, n_outputs=outputs)


def images(n=N):
    return torch.randint(256, (n, 1, SIDE, SIDE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def targets(n=N):
    return torch.arange(n) % N_CLASSES


def features_of(model):
    return extract(model, images(), device=CPU)


def outputs_of_lesson(model):
    return compute_in_parts(model, model, images())


def decisions_of_members(model):
    decided = predict_members([model], images(), task=classification, mc_dropout=3, seed=0)
    return torch.cat([decided.decisions.flatten(1), decided.embeddings], dim=1)


@pytest.mark.parametrize("compute", [features_of, outputs_of_lesson, decisions_of_members])
def test_half_as_many_images_come_to_the_same_and_the_next_call_begins_with_them(compute):
    large, small = network(dropout=0.5).eval(), network(6, dropout=0.5).eval()

    torch.testing.assert_close(compute(small), compute(large), rtol=1e-3, atol=1e-3)

    small.trunk[0].seen.clear()
    compute(small)
    assert max(small.trunk[0].seen) <= 6


def test_what_was_found_is_told_once(monkeypatch):
    told = []
    monkeypatch.setattr(FITTING, "on_found", lambda work, n: told.append((work, n)))
    model = network(6).eval()

    for _ in range(3):
        outputs_of_lesson(model)

    ((work, n),) = told
    assert n == 5
    assert re.match(r"inference, Sequential [0-9a-f]{8}, 1x8x8, ", work)


def gradients_of(model, task, wanted, recipe=RECIPE, *, weights=None):
    def loss(outputs, wanted, *, label_smoothing=0.0):
        return loss_of(outputs, wanted, recipe, task, weights, label_smoothing=label_smoothing)

    trained = list(model.parameters())
    learnt = Learner(model, model, task, loss, trained).set_gradients(images(), wanted, label_smoothing=0.1)
    return [learnt.outputs, learnt.loss, *(values.grad for values in trained)]


def test_gradients_of_parts_are_those_of_the_whole_batch_though_classes_have_weights():
    """A mean over parts would be another: the rare class of weight 10 is in one of them."""
    weights, rare = torch.tensor([1.0, 1.0, 10.0]), (torch.arange(N) == 0) * 2
    large, small = network().train(), network(3).train()

    found = gradients_of(small, classification, rare, weights=weights)

    torch.testing.assert_close(found, gradients_of(large, classification, rare, weights=weights))
    assert max(small.trunk[0].seen[-4:]) <= 3


def test_gradients_of_parts_are_those_of_the_whole_batch_though_overlaps_are_no_mean():
    painted = torch.randint(N_CLASSES + 1, (N, SIDE, SIDE), generator=torch.Generator().manual_seed(2))
    wanted = painted.repeat_interleave(32, 1).repeat_interleave(32, 2).to(torch.int8)
    large, small = network(task=segmentation).train(), network(3, task=segmentation).train()

    found = gradients_of(small, segmentation, wanted)

    torch.testing.assert_close(found, gradients_of(large, segmentation, wanted), rtol=1e-4, atol=1e-6)


def test_both_passes_of_a_part_drop_the_same_features():
    """What the loss has its gradient from is what the gradient is taken back through."""
    small, again = network(6, dropout=0.5).train(), network(dropout=0.5).train()
    torch.manual_seed(3)
    outputs, _, *found = gradients_of(small, classification, targets())

    torch.manual_seed(3)
    parts = torch.cat([again(part) for part in images().tensor_split(4)])

    torch.testing.assert_close(parts, outputs)
    loss_of(parts, targets(), RECIPE, classification, None, label_smoothing=0.1).backward()
    torch.testing.assert_close([values.grad for values in again.parameters()], found)


def test_training_in_parts_comes_to_the_weights_of_whole_batches():
    large, small = network(), network(6)

    whole = train(large, images(), targets(), max_epochs=3, batch_size=16, min_steps=1, held_out=torch.arange(8))
    parts = train(small, images(), targets(), max_epochs=3, batch_size=16, min_steps=1, held_out=torch.arange(8))

    torch.testing.assert_close(small.state_dict(), large.state_dict(), rtol=1e-3, atol=1e-5)
    losses = [[row["train_loss"] + row["validation_loss"] for row in one.history] for one in (whole, parts)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_statistics_of_batch_norm_move_once_for_each_part_which_has_two_images():
    model = network(2, norm=True).train()
    learner = Learner(model, model, classification, lambda o, w, **_: o.square().mean(), list(model.parameters()))
    before = copy.deepcopy(model.trunk[2].num_batches_tracked)

    learner.set_gradients(images(4), targets(4), label_smoothing=0.0)

    assert model.trunk[2].num_batches_tracked == before + 2
    assert model.trunk[0].seen[-2:] == [2, 2]


def test_draws_of_weights_go_on_in_parts():
    model, small = network(), network(6)
    how = {"task": classification, "n_draws": 1, "n_columns": 2, "seed": 0, "device": CPU}

    (whole,) = [copy.deepcopy(draw.state_dict()) for draw in swag_draws(model, images(), targets(), RECIPE, **how)]
    (parts,) = [copy.deepcopy(draw.state_dict()) for draw in swag_draws(small, images(), targets(), RECIPE, **how)]

    torch.testing.assert_close(parts, whole, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("compute", [features_of, outputs_of_lesson])
def test_image_that_does_not_fit_alone_is_an_error_with_network_size_and_mend(compute):
    with pytest.raises(DoesNotFit, match=r"one input is too much .*Sequential .*1x8x8.*GiB.*image_size"):
        compute(network(0).eval())


def test_training_ends_with_an_error_where_one_image_does_not_fit():
    with pytest.raises(DoesNotFit, match=r"one input is too much .*training"):
        train(network(0), images(), targets(), held_out=torch.arange(0))
