"""What every experiment tracker must do."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest

from connectors.tracking import LaterRounds, MemberHistory, TrackedModel, Tracker, TrackerError

EPOCHS = [{"train_loss": 1 / epoch, "validation_accuracy": 0.1 * epoch} for epoch in range(1, 4)]
MEMBERS = [MemberHistory("member-0", 7, EPOCHS), MemberHistory("member-1", 8, EPOCHS[:2])]
METRICS = {"accuracy": 0.75, "nll": 0.5}


@dataclass(frozen=True)
class KeptRound:
    """What a tracker holds of a round.

    Attributes:
        metrics: name -> (value, step).
        members: name -> how many epochs.
    """

    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, tuple[float, int]]
    members: Mapping[str, int]
    artifacts: frozenset[str]
    is_finished: bool


class Books(Protocol):
    """A campaign in a tracker, and what the tracker holds of it, read past the tracker."""

    def open(self) -> Tracker:
        """The tracker, as another process opens it."""

    def rounds(self) -> list[KeptRound]:
        """What is held, round by round."""

    def champion(self) -> str:
        """Version of the champion."""

    def n_models_with_files(self) -> int:
        """How many models could be loaded."""


class TrackerContract:
    """Tests of a tracker; the fixture `books` is that of the class that inherits."""

    def test_a_round_that_is_logged_twice_leaves_one_record(self, books, files):
        for _ in range(2):
            log_round(books.open(), files)
        assert books.rounds() == [
            KeptRound(
                params={"strategy": "bald", "seed": "3"},
                tags={"machine": "a"},
                metrics={"accuracy": (0.75, 100), "nll": (0.5, 100)},
                members={"member-0": 3, "member-1": 2},
                artifacts=frozenset({"confusion.csv"}),
                is_finished=True,
            )
        ]
        assert books.champion() == "1"

    def test_a_round_that_is_begun_is_not_finished(self, books):
        books.open().start_round(1, params={})
        [kept] = books.rounds()
        assert (kept.is_finished, kept.metrics, kept.members) == (False, {}, {})

    def test_values_are_logged_once_and_tags_may_change(self, books):
        tracker = books.open()
        run_id = tracker.start_round(1, params={"seed": 1}, tags={"machine": "a"})
        assert tracker.start_round(1, params={"seed": 1, "batch": 2}, tags={"machine": "b"}) == run_id
        [kept] = books.rounds()
        assert (kept.params, kept.tags) == ({"seed": "1", "batch": "2"}, {"machine": "b"})
        tracker.log_round(run_id, metrics=METRICS, step=10, artifacts=[])
        tracker.log_members(run_id, MEMBERS)
        other_history = MemberHistory("member-0", 7, [{"train_loss": 9.0}])
        with pytest.raises(TrackerError, match=r"seed: '?1'? -> '?2"):
            tracker.start_round(1, params={"seed": 2})
        with pytest.raises(TrackerError, match="accuracy"):
            tracker.log_round(run_id, metrics={"accuracy": 0.6}, step=10, artifacts=[])
        with pytest.raises(TrackerError):
            tracker.log_members(run_id, [other_history])
        assert books.rounds()[0].metrics == {"accuracy": (0.75, 10), "nll": (0.5, 10)}

    def test_the_champion_is_the_model_that_was_named_last(self, books, files):
        tracker = books.open()
        first, second = (log_round(tracker, files, number) for number in (1, 2))
        assert (first.version, second.version, books.champion()) == ("1", "2", "2")
        assert first.model_uri != second.model_uri
        tracker.name_champion(first)
        assert books.champion() == "1"

    def test_models_are_removed_but_for_the_champion_and_their_rounds_stay(self, books, files):
        tracker = books.open()
        models = [log_round(tracker, files, number) for number in (1, 2, 3)]
        assert tracker.drop_models([]) == []
        assert tracker.drop_models([models[0], models[2]]) == ["1"], "3 is the champion"
        assert books.open().drop_models(models) == ["2"], "1 is gone already"
        assert books.champion() == "3"
        assert books.n_models_with_files() == 1
        assert sorted(kept.metrics["accuracy"] for kept in books.rounds()) == [(0.75, 100), (0.75, 200), (0.75, 300)]

    def test_a_round_that_begins_anew_is_put_away_before(self, books, files):
        tracker = books.open()
        assert tracker.discard_rounds(1) == 0
        for number in (1, 2, 3):
            log_round(tracker, files, number)
        assert (tracker.discard_rounds(2), len(books.rounds())) == (2, 1)
        assert (tracker.discard_rounds(1), books.rounds()) == (1, [])
        run_id = tracker.start_round(1, params={"seed": 4})
        tracker.log_round(run_id, metrics={"accuracy": 0.1}, step=100, artifacts=[])
        [kept] = books.rounds()
        assert (kept.params, kept.metrics) == ({"seed": "4"}, {"accuracy": (0.1, 100)})

    def test_a_folder_that_is_older_than_the_tracker_is_refused(self, books, files):
        tracker = books.open()
        tracker.refuse_later(-1)
        for number in (0, 1, 2):
            log_round(tracker, files, number)
        before = books.rounds()
        for begin in (lambda: tracker.start_round(0, params={}), lambda: tracker.refuse_later(-1)):
            with pytest.raises(LaterRounds, match=r"holds round 2 of this campaign.*labelcycle restore"):
                begin()
        tracker.refuse_later(2)
        assert books.rounds() == before

    def test_a_look_finds_all_well_and_leaves_nothing_behind(self, books, files):
        assert {finding.status for finding in books.open().check()} == {"ok"}
        log_round(books.open(), files)
        before = books.rounds()
        assert {finding.status for finding in books.open().check()} == {"ok"}
        assert books.rounds() == before

    def test_the_watch_on_the_machine_lets_errors_through(self, books):
        tracker = books.open()
        run_id = tracker.start_round(1, params={})
        with pytest.raises(KeyError), tracker.monitor(run_id):
            raise KeyError


def log_round(tracker: Tracker, files: Path, number: int = 1) -> TrackedModel:
    run_id = tracker.start_round(number, params={"strategy": "bald", "seed": 3}, tags={"machine": "a"})
    tracker.log_members(run_id, MEMBERS)
    model = tracker.log_model(run_id, weights=sorted(files.glob("member-*.pt")), description=files / "model.json")
    tracker.log_round(run_id, metrics=METRICS, step=100 * number, artifacts=[files / "confusion.csv"])
    tracker.name_champion(model)
    tracker.finish_round(run_id)
    return model
