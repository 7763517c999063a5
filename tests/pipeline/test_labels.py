import dataclasses
from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings

from pipeline.labels.answers import (
    answers_from_table,
    answers_to_table,
    current,
    digest,
    labelled_set,
    reconcile,
    set_aside,
)
from pipeline.regions import regions_from_json, regions_in_words
from pipeline.tasks import classification
from pipeline.types import Annotation, Answer, Ask, Region

CLASSES = ("cat", "dog", "NA")
property_test = settings(max_examples=50, deadline=None)


def asked(item_id, round_number=1):
    return Ask(item_id, round_number, "seed" if round_number == 0 else "query")


TASKS = {asked(f"i{number}", round_number): number for number in range(4) for round_number in (0, 1)}


def answer(answer_id, item_id="i1", *, label=None, outcome=None, who="ann", time="2026-01-01T00:00:00Z", **fields):
    seconds = fields.pop("seconds", None)
    annotation = Annotation(item_id, (Region("image", label),), who, seconds) if label else None
    return Answer(
        ask=asked(item_id, fields.pop("round_number", 1)),
        task_id=fields.pop("task_id", int(item_id[1:])),
        answer_id=answer_id,
        outcome=outcome or ("labelled" if label else "skipped"),
        annotator=who,
        updated_at=time,
        annotation=annotation,
        seconds=seconds,
        message=fields.pop("message", ""),
    )


def labelled(answers, **given):
    return labelled_set(answers, classification, classes=CLASSES, **given)


def words(table):
    return [regions_in_words(regions_from_json(text)) for text in table["regions"]]


def label_of(answers, item_id="i1"):
    table = labelled(answers)
    return dict(zip(table["item_id"], words(table), strict=True)).get(item_id)


@st.composite
def standing_answers(draw):
    """What a tool may hold at one moment: an answer keeps its item, all else may change between moments."""
    ids = draw(st.sets(st.integers(1, 12), max_size=8))
    return [
        answer(
            number,
            f"i{number % 4}",
            label=draw(st.sampled_from([None, *CLASSES])),
            who=draw(st.sampled_from(["ann", "bob", "zoë"])),
            time=f"2026-01-01T00:00:{draw(st.integers(0, 59)):02d}Z",
            round_number=number % 2,
            seconds=draw(st.none() | st.floats(0, 1e6)),
            message=draw(st.sampled_from(["", "why", 'ž\n,"'])),
        )
        for number in sorted(ids)
    ]


def collect(moments, *, task_ids=TASKS):
    ledger = []
    for pulled in moments:
        ledger += reconcile(ledger, pulled, task_ids=task_ids)
    return ledger


class TestTable:
    @property_test
    @given(standing_answers())
    def test_gives_back_what_it_was_given(self, answers):
        assert answers_from_table(answers_to_table(answers)) == answers

    def test_keeps_every_outcome_through_a_parquet_file(self, tmp_path):
        answers = [
            answer(1, label="cat", seconds=1.25),
            answer(2, label="NA", who="zoë", seconds=None),
            *(answer(3, outcome=outcome, message="why") for outcome in ("skipped", "empty", "invalid", "deleted")),
        ]
        answers_to_table(answers).to_parquet(tmp_path / "answers.parquet", index=False)
        read = answers_from_table(pd.read_parquet(tmp_path / "answers.parquet"))
        assert read == answers
        numbers = (read[0].round_number, read[0].task_id, read[0].answer_id)
        assert [type(number) for number in numbers] == [int, int, int]

    def test_of_no_answers_has_the_columns_and_types_of_one_with_answers(self):
        empty, full = answers_to_table([]), answers_to_table([answer(1, label="cat", seconds=1.0)])
        pd.testing.assert_series_equal(empty.dtypes, full.dtypes)
        assert answers_from_table(empty) == []

    @pytest.mark.parametrize(
        "regions",
        [(), (Region("image", "cat"), Region("image", "dog")), (Region("box", "zoë", (0.0, 0.25, 0.5, 1.0), 0.75),)],
    )
    def test_keeps_however_many_regions_an_answer_has(self, regions, tmp_path):
        one = answer(7, label="cat")
        given = [dataclasses.replace(one, annotation=dataclasses.replace(one.annotation, regions=regions))]
        answers_to_table(given).to_parquet(tmp_path / "answers.parquet", index=False)
        assert answers_from_table(pd.read_parquet(tmp_path / "answers.parquet")) == given

    def test_refuses_an_annotation_that_contradicts_its_answer(self):
        other = dataclasses.replace(answer(7, label="cat").annotation, annotator="bob")
        with pytest.raises(ValueError, match="answer 7 does not fit the columns"):
            answers_to_table([dataclasses.replace(answer(7, label="cat"), annotation=other)])


