"""What Label Studio gives back, whatever shape it has."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from connectors.label_studio.reading import HeldTask, is_copied, is_skip, read_answer
from pipeline.labels.answers import answers_from_table, answers_to_table, current
from pipeline.types import Ask

CLASSES = ("cat", "dog")
ASK = Ask("i", 0, "seed")
CHOICE = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": ["cat"]}}
COMMENT = {"from_name": "comment", "to_name": "image", "type": "textarea", "value": {"text": ["blurry"]}}
STARS = {"from_name": "stars", "to_name": "image", "type": "rating", "value": {"rating": 4}}
MOOD = {"from_name": "mood", "to_name": "image", "type": "choices", "value": {"choices": ["good", "bad"]}}
BOX = {"from_name": "box", "to_name": "image", "type": "rectanglelabels", "value": {"x": 1, "rectanglelabels": ["a"]}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
RESULTS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "from_name": st.just("label") | JSON,
            "type": st.just("choices") | JSON,
            "value": st.fixed_dictionaries({"choices": st.lists(st.sampled_from(CLASSES) | JSON, max_size=2) | JSON})
            | JSON,
        },
    )
    | JSON,
    max_size=3,
)
ANNOTATIONS = (
    st.fixed_dictionaries(
        {"id": st.integers(1, 99) | JSON},
        optional={
            "result": RESULTS | JSON,
            "was_cancelled": JSON,
            "completed_by": st.integers(1, 3) | JSON,
            "lead_time": st.floats() | JSON,
            "updated_at": st.datetimes().map(str)
            | st.sampled_from(["2026-01-01T00:00:00Z", "9999-12-31T23:59:59-14:00"])
            | JSON,
            "parent_prediction": JSON,
        },
    )
    | JSON
)


def read(*result, **changes):
    annotation = {
        "id": 7,
        "result": list(result),
        "was_cancelled": False,
        "completed_by": 1,
        "lead_time": 2.5,
        "updated_at": "2026-01-02T03:04:05Z",
    }
    return read_answer(annotation | changes, ask=ASK, task_id=3, classes=CLASSES, emails={1: "ann@lab"})


@pytest.mark.parametrize("beside", [[COMMENT], [STARS], [MOOD], [BOX], [COMMENT, STARS, MOOD, BOX], [{"value": None}]])
@pytest.mark.parametrize("is_first", [True, False])
def test_the_class_counts_whatever_else_the_page_asks_for(beside, is_first):
    answer = read(*([CHOICE, *beside] if is_first else [*beside, CHOICE]))
    assert (answer.outcome, answer.annotation.regions[0].label) == ("labelled", "cat")


@pytest.mark.parametrize(
    ("result", "outcome", "message"),
    [
        ([CHOICE, CHOICE], "labelled", ""),
        ([CHOICE, CHOICE | {"value": {"choices": ["dog"]}}], "invalid", "wanted one class, got cat, dog"),
        ([COMMENT], "invalid", "wanted label of type choices, got comment of type textarea"),
        ([CHOICE | {"value": {"choices": 5}}], "invalid", 'wanted the name of a class, got {"choices": 5}'),
        ([CHOICE | {"value": {"choices": "cat"}}], "invalid", 'wanted the name of a class, got {"choices": "cat"}'),
        (
            [CHOICE | {"value": {"choices": [["cat"]]}}],
            "invalid",
            'wanted the name of a class, got {"choices": [["cat"]]}',
        ),
        ([CHOICE | {"value": {"choices": [None]}}], "invalid", 'wanted the name of a class, got {"choices": [null]}'),
        ([CHOICE | {"value": 5}], "invalid", "wanted the name of a class, got 5"),
        ([CHOICE | {"value": {"choices": [""]}}], "invalid", "'' is not a class of this campaign"),
        ([{"value": None}], "invalid", "wanted label of type choices, got null of type null"),
        ([CHOICE | {"type": ["choices"]}], "invalid", 'wanted label of type choices, got label of type ["choices"]'),
        ([CHOICE | {"from_name": 5}], "invalid", "wanted label of type choices, got 5 of type choices"),
        ([5], "invalid", "wanted label of type choices, got [5]"),
    ],
)
def test_every_shape_that_the_server_stores_is_an_answer_or_says_why_not(result, outcome, message):
    answer = read(*result)
    assert (answer.outcome, answer.message) == (outcome, message)


@pytest.mark.parametrize("seconds", ["5", -3, 1e300, float("nan"), True, [], None])
def test_a_duration_that_cannot_be_is_unknown_and_costs_no_class(seconds):
    answer = read(CHOICE, lead_time=seconds)
    assert (answer.outcome, answer.seconds) == ("labelled", None)


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "yesterday", "", None, 5, {}])
def test_a_time_that_cannot_be_makes_the_answer_unusable_and_takes_no_other_ones_place(time):
    bad, good = read(CHOICE, id=8, updated_at=time), read(CHOICE)
    assert (bad.outcome, bad.annotation) == ("invalid", None)
    assert current([bad, good]) == [good]


@pytest.mark.parametrize("person", [None, "1", True, 99, {"id": 1}, {"email": "x"}, []])
def test_an_answer_of_somebody_unknown_is_an_answer(person):
    assert read(CHOICE, completed_by=person).outcome == "labelled"


@pytest.mark.parametrize("annotation", [None, 5, "text", [], {}, {"id": None}, {"id": "x"}, {"id": 2**63}])
def test_what_nobody_could_tell_from_another_answer_is_none(annotation):
    answer = read_answer(annotation, ask=ASK, task_id=3, classes=CLASSES, emails={})
    assert answer is None


@settings(deadline=None)
@given(ANNOTATIONS)
def test_whatever_comes_the_ledger_can_be_written_and_read(annotation):
    answer = read_answer(annotation, ask=ASK, task_id=3, classes=CLASSES, emails={1: "ann@lab"})
    is_copied(annotation)
    is_skip(annotation)
    if answer is not None:
        table = answers_to_table([answer])
        assert answers_from_table(table) == [answer]
        assert current([answer]) == [answer]


@settings(deadline=None)
@given(
    JSON | st.fixed_dictionaries({"id": st.integers() | JSON, "data": JSON, "annotations": JSON, "predictions": JSON})
)
def test_whatever_comes_for_a_task_is_a_task_or_refused(task):
    try:
        held = HeldTask.model_validate(task)
    except ValidationError:
        return
    assert 0 < held.id < 2**63


@pytest.mark.parametrize(
    ("annotation", "is_one"),
    [
        ({"lead_time": None, "parent_prediction": 4}, True),
        ({"lead_time": None, "parent_annotation": 4}, True),
        ({"lead_time": 0.7, "parent_prediction": 4}, False),
        ({"lead_time": None}, False),
        ({"lead_time": None, "parent_prediction": None}, False),
        (None, False),
    ],
)
def test_a_copy_is_told_by_its_origin_and_by_the_time_that_nobody_took(annotation, is_one):
    assert is_copied(annotation) is is_one
