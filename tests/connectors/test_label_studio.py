"""Label Studio's connector against a real Label Studio."""

import base64
import io
import json
import socket
import threading
import traceback
import uuid
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from time import sleep
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
from PIL import ExifTags, Image

from connectors.annotation import (
    AnnotationToolError,
    AnnotationToolUnavailable,
    Asked,
    AuthenticationFailed,
    Progress,
    ProjectMismatch,
    Pulled,
    PushMismatch,
    Question,
    Tended,
)
from connectors.label_studio import api as label_studio_api
from connectors.label_studio import changes, connection, mending
from connectors.label_studio import tasks as label_studio_tasks
from connectors.label_studio.client import LabelStudio
from connectors.label_studio.kinds.table import kind_of
from connectors.label_studio.pages import labelling_page
from connectors.label_studio.person import SimulatedAnnotator
from connectors.mistakes import Mistakes
from pipeline.labels.answers import reconcile
from pipeline.masks import mask_to_png
from pipeline.types import Ask, AskFor, Region

CLASSES = ("cat", "dog", "fox")
KINDS = {
    "image": (Region("image", "dog"), Region("image", "fox")),
    "box": (Region("box", "dog", (0.25, 0.25, 0.5, 1.0)),),
    "mask": (Region("mask", "dog", mask=mask_to_png(np.tri(64, dtype=bool))),),
}
"""What is in an image of `space`."""
PUSHED: dict[str, dict[int, Asked]] = {}
"""What each project was asked, by round."""
ADDED = (
    '<Choices name="quality" toName="image" choice="multiple"><Choice value="blurred"/><Choice value="dark"/></Choices>'
    '<TextArea name="comment" toName="image"/>'
)
"""What a lead may add to a page."""


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(connection, "FIRST_WAIT_SECONDS", 0.05)
    monkeypatch.setattr(connection, "LONGEST_WAIT_SECONDS", 0.2)
    monkeypatch.setattr(mending, "SETTLE_SECONDS", 1.0)


@pytest.fixture
def tool(space):
    return connect(space)


@pytest.fixture
def prepared(tool):
    tool.prepare()
    return tool


@pytest.fixture
def api(servers, label_studio_token) -> Iterator[httpx.Client]:
    """Label Studio's HTTP API: what a person does in the browser, or another program."""
    headers = {"Authorization": f"Token {label_studio_token}"}
    with httpx.Client(base_url=servers.label_studio_url, headers=headers, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def access_token(servers) -> str:
    """A personal access token, made as the account page makes it."""
    with httpx.Client(base_url=servers.label_studio_url, timeout=60) as client:
        client.get("/user/login/").raise_for_status()
        form = {"email": servers.email, "password": servers.password}
        client.post("/user/login/", data=form | {"csrfmiddlewaretoken": client.cookies["csrftoken"]})
        headers = {"X-CSRFToken": client.cookies["csrftoken"]}
        for former in client.get("/api/token/").json():
            client.post("/api/token/blacklist/", json={"refresh": former["token"]}, headers=headers)
        return client.post("/api/token/", headers=headers).raise_for_status().json()["token"]


def connect(space, **changes) -> LabelStudio:
    settings = {
        "url": space.url,
        "token": space.token,
        "project": space.project,
        "classes": CLASSES,
        "images_root": space.images_root,
    }
    return LabelStudio(**(settings | changes))


def question(item_id, uri, round_number=1, rank=0, **fields) -> Question:
    return Question(Ask(item_id, round_number, "query"), uri, rank, **fields)


def batch(space, n=4, *, round_number=1, guess="cat", **changes) -> list[Question]:
    """`n` questions of a round, most wanted first; every item of round r is named "r.position"."""
    return [
        question(
            f"{round_number}.{rank}",
            space.uris[rank % len(space.uris)],
            round_number,
            rank,
            guess=(Region("image", guess, score=0.5),) if guess else None,
            **changes,
        )
        for rank in range(n)
    ]


def push(tool, questions, *, model_version="m") -> dict[str, int]:
    """Push a round, and keep the record that a campaign keeps; return the task of each item."""
    number, asked = questions[0].ask.round_number, PUSHED.setdefault(tool._project.title, {})
    task_ids = tool.push(questions, model_version=model_version, asked=recorded(tool, *range(number)))
    asked[number] = Asked(number, questions, model_version, task_ids)
    return by_item(task_ids)


def recorded(tool, *rounds) -> dict[Ask, int]:
    """The task of each ask of these rounds."""
    asked = PUSHED[tool._project.title]
    return {ask: task_id for number in rounds if number in asked for ask, task_id in asked[number].task_ids.items()}


def by_item(task_ids) -> dict[str, int]:
    return {ask.item_id: task_id for ask, task_id in task_ids.items()}


def pull(tool, *rounds) -> Pulled:
    return tool.pull(recorded(tool, *rounds))


def tend(tool) -> Tended:
    """Look after the last round, as each run does, and keep the record up to date."""
    asked = PUSHED[tool._project.title]
    tended = tool.tend([asked[max(asked)]], asked=recorded(tool, *asked))
    for number in asked:
        now = {ask: task_id for ask, task_id in tended.task_ids.items() if ask.round_number == number}
        asked[number] = replace(asked[number], task_ids=now)
    return tended


def progress(tool) -> Progress:
    return tend(tool).progress


def project_of(api, space) -> dict:
    found = api.get("/api/projects", params={"title": space.project}).json()["results"]
    return next(project for project in found if project["title"] == space.project)


def tasks_of(api, space) -> list[dict]:
    project = project_of(api, space)
    return api.get("/api/tasks", params={"project": project["id"], "fields": "all", "page_size": 1000}).json()["tasks"]


def choice(*labels, **changes) -> dict:
    return {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [*labels]}} | changes


def is_import(handler) -> bool:
    """Whether a request brings tasks."""
    return urlsplit(handler.path).path.endswith("/import")


def are_guesses(handler) -> bool:
    """Whether a request brings predictions."""
    return urlsplit(handler.path).path.endswith("/import/predictions")


def guesses_of(api, space) -> dict[str, list]:
    """Item id -> model version, score and classes of its predictions."""
    return {
        task["data"]["item_id"]: [
            (each["model_version"], each["score"], [part["value"]["choices"] for part in each["result"]])
            for each in task["predictions"]
        ]
        for task in tasks_of(api, space)
    }


def add_copies(api, space, *item_ids, **changes) -> list[int]:
    """Add tasks with the data of those that ask for some items, as an import that arrives twice does."""
    data = {task["data"]["item_id"]: task["data"] for task in tasks_of(api, space)}
    path = f"/api/projects/{project_of(api, space)['id']}/import?return_task_ids=true"
    copies = [{"data": data[item_id] | changes} for item_id in item_ids]
    return api.post(path, json=copies).raise_for_status().json()["task_ids"]


def annotate(api, task_id, *result, **fields) -> int:
    body = {"result": [*result], "lead_time": 2.5} | fields
    return api.post(f"/api/tasks/{task_id}/annotations/", json=body).raise_for_status().json()["id"]


def annotator(space, answers, **options) -> SimulatedAnnotator:
    return SimulatedAnnotator(url=space.url, token=space.token, project=space.project, answers=answers, **options)


