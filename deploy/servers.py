"""Label Studio, MLflow and Prefect on this machine, for a demo, a small team and the tests.

All three run on SQLite below one home folder, are bound to 127.0.0.1, want a login and report nothing to anybody.
What they keep is readable by its owner alone. They outlive the process that started them and end with `down`.
"""

import json
import os
import secrets
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import filelock
import psutil

from deploy import logins, programs
from deploy.label_studio_venv import install_label_studio
from deploy.logins import ServerError
from deploy.private import PRIVATE_FOLDER, PRIVATE_UMASK, make_private, open_private
from deploy.processes import comes_free, end_session, free_port, holds_port, is_process, tail
from deploy.programs import HEALTH, LOOPBACK, Place, Plan, inherited_environment

START_SECONDS = 480.0
HOME_NAME = ".labelcycle"
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Server:
    """One server, as `servers.json` remembers it.

    Attributes:
        pid: together with `created`, in seconds since 1970, it names one process; None after a stop.
        document_root: Label Studio serves images from folders below this one, not from this one itself.
        login: tells the password that it was started with from others.
    """

    name: str
    port: int
    pid: int | None = None
    created: float | None = None
    document_root: str | None = None
    login: str | None = None

    @property
    def url(self) -> str:
        """Where it is to answer."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self.pid is not None and is_process(self.pid, self.created)

    @property
    def is_listening(self) -> bool:
        """Whether the port is held by the server itself."""
        return self.pid is not None and holds_port(self.pid, self.created, self.port)


@dataclass(frozen=True, slots=True)
class Servers:
    """Where the local servers are, and how to log in.

    Attributes:
        images: Label Studio shows files from folders below this one, and nothing else of this machine.
    """

    home: Path
    label_studio_url: str
    mlflow_url: str
    prefect_api_url: str
    prefect_ui_url: str
    images: Path
    password: str = field(repr=False)
    email: str = logins.EMAIL

    @property
    def mlflow_login(self) -> tuple[str, str]:
        """User and password."""
        return logins.USER, self.password

    @property
    def prefect_login(self) -> str:
        """User and password as Prefect wants them, in one."""
        return f"{logins.USER}:{self.password}"


def up(
    home: Path,
    *,
    say: Say | None = None,
    label_studio_venv: Path | None = None,
) -> Servers:
    """Start those of the three servers that do not run yet, and wait until all answer.

    Args:
        home: folder of all their data and logs; a second call with it finds the servers of the first.
        say: called with one line whenever something happened.
        label_studio_venv: environment of the Label Studio server, made as `label-studio.lock` says.

    Raises:
        ServerError: with the last lines of the log, if a server ends or stays silent.
    """
    home = home.resolve()
    _make_home(home)
    venv = (label_studio_venv or home / "label-studio-venv").absolute()
    say = say or (lambda line: None)
    with filelock.FileLock(home / "servers.lock"):
        logins.make_password(home)
        state = _State(home)
        with ThreadPoolExecutor(len(HEALTH)) as pool:
            starts = [
                pool.submit(_ensure_label_studio, state, _document_root(home), venv, say),
                pool.submit(_ensure, state, "mlflow", partial(programs.mlflow, session_key=secrets.token_hex(32)), say),
                pool.submit(_ensure, state, "prefect", programs.prefect, say),
            ]
        for start in starts:
            start.result()
        return _servers(state)


def running(home: Path) -> Servers | None:
    """The servers of `home`, or None unless all three answer."""
    return _servers(_State(home.resolve())) if all(answers(home, name) for name in HEALTH) else None


def answers(home: Path, name: str) -> bool:
    """Whether one of the servers of `home` answers: the one that was started there, with the password of now."""
    state = _State(home.resolve())
    server = state.get(name)
    if server is None or not server.login or not server.is_alive:
        return False
    return _answers(server) and state.is_guarded(server)


def remembered(home: Path) -> Servers | None:
    """The servers of `home` as they were last started, whether they answer now or not; None before the first start."""
    state = _State(home.resolve())
    return _servers(state) if all(state.get(name) for name in HEALTH) else None


def addresses(home: Path) -> dict[str, str]:
    """Where the servers of `home` were last started, by name, whether they answer now or not."""
    state = _State(home.resolve())
    return {name: server.url for name in HEALTH if (server := state.get(name))}


def down(home: Path) -> list[str]:
    """Stop all servers of `home`, with everything they started, and return the names of those that ran."""
    home = home.resolve()
    if not home.is_dir():
        return []
    with filelock.FileLock(home / "servers.lock"):
        state = _State(home)
        return [name for name in HEALTH if _stop(state, name)]


def personal_token(local: Servers) -> str:
    """Log in to the local Label Studio and return the person's API token.

    Label Studio shows a personal access token once, and makes another only when the first is revoked, which
    cuts off whoever uses it. So this is the person's token of the older kind, which every login can read.

    Raises:
        ServerError: if the login is refused, or another program answers in the server's place.
    """
    import httpx  # for sessions; commands that ask whether the servers answer do without

    url = local.label_studio_url
    server = _State(local.home).get("label-studio")
    if server is None or server.url != url or not server.is_listening:
        raise ServerError(
            f"the program that answers at {url} is not the Label Studio that was started here, so that no password "
            "is sent to it: run `labelcycle up` again"
        )
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        try:
            client.get("/user/login/").raise_for_status()
            form = {
                "email": local.email,
                "password": local.password,
                "csrfmiddlewaretoken": client.cookies["csrftoken"],
            }
            client.post("/user/login/", data=form, headers={"Referer": url})
            for seconds in (1, 2, 4, 0):
                answer = client.get("/api/current-user/token")
                if answer.status_code < 500:  # who asks while another makes the token, or writes, gets a 500
                    break
                time.sleep(seconds)
            if answer.status_code != 401:
                answer.raise_for_status()
        except (httpx.HTTPError, KeyError) as exc:
            raise ServerError(f"cannot log in to Label Studio at {url}: {exc}") from exc
    if answer.status_code == 401:
        raise ServerError(
            f"Label Studio at {url} refuses the login of {local.email}: run `labelcycle down`, then `labelcycle up`, "
            f"which gives it the password in {logins.password_file(local.home)} again."
        )
    return str(answer.json()["token"])


class _State:
    """`servers.json`: ports and process ids, no secret; safe to use from several threads."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._path = home / "servers.json"
        self._lock = threading.Lock()
        try:
            written = json.loads(self._path.read_text()) if self._path.exists() else []
            self._servers = {values["name"]: Server(**values) for values in written}
        except (ValueError, TypeError, KeyError) as exc:
            raise ServerError(
                f"{self._path} is damaged, or of another version: end the servers by hand, and delete the file"
            ) from exc

    @property
    def password(self) -> str:
        """What all three servers take."""
        return logins.read_password(self.home)

    def is_guarded(self, server: Server) -> bool:
        """Whether the server was started with the password of now."""
        return server.login == logins.fingerprint(self.password)

    def get(self, name: str) -> Server | None:
        return self._servers.get(name)

    def set(self, server: Server) -> Server:
        with self._lock:
            self._servers[server.name] = server
            temporary = self._path.with_suffix(".part")
            with open_private(temporary, os.O_TRUNC) as file:
                file.write(json.dumps([asdict(each) for each in self._servers.values()], indent=2) + "\n")
            temporary.replace(self._path)
        return server

    def log(self, name: str) -> Path:
        return self.home / "logs" / f"{name}.log"


