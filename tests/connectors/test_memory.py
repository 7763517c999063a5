"""What the annotation tool and the tracker of this process do beside what every other must do."""

import pytest

from connectors.annotation import AnnotationToolError, Question
from connectors.memory import MemoryTool, MemoryTracker
from tests.connectors.annotation_contract import ask


@pytest.fixture
def tool():
    tool = MemoryTool(["cat", "dog"])
    tool.push([Question(ask("1.0"), "0.png", 0)], model_version="m", asked={})
    return tool


def test_what_the_page_does_not_have_cannot_be_answered(tool):
    with pytest.raises(AnnotationToolError, match="no class 'owl'"):
        tool.answer(ask("1.0"), "owl")
    with pytest.raises(AnnotationToolError, match=r"no task asks for .*item_id='x'"):
        tool.answer(ask("x"), "cat")


def test_an_answer_has_the_time_of_the_clock(tool):
    tool.answer(ask("1.0"), "dog", annotator="ann", seconds=2.5)
    [answer] = tool.answers.values()
    assert (answer.annotator, answer.updated_at[:2], answer.updated_at[-6:]) == ("ann", "20", "+00:00")


def test_an_artefact_is_kept_with_its_content(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    tracker = MemoryTracker()
    run_id = tracker.start_round(1, params={})
    tracker.log_round(run_id, metrics={}, step=10, artifacts=[tmp_path / "metrics.json"])
    assert tracker.runs[run_id].artifacts == {"metrics.json": b"{}"}
