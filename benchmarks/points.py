"""Points in place of masks: an image whose answer is what is at a few of its places, and nothing else.

As PixelPick asks (Shin et al., 2021): the loss is of the points alone, which are drawn from the `UNSURE` most uncertain
part of an image's cells.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.learning.predict import decide_on_features
from pipeline.networks.classifier import Classifier
from pipeline.selection.acquisition import ACQUISITIONS
from pipeline.tasks import segmentation
from pipeline.tasks.cells import side_of

N_POINTS = 16
"""Of an image."""
UNSURE = 0.05


def cells_at_random(n: int, n_cells: int, *, generator: torch.Generator) -> Tensor:
    """`(n, N_POINTS)` of the cells of each image, each once."""
    return torch.stack([torch.randperm(n_cells, generator=generator)[:N_POINTS] for _ in range(n)])


def unsure_cells(
    heads: Sequence[Classifier], features: Tensor, *, acquisition: str, seed: int, generator: torch.Generator
) -> Tensor:
    """`(n, N_POINTS)` cells, drawn from those that the members are least sure of."""
    decided = decide_on_features(heads, features, None, task=segmentation, seed=seed)
    scores = torch.cat([ACQUISITIONS[acquisition](part.decisions) for part in decided])
    n_unsure = max(N_POINTS, round(UNSURE * scores.shape[1]))
    unsure = scores.topk(n_unsure, dim=1).indices
    return unsure.gather(1, cells_at_random(len(scores), n_unsure, generator=generator))


def known_at(targets: Tensor, cells: Tensor, *, n_cells: int) -> Tensor:
    """The rasters as somebody knows them who told what is in the middle of these cells `(n, P)`."""
    side = side_of(n_cells)
    down, across = (
        (each * segmentation.SIDE + segmentation.SIDE // 2) // side for each in (cells // side, cells % side)
    )
    image = torch.arange(len(targets))[:, None]
    known = torch.full_like(targets, segmentation.UNKNOWN)
    known[image, down, across] = targets[image, down, across]
    return known
