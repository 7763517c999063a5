"""Training on the labelled set: one plain loop, seeded."""

import copy
import math
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.augmentation import AUGMENTATIONS, Augmentation, unchanged
from pipeline.models import Classifier, evaluating, seeded
from pipeline.tasks import Task

MIN_STEPS_PER_EPOCH = 8
"""An epoch is one pass over the images, or this many optimiser steps where a pass has fewer: what a network learns
from few images is decided by the steps it makes, so ten images get as many as two hundred."""
MIN_VALIDATION = 30
"""A validation part of fewer images picks the best epoch by luck (30 give an accuracy within 9 points) and costs labels
that training needs, so none is held out; with fewer than `MIN_PER_CLASS` labelled images for each class neither."""
MIN_PER_CLASS = 5
MAX_CLASS_WEIGHT = 10.0
"""How many times more an image of a rare class may count than the average image."""


class TrainingError(RuntimeError):
    """Training does not lead anywhere."""


def fit(
    model: Classifier,
    images: Tensor,
    targets: Tensor,
    *,
    task: Task,
    seed: int,
    device: torch.device,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-2,
    max_epochs: int = 30,
    patience: int = 5,
    batch_size: int = 32,
    augmentation: str = "none",
    class_balanced: bool = True,
    validation_share: float = 0.1,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> list[dict[str, float]]:
    """Train `model` in place with AdamW and restore its best epoch; return what each epoch came to.

    The best epoch has the lowest loss on the validation part, or on the training images where there are too few for
    one (`MIN_VALIDATION`). The model stays on `device`, in evaluation mode. The same arguments on the same
    machine give the same weights; torch's global generator is left as it was.

    Args:
        images: `(n, channels, S, S)` of uint8, n >= 1.
        targets: `(n,)` class indices; classes may be absent.
        patience: epochs without a lower loss before training stops.
        batch_size: images in an optimiser step; a single image left over joins the step before it.
        augmentation: a key of `AUGMENTATIONS`.
        class_balanced: weigh classes by inverse frequency, up to `MAX_CLASS_WEIGHT`.
        validation_share: share of each class to hold out, in [0, 1).
        on_epoch: called with each row of the history as it is made.

    Returns:
        For each epoch train_loss and train_accuracy, measured while training with dropout and augmentation on, and
        validation_loss and validation_accuracy, absent where there is no validation part.
    """
    _check_labelled(images, targets, model.n_classes)
    _check_settings(max_epochs, patience, batch_size, augmentation, validation_share)
    generator = torch.Generator().manual_seed(seed)
    train, held_out = split_validation(targets, share=validation_share, generator=generator)
    if not model.pretrained:
        model.set_normalisation(images[train])
    model.to(device)
    augment = AUGMENTATIONS[augmentation]
    weights = class_weights(targets[train], n_classes=model.n_classes).to(device) if class_balanced else None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=weight_decay, fused=True)
    watched = "validation_loss" if len(held_out) else "train_loss"
    history: list[dict[str, float]] = []
    best, best_state = 0, model.state_dict()
    with seeded(seed, device):
        for epoch in range(max_epochs):
            _set_training_mode(model, smallest_batch=min(len(train), batch_size))
            steps = (train[rows] for rows in _steps(len(train), batch_size, generator))
            row = _train_epoch(model, _load(images, targets, steps, augment, device), optimiser, task, weights)
            if len(held_out):
                parts = held_out.split(batch_size)
                row |= _validate(model, _load(images, targets, parts, unchanged, device), task, weights)
            _check_finite(row, epoch, learning_rate)
            history.append(row)
            if on_epoch is not None:
                on_epoch(row)
            if epoch == 0 or row[watched] < history[best][watched]:
                best, best_state = epoch, copy.deepcopy(model.state_dict())
            elif epoch - best >= patience:
                break
    model.load_state_dict(best_state)
    model.eval()
    return history


