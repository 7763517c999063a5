"""A machine whose clock is set back between the rounds: the campaign ends as an undisturbed one."""

import os
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest

from connectors.memory import MemoryTool
from flows.artefacts import ROUND
from flows.campaign import open_campaign
from flows.home import home
from flows.reports.status import campaign_status
from tests.flows.loop import CLASSES


@pytest.fixture
def set_clock(monkeypatch):
    """Set the clock of all our modules by so many hours."""

    def set_by(hours: float) -> None:
        class Shifted(datetime):
            @classmethod
            def now(cls, zone=None):
                return datetime.now(zone) + timedelta(hours=hours)

        ours = [module for name, module in sys.modules.items() if name.startswith(("flows.", "connectors."))]
        for module in ours:
            if isinstance(there := getattr(module, "datetime", None), type) and issubclass(there, datetime):
                monkeypatch.setattr(module, "datetime", Shifted)

    return set_by


def play(loop, at_round) -> list[str]:
    """Label and run to the end; `at_round` is called before each run."""
    said = []
    for number in range(4):
        at_round(number)
        said.append(loop.run())
        loop.label()
    return said


def test_campaign_whose_clock_is_set_back_before_each_round_ends_as_an_undisturbed_one(make_loop, set_clock):
    undisturbed, disturbed = make_loop(), make_loop()
    hours = 0.0
    disturbed.tool = MemoryTool(CLASSES, clock=lambda: datetime.now(UTC) + timedelta(hours=hours))

    def set_back(number: int) -> None:
        nonlocal hours
        hours = -3.0 * number
        set_clock(hours)
        ahead = time.time() + 3600
        for path in disturbed.folder.path.rglob("*"):
            os.utime(path, (ahead, ahead))

    assert play(undisturbed, lambda _: None) == play(disturbed, set_back)
    for number in range(3):
        assert disturbed.batch(number) == undisturbed.batch(number)
        assert disturbed.known(number) == undisturbed.known(number)
        assert disturbed.tasks(number) == undisturbed.tasks(number)
    closed = [disturbed.folder.round(number).read(ROUND) for number in range(3)]
    assert [each.outcomes for each in closed] == [{"labelled": 15}, {"labelled": 4}, {"labelled": 4}]
    assert closed[0].closed_at > closed[1].closed_at > closed[2].closed_at, "the clock was set back"
    assert disturbed.tracker.runs.keys() == undisturbed.tracker.runs.keys()
    state = campaign_status(disturbed.folder, home())
    assert state.n_labels_paid == 23
    assert state.seconds_to_batch is None, "no person waited for less than nothing"


def test_answer_that_is_mended_after_the_clock_was_set_back_counts_as_mended(make_loop):
    loop = make_loop()
    loop.run()
    item = loop.label()[0]
    loop.run()
    given = next(answer for answer in loop.tool.answers.values() if answer.item_id == item)
    earlier = pd.Timestamp(given.updated_at) - pd.Timedelta(hours=3)
    label = next(name for name in CLASSES if name != loop.known(1).get(item))
    loop.edit(item, label)
    loop.tool.answers[given.answer_id] = replace(loop.tool.answers[given.answer_id], updated_at=earlier.isoformat())
    loop.label()
    loop.run()
    answers = open_campaign(loop.file, tool=loop.tool, tracker=loop.tracker).ledger.standing
    assert [answer.annotation.regions[0].label for answer in answers if answer.item_id == item] == [label]