class TestReconcile:
    def test_adds_new_answers_once(self):
        pulled = [answer(1, label="cat"), answer(2, "i2")]
        assert collect([pulled]) == pulled
        assert collect([pulled, pulled, pulled]) == pulled

    @pytest.mark.parametrize(
        "edited",
        [
            answer(1, label="dog"),
            answer(1, label="cat", time="2026-01-02T00:00:00Z"),
            answer(1, outcome="empty"),
            answer(1, outcome="invalid", message="no class of that name"),
        ],
    )
    def test_adds_an_edited_answer(self, edited):
        first = answer(1, label="cat")
        assert collect([[first], [edited]]) == [first, edited]

    def test_records_that_an_answer_was_deleted_and_later_restored(self):
        first = answer(1, label="cat")
        ledger = collect([[first], []])
        assert [record.outcome for record in ledger] == ["labelled", "deleted"]
        assert label_of(ledger) is None
        assert label_of(collect([[first], [], [first]])) == "cat"

    def test_keeps_the_labels_of_a_task_that_was_deleted(self):
        ledger = [answer(1, label="cat", task_id=10), answer(2, "i2", label="dog", task_id=20)]
        new = reconcile(ledger, [], task_ids={asked("i2"): 20})
        assert [(record.answer_id, record.outcome) for record in new] == [(2, "deleted")]
        assert label_of(ledger + new) == "cat"

    def test_leaves_rounds_alone_that_were_not_pulled(self):
        ledger = [answer(1, label="cat", round_number=1), answer(2, label="cat", round_number=2)]
        new = reconcile(ledger, [], task_ids={asked("i1", 2): 1})
        assert [record.answer_id for record in new] == [2]

    def test_keeps_a_label_whose_numbers_the_tool_gave_away_again(self):
        ledger = [answer(1, label="cat", task_id=10)]
        reused = answer(1, "i2", label="dog", task_id=10)
        ledger += reconcile(ledger, [reused], task_ids={asked("i2"): 10})
        assert (label_of(ledger), label_of(ledger, "i2")) == ("cat", "dog")

    def test_keeps_the_label_of_a_deleted_task_whose_image_is_asked_for_again(self):
        ledger = [answer(1, label="cat", task_id=10)]
        assert reconcile(ledger, [], task_ids={asked("i1", 2): 30}) == []

    def test_records_that_an_answer_was_withdrawn_though_its_image_was_asked_for_again(self):
        ledger = [answer(1, label="cat", task_id=10)]
        new = reconcile(ledger, [], task_ids={asked("i1"): 10, asked("i1", 2): 30})
        assert [(record.answer_id, record.outcome) for record in new] == [(1, "deleted")]

    @property_test
    @given(st.lists(standing_answers(), max_size=4))
    def test_finds_nothing_new_the_second_time(self, moments):
        ledger = collect(moments)
        again = reconcile(ledger, moments[-1] if moments else [], task_ids=TASKS)
        assert again == []

    @property_test
    @given(st.lists(standing_answers(), min_size=1, max_size=4))
    def test_brings_the_ledger_to_what_stands_in_the_tool(self, moments):
        assert current(collect(moments)) == current(moments[-1])

    @property_test
    @given(st.lists(standing_answers(), min_size=1, max_size=4))
    def test_brings_the_same_through_tables(self, moments):
        ledger = []
        for pulled in moments:
            new = reconcile(ledger, pulled, task_ids=TASKS)
            ledger = answers_from_table(answers_to_table(ledger + new))
        assert ledger == collect(moments)


class TestCurrent:
    def test_keeps_the_latest_answer_of_each_annotator_by_time_not_by_text(self):
        early = answer(9, label="cat", time="2026-01-01T12:00:00+02:00")
        late = answer(1, label="dog", time="2026-01-01T11:00:00.5Z")
        other = answer(2, label="cat", who="bob")
        assert current([late, early, other]) == [late, other]

    def test_sorts_a_whole_second_before_its_fractions(self):
        whole = answer(9, label="cat", time="2026-01-01T00:00:00Z")
        fraction = answer(1, label="dog", time="2026-01-01T00:00:00.5Z")
        assert current([fraction, whole]) == [fraction]

    def test_goes_back_to_the_earlier_answer_when_the_later_is_deleted(self):
        early = answer(1, label="cat")
        late = answer(2, label="dog", time="2026-01-02T00:00:00Z")
        assert current(collect([[early, late], [early]], task_ids={asked("i1"): 1})) == [early]

    @property_test
    @given(standing_answers())
    def test_changes_nothing_when_applied_again(self, answers):
        assert current(current(answers)) == current(answers)


