"""The campaign file: one frozen model holds every setting, and a wrong one fails before anything runs."""

import difflib
import math
import re
import tomllib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from connectors.store import flatten
from pipeline.registries import look_up

LOCAL = "local"
"""Stands for the server that `labelcycle up` started on this machine."""

DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
SECONDS_OF_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}

WEIGHTS_FILES = frozenset({".pt", ".pth", ".safetensors"})
"""Endings of the files that weights are in; no name of a hub ends so."""

COMPARES_MEMBERS = frozenset({"batch_bald", "drop_query"})
"""Query strategies that make no sense with a single member."""

MAY_CHANGE = frozenset(
    {
        "budget",
        "query_size",
        "target_accuracy",
        "min_gain",
        "close_at",
        "close_after",
        "schedule",
        "feature_cache_gb",
        "model.device",
        "label_studio.url",
        "label_studio.instructions",
        "folder",
        "pool",
    }
)
"""Settings that may change between rounds without mixing two experiments. Images are known by their content, so that
pool and folder may move."""
PHASE_LIMITS = frozenset({"last_stage_from", "all_from"})
"""Settings of the network that change nothing unless what is trained follows the labels."""


CHANGED_DEFAULTS = {
    "strategy": "power",
    "model.image_size": 224,
    "model.schedule": "constant",
    "model.train": "all",
    "model.body_rate": 1.0,
    "model.patience": 5,
    "model.learning_rate": 1e-3,
    "model.min_steps": 8,
    "model.last_stage_from": 2,
    "model.all_from": 100,
}
"""What a setting was by default, or always, before that changed; a campaign that began then has it."""

RENAMED = {"model.freeze": 'it is called train now: write train = "head" for freeze = true, and take it away for false'}
"""Settings of older versions, and what to write in their place."""


class ConfigError(ValueError):
    """The campaign file is wrong; the message says where and what is allowed."""


