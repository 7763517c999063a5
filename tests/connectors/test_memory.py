"""The annotation tool and the tracker that live in this process keep what their protocols promise."""

from datetime import UTC, datetime, timedelta

import pytest

from connectors.annotation import AnnotationToolError, Asked, Progress, PushMismatch, Task
from connectors.memory import MemoryTool, MemoryTracker
from connectors.tracking import MemberHistory, TrackerError
from pipeline.types import Region


@pytest.fixture
def tool():
    times = iter(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=n) for n in range(1000))
    return MemoryTool(["cat", "dog"], clock=lambda: next(times))


def batch(n: int = 3, *, round_number: int = 1) -> list[Task]:
    return [
        Task(f"{round_number}.{rank}", f"{rank}.png", round_number, rank, Region("image", "cat", score=0.5))
        for rank in range(n)
    ]


def push(tool, tasks):
    return tool.push(tasks, round_number=tasks[0].round_number, model_version="m", asked={})


def progress(tool, number):
    return tool.tend([Asked(number, (), "m", {})], asked={}).progress


def test_pushing_again_makes_nothing_twice_and_adds_what_is_missing(tool):
    first = push(tool, batch(2))
    again = push(tool, batch(3))
    assert again == first | {"1.2": again["1.2"]}
    assert push(tool, batch(3)) == again
    assert len(tool.tasks) == 3
    with pytest.raises(PushMismatch, match="has 1 tasks that this campaign did not select"):
        push(tool, batch(2))


def test_wrong_tasks_are_refused(tool):
    with pytest.raises(ValueError, match="in the batch twice"):
        push(tool, batch(1) * 2)
    with pytest.raises(ValueError, match="the guess must be one of cat, dog"):
        push(tool, [Task("1", "1.png", 1, 0, Region("image", "owl"))])
    assert tool.tasks == {}


def test_newest_round_is_served_first_and_most_wanted_first(tool):
    push(tool, batch(2))
    push(tool, batch(2, round_number=2)[::-1])
    assert [task.item_id for task in tool.served()] == ["2.0", "2.1", "1.0", "1.1"]
    tool.answer("2.0", "cat")
    tool.skip("1.0")
    assert [task.item_id for task in tool.served()] == ["2.1", "1.1"]


def test_answers_come_back_with_who_and_when_and_can_be_taken_back(tool):
    task_ids = push(tool, batch(3))
    assert progress(tool, 1) == Progress(3, 0, 0)
    kept, gone = tool.answer("1.0", "dog", annotator="ann", seconds=2.5), tool.answer("1.1", "cat")
    tool.skip("1.2")
    assert progress(tool, 1) == Progress(3, 2, 1)
    assert progress(tool, 2) == Progress(0, 0, 0)
    tool.delete(gone)
    pulled = tool.pull({1: task_ids})
    first, second = pulled.answers
    assert pulled.task_ids == task_ids
    assert (first.answer_id, first.annotation.regions[0].label, first.annotator, first.seconds) == (
        kept,
        "dog",
        "ann",
        2.5,
    )
    assert (second.outcome, second.annotation, second.updated_at) == ("skipped", None, "2026-01-01T00:00:02+00:00")
    assert tool.pull({2: {}}).answers == []


def test_what_the_page_does_not_have_cannot_be_answered(tool):
    push(tool, batch(1))
    with pytest.raises(AnnotationToolError, match="no class 'owl'"):
        tool.answer("1.0", "owl")
    with pytest.raises(AnnotationToolError, match="no task asks for item x"):
        tool.answer("x", "cat")


def test_a_round_is_logged_once_and_other_values_are_refused(tmp_path):
    tracker = MemoryTracker()
    (tmp_path / "metrics.json").write_text("{}")
    for _ in range(2):
        run_id = tracker.start_round(1, params={"seed": 1}, tags={"machine": "a"})
        tracker.log_members(run_id, [MemberHistory("member-0", 1, [{"loss": 1.0}])])
        model = tracker.log_model(run_id, weights=[], description=tmp_path)
        tracker.log_round(run_id, metrics={"accuracy": 0.5}, step=10, artifacts=[tmp_path / "metrics.json"])
        tracker.name_champion(model)
        tracker.finish_round(run_id)
    [run] = tracker.runs.values()
    assert (run.params, run.metrics, run.artifacts) == ({"seed": 1}, {"accuracy": (0.5, 10)}, {"metrics.json": b"{}"})
    assert tracker.champion == run.model == model
    assert run.is_finished
    with pytest.raises(TrackerError, match="seed: 1 -> 2"):
        tracker.start_round(1, params={"seed": 2})
    with pytest.raises(TrackerError, match="accuracy"):
        tracker.log_round(run_id, metrics={"accuracy": 0.6}, step=10, artifacts=[])
    other = tracker.start_round(2, params={})
    assert tracker.log_model(other, weights=[], description=tmp_path).version == "2"
    tracker.finish_round(other)
    assert tracker.champion == model
