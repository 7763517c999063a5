"""What every annotation tool must do; `People` answer in it."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np
import pytest

from connectors.annotation import AnnotationTool, Asked, Progress, ProjectMismatch, Pulled, PushMismatch, Question
from pipeline.labels.answers import reconcile
from pipeline.masks import mask_to_png
from pipeline.types import Answer, Ask, AskFor, Purpose, Region

IMAGE_SIZE = 64
CLASSES = ("cat", "$1", '<b>"R&D"</b>')

REGIONS = (
    Region("image", "cat"),
    Region("image", CLASSES[2]),
    Region("box", CLASSES[2], (0.125, 0.25, 0.5, 1.0)),
    Region("box", "cat", (0.0, 0.0, 0.75, 0.5)),
    Region("polygon", "cat", (0.125, 0.25, 0.5, 0.25, 0.5, 1.0)),
    Region("mask", CLASSES[1], mask=mask_to_png(np.tri(IMAGE_SIZE, dtype=bool))),
    Region("mask", "cat", mask=mask_to_png(np.eye(IMAGE_SIZE, dtype=bool))),
)
"""Of every kind, for images of `IMAGE_SIZE`."""


class People(Protocol):
    """Those who answer in a tool."""

    tool: AnnotationTool
    uris: tuple[str, ...]

    def answer(self, task_id: int, label: str) -> int:
        """Answer a task; return the answer's id."""

    def mark(self, task_id: int, *regions: Region) -> None:
        """Answer a task with regions; without any, say that there is nothing."""

    def skip(self, task_id: int) -> None:
        """Skip a task."""

    def change(self, answer_id: int, label: str) -> None:
        """Give an answer another label."""

    def take_back(self, answer_id: int) -> None:
        """Delete an answer."""

    def delete(self, task_id: int) -> None:
        """Delete a task."""

    def lose(self) -> None:
        """Lose the project with all that is in it; `tool` has another server from then on, or an empty one."""

    def label(self, truth: Mapping[str, str], n: int | None = None) -> list[str]:
        """Answer what is served, one after the other; return the items in that order."""


