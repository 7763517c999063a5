"""Label Studio, MLflow and Prefect on this machine, for a demo, a small team and the tests.

All three run on SQLite below one home folder, are bound to 127.0.0.1, want a login and report nothing to anybody.
What they keep is readable by its owner alone. They outlive the process that started them and end with `down`.
"""

import hashlib
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TextIO

import filelock
import httpx
import psutil

from deploy import logins
from deploy.logins import ServerError as ServerError

LABEL_STUDIO_LOCK = Path(__file__).with_name("label-studio.lock")
START_SECONDS = 480.0
STOP_SECONDS = 10.0
CLOCK_SECONDS = 2.0
LOG_LINES = 15
HEALTH = {"label-studio": "/health", "mlflow": "/health", "prefect": "/api/health"}
HOME_NAME = ".labelcycle"
PRIVATE_FOLDER, PRIVATE_FILE, PRIVATE_UMASK = 0o700, 0o600, 0o077
MLFLOW_AUTH = """\
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{database}
admin_username = {user}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""

Report = Callable[[str], None]


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


@dataclass(frozen=True, slots=True)
class _Server:
    """One server, as `servers.json` remembers it.

    Attributes:
        pid: together with `created`, in seconds since 1970, it names one process; None after a stop.
        document_root: Label Studio serves images from folders below this one, not from this one itself.
        login: tells the password that it was started with from others; older versions started some without.
    """

    name: str
    port: int
    pid: int | None = None
    created: float | None = None
    document_root: str | None = None
    login: str | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


Plan = Callable[[_Server, Path, str], tuple[list[str], dict[str, str]]]
"""From a server, its folder and the password to a command and the environment that it needs."""


def up(
    home: Path,
    *,
    on_progress: Report | None = None,
    label_studio_venv: Path | None = None,
) -> Servers:
    """Start those of the three servers that do not run yet, and wait until all answer.

    Args:
        home: folder of all their data and logs; a second call with it finds the servers of the first.
        on_progress: gets one line whenever something happened.
        label_studio_venv: environment of the Label Studio server, made as `label-studio.lock` says.

    Raises:
        ServerError: with the last lines of the log, if a server ends or stays silent.
    """
    home = home.resolve()
    _make_home(home)
    venv = (label_studio_venv or home / "label-studio-venv").absolute()
    report = on_progress or (lambda line: None)
    with filelock.FileLock(home / "servers.lock"):
        logins.make_password(home)
        state = _State(home)
        with ThreadPoolExecutor(len(HEALTH)) as pool:
            starts = [
                pool.submit(_ensure_label_studio, state, _document_root(home), venv, report),
                pool.submit(_ensure, state, "mlflow", _mlflow, report),
                pool.submit(_ensure, state, "prefect", _prefect, report),
            ]
        for start in starts:
            start.result()
        return _servers(state)


def running(home: Path) -> Servers | None:
    """The servers of `home`, or None unless all three answer; of an older version, without logins, none counts."""
    state = _State(home.resolve())
    servers = [state.get(name) for name in HEALTH]
    if not all(server and server.login and _is_alive(server) and _answers(server) for server in servers):
        return None
    return _servers(state) if all(server and state.is_guarded(server) for server in servers) else None


def remembered(home: Path) -> Servers | None:
    """The servers of `home` as they were last started, whether they answer now or not; None before the first start."""
    state = _State(home.resolve())
    return _servers(state) if all(state.get(name) for name in HEALTH) else None


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
    url = local.label_studio_url
    server = _State(local.home).get("label-studio")
    if server is None or server.url != url or not _is_listening(server):
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
            answer = client.get("/api/current-user/token")
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
            self._servers = {values["name"]: _Server(**values) for values in written}
        except (ValueError, TypeError, KeyError) as exc:
            raise ServerError(
                f"{self._path} is damaged, or of another version: end the servers by hand, and delete the file"
            ) from exc

    @property
    def password(self) -> str:
        """What all three servers take."""
        return logins.read_password(self.home)

    def is_guarded(self, server: _Server) -> bool:
        """Whether the server was started with the password of now."""
        return server.login == logins.fingerprint(self.password)

    def get(self, name: str) -> _Server | None:
        return self._servers.get(name)

    def set(self, server: _Server) -> _Server:
        with self._lock:
            self._servers[server.name] = server
            temporary = self._path.with_suffix(".part")
            with _open_private(temporary, os.O_TRUNC) as file:
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


def _ensure_label_studio(state: _State, document_root: Path, venv: Path, report: Report) -> None:
    server = state.get("label-studio") or _Server("label-studio", _free_port())
    if server.document_root != str(document_root):
        if _stop(state, server.name):
            report(f"label-studio: stopped, it served images below {server.document_root}")
        server = state.set(replace(server, pid=None, created=None, document_root=str(document_root)))
    if not _is_alive(server):
        _install_label_studio(venv, report)
    _ensure(state, server.name, partial(_label_studio, venv=venv), report)


def _ensure(state: _State, name: str, plan: Plan, report: Report) -> None:
    server = state.get(name) or _Server(name, _free_port())
    if _is_alive(server) and not state.is_guarded(server):
        report(f"{name}: stopped, it was started without this password")
        _stop(state, name)
        server = _known(state, name)
    if not _is_alive(server):
        _stop(state, name)  # what a server that died has left behind
        server = _start(state, server, plan, report)
    _wait(state, server, report)


def _start(state: _State, server: _Server, plan: Plan, report: Report) -> _Server:
    port = server.port if _is_free(server.port) else _free_port()
    server = state.set(replace(server, port=port))
    folder, log = state.home / server.name, state.log(server.name)
    report(f"{server.name}: starting, log in {log}")
    _make_private(folder)
    _make_private(log.parent)
    command, environment = plan(server, folder, state.password)
    with _open_private(log, os.O_APPEND) as output:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=_inherited_environment() | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=PRIVATE_UMASK,
        )
    child.returncode = 0  # it outlives us on purpose; Popen would warn
    created, login = psutil.Process(child.pid).create_time(), logins.fingerprint(state.password)
    return state.set(replace(server, pid=child.pid, created=created, login=login))


def _label_studio(server: _Server, folder: Path, password: str, *, venv: Path) -> tuple[list[str], dict[str, str]]:
    logins.set_label_studio_password(folder / "label_studio.sqlite3", password)
    program = [str(venv / "bin" / "label-studio"), "start", "--no-browser", "--enable-legacy-api-token"]
    return [*program, "--internal-host", "127.0.0.1", "--port", str(server.port)], {
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "LABEL_STUDIO_DJANGO_DB": "sqlite",
        "LABEL_STUDIO_AZURE_MOUNT_FIX": "true",  # write-ahead log: three times the speed, readers never wait
        "LABEL_STUDIO_HOST": "",
        "LABEL_STUDIO_DEBUG": "false",
        "LABEL_STUDIO_USERNAME": logins.EMAIL,
        "LABEL_STUDIO_PASSWORD": password,
        "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(server.document_root),
        "LABEL_STUDIO_COLLECT_ANALYTICS": "false",
        "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
        "LABEL_STUDIO_SENTRY_DSN": "",
        "LABEL_STUDIO_FRONTEND_SENTRY_DSN": "",
    }


def _mlflow(server: _Server, folder: Path, password: str) -> tuple[list[str], dict[str, str]]:
    database, settings = folder / "auth.db", folder / "auth.ini"
    logins.set_mlflow_password(database, password)
    with _open_private(settings, os.O_TRUNC) as file:
        file.write(MLFLOW_AUTH.format(database=str(database).replace("%", "%%"), user=logins.USER))
    program = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--app-name", "basic-auth"]
    stores = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    stores += ["--artifacts-destination", str(folder / "artifacts")]
    return [*program, *stores, "--host", "127.0.0.1", "--port", str(server.port)], {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "DO_NOT_TRACK": "true",
    }


def _prefect(server: _Server, folder: Path, password: str) -> tuple[list[str], dict[str, str]]:
    login = f"{logins.USER}:{password}"
    program = [sys.executable, "-m", "prefect", "server", "start"]
    return [*program, "--host", "127.0.0.1", "--port", str(server.port)], {
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_API_AUTH_STRING": login,
        "PREFECT_API_AUTH_STRING": login,  # the server asks itself things
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"{server.url},http://localhost:{server.port}",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder / 'prefect.db'}",
        "PREFECT_SERVER_UI_API_URL": f"{server.url}/api",  # else its pages ask port 4200
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }


def _inherited_environment() -> dict[str, str]:
    """The caller's environment without settings for these very programs."""
    foreign = ("LABEL_STUDIO_", "HEARTEX_", "MLFLOW_", "PREFECT_", "LABELCYCLE_")
    return {key: value for key, value in os.environ.items() if not key.startswith(foreign)}


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


