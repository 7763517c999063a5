"""The networks that settings describe: built, and trained on images. Worker processes load this, so no Prefect."""

from collections.abc import Callable

from torch import Tensor

from flows.config import ModelSettings
from pipeline.models import Classifier, build_model
from pipeline.tasks import classification
from pipeline.training import choose_device, fit


def new_model(settings: ModelSettings, *, n_classes: int, seed: int) -> Classifier:
    """The untrained network of one member."""
    model = build_model(
        settings.name,
        n_classes=n_classes,
        image_size=settings.image_size,
        channels=settings.channels,
        dropout=settings.dropout,
        weights=settings.weights,
        seed=seed,
    )
    if settings.freeze:
        model.freeze("trunk")
    return model


def train_model(
    settings: ModelSettings,
    images: Tensor,
    targets: Tensor,
    *,
    n_classes: int,
    seed: int,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
) -> tuple[Classifier, list[dict[str, float]]]:
    """A network trained on images `(n, channels, S, S)` and class indices `(n,)`, and what each epoch came to."""
    model = new_model(settings, n_classes=n_classes, seed=seed)
    history = fit(
        model,
        images,
        targets,
        task=classification,
        seed=seed,
        device=choose_device(settings.device),
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        max_epochs=settings.max_epochs,
        patience=settings.patience,
        batch_size=settings.batch_size,
        augmentation=settings.augmentation,
        class_balanced=settings.class_balanced,
        on_epoch=on_epoch,
    )
    return model, history
