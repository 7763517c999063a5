"""What rounds add up to, from records alone: labels paid for, tasks that are out, images that may be asked for."""

import pandas as pd
import pytest

from pipeline.labels.ledger import Ledger, RoundOfLedger, count_labels
from pipeline.tables import PoolTable
from pipeline.tasks import classification, multi_label
from pipeline.types import Annotation, Answer, Ask, Region

CLASSES = ("cat", "dog")


def tasks(number: int, *items: str) -> dict[Ask, int]:
    return {Ask(item, number, "query"): 10 * number + place for place, item in enumerate(items)}


def answer(item_id, label=None, *, number=0, outcome=None, answer_id=1, minute=0) -> Answer:
    given = Annotation(item_id, (Region("image", label),), "ann") if label else None
    time = f"2026-01-01T00:{minute:02d}:00+00:00"
    outcome = outcome or ("labelled" if label else "skipped")
    return Answer(Ask(item_id, number, "query"), 1, answer_id, outcome, "ann", time, given)


def one(number: int, *items: str, answers=None, **more) -> RoundOfLedger:
    return RoundOfLedger(number, tasks(number, *items), answers=answers, **more)


def pool(**columns) -> PoolTable:
    """Images a, b, c and d; d measures."""
    table = pd.DataFrame({"item_id": list("abcd"), "uri": [f"{name}.png" for name in "abcd"]})
    given = {"split": ["pool"] * 3 + ["audit"], "label": None, "set_aside_reason": None, "group": None}
    return PoolTable(table.assign(**given | columns))


def asked(ledger: Ledger, split="pool", *, classes=CLASSES, of=None) -> list[str]:
    return ledger.may_be_asked(of or pool(), split=split, classes=classes)["item_id"].tolist()


def test_campaign_without_rounds_has_everything_before_it():
    ledger = Ledger()
    assert (ledger.answers, ledger.asked_tasks, ledger.asked_items) == ([], {}, {})
    assert (ledger.n_labels_paid, ledger.n_outstanding, ledger.budget_left(7)) == (0, 0, 7)
    assert ledger.seconds_to_batch() is None
    assert (asked(ledger), asked(ledger, "audit")) == (["a", "b", "c"], ["d"])


def test_image_of_which_only_positives_are_known_may_be_asked_for_until_people_answer():
    given = pool(label=["cat|?", "cat", None, None])
    assert asked(Ledger(), of=given) == ["a", "c"]
    answered = Ledger([one(0, "a", answers=[answer("a", "cat")])])
    assert asked(answered, of=given) == ["c"]
    labels = answered.labels(given, multi_label, classes=CLASSES)
    told = dict(zip(labels.item_ids, labels.words, strict=True))
    assert told == {"a": "cat", "b": "cat"}, "what people answer wins"
    before = Ledger().labels(given, multi_label, classes=CLASSES)
    assert before.words == ["cat; perhaps others", "cat"]
    assert before.complete.item_ids == ["b"]


def test_label_is_paid_for_once_and_a_task_that_is_out_may_still_cost_one():
    ledger = Ledger([one(0, "a", "b", "c", answers=[answer("a", "cat"), answer("b", answer_id=2)]), one(1, "d")])
    assert ledger.n_labels_paid == 1
    assert ledger.n_outstanding == 2, "c and d; b was skipped"
    assert (ledger.budget_left(10), ledger.budget_left(2)) == (7, 0)
    assert ledger.rounds_out() == [0, 1]
    assert ledger.asked_tasks == tasks(0, "a", "b", "c") | tasks(1, "d")


def test_two_people_who_label_one_image_are_one_label():
    first, second = answer("a", "cat"), answer("a", "dog", answer_id=2)
    other = Answer(second.ask, 1, 2, "labelled", "bob", second.updated_at, second.annotation)
    assert Ledger([one(0, "a", answers=[first, other])]).n_labels_paid == 1
    assert count_labels([first, other]) == {"cat": 1, "dog": 1}


def marked(item_id, n_regions, *, annotator="ann", answer_id=1) -> Answer:
    regions = tuple(Region("box", "cat", (0.1 * place, 0.0, 0.1 * place + 0.1, 0.5)) for place in range(n_regions))
    found = Annotation(item_id, regions, annotator)
    time = "2026-01-01T00:00:00+00:00"
    return Answer(Ask(item_id, 0, "query"), 1, answer_id, "labelled", annotator, time, found)


def test_budget_in_regions_pays_for_fewer_images_the_more_they_hold():
    few = Ledger([one(0, "a", "b", answers=[marked("a", 1), marked("b", 2, answer_id=2)])])
    many = Ledger([one(0, "a", "b", answers=[marked("a", 5), marked("b", 2, answer_id=2)])])
    assert (few.n_regions_paid, many.n_regions_paid) == (3, 7)
    assert (few.budget_left(20, "regions"), many.budget_left(20, "regions")) == (11, 3), "of 1.5 and of 3.5 regions"
    assert few.budget_left(20) == many.budget_left(20) == 18
    assert many.budget_left(7, "regions") == many.budget_left(6, "regions") == 0
    assert Ledger().budget_left(20, "regions") == 20, "before there is a label, one region an image"


def test_task_that_is_out_is_taken_off_a_budget_in_regions_at_the_mean_of_the_labels():
    ledger = Ledger([one(0, "a", "b", "c", answers=[marked("a", 4)])])
    assert ledger.budget_left(20, "regions") == 2, "16 regions are left, and c and b take 8 of them"


