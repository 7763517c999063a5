"""The local servers, as they are: started, found again, stopped."""

import hashlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest

from deploy.servers import LABEL_STUDIO_LOCK, LOGIN_EMAIL, ServerError, _run_uv, down, personal_token, running, up

REPOSITORY = Path(__file__).parent.parent.parent
LABEL_STUDIO_VENV = REPOSITORY / ".labelcycle" / "label-studio-venv"
START = """
import sys
from pathlib import Path
from deploy.servers import up
up(Path(sys.argv[1]), label_studio_venv=Path(sys.argv[2]))
"""


def remembered(home) -> dict[str, dict]:
    return {server["name"]: server for server in json.loads((home / "servers.json").read_text())}


def show_images_below(home, folder) -> None:
    """Remember that Label Studio was started to show what lies in a folder."""
    known = remembered(home)
    known["label-studio"]["document_root"] = str(folder)
    (home / "servers.json").write_text(json.dumps(list(known.values())))


def session_of(leader) -> list[psutil.Process]:
    def leader_of(pid):
        try:
            return os.getsid(pid)
        except ProcessLookupError:
            return None

    return [each for each in psutil.process_iter() if leader_of(each.pid) == leader]


def test_a_second_start_finds_what_the_first_started(servers, servers_home):
    before = remembered(servers_home)
    assert up(servers_home / ".." / servers_home.name, label_studio_venv=LABEL_STUDIO_VENV) == servers
    assert remembered(servers_home) == before
    assert running(servers_home) == servers


def test_uv_of_the_environment_is_found_where_no_path_leads_to_it(monkeypatch):
    monkeypatch.setenv("PATH", "")
    _run_uv("--version")
    with pytest.raises(ServerError, match="uv no-such-command failed with 2"):
        _run_uv("no-such-command")


def test_nothing_runs_where_nothing_was_started(tmp_path):
    assert running(tmp_path / "home") is None
    assert down(tmp_path / "home") == []


def test_only_this_machine_can_reach_them(servers, servers_home):
    for server in remembered(servers_home).values():
        listening = [
            connection.laddr.ip
            for process in session_of(server["pid"])
            for connection in process.net_connections()
            if connection.status == psutil.CONN_LISTEN
        ]
        assert set(listening) == {"127.0.0.1"}, server["name"]


def test_the_password_is_in_no_file_of_ours_and_on_no_command_line(servers, servers_home):
    texts = [path.read_text() for path in [servers_home / "servers.json", *(servers_home / "logs").iterdir()]]
    for server in remembered(servers_home).values():
        texts += [" ".join(process.cmdline()) for process in session_of(server["pid"])]
    assert len(texts) >= 7
    assert not [text for text in texts if servers.password in text]
    assert servers.password not in repr(servers)


def test_two_logins_share_one_token(servers):
    tokens = {personal_token(servers.label_studio_url, servers.email, servers.password) for _ in range(2)}
    assert len(tokens) == 1
    whoami = httpx.get(
        f"{servers.label_studio_url}/api/current-user/whoami", headers={"Authorization": f"Token {tokens.pop()}"}
    )
    assert whoami.json()["email"] == LOGIN_EMAIL


def test_a_wrong_password_is_refused_and_not_told(servers):
    with pytest.raises(ServerError, match="refuses the login") as caught:
        personal_token(servers.label_studio_url, servers.email, "not the password")
    assert "not the password" not in str(caught.value)


def test_a_process_that_took_over_an_id_is_left_alone(tmp_path):
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:
        server = {"name": "mlflow", "port": 1, "pid": stranger.pid, "created": 1.0, "document_root": None}
        (tmp_path / "servers.json").write_text(json.dumps([server]))
        assert running(tmp_path) is None
        down(tmp_path)
        assert stranger.poll() is None
        stranger.kill()


def test_a_failed_start_can_be_repeated_and_everything_ends_with_down(servers, servers_home, tmp_path):
    home, broken = tmp_path / "home", tmp_path / "venv"
    for folder in (home / "label-studio", broken / "bin"):
        folder.mkdir(parents=True)
    name = "label-studio/label_studio.sqlite3"
    with closing(sqlite3.connect(servers_home / name)) as made, closing(sqlite3.connect(home / name)) as copy:
        made.backup(copy)
    (broken / "label-studio.lock.sha256").write_text(hashlib.sha256(LABEL_STUDIO_LOCK.read_bytes()).hexdigest())
    program = broken / "bin" / "label-studio"
    program.write_text("#!/bin/sh\necho the disk is on fire; exit 1\n")
    program.chmod(0o755)
    try:
        with pytest.raises(ServerError, match=r"(?s)label-studio ended while starting.*the disk is on fire"):
            up(home, label_studio_venv=broken)
        first = remembered(home)
        assert running(home) is None

        subprocess.run([sys.executable, "-c", START, home, LABEL_STUDIO_VENV], cwd=REPOSITORY, check=True)
        started = running(home)
        second = remembered(home)
        assert started is not None
        assert {key: second[key] for key in ("mlflow", "prefect")} == {key: first[key] for key in ("mlflow", "prefect")}
        assert started.label_studio_url != servers.label_studio_url

        show_images_below(home, tmp_path)  # as older versions did
        up(home, label_studio_venv=LABEL_STUDIO_VENV)
        third = remembered(home)
        assert third["label-studio"]["pid"] != second["label-studio"]["pid"]
        assert third["label-studio"]["port"] == second["label-studio"]["port"]
        assert third["label-studio"]["document_root"] == str(home / "images")
        assert third["mlflow"] == second["mlflow"]
    finally:
        leaders = [server["pid"] for server in remembered(home).values() if server["pid"]]
        stopped = down(home)
    assert stopped == ["label-studio", "mlflow", "prefect"]
    assert [process for leader in leaders for process in session_of(leader)] == []
    assert down(home) == []
    for server in remembered(home).values():
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", server["port"])) != 0
    assert running(servers_home) == servers


def test_what_a_dead_server_left_behind_is_stopped_too(tmp_path):
    code = "import subprocess; subprocess.Popen(['sleep', '60'])"
    parent = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    created = psutil.Process(parent.pid).create_time()
    parent.wait()
    (orphan,) = session_of(parent.pid)
    server = {"name": "mlflow", "port": 1, "pid": parent.pid, "created": created, "document_root": None}
    (tmp_path / "servers.json").write_text(json.dumps([server]))
    assert down(tmp_path) == ["mlflow"]
    assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE


def test_a_server_that_ignores_the_polite_signal_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.servers.STOP_SECONDS", 0.5)
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE) as stubborn:
        stubborn.stdout.readline()
        created = psutil.Process(stubborn.pid).create_time()
        server = {"name": "mlflow", "port": 1, "pid": stubborn.pid, "created": created, "document_root": None}
        (tmp_path / "servers.json").write_text(json.dumps([server]))
        assert down(tmp_path) == ["mlflow"]
        assert not psutil.pid_exists(stubborn.pid)
