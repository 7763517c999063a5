"""What a campaign may change between its rounds, what it may not, and what is said of it."""

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from connectors.store import Campaign, CampaignChanged, RoundFolder, flatten, read_json, write_json
from flows.config import ANOTHER_CAMPAIGN, CHANGE_NOTHING_BEGUN, CampaignSettings, resolved
from flows.ledger import known_answers
from pipeline.labels.ledger import current
from pipeline.types import Answer


def claim(folder: Campaign, settings: CampaignSettings, file: Path) -> None:
    """Write the settings into a campaign's folder; before the first batch is out any of them may have changed.

    Raises:
        CampaignChanged: for what makes another campaign, with how that one gets all labels.
    """
    try:
        if is_out(folder):
            check_classes(folder, settings)
            folder.claim(resolved(settings), fixed=ANOTHER_CAMPAIGN)
        else:
            folder.claim(resolved(settings))
    except CampaignChanged as exc:
        is_of_classes = "classes" in exc.settings
        back, has = ("", "all labels but these") if is_of_classes else (". Set it back", "all labels")
        raise CampaignChanged(
            f"{exc}{back}; or begin another campaign, which has {has} from its start: "
            f"labelcycle init NEW.toml --from {file}",
            exc.settings,
        ) from exc


def check_classes(folder: Campaign, settings: CampaignSettings) -> None:
    """See that every label means one of the classes: one may come, be renamed or merged, and none takes labels away.

    Raises:
        CampaignChanged: naming the labels that would be lost.
    """
    refuse_lost_classes(count_labels(known_answers(folder, settings.former_classes)), settings)


def count_labels(answers: Sequence[Answer]) -> Counter[str]:
    """How many labels of each class stand."""
    return Counter(r.label for a in current(answers) if a.annotation for r in a.annotation.regions)


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
    """Whether a round whose batch is not out has begun with settings of which other things come than of these."""
    if folder.is_out or not folder.has("config.json"):
        return False
    kept = CHANGE_NOTHING_BEGUN - ({"pool"} if folder.number == 0 else set())
    return bool(changed_settings(read_json(folder / "config.json")["settings"], resolved(settings)).keys() - kept)


def put_away(folder: RoundFolder) -> None:
    """Take away what a round has made; killed at any moment, all of it or nothing is there."""
    away = folder.path.with_name(f"{folder.path.name}.put-away")
    shutil.rmtree(away, ignore_errors=True)
    folder.path.rename(away)
    shutil.rmtree(away, ignore_errors=True)


def clear_what_was_put_away(folder: Campaign) -> None:
    """Take away what a killed run left of rounds that were put away."""
    for away in (folder.path / "rounds").glob("*.put-away"):
        shutil.rmtree(away, ignore_errors=True)


def is_out(folder: Campaign) -> bool:
    """Whether people were asked for anything: from then on the audit set and its groups stay."""
    return any(round_folder.is_out for round_folder in folder.rounds())


def changed_settings(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    """The settings that differ, by dotted name, each with a line for people.

    >>> changed_settings({"model": {"train": "head"}}, {"model": {"train": "all"}})
    {'model.train': 'model.train: head -> all'}
    """
    old, new = flatten(before), flatten(after)
    return {
        name: f"{name}: {_words(old[name])} -> {_words(new[name])}" for name in sorted(new) if old[name] != new[name]
    }


def _words(value: Any) -> str:
    if value is None:
        return "not set"
    if not isinstance(value, list):
        return str(value)
    return ", ".join(" = ".join(map(str, one)) if isinstance(one, list) else str(one) for one in value) or "none"


def changes_since_last(folder: RoundFolder, campaign: Campaign, settings: CampaignSettings) -> list[str]:
    """What changed since the round before this one, a line for each setting."""
    earlier = [f for f in campaign.rounds() if f.number < folder.number and f.has("config.json")]
    if not earlier:
        return []
    return list(changed_settings(read_json(earlier[-1] / "config.json")["settings"], resolved(settings)).values())


def notes_of_changes(folder: RoundFolder, settings: CampaignSettings) -> tuple[str, ...]:
    """What is said of changed settings: those that this round is made with, and those that wait for the next."""
    config = read_json(folder / "config.json")
    made = [f"changed since round {folder.number - 1}: {line}" for line in config["changes"]]
    waiting = changed_settings(config["settings"], resolved(settings))
    return (
        *made,
        *(
            f"from round {folder.number + 1} on: {line}"
            for name, line in waiting.items()
            if name not in CHANGE_NOTHING_BEGUN or name == "query_size"
        ),
    )


def wanted_page(settings: CampaignSettings) -> dict[str, Any]:
    """What the annotators' page depends on."""
    return {
        "url": settings.label_studio.url,
        "project": settings.project,
        "instructions": settings.label_studio.instructions,
        "classes": list(settings.classes),
        "renamed": list(settings.renamed.items()),
    }


def last_page(folder: Campaign) -> dict[str, Any] | None:
    """What the page was made for when a run last looked after it; None before one did."""
    path = folder.path / "page.json"
    return read_json(path) if path.exists() else None


def keep_page(folder: Campaign, settings: CampaignSettings) -> None:
    """Write down what the page is made for now."""
    write_json(folder.path / "page.json", wanted_page(settings))
