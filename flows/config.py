"""The campaign file: one frozen model holds every setting, and a wrong one fails before anything runs."""

import codecs
import re
import tomllib
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

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

from connectors.label_studio.settings import LabelStudioSettings
from connectors.mlflow.settings import SQLITE, MLflowSettings
from connectors.notify.settings import NotifySettings
from connectors.objects.settings import PoolPlace
from connectors.store import explain
from flows.config_lines import explain_setting, line_of
from flows.keep import KeepSettings
from flows.task_types import TASK, WHAT_TASKS_ASK, asked_for, check_counted, check_task
from flows.timetable import Cron, TimeZone
from flows.workers.settings import WorkerSettings
from pipeline.evaluation.settings import StoppingSettings
from pipeline.learning.settings import MemberSettings, ModelSettings
from pipeline.names import checked_class, mistakable
from pipeline.regions import check_signs, may_read_as_labels
from pipeline.registries import look_up
from pipeline.selection.settings import NEEDS_MEMBERS, SelectionSettings
from pipeline.selection.strategies.rows import STRATEGIES
from pipeline.settings import MOST, Duration, Plain, Share, Size
from pipeline.types import AskFor, Counted

if TYPE_CHECKING:
    from connectors.image_folder.source import PoolSource

BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # which begins as UTF-16 does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
TYPOGRAPHIC_QUOTES = "“”„‟‘’‚«»"  # noqa: RUF001
WEIGHTS_FILES = frozenset({".pt", ".pth", ".safetensors"})
"""Endings of the files that weights are in; no name of a hub ends so."""
MOST_CLASSES = 1000
LARGEST = 10_000_000
"""Bytes of a campaign file."""


class ConfigError(ValueError):
    """The campaign file is wrong; the message has the place and what is allowed."""


def _check_strategy(value: str) -> str:
    look_up({name: row for name, row in STRATEGIES.items() if not row.is_check}, value, "query strategy")
    return value


def _check_on_disk(value: object) -> object:
    if "\0" in str(value):
        raise ValueError("must be a path, and no path holds a NUL character")
    if "://" in str(value):
        raise ValueError("must be on a disk that this machine sees")
    return value


def _check_group(value: str) -> str:
    from pipeline.pool.group_rules import check_rule

    return check_rule(value)


ClassName = Annotated[str, AfterValidator(checked_class)]
Name = Annotated[str, Field(min_length=3, max_length=50, pattern=r"^[a-z0-9][a-z0-9_-]*$")]
LocalPath = Annotated[Path, BeforeValidator(_check_on_disk), AfterValidator(Path.expanduser)]
Options = Annotated[
    dict[str, object],
    # As one value: what changed is said of all options together.
    PlainSerializer(lambda value: sorted(value.items()), when_used="json"),
]
Renamed = Annotated[
    dict[ClassName, ClassName],
    # As one value: class names are no names of settings.
    PlainSerializer(lambda value: list(value.items()), when_used="json"),
]


class Place(BaseModel):
    """What of a campaign file is known whatever else is wrong in it; `notify` is not checked."""

    model_config = ConfigDict(hide_input_in_errors=True)

    name: Name
    folder: LocalPath
    notify: object = None


