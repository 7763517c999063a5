import json
import os
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from connectors.notify.hooks import WEBHOOK, HookError, hooks_of

EVENT = {"event": "test", "text": "pets: näher"}


@contextmanager
def receiver(status: int = 200, *, headers: dict[str, str] | None = None, seconds_between_bytes: float = 0):
    """A server that keeps what is posted to it, by path, and answers with a status."""
    got: list[tuple[str, str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((self.path, self.headers["Content-Type"], body))
            if seconds_between_bytes:
                for byte in b"HTTP/1.1 200 OK":
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(seconds_between_bytes)
                return
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.end_headers()

        do_GET = do_POST  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def _no_webhook(monkeypatch):
    monkeypatch.delenv(WEBHOOK, raising=False)
    monkeypatch.delenv(f"{WEBHOOK}_FILE", raising=False)


def send(
    hook: str,
    event: dict[str, str] = EVENT,
    *,
    command: tuple[str, ...] | None = None,
    folder: Path = Path(),
    seconds: float = 5,
) -> None:
    hooks_of(command, folder=folder, seconds=seconds)[hook](event)


def test_a_file_whose_name_is_no_text_is_told_as_far_as_it_can_be(monkeypatch, tmp_path):
    event = {"file": os.fsdecode(b"p\xffts.toml")}
    with receiver() as (address, got):
        monkeypatch.setenv(WEBHOOK, address)
        send("webhook", event)
    copy = "import sys; open('got', 'w').write(sys.stdin.read())"
    send("command", event, command=(sys.executable, "-c", copy), folder=tmp_path)
    assert json.loads(got[0][2]) == json.loads((tmp_path / "got").read_text()) == {"file": "p?ts.toml"}


def test_an_event_is_posted_to_the_address_in_the_environment(monkeypatch):
    with receiver() as (address, got):
        monkeypatch.setenv(WEBHOOK, f"{address}/secret")
        send("webhook")
    ((path, kind, body),) = got
    assert (path, kind, json.loads(body)) == ("/secret", "application/json", EVENT)


def test_the_address_may_be_in_a_file(monkeypatch, tmp_path):
    with receiver() as (address, got):
        (tmp_path / "address").write_text(f"{address}/secret\n")
        monkeypatch.setenv(f"{WEBHOOK}_FILE", str(tmp_path / "address"))
        send("webhook")
    assert [path for path, _, _ in got] == ["/secret"]


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_not_followed(monkeypatch, status):
    with receiver() as (other, stolen), receiver(status, headers={"Location": f"{other}/stolen"}) as (address, _):
        monkeypatch.setenv(WEBHOOK, f"{address}/secret")
        with pytest.raises(HookError, match=rf"redirect \({status}\), which is not followed"):
            send("webhook")
    assert stolen == []


def test_a_server_that_answers_byte_by_byte_holds_nobody_up(monkeypatch):
    with receiver(seconds_between_bytes=0.2) as (address, _):
        monkeypatch.setenv(WEBHOOK, address)
        begun = time.monotonic()
        with pytest.raises(HookError, match=r"did not answer within 0\.5 s"):
            send("webhook", seconds=0.5)
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:1/s3cret", "https://s3cret@nowhere.invalid/s3cret", "s3cret", "ftp://s3cret", "http://h:s3cret"],
)
def test_what_goes_wrong_holds_no_address(monkeypatch, address):
    monkeypatch.setenv(WEBHOOK, address)
    with pytest.raises(HookError) as caught:
        send("webhook", seconds=20)
    assert "s3cret" not in str(caught.value)


def test_a_server_that_refuses_is_told_by_its_status(monkeypatch):
    with receiver(403) as (address, _):
        monkeypatch.setenv(WEBHOOK, f"{address}/s3cret")
        with pytest.raises(HookError, match=r"^refuses, with the status 403$"):
            send("webhook")


def test_a_command_gets_the_event_on_its_standard_input_beside_the_campaign_file(tmp_path):
    script = tmp_path / "tell.sh"
    script.write_text('#!/bin/sh\ncat > "$1"\n')
    script.chmod(0o700)
    send("command", command=("./tell.sh", "got.json"), folder=tmp_path)
    assert json.loads((tmp_path / "got.json").read_text(encoding="utf-8")) == EVENT


def test_a_command_that_reads_nothing_is_none_the_worse(tmp_path):
    send("command", command=("true",), folder=tmp_path)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("false",), "^ended with the exit code 1$"),
        (("./nowhere.sh", "s3cret"), r"^cannot be started: \./nowhere\.sh: No such file or directory$"),
        (("sh", "-c", "echo s3cret; echo s3cret >&2; exit 3"), "^ended with the exit code 3$"),
    ],
)
def test_a_command_that_fails_is_told_without_what_it_printed(tmp_path, capfd, command, told):
    with pytest.raises(HookError, match=told):
        send("command", command=command, folder=tmp_path)
    assert "s3cret" not in "".join(capfd.readouterr())


def test_a_command_that_hangs_is_ended_with_all_that_it_started(tmp_path):
    begun = time.monotonic()
    with pytest.raises(HookError, match=r"took more than 0\.5 s and was ended"):
        send("command", command=("sh", "-c", "(sleep 3; touch late) & sleep 60"), folder=tmp_path, seconds=0.5)
    assert time.monotonic() - begun < 10
    time.sleep(max(0.0, begun + 3.5 - time.monotonic()))
    assert not (tmp_path / "late").exists()


def test_nobody_is_told_where_no_hook_is_set(tmp_path):
    assert hooks_of(None, folder=tmp_path) == {}
