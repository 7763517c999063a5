"""Random changes to training images that leave their class as it is; a whole batch at a time, each image its own draw.

Draws come from torch's global CPU generator, which `fit` seeds for the time of the training, wherever the images are:
a GPU gets the same draws. What is changed stays on its device.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample


class Augmented(NamedTuple):
    """Changed images, and where what is in them went.

    Attributes:
        images: `(n, channels, S, S)`.
        affine: `(n, 2, 3)`: what is at place p now was at `affine[:, :, :2] @ p + affine[:, :, 2]` before, for places
            (x, y) in [-1, 1]; None where nothing moved.
    """

    images: Tensor
    affine: Tensor | None


Augmentation = Callable[[Tensor], Augmented]
"""From images `(n, channels, S, S)`, uint8 or floats in [0, 1], to images of the same shape."""

GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in luma (ITU-R BT.601)."""


def unchanged(images: Tensor) -> Augmented:
    """The images as they are."""
    return Augmented(images, None)


def digits(images: Tensor) -> Augmented:
    """Small turns, shifts, zooms and shears, no flips: for digits, characters and documents.

    Returns:
        Images as floats in [0, 1], and how each was moved.
    """
    n = len(images)
    turn, shear = _uniform(n, 10) * math.pi / 180, _uniform(n, 5) * math.pi / 180
    zoom = 1 + _uniform(n, 0.1)
    matrix = torch.stack([turn.cos(), -(turn + shear).sin(), turn.sin(), (turn + shear).cos()], dim=1) / zoom[:, None]
    return _resample(images, matrix.reshape(n, 2, 2), shift=torch.stack([_uniform(n, 0.2), _uniform(n, 0.2)], dim=1))


def natural(images: Tensor) -> Augmented:
    """Crops of at least half the area, mirror images, changes of light and colour: for photographs.

    Returns:
        Images as floats in [0, 1], and how each was moved.
    """
    n = len(images)
    area = 0.75 + _uniform(n, 0.25)
    stretch = (_uniform(n, 1) * math.log(4 / 3) / 2).exp()
    side = torch.stack([area.sqrt() * stretch, area.sqrt() / stretch], dim=1).clamp(max=1)
    shift = (1 - side) * torch.stack([_uniform(n, 1), _uniform(n, 1)], dim=1)
    mirror = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    matrix = torch.diag_embed(side * torch.stack([mirror, torch.ones(n)], dim=1))
    moved, affine = _resample(images, matrix, shift=shift)
    return Augmented(_change_colours(moved), affine)


def _change_colours(images: Tensor) -> Tensor:
    """Brightness, contrast and saturation, each by up to a fifth."""
    drawn = torch.stack([1 + _uniform(len(images), 0.2) for _ in range(3)])
    brightness, contrast, saturation = drawn.to(images.device)[..., None, None, None].unbind()
    weights = torch.tensor(GREY if images.shape[1] == 3 else (1.0,), device=images.device)[:, None, None]
    images = images * brightness
    grey = (images * weights).sum(dim=1, keepdim=True)
    mean = grey.mean(dim=(2, 3), keepdim=True)
    images, grey = mean + contrast * (images - mean), mean + contrast * (grey - mean)
    return (grey + saturation * (images - grey)).clamp(0, 1)


def _resample(images: Tensor, matrix: Tensor, *, shift: Tensor) -> Augmented:
    """Read each output pixel at `matrix @ place + shift`, places in [-1, 1]; what lies outside repeats the edge."""
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    floats = images.float() / scale
    affine = torch.cat([matrix, shift[:, :, None]], dim=2).to(images.device)
    grid = affine_grid(affine, list(floats.shape), align_corners=False)
    return Augmented(grid_sample(floats, grid, mode="bilinear", padding_mode="border", align_corners=False), affine)


def _uniform(n: int, largest: float) -> Tensor:
    """`(n,)` draws from [-largest, largest]."""
    return (2 * torch.rand(n) - 1) * largest


AUGMENTATIONS: dict[str, Augmentation] = {"none": unchanged, "digits": digits, "natural": natural}