def _known(state: _State, name: str) -> _Server:
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


def _make_private(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(PRIVATE_FOLDER)


def _open_private(path: Path, how: int) -> TextIO:
    """Open a file of text to be written that only its owner can read, also one that was there before."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | how, PRIVATE_FILE)
    os.fchmod(handle, PRIVATE_FILE)
    return os.fdopen(handle, "w", encoding="utf-8")


def _install_label_studio(venv: Path, report: Report) -> None:
    """Make `venv` hold exactly what the lock file names, unless it was made from that very lock."""
    digest = hashlib.sha256(LABEL_STUDIO_LOCK.read_bytes()).hexdigest()
    mark = venv / "label-studio.lock.sha256"
    venv.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(venv.with_name(f"{venv.name}.lock")):
        if mark.exists() and mark.read_text() == digest:
            return
        report(f"label-studio: installing into {venv}")
        python = venv / "bin" / "python"
        if not python.exists():
            _run_uv("venv", "--quiet", "--python", sys.executable, str(venv))
        _run_uv("pip", "sync", "--quiet", "--require-hashes", "--python", str(python), str(LABEL_STUDIO_LOCK))
        mark.write_text(digest)


def _run_uv(*arguments: str) -> None:
    """Run the uv that came with labelcycle; no other needs to be on the PATH."""
    try:
        from uv import find_uv_bin

        done = subprocess.run([find_uv_bin(), *arguments], capture_output=True, text=True, check=False)
    except (ImportError, FileNotFoundError) as exc:
        raise ServerError("installing Label Studio needs the package uv: run `make install`") from exc
    if done.returncode:
        raise ServerError(f"uv {arguments[0]} failed with {done.returncode}:\n{_tail(done.stderr)}")


def _wait(state: _State, server: _Server, report: Report) -> None:
    began = time.monotonic()
    while not _answers(server):
        if not _is_alive(server):
            raise ServerError(f"{server.name} ended while starting. The last lines of {_log_end(state, server)}")
        if time.monotonic() - began > START_SECONDS:
            taken = "" if _is_listening(server) else "it does not hold its port, "
            raise ServerError(
                f"{server.name} does not answer at {server.url} after {START_SECONDS:.0f} s: {taken}"
                f"the last lines of {_log_end(state, server)}"
            )
        time.sleep(0.2)
    report(f"{server.name}: answers at {server.url}")


def _answers(server: _Server) -> bool:
    if not _is_listening(server):
        return False
    try:
        return httpx.get(server.url + HEALTH[server.name], timeout=5, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def _is_listening(server: _Server) -> bool:
    """Whether the port is held by the server, and not by another program that took it while the server was away.

    Of its own processes every user may ask this, on Linux and macOS.
    """
    if server.pid is None:
        return False
    for member in _members(server.pid, server.created):
        with suppress(psutil.Error):
            for held in member.net_connections(kind="tcp"):
                if held.status == psutil.CONN_LISTEN and held.laddr.port == server.port:
                    return True
    return False


def _log_end(state: _State, server: _Server) -> str:
    path = state.log(server.name)
    return f"{path}:\n{_tail(path.read_text(errors='replace'))}"


def _tail(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-LOG_LINES:])


def _is_alive(server: _Server) -> bool:
    return server.pid is not None and _is_process(server.pid, server.created)


def _is_process(pid: int, created: float | None) -> bool:
    """Whether the process runs and is the one of then, not another with a recycled id."""
    try:
        found = psutil.Process(pid)
        same = created is not None and abs(found.create_time() - created) < CLOCK_SECONDS
        return same and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _stop(state: _State, name: str) -> bool:
    server = state.get(name)
    if server is None or server.pid is None:
        return False
    members = _members(server.pid, server.created)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for member in members:
            with suppress(psutil.NoSuchProcess):
                member.send_signal(number)
        _, members = psutil.wait_procs(members, timeout=STOP_SECONDS)
    state.set(replace(server, pid=None, created=None))
    return True


def _members(leader: int, created: float | None) -> list[psutil.Process]:
    """Everything in the server's session, which it began; nothing when its id belongs to another process now.

    A system gives a process id away again only when it names no session any more.
    """
    if psutil.pid_exists(leader) and not _is_process(leader, created):
        return []
    return [each for each in psutil.process_iter() if _session(each.pid) == leader]


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
