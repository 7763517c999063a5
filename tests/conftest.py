"""Real servers for the tests that need them, started once for the whole run and stopped at its end."""

import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from connectors.objects import store as object_stores
from deploy.servers import Servers, down, personal_token, up
from tests import gcs as gcs_server
from tests import s3 as s3_server

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is loaded; see flows.local
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run side by side, and so does what they start
HOME, WORKER = "LABELCYCLE_TEST_HOME", "PYTEST_XDIST_WORKER"
LOGIN_VARIABLES = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
GROUPS = {
    "schedules": ("tests/system/test_deployment.py", "tests/system/test_serve.py"),
    "campaigns": "tests/system/",
    "connectors": (
        *("tests/connectors/test_label_studio.py", "tests/connectors/test_mlflow.py"),
        *("tests/connectors/test_storages.py", "tests/deploy/"),
    ),
}
"""What needs servers; the largest group is begun first."""
LABEL_STUDIO_VENV = Path(__file__).parent.parent / ".labelcycle" / "label-studio-venv"


def pytest_configure():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that the servers are stopped
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what is ignored here would be in all that is started


@dataclass(frozen=True)
class ProjectSpace:
    """A project title that nobody has used yet, and a folder of images that Label Studio can show."""

    url: str
    token: str = field(repr=False)
    project: str
    images_root: Path
    uris: tuple[str, ...]


@pytest.fixture(scope="module", autouse=True)
def path_of_modules() -> Iterator[None]:
    """MLflow leaves the code of a model that it loads on the path, where other processes would find it before ours."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.hookimpl(trylast=True)  # when the workers have ended
def pytest_sessionfinish(session):
    """Stop the servers, whichever worker started them; the one of S3 is quick to start and never stays."""
    if WORKER not in os.environ:
        home = Path(os.environ.get(HOME) or session.config._tmp_path_factory.getbasetemp() / "servers")
        s3_server.stop(home / "s3")
        if HOME not in os.environ:
            down(home)


def pytest_collection_modifyitems(items):
    """A test against real servers on a busy machine gets a second try; the report lists it as rerun."""
    for item in items:
        if "servers" in item.fixturenames:
            item.add_marker(pytest.mark.flaky(reruns=1))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Files that need servers go to the workers first, a group to each; all other tests go one by one to who is free.

    The tests of a schedule wait most of their time, which leaves a core to the others.
    """
    from xdist.scheduler import LoadScopeScheduling

    class GroupsFirst(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return next((name for name, files in GROUPS.items() if file.startswith(files)), nodeid)

    return GroupsFirst(config, log) if config.option.dist == "load" else None


@pytest.fixture(scope="session")
def servers_home(tmp_path_factory) -> Path:
    """One new folder for all workers, or the one that HOME names: its servers stay up for the next run."""
    base = tmp_path_factory.getbasetemp()
    return Path(os.environ.get(HOME) or (base.parent if WORKER in os.environ else base) / "servers")


@pytest.fixture(scope="session")
def images_root(servers) -> Path:
    """A folder of images that a project of the servers' Label Studio can show where they are."""
    root = servers.images / "pools"
    root.mkdir(exist_ok=True)
    return root


@pytest.fixture(scope="session")
def servers(servers_home) -> Iterator[Servers]:
    """Label Studio, MLflow and Prefect, which know where S3 is; the clients of the tests themselves are logged in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint(servers_home / "s3"))
        started = up(servers_home, label_studio_venv=LABEL_STUDIO_VENV)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(LOGIN_VARIABLES, started.mlflow_login, strict=True):
            patch.setenv(name, value)
        yield started


@pytest.fixture(scope="session")
def s3(servers_home) -> s3_server.S3Server:
    """An S3 server for all tests of the run; see tests/s3.py."""
    return s3_server.shared(servers_home / "s3")


@pytest.fixture
def bucket() -> str:
    """The name of a bucket that nobody has used yet."""
    return f"bucket-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def s3_environment(s3, monkeypatch) -> s3_server.S3Server:
    """The S3 server, for which the environment has the administrator's keys."""
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    return s3


@pytest.fixture(scope="session")
def gcs() -> Iterator[gcs_server.GcsServer]:
    """A server of Google Cloud Storage; see tests/gcs.py."""
    with gcs_server.started() as server:
        yield server


@pytest.fixture
def gs_environment(gcs, monkeypatch) -> gcs_server.GcsServer:
    """The server of Google Cloud Storage, which the environment leads to."""
    for name, value in gcs.environment().items():
        monkeypatch.setenv(name, value)
    return gcs


@pytest.fixture
def new_connections(monkeypatch) -> Iterator[None]:
    """A store remembers its environment, and what was forbidden, for as long as a process lives."""
    object_stores._store.cache_clear()
    monkeypatch.setattr(object_stores, "_READS", object_stores._FirstReads())
    yield
    object_stores._store.cache_clear()


@pytest.fixture(scope="session")
def label_studio_token(servers) -> str:
    """A token of the one person that the local Label Studio knows."""
    return personal_token(servers)


@pytest.fixture
def space(servers, label_studio_token, images_root) -> ProjectSpace:
    """A fresh project title and six images of one colour each, large enough for Label Studio's editor."""
    name = uuid.uuid4().hex[:12]
    folder = images_root / name
    folder.mkdir()
    colours = np.random.default_rng(0).integers(0, 256, size=(6, 3), dtype=np.uint8)
    paths = [folder / f"image {position}.png" for position in range(len(colours))]
    for path, colour in zip(paths, colours, strict=True):
        Image.fromarray(np.broadcast_to(colour, (64, 64, 3)).copy()).save(path)
    return ProjectSpace(
        url=servers.label_studio_url,
        token=label_studio_token,
        project=f"test {name}",
        images_root=folder,
        uris=tuple(str(path) for path in paths),
    )


@contextmanager
def relay_to(target: str, misbehave) -> Iterator[str]:
    """An HTTP relay in front of Label Studio; `misbehave(handler, body)` returns whether it dealt with a request."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if misbehave(self, body):
                return
            answer = self.forward(body)
            self.answer(answer.status_code, answer.content, answer.headers.get("Content-Type", ""))

        do_GET = do_POST = do_PATCH = do_DELETE = handle_one  # noqa: N815

        def forward(self, body):
            passed = {key: value for key, value in self.headers.items() if key.lower() not in ("host", "connection")}
            return httpx.request(self.command, target + self.path, content=body, headers=passed, timeout=60)

        def answer(self, status, content, content_type="application/json", **headers):
            self.send_response(status)
            self.send_header("Content-Type", content_type)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def hang_up(self):
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def relay():
    """Makes HTTP relays that misbehave: see `relay_to`."""
    return relay_to


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 64 kB, where the tests may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("no disk can be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)
