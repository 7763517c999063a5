"""The local servers, as they are: started, found again, stopped."""

import hashlib
import json
import os
import socket
import sqlite3
import subprocess
import sys
import traceback
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import httpx
import psutil
import pytest
from werkzeug.security import check_password_hash

from connectors.annotation import AuthenticationFailed
from connectors.label_studio.client import LabelStudio
from deploy.label_studio_venv import LABEL_STUDIO_LOCK, run_uv
from deploy.logins import EMAIL, USER, ServerError, fingerprint, make_password, password_file, set_mlflow_password
from deploy.programs import HEALTH
from deploy.servers import (
    Server,
    Servers,
    _make_home,
    down,
    personal_token,
    running,
    up,
)

REPOSITORY = Path(__file__).parent.parent.parent
LABEL_STUDIO_VENV = REPOSITORY / ".labelcycle" / "label-studio-venv"
NAMES = tuple(HEALTH)
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
    run_uv("--version")
    with pytest.raises(ServerError, match="uv no-such-command failed with 2"):
        run_uv("no-such-command")


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


def test_the_password_is_in_one_file_of_ours_and_on_no_command_line(servers, servers_home):
    assert password_file(servers_home).read_text().strip() == servers.password
    configuration = [servers_home / "servers.json", servers_home / "mlflow" / "auth.ini"]
    texts = [path.read_text() for path in [*configuration, *(servers_home / "logs").iterdir()]]
    for server in remembered(servers_home).values():
        texts += [" ".join(process.cmdline()) for process in session_of(server["pid"])]
    assert len(texts) >= 7
    assert not [text for text in texts if servers.password in text]
    assert servers.password not in repr(servers)


def test_two_logins_share_one_token(servers):
    tokens = {personal_token(servers) for _ in range(2)}
    assert len(tokens) == 1
    whoami = httpx.get(
        f"{servers.label_studio_url}/api/current-user/whoami", headers={"Authorization": f"Token {tokens.pop()}"}
    )
    assert whoami.json()["email"] == EMAIL


def test_a_wrong_password_is_refused_and_not_told(servers):
    with pytest.raises(ServerError, match="refuses the login") as caught:
        personal_token(replace(servers, password="not the password"))
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
        assert started.password != servers.password
        assert personal_token(started), "of a first start with another password, this home's is set"
        assert {key: second[key] for key in ("mlflow", "prefect")} == {key: first[key] for key in ("mlflow", "prefect")}
        assert started.label_studio_url != servers.label_studio_url

        killed = session_of(second["mlflow"]["pid"])
        for process in killed:
            process.kill()
        psutil.wait_procs(killed, timeout=5)
        show_images_below(home, tmp_path)  # as older versions did
        up(home, label_studio_venv=LABEL_STUDIO_VENV)
        third = remembered(home)
        assert third["label-studio"]["pid"] != second["label-studio"]["pid"]
        assert third["label-studio"]["port"] == second["label-studio"]["port"]
        assert third["label-studio"]["document_root"] == str(home / "images")
        assert third["mlflow"]["pid"] != second["mlflow"]["pid"]
        assert third["mlflow"]["port"] == second["mlflow"]["port"]
        assert third["prefect"] == second["prefect"]
        check_that_a_refused_token_is_explained(running(home), tmp_path)
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


def check_that_a_refused_token_is_explained(local, images) -> None:
    """On servers of one's own: what is switched off is so for all who use them."""
    token = personal_token(local)
    with httpx.Client(base_url=local.label_studio_url, timeout=60) as client:
        client.get("/user/login/").raise_for_status()
        form = {"email": local.email, "password": local.password, "csrfmiddlewaretoken": client.cookies["csrftoken"]}
        client.post("/user/login/", data=form)
        tokens = {"api_tokens_enabled": True, "legacy_api_tokens_enabled": False}
        headers = {"X-CSRFToken": client.cookies["csrftoken"]}
        client.post("/api/jwt/settings", json=tokens, headers=headers).raise_for_status()
    tool = LabelStudio(
        url=local.label_studio_url, token=token, project="digits", classes=("cat", "dog"), images_root=images
    )
    with pytest.raises(AuthenticationFailed, match=r"legacy token .* disabled.* personal access token") as caught:
        tool.prepare()
    assert token not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("is_reaped", [True, False])
def test_what_a_dead_server_left_behind_is_stopped_too(tmp_path, is_reaped):
    code = "import subprocess; subprocess.Popen(['sleep', '60'])"
    parent = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    created = psutil.Process(parent.pid).create_time()
    os.waitid(os.P_PID, parent.pid, os.WEXITED | (0 if is_reaped else os.WNOWAIT))  # nobody may look after it
    (orphan,) = [each for each in session_of(parent.pid) if each.pid != parent.pid]
    server = {"name": "mlflow", "port": 1, "pid": parent.pid, "created": created, "document_root": None}
    (tmp_path / "servers.json").write_text(json.dumps([server]))
    assert down(tmp_path) == ["mlflow"]
    assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
    parent.wait()


