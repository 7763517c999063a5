"""Where the local servers live, features are kept and the last campaign is remembered."""

import os
from collections.abc import Iterator
from pathlib import Path

from connectors.store import StoreError, read_json

NAME = ".labelcycle"
VARIABLE = "LABELCYCLE_HOME"
LAST_CAMPAIGN = "last-campaign.json"
"""Which campaign was used last from this home."""
SERVERS = "servers.json"
"""In a home whose servers were started once; a campaign may lie in a folder of the same name without."""


def home(near: Path | None = None) -> Path:
    """The home that a command uses, whatever folder it is called from.

    It is what LABELCYCLE_HOME names; else the nearest `.labelcycle` with servers beside the campaign file or above it;
    else the nearest beside or above the working folder; else a new one, in the working folder if the campaign file lies
    in it or below, and beside the file if not. One that belongs to another user is passed over: it would send us to
    servers of theirs.

    Args:
        near: the campaign file, or None for a command without one.

    Raises:
        StoreError: what was named is no folder, or the new home's place is taken by another user.
    """
    named = os.environ.get(VARIABLE)
    if named:
        path = Path(named).expanduser().absolute()
        if path.exists() and not path.is_dir():
            raise StoreError(f"{VARIABLE} must name a folder, and {path} is a file")
        return path
    here = Path.cwd()
    beside = here if near is None else near.expanduser().resolve().parent
    for folder in (*_upwards(beside), *_upwards(here)):
        if (folder / NAME / SERVERS).exists():
            return folder / NAME
    new = (here if beside.is_relative_to(here) else beside) / NAME
    if new.exists() and not _is_ours(new):
        raise StoreError(f"{new} belongs to another user; let {VARIABLE} name a folder of your own")
    return new


def settle_home(near: Path | None = None) -> Path:
    """Find the home; this process and its children use it from now on."""
    found = home(near)
    os.environ[VARIABLE] = str(found)
    return found


def folder_of(campaign: Path | None) -> Path:
    """The folder of a campaign that is named by its file or folder; of the one that was run last where none is.

    Raises:
        ConfigError: none was run, or the file is wrong.
        StoreError: what remembers the last campaign is damaged.
    """
    from flows.artefacts import CAMPAIGN
    from flows.config import ConfigError, load_place, load_settings

    if campaign is None:
        last = home() / LAST_CAMPAIGN
        if not last.exists():
            raise ConfigError("no campaign has been run here; name one: labelcycle status campaign.toml")
        try:
            return Path(read_json(last)["folder"])
        except (KeyError, TypeError) as exc:
            raise StoreError(f"{last} is damaged; name a campaign: labelcycle status campaign.toml") from exc
    if campaign.is_dir():
        return campaign
    folder = load_place(campaign).folder
    return folder if (folder / CAMPAIGN.name).exists() else load_settings(campaign).folder  # or what is wrong there


def _upwards(folder: Path) -> Iterator[Path]:
    """The folder and its parents, as far as each has a home of ours."""
    return (each for each in (folder, *folder.parents) if _is_ours(each / NAME))


def _is_ours(home: Path) -> bool:
    try:
        return home.stat().st_uid == os.getuid()
    except OSError:  # there is none, or we may not look
        return False
