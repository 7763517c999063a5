"""Settings of the network, of its members and of how both are trained."""

import dataclasses
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, model_validator

from pipeline.networks.sources import USUAL_IMAGE_SIZE, is_factory, is_own
from pipeline.registries import look_up
from pipeline.settings import Settings, Size, is_held

if TYPE_CHECKING:
    from pipeline.training.recipe import Recipe

PHASE_LIMITS = frozenset({"all_from"})
"""Settings of the network that change nothing in a replay unless what is trained follows the labels."""
ALL_FROM = {"natural": 50.0, "digits": 1.0, "none": 1.0}
"""For each augmentation, labels per class from which training everything is worth it: photographs are what ImageNet's
features were made for. See docs/decisions/0006-what-is-trained.md."""


def _check_augmentation(value: str) -> str:
    look_up(ALL_FROM, value, "augmentation")
    return value


def _check_model(value: str, info: ValidationInfo) -> str:
    if is_held(info, "network", value):
        return value
    from pipeline.networks.build import check_model_name  # loads torch, and lists the networks of others

    check_model_name(value)
    return value


def _size_of_weights(values: dict[str, Any]) -> int:
    name = values.get("name", "")
    if is_factory(name):  # which `with_own_image_size` asks, once its code is to be run anyway
        return USUAL_IMAGE_SIZE
    from pipeline.networks.build import default_image_size

    return default_image_size(name, values.get("weights"))


def _all_from(values: dict[str, Any]) -> float:
    return ALL_FROM[values.get("augmentation", "natural")]


class MemberSettings(Settings):
    """Where the K outputs of an image come from: their number is the product of all."""

    ensemble: int = Field(3, ge=1, le=100, description="networks trained from different seeds")
    bagging: bool = Field(False, description="each network learns from its own draw of the labels, with replacement")
    swag: int = Field(0, ge=0, le=100, description="draws of each network's weights from its last steps; 0 is off")
    views: int = Field(0, ge=0, le=100, description="augmented views of each image; 0 is the image alone")
    laplace: int = Field(0, ge=0, le=1000, description="draws of each network's last layer (Laplace); 0 is off")
    mc_dropout: int = Field(0, ge=0, le=1000, description="dropout passes of each network; 0 is off")

    @property
    def n_networks(self) -> int:
        """Sets of weights that a round writes for its members."""
        return self.ensemble * max(1, self.swag)

    @property
    def n_members(self) -> int:
        """K, the number of outputs for each image."""
        return self.n_networks * max(1, self.views) * max(1, self.laplace) * max(1, self.mc_dropout)

    @property
    def n_half(self) -> int:
        """Members that half of each trained network's draws make; 0 where there is nothing to halve."""
        return self.ensemble * (self.n_members // self.ensemble // 2)


class PseudoLabelSettings(Settings):
    """Labels that the model gives itself for one training of a round (CEAL: Wang et al., 2017); off by default."""

    threshold: float = Field(0.0, ge=0, description="candidates of less entropy, in nats, count as sure; 0 is off")
    decay: float = Field(0.0, ge=0, description="taken off the threshold for each round that has passed")
    max_count: Size = Field(1000, description="never more than this, and never more than there are labels")

    def threshold_in(self, round_number: int) -> float:
        """Entropy below which a candidate counts as sure in a round, in nats; 0 where none can be sure."""
        return max(0.0, self.threshold - self.decay * round_number)


class ModelSettings(Settings):
    """The network and how it is trained."""

    name: Annotated[str, AfterValidator(_check_model)] = Field(
        "torchvision:resnet18", description="torchvision:NAME, timm:NAME, small_cnn, or package.module:factory"
    )
    channels: Literal[1, 3] = Field(3, description="1 for grey images, 3 for colours")
    weights: str | None = Field(None, description="a weight name of the hub, the path of a file, or factory")
    image_size: int = Field(
        default_factory=_size_of_weights, ge=8, le=2048, description="side in pixels; that of the weights if not given"
    )
    head: Literal["linear", "mlp"] = Field("linear", description="what follows the network's features")
    dropout: float = Field(0.5, ge=0, lt=1, description="share of features that training drops before the head")
    train: Literal["auto", "head", "all"] = Field("auto", description="auto: by the labels per class")
    augmentation: Annotated[str, AfterValidator(_check_augmentation)] = Field(
        "natural", description="how training images are changed: natural (photographs), digits (no flips), none"
    )
    all_from: float = Field(
        default_factory=_all_from,
        ge=0,
        description="labels per class from which auto trains everything; 50 for photographs, 1 for others if not set",
    )
    body_rate: float = Field(0.1, gt=0, le=1, description="learning rate of pretrained layers, as a share")
    start: Literal["pretrained", "previous", "scratch"] = Field(
        "pretrained",
        description="what a round's training starts from; previous changes nothing where only the head is trained, "
        "scratch leaves the weights unused",
    )
    class_balanced: bool = Field(True, description="weigh rare classes up in the loss")
    dice: float | None = Field(
        None, ge=0, le=100, description="weight of the soft Dice loss of masks beside the cross-entropy; 1 if not given"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share of each label that goes to all classes")
    schedule: Literal["cosine", "plateau", "constant"] = Field("cosine", description="how the learning rate falls")
    learning_rate: float = Field(2e-3, gt=0, lt=10, description="of the head, at its highest")
    weight_decay: float = Field(1e-2, ge=0, lt=1, description="of AdamW")
    max_epochs: int = Field(30, ge=1, le=100_000, description="passes over the labels at most")
    max_minutes: float | None = Field(
        None, gt=0, description="less is trained in a round that would take longer on this machine; no limit if not set"
    )
    patience: int | None = Field(
        None, ge=1, description="epochs without improvement before training stops; to max_epochs if not given"
    )
    batch_size: int | None = Field(
        None,
        ge=2,
        le=65536,
        description="images of an optimiser step; 8 where boxes or masks are learnt and 32 elsewhere if not given",
    )
    min_steps: Size = Field(16, description="optimiser steps of an epoch at least, however few labels there are")
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="what computes")
    pseudo_labels: PseudoLabelSettings = PseudoLabelSettings()

    @property
    def is_pretrained(self) -> bool:
        """Whether training starts from weights that came from elsewhere."""
        return self.weights is not None and self.start != "scratch"

    @property
    def follows_labels(self) -> bool:
        """Whether what is trained depends on how many labels there are."""
        return self.train == "auto" and self.is_pretrained

    @property
    def recipe(self) -> "Recipe":
        """How networks are trained, as `fit` takes it."""
        from pipeline.training.recipe import Recipe

        return Recipe(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Recipe)})

    @model_validator(mode="after")
    def _check_train(self) -> Self:
        if self.train == "head" and not self.is_pretrained:
            raise ValueError(
                'train = "head" keeps random weights for ever: set weights and start from them, or set train = "all"'
            )
        if self.train == "head" and self.start == "previous":
            raise ValueError('train = "head" trains new heads each round: take start = "previous" away')
        if is_own(self.name) and (self.weights is not None or self.head != "linear"):
            raise ValueError(
                f"name = {self.name!r} has no published weights and a head of its own: leave weights and head out"
            )
        return self


def with_own_image_size(settings: ModelSettings) -> ModelSettings:
    """The settings with the image size of a factory's own weights, where none is given; this runs the factory."""
    if settings.weights is None or "image_size" in settings.model_fields_set or not is_factory(settings.name):
        return settings
    from pipeline.networks.build import default_image_size

    return settings.model_copy(update={"image_size": default_image_size(settings.name, settings.weights)})
