"""The sentence of the loop: a campaign that is killed before any of its files is seen ends as an undisturbed one."""

from collections import Counter
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from connectors.annotation import AnnotationToolUnavailable
from connectors.memory import MemoryTracker
from connectors.tracking import TrackerUnavailable
from flows import round as loop_module
from flows.artefacts import AUDIT, BATCH, LABELLED, METRICS
from flows.folder import Campaign, RoundFolder
from tests.flows.loop import Loop

N_ROUNDS = 3
TOOL = {"prepare", "push", "tend", "pull"}
TRACKER = {"start_round", "log_members", "log_model", "log_round", "name_champion", "finish_round", "monitor"}
"""What a round asks of its servers."""


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


class Unreliable:
    """A server that is away when it is asked something for the first time, and whose answer to the second is lost.

    What it is asked again after the round has got further is another thing that it is asked.
    """

    def __init__(self, server: Any, error: type[Exception], calls: set[str], folder: Campaign) -> None:
        self._server, self._error, self._calls, self._folder = server, error, calls, folder
        self.seen: Counter[tuple[str, int, int]] = Counter()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._server, name)
        if name not in self._calls:
            return found

        def call(*args: Any, **how: Any) -> Any:
            now = self._folder.current_round()
            self.seen[asked := (name, now.number, len(list(now.path.glob("*"))))] += 1
            if self.seen[asked] == 1:
                raise self._error("it is away")
            answer = found(*args, **how)
            if self.seen[asked] == 2:
                raise self._error("its answer was lost")
            return answer

        return call


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


def test_a_campaign_whose_servers_go_away_whatever_they_are_asked_ends_as_an_undisturbed_one(make_loop):
    undisturbed, disturbed = make_loop(), make_loop()
    tool, tracker = disturbed.tool, disturbed.tracker
    disturbed.tool = Unreliable(tool, AnnotationToolUnavailable, TOOL, disturbed.folder)
    disturbed.tracker = Unreliable(tracker, TrackerUnavailable, TRACKER, disturbed.folder)
    for number in range(2):
        told = undisturbed.run()
        for attempt in count():  # noqa: B007 (it is read below)
            with suppress(AnnotationToolUnavailable, TrackerUnavailable):
                assert disturbed.run() == told
                break
        assert f"round {number} asks for" in told
        assert attempt >= 2 * (2 + 4 * number), "each server was away at several steps"
        undisturbed.label()
        disturbed.label()
    assert {name for name, _, _ in disturbed.tool.seen} == TOOL
    assert {name for name, _, _ in disturbed.tracker.seen} == TRACKER
    for one, other in zip(undisturbed.folder.rounds(), disturbed.folder.rounds(), strict=True):
        assert came_to(one) == came_to(other)
    assert disturbed.asked() == undisturbed.asked(), "no task twice"
    assert tracked(tracker) == tracked(undisturbed.tracker)
    assert tracker.champion == undisturbed.tracker.champion
