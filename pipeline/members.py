"""What K members say of each image: the networks of an ensemble, the passes of Monte Carlo dropout, or both."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.models import Classifier, evaluating, is_stochastic, is_stochastic_depth
from pipeline.tasks import Task

ALPHA = 1.7580993408473766
"""Alpha dropout puts minus this, where SELU saturates, in place of a dropped input (Klambauer et al., 2017)."""

Mask = tuple[Tensor, Tensor]
"""Scale and shift of a dropped layer's input, each `(1, ...)`: the same for all images."""


def predict_members(
    models: Sequence[Classifier],
    images: Tensor,
    *,
    task: Task,
    mc_dropout: int,
    seed: int,
    batch_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Decisions of K = models x dropout passes on every image, and the first model's embeddings without dropout.

    A member of Monte Carlo dropout (Gal and Ghahramani, 2016) keeps one mask for all images: it is one network drawn
    from the posterior, and an image has the same decisions in any batch and any order. Everything else stays in
    evaluation mode. Frozen parts draw nothing, as in training. A trunk without stochastic layers runs once for all
    passes.

    Args:
        models: one or more, of the same classes; each computes on the device that it is on.
        images: `(n, channels, S, S)` of uint8.
        mc_dropout: passes of each model; with 0 each model is one member, with dropout off.
        seed: of the masks, not negative.
        batch_size: images at a time; changes speed and memory only.

    Returns:
        Probabilities `(n, U, K, C)`, passes of the first model first, and `(n, D)`; float32 on the CPU.
    """
    if not models:
        raise ValueError("members need at least one model")
    if mc_dropout < 0:
        raise ValueError(f"mc_dropout must be a number of passes, 0 for none, got {mc_dropout}")
    members: list[Tensor] = []
    embeddings: list[Tensor] = []
    for number, model in enumerate(models):
        seeds = [(seed, number, index) for index in range(mc_dropout)]
        logits, embedded = _run_model(model, images, seeds, batch_size)
        if len(logits) > 1 and len(images) > 1 and all(torch.equal(logits[0], other) for other in logits[1:]):
            raise ValueError(
                f"the {len(logits)} dropout passes of model {number} come out identical: its stochastic layers do "
                "not change its logits (dead or constant activations); train it again or use mc_dropout=0"
            )
        members += [task.decisions(member) for member in logits]
        embeddings.append(embedded)
    return torch.stack(members, dim=2), embeddings[0]


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
    p = float(layer.p)  # type: ignore[arg-type]
    keep = (torch.rand(_mask_shape(layer, shape), generator=generator) >= p).float()
    if p == 1:
        return keep, keep
    if isinstance(layer, nn.AlphaDropout | nn.FeatureAlphaDropout):
        scale = ((1 - p) * (1 + p * ALPHA**2)) ** -0.5
        return scale * keep, scale * ALPHA * (keep - 1 + p)
    return keep / (1 - p), torch.zeros_like(keep)


def _mask_shape(layer: nn.Module, shape: torch.Size) -> tuple[int, ...]:
    if is_stochastic_depth(layer):
        return (1,) * len(shape)
    if isinstance(layer, nn.Dropout | nn.AlphaDropout):
        return (1, *shape[1:])
    return (1, shape[1], *(1 for _ in shape[2:]))


def _run_model(
    model: Classifier, images: Tensor, seeds: Sequence[tuple[int, int, int]], batch_size: int
) -> tuple[list[Tensor], Tensor]:
    """Logits `(n, C)` of each pass, or of the one without dropout, and embeddings `(n, D)`."""
    layers = stochastic_layers(model)
    if seeds and not layers:
        raise ValueError("mc_dropout needs a network with dropout in a part that is not frozen; set mc_dropout to 0")
    passes = [_Pass(list(layers.values()), seed) for seed in seeds]
    trunk_is_stochastic = any(name.split(".")[0] == "trunk" for name in layers)
    device = model.mean.device
    parts = []
    with evaluating(model), torch.inference_mode():
        for batch in images.split(batch_size):
            batch = batch.to(device)
            features = model.trunk(model.normalise(batch))
            embeddings = model.tail[:-1](features)
            outputs = [] if passes else [model.tail[-1](embeddings)]
            for one in passes:
                with one.masked():
                    outputs.append(model(batch) if trunk_is_stochastic else model.tail(features))
            parts.append([output.float().cpu() for output in (embeddings, *outputs)])
    whole = [torch.cat(outputs) for outputs in zip(*parts, strict=True)]
    return whole[1:], whole[0]


class _Pass:
    """One draw of all stochastic layers of a model, made as inputs show their shape."""

    def __init__(self, layers: Sequence[nn.Module], seed: tuple[int, int, int]) -> None:
        self.layers = layers
        self.seed = seed
        self.masks: dict[tuple[int, torch.Size], Mask] = {}

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
        key = (number, output.shape[1:])
        if key not in self.masks:
            entropy = np.random.SeedSequence((*self.seed, number)).generate_state(1, np.uint64)
            generator = torch.Generator().manual_seed(int(entropy[0] >> 1))
            scale, shift = draw_mask(layer, output.shape, generator)
            self.masks[key] = scale.to(output), shift.to(output)
        scale, shift = self.masks[key]
        return output * scale + shift