def _parse_duration(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = DURATION.fullmatch(value.strip())
    if match is None:
        raise ValueError("a duration is a number and a unit (s, m, h, d, w), for example '3d' or '12h'")
    return timedelta(seconds=float(match[1]) * SECONDS_OF_UNIT[match[2]])


def _check_acquisition(value: str) -> str:
    from pipeline.acquisition import ACQUISITIONS

    look_up(ACQUISITIONS, value, "acquisition function")
    return value


def _check_strategy(value: str) -> str:
    from pipeline.strategies import SANITY, STRATEGIES

    look_up({name: ask for name, ask in STRATEGIES.items() if name not in SANITY}, value, "query strategy")
    return value


def _check_augmentation(value: str) -> str:
    from pipeline.augmentation import AUGMENTATIONS

    look_up(AUGMENTATIONS, value, "augmentation")
    return value


def _check_model(value: str) -> str:
    from pipeline.models import check_model_name

    check_model_name(value)
    return value


def _size_of_weights(values: dict[str, Any]) -> int:
    from pipeline.models import default_image_size

    return default_image_size(values.get("name", ""), values.get("weights"))


def _all_from(values: dict[str, Any]) -> float:
    from pipeline.training import ALL_FROM

    return ALL_FROM[values.get("augmentation", "natural")]


def _last_stage_from(values: dict[str, Any]) -> float:
    all_from: float = values.get("all_from", math.inf)
    return all_from


def _check_no_login(value: str) -> str:
    """An address is written to files, logs and MLflow, a password never."""
    if "@" in urlsplit(value).netloc:
        raise PydanticCustomError("login_in_address", "an address must not hold a login; put it into the environment")
    return value


def _check_on_disk(value: Any) -> Any:
    if "://" in str(value):
        raise ValueError("must be on a disk that this machine sees")
    return value


def _check_group(value: str) -> str:
    from pipeline.groups import check_rule

    return check_rule(value)


def _check_cron(value: str | None) -> str | None:
    if value is None:
        return None
    from prefect.client.schemas.schedules import CronSchedule

    try:
        CronSchedule(cron=value)
    except ValueError as exc:
        raise ValueError("a schedule is a cron line of five fields, for example '*/15 * * * *'") from exc
    return value


Duration = Annotated[
    timedelta,
    BeforeValidator(_parse_duration),
    Field(gt=timedelta(0)),
    PlainSerializer(lambda value: f"{value.total_seconds():g}s", return_type=str),
]
ClassName = Annotated[str, Field(min_length=1, pattern=r"^\S+( \S+)*$")]
Size = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


LocalPath = Annotated[Path, BeforeValidator(_check_on_disk)]
Options = Annotated[
    dict[str, Any],
    # As one value: an option that comes or goes changes the experiment, a key that does is another version's.
    PlainSerializer(lambda value: sorted(value.items()), when_used="json"),
]


class Settings(BaseModel):
    """What all parts of the campaign file have in common: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class MemberSettings(Settings):
    """Where the K outputs of an image come from: their number is the product of all."""

    ensemble: Size = Field(3, le=100, description="networks trained from different seeds")
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
        """Entropy below which a candidate counts as sure in a round, in nats; 0 when there is no such candidate."""
        return max(0.0, self.threshold - self.decay * round_number)


class ModelSettings(Settings):
    """The network and how it is trained."""

    name: Annotated[str, AfterValidator(_check_model)] = "torchvision:resnet18"
    channels: Literal[1, 3] = 3
    weights: str | None = Field(None, description="a weight name of the hub, the path of a file, or factory")
    image_size: int = Field(
        default_factory=_size_of_weights, ge=8, le=2048, description="side in pixels; that of the weights if not given"
    )
    head: Literal["linear", "mlp"] = "linear"
    dropout: float = Field(0.5, ge=0, lt=1)
    train: Literal["auto", "head", "last_stage", "all"] = Field("auto", description="auto: by the labels per class")
    augmentation: Annotated[str, AfterValidator(_check_augmentation)] = "natural"
    all_from: float = Field(
        default_factory=_all_from,
        ge=0,
        description="labels per class from which auto trains everything; 50 for photographs, 1 for others if not set",
    )
    last_stage_from: float = Field(
        default_factory=_last_stage_from,
        ge=0,
        description="labels per class from which auto trains the last stage too; all_from if not set: never it alone",
    )
    body_rate: float = Field(0.1, gt=0, le=1, description="learning rate of pretrained layers, as a share")
    start: Literal["pretrained", "previous", "scratch"] = Field(
        "pretrained",
        description="what a round's training starts from; previous changes nothing where only the head is trained, "
        "scratch leaves the weights unused",
    )
    class_balanced: bool = Field(True, description="weigh rare classes up in the loss")
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    schedule: Literal["cosine", "plateau", "constant"] = Field("cosine", description="how the learning rate falls")
    learning_rate: float = Field(2e-3, gt=0, lt=10)
    weight_decay: float = Field(1e-2, ge=0, lt=1)
    max_epochs: int = Field(30, ge=1, le=100_000)
    patience: int | None = Field(
        None, ge=1, description="epochs without improvement before training stops; to max_epochs if not given"
    )
    batch_size: int = Field(32, ge=2, le=65536)
    min_steps: Size = Field(16, description="optimiser steps of an epoch at least, however few labels there are")
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    pseudo_labels: PseudoLabelSettings = PseudoLabelSettings()

    @property
    def is_pretrained(self) -> bool:
        """Whether training starts from weights that came from elsewhere."""
        return self.weights is not None and self.start != "scratch"

    @property
    def follows_labels(self) -> bool:
        """Whether what is trained depends on how many labels there are."""
        return self.train == "auto" and self.is_pretrained

    @model_validator(mode="after")
    def _check_train(self) -> Self:
        if self.train in ("head", "last_stage") and not self.is_pretrained:
            raise ValueError(
                f'train = "{self.train}" keeps random weights for ever: set weights and start from them, or set '
                'train = "all"'
            )
        if self.train == "head" and self.start == "previous":
            raise ValueError('train = "head" trains new heads each round: take start = "previous" away')
        if self.last_stage_from > self.all_from:
            raise ValueError(
                f"last_stage_from = {self.last_stage_from:g} must not be above all_from = {self.all_from:g}"
                + ("" if "all_from" in self.model_fields_set else "; set all_from too")
            )
        return self


class LabelStudioSettings(Settings):
    """Where people label. The token is in the environment: LABEL_STUDIO_API_KEY."""

    url: Annotated[str, AfterValidator(_check_no_login)] = Field(
        LOCAL, pattern=r"^(local|https?://\S+)$", description="'local' is the server of `labelcycle up`"
    )
    project: str | None = Field(
        None, min_length=3, max_length=50, pattern=r"^\S(.*\S)?$", description="title; the campaign's name if not given"
    )
    instructions: str | None = Field(None, description="what annotators read first; our own text if not given")


class MLflowSettings(Settings):
    """Where rounds are compared."""

    uri: Annotated[str, AfterValidator(_check_no_login)] = Field(LOCAL, pattern=r"^(local|sqlite:///\S+|https?://\S+)$")


class CampaignSettings(Settings):
    """One campaign: a line of rounds over one pool of images."""

    name: str = Field(min_length=3, max_length=50, pattern=r"^[a-z0-9][a-z0-9_-]*$")
    pool: LocalPath
    classes: tuple[ClassName, ...] = Field(min_length=2)
    folder: LocalPath
    budget: Size
    audit_size: Size
    seed_set_size: int = Field(50, ge=0)
    group: Annotated[str, AfterValidator(_check_group)] | None = Field(
        None, description="which images depend on each other: parent, or an expression on the path with one group"
    )
    query_size: Size = 100
    random_slice: float = Field(0.1, ge=0, lt=1)
    target_accuracy: float | None = Field(None, gt=0, lt=1, description="stop when the audit interval is above it")
    min_gain: float | None = Field(None, gt=0, lt=1, description="stop when the next query_size labels bring less")
    cold_start: Literal["random", "coverage", "typiclust", "max_herding"] = "random"
    acquisition: Annotated[str, AfterValidator(_check_acquisition)] = "margin"
    strategy: Annotated[str, AfterValidator(_check_strategy)] = "auto"
    strategy_options: Options = Field({}, description="keywords of the strategy")
    sub_pool: Size | None = Field(None, description="the strategy sees a random part of this many candidates")
    prefilter: float | None = Field(None, ge=1, description="and of these the best by score, times query_size")
    balance_classes: bool = Field(False, description="ask for as many of each guessed class as makes labels even")
    close_at: Share = 1.0
    close_after: Duration | None = None
    schedule: Annotated[str | None, AfterValidator(_check_cron)] = None
    feature_cache_gb: float = Field(20.0, ge=0, description="features of frozen networks kept on the disk")
    seed: int = Field(0, ge=0, lt=2**31)
    model: ModelSettings = Field(default_factory=ModelSettings)
    members: MemberSettings = MemberSettings()
    label_studio: LabelStudioSettings = LabelStudioSettings()
    mlflow: MLflowSettings = MLflowSettings()

    @property
    def project(self) -> str:
        """Title of the Label Studio project."""
        return self.label_studio.project or self.name

    @model_validator(mode="after")
    def _check_classes(self) -> Self:
        repeated = sorted({name for name in self.classes if self.classes.count(name) > 1})
        if repeated:
            raise ValueError(f"classes must be distinct, repeated: {', '.join(repeated)}")
        return self

    @model_validator(mode="after")
    def _check_budget(self) -> Self:
        first = self.audit_size + self.seed_set_size
        if self.budget < first:
            raise ValueError(
                f"budget = {self.budget} does not pay for round 0, which asks for audit_size + seed_set_size = {first}"
            )
        return self

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        from pipeline.strategies import check_options

        check_options(self.strategy, self.strategy_options)
        if self.balance_classes and "max_class_share" in self.strategy_options:
            raise ValueError("balance_classes decides how many of each class are asked for: take max_class_share away")
        return self

    @model_validator(mode="after")
    def _check_members(self) -> Self:
        from pipeline.acquisition import NEEDS_MEMBERS

        for key, needing in (("acquisition", NEEDS_MEMBERS), ("strategy", COMPARES_MEMBERS)):
            name = getattr(self, key)
            if name in needing and self.members.n_members < 2:
                raise ValueError(
                    f"{key} = {name!r} measures how members disagree and needs at least two: "
                    "set ensemble, swag, views, laplace or mc_dropout in [members]"
                )
        if self.members.views > 0 and self.model.augmentation == "none":
            raise ValueError("views are augmented images, and augmentation is none: set augmentation, or views = 0")
        return self


def load_settings(path: Path) -> CampaignSettings:
    """Read a campaign file; relative paths in it are relative to the file.

    Raises:
        ConfigError: naming the file, the line, what is wrong there and what is allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as exc:
        raise ConfigError(f"{path}: no such campaign file; `labelcycle init {path}` writes an example") from exc
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigError(f"{path}: cannot be read: {exc}") from exc
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path}: not valid TOML: {exc}") from exc
    if isinstance(values.get("name"), str):
        values.setdefault("folder", f".labelcycle/campaigns/{values['name']}")
    base = path.resolve().parent
    model = values.get("model")
    if isinstance(model, dict) and isinstance(model.get("weights"), str):
        if (base / model["weights"]).is_file():
            model["weights"] = str(base / model["weights"])
        elif Path(model["weights"]).suffix in WEIGHTS_FILES:
            line = _line_of(text, ["model", "weights"])
            raise ConfigError(f"{path}, line {line}: model.weights: there is no file {model['weights']!r} in {base}")
    try:
        settings = CampaignSettings.model_validate(values)
    except ValidationError as exc:
        # A size that could not be looked up is told by what is wrong with the network's name.
        errors = [error for error in exc.errors() if error["type"] != "default_factory_not_called"]
        raise ConfigError("\n".join(_explain(path, text, error) for error in errors)) from exc
    return settings.model_copy(update={"pool": base / settings.pool, "folder": base / settings.folder})


