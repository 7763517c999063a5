"""Training on the labelled set: one plain loop, seeded."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from pipeline.image_rows import Images
from pipeline.networks.classifier import Classifier, evaluating
from pipeline.networks.halving import Work, halving
from pipeline.randomness import seeded
from pipeline.tasks.task_type import TaskType
from pipeline.training.augmentation import AUGMENTATIONS, Augmentation, unchanged
from pipeline.training.gradients import Learner, moving_buffers
from pipeline.training.ranks import ALONE, Ranks
from pipeline.training.recipe import Recipe
from pipeline.training.schedules import is_over, learning_rate_share
from pipeline.training.splits import draw_bootstrap

MAX_CLASS_WEIGHT = 10.0
"""How many times more an image of a rare class may count than the average image."""
MAX_GRADIENT_NORM = 1.0
"""Longer gradients are shortened to this. AdamW divides by the usual size of a gradient, so that a shorter one makes as
long a step; but one batch with an odd image would count for more than the hundred before it."""


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


def fit(
    model: Classifier,
    inputs: Images,
    targets: Tensor,
    recipe: Recipe,
    *,
    task: TaskType,
    seed: int,
    device: torch.device,
    from_features: bool = False,
    held_out: Tensor | None = None,
    pool_sample: Tensor | None = None,
    bootstrap: bool = False,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> Fit:
    """Train what is not frozen of `model` in place, with AdamW, and restore its best epoch; return how it went.

    The best epoch has the lowest loss on the validation part, or on the training images where there is none. The model
    stays on `device`, in evaluation mode; a temperature and a posterior, which belong to the weights before, are put
    back to none. The same arguments on the same machine give the same weights; torch's global generator is left as it
    was. Where a batch does not fit into the memory of a GPU, parts of it pass one after the other: see
    `Learner.set_gradients`.

    In a process group of torch all processes call this with the same arguments, and train one network together; on
    features each trains for itself.

    Without pretrained weights mean and std are those of `pool_sample`.

    Args:
        inputs: images `(n, channels, S, S)` of uint8, n >= 1, on a disk or in memory; or with `from_features` what the
            frozen trunk made of them, `(n, ...)` floats, of which only the tail is trained, without augmentation.
        targets: `(n, ...)` as the task has them; classes may be absent.
        held_out: positions of the validation part, whatever their number; None for none (`split_validation` draws
            one).
        pool_sample: `(m, channels, S, S)` of uint8, images that need no label, to take mean and std from; None for the
            images trained on, however few they are. Pretrained weights come with their own.
        bootstrap: train on as many images of each class as there are, drawn with replacement, for bagging
            (Breiman, 1996); the validation part is left out of the draw.
        on_epoch: called with each row of the history as it is made.
    """
    task.check_targets(targets, len(inputs), model.n_classes)
    if from_features and not model.is_trunk_frozen:
        raise ValueError("training on features needs a frozen trunk: call train_only('head') first")
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.arange(0) if held_out is None else held_out
    train = _all_but(held_out, len(targets))
    if bootstrap:
        train = train[draw_bootstrap(task.strata(targets)[train], generator=generator)]
    weights = None
    if recipe.class_balanced:
        weights = class_weights(task.class_counts(targets[train], model.n_classes)).to(device)
    if not from_features and not model.pretrained:
        images, rows = (inputs, train) if pool_sample is None else (pool_sample, None)
        model.set_normalisation(images, rows)
    _prepare(model, device)
    batch_size = recipe.batch_size_for(task)
    _set_training_mode(model, smallest_batch=min(len(train), batch_size))
    ranks = ALONE if from_features else Ranks.here()
    network, predict = (model.tail, model.read) if from_features else (model, ranks.wrapped(model))
    inputs = inputs.to(device, torch.float32) if from_features and isinstance(inputs, Tensor) else inputs
    augment = unchanged if from_features else AUGMENTATIONS[recipe.augmentation]
    load = partial(_load, inputs, targets.to(device), device, task)
    loss = partial(loss_of, recipe=recipe, task=task, class_weights=weights)
    groups = model.parameter_groups(recipe.learning_rate, recipe.body_rate)
    optimiser = _make_optimiser(groups, recipe.learning_rate, recipe.weight_decay)
    learned = [each for group in groups for each in group["params"]]
    learner = Learner(model, predict, task, loss, learned, ranks, torch.Generator().manual_seed(seed))
    n_steps = _count_steps(len(train), batch_size, recipe.min_steps)
    watched = "validation_loss" if len(held_out) and recipe.patience is not None else "train_loss"
    moving = _moving_tensors(network)
    history: list[dict[str, float]] = []
    losses: list[float] = []
    best = 0
    best_state: list[Tensor] = []
    with seeded(seed, device), _few_threads(from_features and task.stride is None):
        for epoch in range(recipe.max_epochs):
            of_steps = range(epoch * n_steps, (epoch + 1) * n_steps)
            n_in_all = recipe.max_epochs * n_steps
            shares = [learning_rate_share(s, n_in_all, schedule=recipe.schedule, losses=losses) for s in of_steps]
            steps = (train[rows] for rows in _steps(len(train), batch_size, n_steps, generator))
            row = _train_epoch(learner, load(steps, augment), shares, optimiser, recipe.label_smoothing)
            ranks.take_over(moving_buffers(network))
            if len(held_out):
                with evaluating(network), torch.inference_mode():
                    most = min(batch_size, len(held_out))
                    row |= _validate(learner, lambda n: load(held_out.split(n), unchanged), most, inputs.shape)
            row = ranks.as_first(row)
            _check_finite(row, epoch, recipe.learning_rate)
            history.append(row)
            losses.append(row[watched])
            if on_epoch is not None:
                on_epoch(row)
            if recipe.patience is None:
                best = epoch
            elif losses.index(min(losses)) == epoch:
                best, best_state = epoch, [values.detach().clone() for values in moving]
            elif is_over(losses, recipe.patience):
                break
    if best_state:
        _restore(moving, best_state)
    model.eval()
    return Fit(history, train, held_out, best)


def loss_of(
    outputs: Tensor,
    wanted: Tensor,
    recipe: Recipe,
    task: TaskType,
    class_weights: Tensor | None,
    *,
    label_smoothing: float = 0.0,
) -> Tensor:
    """What training makes small: the task's loss, and its `overlap_loss` where there is one.

    Args:
        wanted: `(n, ...)`, what the task makes of the targets.
    """
    loss = task.loss(outputs, wanted, class_weights, label_smoothing)
    if recipe.dice and task.overlap_loss is None:
        raise ValueError(f"dice is a loss of painted areas, and there are none in this task, got dice={recipe.dice}")
    if task.overlap_loss is None or recipe.dice == 0:
        return loss
    return loss + (1.0 if recipe.dice is None else recipe.dice) * task.overlap_loss(outputs, wanted)


def class_weights(counts: Tensor) -> Tensor:
    """Inverse frequency of each class up to `MAX_CLASS_WEIGHT`, 1 for a label on average; absent classes have 1.

    A class of x labels has `min(s / x, MAX_CLASS_WEIGHT)`, where s, what a class that is not capped counts for in all,
    makes the mean 1: with the j rarest classes capped it is what is left for the others, the most over all j.

    Args:
        counts: `(C,)` labels of each class; all classes have 1 where there is none.

    Returns:
        `(C,)` float32.
    """
    present = counts[counts > 0].sort().values
    if not len(present):
        return torch.ones_like(counts).float()
    left = counts.sum() - MAX_CLASS_WEIGHT * (present.cumsum(0) - present)
    each = (left / torch.arange(len(present), 0, -1, device=counts.device)).max()
    return torch.where(counts > 0, (each / counts).clamp(max=MAX_CLASS_WEIGHT), 1.0).float()


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
    inputs: Images,
    targets: Tensor,
    device: torch.device,
    task: TaskType,
    steps: Iterable[Tensor],
    augment: Augmentation,
) -> Iterator[tuple[Tensor, Tensor]]:
    for rows in steps:
        images, affine = augment(_take(inputs, rows, device))
        wanted = targets[rows.to(device)]
        yield images, wanted if affine is None else task.warp(wanted, affine)


def _take(inputs: Images, rows: Tensor, device: torch.device) -> Tensor:
    """Rows of `inputs` on the device; to a GPU from pinned memory, so that nobody waits for the copy."""
    if inputs.is_cuda or device.type != "cuda":
        return inputs[rows.to(inputs.device)].to(device)
    pinned = torch.empty((len(rows), *inputs.shape[1:]), dtype=inputs.dtype, pin_memory=True)
    if isinstance(inputs, Tensor):
        return torch.index_select(inputs, 0, rows, out=pinned).to(device, non_blocking=True)
    return inputs.take(rows, pinned).to(device, non_blocking=True)


def _train_epoch(
    learner: Learner,
    batches: Iterable[tuple[Tensor, Tensor]],
    shares: Sequence[float],
    optimiser: torch.optim.Optimizer,
    label_smoothing: float,
) -> dict[str, float]:
    measured = []
    for (inputs, targets), share in zip(batches, shares, strict=True):
        for group in optimiser.param_groups:
            group["lr"] = share * group["initial_lr"]
        outputs, wanted, loss = learner.set_gradients(inputs, targets, label_smoothing=label_smoothing)
        clip_grad_norm_(learner.weights, MAX_GRADIENT_NORM)
        optimiser.step()
        measured.append((len(targets), {"loss": loss, **learner.task.metrics(outputs, wanted)}))
    return _means("train", measured)


def _validate(
    learner: Learner, load: Callable[[int], Iterable[tuple[Tensor, Tensor]]], batch_size: int, shape: torch.Size
) -> dict[str, float]:
    """Loss and metrics on what `load` gives in batches of so many, of inputs of a shape `(n, ...)`."""
    predicted = halving(
        lambda n: [(learner.see(inputs), targets) for inputs, targets in load(n)],
        batch_size,
        Work("validation", learner.model, shape[1:]),
        alone=learner.ranks.size == 1,
    )
    outputs, targets = (torch.cat(parts) for parts in zip(*predicted, strict=True))
    wanted = learner.task.wanted(targets, outputs)
    loss = learner.loss(outputs, wanted)
    return _means("validation", [(len(targets), {"loss": loss, **learner.task.metrics(outputs, wanted)})])


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
    return [*(parameter for parameter in network.parameters() if parameter.requires_grad), *moving_buffers(network)]


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


def _check_finite(row: dict[str, float], epoch: int, learning_rate: float) -> None:
    for name, value in row.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"{name} is {value} in epoch {epoch}: try a learning rate below {learning_rate:g}, and look for "
                "images of one colour or damaged weights"
            )
