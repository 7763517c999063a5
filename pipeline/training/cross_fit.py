"""Predictions of labelled images by networks that were not trained on them, and what these predictions are worth."""

import copy
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.networks.classifier import Classifier
from pipeline.networks.halving import Work, halving
from pipeline.tasks.task_type import TaskType
from pipeline.training.fit import fit
from pipeline.training.recipe import Recipe
from pipeline.training.schedules import SCHEDULES, is_over
from pipeline.training.splits import split_folds

MIN_JUDGED = 5
"""Images of a class from which predictions out of fold are judged: one that missed the image's fold has hardly seen
a class of fewer, or not at all, and thinks it rarer the more of its images are in the fold. With ten right labels of
each of five digits and one to three of the others, up to 7 of the rare labels would seem wrong."""


@dataclass(frozen=True)
class CrossFit:
    """Predictions of labelled images by networks that were not trained on them.

    Attributes:
        logits: `(n, C)`, or what else the task's logits are for n images; float32 on the CPU.
        epochs: for which each network was trained.
    """

    logits: Tensor
    epochs: int


def cross_fit(
    model: Classifier,
    features: Tensor,
    targets: Tensor,
    recipe: Recipe,
    *,
    task: TaskType,
    seed: int,
    device: torch.device,
    n_folds: int = 5,
    bootstrap: bool = False,
    groups: Tensor | None = None,
) -> CrossFit:
    """Train a head without each fold in turn, from the weights that `model` has, and let it predict the fold.

    With patience the number of epochs is chosen for all folds at once, by the loss on all images, each out of its fold,
    and the heads are trained again for as many: no fold's logits come from an epoch that was picked on it alone, and
    they are what `fit` with `recipe.for_epochs(epochs)` gives on images that it has not seen. A cosine that ends sooner
    gets as many epochs as bring the sum of learning rates up to the best epoch; the schedule "plateau" goes by the loss
    on the training images in the folds as it does there.

    The model keeps its weights, which must not have seen these images. An image alone in its class is predicted by
    heads that never saw the class.

    Args:
        features: `(n, ...)` of the frozen trunk, n >= 2.
        targets: `(n, ...)` as the task has them.
        n_folds: folds, each with its share of every class; as many as images at most.
        bootstrap: as in `fit`, for every fold.
        groups: `(n,)` numbers of at least 2 groups, none of which is in two folds; None where each image is one.
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
                recipe.for_epochs(epochs),
                task=task,
                seed=seed,
                device=device,
                from_features=True,
                held_out=fold,
                bootstrap=bootstrap,
            )
            logits.append(_read(head, features[fold]))
            losses.append([row["validation_loss"] for row in outcome.history])
        return torch.cat(logits)[torch.cat(folds).argsort()], (sizes @ torch.tensor(losses).double()).tolist()

    logits, losses = predict_folds(recipe.max_epochs)
    epochs = recipe.max_epochs if recipe.patience is None else _choose_epochs(losses, recipe, recipe.patience)
    if epochs < recipe.max_epochs:
        logits, _ = predict_folds(epochs)
    return CrossFit(logits, epochs)


def _read(head: Classifier, features: Tensor) -> Tensor:
    """Outputs `(n, C, ...)` of what the trunk gave, on the CPU."""

    def in_parts(n: int) -> Tensor:
        return torch.cat([head.read(part.to(head.mean.device)).detach().cpu() for part in features.split(n)])

    return halving(in_parts, len(features), Work("inference", head, features.shape[1:]))


def _choose_epochs(losses: Sequence[float], recipe: Recipe, patience: int) -> int:
    """Epochs in which a whole schedule brings a network as far as the best of these epochs did."""
    horizon = recipe.max_epochs
    seen = next((n for n in range(1, horizon) if is_over(losses[:n], patience)), horizon)
    best = losses.index(min(losses[:seen]))

    def sum_of_shares(n: int, horizon: int) -> float:
        return sum(SCHEDULES[recipe.schedule]((epoch + 0.5) / horizon, losses[:epoch]) for epoch in range(n))

    # Only the cosine depends on the horizon: for the others, whatever the losses, it is the epochs up to the best.
    wanted = sum_of_shares(best + 1, horizon)
    return 1 + bisect_left(range(1, horizon), wanted, key=lambda n: sum_of_shares(n, n))


def judged_out_of_fold(strata: Tensor, groups: Tensor | None = None) -> Tensor:
    """Whether the prediction of an image out of its fold tells how good the networks are, `(n,)`: see `MIN_JUDGED`.

    For the tau of a posterior and a list of wrong labels: an image alone in its class is always taken for one of
    another. A temperature is fitted to all, because images of rare classes will come: with 10 labels of digits the NLL
    of fresh images is 2.2 nats then and 6.4 without; with 20 of unequal classes (0.7 times the one before) 1.1 and 2.2.
    With one label of each class a temperature changes nothing: 2.1 with and without, where 1.4 would be the best.

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
