from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pandas as pd
import pytest

from connectors.annotation import AnnotationToolError, AnswersUnusable, Progress, Pulled, Tended
from connectors.memory import MemoryTool
from flows.artefacts import ANSWERS, BATCH, COLLECTED, NOT_USED, PROGRESS, PUSHED, WITHDRAWN
from flows.campaign import OpenCampaign
from flows.records import Collected
from flows.steps.collect import collect, look, may_close, notes_of
from pipeline.tables import BatchTable
from pipeline.types import Annotation, Answer, Ask, Region
from tests.flows.rounds import ask_nothing, push_tasks

DAY = timedelta(days=1)


class Held:
    """An annotation tool with answers to the tasks 100, 101, … of round 0."""

    def __init__(self, work, *outcomes, copied=0):
        self.items = work.pool.item_ids[: len(outcomes) + copied]
        self.asks = [Ask(item_id, 0, "seed") for item_id in self.items]
        task_ids = {ask: 100 + place for place, ask in enumerate(self.asks)}
        answers = [self.answer(place, outcome) for place, outcome in enumerate(outcomes)]
        self.since = []
        self.pulled = Pulled(answers, task_ids, copied=[100 + len(outcomes) + each for each in range(copied)])

    def answer(self, place, outcome):
        item_id, message = self.items[place], "'owl' is not a class of this campaign" if outcome == "invalid" else ""
        given = Annotation(item_id, (Region("image", "left"),), "ann") if outcome == "labelled" else None
        return Answer(
            self.asks[place], 100 + place, place + 1, outcome, "ann", "2026-01-02T03:04:05Z", given, message=message
        )

    def pull(self, asked, *, since=None):
        assert asked == self.pulled.task_ids
        self.since.append(since)
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
        tool = Held(work, *outcomes, copied=copied)
        work = OpenCampaign(work.settings, work.folder, tool=tool, tracker=work.tracker)
        folder = work.folder.round(0)
        batch = pd.DataFrame({"item_id": tool.items, "uri": work.pool.uris.loc[tool.items].tolist()})
        batch = batch.assign(reason="seed set", why="drawn at random", rank=range(len(batch)))
        folder.write(BATCH, BatchTable(batch))
        push_tasks(folder, {ask.item_id: task_id for ask, task_id in tool.pulled.task_ids.items()}, "http://ls")
        return work, folder

    return ask


def test_answers_that_are_not_used_are_told_with_the_reason_and_an_address(asked):
    work, folder = asked("labelled", "labelled", "labelled", "invalid", "empty", "invalid", "skipped", copied=1)
    work.do(collect, folder)
    unused, copied = folder.read(NOT_USED)
    assert unused == (
        "3 of 7 answers are not used: 2 'owl' is not a class of this campaign (http://ls/projects/1/data?task=103); "
        "1 submitted without a class (http://ls/projects/1/data?task=104)"
    )
    assert copied.startswith("1 answers are copies of the model's guesses")
    assert "data?task=107" in copied
    assert len(folder.read(ANSWERS)) == 7


def test_nothing_is_told_where_every_answer_is_used_or_skipped(asked):
    work, folder = asked("labelled", "skipped", "skipped")
    work.do(collect, folder)
    assert folder.read(NOT_USED) == []
    assert notes_of(work.tool.pulled, work.tool.pulled.answers, work.tool) == []