def split_validation(targets: Tensor, *, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions to train on and positions to hold out, each sorted; the second is empty for a small labelled set.

    Each class gives its share, rounded, and keeps at least one image to train on.

    Args:
        targets: `(n,)` class indices.
        share: in [0, 1).
    """
    n = len(targets)
    if round(share * n) < MIN_VALIDATION or n < MIN_PER_CLASS * len(targets.unique()):
        share = 0.0
    shuffled = torch.randperm(n, generator=generator)
    is_held_out = torch.zeros(n, dtype=torch.bool)
    for label in targets.unique():
        rows = shuffled[targets[shuffled] == label]
        is_held_out[rows[: min(round(share * len(rows)), len(rows) - 1)]] = True
    return (~is_held_out).nonzero().flatten(), is_held_out.nonzero().flatten()


def class_weights(targets: Tensor, *, n_classes: int) -> Tensor:
    """Inverse frequency of each class, 1 for an image on average; absent classes have 1.

    Args:
        targets: `(n,)` class indices, n >= 1.

    Returns:
        `(C,)`; before the mean is brought to 1 no class has more than `MAX_CLASS_WEIGHT`.
    """
    counts = targets.bincount(minlength=n_classes).double()
    weights = (len(targets) / (counts > 0).sum() / counts).clamp(max=MAX_CLASS_WEIGHT)
    weights[counts == 0] = 1.0
    return (weights * len(targets) / (weights * counts).sum()).float()


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


def _steps(n: int, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of each optimiser step of one epoch."""
    taken = 0
    while taken < MIN_STEPS_PER_EPOCH:
        batches = list(torch.randperm(n, generator=generator).split(batch_size))
        if len(batches) > 1 and len(batches[-1]) == 1:
            batches[-2:] = [torch.cat(batches[-2:])]
        wanted = len(batches) if taken == 0 else MIN_STEPS_PER_EPOCH - taken
        yield from batches[:wanted]
        taken += len(batches[:wanted])


def _load(
    images: Tensor, targets: Tensor, steps: Iterable[Tensor], augment: Augmentation, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    for rows in steps:
        yield augment(images[rows]).to(device), targets[rows].to(device)


def _train_epoch(
    model: Classifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    optimiser: torch.optim.Optimizer,
    task: Task,
    weights: Tensor | None,
) -> dict[str, float]:
    measured = []
    for images, targets in batches:
        logits = model(images)
        loss = task.loss(logits, targets, weights)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        measured.append((len(targets), {"loss": loss.item(), **task.metrics(logits.detach(), targets)}))
    return _means("train", measured)


def _validate(
    model: Classifier, batches: Iterable[tuple[Tensor, Tensor]], task: Task, weights: Tensor | None
) -> dict[str, float]:
    measured = []
    with evaluating(model), torch.inference_mode():
        for images, targets in batches:
            logits = model(images)
            loss = task.loss(logits, targets, weights)
            measured.append((len(targets), {"loss": loss.item(), **task.metrics(logits, targets)}))
    return _means("validation", measured)


def _means(part: str, measured: Sequence[tuple[int, dict[str, float]]]) -> dict[str, float]:
    n = sum(size for size, _ in measured)
    names = measured[0][1]
    return {f"{part}_{name}": sum(size * values[name] for size, values in measured) / n for name in names}


def _set_training_mode(model: Classifier, *, smallest_batch: int) -> None:
    """Training mode; batch-norm keeps its statistics where a batch has one image and so no variance."""
    model.train()
    if smallest_batch == 1:
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()


def _check_labelled(images: Tensor, targets: Tensor, n_classes: int) -> None:
    if not len(images) == len(targets) or len(images) == 0:
        raise ValueError(f"training needs one target for each image, got {len(images)} and {len(targets)}")
    if targets.min() < 0 or targets.max() >= n_classes:
        raise ValueError(f"targets must be in [0, {n_classes}), got {int(targets.min())} to {int(targets.max())}")


def _check_settings(
    max_epochs: int, patience: int, batch_size: int, augmentation: str, validation_share: float
) -> None:
    if min(max_epochs, patience, batch_size) < 1:
        raise ValueError(
            f"max_epochs, patience and batch_size must be at least 1, got {max_epochs}, {patience} and {batch_size}"
        )
    if augmentation not in AUGMENTATIONS:
        raise ValueError(f"augmentation must be one of {', '.join(AUGMENTATIONS)}, got {augmentation!r}")
    if not 0 <= validation_share < 1:
        raise ValueError(f"validation_share must be in [0, 1), got {validation_share}")


def _check_finite(row: dict[str, float], epoch: int, learning_rate: float) -> None:
    for name, value in row.items():
        if not math.isfinite(value):
            raise TrainingError(
                f"{name} is {value} in epoch {epoch}: try a learning rate below {learning_rate:g}, and look for "
                "images of one colour or damaged weights"
            )
