"""What a campaign may change between its rounds, what it may not, and what people read of it."""

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from connectors.store import flatten
from flows.artefacts import CAMPAIGN, CONFIG
from flows.config import CampaignSettings, resolved
from flows.folder import Campaign, RoundFolder
from flows.records import AnnotatorsPage, RoundConfig
from pipeline.labels.ledger import count_labels
from pipeline.settings import Plain
from pipeline.types import Answer

ANOTHER_CAMPAIGN = frozenset({"name", "task", "audit_size", "group"})
"""Settings that make another campaign once people have been asked: whose rounds these are, and what they are measured
on. The classes are checked by what they mean: see `claim`. Every other setting may change between rounds,
and each round records its own; images are known by their content, so that pool and folder may move."""
CHANGE_NOTHING_BEGUN = frozenset(
    {
        *("folder", "pool", "schedule", "close_at", "close_after", "feature_cache_gb", "mlflow.uri", "model.device"),
        *("image_cache_gb", "timezone", "max_unused", "decode_memory_gb"),
        *("workers", "ray_address", "ray_cpus", "ray_gpus", "gpus_per_network"),
        *("keep.models", "keep.scores", "keep.tracked_models"),
        *("notify.command", "notify.on", "notify.awaiting_after", "notify.again_after"),
        *("budget", "budget_in", "query_size", "target_accuracy", "min_gain"),
        *("label_studio.url", "label_studio.project", "label_studio.instructions", "label_studio.presign_minutes"),
    }
)
"""Settings that may change in the middle of a round: what is computed already stays right."""


class CampaignChanged(Exception):
    """The configuration would mix two campaigns in one folder.

    Attributes:
        settings: the names of the settings that changed.
    """

    def __init__(self, message: str, settings: Collection[str] = ()) -> None:
        super().__init__(message)
        self.settings = settings


def claim(folder: Campaign, settings: CampaignSettings, file: Path, *, answers: Callable[[], Sequence[Answer]]) -> None:
    """Write the settings into a campaign's folder, where they may stand there; as `refuse_another_campaign`."""
    refuse_another_campaign(folder, settings, file, answers=answers)
    if folder.get(CAMPAIGN) != resolved(settings):
        folder.write(CAMPAIGN, resolved(settings))


def refuse_another_campaign(
    folder: Campaign, settings: CampaignSettings, file: Path, *, answers: Callable[[], Sequence[Answer]]
) -> None:
    """See that settings are those of the folder's campaign; before the first batch is out any may have changed.

    Every label must mean one of the classes: one may come, be renamed or merged, and none takes labels away.

    Args:
        answers: reads what people have answered so far.

    Raises:
        CampaignChanged: for what makes another campaign, with how that one gets all labels.
    """
    try:
        if folder.is_out():
            refuse_lost_classes(count_labels(answers()), settings)
            _refuse_another(folder, resolved(settings))
    except CampaignChanged as exc:
        is_of_classes = "classes" in exc.settings
        back, has = ("", "all labels but these") if is_of_classes else (". Set it back", "all labels")
        raise CampaignChanged(
            f"{exc}{back}; or begin another campaign, which has {has} from its start: "
            f"labelcycle init NEW.toml --from {file}",
            exc.settings,
        ) from exc


def _refuse_another(folder: Campaign, wanted: Plain) -> None:
    """Raise CampaignChanged, with old and new values, if a setting differs that makes another campaign."""
    written = folder.get(CAMPAIGN)
    if written is None:
        return
    before, after = flatten(written), flatten(wanted)
    changed = sorted(key for key in ANOTHER_CAMPAIGN if before[key] != after[key])
    if changed:
        changes = "; ".join(f"{key}: {before[key]!r} -> {after[key]!r}" for key in changed)
        raise CampaignChanged(f"{folder.path_of(CAMPAIGN)} holds another campaign: {changes}", changed)


def refuse_lost_classes(counts: Mapping[str, int], settings: CampaignSettings) -> None:
    """Raise CampaignChanged if some labels, counted by class, are of no class of the campaign."""
    lost = {name: n for name, n in counts.items() if name not in settings.classes}
    if lost:
        told = ", ".join(f"{n} of {name!r}" for name, n in sorted(lost.items()))
        raise CampaignChanged(
            f"there are labels of classes that are not in the campaign file any more: {told}. If a class has another "
            f'name now, or is a part of another, write [renamed] "{min(lost)}" = "..." with the name that it has now; '
            "else put it back into classes",
            ("classes",),
        )


def begun_otherwise(folder: RoundFolder, settings: CampaignSettings) -> bool:
    """Whether a round that nobody has seen has begun with settings that would make other files than these settings."""
    config = folder.get(CONFIG)
    if folder.is_out or config is None:
        return False
    kept = CHANGE_NOTHING_BEGUN - ({"pool"} if folder.number == 0 else set())
    return bool(changed_settings(config.settings, resolved(settings)).keys() - kept)


def put_away(folder: RoundFolder) -> None:
    """Take a round's folder away; after a kill at any moment the folder is there whole or not at all."""
    away = folder.path.with_name(f"{folder.path.name}.put-away")
    shutil.rmtree(away, ignore_errors=True)
    folder.path.rename(away)
    shutil.rmtree(away, ignore_errors=True)


def clear_leftovers(folder: Campaign) -> None:
    """Take away what killed runs left: rounds that were put away, and files that were not whole yet."""
    for left in folder.leftovers():
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def changed_settings(before: Mapping[str, object], after: Mapping[str, object]) -> dict[str, str]:
    """The settings that differ, by dotted name, each with a line for people.

    >>> changed_settings({"model": {"train": "head"}}, {"model": {"train": "all"}})
    {'model.train': 'model.train: head -> all'}
    """
    old, new = flatten(before), flatten(after)
    return {
        name: f"{name}: {_words(old[name])} -> {_words(new[name])}" for name in sorted(new) if old[name] != new[name]
    }


def _words(value: object) -> str:
    if value is None:
        return "not set"
    if not isinstance(value, list):
        return str(value)
    return ", ".join(" = ".join(map(str, one)) if isinstance(one, list) else str(one) for one in value) or "none"


def changes_since_last(earlier: Sequence[RoundFolder], settings: CampaignSettings) -> list[str]:
    """What changed since the last of some rounds, a line for each setting."""
    configs = [config for f in earlier if (config := f.get(CONFIG)) is not None]
    return list(changed_settings(configs[-1].settings, resolved(settings)).values()) if configs else []


def notes_of_changes(config: RoundConfig, settings: CampaignSettings) -> tuple[str, ...]:
    """Lines on settings: what the round is made with that is new, and what waits for the next round."""
    number = config.round_number
    taken = [config.weights] if config.weights else []
    made = [f"changed since round {number - 1}: {line}" for line in config.changes]
    waiting = changed_settings(config.settings, resolved(settings))
    return (
        *taken,
        *made,
        *(
            f"from round {number + 1} on: {line}"
            for name, line in waiting.items()
            if name not in CHANGE_NOTHING_BEGUN or name == "query_size"
        ),
    )


def wanted_page(settings: CampaignSettings) -> AnnotatorsPage:
    """What the annotators' page depends on."""
    return AnnotatorsPage(
        url=settings.label_studio.url,
        project=settings.project,
        instructions=settings.label_studio.instructions,
        classes=list(settings.classes),
        renamed=list(settings.renamed.items()),
    )
