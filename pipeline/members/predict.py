"""Predictions of K members for each image: networks, passes of Monte Carlo dropout, Laplace draws, views, products."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.members.dropout import Pass, check_dropout, stochastic_layers
from pipeline.memory import BLOCK
from pipeline.networks.classifier import Classifier, evaluating
from pipeline.networks.halving import Work, halving
from pipeline.networks.posterior import Posterior
from pipeline.randomness import derive_seed, seeded, seeded_generator
from pipeline.registries import look_up
from pipeline.tasks.task_type import TaskType
from pipeline.training.augmentation import AUGMENTATIONS, Augmentation


class Decided(NamedTuple):
    """What members decide about n images; float32 on the CPU.

    Attributes:
        decisions: probabilities `(n, U, K, C)`.
        embeddings: `(n, D)`, by the first network.
        places: `(n, U, G)` as the task has them, the mean over the members; None where it has none.
    """

    decisions: Tensor
    embeddings: Tensor
    places: Tensor | None = None


def predict_members(
    models: Sequence[Classifier],
    images: Tensor,
    *,
    task: TaskType,
    mc_dropout: int = 0,
    laplace: int = 0,
    views: int = 0,
    augmentation: str = "none",
    seed: int,
    batch_size: int = 64,
) -> Decided:
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
        batch_size: images at a time, or fewer where memory is too small; changes speed and memory only.

    Returns:
        Embeddings are of the images as they are with dropout off, averaged over space where there are maps.
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
        batches = halving(
            lambda n: [[_see(group, part, changes, task) for group in groups] for part in images.split(n)],
            max(1, min(batch_size, len(images))),
            Work(f"{_count(networks, views)} members", models[0], images.shape[1:]),
        )
    decided = _join(batches)
    _check_distinct(decided.decisions, len(models), (views, laplace, mc_dropout))
    return decided


def predict_from_features(
    models: Sequence[Classifier],
    features: Tensor,
    *,
    task: TaskType,
    mc_dropout: int = 0,
    laplace: int = 0,
    seed: int,
) -> Decided:
    """What `predict_members` gives for the images of these features, up to the rounding of the features.

    Where each tail is a dropout and a Linear layer, all members are one matrix product: masks and draws go into its
    weights, so that twenty passes cost little more than one.

    Args:
        models: networks that share the trunk that made the features; with passes, it must draw nothing.
        features: `(n, ...)` what the tails read of n images; float16 will do. Give many at once: masks and draws are
            made for each call, and memory is for blocks of them.
    """
    _check_counts(models, mc_dropout, laplace)
    with _predicting(models):
        group = _Group([_Network(model, mc_dropout, laplace, seed, number) for number, model in enumerate(models)])
        if any(network.trunk_draws for network in group.networks):
            raise ValueError("dropout passes of a trunk that is not frozen are not in its features; give the images")
        made = len(models) * group.networks[0].n_members * models[0].n_outputs.n * models[0].n_places
        batches = halving(
            lambda n: [[_decide(task, *group.read(part.to(models[0].mean)))] for part in features.split(n)],
            max(1, min(BLOCK // (features[:1].numel() + made), len(features))),
            Work(f"{_count(group.networks, 1)} members", models[0], features.shape[1:]),
        )
    decided = _join(batches)
    _check_distinct(decided.decisions, len(models), (0, laplace, mc_dropout))
    return decided


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
        self.passes = [Pass(list(layers.values()), derive_seed(seed, number, purpose)) for purpose in purposes]
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
        """Outputs `(n, S, C, ...)` of the S = draws x passes, and embeddings `(n, D, ...)` with dropout off."""
        model = self.model
        plain = model.tail[:-1](features)
        outputs = [] if self.passes else [self._last(plain)]
        for one in self.passes:
            with one.masked():
                seen = model.features(images).to(features) if self.trunk_draws and images is not None else features
                outputs.append(self._last(model.tail[:-1](seen)))
        return model.calibrated(torch.stack(outputs, dim=2).flatten(1, 2), dim=2), plain

    def _last(self, embeddings: Tensor) -> Tensor:
        """Outputs `(n, draws, C, ...)`; the last layer as it is counts as one draw."""
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
        if all(is_linear(network.model.tail) and not network.trunk_draws for network in networks):
            parts = [network.folded() for network in networks]
            self.folded = torch.cat([weights for weights, _ in parts]), torch.cat([biases for _, biases in parts])

    def run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """As `read`, of images `(n, channels, S, S)`."""
        model = self.networks[0].model
        return self.read(model.features(images).to(model.mean), images)

    def read(self, features: Tensor, images: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Outputs `(n, M, S, C, ...)` of M networks, and embeddings `(n, D, ...)` of the first one."""
        if self.folded is not None and features.ndim == 2:
            weights, biases = self.folded
            logits = functional.linear(features, weights.flatten(0, 1), biases.flatten())
            return logits.unflatten(1, (len(self.networks), -1, weights.shape[1])), features
        outputs = [network.read(features, images) for network in self.networks]
        return torch.stack([logits for logits, _ in outputs], dim=1), outputs[0][1]


