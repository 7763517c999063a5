"""Layers that draw random numbers in training mode."""

from torch import nn


def is_stochastic(module: nn.Module) -> bool:
    """Whether the layer draws random numbers in training mode."""
    return (isinstance(module, nn.modules.dropout._DropoutNd) or is_stochastic_depth(module)) and (
        drop_probability(module) > 0
    )


def is_stochastic_depth(module: nn.Module) -> bool:
    """Whether the layer drops whole paths: torchvision's or timm's, told by name as loading those takes seconds."""
    return type(module).__name__ in ("StochasticDepth", "DropPath")


def drop_probability(module: nn.Module) -> float:
    """How probably a stochastic layer drops an input, a channel or a path, in [0, 1]."""
    return float(getattr(module, "drop_prob", None) or getattr(module, "p", None) or 0.0)
