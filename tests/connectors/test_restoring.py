"""A project of Label Studio that is made again, by a server in this process: whose answer is which."""

import contextlib
import itertools
from types import SimpleNamespace

import pytest

from connectors.annotation import ProjectMismatch
from connectors.label_studio.reading import HeldProject, HeldTask
from connectors.label_studio.restoring import Restoring
from connectors.label_studio.saving import SavedPage, SavedTask
from pipeline.types import Ask

ASK = Ask("1.0", 1, "query")
PAGE = SavedPage(project=1, created_at="2026-01-01", saved_at="2026-01-02", page={})
ANN, BOB, TOKEN = 11, 12, 13
ACCOUNTS = {"ann@x.org": ANN, "bob@x.org": BOB, "token@x.org": TOKEN}


class Server:
    """The only project of a server that keeps what it is sent."""

    def __init__(self) -> None:
        self.project: HeldProject | None = None
        self.tasks: dict[int, HeldTask] = {}
        self.address = "here"
        self.connection = SimpleNamespace(
            retrying=lambda: [contextlib.nullcontext()], repeatable=lambda call: call(), url="here"
        )
        self._ids = itertools.count(100)

    def find(self):
        return self.project

    def remake(self, page, mark):
        self.project = HeldProject(id=5, title="pets", created_at="now", description=mark)

    def change(self, changes):
        self.project = self.project.model_copy(update=changes)

    def between(self, after, until=None):
        return [task for task in self.tasks.values() if after < task.id <= (until or task.id)]

    def make_whole(self, find, wanted, **_options):
        there = {task.item_id for task in find()}
        for item_id, one in wanted.items():
            if item_id not in there:
                new = next(self._ids)
                self.tasks[new] = HeldTask(id=new, data=one.data)
        return find()

    def person(self):
        return "token@x.org"

    def add_answer(self, task_id, body):
        given = {"completed_by": TOKEN} | body | {"id": next(self._ids), "updated_at": "today"}
        self.tasks[task_id].annotations.append(given)

    @property
    def answers(self):
        return [given for task in self.tasks.values() for given in task.annotations]

    def restore(self, saved, page=PAGE):
        """As a new process does; the maps, and who gave which answer."""
        restoring = Restoring(self, self, self, self, asked={ASK: 1}, accounts=ACCOUNTS, address=lambda _item: "image")
        restored = restoring.restore(page, saved, lambda: None)
        return restored, {new: given.annotator for new, given in restoring.given.items()}


@pytest.fixture
def server():
    return Server()


def task(number, *answers):
    """A task of the ask, which task 1 stands for."""
    return SavedTask(
        task=number,
        of=1,
        item_id=ASK.item_id,
        round_number=1,
        data={"item_id": ASK.item_id, "round_number": 1},
        prediction={"model_version": "round 1: m", "score": 1.0, "result": []},
        answers=answers,
    ).model_dump(mode="json")


def answer(number, who="ann", label="cat", lead_time=None):
    return {
        "id": number,
        "result": [label],
        "was_cancelled": False,
        "lead_time": lead_time,
        "annotator": f"{who}@x.org",
        "updated_at": "then",
    }


def test_an_image_with_two_answered_doubles_keeps_the_answers_of_both(server):
    saved = [task(1), task(2, answer(10, label="cat")), task(3, answer(11, label="dog"))]
    restored, _ = server.restore(saved)
    assert restored.answer_ids.keys() == {10, 11}
    assert [given["result"] for given in server.answers] == [["cat"], ["dog"]]


def test_equal_answers_to_a_task_and_its_double_stay_two_of_two_people(server):
    saved = [task(1, answer(10, "ann")), task(2, answer(11, "bob"))]
    restored, given = server.restore(saved)
    assert len(set(restored.answer_ids.values())) == 2
    assert given == {restored.answer_ids[10]: "ann@x.org", restored.answer_ids[11]: "bob@x.org"}
    assert [one["completed_by"] for one in server.answers] == [ANN, BOB]


@pytest.mark.parametrize("n_sent", [1, 2, 3])
def test_a_restore_that_was_broken_off_makes_no_answer_twice(server, monkeypatch, n_sent):
    saved = [task(1, answer(10, "ann"), answer(12, "gone")), task(2, answer(11, "bob"))]
    with monkeypatch.context() as patch:
        sent = itertools.count(1)
        add = server.add_answer

        def break_off(task_id, body):
            add(task_id, body)
            if next(sent) == n_sent:
                raise KeyboardInterrupt

        patch.setattr(server, "add_answer", break_off)
        with pytest.raises(KeyboardInterrupt):
            server.restore(saved)
    restored, given = server.restore(saved)
    assert not restored.was_there
    assert sorted(given.values()) == ["ann@x.org", "bob@x.org", "gone@x.org"]
    assert [one["completed_by"] for one in server.answers] == [ANN, TOKEN, BOB]


def test_what_people_did_since_a_restore_stays_and_is_told_apart_by_account(server):
    saved = [task(1, answer(10, "ann"), answer(11, "bob"), answer(12, "gone"), answer(13, "ann", lead_time=2.5))]
    first, _ = server.restore(saved)
    [task_id] = server.tasks
    of_ann, of_bob, of_gone, _ = server.answers
    server.tasks[task_id].annotations.remove(of_ann)
    of_gone |= {"result": ["dog"], "lead_time": 7.0, "updated_at": "later"}
    server.add_answer(task_id, {"result": ["owl"], "completed_by": 14})
    before = [dict(given) for given in server.answers]
    again, given = server.restore(saved)
    assert again.was_there
    assert server.answers == before, "nothing is added"
    assert again.answer_ids == {old: new for old, new in first.answer_ids.items() if old != 10}
    assert given == {of_bob["id"]: "bob@x.org", of_gone["id"]: "gone@x.org", first.answer_ids[13]: "ann@x.org"}


def test_an_answer_that_was_deleted_since_is_not_taken_for_another_persons_new_one(server):
    saved = [task(1, answer(10, "gone"))]
    server.restore(saved)
    [task_id] = server.tasks
    server.tasks[task_id].annotations.clear()
    server.add_answer(task_id, {"result": ["owl"], "completed_by": ANN})
    again, given = server.restore(saved)
    assert (again.answer_ids, given) == ({}, {})


def test_a_project_that_was_restored_from_another_backup_is_refused(server):
    saved = [task(1, answer(10, "ann"))]
    server.restore(saved)
    later = PAGE.model_copy(update={"saved_at": "2026-01-03"})
    with pytest.raises(ProjectMismatch, match="has 1 tasks that are not those of the backup: nothing is restored"):
        server.restore([*saved, task(2, answer(11, "bob"))], page=later)
    assert len(server.answers) == 1