def _count(networks: Sequence[_Network], views: int) -> int:
    """K, the members that networks make."""
    return max(1, views) * sum(network.n_members for network in networks)


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


def is_linear(tail: nn.Sequential) -> bool:
    """Whether the tail is a Linear layer with a bias, after one dropout of inputs or none."""
    *dropouts, last = tail
    return (
        isinstance(last, nn.Linear)
        and last.bias is not None
        and len(dropouts) <= 1
        and all(isinstance(layer, nn.Dropout | nn.AlphaDropout) for layer in dropouts)
    )


def _see(group: _Group, batch: Tensor, changes: Sequence[Callable[[Tensor], Tensor]], task: TaskType) -> Decided:
    """What a group decides about the images and after each change."""
    images = _move(batch, group.networks[0].model.mean.device)
    seen = [group.run(images), *(group.run(change(images)) for change in changes)]
    return _decide(task, torch.stack([outputs for outputs, _ in seen], dim=2).flatten(2, 3), seen[0][1])


def _decide(task: TaskType, outputs: Tensor, embeddings: Tensor) -> Decided:
    """What outputs `(n, M, S, C, ...)` mean; embeddings are `(n, D, ...)`."""
    n, n_networks, n_members = outputs.shape[:3]
    flat, k = outputs.flatten(0, 2), n_networks * n_members
    decisions, places = task.logits(flat).softmax(dim=-1), task.places(flat)
    return Decided(
        decisions.unflatten(0, (n, k)).transpose(1, 2),
        embeddings if embeddings.ndim == 2 else embeddings.flatten(2).mean(dim=2),
        None if places is None else places.unflatten(0, (n, k)).mean(dim=1),
    )


def _join(batches: Sequence[Sequence[Decided]]) -> Decided:
    """Put batches `[batch][group]` together, on the CPU: a GPU is not waited for before the last one."""
    groups = list(zip(*batches, strict=True))
    decisions = [torch.cat([each.decisions for each in group]).float().cpu() for group in groups]
    places: list[Tensor] = []
    for group in groups:
        found = [each.places for each in group if each.places is not None]
        places += [torch.cat(found).float().cpu()] if found else []
    members = torch.tensor([float(each.shape[2]) for each in decisions])
    return Decided(
        torch.cat(decisions, dim=2),
        torch.cat([each.embeddings for each in groups[0]]).float().cpu(),
        (torch.stack(places, dim=-1) @ (members / members.sum())) if places else None,
    )


def _move(images: Tensor, device: torch.device) -> Tensor:
    """Images on the device; a GPU fetches them while it computes."""
    return images.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else images.to(device)


def _change(augment: Augmentation, seed: int, images: Tensor) -> Tensor:
    """Change every image in the same way, drawn by the seed."""
    with seeded(seed, torch.device("cpu")):
        changed: Tensor = torch.vmap(lambda image: augment(image[None]).images[0], randomness="same")(images)
    return changed


@contextmanager
def _predicting(models: Sequence[Classifier]) -> Iterator[None]:
    with ExitStack() as stack:
        for model in models:
            stack.enter_context(evaluating(model))
        stack.enter_context(torch.inference_mode())
        yield


def _check_counts(models: Sequence[Classifier], mc_dropout: int, laplace: int) -> None:
    if not models:
        raise ValueError("members need at least one model")
    if mc_dropout < 0 or laplace < 0:
        raise ValueError(
            f"mc_dropout and laplace must be numbers of passes and draws, 0 for none, got {mc_dropout} and {laplace}"
        )


def _check_distinct(decisions: Tensor, n_networks: int, counts: tuple[int, int, int]) -> None:
    """Refuse views, draws or passes (`counts` of each) that predict the same for more than one image."""
    members = decisions.unflatten(2, (n_networks, *(max(1, count) for count in counts)))
    for axis, (kind, count) in enumerate(zip(("views", "Laplace draws", "dropout passes"), counts, strict=True)):
        for number in range(n_networks if count > 1 and len(decisions) > 1 else 0):
            first, *others = members[:, :, number].movedim(2 + axis, 0).flatten(3, -2)[..., 0, :]
            if all(torch.equal(first, other) for other in others):
                raise ValueError(
                    f"the {count} {kind} of model {number} come out identical: they do not change its logits (dead or "
                    "constant activations, or images without anything in them); train it again, or do without"
                )
