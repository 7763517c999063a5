"""The networks that settings describe: built, checked, and what of them is trained."""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.image_rows import Images
from pipeline.learning.settings import MemberSettings, ModelSettings
from pipeline.members.dropout import check_dropout, stochastic_layers
from pipeline.networks.build import build_model
from pipeline.networks.classifier import PHASES, Classifier, evaluating
from pipeline.networks.devices import choose_device
from pipeline.networks.errors import ModelError
from pipeline.networks.halving import Work, halving
from pipeline.tasks.task_type import TaskType, outputs_of

CHUNK = 256
"""Images that pass through a network at a time."""


def new_model(settings: ModelSettings, task: TaskType, *, n_classes: int, seed: int) -> Classifier:
    """The untrained network of one member."""
    return build_model(
        settings.name,
        n_classes=n_classes,
        image_size=settings.image_size,
        channels=settings.channels,
        dropout=settings.dropout,
        weights=settings.weights if settings.is_pretrained else None,
        head=settings.head,
        outputs=outputs_of(task, n_classes),
        seed=seed,
    )


def frozen_body(settings: ModelSettings, task: TaskType, *, n_classes: int) -> Classifier:
    """The network whose trunk all members share when they train their heads only, on the settings' device."""
    model = new_model(settings, task, n_classes=n_classes, seed=0)
    model.train_only("head")
    return model.to(choose_device(settings.device))


def phase_of(settings: ModelSettings, *, n_trained_on: int, n_classes: int) -> str:
    """What a training on so many labels trains, a key of `PHASES`.

    A head on pretrained features has the fewest weights to find, and few labels find no more; with many, the features
    themselves are better fitted to the images. A network without pretrained weights has no features to keep.
    """
    if settings.train != "auto":
        return settings.train
    return "head" if settings.is_pretrained and n_trained_on / n_classes < settings.all_from else "all"


def check_network(settings: ModelSettings, members: MemberSettings, task: TaskType, *, n_classes: int) -> str | None:
    """Build the network once, so that wrong weights, sizes or devices are found before labels are paid for.

    Returns:
        What the trunk took of a weights file and what it left out, for people; None where nothing was left out.

    Raises:
        ModelError: naming what is wrong.
    """
    if settings.dice and task.overlap_loss is None:
        raise ModelError(
            f"dice = {settings.dice:g} adds a loss of painted areas to the training, and people paint nothing in this "
            "task: leave dice out of [model]"
        )
    try:
        choose_device(settings.device)
        model = new_model(settings, task, n_classes=n_classes, seed=0)
        if members.mc_dropout:
            only = phase_of(settings, n_trained_on=0, n_classes=n_classes)
            for phase in PHASES if settings.follows_labels else (only,):
                model.train_only(phase)
                if not stochastic_layers(model):
                    raise ModelError(
                        f"mc_dropout needs dropout, and what {settings.name} trains has none (phase {phase})"
                    )
            check_dropout(model, noise(settings, 2))
    except ValueError as exc:
        raise ModelError(str(exc)) from exc
    return model.weights_note


def noise(settings: ModelSettings, n: int) -> Tensor:
    """Images `(n, channels, S, S)` of uint8 that look like nothing, to try a network on."""
    shape = (n, settings.channels, settings.image_size, settings.image_size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def compute_in_parts(model: Classifier, compute: Callable[[Tensor], Tensor], inputs: Images) -> Tensor:
    """What a network in evaluation mode computes of many inputs, float32 on the CPU."""

    def in_parts(n: int) -> Tensor:
        return torch.cat([compute(part.to(model.mean.device)).float().cpu() for part in inputs.split(n)])

    with evaluating(model), torch.no_grad():
        return halving(in_parts, max(1, min(CHUNK, len(inputs))), Work("inference", model, inputs.shape[1:]))