def served(space, *batches, n=None) -> list[str]:
    """The item ids in the order in which a person gets them."""
    answers = {each.item_id: "cat" for questions in batches for each in questions}
    return list(annotator(space, answers).label(n).item_ids)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class TestPrepare:
    def test_makes_a_project_that_asks_for_one_class_of_each_image(self, tool, api, space):
        address = tool.prepare()
        project = project_of(api, space)
        assert address == f"{space.url}/projects/{project['id']}/data"
        assert project["parsed_label_config"]["label"]["type"] == "Choices"
        assert project["parsed_label_config"]["label"]["labels"] == list(CLASSES)
        assert project["sampling"] == "Uncertainty sampling"
        assert project["skip_queue"] == "IGNORE_SKIPPED"
        assert project["maximum_annotations"] == 1
        assert project["show_collab_predictions"]
        assert project["show_instruction"]
        assert "Skip" in project["expert_instruction"]

    def test_adopts_its_project_again_and_again(self, space, api):
        addresses = {connect(space).prepare() for _ in range(3)}
        project = project_of(api, space)
        assert len(addresses) == 1
        assert len(api.get("/api/storages/localfiles", params={"project": project["id"]}).json()) == 1

    def test_sets_back_what_the_order_of_tasks_depends_on_and_leaves_the_rest(self, prepared, api, space):
        project = project_of(api, space)
        by_hand = {"sampling": "Sequential sampling", "maximum_annotations": 2, "description": "by hand"}
        api.patch(f"/api/projects/{project['id']}/", json=by_hand).raise_for_status()
        prepared.prepare()
        project = project_of(api, space)
        assert (project["sampling"], project["maximum_annotations"]) == ("Uncertainty sampling", 1)
        assert project["description"] == "by hand"

    def test_refuses_a_project_of_other_classes_and_names_both(self, prepared, space):
        with pytest.raises(ProjectMismatch, match="classes cat, dog, fox where cat, owl are wanted"):
            connect(space, classes=("cat", "owl")).prepare()

    @pytest.mark.parametrize(
        ("page", "difference"),
        [
            (
                '<View><Image name="image" value="$image"/><RectangleLabels name="box" toName="image">'
                '<Label value="cat"/></RectangleLabels></View>',
                r"asks for box \(RectangleLabels\) where label \(Choices\) is wanted",
            ),
            (
                '<View><Text name="image" value="$image"/><Choices name="label" toName="image">'
                '<Choice value="cat"/><Choice value="dog"/><Choice value="fox"/></Choices></View>',
                r"shows \[\('Text', 'image'\)\]",
            ),
            (
                labelling_page(CLASSES).replace('choice="single-radio"', 'choice="multiple"'),
                "several classes where one is wanted",
            ),
            (
                labelling_page(CLASSES).replace('value="$image"', 'value="$picture"'),
                r"shows \[\('Image', 'picture'\)\]",
            ),
            ("<View></View>", "asks for nothing"),
        ],
    )
    def test_refuses_a_project_of_another_kind(self, tool, api, space, page, difference):
        api.post("/api/projects", json={"title": space.project, "label_config": page}).raise_for_status()
        with pytest.raises(ProjectMismatch, match=difference):
            tool.prepare()

    def test_refuses_two_projects_of_one_title_that_both_hold_tasks(self, tool, api, space):
        page = labelling_page(CLASSES)
        for _ in range(2):
            made = api.post("/api/projects", json={"title": space.project, "label_config": page}).raise_for_status()
            task = {"data": {"image": "x", "reasons": ""}}
            api.post(f"/api/projects/{made.json()['id']}/import", json=[task]).raise_for_status()
        with pytest.raises(ProjectMismatch, match="2 projects"):
            tool.prepare()

    def test_empty_ghosts_of_its_title_are_passed_over(self, prepared, api, space):
        task_ids = push(prepared, batch(space))
        for _ in range(2):
            api.post("/api/projects", json={"title": space.project}).raise_for_status()
        assert push(connect(space), batch(space)) == task_ids

    def test_one_of_several_empty_projects_is_taken(self, tool, api, space):
        page = labelling_page(CLASSES)
        for _ in range(3):
            api.post("/api/projects", json={"title": space.project, "label_config": page}).raise_for_status()
        assert tool.prepare() == connect(space).prepare()

    def test_a_project_that_is_remembered_may_be_renamed_and_have_ghosts_with_tasks(self, space, api, tmp_path):
        tool = connect(space, remember_in=tmp_path / "project.json")
        address = tool.prepare()
        project = project_of(api, space)
        api.patch(f"/api/projects/{project['id']}/", json={"title": f"{space.project} renamed"}).raise_for_status()
        other = api.post("/api/projects", json={"title": space.project, "label_config": project["label_config"]}).json()
        task = {"data": {"image": "x", "reasons": ""}}
        api.post(f"/api/projects/{other['id']}/import", json=[task]).raise_for_status()
        assert connect(space, remember_in=tmp_path / "project.json").prepare() == address

    def test_a_project_that_is_remembered_and_gone_is_made_anew(self, space, api, tmp_path):
        first = connect(space, remember_in=tmp_path / "project.json").prepare()
        api.delete(f"/api/projects/{project_of(api, space)['id']}/").raise_for_status()
        second = connect(space, remember_in=tmp_path / "project.json").prepare()
        assert second != first
        assert connect(space, remember_in=tmp_path / "project.json").prepare() == second

    def test_is_not_misled_by_a_longer_title(self, tool, api, space):
        api.post("/api/projects", json={"title": f"{space.project} old"}).raise_for_status()
        tool.prepare()
        assert project_of(api, space)["title"] == space.project

    def test_leaves_what_somebody_added_to_the_page(self, prepared, api, space):
        by_hand = labelling_page(CLASSES).replace("</View>", f"{ADDED}</View>")
        api.patch(f"/api/projects/{project_of(api, space)['id']}/", json={"label_config": by_hand}).raise_for_status()
        connect(space, former_classes=CLASSES).prepare()
        assert project_of(api, space)["label_config"] == by_hand

    def test_shows_classes_that_came_were_renamed_or_merged_and_keeps_the_answers(self, prepared, api, space):
        task_ids = push(prepared, batch(space))
        for item, label in (("1.0", "cat"), ("1.1", "dog"), ("1.2", "fox")):
            annotate(api, task_ids[item], choice(label))
        by_hand = labelling_page(CLASSES).replace("</View>", f"{ADDED}</View>")
        api.patch(f"/api/projects/{project_of(api, space)['id']}/", json={"label_config": by_hand}).raise_for_status()
        classes, renamed = ("owl", "canine", "feline"), {"cat": "feline", "dog": "canine", "fox": "canine"}
        for _ in range(2):
            changed = connect(space, classes=classes, renamed=renamed, former_classes=CLASSES)
            changed.prepare()
            controls = project_of(api, space)["parsed_label_config"]
            shown = {stored: choice["value"] for stored, choice in controls["label"]["labels_attrs"].items()}
            assert shown == {"owl": "owl", "dog": "canine", "cat": "feline", "fox": "fox"}
            assert list(controls) == ["label", "quality", "comment"], "what somebody added stays"
        answers = pull(changed, 1).answers
        assert [a.annotation.regions[0].label for a in answers] == ["feline", "canine", "canine"]

        tasks = push(changed, batch(space, 2, round_number=2, guess="feline"))
        [guessed] = next(task for task in tasks_of(api, space) if task["id"] == tasks["2.0"])["predictions"]
        assert guessed["result"][0]["value"] == {"choices": ["cat"]}, "as the page keeps it, so that it is ticked"
        annotate(api, tasks["2.0"], choice("cat"))
        annotate(api, tasks["2.1"], choice("owl"))
        answers = pull(changed, 2).answers
        assert [a.annotation.regions[0].label for a in answers] == ["feline", "owl"]

        fewer = connect(space, classes=classes[1:], renamed=renamed, former_classes=classes)
        fewer.prepare()
        assert list(project_of(api, space)["parsed_label_config"]["label"]["labels"]) == ["dog", "cat", "fox"]

    def test_changes_no_page_but_the_one_that_the_campaign_knows(self, prepared, space):
        for former in ((), ("cat", "dog"), ("cat", "dog", "fox", "owl"), ("bus", "car")):
            with pytest.raises(ProjectMismatch, match="classes cat, dog, fox where cat, owl are wanted"):
                connect(space, classes=("cat", "owl"), former_classes=former).prepare()

    def test_gives_its_project_a_new_title(self, prepared, api, space):
        tasks = push(prepared, batch(space))
        title = f"{space.project} anew"
        changed = connect(space, project=title, former_project=space.project)
        assert by_item(changed.pull(recorded(prepared, 1)).task_ids) == tasks
        address = changed.prepare()
        project = project_of(api, replace(space, project=title))
        assert address == f"{space.url}/projects/{project['id']}/data"
        titles = {each["id"]: each["title"] for each in api.get("/api/projects").json()["results"]}
        assert titles[api.get(f"/api/tasks/{min(tasks.values())}").json()["project"]] == title

    @pytest.mark.parametrize("title", ["ab", "x" * 51, " padded "])
    def test_refuses_a_title_that_label_studio_would_refuse(self, space, title):
        with pytest.raises(ValueError, match="3 to 50 characters"):
            connect(space, project=title)

    @pytest.mark.parametrize("length", [3, 50])
    def test_takes_the_shortest_and_the_longest_title(self, space, length):
        title = (uuid.uuid4().hex * 2)[:length]
        assert connect(space, project=title).prepare()

    @pytest.mark.parametrize("classes", [("cat",), ("cat", "cat"), ("cat", ""), ("cat", "big  dog"), ("cat", " dog")])
    def test_refuses_classes_that_cannot_be_told_apart(self, space, classes):
        with pytest.raises(ValueError, match="class"):
            connect(space, classes=classes)

    def test_says_how_to_start_a_server_that_serves_other_folders(self, space, tmp_path):
        with pytest.raises(AnnotationToolError, match=f"LOCAL_FILES_DOCUMENT_ROOT={tmp_path.parent}"):
            connect(space, images_root=tmp_path).prepare()

    def test_pushing_without_a_project_says_so(self, tool, space):
        with pytest.raises(AnnotationToolError, match=r"has no project .*\. Bring it back"):
            push(tool, batch(space))


