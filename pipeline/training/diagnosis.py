"""Whether a network has learned anything, and what to try where it has not."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.networks.classifier import Classifier
from pipeline.training.cross_fit import judged_out_of_fold
from pipeline.types import Finding

BLOWN_UP = 2.5
"""A training loss of so many times log C, which an untrained network has, comes of steps that are too long. `small_cnn`
on 5 to 400 digits has at most 1 times log C with a learning rate of 0.001 or 0.01, 2.1 with 0.03, which still works,
and 4.7 or more with 1 and 10, which never do."""
RECOVERED = 0.5
"""A network whose training loss has since come below this share of that of a guess has got over it."""
HARDLY_BELOW = 0.98
"""A loss from this share of that of a guess on says that the network knows nothing of the labels."""
CLAIMED = 0.2
"""Networks before training claim to know a twentieth of the class at most, see `claimed_knowledge`; with more than
this, one whose loss is no better than that of a guess is not undecided but wrong."""
SAME = 1e-3
"""Probabilities that differ by less from image to image are the same."""
N_SHUFFLES = 200
CHANCE = 0.05
"""Labels line up where less than this share of their random orders fits the predictions as well. Those of classes with
few training images are left out of it, see `judged_out_of_fold`."""
MIN_ORDERS = 1e6
"""With fewer orders of the labels, such as two images of one class among thirty, a network that is fairly good is often
no better than `CHANCE` of them, so nothing is said."""


def diagnose(
    history: Sequence[Mapping[str, float]],
    *,
    logits: Tensor,
    targets: Tensor,
    held_out_logits: Tensor | None = None,
    held_out_targets: Tensor | None = None,
    has_one_decision: bool = True,
    generator: torch.Generator,
) -> tuple[Finding, ...]:
    """Look for signs that training led nowhere; empty where there are none, or where all labels are of one class.

    A finding explains those after it, which are then left out: learning_rate_too_high, constant_predictions,
    labels_do_not_line_up, stuck_at_prior. So there is one at most.

    Args:
        history: train_loss of each epoch in nats, at least one epoch.
        logits: `(n, C)` of the images that were trained on, with dropout off, after the training.
        targets: `(n,)` class indices.
        held_out_logits: `(h, C)` of images that were not trained on, such as the held-out part or those out of fold.
            Without them labels that were learned by heart seem to line up.
        held_out_targets: `(h,)` class indices.
        has_one_decision: about each image; of several about each, of which the rows are, one answer may well be the
            likeliest everywhere: most images have no class of many.
        generator: of the shuffled labels, on the CPU.
    """
    logits, targets = _checked(logits, targets)
    if len(targets.unique()) < 2:
        return ()
    share = loss_against_guess(logits, targets)
    part, shown, labels = "training", logits, targets
    if held_out_logits is not None and held_out_targets is not None and len(held_out_targets):
        part, (shown, labels) = "held-out", _checked(held_out_logits, held_out_targets)
    seen = torch.isin(labels, targets[judged_out_of_fold(targets)])
    has_learned = share < HARDLY_BELOW or claimed_knowledge(logits) > CLAIMED
    finding = (
        _learning_rate_too_high(history, share, n_classes=logits.shape[1])
        or _constant_predictions(logits, targets, has_one_decision=has_one_decision)
        or _labels_do_not_line_up(shown[seen], labels[seen], part=part, generator=generator, has_learned=has_learned)
        or _stuck_at_prior(share)
    )
    return (finding,) if finding else ()


def loss_against_guess(logits: Tensor, targets: Tensor) -> float:
    """Mean negative log-likelihood over that of the best guess without looking: 0 is perfect, from 1 on it is useless.

    The best guess is the frequency of each class, its loss the entropy of the frequencies. Training with class weights
    makes another loss small, in which every class counts the same and the best guess has log of the number of classes
    present; the lower of the two shares is returned, and no constant prediction has either below 1.

    Args:
        logits: `(n, C)`.
        targets: `(n,)` class indices of at least two classes.
    """
    losses = functional.cross_entropy(logits.double(), targets, reduction="none")
    counts = targets.bincount().double()
    present = counts > 0
    sums = torch.zeros_like(counts).scatter_add(0, targets, losses)
    plain = losses.mean() / torch.special.entr(counts / len(targets)).sum()
    balanced = (sums / counts)[present].mean() / present.sum().double().log()
    return float(torch.minimum(plain, balanced))


def claimed_knowledge(logits: Tensor) -> float:
    """Share of the class's entropy that the predictions say they take away, right or wrong, in [0, 1].

    It is the mutual information of image and predicted class over the entropy of the mean prediction: 0 where all
    predictions are the same, 1 where each is sure.

    Args:
        logits: `(n, C)`, not all sure of the same class.
    """
    probs = logits.double().softmax(dim=1)
    left = torch.special.entr(probs).sum(dim=1).mean()
    return float(1 - left / torch.special.entr(probs.mean(dim=0)).sum())


def chance_of_labels(logits: Tensor, targets: Tensor, *, generator: torch.Generator) -> float:
    """Share of `N_SHUFFLES` random orders of the labels that have a loss as low as theirs (a permutation test).

    Near 0 where predictions know the labels, anything in [0, 1] where they do not.

    Args:
        logits: `(n, C)`.
        targets: `(n,)` class indices.
        generator: on the CPU.
    """
    n, losses = len(targets), -logits.double().log_softmax(dim=1).cpu()
    images, labels = torch.arange(n), targets.cpu()
    orders = (labels[torch.randperm(n, generator=generator)] for _ in range(N_SHUFFLES))
    shuffled = torch.stack([losses[images, order].mean() for order in orders])
    return float((shuffled <= losses[images, labels].mean() + 1e-9).double().mean())


def batch_norm_statistics(model: Classifier) -> dict[str, Tensor]:
    """Running mean and variance `(2, channels)` of each batch-norm layer by its name: a copy, on the CPU."""
    return {
        name: torch.stack([layer.running_mean, layer.running_var]).cpu()
        for name, layer in model.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
        and layer.running_mean is not None
        and layer.running_var is not None
    }


def compare_batch_norm(
    before: Mapping[str, Tensor], model: Classifier, *, smallest_batch: int = 2
) -> tuple[Finding, ...]:
    """Look for batch-norm statistics that training moved though they were to stay, or did not move elsewhere.

    Args:
        before: `batch_norm_statistics` from before the training.
        model: after it; `model.fixed_batch_norms` names what training was not to move.
        smallest_batch: images in the smallest optimiser step. With one image `fit` keeps the statistics on purpose, so
            that standing still is no finding.
    """
    after = batch_norm_statistics(model)
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    fixed = model.fixed_batch_norms
    stuck = [name for name in before if name not in moved and name not in fixed and smallest_batch > 1]
    findings = []
    if stuck:
        findings.append(
            Finding(
                "batch_norm_stuck",
                f"training did not move the statistics of the batch-norm layers {_names(stuck)}",
                "Look for a momentum of 0 and for code that puts these layers in evaluation mode; if they are to stay "
                "as they are, freeze them.",
            )
        )
    if touched := [name for name in moved if name in fixed]:
        findings.append(
            Finding(
                "frozen_batch_norm_moved",
                f"training moved the statistics of the fixed batch-norm layers {_names(touched)}",
                "Look for code that puts them in training mode: call train() on the whole network, which leaves them "
                "alone, never on a part of it.",
            )
        )
    return tuple(findings)


def _learning_rate_too_high(history: Sequence[Mapping[str, float]], share: float, *, n_classes: int) -> Finding | None:
    losses = [row["train_loss"] for row in history]
    peak = max(losses)
    if peak <= BLOWN_UP * math.log(n_classes) or share <= RECOVERED:
        return None
    return Finding(
        "learning_rate_too_high",
        f"the training loss rose to {peak:.3g} nats in epoch {losses.index(peak)}, where an untrained network has "
        f"{math.log(n_classes):.3g}, and ended at {share:.2f} times that of a guess by class frequency",
        "Try a learning rate ten times lower.",
    )


def _constant_predictions(logits: Tensor, targets: Tensor, *, has_one_decision: bool) -> Finding | None:
    probs = logits.softmax(dim=1)
    predicted = probs.argmax(dim=1).unique()
    spread = float((probs.amax(dim=0) - probs.amin(dim=0)).max())
    if (len(predicted) > 1 or not has_one_decision) and spread >= SAME:
        return None
    seen = f"as class {int(predicted[0])}" if len(predicted) == 1 else f"with probabilities within {spread:.1g}"
    return Finding(
        "constant_predictions",
        f"all {len(targets)} training images are predicted {seen}, though their labels have "
        f"{len(targets.unique())} classes",
        "Try a learning rate ten times lower or higher, and class_balanced = true where one class has most of the "
        "labels; look whether the images load as more than one colour.",
    )


def _labels_do_not_line_up(
    logits: Tensor, targets: Tensor, *, part: str, generator: torch.Generator, has_learned: bool
) -> Finding | None:
    """A network that has learned nothing, right or wrong, fits any order of the labels, and is only stuck."""
    if not has_learned or _log_orders(targets) < math.log(MIN_ORDERS):
        return None
    chance = chance_of_labels(logits, targets, generator=generator)
    if chance <= CHANCE:
        return None
    return Finding(
        "labels_do_not_line_up",
        f"the predictions on the {len(targets)} {part} images fit {chance:.0%} of {N_SHUFFLES} random orders of the "
        "labels as well as the labels",
        "Look at some images with their labels: are they of the same item, and the classes in the same order? If they "
        "are right, the network learned the training images by heart: try more labels or a frozen trunk.",
    )


def _stuck_at_prior(share: float) -> Finding | None:
    if share < HARDLY_BELOW:
        return None
    return Finding(
        "stuck_at_prior",
        f"the loss on the training images is {share:.2f} times that of a guess by class frequency, which does not "
        "look at them",
        "Try more epochs, a learning rate ten times higher or lower, and training more than the head; if nothing "
        "helps, look whether the labels belong to their images.",
    )


def _checked(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both on the CPU, logits as float64."""
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f"logits must be (n, C) and targets (n,), got {tuple(logits.shape)} and {tuple(targets.shape)}"
        )
    if not logits.isfinite().all():
        raise ValueError("logits must be finite")
    return logits.detach().double().cpu(), targets.cpu()


def _log_orders(targets: Tensor) -> float:
    """Log of in how many different ways the labels can be put in order."""
    counts = targets.bincount().double()
    return float((counts.sum() + 1).lgamma() - (counts + 1).lgamma().sum())


def _names(layers: Iterable[str]) -> str:
    """The first three, and how many more."""
    names = list(layers)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
