from datetime import timedelta

import pandas as pd
import pytest

from connectors.annotation import AnnotationToolError, AnswersUnusable, Progress, Pulled, Tended
from connectors.store import read_json, write_json, write_table
from flows.steps.collect import collect, look, may_close, notes_of
from pipeline.types import Annotation, Answer, Ask, Region

DAY = timedelta(days=1)


class Held:
    """An annotation tool with answers to the tasks 100, 101, … of round 0."""

    def __init__(self, work, *outcomes, copied=0):
        self.items = work.pool["item_id"].tolist()[: len(outcomes) + copied]
        self.asks = [Ask(item_id, 0, "seed") for item_id in self.items]
        task_ids = {ask: 100 + place for place, ask in enumerate(self.asks)}
        answers = [self.answer(place, outcome) for place, outcome in enumerate(outcomes)]
        self.pulled = Pulled(answers, task_ids, 0, copied=[100 + len(outcomes) + each for each in range(copied)])

    def answer(self, place, outcome):
        item_id, message = self.items[place], "'owl' is not a class of this campaign" if outcome == "invalid" else ""
        given = Annotation(item_id, (Region("image", "left"),), "ann") if outcome == "labelled" else None
        return Answer(
            self.asks[place], 100 + place, place + 1, outcome, "ann", "2026-01-02T03:04:05Z", given, message=message
        )

    def pull(self, asked):
        assert asked == self.pulled.task_ids
        return self.pulled

    def tend(self, rounds, *, asked):
        self.seen = [each.round_number for each in rounds]
        return self.tended

    def task_address(self, task_id):
        return f"http://ls/projects/1/data?task={task_id}"


@pytest.fixture
def asked(make_work):
    """A campaign whose round 0 has tasks out, in a tool that holds these answers."""

    def ask(*outcomes, copied=0, extra=""):
        work = make_work(extra)
        tool = work.__dict__["tool"] = Held(work, *outcomes, copied=copied)
        folder = work.folder.round(0)
        pool = work.pool.set_index("item_id")
        batch = pd.DataFrame({"item_id": tool.items, "uri": pool.loc[tool.items, "uri"].tolist()})
        batch = batch.assign(reason="seed set", why="drawn at random")
        write_table(folder / "batch.parquet", batch.assign(rank=range(len(batch))))
        pushed_at = "2026-01-01T00:00:00+00:00"
        write_json(
            folder / "pushed.json",
            {
                "pushed_at": pushed_at,
                "address": "http://ls",
                "tasks": {ask.item_id: task_id for ask, task_id in tool.pulled.task_ids.items()},
                "purposes": {ask.item_id: ask.purpose for ask in tool.asks},
            },
        )
        return work, folder

    return ask


def test_answers_that_are_not_used_are_told_with_the_reason_and_an_address(asked):
    work, folder = asked("labelled", "labelled", "labelled", "invalid", "empty", "invalid", "skipped", copied=1)
    collect.fn(folder, work)
    unused, copied = read_json(folder / "not_used.json")
    assert unused == (
        "3 of 7 answers are not used: 2 'owl' is not a class of this campaign (http://ls/projects/1/data?task=103); "
        "1 submitted without a class (http://ls/projects/1/data?task=104)"
    )
    assert copied.startswith("1 answers are copies of the model's guesses")
    assert "data?task=107" in copied
    assert len(pd.read_parquet(folder / "annotations.parquet")) == 7


def test_nothing_is_told_where_every_answer_is_used_or_skipped(asked):
    work, folder = asked("labelled", "skipped", "skipped")
    collect.fn(folder, work)
    assert read_json(folder / "not_used.json") == []
    assert notes_of(work.tool.pulled, work.tool.pulled.answers, work) == []


@pytest.mark.parametrize(
    ("outcomes", "copied", "extra", "stops"),
    [
        (["labelled", "labelled", "invalid", "empty"], 0, "", False),
        (["labelled", "invalid", "empty"], 0, "", True),
        (["labelled", "labelled"], 3, "", True),
        ([], 4, "", True),
        (["skipped"] * 4, 0, "", False),
        (["labelled", "invalid", "empty"], 0, "max_unused = 0.7", False),
        (["labelled", "labelled", "invalid", "labelled"], 0, "max_unused = 0.2", True),
        (["invalid"], 2, "max_unused = 1.0", False),
    ],
)
def test_too_many_unused_answers_stop_before_anything_is_written(asked, outcomes, copied, extra, stops):
    work, folder = asked(*outcomes, copied=copied, extra=extra)
    if not stops:
        collect.fn(folder, work)
        assert folder.has("annotations.parquet")
        return
    with pytest.raises(AnswersUnusable, match=r"nothing was collected.*data\?task=.*or raise max_unused"):
        collect.fn(folder, work)
    assert not folder.has("annotations.parquet")


def test_a_double_that_was_answered_is_the_task_of_its_item_from_then_on(asked):
    work, folder = asked("labelled", "labelled")
    first, second = work.tool.asks
    task_ids = {first: 100, second: 555}
    work.tool.tended = Tended(Progress(2, 1, 0), task_ids, work.tool.pulled)
    look.fn(folder, work)
    assert work.tool.seen == [0]
    pushed = read_json(folder / "pushed.json")
    assert (pushed["tasks"], pushed["address"]) == ({first.item_id: 100, second.item_id: 555}, "http://ls")
    assert read_json(folder / "progress.json")["n_labelled"] == 1


def test_tasks_that_are_all_gone_are_an_accident(asked):
    work, folder = asked("labelled")
    work.tool.tended = Tended(Progress(0, 0, 0), work.tool.pulled.task_ids, work.tool.pulled)
    with pytest.raises(AnnotationToolError, match="are gone from project"):
        look.fn(folder, work)


@pytest.mark.parametrize(
    ("progress", "close_at", "close_after", "waited", "closes"),
    [
        (Progress(n_tasks=100, n_labelled=37, n_set_aside=0), 1.0, None, 9 * DAY, False),
        (Progress(n_tasks=100, n_labelled=100, n_set_aside=0), 1.0, None, 0 * DAY, True),
        (Progress(n_tasks=100, n_labelled=98, n_set_aside=2), 1.0, None, 0 * DAY, True),
        (Progress(n_tasks=100, n_labelled=0, n_set_aside=100), 1.0, None, 0 * DAY, True),
        (Progress(n_tasks=97, n_labelled=97, n_set_aside=0), 1.0, None, 0 * DAY, True),
        (Progress(n_tasks=97, n_labelled=96, n_set_aside=0), 1.0, None, 0 * DAY, False),
        (Progress(n_tasks=100, n_labelled=89, n_set_aside=0), 0.9, None, 0 * DAY, False),
        (Progress(n_tasks=100, n_labelled=90, n_set_aside=0), 0.9, None, 0 * DAY, True),
        (Progress(n_tasks=100, n_labelled=1, n_set_aside=0), 0.9, 3 * DAY, 2 * DAY, False),
        (Progress(n_tasks=100, n_labelled=1, n_set_aside=0), 0.9, 3 * DAY, 3 * DAY, True),
    ],
)
def test_round_closes_when_enough_is_answered_or_enough_time_has_passed(
    progress, close_at, close_after, waited, closes
):
    assert may_close(progress, n_pushed=100, close_at=close_at, close_after=close_after, waited=waited) is closes
