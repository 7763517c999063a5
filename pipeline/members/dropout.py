"""Monte Carlo dropout: which layers draw, whether others do, and the mask that a pass keeps for all images."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pipeline.networks.classifier import Classifier, evaluating
from pipeline.networks.stochastic import drop_probability, is_stochastic, is_stochastic_depth
from pipeline.randomness import seeded, seeded_generator

ALPHA = 1.7580993408473766
"""Alpha dropout puts minus this, where SELU saturates, in place of a dropped input (Klambauer et al., 2017)."""
ROUNDING = 1e-5
"""Two runs of a network that differ by less, as a share of the largest logit, are the same."""
Mask = tuple[Tensor, Tensor]
"""Scale and shift of a dropped layer's input, each `(1, ...)`: the same for all images."""
_CHECKED: WeakKeyDictionary[Classifier, tuple[str, ...]] = WeakKeyDictionary()
"""Networks that `check_dropout` has passed, and what was frozen in them then."""


def check_dropout(model: Classifier, images: Tensor) -> None:
    """Refuse a network that draws random numbers in training elsewhere than in layers that `draw_mask` knows.

    `torch.nn.functional.dropout`, dropout inside of attention, and noise do so. Two runs in training mode, known
    layers and batch-norm in evaluation mode, must come out the same under different seeds. The network stays as it
    was; one that has passed is not run again until something else in it is frozen.

    Args:
        images: `(n, channels, S, S)` of uint8, n >= 1; the first two are run.
    """
    if _CHECKED.get(model) == model.frozen:
        return
    one, other = (_run_in_training(model, images[:2], seed) for seed in (0, 1))
    if not _alike(one[""][1], other[""][1]):
        changed = [name for name in one if name in other and _draws(one[name], other[name])]
        where = f"{changed[0]!r} ({type(model.get_submodule(changed[0])).__name__})" if changed else "the network"
        raise ValueError(
            f"mc_dropout needs random numbers to come from dropout layers of torch.nn, but {where} draws others in "
            "training; use layers such as nn.Dropout there, turn that dropout off, or set mc_dropout to 0"
        )
    _CHECKED[model] = model.frozen


def stochastic_layers(model: Classifier) -> dict[str, nn.Module]:
    """Layers that draw random numbers in training mode, by name; frozen parts have none."""
    frozen = tuple(f"{name}." for name in model.frozen)
    return {
        name: module
        for name, module in model.named_modules()
        if is_stochastic(module) and not f"{name}.".startswith(frozen)
    }


def draw_mask(layer: nn.Module, shape: torch.Size, generator: torch.Generator) -> Mask:
    """Scale and shift that do to an input of `shape` what the layer does in training mode, the same for all images.

    The expected output is the input; for alpha dropout, the expected mean and variance of inputs with mean 0 and
    variance 1 are theirs.

    Args:
        shape: `(N, ...)`, of which N does not count; dropout of channels needs `(N, C, ...)`.
    """
    p = drop_probability(layer)
    keep = (torch.rand(_mask_shape(layer, shape), generator=generator) >= p).float()
    if p == 1 or not getattr(layer, "scale_by_keep", True):
        return keep, torch.zeros_like(keep)
    if isinstance(layer, nn.AlphaDropout | nn.FeatureAlphaDropout):
        scale = ((1 - p) * (1 + p * ALPHA**2)) ** -0.5
        return scale * keep, scale * ALPHA * (keep - 1 + p)
    return keep / (1 - p), torch.zeros_like(keep)


class Pass:
    """One draw of all stochastic layers of a network, made as inputs show their shape."""

    def __init__(self, layers: Sequence[nn.Module], seed: int) -> None:
        self.layers = layers
        self.seed = seed
        self.masks: dict[tuple[int, torch.Size], Mask] = {}

    def mask(self, number: int, shape: torch.Size, like: Tensor) -> Mask:
        """The mask of a layer, by its position, for inputs of `shape`, of the type and on the device of `like`."""
        key = (number, shape[1:])
        if key not in self.masks:
            generator = seeded_generator(self.seed, number, "mask")
            scale, shift = draw_mask(self.layers[number], shape, generator)
            self.masks[key] = scale.to(like), shift.to(like)
        return self.masks[key]

    @contextmanager
    def masked(self) -> Iterator[None]:
        """Apply the masks for a while, by forward hooks: in evaluation mode the layers themselves do nothing."""
        hooks = [layer.register_forward_hook(partial(self._apply, number)) for number, layer in enumerate(self.layers)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _apply(self, number: int, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        scale, shift = self.mask(number, output.shape, output)
        return output * scale + shift


def _mask_shape(layer: nn.Module, shape: torch.Size) -> tuple[int, ...]:
    if is_stochastic_depth(layer):
        return (1,) * len(shape)
    if isinstance(layer, nn.Dropout | nn.AlphaDropout):
        return (1, *shape[1:])
    return (1, shape[1], *(1 for _ in shape[2:]))


def _run_in_training(model: Classifier, images: Tensor, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    """First input and output of each module, by name, in the order in which they come out; the network is ""."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}

    def keep(name: str, module: nn.Module, inputs: tuple[object, ...], output: object) -> None:
        came, went = (values[0] if isinstance(values, tuple) and values else values for values in (inputs, output))
        if isinstance(came, Tensor) and isinstance(went, Tensor):
            seen[name] = came.clone(), went.clone()

    known = tuple(stochastic_layers(model).values())
    with evaluating(model), torch.inference_mode(), seeded(seed, model.mean.device), ExitStack() as hooks:
        model.train()
        for name, module in model.named_modules():
            if module in known or isinstance(module, nn.modules.batchnorm._NormBase):
                module.eval()
            hooks.callback(module.register_forward_hook(partial(keep, name)).remove)
        buffers = {name: values.clone() for name, values in model.named_buffers()}
        functional_call(model, buffers, (images.to(model.mean.device),))
    return seen


def _draws(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> bool:
    """Whether a module gave two outputs for one input."""
    return _alike(one[0], other[0]) and not _alike(one[1], other[1])


def _alike(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same up to rounding."""
    if one.shape != other.shape:
        return False
    one, other = one.double(), other.double()
    return bool((one - other).abs().max() <= ROUNDING * one.abs().max())