def _document_root(home: Path) -> Path:
    """A folder of our own, in which campaigns lay out what annotators see: nothing beside it can be asked for."""
    root = home / "images"
    root.mkdir(exist_ok=True)
    return root


def _ensure_label_studio(state: _State, document_root: Path, venv: Path, say: Say) -> None:
    server = state.get("label-studio") or Server("label-studio", free_port())
    if server.document_root != str(document_root):
        if _stop(state, server.name):
            say(f"label-studio: stopped, it served images below {server.document_root}")
        server = state.set(replace(server, pid=None, created=None, document_root=str(document_root)))
    if not server.is_alive:
        install_label_studio(venv, say)
    plan = partial(programs.label_studio, program=venv / "bin" / "label-studio", images=document_root)
    _ensure(state, server.name, plan, say)


def _ensure(state: _State, name: str, plan: Plan, say: Say) -> None:
    server = state.get(name) or Server(name, free_port())
    if server.is_alive and not state.is_guarded(server):
        say(f"{name}: stopped, it was started without this password")
        _stop(state, name)
        server = _known(state, name)
    if not server.is_alive:
        _stop(state, name)  # what a server that died has left behind
        server = _start(state, server, plan, say)
    _wait(state, server, say)


def _start(state: _State, server: Server, plan: Plan, say: Say) -> Server:
    port = server.port if comes_free(server.port) else free_port()
    server = state.set(replace(server, port=port))
    folder, log = state.home / server.name, state.log(server.name)
    say(f"{server.name}: starting, log in {log}")
    make_private(folder)
    make_private(log.parent)
    command, environment = plan(Place(folder, server.url, port), state.password)
    with open_private(log, os.O_APPEND) as output:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=inherited_environment() | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=PRIVATE_UMASK,
        )
    child.returncode = 0  # it outlives us on purpose; Popen would warn
    created, login = psutil.Process(child.pid).create_time(), logins.fingerprint(state.password)
    return state.set(replace(server, pid=child.pid, created=created, login=login))


