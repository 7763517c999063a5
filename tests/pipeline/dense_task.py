"""A dense task, for the tests: every cell of the trunk's own low-resolution grid has one class, so U = h w decisions.

Logits are `(n, C, h, w)`, targets `(n, h, w)` class indices.
"""

import torch
from torch import nn
from torch.nn import functional

from pipeline.networks.build import build_model
from pipeline.networks.classifier import Classifier


def check_targets(targets, n, n_classes):
    if targets.ndim != 3 or len(targets) != n or n == 0:
        raise ValueError(f"a dense task needs targets ({n}, h, w), got {tuple(targets.shape)}")
    if targets.min() < 0 or targets.max() >= n_classes:
        raise ValueError(f"targets must be in [0, {n_classes}), got {int(targets.min())} to {int(targets.max())}")


def strata(targets):
    """The commonest class of each image."""
    return targets.flatten(1).mode().values


def class_counts(targets, n_classes):
    return targets.flatten().bincount(minlength=n_classes).double()


def loss(outputs, targets, class_weights=None, label_smoothing=0.0):
    return functional.cross_entropy(outputs, targets, weight=class_weights, label_smoothing=label_smoothing)


def logits(outputs):
    return outputs.flatten(2).transpose(1, 2)


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
