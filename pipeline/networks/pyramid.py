"""Networks that keep places: a trunk's maps of several sizes, and the head that makes one map of them."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from pipeline.networks.errors import ModelError

STRIDES = (4, 8, 16, 32)
"""Pixels of the image for a place of a map, in each direction."""
WIDTH = 64
"""Channels of the maps that are added up."""
N_GROUPS = 8
"""Groups of channels that are normalised together (Wu and He, 2018), for batches are small."""


class Pyramid(nn.Module):
    """A trunk that gives its maps of several sizes, in one row for each image.

    So features of places are kept, cached and read as features of whole images are.

    Attributes:
        names: modules of the body whose outputs are the maps, the largest first.
        shapes: `(channels, height, width)` of each map.
        sides: height, which is the width, of the map of each stride.
    """

    def __init__(self, body: nn.Module, maps: Mapping[int, tuple[str, tuple[int, int, int]]]) -> None:
        """A trunk whose modules of these names put out maps of these shapes, by stride."""
        super().__init__()
        self.body = body
        self.names = tuple(name for name, _ in maps.values())
        self.shapes = tuple(shape for _, shape in maps.values())
        self.sides = {stride: shape[1] for stride, (_, shape) in maps.items()}

    def forward(self, images: Tensor) -> Tensor:
        """Rows `(n, D)` of normalised images."""
        maps: dict[str, Tensor] = {}

        def keep(name: str) -> None:
            layer = self.body.get_submodule(name)
            hooks.append(layer.register_forward_hook(lambda _layer, _inputs, output: maps.update({name: output})))

        hooks: list[torch.utils.hooks.RemovableHandle] = []
        try:
            for name in self.names:
                keep(name)
            self.body(images)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat([maps[name].flatten(1) for name in self.names], dim=1)

    def extra_repr(self) -> str:
        """What the features depend on besides the body."""
        return f"names={self.names}, shapes={self.shapes}"


class MergedMaps(nn.Module):
    """From rows of a `Pyramid` to one map: its maps are brought to one width and one size, and added.

    As in feature pyramids (Lin et al., 2017), but all at once, with one convolution after all, by which a place knows
    what is around it.
    """

    def __init__(self, shapes: Sequence[tuple[int, int, int]], side: int) -> None:
        super().__init__()
        self.shapes = tuple(shapes)
        self.side = side
        self.lateral = nn.ModuleList(nn.Conv2d(channels, WIDTH, kernel_size=1) for channels, _, _ in shapes)
        around = nn.Conv2d(WIDTH, WIDTH, kernel_size=3, padding=1)
        norms = [nn.GroupNorm(N_GROUPS, WIDTH) for _ in range(2)]
        self.around = nn.Sequential(norms[0], nn.ReLU(), around, norms[1], nn.ReLU())

    def forward(self, rows: Tensor) -> Tensor:
        """Maps `(n, WIDTH, side, side)`."""
        parts = rows.split([channels * height * width for channels, height, width in self.shapes], dim=1)
        layers = zip(self.lateral, parts, self.shapes, strict=True)
        maps = [_brought(lateral, part.unflatten(1, shape), self.side) for lateral, part, shape in layers]
        merged: Tensor = self.around(torch.stack(maps).sum(dim=0))
        return merged


def _brought(lateral: nn.Module, maps: Tensor, side: int) -> Tensor:
    """Maps `(n, channels, h, h)` as `(n, WIDTH, side, side)`; a convolution of single places may come before or after.

    It comes where there are fewer places: a step on a trunk that ends in 1,280 channels takes a fifth of the time then.
    """
    if maps.shape[-1] >= side:
        return cast(Tensor, lateral(adaptive_avg_pool2d(maps, side)))
    return interpolate(lateral(maps), size=(side, side), mode="bilinear")


def map_tail(pyramid: Pyramid, n_outputs: int, *, stride: int, dropout: float) -> nn.Sequential:
    """A head on a pyramid, `(n, n_outputs, h, h)`, of the map of this stride."""
    last = nn.Conv2d(WIDTH, n_outputs, kernel_size=1)
    return nn.Sequential(MergedMaps(pyramid.shapes, pyramid.sides[stride]), nn.Dropout2d(dropout), last)


def small_maps(channels: int) -> nn.Sequential:
    """A trunk of seven convolutions for drawn shapes and the like, with maps of stride 4, 8 and 16.

    On a processor it is trained several times faster than one that pools, as no map is as large as the image.
    """
    layers: list[nn.Module] = []
    came = channels
    for width, step in ((16, 2), (32, 2), (32, 1), (64, 2), (64, 1), (128, 2), (128, 1)):
        conv = nn.Conv2d(came, width, kernel_size=3, stride=step, padding=1)
        layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
        came = width
    return nn.Sequential(*layers)


@torch.no_grad()
def find_pyramid(body: nn.Module, name: str, *, stride: int, channels: int, image_size: int) -> Pyramid:
    """The trunk with the last map of a block at each of `STRIDES`, found by passing an empty image through it.

    Args:
        name: of the network, for messages.
        stride: of a map that there must be, one of `STRIDES`.

    Raises:
        ModelError: it has no maps, as transformers have none, or none of this stride.
    """
    seen: dict[str, Tensor] = {}
    n_runs: dict[str, int] = {}

    def keep(layer: str, output: object) -> None:
        n_runs[layer] = n_runs.get(layer, 0) + 1
        if isinstance(output, Tensor) and output.ndim == 4:
            seen[layer] = output

    named = [(layer, module) for layer, module in body.named_modules() if layer]
    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, layer=layer: keep(layer, output))
        for layer, module in named
    ]
    was_training = body.training
    try:
        body.eval()
        body(torch.zeros(1, channels, image_size, image_size))
    finally:
        body.train(was_training)
        for hook in hooks:
            hook.remove()
    once = {
        layer: (output.shape[1], output.shape[2], output.shape[3])
        for layer, output in seen.items()
        if n_runs[layer] == 1
    }
    found: dict[int, str] = {}
    for each in STRIDES:
        sides = image_size // each, -(-image_size // each)
        squares = {layer: height for layer, (_, height, width) in once.items() if height == width > 1}
        # Of two such sides the smaller is that of the next stride.
        side = max((height for height in squares.values() if height in sides), default=0)
        layers = [layer for layer, height in squares.items() if height == side]
        if layers:  # of the outermost modules: blocks, and not what widens the map inside of the next one
            depth = min(layer.count(".") for layer in layers)
            found[each] = [layer for layer in layers if layer.count(".") == depth][-1]
    if stride not in found:
        raise ModelError(
            f"{name} has no map of a place for each {stride} x {stride} pixels, which the task needs: choose a "
            "convolutional network, such as torchvision:resnet18, and an image_size of 32 or more"
        )
    return Pyramid(body, {each: (layer, once[layer]) for each, layer in found.items()})
