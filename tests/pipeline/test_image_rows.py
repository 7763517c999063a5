import numpy as np
import pytest
import torch

from pipeline.image_rows import ImageRows, joined, subset
from pipeline.learning.networks import compute_in_parts
from pipeline.networks.build import build_model
from pipeline.tasks import TASKS
from pipeline.training.fit import fit
from pipeline.training.recipe import Recipe


def images(n=11, side=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (n, 1, side, side), dtype=torch.uint8, generator=generator)


def scattered(tensor):
    """The same images in two arrays, in another order."""
    order = torch.randperm(len(tensor), generator=torch.Generator().manual_seed(1))
    kept = tensor[order].numpy()
    parts = [kept[:4], kept[4:]]
    place = order.argsort()
    part = (place >= 4).long()
    return ImageRows(parts, part, place - 4 * part)


def whole(rows):
    return rows[torch.arange(len(rows))]


def test_rows_are_those_of_a_tensor():
    tensor, rows = images(), scattered(images())
    wanted = torch.tensor([3, 0, 3, 10])
    assert torch.equal(rows[wanted], tensor[wanted])
    assert (len(rows), rows.shape, rows.dtype) == (len(tensor), tensor.shape, tensor.dtype)
    for mine, theirs in ((rows.split(4), tensor.split(4)), (rows.tensor_split(3), tensor.tensor_split(3))):
        for one, other in zip(mine, theirs, strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("chosen", [slice(5), torch.tensor([7, 2]), torch.arange(11) % 2 == 0])
def test_a_subset_is_that_of_a_tensor_and_copies_nothing(chosen):
    tensor, rows = images(), scattered(images())
    fewer = subset(rows, chosen)
    assert torch.equal(whole(fewer), subset(tensor, chosen))
    assert all(one is other for one, other in zip(fewer.parts, rows.parts, strict=True))


def test_images_are_joined_wherever_they_are():
    tensor, more = images(), images(3, seed=2)
    wanted = torch.cat([tensor, more])
    assert torch.equal(joined(tensor, more), wanted)
    for one, other in ((scattered(tensor), more), (tensor, scattered(images(11, seed=2))), (scattered(tensor),) * 2):
        both = torch.cat([whole(each) if isinstance(each, ImageRows) else each for each in (one, other)])
        assert torch.equal(whole(joined(one, other)), both)


def test_training_on_rows_gives_the_network_of_training_on_a_tensor():
    tensor, targets = images(24), torch.arange(24) % 3
    weights = []
    for inputs in (tensor, scattered(tensor)):
        model = build_model("small_cnn", n_classes=3, image_size=8, channels=1, dropout=0.5, seed=0)
        recipe = Recipe(max_epochs=3, batch_size=7, augmentation="natural")
        task, cpu = TASKS["classification"], torch.device("cpu")
        outcome = fit(model, inputs, targets, recipe, task=task, seed=0, device=cpu, held_out=torch.arange(5))
        weights.append([*model.state_dict().values(), compute_in_parts(model, model, inputs)])
        assert len(outcome.history) == 3
    for one, other in zip(*weights, strict=True):
        assert torch.equal(one, other)


def test_read_only_memory_is_enough():
    kept = images().numpy()
    kept.flags.writeable = False
    rows = ImageRows([kept], torch.zeros(11, dtype=torch.long), torch.arange(11))
    taken = whole(rows)
    taken += 1
    assert np.array_equal(kept, images().numpy())