class CampaignSettings(SelectionSettings, StoppingSettings, WorkerSettings):
    """One campaign: a line of rounds over one pool of images."""

    name: Name = Field(description="of the campaign, its Label Studio project and its MLflow experiment")
    pool: PoolPlace = Field(
        description="a folder of images, or a .csv or .parquet with uri and, if known, label and group; or the address "
        "of one, such as s3://bucket/folder"
    )
    manifest_labels: Literal["complete", "positives_only"] = Field(
        "complete", description="whether a class that a label of the pool's table does not name is absent, or unknown"
    )
    follow_links: bool = Field(False, description="use images that symbolic links bring in from outside the pool")
    task: Annotated[str, AfterValidator(check_task)] = Field(TASK, description=WHAT_TASKS_ASK)
    classes: tuple[ClassName, ...] = Field(min_length=1, description="what annotators choose from")
    renamed: Renamed = Field({}, description="what a class was called before = what it is called")
    folder: LocalPath = Field(
        description="where the campaign keeps its rounds; .labelcycle/campaigns/ and its name if not given"
    )
    budget: Size = Field(description="labels that are paid for in all, the audit set's included")
    budget_in: Annotated[Counted, AfterValidator(check_counted)] = Field(
        "images", description="what the budget counts: images, or the boxes or masks that people mark in them"
    )
    audit_size: Size = Field(description="random images that are labelled once, measured on and never trained on")
    seed_set_size: int = Field(50, ge=0, le=MOST, description="labels to learn from before there is a model")
    group: Annotated[str, AfterValidator(_check_group)] | None = Field(
        None, description="which images depend on each other: parent, or an expression on the path with one group"
    )
    random_slice: float = Field(0.1, ge=0, lt=1, description="share of each batch that is drawn at random")
    cold_start: Literal["random", "coverage", "typiclust", "max_herding"] = Field(
        "random", description="how the seed set is chosen"
    )
    strategy: Annotated[str, AfterValidator(_check_strategy)] = Field(
        "auto", description="query strategy: how a batch is chosen by scores and places"
    )
    strategy_options: Options = Field({}, description="keywords of the strategy")
    close_at: Share = Field(1.0, description="share of a round's tasks that are answered when it closes")
    close_after: Duration | None = Field(None, description="time after which a round closes all the same")
    max_unused: Share = Field(0.5, description="share of files or answers that may go unused before a run stops")
    schedule: Cron = Field(None, description="cron line of `labelcycle serve`")
    timezone: TimeZone = Field(None, description="of the schedule, an IANA name; the machine's own if not given")
    feature_cache_gb: float = Field(20.0, ge=0, le=MOST, description="disk for features and decoded labelled images")
    image_cache_gb: float = Field(
        20.0, ge=0, le=MOST, description="images of object stores and of the web kept on the disk"
    )
    decode_memory_gb: float = Field(
        2.0, gt=0, description="memory that images may take together while they are decoded"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="of all that is drawn at random: same seed, same choices")
    model: ModelSettings = Field(default_factory=ModelSettings)
    members: MemberSettings = MemberSettings()
    label_studio: LabelStudioSettings = LabelStudioSettings()
    mlflow: MLflowSettings = MLflowSettings()
    keep: KeepSettings = KeepSettings()
    notify: NotifySettings = Field(NotifySettings(), exclude=True)  # a command may hold a secret: written nowhere

    @property
    def project(self) -> str:
        """Title of the Label Studio project."""
        return self.label_studio.project or self.name

    @property
    def former_classes(self) -> dict[str, str]:
        """What a class was ever called -> the class that it is now."""
        return present_names(self.renamed)

    @property
    def pool_source(self) -> "PoolSource":
        """Where the images are, and what is asked of them."""
        from connectors.image_folder.source import PoolSource  # loads Pillow, which most commands need not

        return PoolSource(
            self.pool,
            self.classes,
            group=self.group,
            follow_links=self.follow_links,
            max_unused=self.max_unused,
            renamed=self.former_classes,
            asks=self.asks,
            are_open=self.manifest_labels == "positives_only",
        )

    @property
    def asks(self) -> AskFor:
        """What people are asked for; loads torch, but for classification."""
        return asked_for(self.task)

    @model_validator(mode="after")
    def _check_classes(self) -> Self:
        if len(self.classes) > MOST_CLASSES:
            got = f"people choose among them on one page, got {len(self.classes):,}"
            raise ValueError(f"classes must be at most {MOST_CLASSES:,}, as {got}")
        repeated = sorted(name for name, count in Counter(self.classes).items() if count > 1)
        if repeated:
            raise ValueError(f"classes must be distinct, repeated: {', '.join(repeated)}")
        for old in self.renamed:
            if old in self.classes:
                raise ValueError(f"renamed: {old!r} is still one of the classes: take it out of classes, or of renamed")
            if self.former_classes[old] not in self.classes:
                raise ValueError(f"renamed: {old!r} becomes {self.renamed[old]!r}, which is not one of the classes")
        if len(self.classes) < 2 and self.asks.fewest_classes > 1:
            only = f"and {self.classes[0]!r} is the only one: name another"
            raise ValueError(f"task = {self.task!r} asks which class an image has, {only}")
        return self

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        names = [name for name in (*self.classes, *self.renamed) if may_read_as_labels(name)]
        if names:  # else torch need not be loaded to know what is asked
            check_signs(names, self.asks)
        if self.manifest_labels == "positives_only" and self.asks != AskFor("image", several=True):
            whole = f"and task = {self.task!r} takes a label as the whole answer: leave manifest_labels out"
            raise ValueError(
                f"manifest_labels = 'positives_only' needs a task whose images have several labels, {whole}"
            )
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
    def _check_members(self) -> Self:
        comparing = STRATEGIES[self.strategy].compares_members
        for key, needs_several in {"acquisition": NEEDS_MEMBERS[self.acquisition], "strategy": comparing}.items():
            name = getattr(self, key)
            if needs_several and self.members.n_members < 2:
                raise ValueError(
                    f"{key} = {name!r} measures how members disagree and needs at least two: "
                    "set ensemble, swag, views, laplace or mc_dropout in [members]"
                )
        if self.members.views > 0 and self.model.augmentation == "none":
            raise ValueError("views are augmented images, and augmentation is none: set augmentation, or views = 0")
        return self

    @model_validator(mode="after")
    def _check_gpus(self) -> Self:
        if self.gpus_per_network > 1 and self.model.train == "head":
            raise ValueError(
                f"gpus_per_network = {self.gpus_per_network} shares the training of whole networks, and train = 'head' "
                "trains heads alone, which takes a moment: leave gpus_per_network out"
            )
        return self


