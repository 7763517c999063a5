"""Whose the folder of a replay is: it holds one replay alone, and nothing of anybody else."""

from collections.abc import Collection, Mapping
from pathlib import Path

from connectors.store import flatten, read_json, write_json
from flows.changes import CampaignChanged
from flows.replay.folder import REPLAY, Replay, ReplaySettings
from flows.replay.inputs import ReplayError
from pipeline.learning.settings import PHASE_LIMITS, ModelSettings

MAY_CHANGE = frozenset({"arms", "seeds", "rounds"})
"""Settings that add to a replay without mixing two."""
OF_FEATURES = frozenset({"name", "weights", "image_size", "channels", "dropout", "train"})
"""What a replay of one linear head takes from the settings of a network; how the network is trained is not among it."""


def check_out(out: Path) -> None:
    """Refuse a folder with files that are no replay's."""
    if out.exists() and not out.is_dir():
        raise ReplayError(f"--out {out} is a file; name a folder")
    others = sorted(path.name for path in out.glob("*") if not path.name.startswith((".", "campaign.lock")))
    if others and not Replay(out).has(REPLAY):
        raise ReplayError(f"--out {out} holds other files ({', '.join(others[:3])}); name a new folder")


def make_folder(out: Path) -> None:
    """Make the folder, where it is not there yet."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise ReplayError(f"--out {out} cannot be made: {exc.strerror}") from exc


def sweep(out: Path) -> None:
    """Delete what a killed process was writing; the folder is locked, so nobody else writes."""
    for folder in (out, out / "runs"):
        for rest in folder.glob(".*.part"):
            rest.unlink()


def claim(folder: Path, settings: ReplaySettings) -> None:
    """Write the settings, or refuse those that would mix two replays in one folder; an empty one takes any.

    Raises:
        CampaignChanged: the folder holds a replay with other settings, or in another form.
    """
    path, wanted = Replay(folder).path_of(REPLAY), settings.model_dump(mode="json")
    if path.exists() and any(any(folder.glob(computed)) for computed in ("*.npy", "runs/*")):
        before = read_json(path)
        if before.get("format") != settings.format:
            raise CampaignChanged(f"{folder} was written by another version of labelcycle. Give another --out.")
        _refuse_changes(folder, flatten(before), flatten(wanted), ignored=_without_effect(settings))
    write_json(path, wanted)


def _without_effect(settings: ReplaySettings) -> set[str]:
    """Settings whose change leaves what was computed as it is."""
    if settings.is_linear:
        return {f"network.{name}" for name in ModelSettings.model_fields.keys() - OF_FEATURES}
    if settings.network and not settings.network.follows_labels:
        return {f"network.{name}" for name in PHASE_LIMITS}
    return set()


def _refuse_changes(
    folder: Path, before: Mapping[str, object], after: Mapping[str, object], *, ignored: Collection[str]
) -> None:
    keys = (before.keys() | after.keys()) - MAY_CHANGE - set(ignored)
    changed = sorted(key for key in keys if before.get(key) != after.get(key))
    if not changed:
        return
    told = {"data": "the labels, images or features changed"}
    changes = [told.get(key, f"{key}: {before.get(key)!r} -> {after.get(key)!r}") for key in changed]
    way_back = ", or set the values back" if set(changed).isdisjoint(told) else ""
    raise CampaignChanged(
        f"{folder} holds another replay: {'; '.join(changes)}. Give another --out{way_back}; "
        "strategies, seeds and rounds may change.",
        changed,
    )