class AnnotationContract:
    """Tests of a tool; the fixtures `people` and `people_of`, for what they are asked, are those of who inherits."""

    def test_a_project_is_prepared_again_and_again(self, people):
        assert people.tool.prepare() == people.tool.prepare()

    def test_pushing_again_makes_nothing_twice_and_adds_what_is_missing(self, people):
        first = push(people, batch(people, 2))
        again = push(people, batch(people, 3))
        added = ask("1.2")
        assert again == first | {added: again[added]}
        assert list(again) == [question.ask for question in batch(people, 3)]
        assert push(people, batch(people, 3)) == again
        assert len(set(again.values())) == 3
        with pytest.raises(PushMismatch, match="that this campaign did not select"):
            push(people, batch(people, 2))

    def test_an_empty_batch_asks_nothing(self, people):
        assert push(people, []) == {}
        pulled = people.tool.pull({})
        assert (list(pulled.answers), pulled.task_ids) == ([], {})

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            ({"ask": Ask("1.1", 1, "query")}, "item 1.1 is in the batch twice"),
            ({"ask": Ask("1.0", 2, "query")}, "belongs to round 1, not 2|belongs to round 2, not 1"),
            ({"rank": -1}, "rank counts from 0"),
            ({"guess": (Region("image", "owl"),)}, "one of cat, .* got 'owl'"),
            ({"guess": (Region("box", "cat", (0.0, 0.0, 1.0, 1.0)),)}, "for the whole image"),
            ({"columns": {"uncertainty": float("nan")}}, "not a finite number"),
        ],
    )
    def test_a_batch_that_cannot_be_shown_is_refused_whole(self, people, change, complaint):
        fields = {"ask": ask("1.0"), "uri": people.uris[0], "rank": 0} | change
        with pytest.raises(ValueError, match=complaint):
            push(people, [Question(**fields), *batch(people, 3)[1:]])
        assert people.label({}) == []

    def test_the_most_wanted_of_the_newest_round_comes_first(self, people):
        first = push(people, [batch(people, 3)[place] for place in (2, 0, 1)])
        truth = {f"{number}.{rank}": "cat" for number in (1, 2) for rank in range(3)}
        assert people.label(truth, 1) == ["1.0"]
        push(people, batch(people, 2, number=2), asked=first)
        assert people.label(truth, 2) == ["2.0", "2.1"]
        assert sorted(people.label(truth)) == ["1.1", "1.2"]

    @pytest.mark.parametrize("purpose", ["seed", "audit", "query", "control", "review", "gold"])
    def test_an_answer_names_its_ask_with_who_and_how_long(self, people, purpose):
        task_ids = push(people, batch(people, 2, purpose=purpose))
        asked = ask("1.1", purpose=purpose)
        answer_id = people.answer(task_ids[asked], CLASSES[2])
        [answer] = people.tool.pull(task_ids).answers
        assert (answer.ask, answer.task_id, answer.answer_id) == (asked, task_ids[asked], answer_id)
        assert (answer.outcome, answer.annotation.regions) == ("labelled", (Region("image", CLASSES[2]),))
        assert answer.annotator == answer.annotation.annotator != ""
        assert answer.seconds == answer.annotation.seconds == 2.5

    def test_classes_of_any_name_come_back_as_they_are(self, people):
        task_ids = push(people, batch(people, len(CLASSES), guess=CLASSES[1]))
        truth = {f"1.{rank}": label for rank, label in enumerate(CLASSES)}
        people.label(truth)
        answers = people.tool.pull(task_ids).answers
        assert {answer.item_id: answer.annotation.regions[0].label for answer in answers} == truth

    def test_a_guess_is_no_answer(self, people):
        task_ids = push(people, batch(people, guess="cat"))
        pulled = people.tool.pull(task_ids)
        assert (list(pulled.answers), pulled.task_ids, pulled.notes) == ([], task_ids, ())

    def test_a_skip_is_an_answer_without_a_label_and_one_that_is_taken_back_is_gone(self, people):
        task_ids = push(people, batch(people, 2))
        answer_id = people.answer(task_ids[ask("1.0")], "cat")
        people.skip(task_ids[ask("1.1")])
        people.take_back(answer_id)
        [skipped] = people.tool.pull(task_ids).answers
        assert (skipped.ask, skipped.outcome, skipped.annotation) == (ask("1.1"), "skipped", None)
        assert people.tool.pull(task_ids).task_ids == task_ids

    def test_an_item_of_two_rounds_is_asked_twice_and_its_answers_are_told_apart(self, people):
        first = push(people, batch(people, 1))
        again = push(people, [Question(ask("1.0", number=2), people.uris[0], 0)], asked=first)
        assert set(first.values()).isdisjoint(again.values())
        people.answer(first[ask("1.0")], "cat")
        people.answer(again[ask("1.0", number=2)], CLASSES[1])
        answers = people.tool.pull(first | again).answers
        assert {answer.round_number: answer.annotation.regions[0].label for answer in answers} == {
            1: "cat",
            2: CLASSES[1],
        }
        assert [answer.round_number for answer in people.tool.pull(first).answers] == [1]

    def test_a_look_that_goes_on_from_another_misses_nothing(self, people):
        asked = push(people, batch(people, 6))
        ids = [asked[ask(f"1.{rank}")] for rank in range(6)]
        _, changed, deleted = (people.answer(task_id, "cat") for task_id in ids[:3])
        first = people.tool.pull(asked)
        assert (first.is_whole, len(first.answers)) == (True, 3)
        asked |= push(people, batch(people, 2, number=2), asked=asked)
        people.change(changed, CLASSES[1])
        people.skip(ids[3])
        people.answer(ids[0], CLASSES[2])  # a second opinion
        people.answer(asked[ask("2.1", number=2)], "cat")
        people.take_back(deleted)
        people.delete(ids[4])
        there = set(asked) - {ask("1.4")}

        since, whole = people.tool.pull(asked, since=first.mark), people.tool.pull(asked)
        assert set(whole.task_ids) == there
        assert news(first, since) == news(first, whole)
        outcomes = {one.answer_id: one.outcome for one in news(first, since)}
        assert (outcomes[changed], outcomes[deleted], len(outcomes)) == ("labelled", "deleted", 5)
        unanswered = {ask("1.2"), ask("1.5"), ask("2.0", number=2)}
        assert unanswered <= since.task_ids.keys() <= there, "what is there and nobody answered is always named"
        again = people.tool.pull(asked, since=since.mark)
        assert news(whole, again) == []
        assert unanswered <= again.task_ids.keys()
        assert people.tool.pull(asked, since="of another tool").is_whole

    def test_tending_counts_and_leaves_alone_what_is_whole(self, people):
        questions = batch(people, 4)
        task_ids = push(people, questions)
        people.answer(task_ids[ask("1.0")], "cat")
        people.answer(task_ids[ask("1.1")], "cat")
        people.skip(task_ids[ask("1.2")])
        tended = people.tool.tend([Asked(1, questions, "m", task_ids)], asked=task_ids)
        assert (tended.progress, tended.task_ids, tended.mended) == (Progress(4, 2, 1), task_ids, ())
        assert len(tended.standing.answers) == 3

    def test_a_task_that_was_deleted_stays_deleted(self, people):
        questions = batch(people, 3)
        task_ids = push(people, questions)
        people.delete(task_ids[ask("1.1")])
        tended = people.tool.tend([Asked(1, questions, "m", task_ids)], asked=task_ids)
        assert tended.progress == Progress(2, 0, 0)
        assert people.tool.pull(task_ids).task_ids.keys() == {ask("1.0"), ask("1.2")}

    @pytest.mark.parametrize("kind", ["image", "box", "polygon", "mask"])
    def test_regions_of_every_kind_come_back_and_so_does_that_there_are_none(self, people_of, kind):
        people = people_of(AskFor(kind, several=True))
        regions = tuple(region for region in REGIONS if region.kind == kind)
        guess = tuple(replace(region, score=0.5) for region in regions)
        guesses = [guess, (), None]
        asked = batch(people, 3)
        task_ids = push(people, [replace(one, guess=guess) for one, guess in zip(asked, guesses, strict=True)])
        people.mark(task_ids[ask("1.0")], *regions)
        people.mark(task_ids[ask("1.1")])
        people.skip(task_ids[ask("1.2")])
        answers = {answer.item_id: answer for answer in people.tool.pull(task_ids).answers}
        found = answers["1.0"].annotation.regions
        assert [(one.kind, one.label, one.mask, one.score) for one in found] == [
            (one.kind, one.label, one.mask, None) for one in regions
        ]
        for one, came in zip(regions, found, strict=True):
            assert came.geometry == pytest.approx(one.geometry)
        assert answers["1.1"].annotation.regions == ()
        assert answers["1.2"].outcome == "skipped"

    @pytest.mark.parametrize("kind", ["image", "box", "polygon", "mask"])
    def test_a_guess_of_another_kind_is_refused(self, people_of, kind):
        people = people_of(AskFor(kind, several=True))
        for other in REGIONS:
            if other.kind != kind:
                with pytest.raises(ValueError, match=f"got a region of kind '{other.kind}'"):
                    push(people, [replace(batch(people, 1)[0], guess=(other,))])

    def test_a_look_finds_all_well_and_changes_nothing(self, people):
        assert {finding.status for finding in people.tool.check([])} == {"ok"}
        questions = batch(people, 2)
        task_ids = push(people, questions)
        people.answer(task_ids[ask("1.0")], "cat")
        asked = [Asked(1, questions, "m", task_ids)]
        before = people.tool.pull(task_ids)
        assert {finding.status for finding in people.tool.check(asked)} == {"ok"}
        assert people.tool.pull(task_ids) == before
        assert people.tool.tend(asked, asked=task_ids).mended == ()

    @pytest.mark.parametrize("kind", ["image", "box", "mask"])
    def test_what_was_saved_comes_back_in_another_project_once_with_who_and_when(self, people_of, kind):
        people = people_of(AskFor(kind, several=True))
        regions = tuple(region for region in REGIONS if region.kind == kind)
        guess = tuple(replace(region, score=0.5) for region in regions)
        questions = [replace(one, guess=guess) for one in batch(people, 4)]
        before = push(people, questions)
        people.mark(before[ask("1.0")], *regions)
        people.mark(before[ask("1.1")])
        people.skip(before[ask("1.2")])
        later = [replace(batch(people, 1, number=2)[0], guess=None)]
        before |= push(people, later, asked=before)
        answers = people.tool.pull(before).answers
        saved = json.loads(json.dumps(list(people.tool.save(before))))
        uris = {question.item_id: question.uri for question in (*questions, *later)}
        assert people.tool.restore(saved, asked=before, uris=uris) is None, "the project is still there"

        people.lose()
        restored = people.tool.restore(iter(saved), asked=before, uris=uris)
        assert people.tool.restore(saved, asked=before, uris=uris) == replace(restored, was_there=True)
        assert restored.address == people.tool.prepare()
        assert restored.task_ids.keys() == {*before.values()}
        after = {ask: restored.task_ids[task_id] for ask, task_id in before.items()}
        again = people.tool.pull(after)
        assert again.task_ids == after
        moved = [replace(one, task_id=after[one.ask], answer_id=restored.answer_ids[one.answer_id]) for one in answers]
        assert sorted(again.answers, key=lambda one: one.answer_id) == sorted(moved, key=lambda one: one.answer_id)
        assert sorted(after.values()) == [after[ask] for ask, _ in sorted(before.items(), key=lambda pair: pair[1])]
        assert push(people, questions) == {one.ask: after[one.ask] for one in questions}, "nothing is asked twice"
        rounds = [
            Asked(some[0].ask.round_number, some, "m", {one.ask: after[one.ask] for one in some})
            for some in (questions, later)
        ]
        assert people.tool.tend(rounds, asked=after).mended == ()

    def test_a_project_that_was_restored_already_stays_as_people_have_it_since(self, people):
        before = push(people, batch(people, 5))
        given = [people.answer(before[ask(f"1.{rank}")], "cat") for rank in range(3)]
        saved = list(people.tool.save(before))
        people.lose()
        uris = {question.item_id: question.uri for question in batch(people, 5)}
        first = people.tool.restore(saved, asked=before, uris=uris)
        after = {ask: first.task_ids[task_id] for ask, task_id in before.items()}
        changed, deleted, kept = (first.answer_ids[answer_id] for answer_id in given)
        people.change(changed, CLASSES[1])
        people.answer(after[ask("1.3")], "cat")
        people.take_back(deleted)
        people.delete(after[ask("1.4")])
        now = people.tool.pull(after)

        again = people.tool.restore(saved, asked=before, uris=uris)
        assert again.was_there
        assert people.tool.pull(after) == now, "nothing is added, set back or taken away"
        assert again.answer_ids == {given[0]: changed, given[2]: kept}
        assert again.task_ids == {old: new for old, new in first.task_ids.items() if new != after[ask("1.4")]}

    def test_a_project_with_tasks_of_others_is_not_restored_into(self, people):
        before = push(people, batch(people, 2))
        saved = list(people.tool.save(before))
        people.lose()
        people.tool.prepare()
        push(people, batch(people, 1, number=7))
        with pytest.raises(ProjectMismatch):
            people.tool.restore(saved, asked=before, uris={})
        assert people.label({"7.0": "cat"}) == ["7.0"], "it has what it had, and nothing else"

    def test_each_task_has_an_address_of_its_own(self, people):
        task_ids = push(people, batch(people, 2))
        assert len({people.tool.task_address(task_id) for task_id in task_ids.values()}) == 2


def news(known: Pulled, pulled: Pulled) -> list[Answer]:
    """What a look adds to what an earlier one saw."""
    added = reconcile(known.answers, pulled.answers, task_ids=pulled.task_ids)
    return sorted(added, key=lambda one: one.answer_id)


def ask(item_id: str, *, number: int = 1, purpose: Purpose = "query") -> Ask:
    return Ask(item_id, number, purpose)


def batch(
    people: People, n: int = 3, *, number: int = 1, purpose: Purpose = "query", guess: str | None = "cat"
) -> list[Question]:
    """`n` questions of a round, most wanted first; every item of round r is named "r.position"."""
    return [
        Question(
            ask(f"{number}.{rank}", number=number, purpose=purpose),
            people.uris[rank % len(people.uris)],
            rank,
            (Region("image", guess, score=0.5),) if guess else None,
            reason="many images are like it",
            columns={"uncertainty": 0.5},
        )
        for rank in range(n)
    ]


def push(people: People, questions: list[Question], *, asked: Mapping[Ask, int] | None = None) -> dict[Ask, int]:
    return people.tool.push(questions, model_version="m", asked=asked or {})