class TestPush:
    def test_pushing_twice_makes_each_task_once(self, prepared, api, space):
        tasks = batch(space)
        first = push(prepared, tasks)
        assert push(connect(space), tasks) == first
        assert {task["data"]["item_id"]: task["id"] for task in tasks_of(api, space)} == first
        assert list(first) == ["1.0", "1.1", "1.2", "1.3"]

    def test_adds_what_is_missing_and_leaves_what_is_there(self, prepared, api, space):
        first = push(prepared, batch(space))
        annotate(api, first["1.0"], choice("cat"))
        api.delete(f"/api/tasks/{first['1.2']}/").raise_for_status()
        second = push(prepared, batch(space))
        assert [item for item in first if first[item] != second[item]] == ["1.2"]
        assert len(pull(prepared, 1).answers) == 1

    def test_the_same_image_can_be_asked_for_in_another_round(self, prepared, space):
        task = batch(space, 1)[0]
        again = question(task.ask.item_id, task.uri, 2)
        assert push(prepared, [task]) != push(prepared, [again])
        assert push(prepared, [task]).keys() == push(prepared, [again]).keys()

    def test_an_import_whose_answer_is_lost_is_not_sent_again(self, prepared, api, space, monkeypatch, relay):
        monkeypatch.setattr(mending, "SETTLE_SECONDS", 30.0)
        imports = []

        def lose_the_answer(handler, body):
            if not is_import(handler):
                return False
            imports.append(threading.Thread(target=handler.forward, args=(body,)))
            imports[-1].start()
            handler.hang_up()
            return True

        tasks = batch(space, 60)
        with relay(space.url, lose_the_answer) as url:
            task_ids = push(connect(space, url=url), tasks)
        for thread in imports:
            thread.join()
        assert len(imports) == 1
        assert sorted(task["id"] for task in tasks_of(api, space)) == sorted(task_ids.values())
        assert len(task_ids) == 60

    def test_an_import_that_is_cut_off_is_sent_again(self, prepared, api, space, relay):
        cut = []

        def cut_the_first(handler, body):
            if not is_import(handler) or cut:
                return False
            cut.append(handler.path)
            with socket.create_connection(space.url.removeprefix("http://").split(":")) as server:
                head = f"POST {handler.path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
                head += f"Content-Type: application/json\r\nAuthorization: {handler.headers['Authorization']}\r\n\r\n"
                server.sendall(head.encode() + body[: len(body) // 2])
            handler.hang_up()
            return True

        with relay(space.url, cut_the_first) as url:
            task_ids = push(connect(space, url=url), batch(space))
        assert len(cut) == 1
        assert sorted(task["id"] for task in tasks_of(api, space)) == sorted(task_ids.values())

    def test_an_import_that_outlasts_our_patience_is_not_sent_again(self, prepared, api, space, monkeypatch, relay):
        imports = []

        def answer_late(handler, body):
            if not is_import(handler):
                return False
            imports.append(handler.forward(body))
            threading.Event().wait(1.5)
            handler.hang_up()
            return True

        monkeypatch.setattr(mending, "SETTLE_SECONDS", 30.0)
        monkeypatch.setattr(connection, "TIMEOUT_SECONDS", 1.0)
        with relay(space.url, answer_late) as url:
            task_ids = push(connect(space, url=url), batch(space))
        assert len(imports) == 1
        assert len(tasks_of(api, space)) == len(task_ids) == 4

    def test_removes_copies_and_keeps_the_answered_one(self, prepared, api, space):
        first = push(prepared, batch(space))
        project = project_of(api, space)
        copies = [{"data": task["data"]} for task in tasks_of(api, space)]
        again = api.post(f"/api/projects/{project['id']}/import?return_task_ids=true", json=copies).json()["task_ids"]
        annotate(api, again[1], choice("dog"))
        second = push(prepared, batch(space))
        assert second == first | {"1.1": again[1]}
        assert sorted(task["id"] for task in tasks_of(api, space)) == sorted(second.values())

    def test_of_two_answered_copies_both_answers_count(self, prepared, api, space):
        task_ids = push(prepared, batch(space))
        (copy,) = add_copies(api, space, "1.0")
        for task_id, label in ((task_ids["1.0"], "dog"), (copy, "cat")):
            annotate(api, task_id, choice(label))
        assert push(prepared, batch(space)) == task_ids
        assert len(tasks_of(api, space)) == 5
        pulled = pull(prepared, 1)
        assert pulled.doubles == {copy: Ask("1.0", 1, "query")}
        assert {(answer.item_id, answer.task_id) for answer in pulled.answers} == {
            ("1.0", task_ids["1.0"]),
            ("1.0", copy),
        }

    def test_refuses_a_round_that_holds_what_was_not_pushed(self, prepared, space):
        push(prepared, batch(space, 4))
        with pytest.raises(
            PushMismatch, match=r"holds 1 tasks of round 1 that this campaign did not select, such as 1\.3"
        ):
            push(prepared, batch(space, 3))

    def test_an_empty_batch_asks_for_nothing(self, prepared, api, space):
        assert prepared.push([], model_version="m", asked={}) == {}
        assert tasks_of(api, space) == []

    def test_imports_in_chunks(self, prepared, api, space, monkeypatch):
        monkeypatch.setattr(label_studio_tasks, "CHUNK", 3)
        assert len(push(prepared, batch(space, 7))) == len(tasks_of(api, space)) == 7

    @pytest.mark.parametrize(
        "answer", [(201, b'{"created": 4}'), (500, b"{}"), (200, b""), (200, b"<html>wait</html>")]
    )
    def test_guesses_that_get_lost_once_are_sent_again(self, prepared, api, space, relay, answer):
        lost = []

        def lose_the_first(handler, body):
            if not are_guesses(handler) or lost:
                return False
            lost.append(body)
            handler.answer(*answer)
            return True

        with relay(space.url, lose_the_first) as url:
            push(connect(space, url=url), batch(space))
        version = project_of(api, space)["model_version"]
        assert guesses_of(api, space) == {f"1.{rank}": [(version, rank / 4, [["cat"]])] for rank in range(4)}

    def test_a_server_that_never_keeps_the_guesses_is_told_and_its_version_not_set(self, prepared, space, relay, api):
        def lose_all(handler, body):
            if not are_guesses(handler):
                return False
            handler.answer(201, b'{"created": 4}')
            return True

        with relay(space.url, lose_all) as url, pytest.raises(PushMismatch, match="4 lack the guess or have another"):
            push(connect(space, url=url), batch(space))
        assert project_of(api, space)["model_version"] == ""

    def test_a_round_whose_guesses_were_lost_by_an_older_version_goes_on(self, prepared, api, space):
        """What a server on SQLite leaves of an import with predictions that met its database locked."""
        project = project_of(api, space)
        tasks = batch(space)
        path = f"/api/projects/{project['id']}/import?return_task_ids=true"
        data = [{"image": "old", "reasons": "", "item_id": each.item_id, "round_number": 1} for each in tasks]
        stuck = api.post(path, json=[{"data": each} for each in data]).json()["task_ids"]
        annotate(api, stuck[2], choice("dog"))
        stale = api.patch(f"/api/projects/{project['id']}/", json={"model_version": "round 1: m"})
        assert stale.status_code == 400, "as every later run was refused"
        assert list(push(prepared, tasks).values()) == stuck
        assert project_of(api, space)["model_version"] == "round 1: m"
        assert set(map(len, guesses_of(api, space).values())) == {1}
        assert served(space, tasks) == ["1.0", "1.1", "1.3"]
        assert [answer.item_id for answer in pull(prepared, 1).answers if answer.task_id == stuck[2]] == ["1.2"]
        images = {task["id"]: task["data"]["image"] for task in tasks_of(api, space)}
        assert [images[task_id] == "old" for task_id in stuck] == [False, False, True, False]

    def test_tasks_show_the_guess_and_the_reasons(self, prepared, api, space):
        columns = {"uncertainty": 0.693147, "confused_classes": "cat, dog"}
        push(prepared, batch(space, 1, reason="unsure <b>", columns=columns))
        (task,) = tasks_of(api, space)
        assert task["data"]["reasons"] == "Why this image: unsure <b>"
        assert task["data"]["uncertainty"] == 0.693147
        assert task["data"]["round_number"] == 1
        (prediction,) = task["predictions"]
        assert prediction["result"] == [choice("cat", score=0.5)]

    def test_each_round_has_a_model_version_of_its_own(self, prepared, api, space):
        for round_number in (1, 2):
            push(prepared, batch(space, round_number=round_number), model_version="same")
            assert project_of(api, space)["model_version"] == f"round {round_number}: same"
        versions = {(task["data"]["round_number"], task["predictions_model_versions"]) for task in tasks_of(api, space)}
        assert versions == {(1, "round 1: same"), (2, "round 2: same")}

    @pytest.mark.parametrize(
        ("change", "complaint"),
        [
            ({"item_id": "1.1"}, "item 1.1 is in the batch twice"),
            ({"round_number": 2}, "belongs to round 2, not 1"),
            ({"rank": -1}, "rank counts from 0"),
            ({"guess": (Region("image", "owl"),)}, "one of cat, dog, fox for the whole image, got 'owl'"),
            ({"guess": (Region("box", "cat", (0.0, 0.0, 1.0, 1.0)),)}, "for the whole image"),
            ({"columns": {"image": "x"}}, "'image' is taken"),
            ({"columns": {"uncertainty": float("nan")}}, "not a finite number"),
        ],
    )
    def test_refuses_a_batch_that_label_studio_would_swallow(self, prepared, api, space, change, complaint):
        fields = {"item_id": "1.0", "uri": space.uris[0], "round_number": 1, "rank": 0}
        tasks = [*batch(space)[1:], question(**(fields | change))]
        with pytest.raises(ValueError, match=complaint):
            prepared.push(tasks, model_version="m", asked={})
        assert tasks_of(api, space) == []


class TestTend:
    def test_what_is_whole_is_left_alone(self, prepared, api, space):
        push(prepared, batch(space))
        before = tasks_of(api, space)
        tended = tend(prepared)
        assert (tended.mended, tended.standing.notes) == ((), ())
        assert tasks_of(api, space) == before

    def test_guess_order_image_and_settings_are_put_back_on_what_is_open(self, prepared, api, space):
        task_ids = push(prepared, batch(space, 6))
        annotate(api, task_ids["1.0"], choice("dog"))
        tasks = {task["data"]["item_id"]: task for task in tasks_of(api, space)}
        before = guesses_of(api, space)
        api.delete(f"/api/predictions/{tasks['1.1']['predictions'][0]['id']}/").raise_for_status()
        api.patch(f"/api/predictions/{tasks['1.2']['predictions'][0]['id']}/", json={"score": 9.0}).raise_for_status()
        twice = {"task": task_ids["1.3"], "model_version": "round 1: m", "score": 0.5, "result": [choice("fox")]}
        api.post("/api/predictions/", json=twice).raise_for_status()
        for item_id, change in {"1.4": {"image": "/nowhere.png"}, "1.5": {"item_id": "1.0", "round_number": 7}}.items():
            data = tasks[item_id]["data"] | change
            api.patch(f"/api/tasks/{task_ids[item_id]}/", json={"data": data}).raise_for_status()
        by_hand = {"model_version": "", "sampling": "Sequential sampling"}
        api.patch(f"/api/projects/{project_of(api, space)['id']}/", json=by_hand).raise_for_status()
        (told,) = tend(prepared).mended
        assert told == (
            "3 open tasks had lost the model's guess and their place in the order, and have them again; "
            "2 open tasks showed another image or address, and show theirs again"
        )
        assert guesses_of(api, space) == before
        assert {task["data"]["item_id"]: task["data"] for task in tasks_of(api, space)} == {
            item_id: task["data"] for item_id, task in tasks.items()
        }
        assert served(space, batch(space, 6)) == ["1.1", "1.2", "1.3", "1.4", "1.5"]
        assert tend(prepared).mended == ()

    def test_a_deleted_task_stays_deleted(self, prepared, api, space):
        task_ids = push(prepared, batch(space))
        api.delete(f"/api/tasks/{task_ids['1.1']}/").raise_for_status()
        assert tend(prepared).progress.n_tasks == 3
        assert len(tasks_of(api, space)) == 3

    def test_an_import_that_arrives_long_after_is_removed(self, prepared, api, space):
        push(prepared, batch(space, 4))
        second = push(prepared, batch(space, 4, round_number=2))
        add_copies(api, space, "1.1", "2.0", "2.1", "2.2", "2.3")
        tended = tend(prepared)
        assert tended.mended == ("5 open tasks asked for an image a second time and were removed",)
        assert (tended.progress.n_tasks, by_item(recorded(prepared, 2))) == (4, second)
        assert len(tasks_of(api, space)) == 8

    def test_an_answer_on_a_double_is_an_answer_to_its_item(self, prepared, api, space):
        task_ids = push(prepared, batch(space))
        copies = dict(zip(task_ids, add_copies(api, space, *task_ids), strict=True))
        annotate(api, copies["1.0"], choice("dog"))
        annotate(api, copies["1.1"], choice("dog"))
        annotate(api, task_ids["1.1"], choice("cat"))
        tended = tend(prepared)
        assert by_item(tended.task_ids) == task_ids | {"1.0": copies["1.0"]}
        assert (tended.progress.n_tasks, tended.progress.n_labelled) == (4, 2)
        pulled = pull(prepared, 1)
        assert pulled.doubles == {copies["1.1"]: Ask("1.1", 1, "query")}
        assert sorted((answer.item_id, label_of(answer)) for answer in pulled.answers) == [
            ("1.0", "dog"),
            ("1.1", "cat"),
            ("1.1", "dog"),
        ]

    def test_what_annotators_ask_themselves_is_neither_counted_nor_paid_for(self, prepared, api, space):
        task_ids = push(prepared, batch(space))
        forged = add_copies(api, space, "1.0", image="/data/other.png")
        forged += add_copies(api, space, "1.1", item_id="made up")
        forged += add_copies(api, space, "1.2", round_number="one")
        for task_id in forged:
            annotate(api, task_id, choice("dog"))
        tended, pulled = tend(prepared), pull(prepared, 1)
        assert (tended.progress.n_tasks, tended.progress.n_labelled) == (4, 0)
        assert (pulled.answers, by_item(pulled.task_ids)) == ([], task_ids)
        (note,) = pulled.notes
        assert note.startswith("3 tasks in project")
        assert "(3 of them answered)" in note

    def test_the_item_of_an_answer_is_what_was_pushed_whatever_the_task_says_now(self, prepared, api, space):
        task_ids = push(prepared, batch(space))
        annotate(api, task_ids["1.0"], choice("dog"))
        data = {"image": "x", "reasons": "", "item_id": "1.3", "round_number": 9}
        api.patch(f"/api/tasks/{task_ids['1.0']}/", json={"data": data}).raise_for_status()
        assert [answer.item_id for answer in pull(prepared, 1).answers] == ["1.0"]

    def test_a_foreign_task_does_not_keep_a_round_from_being_pushed(self, prepared, api, space):
        push(prepared, batch(space))
        add_copies(api, space, "1.0", item_id="made up", round_number=2)
        assert len(push(prepared, batch(space, 2, round_number=2))) == 2

    def test_copies_of_guesses_are_no_answers_and_a_guess_that_a_person_submits_is_one(self, prepared, api, space):
        task_ids = push(prepared, batch(space, 3))
        person = {"result": [choice("cat", score=0.5)], "lead_time": 1.2}
        guess = next(task for task in tasks_of(api, space) if task["id"] == task_ids["1.2"])["predictions"][0]
        annotate(api, task_ids["1.2"], *person["result"], parent_prediction=guess["id"])
        action = {"id": "predictions_to_annotations", "project": project_of(api, space)["id"]}
        chosen = {"selectedItems": {"all": False, "included": [task_ids["1.0"], task_ids["1.1"]]}}
        api.post("/api/dm/actions", params=action, json=chosen).raise_for_status()
        pulled = pull(prepared, 1)
        assert [(answer.item_id, answer.outcome) for answer in pulled.answers] == [("1.2", "labelled")]
        assert sorted(pulled.copied) == sorted([task_ids["1.0"], task_ids["1.1"]])
        seen = progress(prepared)
        assert (seen.n_tasks, seen.n_labelled, seen.n_set_aside) == (3, 1, 0)


class TestGoingOn:
    """A look that goes on from a mark reads what changed since, and what nobody answered."""

    @pytest.fixture
    def known(self, prepared, api, space, monkeypatch):
        """Task of each of eight items, six of them answered; the answers' ids; what a look at all saw; later."""
        monkeypatch.setattr(changes, "OVERLAP", timedelta(milliseconds=1))
        task_ids = push(prepared, batch(space, 8))
        given = {item_id: annotate(api, task_ids[item_id], choice("dog")) for item_id in list(task_ids)[:6]}
        sleep(1.1)  # the server tells its time in whole seconds
        return task_ids, given, pull(prepared, 1)

    def test_each_kind_of_change_is_seen_and_what_did_not_change_is_not_read(self, prepared, api, space, known):
        task_ids, given, looked = known
        api.patch(f"/api/annotations/{given['1.1']}/", json={"result": [choice("fox")]}).raise_for_status()
        api.delete(f"/api/annotations/{given['1.2']}/").raise_for_status()
        action = {"id": "delete_tasks_annotations", "project": project_of(api, space)["id"]}
        chosen = {"selectedItems": {"all": False, "included": [task_ids["1.3"]]}}
        api.post("/api/dm/actions/", params=action, json=chosen).raise_for_status()
        annotate(api, task_ids["1.4"], choice("cat"))  # a second opinion
        annotate(api, task_ids["1.6"], was_cancelled=True)
        asked = recorded(prepared, 1)
        since, whole = prepared.pull(asked, since=looked.mark), prepared.pull(asked)
        assert (since.is_whole, whole.is_whole) == (False, True)
        assert set(by_item(since.task_ids)) == {"1.1", "1.2", "1.3", "1.4", "1.5", "1.6", "1.7"}
        assert max(given, key=given.__getitem__) == "1.5", "the last change before, by which the mark is known as good"
        news = reconcile(looked.answers, since.answers, task_ids=since.task_ids)
        assert news == reconcile(looked.answers, whole.answers, task_ids=whole.task_ids)
        assert [(one.item_id, one.outcome) for one in news] == [
            ("1.1", "labelled"),
            ("1.4", "labelled"),
            ("1.6", "skipped"),
            ("1.2", "deleted"),
            ("1.3", "deleted"),
        ]

    def test_where_the_mark_is_not_good_all_is_read(self, prepared, api, space, known, monkeypatch):
        task_ids, _, looked = known
        asked = recorded(prepared, 1)

        def is_whole(tool=prepared):
            return tool.pull(asked, since=looked.mark).is_whole

        annotate(api, task_ids["1.6"], choice("cat"))
        assert not is_whole()
        assert is_whole(connect(space, renamed={"wolf": "fox"})), "answers of wolf are read otherwise now"
        with monkeypatch.context() as patch:  # a server that takes a time for one of another zone
            later = timedelta(hours=9)
            patch.setattr(
                changes, "where", lambda *condition: label_studio_api.where(*condition[:2], condition[2] + later)
            )
            assert is_whole()
        with monkeypatch.context() as patch:  # one that refuses the condition
            patch.setattr(changes, "where", lambda *_: label_studio_api.where("project__id", "greater", 1))
            assert is_whole()
        with monkeypatch.context() as patch:
            patch.setattr(label_studio_api.Api, "version", lambda _: ("1.23", None))
            assert prepared.pull(asked).mark is None, "a server that tells no time"

    def test_of_rounds_before_a_look_reads_what_nobody_answered(self, prepared, api, space):
        first = push(prepared, batch(space, 4))
        for item_id in ("1.0", "1.1", "1.2"):
            annotate(api, first[item_id], choice("dog"))
        second = push(prepared, batch(space, 2, round_number=2))
        annotate(api, second["2.0"], choice("dog"))
        asked = PUSHED[prepared._project.title]
        tended = prepared.tend([asked[1], asked[2]], asked=recorded(prepared, 1, 2))
        assert set(by_item(tended.standing.task_ids)) == {"1.3", "2.0", "2.1"}
        assert tended.progress == Progress(2, 1, 0)
        assert tended.task_ids == recorded(prepared, 1, 2)


class TestBackup:
    def test_answers_of_doubles_and_of_people_without_an_account_come_back_and_copies_do_not(
        self, prepared, api, space, tmp_path
    ):
        task_ids = push(prepared, batch(space, 3))
        [copy] = add_copies(api, space, "1.0")
        comment = {"from_name": "note", "to_name": "image", "type": "textarea", "value": {"text": ["blurred"]}}
        annotate(api, task_ids["1.0"], choice("cat"), comment, lead_time=3.5)
        annotate(api, copy, choice("dog"), lead_time=4.5)
        action = {"id": "predictions_to_annotations", "project": project_of(api, space)["id"]}
        api.post(
            "/api/dm/actions", params=action, json={"selectedItems": {"all": False, "included": [task_ids["1.1"]]}}
        ).raise_for_status()
        asked = recorded(prepared, 1)
        before = prepared.pull(asked)
        saved = json.loads(json.dumps(list(prepared.save(asked))).replace(before.answers[0].annotator, "gone@x.org"))
        api.delete(f"/api/projects/{project_of(api, space)['id']}/").raise_for_status()

        tool = connect(space, remember_in=tmp_path / "campaign" / "label_studio.json")
        restored = tool.restore(saved, asked=asked, uris={})
        assert restored.task_ids[copy] == restored.task_ids[task_ids["1.0"]]
        assert "answers of gone@x.org are under the account of the token" in restored.notes[0]
        assert "3 restored tasks show no image" in restored.notes[1]
        after = {ask: restored.task_ids[task_id] for ask, task_id in asked.items()}
        again = connect(space, remember_in=tmp_path / "campaign" / "label_studio.json").pull(after)
        assert (again.doubles, again.copied) == ({}, [])
        told = [(one.item_id, label_of(one), one.annotator, one.updated_at, one.seconds) for one in again.answers]
        assert told == [
            (one.item_id, label_of(one), "gone@x.org", one.updated_at, one.seconds) for one in before.answers
        ]
        [first] = [task for task in tasks_of(api, space) if task["data"]["item_id"] == "1.0"]
        assert comment["value"] in [part["value"] for part in first["annotations"][0]["result"]]


class TestOrder:
    @pytest.mark.parametrize("guess", ["cat", None])
    def test_the_most_wanted_comes_first(self, prepared, space, guess):
        tasks = batch(space, 6, guess=guess)
        push(prepared, [tasks[position] for position in (5, 0, 2, 1, 4, 3)])
        assert served(space, tasks) == [each.item_id for each in tasks]

    def test_tasks_with_and_without_a_guess_share_one_order(self, prepared, space):
        with_guess, without = batch(space), batch(space, guess=None)
        tasks = [pair[position % 2] for position, pair in enumerate(zip(with_guess, without, strict=True))]
        push(prepared, tasks)
        assert served(space, tasks) == [each.item_id for each in tasks]

    def test_a_new_round_comes_before_what_is_left_of_the_old(self, prepared, space):
        old, new = batch(space, 5), batch(space, 4, round_number=2)
        push(prepared, old)
        assert served(space, old, n=2) == ["1.0", "1.1"]
        push(prepared, new)
        order = served(space, old, new)
        assert order[:4] == ["2.0", "2.1", "2.2", "2.3"]
        assert sorted(order[4:]) == ["1.2", "1.3", "1.4"]


class TestImages:
    def test_a_local_image_is_served(self, prepared, api, space):
        odd = space.images_root / "so & so" / "5% #1 +é?.png"
        odd.parent.mkdir()
        Image.new("RGB", (120, 80), "teal").save(odd)
        tasks = [
            question(str(rank), uri, rank=rank) for rank, uri in enumerate([space.uris[0], str(odd), odd.as_uri()])
        ]
        push(prepared, tasks)
        addresses = {task["data"]["item_id"]: task["data"]["image"] for task in tasks_of(api, space)}
        with open(space.uris[0], "rb") as file:  # noqa: PTH123
            assert api.get(addresses["0"]).content == file.read()
        assert api.get(addresses["1"]).content == api.get(addresses["2"]).content == odd.read_bytes()

    def test_a_stranger_is_not_shown_the_image(self, prepared, api, space):
        push(prepared, batch(space, 1))
        address = tasks_of(api, space)[0]["data"]["image"]
        assert httpx.get(space.url + address).status_code in (401, 403)

    def test_a_link_to_an_image_elsewhere_is_served(self, prepared, api, space, tmp_path):
        Image.new("RGB", (120, 80), "teal").save(tmp_path / "stored.png")
        link = space.images_root / "link.png"
        link.symlink_to(tmp_path / "stored.png")
        push(prepared, [question("a", str(link))])
        assert api.get(tasks_of(api, space)[0]["data"]["image"]).content == link.read_bytes()

    def test_remote_addresses_stay_as_they_are(self, space, api):
        tool = connect(space, images_root=None)
        tool.prepare()
        uri = "https://images.example/a b.png?x=1"
        push(tool, [question(uri, uri)])
        response = api.get("/api/tasks", params={"project": project_of(api, space)["id"], "resolve_uri": False})
        assert [task["data"]["image"] for task in response.json()["tasks"]] == [uri]

    def test_refuses_an_image_that_it_could_not_show(self, prepared, space, tmp_path):
        outside = tmp_path / "outside.png"
        outside.touch()
        for uri, complaint in (
            (str(outside), "not in images_root"),
            (str(space.images_root / ".." / "x.png"), "not in images_root"),
            (str(space.images_root / "gone.png"), "not there any more"),
        ):
            with pytest.raises(AnnotationToolError, match=complaint):
                push(prepared, [question("a", uri)])

    def test_local_images_need_a_folder(self, space):
        tool = connect(space, images_root=None)
        tool.prepare()
        with pytest.raises(AnnotationToolError, match="need images_root"):
            push(tool, batch(space))

    def test_what_browsers_do_not_show_is_pushed_as_a_rendition(self, prepared, api, space):
        paths = [space.images_root / name for name in ("a.tif", "b.jp2", "c.ppm", "d.png")]
        for path in paths[:3]:
            Image.new("RGB", (9, 6), "teal").save(path)
        Image.fromarray(np.arange(54, dtype=np.uint16).reshape(6, 9) * 70).save(paths[3])
        tasks = [question(path.stem, str(path), rank=rank) for rank, path in enumerate(paths)]
        push(prepared, tasks)
        for task in tasks_of(api, space):
            loaded = api.get(task["data"]["image"])
            assert loaded.headers["content-type"] == "image/jpeg"
            with Image.open(io.BytesIO(loaded.content)) as picture:
                assert (picture.format, picture.size) == ("JPEG", (9, 6))

    def test_addresses_of_links_do_not_depend_on_where_the_pool_lies(self, servers, space, api, tmp_path):
        shown_in = servers.images / space.project
        tool = connect(space, images_root=None, shown_in=shown_in)
        tool.prepare()
        pool = tmp_path / "pool & co" / "5% #1 é"
        pool.mkdir(parents=True)
        for rank in range(3):
            Image.new("RGB", (120, 80), (rank, 90, 90)).save(pool / f"{rank}?.png")
        (pool / "private.png").write_bytes((pool / "0?.png").read_bytes())
        tasks = [question(str(rank), str(pool / f"{rank}?.png"), rank=rank) for rank in range(3)]
        push(tool, tasks)
        before = {task["data"]["item_id"]: task["data"]["image"] for task in tasks_of(api, space)}
        assert sorted(path.name for path in shown_in.iterdir()) == ["0.png", "1.png", "2.png"]
        moved = pool.rename(tmp_path / "moved")
        assert api.get(before["0"]).status_code == 404
        with_new_places = [replace(task, uri=str(moved / f"{task.rank}?.png")) for task in tasks]
        PUSHED[space.project][1] = replace(PUSHED[space.project][1], questions=with_new_places)
        assert tend(tool).mended == ()
        for rank in range(3):
            assert api.get(before[str(rank)]).content == (moved / f"{rank}?.png").read_bytes()

    def test_open_tasks_with_addresses_of_an_older_version_show_again(self, servers, space, api):
        old = connect(space)
        old.prepare()
        task_ids = push(old, batch(space))
        annotate(api, task_ids["1.0"], choice("cat"))
        shown_in = servers.images / space.project
        assert tend(old).mended == ()
        (told,) = tend(connect(space, images_root=None, shown_in=shown_in)).mended
        assert told == "3 open tasks showed another image or address, and show theirs again"
        images = {task["data"]["item_id"]: task["data"]["image"] for task in tasks_of(api, space)}
        assert [space.project.replace(" ", "%20") in images[f"1.{rank}"] for rank in range(4)] == [
            False,
            True,
            True,
            True,
        ]

    def test_an_image_that_is_gone_costs_its_task_a_line_and_the_others_nothing(self, space, prepared, api):
        push(prepared, batch(space))
        Path(space.uris[1]).unlink()
        (told,) = tend(prepared).mended
        assert told.startswith("1 open tasks of round 1 show no image, such as: image")
        assert "Put the files back" in told

    @pytest.mark.parametrize(
        ("answer", "problem"),
        [
            ((404, b""), "Label Studio answers 404"),
            ((200, b"<html>log in</html>", "text/html"), "of the type text/html"),
        ],
    )
    def test_nothing_is_pushed_that_annotators_would_not_see(self, prepared, api, space, relay, answer, problem):
        def hide(handler, body):
            if "/data/local-files/" not in handler.path:
                return False
            handler.answer(*answer)
            return True

        with relay(space.url, hide) as url, pytest.raises(AnnotationToolError, match=problem) as caught:
            push(connect(space, url=url), batch(space))
        assert "annotators would not see image" in str(caught.value)
        assert tasks_of(api, space) == []
        push(prepared, batch(space))
        with relay(space.url, hide) as url, pytest.raises(AnnotationToolError, match=problem):
            tend(connect(space, url=url))


class TestAnswers:
    def test_a_label_comes_with_its_person_its_time_and_its_duration(self, prepared, api, space, servers):
        task_ids = push(prepared, batch(space))
        answer_id = annotate(api, task_ids["1.2"], choice("dog"))
        pulled = pull(prepared, 1)
        (answer,) = pulled.answers
        assert (answer.item_id, answer.task_id, answer.answer_id) == ("1.2", task_ids["1.2"], answer_id)
        assert (answer.outcome, answer.annotator, answer.seconds) == ("labelled", servers.email, 2.5)
        assert answer.annotation.regions == (Region("image", "dog"),)
        assert answer.updated_at == api.get(f"/api/annotations/{answer_id}/").json()["updated_at"]
        assert by_item(pulled.task_ids) == task_ids

    def test_predictions_are_not_answers(self, prepared, space):
        push(prepared, batch(space))
        assert pull(prepared, 1).answers == []

    def test_classes_with_markup_and_foreign_letters_come_back_as_they_are(self, space):
        classes = ('<b>"R&D"</b>', "l'épée > 'x'", "猫 cat", "a,b;c", "$image")
        tool = connect(space, classes=classes)
        tool.prepare()
        tool.prepare()
        tasks = batch(space, len(classes), guess=classes[0])
        push(tool, tasks)
        answers = {each.item_id: label for each, label in zip(tasks, classes, strict=True)}
        annotator(space, answers).label()
        pulled = pull(tool, 1).answers
        assert {answer.item_id: answer.annotation.regions[0].label for answer in pulled} == answers

    def test_more_classes_than_keys(self, space):
        classes = tuple(f"class {number}" for number in range(60))
        tool = connect(space, classes=classes)
        tool.prepare()
        push(tool, batch(space, 1, guess="class 59"))
        assert served_labels(space, tool, {"1.0": "class 59"}) == {"1.0": "class 59"}

    @pytest.mark.parametrize(
        ("result", "outcome", "message"),
        [
            ([], "empty", ""),
            ([choice()], "empty", ""),
            ([choice("owl")], "invalid", "'owl' is not a class of this campaign"),
            ([choice("cat", "dog")], "invalid", "wanted one class, got cat, dog"),
            ([choice("cat"), choice("dog")], "invalid", "wanted one class, got cat, dog"),
            ([choice("cat", type="rating")], "invalid", "wanted label of type choices, got label of type rating"),
            ([choice("cat", from_name="mood")], "invalid", "wanted label of type choices, got mood of type choices"),
        ],
    )
    def test_tells_what_cannot_be_used_and_why(self, prepared, api, space, result, outcome, message):
        task_ids = push(prepared, batch(space, 1))
        annotate(api, task_ids["1.0"], *result)
        (answer,) = pull(prepared, 1).answers
        assert (answer.outcome, answer.message, answer.annotation) == (outcome, message, None)

    def test_a_page_that_asks_for_more_is_taken_and_its_classes_count(self, prepared, api, space):
        page = labelling_page(CLASSES).replace(
            "</View>",
            '<TextArea name="comment" toName="image"/><Rating name="stars" toName="image"/><Choices name="mood" '
            'toName="image" choice="multiple"><Choice value="good"/><Choice value="bad"/></Choices></View>',
        )
        project = project_of(api, space)
        api.patch(f"/api/projects/{project['id']}/", json={"label_config": page}).raise_for_status()
        prepared.prepare()
        task_ids = push(prepared, batch(space))
        comment = {"from_name": "comment", "to_name": "image", "type": "textarea", "value": {"text": ["blurry"]}}
        mood = choice("good", "bad", from_name="mood")
        annotate(api, task_ids["1.0"], choice("cat"), comment, mood)
        annotate(api, task_ids["1.1"], comment, choice("dog"))
        api.patch(f"/api/projects/{project['id']}/", json={"label_config": labelling_page(CLASSES)})
        answers = pull(prepared, 1).answers
        assert {answer.item_id: label_of(answer) for answer in answers} == {"1.0": "cat", "1.1": "dog"}

    def test_shapes_that_the_server_stores_are_invalid_and_cost_nothing_else(self, prepared, api, space):
        task_ids = push(prepared, batch(space))
        path = f"/api/tasks/{task_ids['1.0']}/annotations/"
        values = ({"choices": 5}, {"choices": [None]}, {"choices": [["cat"]]}, {"choices": "cat"}, 5, None)
        for part in (*(choice(value=value) for value in values), choice("cat", type=["choices"])):
            api.post(path, json={"result": [part], "lead_time": -3})  # some it answers with 500, and stores them
        annotate(api, task_ids["1.1"], choice("dog"), lead_time=1e300)
        answers = pull(prepared, 1).answers
        odd = [answer.outcome for answer in answers if answer.item_id == "1.0"]
        assert len(odd) >= 5
        assert set(odd) == {"invalid"}
        assert [(label_of(answer), answer.seconds) for answer in answers if answer.item_id == "1.1"] == [("dog", None)]

    def test_a_skip_by_the_one_annotator_ends_the_task(self, prepared, space):
        tasks = batch(space)
        push(prepared, tasks)
        someone = annotator(space, {each.item_id: "cat" for each in tasks}, skip_rate=1.0)
        assert someone.label().n_skipped == 4
        assert someone.label().item_ids == ()
        seen = progress(prepared)
        assert (seen.n_tasks, seen.n_labelled, seen.n_set_aside) == (4, 0, 4)
        assert {answer.outcome for answer in pull(prepared, 1).answers} == {"skipped"}

    def test_a_skip_that_carries_a_choice_is_still_a_skip(self, prepared, api, space):
        task_ids = push(prepared, batch(space, 1))
        annotate(api, task_ids["1.0"], choice("cat"), was_cancelled=True)
        assert [answer.outcome for answer in pull(prepared, 1).answers] == ["skipped"]

    def test_drafts_are_not_answers(self, prepared, api, space):
        task_ids = push(prepared, batch(space))
        draft = {"result": [choice("cat")], "lead_time": 1}
        api.post(f"/api/tasks/{task_ids['1.0']}/drafts", json=draft).raise_for_status()
        pulled = pull(prepared, 1)
        assert list(pulled.answers) == []
        assert progress(prepared).n_labelled == 0

    def test_an_answer_that_is_changed_later_comes_changed_and_later(self, prepared, api, space):
        task_ids = push(prepared, batch(space, 1))
        answer_id = annotate(api, task_ids["1.0"], choice("cat"))
        (before,) = pull(prepared, 1).answers
        api.patch(f"/api/annotations/{answer_id}/", json={"result": [choice("dog")]}).raise_for_status()
        (after,) = pull(prepared, 1).answers
        assert (before.answer_id, after.answer_id) == (answer_id, answer_id)
        assert after.annotation.regions == (Region("image", "dog"),)
        assert after.updated_at > before.updated_at

    def test_a_deleted_answer_is_gone_and_its_task_is_open_again(self, prepared, api, space):
        task_ids = push(prepared, batch(space, 1))
        answer_id = annotate(api, task_ids["1.0"], choice("cat"))
        api.delete(f"/api/annotations/{answer_id}/").raise_for_status()
        pulled = pull(prepared, 1)
        assert (list(pulled.answers), by_item(pulled.task_ids)) == ([], task_ids)
        assert progress(prepared).n_labelled == 0

    def test_a_deleted_task_is_gone(self, prepared, api, space):
        task_ids = push(prepared, batch(space))
        api.delete(f"/api/tasks/{task_ids['1.1']}/").raise_for_status()
        assert sorted(by_item(pull(prepared, 1).task_ids)) == ["1.0", "1.2", "1.3"]
        assert progress(prepared).n_tasks == 3

    def test_every_answer_of_a_task_comes(self, prepared, api, space):
        task_ids = push(prepared, batch(space, 1))
        answer_ids = [
            annotate(api, task_ids["1.0"], choice("cat")),
            annotate(api, task_ids["1.0"], choice("dog")),
            annotate(api, task_ids["1.0"], was_cancelled=True),
        ]
        answers = pull(prepared, 1).answers
        assert sorted(answer.answer_id for answer in answers) == answer_ids
        assert sorted(answer.outcome for answer in answers) == ["labelled", "labelled", "skipped"]
        seen = progress(prepared)
        assert (seen.n_tasks, seen.n_labelled, seen.n_set_aside) == (1, 1, 0)

    def test_only_the_asked_rounds_are_read(self, prepared, api, space):
        for round_number in (1, 2, 12):
            task_ids = push(prepared, batch(space, 2, round_number=round_number))
            annotate(api, task_ids[f"{round_number}.0"], choice("cat"))
        assert {answer.round_number for answer in pull(prepared, 1, 12).answers} == {1, 12}
        assert sorted(by_item(pull(prepared, 2).task_ids)) == ["2.0", "2.1"]
        assert pull(prepared).answers == []
        assert progress(prepared).n_tasks == 2

    def test_tasks_that_somebody_adds_by_hand_do_not_disturb(self, prepared, api, space):
        task_ids = push(prepared, batch(space))
        project = project_of(api, space)
        by_hand = [{"data": {"image": "x", "reasons": ""}}, {"data": {"image": "x", "reasons": "", "round_number": 1}}]
        api.post(f"/api/projects/{project['id']}/import", json=by_hand).raise_for_status()
        assert by_item(pull(prepared, 1).task_ids) == task_ids

    def test_reads_page_after_page(self, prepared, space, monkeypatch):
        monkeypatch.setattr(label_studio_api, "PAGE", 2)
        tasks = batch(space, 6)
        task_ids = push(prepared, tasks)
        assert len(served(space, tasks)) == 6
        pulled = pull(prepared, 1)
        assert by_item(pulled.task_ids) == task_ids
        assert sorted(answer.item_id for answer in pulled.answers) == sorted(task_ids)

    def test_reads_all_from_a_server_that_gives_shorter_pages_than_asked_for(self, prepared, space, relay):
        def shorten(handler, body):
            handler.path = handler.path.replace(f"page_size={label_studio_api.PAGE}", "page_size=2")
            return False

        task_ids = push(prepared, batch(space, 5))
        with relay(space.url, shorten) as url:
            assert by_item(pull(connect(space, url=url), 1).task_ids) == task_ids

    def test_counts_follow_the_annotators(self, prepared, space):
        tasks = batch(space, 6)
        push(prepared, tasks)
        answers = {each.item_id: "cat" for each in tasks}
        annotator(space, answers).label(2)
        annotator(space, answers, skip_rate=1.0).label(1)
        seen = progress(prepared)
        assert (seen.n_tasks, seen.n_labelled, seen.n_set_aside) == (6, 2, 1)


class TestSimulatedAnnotator:
    def test_errs_and_skips_as_often_as_told_and_the_same_way_again(self, prepared, space):
        batches = [batch(space, 12, round_number=round_number) for round_number in (1, 2)]
        done = []
        for tasks in batches:
            push(prepared, tasks)
            answers = {each.item_id: "dog" for each in tasks}
            done.append(annotator(space, answers, error_rate=0.3, skip_rate=0.2, seed=4).label())
        assert [(work.n_labelled, work.n_wrong, work.n_skipped) for work in done] == [(9, 4, 3)] * 2
        labels = [answer.annotation.regions[0].label for answer in pull(prepared, 1).answers if answer.annotation]
        assert sum(label != "dog" for label in labels) == done[0].n_wrong

    def test_tells_how_far_it_is(self, prepared, space):
        tasks = batch(space, 3)
        push(prepared, tasks)
        told = []
        someone = annotator(space, {each.item_id: "dog" for each in tasks})
        someone.label(3, on_progress=lambda done, n: told.append((done, n)))
        assert told == [(1, 3), (2, 3), (3, 3)]

    def test_works_with_a_personal_access_token(self, prepared, space, access_token):
        tasks = batch(space, 2)
        push(prepared, tasks)
        answers = {each.item_id: "dog" for each in tasks}
        someone = SimulatedAnnotator(url=space.url, token=access_token, project=space.project, answers=answers)
        assert someone.label().n_labelled == 2

    def test_says_that_it_does_not_know_an_answer(self, prepared, space):
        push(prepared, batch(space, 1))
        with pytest.raises(AnnotationToolError, match=r"item 1\.0, whose label is not known"):
            annotator(space, {}).label()

    def test_a_wrong_token_is_refused_and_not_told(self, space):
        with pytest.raises(AuthenticationFailed) as caught:
            SimulatedAnnotator(url=space.url, token="f" * 40, project=space.project, answers={}).label()
        assert "f" * 40 not in whole_text(caught.value)


class TestFailures:
    def test_a_personal_access_token_works(self, space, access_token):
        tool = connect(space, token=access_token)
        tool.prepare()
        assert len(push(tool, batch(space))) == 4
        assert progress(tool).n_tasks == 4

    @pytest.mark.parametrize("token", ["", "  \n"])
    def test_no_token_names_the_variable(self, space, token):
        with pytest.raises(AuthenticationFailed, match="LABEL_STUDIO_API_KEY"):
            connect(space, token=token)

    @pytest.mark.parametrize("token", ["secret\nwith-newline", "geheim-schlüssel-ü"])
    def test_a_garbled_token_is_refused_and_not_told(self, space, token):
        with pytest.raises(AuthenticationFailed) as caught:
            connect(space, token=token)
        assert token not in whole_text(caught.value)

    def test_a_wrong_token_is_refused_and_not_told(self, space, access_token):
        forged = access_token[:-4] + ("AAAA" if not access_token.endswith("AAAA") else "BBBB")
        for token in ("0123456789abcdef" * 2, forged):
            with pytest.raises(AuthenticationFailed, match="personal access token") as caught:
                connect(space, token=token).prepare()
            assert token not in whole_text(caught.value)

    def test_an_expired_or_forged_token_is_refused_and_not_told(self, space, relay):
        forged = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJleHAiOjEsInRva2VuX3R5cGUiOiJyZWZyZXNoIn0.c2lnbmF0dXJl"
        with pytest.raises(AuthenticationFailed, match="Token is invalid") as caught:
            connect(space, token=forged).prepare()
        assert forged not in whole_text(caught.value)

        def refuse(handler, body):
            handler.answer(401, json.dumps({"detail": "Token is expired", "code": "token_not_valid"}).encode())
            return True

        with relay(space.url, refuse) as url, pytest.raises(AuthenticationFailed, match="Token is expired") as caught:
            connect(space, url=url, token=forged).prepare()
        assert forged not in whole_text(caught.value)

    def test_access_that_ended_meanwhile_is_renewed_and_the_request_sent_again(self, space, access_token, relay):
        seen = []

        def end_access(handler, body):
            seen.append(urlsplit(handler.path).path)
            if seen != ["/api/token/refresh/", "/api/projects/", "/api/projects/"]:
                return False
            handler.answer(401, json.dumps({"detail": "Given token not valid for any token type"}).encode())
            return True

        with relay(space.url, end_access) as url:
            tool = connect(space, url=url, token=access_token)
            tool.prepare()
        assert seen.count("/api/token/refresh/") == 2
        assert seen[2:5] == ["/api/projects/", "/api/token/refresh/", "/api/projects/"]

    def test_a_server_that_is_not_there_is_named(self, space):
        url = f"http://127.0.0.1:{free_port()}"
        with pytest.raises(AnnotationToolUnavailable, match=url) as caught:
            connect(space, url=url).prepare()
        assert space.token not in whole_text(caught.value)

    @pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://example.com"])
    def test_an_address_that_is_none_is_named(self, space, url):
        with pytest.raises(AnnotationToolError, match="not the address of a server") as caught:
            connect(space, url=url).prepare()
        assert not isinstance(caught.value, AnnotationToolUnavailable)

    @pytest.mark.parametrize(
        ("status", "content"),
        [
            (429, b"{}"),
            (502, b"<html>bad gateway</html>"),
            (503, b"{}"),
            (504, b""),
            (500, json.dumps({"detail": "database is locked"}).encode()),
            (500, b"{}"),
            (200, b"<html>one moment, please</html>"),
            (200, b""),
            (200, b"null"),
            (200, b"[]"),
            (200, b'"what?"'),
        ],
    )
    def test_asks_a_busy_server_again(self, space, status, content, relay):
        refused = []

        def be_busy(handler, body):
            if len(refused) >= 2:
                return False
            refused.append(handler.path)
            handler.answer(status, content)
            return True

        with relay(space.url, be_busy) as url:
            connect(space, url=url, images_root=None).prepare()
        assert len(refused) == 2

    def test_gives_up_on_a_server_that_stays_busy(self, space, relay):
        refused = []

        def be_busy(handler, body):
            refused.append(handler.path)
            handler.answer(503, b"{}")
            return True

        with relay(space.url, be_busy) as url, pytest.raises(AnnotationToolUnavailable, match="503") as caught:
            connect(space, url=url).prepare()
        assert len(refused) == connection.ATTEMPTS
        assert space.token not in whole_text(caught.value)

    @pytest.mark.parametrize("status", [400, 403, 404])
    def test_takes_no_for_an_answer(self, space, status, relay):
        refused = []

        def refuse(handler, body):
            refused.append(handler.path)
            said = {"detail": f"no, not with {space.token}", "validation_errors": {"title": ["too good"]}}
            handler.answer(status, json.dumps(said).encode())
            return True

        with relay(space.url, refuse) as url, pytest.raises(AnnotationToolError, match="title: too good") as caught:
            connect(space, url=url).prepare()
        assert len(refused) == 1
        assert not isinstance(caught.value, AnnotationToolUnavailable)
        assert space.token not in str(caught.value)

    def test_a_server_that_stays_away_is_given_up_in_the_end_and_said_meanwhile(
        self, prepared, space, relay, monkeypatch
    ):
        monkeypatch.setattr(connection, "PATIENCE_SECONDS", 0.3)
        push(prepared, batch(space))
        refused, said = [], []

        def be_busy(handler, body):
            refused.append(handler.path)
            handler.answer(503, b"{}")
            return True

        with relay(space.url, be_busy) as url:
            tool = connect(space, url=url, say=said.append)
            for _ in range(3):
                with pytest.raises(AnnotationToolUnavailable, match=r"503.*try again"):
                    tend(tool)
        assert len(refused) <= connection.ATTEMPTS + 2, "patience is one for all calls"
        assert said[0].startswith(f"Label Studio at {url} is busy (503)")
        assert space.token not in "".join(said)

    @pytest.mark.parametrize("status", [301, 302, 307, 308])
    def test_no_token_follows_to_another_host(self, space, access_token, relay, status):
        seen = []

        def listen(handler, body):
            seen.append((dict(handler.headers), body))
            handler.answer(200, b"{}")
            return True

        with relay(space.url, listen) as elsewhere:

            def send_away(handler, body):
                handler.answer(status, b"", Location=f"{elsewhere}{handler.path}")
                return True

            with relay(space.url, send_away) as url:
                for token in (space.token, access_token):
                    with pytest.raises(AnnotationToolError, match=f"points to {elsewhere}.*write its address"):
                        connect(space, url=url, token=token).prepare()
        assert seen == []

    def test_a_redirect_on_the_same_host_is_followed(self, space, relay):
        sent_on = []

        def send_on(handler, body):
            if not handler.path.startswith("/api/projects/?") or "again" in handler.path:
                return False
            sent_on.append(handler.path)
            handler.answer(307, b"", Location=f"{handler.path}&again=1")
            return True

        with relay(space.url, send_on) as url:
            assert connect(space, url=url, images_root=None).prepare()
        assert sent_on

    def test_a_server_whose_pages_never_end_is_told(self, prepared, space, relay):
        push(prepared, batch(space))

        def repeat(handler, body):
            if not handler.path.startswith("/api/tasks"):
                return False
            handler.answer(200, json.dumps({"tasks": [{"id": 1}], "total": 10**9}).encode())
            return True

        with relay(space.url, repeat) as url, pytest.raises(AnnotationToolError, match="asked for tasks after"):
            pull(connect(space, url=url), 1)

    def test_an_answer_without_an_end_is_cut_off(self, space, relay, monkeypatch):
        monkeypatch.setattr(connection, "MOST_RESPONSE_BYTES", 10_000)

        def talk(handler, body):
            handler.answer(200, b" " * 20_000)
            return True

        with relay(space.url, talk) as url, pytest.raises(AnnotationToolError, match="more than 10000 bytes"):
            connect(space, url=url).prepare()

    def test_an_answer_that_drips_is_cut_off(self, space, relay, monkeypatch):
        monkeypatch.setattr(connection, "RESPONSE_SECONDS", 0.2)
        monkeypatch.setattr(connection, "ATTEMPTS", 1)
        over = threading.Event()

        def drip(handler, body):
            handler.send_response(200)
            handler.send_header("Content-Length", "1000000")
            handler.end_headers()
            while not over.wait(0.02):
                try:
                    handler.wfile.write(b" ")
                except OSError:
                    return True
            return True

        with relay(space.url, drip) as url:
            try:
                with pytest.raises(AnnotationToolUnavailable, match="not complete after"):
                    connect(space, url=url).prepare()
            finally:
                over.set()

    def test_whatever_a_server_sends_for_tasks_is_no_traceback(self, prepared, space, relay, monkeypatch):
        monkeypatch.setattr(connection, "ATTEMPTS", 1)
        push(prepared, batch(space, 1))
        garbled = [None, 5, [None], [5], [{}], [{"id": "x"}], [[{"id": 1}]]]
        odd_but_whole = [{"id": 3, "data": 5, "annotations": [5, None, {}]}]
        answer = {"total": 1}

        def garble(handler, body):
            if not handler.path.startswith("/api/tasks"):
                return False
            handler.answer(200, json.dumps(answer).encode())
            return True

        with relay(space.url, garble) as url:
            tool = connect(space, url=url)
            for tasks in garbled:
                answer["tasks"] = tasks
                with pytest.raises(AnnotationToolError, match="does not answer as Label Studio does"):
                    pull(tool, 1)
            answer["tasks"] = odd_but_whole
            assert pull(tool, 1).answers == []

    def test_something_else_at_the_address_is_told(self, space, relay):
        def be_something_else(handler, body):
            handler.answer(200, b"<html>hello</html>")
            return True

        with (
            relay(space.url, be_something_else) as url,
            pytest.raises(AnnotationToolError, match=r"hello|Label Studio"),
        ):
            connect(space, url=url).prepare()

    def test_a_mismatch_does_not_tell_the_token(self, prepared, space):
        push(prepared, batch(space))
        with pytest.raises(PushMismatch) as caught:
            push(prepared, batch(space, 3))
        assert space.token not in whole_text(caught.value)
        with pytest.raises(ProjectMismatch) as caught:
            connect(space, classes=("a", "b")).prepare()
        assert space.token not in whole_text(caught.value)
        assert space.token not in repr(prepared) + str(prepared)


@pytest.fixture
def asking(space, api):
    """A tool that asks for several regions of a kind, of a round of three questions with these guesses."""

    def ask(kind, *guesses) -> tuple[LabelStudio, dict[str, int]]:
        tool = connect(space, asks=AskFor(kind, several=True))
        tool.prepare()
        questions = [
            question(f"1.{rank}", space.uris[rank], rank=rank, guess=guess) for rank, guess in enumerate(guesses)
        ]
        return tool, push(tool, questions)

    return ask


class TestKinds:
    """Regions of every kind: what is asked for, guessed, drawn and read."""

    @pytest.mark.parametrize(
        ("kind", "control"), [("image", "Choices"), ("box", "RectangleLabels"), ("mask", "BitmaskLabels")]
    )
    def test_the_page_asks_for_regions_and_for_none(self, asking, api, space, kind, control):
        asking(kind, None)
        project = project_of(api, space)
        controls = {name: part["type"] for name, part in project["parsed_label_config"].items()}
        assert controls == {"label": control, "nothing": "Choices"}
        assert "Where there is nothing" in project["expert_instruction"] or kind == "image"
        connect(space, asks=AskFor(kind, several=True)).prepare()
        with pytest.raises(ProjectMismatch, match=r"where label \(Choices\) is wanted|several classes where one"):
            connect(space).prepare()

    @pytest.mark.parametrize("kind", list(KINDS))
    def test_guesses_are_kept_and_put_back_when_they_are_others(self, asking, api, space, kind):
        tool, task_ids = asking(kind, KINDS[kind], (), None)
        before = results_of(api, space)
        assert before == {
            task_ids["1.0"]: [kind_of(AskFor(kind, True)).write(KINDS[kind], {})],
            task_ids["1.1"]: [[]],
            task_ids["1.2"]: [[]],
        }
        assert tend(tool).mended == ()
        for now, then in (("dog", "cat"), ("25.0", "25.1")):
            [result] = before[task_ids["1.0"]]
            changed = json.loads(json.dumps(result).replace(now, then))
            if changed != result:
                path = f"/api/predictions/{first_of(api, space, task_ids['1.0'])}/"
                api.patch(path, json={"result": changed}).raise_for_status()
                [line] = tend(tool).mended
                assert line.startswith("1 open tasks had lost the model's guess")
                assert results_of(api, space) == before

    @pytest.mark.parametrize("kind", list(KINDS))
    def test_a_person_finds_regions_or_none_and_an_empty_submit_is_no_answer(self, asking, api, space, kind):
        tool, task_ids = asking(kind, KINDS[kind], KINDS[kind], KINDS[kind])
        annotate(api, task_ids["1.2"])
        done = annotator(space, {"1.0": KINDS[kind], "1.1": ()}).label()
        assert (sorted(done.item_ids), done.n_labelled, done.n_wrong) == (["1.0", "1.1"], 2, 0)
        answers = {answer.item_id: answer for answer in pull(tool, 1).answers}
        assert answers["1.0"].annotation.regions == KINDS[kind]
        assert (answers["1.1"].outcome, answers["1.1"].annotation.regions) == ("labelled", ())
        assert (answers["1.2"].outcome, answers["1.2"].message) == ("empty", "")

    def test_a_person_errs_in_boxes_as_often_as_told(self, asking, space):
        tool, _ = asking("box", *[None] * 6)
        boxes = KINDS["box"]
        mistakes = Mistakes(drop_rate=0.3, add_rate=0.5, shift=0.1)
        done = annotator(
            space, {f"1.{rank}": boxes for rank in range(6)}, error_rate=0.2, mistakes=mistakes, seed=1
        ).label()
        found = [answer.annotation.regions for answer in pull(tool, 1).answers]
        assert done.n_wrong == len(found) == 6
        assert {len(regions) for regions in found} > {1}
        assert all(region.geometry != boxes[0].geometry for regions in found for region in regions)

    def test_a_mask_of_another_size_is_brought_to_that_of_the_image_and_refused_from_people(self, asking, api, space):
        half = mask_to_png(np.ones((32, 32), dtype=bool))
        tool, task_ids = asking("mask", (Region("mask", "cat", mask=half),), None)
        whole = Region("mask", "cat", mask=mask_to_png(np.ones((64, 64), dtype=bool)))
        assert results_of(api, space)[task_ids["1.0"]] == [kind_of(AskFor("mask", True)).write([whole], {})]
        assert tend(tool).mended == ()
        scrambled, whole = kind_of(AskFor("mask", True)).write([Region("mask", "dog", mask=half), *KINDS["mask"]], {})
        annotate(api, task_ids["1.0"], scrambled)
        annotate(api, task_ids["1.1"], whole, scrambled)
        answers = {answer.item_id: answer for answer in pull(tool, 1).answers}
        assert answers["1.0"].outcome == "invalid"
        assert "mask 1 (dog) has 32 x 32 pixels, and its image 64 x 64" in answers["1.0"].message
        assert answers["1.1"].annotation.regions == KINDS["mask"]
        assert answers["1.1"].message.startswith("left out: mask 2 (dog)")

    def test_the_size_of_an_image_is_that_of_the_upright_picture(self, asking, api, space):
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6
        Image.new("RGB", (60, 40)).save(Path(space.uris[0]).with_suffix(".jpg"), exif=exif)
        tool = connect(space, asks=AskFor("mask", several=True))
        tool.prepare()
        guess = Region("mask", "cat", mask=mask_to_png(np.tri(2, dtype=bool)))
        push(tool, [question("1.0", str(Path(space.uris[0]).with_suffix(".jpg")), guess=(guess,))])
        [task] = tasks_of(api, space)
        assert (task["data"]["width"], task["data"]["height"]) == (40, 60)
        [[result]] = results_of(api, space).values()
        picture = Image.open(io.BytesIO(base64.b64decode(result[0]["value"]["imageDataURL"].split(",")[1])))
        seen = np.asarray(picture.convert("RGBA"))[..., 3] > 0
        assert np.array_equal(seen, np.tri(2, dtype=bool).repeat(30, axis=0).repeat(20, axis=1))

    @pytest.mark.parametrize("kind", ["image", "box"])
    def test_regions_of_classes_that_were_renamed_and_merged_have_the_new_names(self, asking, api, space, kind):
        tool, task_ids = asking(kind, None, None)
        for item_id, label in (("1.0", "dog"), ("1.1", "cat")):
            region = replace(KINDS[kind][0], label=label)
            annotate(api, task_ids[item_id], *kind_of(AskFor(kind, True)).write([region], {}))
        merged = {"dog": "hound", "cat": "hound"}
        now = connect(space, asks=AskFor(kind, True), classes=("hound", "fox"), renamed=merged, former_classes=CLASSES)
        now.prepare()
        control = project_of(api, space)["parsed_label_config"]["label"]
        assert {name: each["value"] for name, each in control["labels_attrs"].items()} == {
            "cat": "hound",
            "fox": "fox",
            "dog": "dog",
        }
        found = [answer.annotation.regions[0].label for answer in now.pull(recorded(tool, 1)).answers]
        assert found == ["hound", "hound"]
        PUSHED[space.project].clear()
        push(now, [question("2.0", space.uris[0], 2, guess=(replace(KINDS[kind][0], label="hound"),))])
        assert "cat" in json.dumps([each for each in results_of(api, space).values() if each != [[]]])

    def test_what_only_other_programs_can_write_is_told(self, asking, api, space):
        tool, task_ids = asking("box", *[None] * 4)
        [drawn] = kind_of(AskFor("box", True)).write(KINDS["box"], {})
        value = drawn["value"]
        unlabelled = {name: each for name, each in value.items() if name != "rectanglelabels"}
        annotate(api, task_ids["1.0"], drawn | {"value": value | {"rotation": 30}})
        annotate(api, task_ids["1.1"], drawn | {"type": "rectangle", "value": unlabelled})
        annotate(api, task_ids["1.2"], drawn | {"value": value | {"rectanglelabels": ["cat", "fox"]}})
        annotate(api, task_ids["1.3"], drawn, drawn | {"value": value | {"rectanglelabels": ["owl"]}})
        told = {answer.item_id: (answer.outcome, answer.message) for answer in pull(tool, 1).answers}
        assert told == {
            "1.0": ("invalid", "box 1 (dog) is turned by 30 degrees: draw it upright"),
            "1.1": ("invalid", "box 1 has no label"),
            "1.2": ("invalid", "box 1 has 2 labels, cat, fox"),
            "1.3": ("labelled", "left out: box 2: 'owl' is not a class of this campaign"),
        }


def results_of(api, space) -> dict[int, list]:
    """Task id -> the results of its predictions."""
    return {task["id"]: [each["result"] for each in task["predictions"]] for task in tasks_of(api, space)}


def first_of(api, space, task_id) -> int:
    """Id of the first prediction of a task."""
    return next(task["predictions"][0]["id"] for task in tasks_of(api, space) if task["id"] == task_id)


def label_of(answer) -> str:
    return answer.annotation.regions[0].label


def served_labels(space, tool, answers) -> dict[str, str]:
    annotator(space, answers).label()
    pulled = pull(tool, 1).answers
    return {answer.item_id: answer.annotation.regions[0].label for answer in pulled if answer.annotation}


def whole_text(error) -> str:
    """The error as a crash would print it, with all that led to it."""
    return "".join(traceback.format_exception(error))
