"""SWAG: networks drawn around the path of stochastic gradient descent (Maddox et al., 2019)."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from pipeline.image_rows import Images
from pipeline.networks.classifier import Classifier
from pipeline.networks.halving import Work, halving
from pipeline.randomness import seeded
from pipeline.tasks.task_type import TaskType
from pipeline.training.augmentation import AUGMENTATIONS
from pipeline.training.fit import MAX_GRADIENT_NORM, TrainingError, class_weights, loss_of
from pipeline.training.gradients import Learner
from pipeline.training.recipe import Recipe

MOMENTUM = 0.9
MIN_STEPS = 8
"""Steps between two points of the path at least, however few images there are."""


def swag_draws(
    model: Classifier,
    inputs: Images,
    targets: Tensor,
    recipe: Recipe,
    *,
    task: TaskType,
    n_draws: int,
    seed: int,
    device: torch.device,
    from_features: bool = False,
    learning_rate: float = 3e-2,
    n_columns: int = 20,
) -> Iterator[Classifier]:
    """Put `n_draws` draws of the weights that are not frozen into a trained `model`, one after the other.

    Stochastic gradient descent at a constant learning rate goes on from the trained weights; the weights after each of
    `n_columns` epochs have mean m and, about it, the deviations D `(P, n_columns)` of P weights. A draw is

        m + z_1 sqrt(mean of D^2) / sqrt(2) + D z_2 / sqrt(2 (n_columns - 1)),   z_1, z_2 standard normal

    (Maddox et al., 2019, equation 1, with deviations from the last mean rather than from that of the time, so that
    D D^T is the covariance of the path). Batch-norm statistics that training moves are taken from the images anew for
    each draw. Between draws and after the last one the model must not be trained; when the draws end, also early,
    it has the weights back that it came with. Memory: `n_columns` and a dozen times the weights that are not frozen.

    Args:
        inputs: images `(n, channels, S, S)` of uint8 that the model was trained on (`Fit.train`: those held out would
            no longer be), n >= 1; or with `from_features` what its frozen trunk made of them, `(n, ...)` floats, and
            only the tail runs.
        targets: `(n, ...)` as the task has them.
        recipe: of the training that was; its steps, schedule and learning rate play no part.
        n_draws: at least 1.
        learning_rate: of the descent, with momentum 0.9: the higher, the wider the path and the draws.
        n_columns: epochs, at least 2; each draws its batches with replacement.

    Yields:
        `model`, on `device` and in evaluation mode, with the weights of a draw.
    """
    task.check_targets(targets, len(inputs), model.n_classes)
    if n_draws < 1 or n_columns < 2 or learning_rate <= 0:
        raise ValueError(
            "SWAG needs n_draws >= 1, n_columns >= 2 and a learning rate above 0, got "
            f"n_draws={n_draws}, n_columns={n_columns}, learning_rate={learning_rate}"
        )
    groups = model.parameter_groups(learning_rate, recipe.body_rate)
    trained = [parameter for group in groups for parameter in group["params"]]
    if not trained:
        raise ValueError("SWAG needs weights that are not frozen")
    augment = AUGMENTATIONS[recipe.augmentation]
    batch_size = recipe.batch_size_for(task)
    weights = class_weights(task.class_counts(targets, model.n_classes)).to(device) if recipe.class_balanced else None
    model.to(device)
    inputs = inputs.float() if from_features and isinstance(inputs, Tensor) else inputs
    generator = torch.Generator().manual_seed(seed)
    layers = _moving_batch_norms(model)
    before = [values.detach().clone() for values in (*trained, *_statistics(layers))]

    def predict(batch: Tensor) -> Tensor:
        return model.outputs(batch if from_features else model.features(batch))

    loss = partial(loss_of, recipe=recipe, task=task, class_weights=weights)
    learner = Learner(model, predict, task, loss, trained)

    def set_gradients() -> None:
        rows = torch.randint(len(inputs), (batch_size,), generator=generator)
        batch, of_batch = inputs[rows].to(device), targets[rows].to(device)
        if not from_features:
            batch, affine = augment(batch)
            of_batch = of_batch if affine is None else task.warp(of_batch, affine)
        learner.set_gradients(batch, of_batch, label_smoothing=recipe.label_smoothing)

    try:
        n_steps = max(MIN_STEPS, -(-len(inputs) // batch_size))
        model.train()
        with seeded(seed, device):
            path = _descend(groups, set_gradients, n_steps=n_steps, n_columns=n_columns)
        model.eval()
        mean = path.mean(dim=0)
        deviations = path.sub_(mean)
        diagonal = torch.linalg.vector_norm(deviations, dim=0) / n_columns**0.5
        for _ in range(n_draws):
            _set_weights(trained, draw_weights(mean, diagonal, deviations, generator).to(device))
            if not from_features:
                _refresh(model, layers, inputs, batch_size)
            yield model
    finally:
        with torch.no_grad():
            for values, kept in zip((*trained, *_statistics(layers)), before, strict=True):
                values.copy_(kept)
        model.eval()


def draw_weights(mean: Tensor, diagonal: Tensor, deviations: Tensor, generator: torch.Generator) -> Tensor:
    """One draw `(P,)` of the weights: its covariance is half that of the path and half its diagonal.

    Args:
        mean: `(P,)` of the path.
        diagonal: `(P,)` root of the mean square of the deviations.
        deviations: `(n_columns, P)` of the path about the mean, n_columns >= 2.
    """
    independent = torch.randn(mean.shape, generator=generator) * diagonal
    along = torch.randn(len(deviations), generator=generator) @ deviations / (len(deviations) - 1) ** 0.5
    drawn: Tensor = mean + (independent + along) / 2**0.5
    return drawn


def _descend(
    groups: list[dict[str, Any]], set_gradients: Callable[[], None], *, n_steps: int, n_columns: int
) -> Tensor:
    """Weights `(n_columns, P)` after each `n_steps` of gradient descent at a constant learning rate, on the CPU."""
    optimiser = torch.optim.SGD(groups, momentum=MOMENTUM)
    trained = [parameter for group in groups for parameter in group["params"]]
    path = torch.empty((n_columns, sum(values.numel() for values in trained)))
    for column in path:
        for _ in range(n_steps):
            set_gradients()
            clip_grad_norm_(trained, MAX_GRADIENT_NORM)
            optimiser.step()
        torch.cat([values.detach().reshape(-1).cpu() for values in trained], out=column)
        if not column.isfinite().all():
            raise TrainingError("SWAG's weights became infinite: lower its learning rate")
    return path


@torch.no_grad()
def _set_weights(weights: Sequence[Tensor], vector: Tensor) -> None:
    """Give `weights`, in whatever memory format, the numbers of `vector`, one after the other."""
    for values, part in zip(weights, vector.split([values.numel() for values in weights]), strict=True):
        values.copy_(part.view(values.shape))


def _moving_batch_norms(model: Classifier) -> list[nn.modules.batchnorm._BatchNorm]:
    """Batch-norm layers with statistics that training moves."""
    fixed = model.fixed_batch_norms
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats and name not in fixed
    ]


def _statistics(layers: Sequence[nn.Module]) -> list[Tensor]:
    return [values for layer in layers for values in layer.buffers()]


@torch.no_grad()
def _refresh(
    model: Classifier, layers: Sequence[nn.modules.batchnorm._BatchNorm], images: Images, batch_size: int
) -> None:
    """Take the statistics of batch-norm layers from the images, as the mean over batches; one image has none."""
    if not layers or len(images) == 1:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = None
        layer.train()

    def refresh(n: int) -> None:
        for layer in layers:
            layer.reset_running_stats()
        for batch in images.tensor_split(max(1, len(images) // n)):
            model(batch.to(model.mean.device))

    halving(refresh, min(batch_size, len(images)), Work("batch-norm", model, images.shape[1:]), least=2)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
        layer.eval()
