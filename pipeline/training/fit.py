"""Training on the labelled set: one plain loop, seeded."""

import copy
import math
import platform
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from pipeline.networks.classifier import Classifier, evaluating, seeded
from pipeline.pool.groups import strata_of_groups
from pipeline.registries import look_up
from pipeline.tasks import Task
from pipeline.training.augmentation import AUGMENTATIONS, Augmentation, unchanged

MIN_VALIDATION = 30
"""A validation part of fewer images picks the best epoch by luck (30 give an accuracy within 9 points) and costs labels
that training needs, so none is held out; with fewer than `MIN_PER_CLASS` labelled images for each class neither."""
MIN_PER_CLASS = 5
MIN_JUDGED = 5
"""Images of a class from which predictions out of fold are judged: one that missed the image's fold has hardly seen
a class of fewer, or not at all, and thinks it rarer the more of its images are in the fold. With ten right labels of
each of five digits and one to three of the others, up to 7 of the rare labels would seem wrong."""
MAX_CLASS_WEIGHT = 10.0
"""How many times more an image of a rare class may count than the average image."""
MAX_GRADIENT_NORM = 1.0
"""Longer gradients are shortened to this. AdamW divides by the usual size of a gradient, so that a shorter one makes as
long a step; but one batch with an odd image would count for more than the hundred before it."""
WARM_UP_STEPS = 20
"""Steps until the learning rate is whole, at most a tenth of all: AdamW's first steps rest on few gradients, and a new
head sends noise into a pretrained trunk."""
PATIENCE_GROWTH = 1.5
"""Training goes on until this many times the best epoch at least: late progress is slow, and is not cut."""
ALL_FROM = {"natural": 50.0, "digits": 1.0, "none": 1.0}
"""For each augmentation, labels per class from which training everything is worth it: photographs are what ImageNet's
features were made for. See docs/decisions/0006-what-is-trained.md."""
STALL = 3
"""Epochs without a lower loss after which the schedule "plateau" halves the learning rate."""


class TrainingError(RuntimeError):
    """Training does not lead anywhere."""


@dataclass(frozen=True)
class Fit:
    """What a training came to.

    Attributes:
        history: for each epoch train_loss and the task's metrics as train_..., measured while training with dropout,
            augmentation and label smoothing on, and validation_loss and validation_..., measured without them, absent
            where there is no validation part.
        train: `(m,)` positions that were trained on; a bootstrap has some more than once.
        held_out: `(v,)` positions of the validation part, v >= 0.
        best_epoch: position in `history` of the epoch whose weights the network has.
    """

    history: list[dict[str, float]]
    train: Tensor
    held_out: Tensor
    best_epoch: int


@dataclass(frozen=True)
class CrossFit:
    """What networks say of labelled images that they were not trained on.

    Attributes:
        logits: `(n, C)`, or what else the task's logits are for n images; float32 on the CPU.
        epochs: that each of these networks was trained for.
    """

    logits: Tensor
    epochs: int


