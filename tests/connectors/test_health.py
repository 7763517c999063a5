"""What Label Studio and MLflow tell of themselves: each part is seen to fail, with what to do."""

import base64
import io
import json
import threading
import time
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from label_studio_sdk._extensions.label_studio_tools.core.label_config import parse_config
from mlflow import MlflowClient
from PIL import Image

from connectors.annotation import Asked, Question
from connectors.label_studio import connection, health
from connectors.label_studio.client import LabelStudio
from connectors.label_studio.pages import labelling_page
from connectors.label_studio.project import SETTINGS
from connectors.mlflow import health as mlflow_health
from connectors.mlflow.tracker import MLflowTracker
from pipeline.types import Ask

CLASSES = ("cat", "dog")
TOKEN = "0123456789abcdef"


class FakeLabelStudio:
    """A server with one project of one open task; what it holds can be changed."""

    def __init__(self, folder: Path) -> None:
        self.version, self.date, self.token = "1.23.2", datetime.now(UTC), TOKEN
        self.images = folder / "root" / "pets"
        self.images.mkdir(parents=True)
        pixels = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        self.picture: bytes | None = buffer.getvalue()
        self.storages = [{"id": 1, "path": str(self.images)}]
        page = labelling_page(CLASSES)
        self.project = {
            "id": 1,
            "title": "pets",
            "created_at": "2026-11-29",
            "task_number": 1,
            "label_config": page,
            "parsed_label_config": parse_config(page),
            "expert_instruction": "Look.",
            "show_instruction": True,
            **SETTINGS,
        }
        self.tasks = [
            {
                "id": 7,
                "data": {"image": "/data/local-files/?d=pets/a.png", "item_id": "a", "round_number": 0},
                "annotations": [],
            }
        ]

    def answer(self, method: str, path: str, authorization: str) -> tuple[int, object]:
        if authorization != f"Token {self.token}":
            return 401, {"detail": "Invalid token."}
        if method == "POST":
            assert path.endswith("/validate")  # which looks, and changes nothing
            root = self.images.parent
            return 400, {"detail": f'LOCAL_FILES_DOCUMENT_ROOT="{root}" is not for "/"'}
        return {
            "/api/version": (200, {"release": self.version}),
            "/api/current-user/whoami": (200, {"email": "lead@example.org"}),
            "/api/projects/": (200, {"results": [self.project] if self.project else []}),
            "/api/projects/1/": (200, self.project),
            "/api/tasks/": (200, {"tasks": self.tasks, "total": len(self.tasks)}),
            "/api/storages/localfiles/": (200, self.storages),
            "/data/local-files/": (200 if self.picture else 404, self.picture or {}),
        }[path]


@pytest.fixture
def server(tmp_path):
    held = FakeLabelStudio(tmp_path)

    class Handler(BaseHTTPRequestHandler):
        def do_any(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = urlsplit(self.path).path
            status, content = held.answer(self.command, path, self.headers.get("Authorization", ""))
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response_only(status)
            self.send_header("Date", format_datetime(held.date, usegmt=True))
            self.send_header("Content-Type", "image/png" if isinstance(content, bytes) else "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_any  # noqa: N815

        def log_message(self, *_):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, args=(0.05,))
    thread.start()
    held.url = f"http://127.0.0.1:{http.server_port}"
    yield held
    http.shutdown()
    thread.join()
    http.server_close()


def asked(uri: str) -> list[Asked]:
    ask = Ask("a", 0, "seed")
    return [Asked(0, [Question(ask, uri, 0)], "m", {ask: 7})]


def look(server, *, uri: str | None = None, token: str = TOKEN, rounds: bool = True) -> list:
    uri = uri or str(server.images / "a.png")
    tool = LabelStudio(
        url=server.url, token=token, project="pets", classes=CLASSES, images_root=server.images, instructions="Look."
    )
    return list(tool.check(asked(uri) if rounds else []))


def test_all_parts_of_label_studio_are_looked_at(server):
    found = look(server)
    assert [finding.name for finding in found] == list(health.PARTS)
    assert {finding.status for finding in found} == {"ok"}, found
    assert found[0].found == f"1.23.2 at {server.url} takes the token of lead@example.org; its clock agrees with ours"
    assert "a.png loads as an annotator's browser loads it" in found[-1].found


def no_token(server):
    server.token = "another"


def no_project(server):
    server.project = None


def another_page(server):
    page = labelling_page(("cat", "fox"))
    server.project |= {"label_config": page, "parsed_label_config": parse_config(page)}


def no_storage(server):
    server.storages = []


def no_image(server):
    server.picture = None


def page_of_an_error(server):
    server.picture = b"<html>no image</html>" * 20


def other_order(server):
    server.project |= {"sampling": "Sequential sampling"}


def slow_clock(server):
    server.date = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("damage", "status", "name", "told", "mend"),
    [
        (no_token, "failure", "Label Studio", "refuses the token", "LABEL_STUDIO_API_KEY"),
        (slow_clock, "warning", "Label Studio", "s behind this machine's", "NTP"),
        (no_project, "failure", "project", "has no project 'pets'", "bring the project back"),
        (another_page, "failure", "labelling page", "has the classes cat, fox where cat, dog are", "set the page back"),
        (other_order, "warning", "labelling page", "somebody changed sampling", "sets it back"),
        (no_storage, "failure", "images shown", "has lost the storage", "labelcycle run"),
        (no_image, "failure", "images shown", "Label Studio answers 404", "put the images where `pool` says"),
        (page_of_an_error, "failure", "images shown", "annotators would not see image", "labelcycle run"),
    ],
)
def test_each_part_of_label_studio_is_seen_to_fail(server, damage, status, name, told, mend):
    damage(server)
    found = look(server)
    [ill] = [finding for finding in found if finding.status != "ok"]
    assert (ill.name, ill.status) == (name, status)
    assert told in ill.found
    assert mend in ill.mend
    assert TOKEN not in ill.found + ill.mend
    if status == "failure":
        assert found[-1] is ill