def load_settings(path: Path) -> CampaignSettings:
    """Read a campaign file; relative paths in it, and those of SQLite files, are relative to the file.

    Raises:
        ConfigError: naming the file, the line, what is wrong there and what is allowed.
    """
    from flows.known_network import known_network  # loads pandas

    text = _read_text(path)
    values = _parse(path, text)
    base = _folder_of(path)
    _resolve_weights(values.get("model"), base, path, text)
    known = known_network(base, values)
    try:
        settings = CampaignSettings.model_validate(values, context={"network": known})
    except ValidationError as exc:
        raise _config_error(path, text, exc) from exc
    except ValueError as exc:  # weights that the network does not have: their image size is a default
        line = line_of(text, ["model", "weights"])
        raise ConfigError(f"{path}, line {line}: {exc}" if line else f"{path}: {exc}") from exc
    settings = settings.model_copy(
        update={
            "pool": settings.pool if isinstance(settings.pool, str) else base / settings.pool,
            "folder": base / settings.folder,
            "mlflow": settings.mlflow.model_copy(update={"uri": _beside(base, settings.mlflow.uri)}),
        }
    )
    trap = mistakable(settings.classes)
    if trap:
        raise ConfigError(
            f"{path}, line {line_of(text, ['classes'])}: classes: {trap}. People and other programs take one for the "
            "other: rename one of them"
        )
    return settings


def load_place(path: Path) -> Place:
    """Where the campaign of a file keeps its rounds; the other settings are not looked at, which takes longer.

    Raises:
        ConfigError: as `load_settings`.
    """
    text = _read_text(path)
    try:
        place = Place.model_validate(_parse(path, text))
    except ValidationError as exc:
        raise _config_error(path, text, exc) from exc
    return place.model_copy(update={"folder": _folder_of(path) / place.folder})


def _folder_of(path: Path) -> Path:
    base = path.resolve().parent
    try:
        str(base).encode()
    except UnicodeEncodeError as exc:
        raise ConfigError(f"{path}: the name of its folder, {base}, is not UTF-8: rename the folder") from exc
    return base


def _config_error(path: Path, text: str, exc: ValidationError) -> ConfigError:
    # A size that could not be looked up is told by what is wrong with the network's name.
    errors = [error for error in exc.errors() if error["type"] != "default_factory_not_called"]
    return ConfigError("\n".join(explain_setting(path, text, error, CampaignSettings) for error in errors))