def _servers(state: _State) -> Servers:
    label_studio, mlflow, prefect = (_known(state, name) for name in HEALTH)
    return Servers(
        home=state.home,
        label_studio_url=label_studio.url,
        mlflow_url=mlflow.url,
        prefect_api_url=f"{prefect.url}/api",
        prefect_ui_url=prefect.url,
        images=_document_root(state.home),
        password=state.password,
    )


def _known(state: _State, name: str) -> Server:
    server = state.get(name)
    if server is None:
        raise ServerError(f"no {name} server was started in {state.home}")
    return server


def _make_home(home: Path) -> None:
    """Make the home for its owner alone; one that somebody named and that was there before may hold other things."""
    try:
        home.mkdir(mode=PRIVATE_FOLDER, parents=True)
    except FileExistsError:
        if not home.is_dir():
            raise ServerError(f"the home of the local servers must be a folder, and {home} is a file") from None
        if home.name == HOME_NAME:
            home.chmod(PRIVATE_FOLDER)


def _wait(state: _State, server: Server, say: Say) -> None:
    began = time.monotonic()
    while not _answers(server):
        if not server.is_alive:
            raise ServerError(f"{server.name} ended while starting. The last lines of {_log_end(state, server)}")
        if time.monotonic() - began > START_SECONDS:
            taken = "" if server.is_listening else "it does not hold its port, "
            raise ServerError(
                f"{server.name} does not answer at {server.url} after {START_SECONDS:.0f} s: {taken}"
                f"the last lines of {_log_end(state, server)}"
            )
        time.sleep(0.2)
    say(f"{server.name}: answers at {server.url}")


def _stop(state: _State, name: str) -> bool:
    server = state.get(name)
    if server is None or server.pid is None:
        return False
    end_session(server.pid, server.created)
    state.set(replace(server, pid=None, created=None))
    return True


def _answers(server: Server) -> bool:
    if not server.is_listening:
        return False
    place = urlsplit(server.url)
    connection = HTTPConnection(place.hostname or "", place.port, timeout=5)
    try:
        connection.request("GET", HEALTH[server.name])
        return connection.getresponse().status < 300
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _log_end(state: _State, server: Server) -> str:
    path = state.log(server.name)
    return f"{path}:\n{tail(path.read_text(errors='replace'))}"
