"""A campaign whose annotation tool the product has never heard of."""

import pandas as pd
import pytest
from prefect import flow
from prefect.testing.utilities import prefect_test_harness

from connectors.memory import MemoryTracker
from flows.artefacts import ANSWERS
from flows.campaign import OpenCampaign
from flows.round import work_on
from pipeline.types import Region
from tests.connectors.made_up_tool import FolderTool
from tests.flows.conftest import CLASSES


@pytest.fixture
def prefect():
    with prefect_test_harness():
        yield


def test_three_rounds_are_asked_and_answered_in_it(make_work, tmp_path, prefect):
    work = make_work("close_at = 0.6\nrandom_slice = 0.9\n")
    tool = FolderTool(tmp_path / "project", CLASSES)
    work = OpenCampaign(work.settings, work.folder, tool=tool, tracker=MemoryTracker())
    run = flow(work_on, name="made-up", persist_result=False, validate_parameters=False)
    for number in range(3):
        outcome = run(work)
        assert (outcome.kind, outcome.round_number) == ("asked", number)
        for place, task_id in enumerate(tool.served()):
            if place % 5:
                tool.answer(task_id, Region("image", CLASSES[place % 3]))
            else:
                tool.skip(task_id)
    assert (run(work).round_number, len(work.folder.rounds())) == (3, 4)
    answers = pd.concat([pd.read_parquet(folder.path_of(ANSWERS)) for folder in work.folder.rounds()[:3]])
    assert set(answers["outcome"]) == {"labelled", "skipped"}
    assert set(answers["purpose"]) >= {"seed", "audit", "control"}
    asked = work.ledger.asked_tasks
    assert set(asked.values()) >= set(answers["task_id"])
    assert len(answers) == len({(ask.item_id, ask.round_number) for ask in asked if ask.round_number < 3})