class TestGoingOn:
    """A collect reads what changed since the last one, and all where it may have missed something."""

    @pytest.fixture
    def second(self, asked):
        """A campaign whose round 0 is collected, and whose round 1 asked for something; with its tool."""

        def begin(**changed):
            work, folder = asked("labelled", "labelled")
            work.tool.pulled = replace(work.tool.pulled, mark="first")
            work.do(collect, folder)
            second = work.folder.round(1)
            second.write(BATCH, folder.read(BATCH))
            push_tasks(second, {}, "http://ls")
            work.tool.since.clear()
            work.tool.pulled = replace(work.tool.pulled, answers=[], is_whole=False, mark="second", **changed)
            return work, folder, second

        return begin

    def test_it_goes_on_from_the_mark_of_the_round_before_and_leaves_its_own(self, second):
        work, first, folder = second()
        work.do(collect, folder)
        assert work.tool.since == ["first"]
        assert folder.read(COLLECTED) == Collected("second", first.read(COLLECTED).whole_at)

    @pytest.mark.parametrize("lost", [COLLECTED, ANSWERS])
    def test_what_is_missing_makes_it_look_at_all(self, second, lost):
        work, first, folder = second()
        first.path_of(lost).unlink()
        work.do(collect, folder)
        assert work.tool.since == [None]

    @pytest.mark.parametrize(("days", "since"), [(-0.1, None), (0, "first"), (0.9, "first"), (1.1, None)])
    def test_once_a_day_it_looks_at_all(self, second, days, since):
        work, first, folder = second()
        looked_at = (datetime.now(UTC) - days * DAY).isoformat()
        first.write(COLLECTED, Collected("first", looked_at))
        work.do(collect, folder)
        assert work.tool.since == [since]

    def test_a_round_that_asked_for_nothing_looks_at_all_as_it_may_be_the_last(self, second):
        work, _, folder = second()
        ask_nothing(folder)
        work.do(collect, folder)
        assert work.tool.since == [None]

    def test_a_task_that_seems_gone_is_looked_for_among_all(self, second):
        work, _, folder = second()
        push_tasks(folder, {"late": 300}, "http://ls")
        late, looks = Ask("late", 1, "seed"), []

        def pull(asked, *, since=None):
            looks.append(since)
            there = {} if since or work.tool.is_gone else {late: 300}
            return replace(work.tool.pulled, task_ids=there, is_whole=since is None)

        work.tool.pull = pull
        for is_gone in (False, True):
            work.tool.is_gone = is_gone
            folder.path_of(ANSWERS).unlink(missing_ok=True)
            work.do(collect, folder)
            assert folder.read(WITHDRAWN) == (["late"] if is_gone else [])
        assert looks == ["first", None] * 2

    @pytest.mark.parametrize("lost", [NOT_USED, WITHDRAWN, COLLECTED])
    def test_a_run_that_ended_amid_its_files_loses_no_answer(self, asked, lost):
        work, folder = asked("labelled", "labelled")
        work.do(collect, folder)
        folder.path_of(lost).unlink()
        work.do(collect, folder)
        assert len(folder.read(ANSWERS)) == 2


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
        work.do(collect, folder)
        assert folder.has(ANSWERS)
        return
    with pytest.raises(AnswersUnusable, match=r"nothing was collected.*data\?task=.*or raise max_unused"):
        work.do(collect, folder)
    assert not folder.has(ANSWERS)
    assert not folder.has(NOT_USED)


def test_a_double_that_was_answered_is_the_task_of_its_item_from_then_on(asked):
    work, folder = asked("labelled", "labelled")
    first, second = work.tool.asks
    task_ids = {first: 100, second: 555}
    work.tool.tended = Tended(Progress(2, 1, 0), task_ids, work.tool.pulled)
    work.do(look, folder)
    assert work.tool.seen == [0]
    pushed = folder.read(PUSHED)
    assert (pushed.tasks, pushed.address) == ({first.item_id: 100, second.item_id: 555}, "http://ls")
    assert pushed.of_asks(0) == task_ids == work.ledger.asked_tasks
    assert folder.read(PROGRESS).n_labelled == 1


def test_tasks_that_are_all_gone_are_an_accident(asked):
    work, folder = asked("labelled")
    work.tool.tended = Tended(Progress(0, 0, 0), work.tool.pulled.task_ids, work.tool.pulled)
    with pytest.raises(AnnotationToolError, match="are gone from project"):
        work.do(look, folder)


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


def test_an_answer_that_is_used_in_part_is_told_with_what_was_left_out():
    found = Annotation("a", (Region("box", "left", (0.0, 0.0, 1.0, 1.0)),), "ann")
    message = "left out: box 2 (left) is smaller than a pixel"
    answer = Answer(Ask("a", 0, "seed"), 100, 1, "labelled", "ann", "2026-01-02T03:04:05Z", found, message=message)
    whole = replace(answer, answer_id=2, message="")
    tool = MemoryTool(["left", "right"])
    assert notes_of(Pulled([answer, whole], {}), [answer, whole], tool) == [
        f"1 answers are used in part: 1 {message} (memory:100)"
    ]