def images_root(pool: Path) -> Path:
    """The folder that all local images of a pool lie in: the pool's own, or the one that a manifest lies in."""
    return pool if pool.is_dir() else pool.parent


def resolved(settings: CampaignSettings) -> dict[str, Any]:
    """The settings as plain JSON values, for campaign.json and the tracker."""
    return settings.model_dump(mode="json")


def defaults(written: Mapping[str, Any]) -> dict[str, Any]:
    """What a campaign is taken to be that began before a setting was known: its default, under a dotted name.

    Args:
        written: what the campaign began with. A network without pretrained weights is trained as ever, whatever the
            settings that are about such weights say, so nothing is taken of them.
    """
    nothing_set: dict[str, Any] = {}
    known = flatten(resolved(CampaignSettings.model_construct(**nothing_set))) | CHANGED_DEFAULTS
    for name in PHASE_LIMITS:  # nothing followed the labels yet
        del known[f"model.{name}"]
    before = flatten(written)
    if before.get("model.freeze"):
        known["model.train"] = "head"
    elif before.get("model.weights") is None:
        del known["model.train"]
    if known.get("model.train") != "all":
        del known["model.body_rate"]
    return known


def _explain(path: Path, text: str, error: Any) -> str:
    location = [part for part in error["loc"] if isinstance(part, str)]
    key = ".".join(location)
    line = _line_of(text, location)
    where = f"{path}, line {line}" if line else f"{path}"
    if key in RENAMED:
        return f"{where}: unknown key {key!r}; {RENAMED[key]}"
    if error["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{where}: unknown key {key!r}; {hint}Known keys here: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{where}: {key!r} is missing; `labelcycle init` writes an example with every key"
    message = error["msg"].removeprefix("Value error, ")
    is_shown = location and not isinstance(error["input"], dict) and error["type"] != "login_in_address"
    given = f" (got {error['input']!r})" if is_shown else ""
    return f"{where}: {key}: {message}{given}" if key else f"{where}: {message}"


def _known_keys(section: list[str]) -> list[str]:
    model: Any = CampaignSettings
    for name in section:
        model = model.model_fields[name].annotation
    return sorted(model.model_fields)


def _line_of(text: str, location: list[str]) -> int | None:
    """The line that sets a key, else the one that opens its table; `location` is (key,), (table, key) and so on."""
    table: list[str] = []
    found, depth = None, 0
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line)
        if header:
            table = re.split(r"\s*\.\s*", header[1].strip("\"'"))
            if table == location[: len(table)] and len(table) > depth:
                found, depth = number, len(table)
            continue
        key = re.match(r"\s*[\"']?([^=\"']+?)[\"']?\s*=", line)
        if key and [*table, *re.split(r"\s*\.\s*", key[1])] == location:
            return number
    return found