def fit(
    model: Classifier,
    inputs: Tensor,
    targets: Tensor,
    *,
    task: Task,
    seed: int,
    device: torch.device,
    from_features: bool = False,
    learning_rate: float = 2e-3,
    body_rate: float = 0.1,
    weight_decay: float = 1e-2,
    max_epochs: int = 30,
    patience: int | None = 5,
    batch_size: int = 32,
    min_steps: int = 16,
    augmentation: str = "none",
    class_balanced: bool = True,
    label_smoothing: float = 0.0,
    schedule: str = "cosine",
    validation_share: float = 0.1,
    held_out: Tensor | None = None,
    pool_sample: Tensor | None = None,
    bootstrap: bool = False,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> Fit:
    """Train what is not frozen of `model` in place, with AdamW, and restore its best epoch; return how it went.

    The best epoch has the lowest loss on the validation part, or on the training images where there are too few for
    one (`MIN_VALIDATION`). The model stays on `device`, in evaluation mode; a temperature and a posterior, which belong
    to the weights before, are put back to none. The same arguments on the same machine give the same weights; torch's
    global generator is left as it was.

    Without pretrained weights mean and std are those of `pool_sample`.

    Args:
        inputs: images `(n, channels, S, S)` of uint8, n >= 1; or with `from_features` what the frozen trunk made of
            them, `(n, ...)` floats, of which only the tail is trained, without augmentation.
        targets: `(n, ...)` as the task has them; classes may be absent.
        body_rate: the trunk's learning rate as a share of `learning_rate`, where its weights are pretrained.
        max_epochs: epochs at most, and the horizon of the cosine: one that is much longer than training needs has it
            stopped while the learning rate is still high.
        patience: epochs without a lower loss before training stops, more where the best came late (`is_over`); None:
            it does not stop, the last epoch is taken, and the validation part is only measured: the schedule "plateau"
            goes by the loss on the training images.
        batch_size: images in an optimiser step; a single image left over joins the step before it.
        min_steps: an epoch is one pass over the images, or this many optimiser steps where a pass has fewer: what a
            network learns from few images is decided by the steps that it makes.
        augmentation: a key of `AUGMENTATIONS`.
        class_balanced: weigh classes by inverse frequency, up to `MAX_CLASS_WEIGHT`.
        label_smoothing: share of the probability that a label gives to all classes evenly, in [0, 1).
        schedule: a key of `SCHEDULES`: what becomes of the learning rate after the warm-up.
        validation_share: share of each class to hold out, in [0, 1).
        held_out: positions to hold out instead, whatever their number; empty for none.
        pool_sample: `(m, channels, S, S)` of uint8, images that need no label, to take mean and std from; None for the
            images trained on, however few they are. Pretrained weights come with their own.
        bootstrap: train on as many images of each class as there are, drawn with replacement, for bagging
            (Breiman, 1996); the validation part is carved off first.
        on_epoch: called with each row of the history as it is made.
    """
    task.check_targets(targets, len(inputs), model.n_classes)
    _check_settings(
        max_epochs, patience, batch_size, min_steps, augmentation, label_smoothing, schedule, validation_share
    )
    if from_features:
        _check_features(model, augmentation)
    generator = torch.Generator().manual_seed(seed)
    strata = task.strata(targets)
    if held_out is None:
        train, held_out = split_validation(strata, share=validation_share, generator=generator)
    else:
        train = _all_but(held_out, len(targets))
    if bootstrap:
        train = train[draw_bootstrap(strata[train], generator=generator)]
    weights = None
    if class_balanced:
        weights = class_weights(task.class_counts(targets[train], model.n_classes)).to(device)
    if not from_features and not model.pretrained:
        images, rows = (inputs, train) if pool_sample is None else (pool_sample, None)
        model.set_normalisation(images, rows)
    _prepare(model, device)
    _set_training_mode(model, smallest_batch=min(len(train), batch_size))
    network, predict = (model.tail, model.read) if from_features else (model, model)
    inputs = inputs.to(device, torch.float32) if from_features else inputs
    load = partial(_load, inputs, targets.to(device), device)
    optimiser = _make_optimiser(model.parameter_groups(learning_rate, body_rate), learning_rate, weight_decay)
    n_steps = _count_steps(len(train), batch_size, min_steps)
    watched = "validation_loss" if len(held_out) and patience is not None else "train_loss"
    moving = _moving_tensors(network)
    history: list[dict[str, float]] = []
    losses: list[float] = []
    best = 0
    best_state: list[Tensor] = []
    with seeded(seed, device), _few_threads(from_features):
        for epoch in range(max_epochs):
            shares = [
                learning_rate_share(epoch * n_steps + step, max_epochs * n_steps, schedule=schedule, losses=losses)
                for step in range(n_steps)
            ]
            steps = (train[rows] for rows in _steps(len(train), batch_size, n_steps, generator))
            batches = load(steps, AUGMENTATIONS[augmentation])
            row = _train_epoch(predict, batches, shares, optimiser, task, weights, label_smoothing)
            if len(held_out):
                with evaluating(network), torch.inference_mode():
                    row |= _validate(predict, load(held_out.split(batch_size), unchanged), task, weights)
            _check_finite(row, epoch, learning_rate)
            history.append(row)
            losses.append(row[watched])
            if on_epoch is not None:
                on_epoch(row)
            if patience is None:
                best = epoch
            elif losses.index(min(losses)) == epoch:
                best, best_state = epoch, [values.detach().clone() for values in moving]
            elif is_over(losses, patience):
                break
    if best_state:
        _restore(moving, best_state)
    model.eval()
    return Fit(history, train, held_out, best)


def choose_phase(targets_per_class: float, *, pretrained: bool, last_stage_from: float, all_from: float) -> str:
    """What to train with so many labels: "head", "last_stage" or "all", a key of `models.PHASES`.

    A head on pretrained features has the fewest weights to find, and few labels find no more; with many, the features
    themselves are better fitted to the images. A network without pretrained weights has no features to keep.

    Args:
        targets_per_class: labels over classes.
        last_stage_from: labels per class from which the last stage is trained too.
        all_from: labels per class from which everything is, at least `last_stage_from`.

    >>> [choose_phase(n, pretrained=True, last_stage_from=2, all_from=100) for n in (1, 2, 100)]
    ['head', 'last_stage', 'all']
    """
    if not 0 <= last_stage_from <= all_from:
        raise ValueError(f"last_stage_from must be in [0, all_from], got {last_stage_from} and all_from {all_from}")
    if not pretrained or targets_per_class >= all_from:
        return "all"
    return "last_stage" if targets_per_class >= last_stage_from else "head"


def cross_fit(
    model: Classifier,
    features: Tensor,
    targets: Tensor,
    *,
    task: Task,
    seed: int,
    device: torch.device,
    n_folds: int = 5,
    max_epochs: int = 30,
    patience: int | None = 5,
    schedule: str = "cosine",
    groups: Tensor | None = None,
    **options: Any,
) -> CrossFit:
    """Train a head without each fold in turn, from the weights that `model` has, and let it predict the fold.

    With patience the number of epochs is chosen for all folds at once, by the loss on all images, each out of its fold,
    and the heads are trained again for as many: no fold's logits come from an epoch that was picked on it alone, and
    they are what `fit` with `max_epochs=epochs` and `patience=None` gives on images that it has not seen. A cosine
    that ends sooner gets as many epochs as bring the sum of learning rates up to the best epoch; the schedule
    "plateau" goes by the loss on the training images in the folds as it does there.

    The model keeps its weights, which must not have seen these images. An image alone in its class is predicted by
    heads that never saw the class.

    Args:
        features: `(n, ...)` of the frozen trunk, n >= 2.
        targets: `(n, ...)` as the task has them.
        n_folds: folds, each with its share of every class; as many as images at most.
        patience: as in `fit`, on the loss over all folds; None: `max_epochs` it is.
        groups: `(n,)` numbers of at least 2 groups, none of which is in two folds; None where each image is one.
        options: what else `fit` takes, for every fold.
    """
    if len(features) < 2 or n_folds < 2:
        raise ValueError(f"cross_fit needs 2 images and 2 folds at least, got {len(features)} and {n_folds}")
    generator = torch.Generator().manual_seed(seed)
    folds = split_folds(task.strata(targets), n_folds=n_folds, generator=generator, groups=groups)
    if len(folds) < 2:
        raise ValueError("cross_fit needs 2 groups at least, got all images in one")
    sizes = torch.tensor([len(fold) for fold in folds], dtype=torch.float64)

    def predict_folds(epochs: int) -> tuple[Tensor, list[float]]:
        """Logits of all images, and the loss on them after each epoch."""
        logits, losses = [], []
        for fold in folds:
            head = copy.deepcopy(model, {id(model.trunk): model.trunk})
            outcome = fit(
                head,
                features.float(),
                targets,
                task=task,
                seed=seed,
                device=device,
                from_features=True,
                max_epochs=epochs,
                patience=None,
                schedule=schedule,
                held_out=fold,
                **options,
            )
            logits.append(head.read(features[fold].to(device)).detach().cpu())
            losses.append([row["validation_loss"] for row in outcome.history])
        return torch.cat(logits)[torch.cat(folds).argsort()], (sizes @ torch.tensor(losses).double()).tolist()

    logits, losses = predict_folds(max_epochs)
    epochs = max_epochs
    if patience is not None:
        seen = next((n for n in range(1, max_epochs) if is_over(losses[:n], patience)), max_epochs)
        best = losses.index(min(losses[:seen]))

        def sum_of_shares(n: int, horizon: int) -> float:
            return sum(SCHEDULES[schedule]((epoch + 0.5) / horizon, losses[:epoch]) for epoch in range(n))

        # Only the cosine depends on the horizon: for the others, whatever the losses, it is the epochs up to the best.
        wanted = sum_of_shares(best + 1, max_epochs)
        epochs = 1 + bisect_left(range(1, max_epochs), wanted, key=lambda n: sum_of_shares(n, n))
    if epochs < max_epochs:
        logits, _ = predict_folds(epochs)
    return CrossFit(logits, epochs)


def is_over(losses: Sequence[float], patience: int) -> bool:
    """Whether training has waited long enough: e >= max(b + patience, `PATIENCE_GROWTH` b) after e epochs, b the best.

    Args:
        losses: `(e,)` of the epochs so far, e >= 1.

    >>> is_over([3.0, 2.0, 2.5], patience=2), is_over([3.0, 2.0, 2.5, 2.5], patience=2)
    (False, True)
    """
    best = losses.index(min(losses)) + 1
    return len(losses) >= max(best + patience, PATIENCE_GROWTH * best)


def split_validation(
    strata: Tensor, *, share: float, generator: torch.Generator, groups: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Positions to train on and positions to hold out, each sorted; the second is empty for a small labelled set.

    Of n images it is `round(share * n)`, dealt out by largest remainder: each class gives its share, rounded down, and
    one more where most is left of it; at least one image of a class stays to train on. Groups are held out whole: the
    one of `1 / share` folds that comes nearest to that number, and none where each takes all of a class, has less than
    `MIN_VALIDATION` images or more than twice the share.

    Args:
        strata: `(n,)` the class of each image.
        share: in [0, 1).
        groups: `(n,)` numbers of the groups; None where each image is its own.
    """
    n, counts = len(strata), strata.bincount()
    n_classes = int((counts > 0).sum())
    n_held_out = min(round(share * n), n - n_classes)
    if n_held_out < MIN_VALIDATION or n < MIN_PER_CLASS * n_classes:
        n_held_out = 0
    is_held_out = torch.zeros(n, dtype=torch.bool)
    if groups is None:
        is_held_out[_evenly(strata, share, generator)[:n_held_out]] = True
    elif n_held_out:
        folds = split_folds(strata, n_folds=round(1 / share), generator=generator, groups=groups)
        can_be_spared = [
            fold
            for fold in folds
            if MIN_VALIDATION <= len(fold) <= 2 * n_held_out
            and (strata[fold].bincount(minlength=len(counts)) < counts)[counts > 0].all()
        ]
        if can_be_spared:
            is_held_out[min(can_be_spared, key=lambda fold: abs(len(fold) - n_held_out))] = True
    return (~is_held_out).nonzero().flatten(), is_held_out.nonzero().flatten()


def _evenly(strata: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Positions `(n,)` in such an order that the first of them are of all classes by their shares."""
    n, counts = len(strata), strata.bincount()
    shuffled = torch.randperm(n, generator=generator)
    labels = strata[shuffled]
    by_class = labels.argsort(stable=True)
    rank = torch.empty(n, dtype=torch.int64)
    rank[by_class] = torch.arange(n) - (counts.cumsum(0) - counts)[labels[by_class]]
    # How far holding out this one too takes its class above its share: 0 for the share rounded down.
    above = (rank + 1 - share * counts[labels].double()).clamp(min=0)
    above[rank == counts[labels] - 1] = torch.inf
    return shuffled[above.argsort(stable=True)]


def split_folds(
    strata: Tensor, *, n_folds: int, generator: torch.Generator, groups: Tensor | None = None
) -> list[Tensor]:
    """Positions of each fold, sorted; together every position once.

    The images are dealt out class by class, so that folds differ by one image at most, in all and in each class.
    Groups are dealt out whole, by their most frequent class, the large ones first.

    Args:
        strata: `(n,)` the class of each image.
        n_folds: folds wanted; there are as many as images, or groups, at most.
        groups: `(n,)` numbers from 0, each at least once; None where each image is its own.
    """
    if groups is None:
        return _deal(strata, n_folds, generator)
    sizes = groups.bincount()
    dealt = _deal(strata_of_groups(groups, strata), n_folds, generator, sizes)
    fold_of = torch.empty(len(sizes), dtype=torch.int64)
    for number, members in enumerate(dealt):
        fold_of[members] = number
    return [(fold_of[groups] == number).nonzero().flatten() for number in range(len(dealt))]


def _deal(strata: Tensor, n_folds: int, generator: torch.Generator, sizes: Tensor | None = None) -> list[Tensor]:
    """Positions of each fold, dealt out class by class, within a class the largest first."""
    shuffled = torch.randperm(len(strata), generator=generator)
    if sizes is not None:
        shuffled = shuffled[sizes[shuffled].argsort(descending=True, stable=True)]
    dealt = shuffled[strata[shuffled].argsort(stable=True)]
    return [dealt[first::n_folds].sort().values for first in range(min(n_folds, len(strata)))]


def judged_out_of_fold(strata: Tensor, groups: Tensor | None = None) -> Tensor:
    """Whether what networks out of its fold say of an image says something of them, `(n,)`: see `MIN_JUDGED`.

    For the tau of a posterior and a list of wrong labels: an image alone in its class is always taken for one of
    another. A temperature is fitted to all, because images of rare classes will come: with 10 labels of digits the NLL
    of fresh images is 2.2 nats then and 6.4 without; with 20 of unequal classes (0.7 times the one before) 1.1 and 2.2.
    With one label of each class it says next to nothing: 2.1 with and without, where 1.4 would be the best.

    Args:
        strata: `(n,)` the class of each image.
        groups: `(n,)` numbers of the groups, whose other images are not seen either; None where each is its own.

    >>> judged_out_of_fold(torch.tensor([0, 1, 0, 0, 0, 0]))
    tensor([ True, False,  True,  True,  True,  True])
    >>> judged_out_of_fold(torch.tensor([0, 0, 0, 0, 0]), torch.tensor([0, 1, 2, 3, 3]))
    tensor([ True,  True,  True, False, False])
    """
    not_seen = torch.ones_like(strata)
    if groups is not None:
        pairs = groups * (int(strata.max()) + 1) + strata
        not_seen = pairs.bincount()[pairs]
    return strata.bincount()[strata] - not_seen >= MIN_JUDGED - 1


def draw_bootstrap(strata: Tensor, *, generator: torch.Generator) -> Tensor:
    """Positions `(n,)` drawn with replacement within each class, so that no class is lost or outgrows its share.

    Args:
        strata: `(n,)` the class of each image.
    """
    drawn = []
    for label in strata.unique():
        rows = (strata == label).nonzero().flatten()
        drawn.append(rows[torch.randint(len(rows), (len(rows),), generator=generator)])
    return torch.cat(drawn).sort().values


def class_weights(counts: Tensor) -> Tensor:
    """Inverse frequency of each class up to `MAX_CLASS_WEIGHT`, 1 for a label on average; absent classes have 1.

    A class of x labels has `min(s / x, MAX_CLASS_WEIGHT)`, where s, what a class that is not capped counts for in all,
    makes the mean 1: with the j rarest classes capped it is what is left for the others, the most over all j.

    Args:
        counts: `(C,)` labels of each class, at least one in all.

    Returns:
        `(C,)` float32.
    """
    present = counts[counts > 0].sort().values
    left = counts.sum() - MAX_CLASS_WEIGHT * (present.cumsum(0) - present)
    each = (left / torch.arange(len(present), 0, -1, device=counts.device)).max()
    return torch.where(counts > 0, (each / counts).clamp(max=MAX_CLASS_WEIGHT), 1.0).float()


def learning_rate_share(step: int, n_steps: int, *, schedule: str, losses: Sequence[float]) -> float:
    """Share of the learning rate that an optimiser step has, in (0, 1].

    Args:
        step: counted from 0.
        n_steps: steps of the whole training. Of these, `WARM_UP_STEPS` and at most a tenth rise in a line.
        schedule: a key of `SCHEDULES`.
        losses: of the epochs so far.
    """
    warm_up = min(WARM_UP_STEPS, n_steps // 10)
    if step < warm_up:
        return (step + 1) / (warm_up + 1)
    return SCHEDULES[schedule]((step - warm_up) / (n_steps - warm_up), losses)


def cosine(progress: float, losses: Sequence[float]) -> float:
    """From 1 down to 0 along half a cosine over the whole training (Loshchilov and Hutter, 2017)."""
    return (1 + math.cos(math.pi * progress)) / 2


def plateau(progress: float, losses: Sequence[float]) -> float:
    """Half as much each time that `STALL` epochs in a row brought no lower loss."""
    share, lowest, waited = 1.0, math.inf, 0
    for loss in losses:
        waited = 0 if loss < lowest else waited + 1
        lowest = min(lowest, loss)
        if waited == STALL:
            share, waited = share / 2, 0
    return share


def constant(progress: float, losses: Sequence[float]) -> float:
    """All of it, to the end."""
    return 1.0


def choose_device(name: str) -> torch.device:
    """The device called "cpu", "cuda" or "mps"; "auto" takes the first that is there of cuda, mps, cpu."""
    is_there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return torch.device(next(device for device, there in is_there.items() if there))
    if name not in is_there:
        raise ValueError(f"device must be auto, cpu, cuda or mps, got {name!r}")
    if not is_there[name]:
        raise ValueError(f"device {name!r} is not on this machine, or this build of torch does not know it")
    return torch.device(name)


def device_name(device: torch.device) -> str:
    """Model name of the processor or GPU, for the record of a run."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        named = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
        if named:
            return named[1].strip()
    return platform.processor() or platform.machine()


@contextmanager
def _few_threads(is_small: bool) -> Iterator[None]:
    """One thread for the products of a small head, which sharing between threads makes slower: twice on two cores."""
    n_threads = torch.get_num_threads()
    if is_small:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)


def _prepare(model: Classifier, device: torch.device) -> None:
    """Move the model to the device, without what was fitted to its weights."""
    model.posterior = None
    model.temperature.fill_(1.0)
    model.to(device)


def _make_optimiser(groups: list[dict[str, Any]], learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    optimiser = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay, fused=True)
    for group in optimiser.param_groups:
        group["initial_lr"] = group["lr"]
    return optimiser


def _count_steps(n: int, batch_size: int, min_steps: int) -> int:
    """Optimiser steps of one epoch over n images."""
    has_single_left = n > batch_size and (n - 1) % batch_size == 0
    return max(min_steps, -(-n // batch_size) - has_single_left)


def _steps(n: int, batch_size: int, left: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of each of so many optimiser steps, which is one epoch."""
    while left > 0:
        batches = list(torch.randperm(n, generator=generator).split(batch_size))
        if len(batches) > 1 and len(batches[-1]) == 1:
            batches[-2:] = [torch.cat(batches[-2:])]
        yield from batches[:left]
        left -= len(batches)


def _load(
    inputs: Tensor, targets: Tensor, device: torch.device, steps: Iterable[Tensor], augment: Augmentation
) -> Iterator[tuple[Tensor, Tensor]]:
    for rows in steps:
        yield augment(_take(inputs, rows, device)), targets[rows.to(device)]


def _take(inputs: Tensor, rows: Tensor, device: torch.device) -> Tensor:
    """Rows of `inputs` on the device; to a GPU from pinned memory, so that nobody waits for the copy."""
    if inputs.is_cuda or device.type != "cuda":
        return inputs[rows.to(inputs.device)].to(device)
    pinned = torch.empty((len(rows), *inputs.shape[1:]), dtype=inputs.dtype, pin_memory=True)
    return torch.index_select(inputs, 0, rows, out=pinned).to(device, non_blocking=True)


def _train_epoch(
    predict: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    shares: Sequence[float],
    optimiser: torch.optim.Optimizer,
    task: Task,
    weights: Tensor | None,
    label_smoothing: float,
) -> dict[str, float]:
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    measured = []
    for (inputs, targets), share in zip(batches, shares, strict=True):
        for group in optimiser.param_groups:
            group["lr"] = share * group["initial_lr"]
        logits = predict(inputs)
        loss = task.loss(logits, targets, weights, label_smoothing)
        optimiser.zero_grad()
        loss.backward()
        clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
        optimiser.step()
        measured.append((len(targets), {"loss": loss.detach(), **task.metrics(logits.detach(), targets)}))
    return _means("train", measured)


def _validate(
    predict: Callable[[Tensor], Tensor], batches: Iterable[tuple[Tensor, Tensor]], task: Task, weights: Tensor | None
) -> dict[str, float]:
    predicted = [(predict(inputs), targets) for inputs, targets in batches]
    logits, targets = (torch.cat(parts) for parts in zip(*predicted, strict=True))
    loss = task.loss(logits, targets, weights, 0.0)
    return _means("validation", [(len(targets), {"loss": loss, **task.metrics(logits, targets)})])


def _means(part: str, measured: Sequence[tuple[int, dict[str, Tensor]]]) -> dict[str, float]:
    """Means over the images, read from the device once."""
    sizes = torch.tensor([size for size, _ in measured], dtype=torch.float64)
    names = [*measured[0][1]]
    values = torch.stack([torch.stack([scalars[name] for name in names]) for _, scalars in measured]).cpu().double()
    return {f"{part}_{name}": mean for name, mean in zip(names, (sizes @ values / sizes.sum()).tolist(), strict=True)}


def _set_training_mode(model: Classifier, *, smallest_batch: int) -> None:
    """Training mode; batch-norm keeps its statistics where a batch has one image and so no variance."""
    model.train()
    if smallest_batch == 1:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _moving_tensors(network: nn.Module) -> list[Tensor]:
    """What training changes: open weights, and the buffers of modules in training mode."""
    buffers = (each for module in network.modules() if module.training for each in module.buffers(recurse=False))
    return [*(parameter for parameter in network.parameters() if parameter.requires_grad), *buffers]


@torch.no_grad()
def _restore(moving: Sequence[Tensor], state: Sequence[Tensor]) -> None:
    for values, kept in zip(moving, state, strict=True):
        values.copy_(kept)


def _all_but(held_out: Tensor, n: int) -> Tensor:
    is_left = torch.ones(n, dtype=torch.bool)
    is_left[held_out] = False
    if not is_left.any():
        raise ValueError(f"the validation part holds all {n} images: none is left to train on")
    return is_left.nonzero().flatten()


def _check_features(model: Classifier, augmentation: str) -> None:
    if not model.is_trunk_frozen:
        raise ValueError("training on features needs a frozen trunk: call train_only('head') first")
    if augmentation != "none":
        raise ValueError(f"features cannot be augmented: augmentation must be none with them, got {augmentation!r}")


def _check_settings(
    max_epochs: int,
    patience: int | None,
    batch_size: int,
    min_steps: int,
    augmentation: str,
    label_smoothing: float,
    schedule: str,
    validation_share: float,
) -> None:
    if min(max_epochs, 1 if patience is None else patience, batch_size, min_steps) < 1:
        raise ValueError(
            f"max_epochs, patience, batch_size and min_steps must be at least 1, got {max_epochs}, {patience}, "
            f"{batch_size} and {min_steps}"
        )
    look_up(AUGMENTATIONS, augmentation, "augmentation")
    look_up(SCHEDULES, schedule, "schedule")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
    if not 0 <= validation_share < 1:
        raise ValueError(f"validation_share must be in [0, 1), got {validation_share}")


def _check_finite(row: dict[str, float], epoch: int, learning_rate: float) -> None:
    for name, value in row.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"{name} is {value} in epoch {epoch}: try a learning rate below {learning_rate:g}, and look for "
                "images of one colour or damaged weights"
            )


SCHEDULES: dict[str, Callable[[float, Sequence[float]], float]] = {
    "constant": constant,
    "cosine": cosine,
    "plateau": plateau,
}
"""From the progress after the warm-up, in [0, 1), and the losses of the epochs so far, to a share of the rate."""