def test_a_server_that_ignores_the_polite_signal_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("deploy.processes.STOP_SECONDS", 0.5)
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE) as stubborn:
        stubborn.stdout.readline()
        created = psutil.Process(stubborn.pid).create_time()
        server = {"name": "mlflow", "port": 1, "pid": stubborn.pid, "created": created, "document_root": None}
        (tmp_path / "servers.json").write_text(json.dumps([server]))
        assert down(tmp_path) == ["mlflow"]
        assert not psutil.pid_exists(stubborn.pid)


def modes(folder, *, deep=True):
    """What others may do with the files of a folder, links not followed; installed programs and pages are no secret."""
    paths = [path for path in (folder.rglob("*") if deep else folder.iterdir()) if not path.is_symlink()]
    return {
        str(path): path.stat().st_mode & 0o077 for path in paths if not {"label-studio-venv", "ui"} & set(path.parts)
    }


def test_what_the_servers_write_is_readable_by_its_owner_alone(servers, servers_home):
    for name in ("label-studio", "mlflow", "prefect", "logs"):
        assert (servers_home / name).stat().st_mode & 0o777 == 0o700
    for name in ("password", "servers.json", "mlflow/auth.ini", "mlflow/mlflow.db", "prefect/prefect.db"):
        assert (servers_home / name).stat().st_mode & 0o777 == 0o600, name
    assert not {
        path: mode for name in ("mlflow", "prefect") for path, mode in modes(servers_home / name).items() if mode
    }


def test_nobody_is_let_in_without_the_password(servers):
    mlflow, prefect = servers.mlflow_url, servers.prefect_api_url
    asked = {
        f"{prefect}/flows/filter": httpx.post(f"{prefect}/flows/filter", json={}),
        f"{mlflow}/": httpx.get(f"{mlflow}/"),
        f"{mlflow}/api/2.0/mlflow/experiments/search": httpx.post(
            f"{mlflow}/api/2.0/mlflow/experiments/search", json={"max_results": 1}
        ),
        f"{mlflow}/get-artifact": httpx.get(f"{mlflow}/get-artifact", params={"path": "a", "run_uuid": "b"}),
        f"{mlflow}/artifacts": httpx.put(f"{mlflow}/api/2.0/mlflow-artifacts/artifacts/a.txt", content=b"a"),
    }
    assert {address: answer.status_code for address, answer in asked.items()} == dict.fromkeys(asked, 401)
    allowed = httpx.post(f"{prefect}/flows/filter", json={}, auth=tuple(servers.prefect_login.split(":")))
    assert allowed.status_code == 200
    assert httpx.get(f"{mlflow}/version", auth=servers.mlflow_login).status_code == 200


def test_a_page_of_another_address_gets_no_answer_from_prefect(servers):
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    foreign = httpx.options(
        f"{servers.prefect_api_url}/flows/filter", headers=asked | {"Origin": "https://example.org"}
    )
    own = httpx.options(f"{servers.prefect_api_url}/flows/filter", headers=asked | {"Origin": servers.prefect_ui_url})
    assert "access-control-allow-origin" not in foreign.headers
    assert own.headers["access-control-allow-origin"] == servers.prefect_ui_url


@pytest.mark.parametrize("address", [{"Origin": "https://example.org"}, {"Host": "example.org"}])
def test_a_page_of_another_address_cannot_drive_mlflow(servers, address):
    wanted = f"{servers.mlflow_url}/api/2.0/mlflow/experiments/search"
    asked = {"json": {"max_results": 1}, "auth": servers.mlflow_login}  # as a browser that is logged in sends it
    assert httpx.post(wanted, **asked).status_code == 200
    assert httpx.post(wanted, **asked, headers=address).status_code == 403


def test_the_session_of_label_studio_goes_to_no_other_site(servers):
    with httpx.Client(base_url=servers.label_studio_url) as client:
        client.get("/user/login/")
        form = {"email": EMAIL, "password": servers.password, "csrfmiddlewaretoken": client.cookies["csrftoken"]}
        answer = client.post("/user/login/", data=form, headers={"Referer": servers.label_studio_url})
    (session,) = (text for text in answer.headers.get_list("set-cookie") if text.startswith("sessionid="))
    assert {"HttpOnly", "SameSite=Lax"} <= set(session.split("; "))


