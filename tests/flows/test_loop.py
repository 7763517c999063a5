"""The sentence of the loop: a campaign that is killed before any of its files is seen ends as an undisturbed one."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from connectors.memory import MemoryTracker
from flows import round as loop_module
from flows.artefacts import AUDIT, BATCH, LABELLED, METRICS
from flows.folder import Campaign, RoundFolder
from tests.flows.loop import Loop

N_ROUNDS = 3


class Killed(BaseException):
    """What `except Exception` does not hold up, as it does not hold up a kill."""


@pytest.fixture(autouse=True)
def _index_only_once(monkeypatch):
    """A hundred runs look at forty images that stay as they are: that alone would take half of the time."""
    index = loop_module.index_pool

    def index_once(place, known, **how):
        return index(place, known, **how) if known is None else known

    monkeypatch.setattr(loop_module, "index_pool", index_once)


def came_to(folder: RoundFolder) -> dict[str, Any]:
    """What a round comes to: the batch in its order, the labels that were learnt, and how good the model is."""
    told: dict[str, Any] = {
        "batch": folder.read(BATCH).table.sort_values("rank").drop(columns="uri").to_csv(index=False)
    }
    for name, artefact in {"labelled": LABELLED, "audit": AUDIT}.items():
        labels = folder.read(artefact)
        told[name] = dict(zip(labels.item_ids, labels.words, strict=True))
    return told | {"metrics": folder.get(METRICS)}


def tracked(tracker: MemoryTracker) -> dict[str, Any]:
    """What the tracker holds of each round, but the times."""
    return {
        run_id: {
            "metrics": {name: value for name, value in run.metrics.items() if not name.startswith("seconds_")},
            "members": {name: len(member.epochs) for name, member in run.members.items()},
            "model": run.model,
            "artifacts": set(run.artifacts),
            "is_finished": run.is_finished,
        }
        for run_id, run in tracker.runs.items()
    }


def files_of(campaign: Campaign) -> set[Path]:
    """All files of a campaign but its lock, which no step writes."""
    return {path for path in campaign.path.rglob("*") if path.is_file() and path.suffix != ".lock"}


def run_and_kill_before_each_file(loop: Loop, died_at: set[Path]) -> str:
    """Run until the round is out; the process dies once before each file: it is whole, and gets its name then."""
    rename = Path.replace

    def rename_or_die(temporary: Path, target: Path) -> Path:
        if target not in died_at:
            died_at.add(target)
            raise Killed(target)
        return rename(temporary, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", rename_or_die)
        while True:
            with suppress(Killed):
                return loop.run()


def test_a_campaign_killed_between_any_two_steps_ends_as_an_undisturbed_one(make_loop):
    undisturbed, killed = make_loop(), make_loop()
    died_at: set[Path] = set()
    for number in range(N_ROUNDS):
        told = [undisturbed.run(), run_and_kill_before_each_file(killed, died_at)]
        assert told[0] == told[1]
        assert f"round {number} asks for" in told[0]
        undisturbed.label()
        killed.label()
    assert files_of(killed.folder) <= died_at, "each file was once about to be seen when the process died"
    for one, other in zip(undisturbed.folder.rounds(), killed.folder.rounds(), strict=True):
        assert came_to(one) == came_to(other)
    assert killed.asked() == undisturbed.asked(), "no task twice"
    assert tracked(killed.tracker) == tracked(undisturbed.tracker)
    assert killed.tracker.champion == undisturbed.tracker.champion
