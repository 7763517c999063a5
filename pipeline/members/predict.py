"""What K members say of each image: networks, passes of Monte Carlo dropout, Laplace draws, views and products."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from pipeline.members.laplace import Posterior
from pipeline.networks.classifier import (
    Classifier,
    drop_probability,
    evaluating,
    is_stochastic,
    is_stochastic_depth,
    seeded,
)
from pipeline.randomness import derive_seed, seeded_generator
from pipeline.registries import look_up
from pipeline.tasks import Task
from pipeline.training.augmentation import AUGMENTATIONS, Augmentation

ALPHA = 1.7580993408473766
"""Alpha dropout puts minus this, where SELU saturates, in place of a dropped input (Klambauer et al., 2017)."""
BLOCK = 2**22
"""Numbers read and made at a time from cached features: 16 MiB."""
ROUNDING = 1e-5
"""Two runs of a network that differ by less, as a share of the largest logit, are the same."""

Mask = tuple[Tensor, Tensor]
"""Scale and shift of a dropped layer's input, each `(1, ...)`: the same for all images."""

_CHECKED: WeakKeyDictionary[Classifier, tuple[str, ...]] = WeakKeyDictionary()
"""Networks that `check_dropout` has passed, and what was frozen in them then."""


def predict_members(
    models: Sequence[Classifier],
    images: Tensor,
    *,
    task: Task,
    mc_dropout: int = 0,
    laplace: int = 0,
    views: int = 0,
    augmentation: str = "none",
    seed: int,
    batch_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """Decisions of K members on every image, and the first network's embeddings.

    K is networks x views x Laplace draws x dropout passes, each at least 1, nested in this order: all members of the
    first network come first, and neighbours are passes of one draw on one view.

    A member is one function, the same for all images, so an image has the same decisions in any batch and any order.
    A pass of Monte Carlo dropout (Gal and Ghahramani, 2016) keeps one mask; a draw of last-layer Laplace
    (`pipeline/members/laplace.py`) keeps one change of the last layer's weights; a view changes every image in one
    way, and the first view leaves it as it is. Everything else stays in evaluation mode. Frozen parts draw nothing, as
    in training.
    A trunk that draws nothing runs once for each view: for all passes and draws, and networks in a row that share it.

    Args:
        models: networks of the same classes, at least one; each computes on the device that it is on.
        images: `(n, channels, S, S)` of uint8.
        mc_dropout: passes, 0 for none; the networks must pass `check_dropout`.
        laplace: draws, 0 for none; the networks must have a `posterior`.
        views: views of test-time augmentation, 0 for none.
        augmentation: a key of `AUGMENTATIONS`, what the views are made with.
        seed: of views, draws and passes; each network has draws and passes of its own.
        batch_size: images at a time; changes speed and memory only.

    Returns:
        Probabilities `(n, U, K, C)`; and embeddings `(n, D)` of the images as they are with dropout off, averaged over
        space where the task has places. Float32 on the CPU.
    """
    if views < 0 or (views > 0 and augmentation == "none"):
        raise ValueError(f"views must be 0, or more with an augmentation, got {views} with {augmentation!r}")
    augment = look_up(AUGMENTATIONS, augmentation, "augmentation")
    changes = [partial(_change, augment, derive_seed(seed, view, "view")) for view in range(1, views)]
    _check_counts(models, mc_dropout, laplace)
    if mc_dropout and len(images):
        for model in models:
            check_dropout(model, images)
    with _predicting(models):
        networks = [_Network(model, mc_dropout, laplace, seed, number) for number, model in enumerate(models)]
        groups = _sharing_a_trunk(networks)
        batches = [[_see(group, batch, changes, task) for group in groups] for batch in images.split(batch_size)]
    decisions, embeddings = _join(batches)
    _check_distinct(decisions, len(models), (views, laplace, mc_dropout))
    return decisions, embeddings


def predict_from_features(
    models: Sequence[Classifier],
    features: Tensor,
    *,
    task: Task,
    mc_dropout: int = 0,
    laplace: int = 0,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """What `predict_members` gives for the images of these features, up to the rounding of the features.

    Where each tail is a dropout and a Linear layer, all members are one matrix product: masks and draws go into its
    weights, so that twenty passes cost little more than one.

    Args:
        models: networks that share the trunk that made the features; with passes, it must draw nothing.
        features: `(n, ...)` what the tails read of n images; float16 will do. Give many at once: masks and draws are
            made for each call, and memory is for blocks of them.

    Returns:
        Probabilities `(n, U, K, C)` and embeddings `(n, D)`, as of `predict_members`.
    """
    _check_counts(models, mc_dropout, laplace)
    with _predicting(models):
        group = _Group([_Network(model, mc_dropout, laplace, seed, number) for number, model in enumerate(models)])
        if any(network.trunk_draws for network in group.networks):
            raise ValueError("dropout passes of a trunk that is not frozen are not in its features; give the images")
        numbers = features[:1].numel() + len(models) * group.networks[0].n_members * models[0].n_classes
        blocks = features.split(max(1, BLOCK // numbers))
        batches = [[_decide(task, *group.read(block.to(models[0].mean)))] for block in blocks]
    decisions, embeddings = _join(batches)
    _check_distinct(decisions, len(models), (0, laplace, mc_dropout))
    return decisions, embeddings


def first_half(decisions: Tensor, n_networks: int) -> Tensor:
    """The decisions that half the draws would give: the first half of each network's members, rounded down.

    Args:
        decisions: `(n, U, K, C)`, K as `predict_members` lays it out: the members of the first network, then those of
            the second. SWAG draws of a network, given to it in a row, count as that network's members.
        n_networks: how many networks were trained; K is at least twice as many.

    Returns:
        `(n, U, n_networks * half, C)`.
    """
    members: Tensor = decisions.unflatten(2, (n_networks, -1))
    half = members.shape[3] // 2
    if half == 0:
        raise ValueError(f"half of the members needs at least two of each network, got {members.shape[3]}")
    return members[:, :, :, :half].flatten(2, 3)


def check_dropout(model: Classifier, images: Tensor) -> None:
    """Refuse a network that draws random numbers in training elsewhere than in layers that `draw_mask` knows.

    `torch.nn.functional.dropout`, dropout inside of attention and noise are such. Two runs in training mode, known
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


def _mask_shape(layer: nn.Module, shape: torch.Size) -> tuple[int, ...]:
    if is_stochastic_depth(layer):
        return (1,) * len(shape)
    if isinstance(layer, nn.Dropout | nn.AlphaDropout):
        return (1, *shape[1:])
    return (1, shape[1], *(1 for _ in shape[2:]))


class _Network:
    """A network with its dropout passes and the draws of its last layer."""

    def __init__(self, model: Classifier, mc_dropout: int, laplace: int, seed: int, number: int) -> None:
        layers = stochastic_layers(model) if mc_dropout else {}
        if mc_dropout and not layers:
            raise ValueError(
                "mc_dropout needs a network with dropout in a part that is not frozen; set mc_dropout to 0"
            )
        purposes = [f"dropout pass {index}" for index in range(mc_dropout)]
        self.model = model
        self.trunk_draws = any(name.split(".")[0] == "trunk" for name in layers)
        self.passes = [_Pass(list(layers.values()), derive_seed(seed, number, purpose)) for purpose in purposes]
        self.draws = self._draw(laplace, seeded_generator(seed, number, "laplace")) if laplace else None
        self.n_members = max(1, mc_dropout) * max(1, laplace)

    def _draw(self, laplace: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Weights `(laplace, C, D)` and biases `(laplace, C)` of the last layer."""
        last, posterior = cast(nn.Linear, self.model.tail[-1]), self.model.posterior
        if not isinstance(posterior, Posterior):
            raise ValueError("laplace needs networks with a posterior: set it with fit_posterior, or laplace to 0")
        changes = posterior.draw(laplace, generator)
        return last.weight + changes[:, :, :-1], last.bias + changes[:, :, -1]

    def read(self, features: Tensor, images: Tensor | None) -> tuple[Tensor, Tensor]:
        """Logits `(n, S, C, ...)` of the S = draws x passes, and embeddings `(n, D, ...)` with dropout off."""
        model = self.model
        plain = model.tail[:-1](features)
        outputs = [] if self.passes else [self._last(plain)]
        for one in self.passes:
            with one.masked():
                seen = model.features(images).to(features) if self.trunk_draws and images is not None else features
                outputs.append(self._last(model.tail[:-1](seen)))
        return torch.stack(outputs, dim=2).flatten(1, 2) / model.temperature, plain

    def _last(self, embeddings: Tensor) -> Tensor:
        """Logits `(n, draws, C, ...)`; the last layer as it is counts as one draw."""
        if self.draws is None:
            return cast(Tensor, self.model.tail[-1](embeddings)).unsqueeze(1)
        weights, biases = self.draws
        logits = functional.linear(embeddings, weights.flatten(0, 1), biases.flatten())
        return cast(Tensor, logits.unflatten(1, biases.shape))

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weights `(S, C, D)` and biases `(S, C)` with masks, draws and temperature in them, of a linear tail."""
        last = cast(nn.Linear, self.model.tail[-1])
        weights, biases = self.draws or (last.weight[None], last.bias[None])
        shape = torch.Size((1, last.in_features))
        no_mask = weights.new_ones(shape), weights.new_zeros(shape)
        masks = [one.mask(0, shape, weights) for one in self.passes] or [no_mask]
        scales, shifts = (torch.cat(values) for values in zip(*masks, strict=True))
        biases = biases[:, None] + (weights @ shifts.T).transpose(1, 2)
        weights = weights[:, None] * scales[:, None]
        return weights.flatten(0, 1) / self.model.temperature, biases.flatten(0, 1) / self.model.temperature


class _Group:
    """Networks that read the same features: one run of the trunk for all, one product where the tails are linear."""

    def __init__(self, networks: Sequence[_Network]) -> None:
        self.networks = networks
        self.folded: tuple[Tensor, Tensor] | None = None
        if all(_is_linear(network.model.tail) and not network.trunk_draws for network in networks):
            parts = [network.folded() for network in networks]
            self.folded = torch.cat([weights for weights, _ in parts]), torch.cat([biases for _, biases in parts])

    def run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As `read`, of images `(n, channels, S, S)`."""
        model = self.networks[0].model
        return self.read(model.features(images).to(model.mean), images)

    def read(self, features: Tensor, images: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Logits `(n, M, S, C, ...)` of M networks, and embeddings `(n, D, ...)` of the first one."""
        if self.folded is not None and features.ndim == 2:
            weights, biases = self.folded
            logits = functional.linear(features, weights.flatten(0, 1), biases.flatten())
            return logits.unflatten(1, (len(self.networks), -1, weights.shape[1])), features
        outputs = [network.read(features, images) for network in self.networks]
        return torch.stack([logits for logits, _ in outputs], dim=1), outputs[0][1]


class _Pass:
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


def _sharing_a_trunk(networks: Sequence[_Network]) -> list[_Group]:
    """Networks in a row that have one trunk, which draws nothing, and read images alike are one group."""
    groups: list[list[_Network]] = []
    for network in networks:
        before = groups[-1][0] if groups else None
        if before is not None and _read_alike(before, network):
            groups[-1].append(network)
        else:
            groups.append([network])
    return [_Group(group) for group in groups]


def _read_alike(one: _Network, other: _Network) -> bool:
    if one.trunk_draws or other.trunk_draws or one.model.trunk is not other.model.trunk:
        return False
    return torch.equal(one.model.mean, other.model.mean) and torch.equal(one.model.std, other.model.std)


def _is_linear(tail: nn.Sequential) -> bool:
    """Whether the tail is a Linear layer with a bias, after one dropout of inputs or none."""
    *dropouts, last = tail
    return (
        isinstance(last, nn.Linear)
        and last.bias is not None
        and len(dropouts) <= 1
        and all(isinstance(layer, nn.Dropout | nn.AlphaDropout) for layer in dropouts)
    )


def _see(
    group: _Group, batch: Tensor, changes: Sequence[Callable[[Tensor], Tensor]], task: Task
) -> tuple[Tensor, Tensor]:
    """Decisions `(n, U, K, C)` of a group on the images and after each change, and embeddings of the images."""
    images = _move(batch, group.networks[0].model.mean.device)
    outputs = [group.run(images), *(group.run(change(images)) for change in changes)]
    return _decide(task, torch.stack([logits for logits, _ in outputs], dim=2).flatten(2, 3), outputs[0][1])


def _decide(task: Task, logits: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """Decisions `(n, U, K, C)` of logits `(n, M, S, C, ...)`, and embeddings `(n, D)` of `(n, D, ...)`."""
    n, n_networks, n_members = logits.shape[:3]
    decisions = task.decisions(logits.flatten(0, 2)).unflatten(0, (n, n_networks * n_members)).transpose(1, 2)
    return decisions, embeddings if embeddings.ndim == 2 else embeddings.flatten(2).mean(dim=2)


def _join(batches: Sequence[Sequence[tuple[Tensor, Tensor]]]) -> tuple[Tensor, Tensor]:
    """Put batches `[batch][group]` together, on the CPU: a GPU is not waited for before the last one."""
    groups = list(zip(*batches, strict=True))
    decisions = [torch.cat([of_batch for of_batch, _ in group]).float().cpu() for group in groups]
    embeddings = torch.cat([embedded for _, embedded in groups[0]]).float().cpu()
    return torch.cat(decisions, dim=2), embeddings


def _move(images: Tensor, device: torch.device) -> Tensor:
    """Images on the device; a GPU fetches them while it computes."""
    return images.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else images.to(device)


def _change(augment: Augmentation, seed: int, images: Tensor) -> Tensor:
    """Change every image in the way that the seed says, the same for all of them."""
    with seeded(seed, torch.device("cpu")):
        changed: Tensor = torch.vmap(lambda image: augment(image[None])[0], randomness="same")(images)
    return changed


@contextmanager
def _predicting(models: Sequence[Classifier]) -> Iterator[None]:
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        stack.enter_context(torch.inference_mode())
        yield


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


def _check_counts(models: Sequence[Classifier], mc_dropout: int, laplace: int) -> None:
    if not models:
        raise ValueError("members need at least one model")
    if mc_dropout < 0 or laplace < 0:
        raise ValueError(
            f"mc_dropout and laplace must be numbers of passes and draws, 0 for none, got {mc_dropout} and {laplace}"
        )


def _check_distinct(decisions: Tensor, n_networks: int, counts: tuple[int, int, int]) -> None:
    """Refuse views, draws or passes, as many as `counts` says, that say the same of more than one image."""
    members = decisions.unflatten(2, (n_networks, *(max(1, count) for count in counts)))
    for axis, (kind, count) in enumerate(zip(("views", "Laplace draws", "dropout passes"), counts, strict=True)):
        for number in range(n_networks if count > 1 and len(decisions) > 1 else 0):
            first, *others = members[:, :, number].movedim(2 + axis, 0).flatten(3, -2)[..., 0, :]
            if all(torch.equal(first, other) for other in others):
                raise ValueError(
                    f"the {count} {kind} of model {number} come out identical: they do not change its logits (dead or "
                    "constant activations, or images without anything in them); train it again, or do without"
                )
