"""What a round is made with and what it trains, before anything dear begins."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from connectors.score_files import ItemList
from flows.artefacts import CONFIG, OUTLOOK, PLAN, SECONDS, TRAINING
from flows.changes import changes_since_last
from flows.config import CampaignSettings, ConfigError, resolved
from flows.folder import RoundFolder
from flows.images import PoolImages
from flows.outlook import outlook
from flows.records import Outlook, Plan, RoundConfig
from flows.step import step
from flows.steps.select import check_strategy
from pipeline.learning.estimate import estimate_seconds
from pipeline.learning.networks import check_network, frozen_body, phase_of
from pipeline.learning.settings import MemberSettings, ModelSettings
from pipeline.networks.classifier import PHASES
from pipeline.networks.features import feature_bytes
from pipeline.tables import Labels
from pipeline.tasks.task_type import TaskType

TRAINS = {"head": "the head alone", "all": "the whole network"}


@step(CONFIG)
def begin(
    *,
    task: TaskType,
    settings: CampaignSettings,
    earlier: Sequence[RoundFolder],
    budget_left: int,
    round_number: int,
) -> RoundConfig:
    """What a round is made with; its query size is what the budget leaves.

    The first round, and one whose settings changed, also makes sure that the model can be built and the strategy
    called: labels cost more than finding that out later.
    """
    changes = changes_since_last(earlier, settings)
    weights = None
    if round_number == 0 or changes:
        check_members(settings.members, settings.model, task, settings.task)
        weights = check_network(settings.model, settings.members, task, n_classes=len(settings.classes))
        check_strategy(settings, task)
    return RoundConfig(
        round_number=round_number,
        begun_at=datetime.now(UTC).isoformat(timespec="seconds"),
        query_size=min(settings.query_size, budget_left),
        settings=resolved(settings),
        batch_size=settings.model.recipe.batch_size_for(task),
        changes=changes,
        weights=weights,
    )


def check_members(members: MemberSettings, model: ModelSettings, task: TaskType, name: str) -> None:
    """Raise ConfigError for what makes sense only where an image takes one decision.

    Args:
        name: of the task.
    """
    wanted = {"laplace": members.laplace, "pseudo_labels": model.pseudo_labels.threshold}
    refused = [] if task.has_one_decision else [each for each, value in wanted.items() if value]
    if task.stride and members.views:
        raise ConfigError(
            f"views move what is in an image, and task = {name!r} asks where it is: leave views out, and take "
            "mc_dropout, swag or a larger ensemble"
        )
    if refused:
        raise ConfigError(
            f"{refused[0]} needs one decision for each image, and task = {name!r} takes several: leave it out"
        )


@dataclass(frozen=True)
class _Last:
    """What the last round that trained had in mind, and the minutes that it took."""

    phase: str
    minutes: float


@step(PLAN, computes=True)
def plan(
    labelled: Labels,
    audit: Labels,
    candidates: ItemList,
    *,
    images: PoolImages,
    earlier: Sequence[RoundFolder],
    task: TaskType,
    model: ModelSettings,
    members: MemberSettings,
    classes: Sequence[str],
    round_number: int,
) -> Plan:
    """Choose what the round trains: by its labels, and of that as much as its minutes allow.

    Where that takes longer than what the last round did, or there is a limit, the plan has an estimate for each phase
    that was thought of, and a text for people.
    """
    wanted = phase_of(model, n_trained_on=len(labelled), n_classes=len(classes))
    last = _last_trained(earlier)
    is_dearer = model.is_pretrained and PHASES.index(wanted) > (PHASES.index(last.phase) if last else 0)
    minutes: dict[str, float] = {}
    phase = wanted
    if is_dearer or (model.max_minutes is not None and wanted != "head"):
        n_images = len(candidates) + len(audit) + len(labelled)
        sizes = {"n_trained_on": len(labelled), "n_classes": len(classes), "n_images": n_images}
        for phase in reversed(PHASES[: PHASES.index(wanted) + 1] if model.is_pretrained else [wanted]):
            if phase == "head":
                break
            minutes[phase] = estimate_seconds(model, members, phase, task=task, **sizes) / 60
            if model.max_minutes is None or minutes[phase] <= model.max_minutes:
                break
    text = _text(phase, wanted, minutes, model.max_minutes, round_number, last, is_dearer=is_dearer)
    features = None
    if phase == "head" and not members.views:
        features = _features_text(images, _bytes_of_features(model, task, len(classes)))  # type: ignore[arg-type]
    return Plan(phase, wanted, minutes, model.max_minutes, text, features)


@lru_cache(maxsize=1)
def _bytes_of_features(model: ModelSettings, task: TaskType, n_classes: int) -> int:
    """Bytes that the features of an image take; the network is built for that once, and not in each round."""
    return feature_bytes(frozen_body(model, task, n_classes=n_classes), image_size=model.image_size)


def _features_text(images: PoolImages, of_image: int) -> str | None:
    needed = images.feature_gb(of_image)
    if needed <= images.cache_gb:
        return None
    return (
        f"the features of the pool's images would take {needed:.2g} GB, and feature_cache_gb = {images.cache_gb:g}: "
        "each round computes what it needs of them again, and only those of labelled images are kept"
    )


def _text(
    phase: str,
    wanted: str,
    minutes: dict[str, float],
    limit: float | None,
    round_number: int,
    last: _Last | None,
    *,
    is_dearer: bool,
) -> str | None:
    about = {name: f"about {value:.2g} minutes on this machine" for name, value in minutes.items()}
    if phase != wanted:
        return (
            f"round {round_number} has labels enough to train {TRAINS[wanted]}, which would take {about[wanted]}; "
            f"max_minutes = {limit:g} leaves {TRAINS[phase]}"
        )
    if phase in minutes and limit is not None and minutes[phase] > limit:
        return (
            f"round {round_number} takes {about[phase]}, more than max_minutes = {limit:g}: without pretrained "
            "weights nothing less can be trained; fewer max_epochs, a smaller image_size or ensemble take less"
        )
    if not is_dearer:
        return None
    before = f"; the last round took {last.minutes:.2g}" if last else ""
    limited = "" if limit is not None else "; max_minutes in [model] would set a limit"
    return f"round {round_number} trains {TRAINS[phase]}, which takes {about[phase]}{before}{limited}"


def _last_trained(earlier: Sequence[RoundFolder]) -> _Last | None:
    for folder in reversed(earlier):
        training = folder.get(TRAINING)
        if training is not None:
            spent = folder.get(SECONDS) or {}
            seconds = sum(spent.get(name, 0.0) for name in ("cross_validate", "train", "score_shard"))
            return _Last(training.phase, seconds / 60)
    return None


@step(OUTLOOK)
def look_ahead(*, rounds: Sequence[RoundFolder], settings: CampaignSettings) -> Outlook:
    """What the next labels are worth, and whether a stopping rule forbids to ask for them."""
    return outlook(rounds, settings)