class TestLabelledSet:
    def test_takes_the_label_of_most_annotators(self):
        answers = [
            answer(1, label="cat", who="a"),
            answer(2, label="dog", who="b"),
            answer(3, label="dog", who="c"),
            answer(4, who="d"),
            answer(5, "i0", label="NA"),
        ]
        table = labelled(answers)
        common = {"source": "annotators"}
        assert table.assign(regions=words(table)).to_dict("records") == [
            {"item_id": "i0", "regions": "NA", "n_answers": 1, "agreement": 1.0, **common},
            {"item_id": "i1", "regions": "dog", "n_answers": 3, "agreement": 2 / 3, **common},
        ]

    def test_breaks_a_tie_by_the_label_given_first(self):
        answers = [
            answer(1, label="cat", who="a", time="2026-01-03T00:00:00Z"),
            answer(2, label="dog", who="b", time="2026-01-02T00:00:00Z"),
        ]
        assert label_of(answers) == label_of(answers[::-1]) == "dog"

    def test_lets_an_annotator_overrule_the_manifest(self):
        table = labelled(
            [answer(1, label="cat"), answer(2, "i2")],
            prelabelled={"i1": "dog", "i2": "dog", "i0": "cat"},
        )
        assert table["item_id"].tolist() == ["i0", "i1", "i2"]
        assert words(table) == ["cat", "cat", "dog"]
        assert table["source"].tolist() == ["manifest", "annotators", "manifest"]
        assert table["n_answers"].tolist() == [0, 1, 0]
        np.testing.assert_equal(table["agreement"].to_numpy(), [np.nan, 1.0, np.nan])

    def test_is_empty_without_labels_with_the_same_types(self):
        empty, full = (labelled([answer(1, label=label)]) for label in (None, "cat"))
        assert empty.empty
        pd.testing.assert_series_equal(empty.dtypes, full.dtypes)

    def test_refuses_a_label_that_is_not_a_class(self):
        with pytest.raises(ValueError, match="item i1 has the label 'cow'; the classes are cat, dog, NA"):
            labelled([answer(1, label="cow")])
        with pytest.raises(ValueError, match="item i9 has the label 'cow'"):
            labelled([], prelabelled={"i9": "cow"})

    def test_refuses_an_answer_with_two_labels(self):
        two = answer(7, label="cat")
        annotation = dataclasses.replace(two.annotation, regions=2 * two.annotation.regions)
        with pytest.raises(ValueError, match="wanted one label for the whole image"):
            labelled([dataclasses.replace(two, annotation=annotation)])

    @property_test
    @given(st.lists(standing_answers(), min_size=1, max_size=4))
    def test_loses_no_label_that_its_annotator_has_not_withdrawn(self, moments):
        last_word = {}
        for standing in sorted(moments[-1], key=lambda a: (a.updated_at, a.answer_id)):
            last_word[standing.item_id, standing.annotator] = standing.outcome
        wanted = {item_id for (item_id, _), outcome in last_word.items() if outcome == "labelled"}
        assert set(labelled(collect(moments))["item_id"]) == wanted

    @property_test
    @given(st.lists(standing_answers(), min_size=1, max_size=3), standing_answers())
    def test_loses_nothing_when_all_tasks_are_deleted(self, moments, other):
        before = collect(moments)
        gone = before + reconcile(before, [], task_ids={})
        pd.testing.assert_frame_equal(labelled(gone), labelled(before))

    @property_test
    @given(standing_answers(), st.randoms(use_true_random=False))
    def test_agrees_with_a_plain_count_in_any_order_of_answers(self, answers, random):
        shuffled = random.sample(answers, len(answers))
        table = labelled(shuffled)
        pd.testing.assert_frame_equal(table, labelled(answers))
        for row, label in zip(table.itertuples(), words(table), strict=True):
            votes = Counter(
                a.annotation.regions[0].label
                for a in current(answers)
                if a.item_id == row.item_id and a.outcome == "labelled"
            )
            assert votes[label] == max(votes.values())
            assert row.agreement == votes[label] / row.n_answers
            assert row.n_answers == votes.total()


class TestSetAside:
    @pytest.mark.parametrize("outcome", ["skipped", "empty", "invalid"])
    def test_holds_what_was_answered_without_a_label(self, outcome):
        answers = [answer(1, outcome=outcome), answer(2, "i2", label="cat")]
        assert set_aside(answers) == {"i1"}

    def test_leaves_out_what_somebody_labelled(self):
        assert set_aside([answer(1), answer(2, label="cat", who="bob")]) == frozenset()

    def test_leaves_out_what_was_withdrawn(self):
        assert set_aside(collect([[answer(1)], []])) == frozenset()

    @property_test
    @given(st.lists(standing_answers(), max_size=3))
    def test_shares_no_item_with_the_labelled_set(self, moments):
        ledger = collect(moments)
        items = set(labelled(ledger)["item_id"])
        assert items | set_aside(ledger) == {a.item_id for a in current(ledger)}
        assert not items & set_aside(ledger)


class TestDigest:
    def test_does_not_depend_on_the_order_of_the_rows(self):
        table = labelled([], prelabelled={"i1": "cat", "i2": "dog", "i3": "cat"})
        assert digest(table) == digest(table.iloc[::-1]) == digest(table.sample(frac=1, random_state=0))
        assert len(digest(table)) == 32

    def test_depends_on_who_has_which_label(self):
        sets = [{}, {"i1": "cat"}, {"i1": "dog"}, {"i2": "cat"}, {"i1": "cat", "i2": "dog"}]
        sets += [{"i1": "dog", "i2": "cat"}, {"i1i2": "cat"}]
        digests = {digest(labelled([], prelabelled=labels)) for labels in sets}
        assert len(digests) == len(sets)

    def test_does_not_depend_on_how_many_agreed(self):
        one = labelled([answer(1, label="cat")])
        two = labelled([answer(1, label="cat"), answer(2, label="cat", who="bob")])
        assert digest(one) == digest(two)
