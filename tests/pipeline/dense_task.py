"""A dense task, for the tests: every cell of the trunk's own low-resolution grid has one class, so U = h w decisions.

Logits are `(n, C, h, w)`, targets `(n, h, w)` class indices. People give a box for each cell, row
by row.
"""

from collections import Counter

import torch
from torch import nn
from torch.nn import functional

from pipeline.evaluation.metrics import calibration_error, negative_log_likelihood, wilson_interval
from pipeline.networks.build import build_model
from pipeline.networks.classifier import Classifier
from pipeline.regions import regions_from_json, regions_to_json
from pipeline.tasks.task_type import Answered, AskFor
from pipeline.types import Metrics, Region

asks = AskFor(kind="box", several=True)
has_one_decision = False
decides_each_class = False
headline = "cell_accuracy"
stride = 4
reduction = "mean"
batch_size = 8
overlap_loss = None


def boxes(names, *, height, width, scores=None):
    """A region for each cell of a grid."""

    def box(row, column):
        return column / width, row / height, (column + 1) / width, (row + 1) / height

    return tuple(
        Region("box", name, box(*divmod(place, width)), score)
        for place, (name, score) in enumerate(zip(names, scores or [None] * len(names), strict=True))
    )


read_label, write_label = regions_from_json, regions_to_json


def consensus(given):
    """In each cell the class that most people gave; the mean of their shares."""
    cells = [Counter(region.label for region in cell).most_common(1)[0] for cell in zip(*given, strict=True)]
    names, votes = zip(*cells, strict=True)
    grid = {"height": round(1 / given[0][0].geometry[3]), "width": round(1 / given[0][0].geometry[2])}
    return boxes(names, **grid), sum(votes) / len(votes) / len(given)


def targets(labels, classes):
    _, _, width, height = labels[0][0].geometry
    index = [[classes.index(region.label) for region in regions] for regions in labels]
    return torch.tensor(index).reshape(len(labels), round(1 / height), round(1 / width))


def check_targets(targets, n, n_classes):
    if targets.ndim != 3 or len(targets) != n or n == 0:
        raise ValueError(f"a dense task needs targets ({n}, h, w), got {tuple(targets.shape)}")
    if targets.min() < 0 or targets.max() >= n_classes:
        raise ValueError(f"targets must be in [0, {n_classes}), got {int(targets.min())} to {int(targets.max())}")


def warp(targets, affine):
    raise NotImplementedError


def n_outputs(n_classes):
    return n_classes


n_logits = n_outputs


def places(outputs):
    return None


def strata(targets):
    """The commonest class of each image."""
    return targets.flatten(1).mode().values


def class_counts(targets, n_classes):
    return targets.flatten().bincount(minlength=n_classes).double()


def wanted(targets, _outputs):
    return targets


def loss(outputs, targets, class_weights=None, label_smoothing=0.0):
    return functional.cross_entropy(outputs, targets, weight=class_weights, label_smoothing=label_smoothing)


def logits(outputs):
    return outputs.flatten(2).transpose(1, 2)


def answered(values, targets):
    n, n_cells, _ = values.shape
    return Answered(
        values.flatten(0, 1),
        targets.flatten(),
        torch.arange(n).repeat_interleave(n_cells),
        torch.arange(n_cells).repeat(n),
    )


def in_words(decision, answer, classes, _n_decisions):
    return f"{classes[answer]} in cell {decision}"


def measure(probs, targets, _classes, _places=None):
    """Share of cells whose likeliest class is right."""
    known = answered(probs, targets)
    n_right = int((known.values.argmax(dim=1) == known.right).sum())
    low, high = wilson_interval(n_right, len(known.right))
    return Metrics(
        n=len(probs),
        headline="cell_accuracy",
        value=n_right / len(known.right),
        low=low,
        high=high,
        nll=negative_log_likelihood(known.values, known.right),
        ece=calibration_error(known.values, known.right),
    )


def guess(probs, classes, _places=None):
    """The likeliest class of each cell, of the squarest grid that is not wider than high."""
    n_cells = probs.shape[1]
    height = next(n for n in range(1, n_cells + 1) if n_cells % n == 0 and n * n >= n_cells)
    best = probs.max(dim=2)
    return [
        boxes([classes[one] for one in seen], height=height, width=n_cells // height, scores=scores)
        for seen, scores in zip(best.indices.tolist(), best.values.clamp(max=1).tolist(), strict=True)
    ]


def metrics(outputs, targets):
    return {"accuracy": (outputs.argmax(dim=1) == targets).float().mean()}


def dense_model(*, n_classes, image_size, seed=0):
    """The trunk of `small_cnn`, whose map is a quarter of the image, and a 1 x 1 convolution."""
    body = build_model("small_cnn", n_classes=n_classes, image_size=image_size, channels=1, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tail = nn.Sequential(nn.Dropout2d(0.2), nn.Conv2d(64, n_classes, kernel_size=1))
    return Classifier(body.trunk, tail, n_classes=n_classes, channels=1)


def patchwork(n, *, n_classes=3, size=28, seed=0):
    """Images `(n, 1, size, size)` of flat noisy squares, 4 pixels wide, whose brightness tells their class."""
    generator = torch.Generator().manual_seed(seed)
    cells = size // 4
    targets = torch.randint(0, n_classes, (n, cells, cells), generator=generator)
    bright = targets.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)[:, None] * 80
    noise = torch.randint(0, 60, (n, 1, size, size), generator=generator)
    return (bright + noise).to(torch.uint8), targets
