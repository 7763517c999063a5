"""Which of a campaign's servers are away, as `labelcycle status` shows it."""

import json
import os
import socket
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from deploy.processes import free_port
from flows.reports.servers import SECONDS, ask_servers, away_lines


@contextmanager
def answering(status: int, **headers: str):
    """A server that gives one answer to everything, and the paths and logins that it was sent."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Authorization")))
            self.send_response(status)
            for name, value in {"Content-Length": "0", **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def silent():
    """A server that takes connections and answers nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def settings(label_studio="local", mlflow="sqlite:////mlflow.db"):
    return SimpleNamespace(label_studio=SimpleNamespace(url=label_studio), mlflow=SimpleNamespace(uri=mlflow))


@pytest.fixture(autouse=True)
def _no_prefect(monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL", raising=False)


@pytest.mark.parametrize("status", [200, 302, 401, 403, 404])
def test_server_that_answers_anything_of_its_own_is_there(status, tmp_path):
    with answering(status, Location="http://127.0.0.1:9/login") as (url, asked):
        (seen,) = ask_servers(settings(label_studio=url), tmp_path)().values()
    assert (seen.answers, seen.why, seen.url, seen.is_local) == (True, None, url, False)
    assert asked == [("/health", None)]


def test_servers_that_are_away_are_told_with_the_reason_and_soon(tmp_path, monkeypatch):
    refusing = f"http://127.0.0.1:{free_port()}"
    with answering(502) as (gateway, _), silent() as mute:
        monkeypatch.setenv("PREFECT_API_URL", f"{refusing}/api")
        began = time.monotonic()
        seen = ask_servers(settings(gateway, mute), tmp_path)()
        assert time.monotonic() - began < SECONDS + 1.5, "one after another they would take longer"
    assert list(away_lines(seen)) == [
        f"Label Studio is away, {gateway}: it answers with 502",
        f"MLflow is away, {mute}: no answer within 2 s",
        f"Prefect is away, {refusing}/api: Connection refused",
    ]


def test_local_server_that_ended_or_never_began_is_told_with_the_way_back(tmp_path):
    ask = settings(mlflow="local")
    assert next(away_lines(ask_servers(ask, tmp_path)())) == (
        f"Label Studio is away: it was never started in {tmp_path}; `labelcycle up` starts it"
    )
    with answering(200) as (url, _):  # another program, which took the port
        port = int(url.rpartition(":")[2])
        known = [
            {"name": "label-studio", "port": port, "pid": None, "created": None},
            {"name": "mlflow", "port": port, "pid": os.getpid(), "created": 1.0},  # another process has its number now
        ]
        (tmp_path / "servers.json").write_text(json.dumps(known))
        seen = ask_servers(ask, tmp_path)()
    told = "it does not run, or does not answer; `labelcycle up` starts it"
    assert list(away_lines(seen))[:2] == [f"Label Studio is away, {url}: {told}", f"MLflow is away, {url}: {told}"]


def test_address_of_prefect_that_is_the_local_one_is_asked_as_such(tmp_path, monkeypatch):
    (tmp_path / "servers.json").write_text(json.dumps([{"name": "prefect", "port": 9}]))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api/")
    assert ask_servers(settings("http://127.0.0.1:9"), tmp_path)()["prefect"].is_local


def test_file_of_mlflow_and_a_prefect_that_nobody_names_are_not_asked(tmp_path):
    with answering(200) as (url, _):
        assert list(ask_servers(settings(url), tmp_path)()) == ["label_studio"]