def test_two_homes_have_two_passwords_and_a_home_keeps_its_own(tmp_path):
    first, second = make_password(tmp_path), None
    assert make_password(tmp_path) == first
    (tmp_path / "other").mkdir()
    second = make_password(tmp_path / "other")
    assert len({first, second}) == 2
    assert min(len(first), len(second)) >= 20
    assert password_file(tmp_path).stat().st_mode & 0o777 == 0o600


def test_password_of_an_mlflow_that_started_with_another_is_set(tmp_path):
    database = tmp_path / "auth.db"
    set_mlflow_password(database, "of no use yet")
    assert not database.exists()
    with closing(sqlite3.connect(database)) as connection, connection:
        connection.execute("CREATE TABLE users (username TEXT, password_hash TEXT)")
        connection.executemany("INSERT INTO users VALUES (?, ?)", [(USER, "the first"), ("another", "theirs")])
    set_mlflow_password(database, "the-second-password")
    with closing(sqlite3.connect(database)) as connection:
        hashes = dict(connection.execute("SELECT username, password_hash FROM users"))
    assert check_password_hash(hashes[USER], "the-second-password")
    assert hashes["another"] == "theirs"


@pytest.mark.parametrize(
    ("text", "mode", "told"),
    [
        ("a-good-long-password", 0o644, "others may read it"),
        ("short", 0o600, "12 characters or more"),
        ("with:a colon inside", 0o600, "without a colon"),
        ("", 0o600, "12 characters or more"),
    ],
)
def test_a_password_that_is_none_is_refused_with_what_to_do(tmp_path, text, mode, told):
    password_file(tmp_path).write_text(text)
    password_file(tmp_path).chmod(mode)
    with pytest.raises(ServerError, match=f"{told}.*delete the file and run `labelcycle up`") as caught:
        make_password(tmp_path)
    assert text == "" or text not in str(caught.value)


def test_a_home_that_is_named_keeps_its_rights_and_a_new_one_is_private(tmp_path):
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    _make_home(shared)
    assert shared.stat().st_mode & 0o777 == 0o755
    for home in (tmp_path / "new" / "home", tmp_path / ".labelcycle"):
        _make_home(home)
        assert home.stat().st_mode & 0o777 == 0o700
    (tmp_path / ".labelcycle").chmod(0o755)
    _make_home(tmp_path / ".labelcycle")
    assert (tmp_path / ".labelcycle").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    with pytest.raises(ServerError, match="must be a folder"):
        _make_home(tmp_path / "file")


def listener(port, seconds=60):
    """A program in a session of its own that takes a port and answers any request with 200."""
    code = f"""
from http.server import BaseHTTPRequestHandler, HTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
server = HTTPServer(("127.0.0.1", {port}), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""
    return subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE, text=True)


def test_a_stranger_who_took_the_port_is_no_server_and_gets_no_password(tmp_path):
    make_password(tmp_path)
    with listener(0) as stranger, subprocess.Popen(["sleep", "60"], start_new_session=True) as ours:
        try:
            port = int(stranger.stdout.readline())
            server = Server("label-studio", port, ours.pid, psutil.Process(ours.pid).create_time(), login="any")
            (tmp_path / "servers.json").write_text(json.dumps([asdict(replace(server, name=name)) for name in NAMES]))
            assert not server.is_listening
            assert running(tmp_path) is None
            local = Servers(
                tmp_path, server.url, server.url, server.url, server.url, images=tmp_path, password="the-password"
            )
            with pytest.raises(ServerError, match="is not the Label Studio that was started here"):
                personal_token(local)
            itself = replace(server, pid=stranger.pid, created=psutil.Process(stranger.pid).create_time())
            assert itself.is_listening
        finally:
            stranger.kill()
            ours.kill()


def test_servers_of_an_older_version_without_a_login_do_not_count_as_running(tmp_path):
    password = make_password(tmp_path)
    with listener(0) as ours:
        try:
            port = int(ours.stdout.readline())
            server = Server("mlflow", port, ours.pid, psutil.Process(ours.pid).create_time())
            for login, counts in ((None, False), ("of another password", False), (fingerprint(password), True)):
                state = [asdict(replace(server, name=name, login=login)) for name in NAMES]
                (tmp_path / "servers.json").write_text(json.dumps(state))
                assert (running(tmp_path) is not None) == counts
        finally:
            ours.kill()


def test_servers_file_that_is_damaged_is_told(tmp_path):
    for text in ("{", '[{"name": "mlflow"}]', '{"name": 1}', "[1]", "null"):
        (tmp_path / "servers.json").write_text(text)
        with pytest.raises(ServerError, match=r"servers\.json is damaged, or of another version"):
            running(tmp_path)