def test_image_in_which_nothing_is_found_costs_one_region_and_of_several_people_the_most_counts():
    assert Ledger([one(0, "a", answers=[marked("a", 0)])]).n_regions_paid == 1
    both = [marked("a", 2), marked("a", 3, annotator="bob", answer_id=2)]
    assert Ledger([one(0, "a", answers=both)]).regions_paid == {"a": 3}
    skipped = answer("b", answer_id=5)
    assert Ledger([one(0, "a", "b", answers=[*both, skipped])]).n_regions_paid == 3, "a skip costs nothing"


def test_label_that_was_withdrawn_is_paid_for_no_more_and_its_task_is_out_again():
    rounds = [one(0, "a", answers=[answer("a", "cat")]), one(1, answers=[answer("a", outcome="deleted", minute=1)])]
    assert (Ledger(rounds[:1]).n_labels_paid, Ledger(rounds[:1]).n_outstanding) == (1, 0)
    assert (Ledger(rounds).n_labels_paid, Ledger(rounds).n_outstanding) == (0, 1)
    assert Ledger(rounds).rounds_out() == [0]


def test_image_whose_task_was_deleted_unanswered_may_be_asked_for_again():
    rounds = [one(0, "a", "b", answers=[answer("b", "cat")], withdrawn=["a"])]
    assert Ledger(rounds).asked_items == {"b": 0}
    assert asked(Ledger(rounds)) == ["a", "c"]
    assert Ledger(rounds).n_outstanding == 0
    again = Ledger([*rounds, one(1, "a")])
    assert (again.asked_items, again.n_outstanding) == ({"a": 1, "b": 0}, 1)
    assert asked(again) == ["c"]


@pytest.mark.parametrize("outcome", ["skipped", "empty", "invalid"])
def test_image_that_nobody_could_label_waits_for_a_class_that_was_not_there(outcome):
    rounds = [one(0, "a", answers=[answer("a", outcome=outcome)], classes=CLASSES)]
    assert asked(Ledger(rounds)) == ["b", "c"]
    assert asked(Ledger(rounds), classes=(*CLASSES, "owl")) == ["a", "b", "c"]
    renamed = Ledger(rounds, {"cat": "feline"})
    assert asked(renamed, classes=("feline", "dog")) == ["b", "c"], "people could choose it, by another name"
    asked_again = Ledger([*rounds, one(1, "a", classes=(*CLASSES, "owl"))])
    assert asked(asked_again, classes=(*CLASSES, "owl")) == ["b", "c"]
    assert asked_again.n_outstanding == 1
    labelled = [answer("a", "dog", number=1, answer_id=2, minute=1)]
    known = Ledger([*rounds, one(1, "a", answers=labelled, classes=(*CLASSES, "owl"))])
    assert (known.n_outstanding, known.n_labels_paid) == (0, 1)


def test_image_that_is_labelled_set_aside_or_measures_is_not_asked_for_to_learn_from():
    assert asked(Ledger(), of=pool(label=["cat", None, None, None])) == ["b", "c"]
    assert asked(Ledger(), of=pool(set_aside_reason=[None, "too small", None, None])) == ["a", "c"]
    assert asked(Ledger(), "audit", of=pool(label=["cat", None, None, "dog"])) == []


def test_labels_go_by_present_names_and_people_overrule_the_manifest():
    rounds = [one(0, "a", "b", answers=[answer("a", "cat"), answer("b", "dog", answer_id=2)])]
    ledger = Ledger(rounds, {"cat": "feline"})
    labels = ledger.labels(pool(label=[None, "feline", None, "dog"]), classification, classes=("feline", "dog"))
    told = [
        list(row)
        for row in zip(labels.item_ids, labels.words, labels.table["source"], labels.table["split"], strict=True)
    ]
    assert told == [
        ["a", "feline", "annotators", "pool"],
        ["b", "dog", "annotators", "pool"],
        ["d", "dog", "manifest", "audit"],
    ]
    gone = pool(set_aside_reason=["gone", None, None, None])
    assert ledger.labels(gone, classification, classes=("feline", "dog")).item_ids == ["b"]
    assert ledger.n_labels_paid == 2, "a label on an image that is gone was paid for"
    with pytest.raises(ValueError, match="'feline'"):
        ledger.labels(pool(), classification, classes=("cat", "dog"))


def test_time_to_the_next_batch_is_that_of_the_newest_round_that_has_one():
    answers = [answer("a", "cat", minute=1), answer("b", "dog", answer_id=2, minute=3)]
    first = one(0, "a", "b", answers=answers, pushed_at="2026-01-01T00:00:00+00:00")
    second = one(1, "c", pushed_at="2026-01-01T00:05:30+00:00")
    assert Ledger([first, second]).seconds_to_batch() == 150
    assert Ledger([first]).seconds_to_batch() is None
    assert Ledger([first, RoundOfLedger(1)]).seconds_to_batch() is None, "it is not out yet"
    later = one(2, "d", pushed_at="2026-01-01T00:09:00+00:00")
    assert Ledger([first, second, later]).seconds_to_batch() == 150, "round 1 has brought nothing in"


def test_task_is_seen_where_its_round_was_labelled():
    ledger = Ledger([one(0, "a", address="http://ls/1"), one(1, "b", address="http://ls/2"), RoundOfLedger(2)])
    assert ledger.task_addresses() == {"a": "http://ls/1?task=0", "b": "http://ls/2?task=10"}