def _read_text(path: Path) -> str:
    """The text of a campaign file, in UTF-8 or in the encoding of its first bytes: editors write UTF-16 too."""
    try:
        with path.open("rb") as file:
            held = file.read(LARGEST + 1)
    except FileNotFoundError as exc:
        raise ConfigError(f"{path}: no such campaign file; `labelcycle init {path}` writes an example") from exc
    except IsADirectoryError as exc:
        raise ConfigError(f"{path} is a folder; name the campaign's file, which `labelcycle init` writes") from exc
    except OSError as exc:
        raise ConfigError(explain(exc, path)) from exc
    if len(held) > LARGEST:
        raise ConfigError(f"{path}: is no campaign file, which is a small text: it has more than {LARGEST:,} bytes")
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if held.startswith(mark)), "utf-8")
    if encoding in ("utf-8", "utf-8-sig") and b"\0" in held:
        raise ConfigError(f"{path}: holds NUL bytes: it is no text, or UTF-16 without a mark; save it as UTF-8")
    try:
        text = held.decode(encoding)
    except UnicodeDecodeError as exc:
        line = held.count(b"\n", 0, exc.start) + 1
        raise ConfigError(
            f"{path}, line {line}: not {encoding.upper()}, at the byte 0x{held[exc.start]:02x}: the file was saved in "
            "another encoding, as Windows-1252; save it as UTF-8"
        ) from exc
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _parse(path: Path, text: str) -> dict[str, Any]:
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path}: not valid TOML: {exc}{_cause(text, str(exc))}") from exc
    except RecursionError as exc:
        raise ConfigError(f"{path}: lists or tables lie too deep in one another") from exc
    except ValueError as exc:  # a number that Python refuses to read
        raise ConfigError(f"{path}: holds a number that is too long: {str(exc).partition(';')[0]}") from exc
    if isinstance(values.get("name"), str):
        values.setdefault("folder", f".labelcycle/campaigns/{values['name']}")
    return values


def _cause(text: str, told: str) -> str:
    """What a person did who got an error of TOML's grammar, where the line shows it."""
    found = re.search(r"at line (\d+)", told)
    line = text.splitlines()[int(found[1]) - 1] if found else ""
    if set(line) & set(TYPOGRAPHIC_QUOTES):
        return f': quotes of a word processor, {" ".join(sorted(set(line) & set(TYPOGRAPHIC_QUOTES)))}; write " instead'
    if "\\" in line:
        return ": a path with \\ goes in single quotes, '...', or is written with /"
    return ""


def _resolve_weights(model: object, base: Path, path: Path, text: str) -> None:
    """Let the weights of a network be a file beside the campaign file, if there is one."""
    if not isinstance(model, dict) or not isinstance(model.get("weights"), str):
        return
    file = base / Path(model["weights"]).expanduser()
    if file.is_file():
        model["weights"] = str(file)
    elif file.suffix in WEIGHTS_FILES:
        line = line_of(text, ["model", "weights"])
        raise ConfigError(f"{path}, line {line}: model.weights: there is no file {model['weights']!r} in {base}")


def _checked(values: Plain) -> Plain:
    """What need not be checked again, see `is_held`."""
    model = values.get("model")
    network = model.get("name") if isinstance(model, dict) else None
    return {"network": network, **{name: values.get(name) for name in ("task", "budget_in", "schedule", "timezone")}}


def _beside(base: Path, uri: str) -> str:
    """The address of an SQLite file with its whole path."""
    if not uri.startswith(SQLITE):
        return uri
    return f"{SQLITE}{base / Path(uri.removeprefix(SQLITE)).expanduser()}"


def images_root(pool: Path | str) -> Path | None:
    """The folder that all images of a pool on a disk lie in: the pool's own, or that of a manifest."""
    if isinstance(pool, str):
        return None
    return pool if pool.is_dir() else pool.parent


def resolved(settings: CampaignSettings) -> Plain:
    """The settings as plain JSON values, for campaign.json and the tracker."""
    return settings.model_dump(mode="json")


def unresolved(values: Plain) -> CampaignSettings:
    """The settings that a campaign.json holds."""
    given = {name: value for name, value in values.items() if name != "format"}
    pairs = {name: _as_pairs(given.get(name)) for name in ("renamed", "strategy_options")}
    return CampaignSettings.model_validate({**given, **pairs}, context=_checked(given))


def _as_pairs(written: object) -> dict[str, object]:
    """A table that is written as pairs, so that its order is a part of the settings."""
    return {str(pair[0]): pair[1] for pair in written if isinstance(pair, list)} if isinstance(written, list) else {}


def present_names(renamed: Mapping[str, str]) -> dict[str, str]:
    """What each class that was renamed is called now, however often it was.

    >>> present_names({"cat": "feline", "feline": "Felis catus"})
    {'cat': 'Felis catus', 'feline': 'Felis catus'}
    """
    names = {name: name for name in renamed}
    for _ in renamed:
        names = {old: renamed.get(name, name) for old, name in names.items()}
    return names