def test_server_that_is_away_is_told_at_once(server, monkeypatch):
    server.url = "http://127.0.0.1:9"
    began = time.monotonic()
    [away] = look(server)
    assert "does not answer" in away.found
    assert "labelcycle up" in away.mend
    assert time.monotonic() - began < connection.PATIENCE_SECONDS / 10


def test_before_the_first_push_there_is_nothing_to_look_at(server):
    server.project = None
    assert [(one.name, one.status) for one in look(server, rounds=False)] == [("Label Studio", "ok"), ("project", "ok")]


def test_where_no_task_is_open_no_image_is_loaded(server):
    server.tasks[0]["annotations"] = [{"id": 1}]
    no_image(server)
    assert look(server)[-1].found == "no task is open, so that no image was loaded"


def test_image_of_another_server_is_loaded_without_a_login(server, tmp_path):
    elsewhere = f"{server.url}/data/local-files/?d=pets/a.png"
    ill = look(server, uri=elsewhere)[-1]
    assert (ill.status, "its server answers 401" in ill.found) == ("warning", True)
    assert "open an image of the project in a browser" in ill.mend


@pytest.mark.parametrize(("days", "status"), [(3, "warning"), (300, "ok")])
def test_token_that_ends_soon_is_told(server, days, status):
    claims = base64.urlsafe_b64encode(json.dumps({"exp": time.time() + days * 86_400}).encode()).decode().rstrip("=")
    line = connection.Connection(server.url, f"x.{claims}.y", say=print)
    line._http.auth = connection.TokenAuth(TOKEN, url=server.url)
    api = health.Api(line)
    found = health._server("Label Studio", health.Place(api, None, None, None), [])
    assert (found.status, "the token ends on 20" in found.found) == (status, status == "warning")


# MLflow


@pytest.fixture
def books(tmp_path):
    return MLflowTracker(uri=f"sqlite:///{tmp_path}/mlflow.db", campaign="pets")


def test_mlflow_is_proven_by_writing_and_keeps_nothing(books, tmp_path):
    assert [one.found for one in books.check()] == [
        f"sqlite:///{tmp_path}/mlflow.db is not there yet: the first run makes it"
    ]
    assert list(tmp_path.iterdir()) == []
    books.start_round(0, params={})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".db"}
    found = list(books.check())
    assert [one.name for one in found] == list(mlflow_health.PARTS)
    assert {one.status for one in found} == {"ok"}, found
    assert {
        path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".db"
    } == before


def test_each_part_of_mlflow_is_seen_to_fail(books, tmp_path, monkeypatch):
    books.start_round(0, params={})
    artefacts = tmp_path / "mlartifacts"
    if artefacts.exists():
        artefacts.rename(tmp_path / "moved")
    artefacts.write_text("a file, where a folder is wanted")
    ill = list(books.check())[-1]
    assert (ill.name, ill.status) == ("artefacts", "failure")
    assert "look at the disk or bucket of MLflow's artefacts" in ill.mend
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_experiment_tag", refuse)
        ill = list(books.check())[-1]
    assert (ill.name, ill.status) == ("experiment", "failure")
    assert "right to edit the experiment" in ill.mend
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    client.delete_experiment(client.get_experiment_by_name("pets").experiment_id)
    [ill] = books.check()
    assert "holds a deleted experiment 'pets': bring it back" in ill.found
    (tmp_path / "mlflow.db").write_bytes(b"no database")
    [ill] = MLflowTracker(uri=f"sqlite:///{tmp_path}/mlflow.db", campaign="pets").check()
    assert (ill.name, ill.status, "mend uri in [mlflow]" in ill.mend) == ("MLflow", "failure", True)


def refuse(*_arguments):
    raise PermissionError("not yours")
