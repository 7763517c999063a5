"""A fifth task type is one module: with it alone a campaign runs from the first question to the third model."""

import pytest

from connectors.label_studio.connection import TOKEN_VARIABLE
from flows.artefacts import ANSWERS, CONFUSION_TABLE, GUESSES, METRICS, MODEL, TRAINING
from flows.campaign import open_campaign
from flows.config import ConfigError
from pipeline.tasks import TASKS, classification
from pipeline.types import Region
from tests.flows import marks_task
from tests.flows.loop import CLASSES, truth


@pytest.fixture(autouse=True)
def _marks(monkeypatch):
    monkeypatch.setitem(TASKS, "marks", marks_task)


def label(loop) -> None:
    """People mark what there is: the stripe of an image, and that it is no right one; of some images nothing."""
    for question in loop.tool.served():
        stripe = truth(question.uri)
        marks = [] if stripe == "middle" else [stripe, *(["middle"] if stripe == "left" else [])]
        loop.tool.answer(question.ask, *marks, annotator="ann")


def test_a_made_up_task_runs_three_rounds(make_loop):
    loop = make_loop('task = "marks"\nstrategy = "uherding"')
    for number in range(3):
        assert f"round {number} asks for" in loop.run()
        label(loop)
    for number in (1, 2):
        folder = loop.folder.round(number)
        metrics = folder.read(METRICS)
        assert metrics.headline == "exact_match"
        assert 0 <= metrics.low <= metrics.value <= metrics.high <= 1
        assert not folder.has(CONFUSION_TABLE), "this task has no such table"
        assert folder.read(TRAINING).n_trained_on > 0
        seen = folder.read(GUESSES).by_item()
        assert seen.keys() == set(loop.batch(number))
        assert {region.label for regions in seen.values() for region in regions} <= set(CLASSES)
        assert folder.has(MODEL)
    answers = loop.folder.round(0).read(ANSWERS)
    regions = [answer.annotation.regions for answer in answers]
    assert (Region("image", "left"), Region("image", "middle")) in regions
    assert () in regions, "an image on which nothing was found is an answer"
    logged = loop.tracker.runs["round-2"].metrics
    assert {"audit_exact_match", "audit_exact_match_low", "audit_exact_match_high"} <= logged.keys()


def test_people_are_asked_for_what_the_task_asks(make_loop, monkeypatch):
    monkeypatch.setenv(TOKEN_VARIABLE, "a" * 40)
    for lines, task in (('task = "marks"\nstrategy = "uherding"', marks_task), ("", classification)):
        loop = make_loop(f'{lines}\n[label_studio]\nurl = "http://somewhere.test"')
        tool = open_campaign(loop.file).connect(CLASSES)
        assert tool._project.asks == task.asks


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (
            'strategy = "badge"',
            "strategy = 'badge' reads .*, which need one decision for each image, and task = 'marks'",
        ),
    ],
)
def test_what_needs_one_decision_for_each_image_is_refused_before_anything_is_asked(make_loop, lines, reason):
    loop = make_loop(f'task = "marks"\n{lines}')
    with pytest.raises(ConfigError, match=reason):
        loop.run()
    assert not loop.tool.tasks


def test_task_type_stays_what_it_was_once_people_were_asked(make_loop):
    loop = make_loop('strategy = "uherding"')
    loop.run()
    loop.change(('strategy = "uherding"', 'task = "marks"\nstrategy = "uherding"'))
    with pytest.raises(Exception, match="task: 'classification' -> 'marks'"):
        loop.run()
