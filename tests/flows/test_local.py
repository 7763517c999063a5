"""What the surroundings decide: proxies, logins, which Prefect."""

import io
import logging
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import proxy_bypass

import pytest
from httpx._utils import get_environment_proxies
from requests.utils import should_bypass_proxies
from rich.console import Console

from deploy.servers import Servers
from flows.local import print_addresses, proxies, reach_local_addresses_directly, use_prefect

PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    for name in PROXY_VARIABLES:
        for spelling in (name, name.upper()):
            monkeypatch.setenv(spelling, "")
            monkeypatch.delenv(spelling)


@pytest.fixture
def listen():
    """Start a server that answers everything with 404, and remembers what it was asked for and with which login."""
    started = []

    def start():
        asked = []

        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                asked.append((self.path, self.headers.get("Authorization")))
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_GET = do_POST = do_CONNECT = answer  # noqa: N815

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        started.append((server, thread))
        return server.server_port, asked

    yield start
    for server, thread in started:
        server.shutdown()
        thread.join()
        server.server_close()


CLIENTS = """
import sys
from contextlib import suppress
from flows.local import prepare_environment
prepare_environment()
place = f"{sys.argv[1]}:{sys.argv[2]}"

def label_studio():
    from connectors.label_studio import client, connection
    connection.ATTEMPTS = 1
    settings = {"url": f"http://{place}", "token": "of-label-studio", "project": "pets", "classes": ["a", "b"]}
    client.LabelStudio(**settings).prepare()

def annotator():
    from connectors.label_studio.person import SimulatedAnnotator
    SimulatedAnnotator(url=f"http://{place}", token="of-annotator", project="pets", answers={}).label()

def mlflow():
    from connectors.mlflow.tracker import MLflowTracker
    MLflowTracker(uri=f"http://{place}", campaign="pets", login=("admin", "of-mlflow")).ping()

def prefect():
    from prefect.client.orchestration import get_client
    with get_client(sync_client=True) as client:
        client.read_flow_runs()

def events():
    import asyncio
    from prefect.events.clients import get_events_client
    async def connect():
        async with get_events_client():
            pass
    asyncio.run(asyncio.wait_for(connect(), 10))

for client in (label_studio, annotator, mlflow, prefect, events):
    with suppress(Exception):
        client()
"""


def test_logins_of_local_servers_go_by_no_proxy(listen):
    (proxy, asked_of_proxy), (server, asked) = listen(), listen()
    names = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "all_proxy")
    environment = {name: value for name, value in os.environ.items() if name.lower() not in PROXY_VARIABLES}
    environment |= dict.fromkeys(names, f"http://127.0.0.1:{proxy}") | {
        "NO_PROXY": "example.org",
        "PREFECT_API_URL": f"http://localhost:{server}/api",
        "PREFECT_API_AUTH_STRING": "admin:of-prefect",
    }
    code = [sys.executable, "-W", "ignore", "-c", CLIENTS, "127.0.0.1", str(server)]
    done = subprocess.run(code, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert asked_of_proxy == [], done.stderr
    paths = " ".join(path for path, _ in asked)
    for wanted in ("/api/projects", "/health", "/api/flow_runs/filter", "/api/events/in"):
        assert wanted in paths
    assert {"Token of-label-studio", "Token of-annotator"} <= {login for _, login in asked}


def test_only_a_named_proxy_makes_local_addresses_an_exception(monkeypatch):
    reach_local_addresses_directly()
    assert "NO_PROXY" not in os.environ, "it would hide the proxy of the system's own settings"
    monkeypatch.setenv("https_proxy", "http://proxy.example.org:3128")
    monkeypatch.setenv("NO_PROXY", "one.example.org, localhost")
    monkeypatch.setenv("no_proxy", "two.example.org")
    reach_local_addresses_directly()
    reach_local_addresses_directly()
    wanted = "two.example.org,one.example.org,localhost,.localhost,127.0.0.1,::1"
    assert (os.environ["NO_PROXY"], os.environ["no_proxy"]) == (wanted, wanted)


def test_names_below_localhost_are_reached_directly_too(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://proxy.example.org:3128")
    reach_local_addresses_directly()
    assert should_bypass_proxies("http://labelstudio.localhost:8080", no_proxy=None)
    assert proxy_bypass("labelstudio.localhost:8080")
    assert get_environment_proxies()["all://*.localhost"] is None
    assert not should_bypass_proxies("http://label.example.org", no_proxy=None)


def test_proxies_are_told_without_their_logins(monkeypatch):
    assert proxies() == {}
    monkeypatch.setenv("HTTP_PROXY", "http://me:secret@proxy.example.org:3128/")
    monkeypatch.setenv("all_proxy", "me:secret@proxy.example.org:1080")
    assert proxies() == {"HTTP_PROXY": "proxy.example.org:3128", "all_proxy": "proxy.example.org:1080"}


@pytest.fixture
def local(tmp_path):
    """Servers that nobody started."""
    place = "http://127.0.0.1"
    addresses = [f"{place}:1", f"{place}:2", f"{place}:3/api", f"{place}:3"]
    return Servers(tmp_path, *addresses, images=tmp_path, password="the-password-of-all")


@pytest.mark.parametrize(
    ("named", "login"),
    [
        (None, "admin:the-password-of-all"),
        ("http://127.0.0.1:3/api/", "admin:the-password-of-all"),
        ("https://prefect.example.org/api", "somebody's own"),
    ],
)
def test_login_of_the_local_prefect_goes_to_no_other(local, monkeypatch, named, login):
    monkeypatch.setenv("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "somebody's own")
    monkeypatch.setenv("PREFECT_API_URL", named or "")
    if named is None:
        monkeypatch.delenv("PREFECT_API_URL")
    use_prefect(local)
    assert os.environ["PREFECT_API_AUTH_STRING"] == login
    assert os.environ["PREFECT_API_URL"] == (named or local.prefect_api_url)
    use_prefect(None)
    assert os.environ["PREFECT_API_AUTH_STRING"] == login


def test_events_that_prefect_missed_are_not_printed(local, monkeypatch):
    for name in ("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "PREFECT_API_URL", "PREFECT_API_AUTH_STRING"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("PREFECT_LOGGING_INTERNAL_LEVEL", "")
    monkeypatch.delenv("PREFECT_LOGGING_INTERNAL_LEVEL")
    use_prefect(local)
    told = [
        "import logging",
        "from prefect.logging.configuration import setup_logging",
        "setup_logging()",
        "print(logging.getLogger('prefect._internal').level)",
    ]
    shown = subprocess.run([sys.executable, "-c", "; ".join(told)], capture_output=True, text=True, check=True)
    assert int(shown.stdout) == logging.CRITICAL


def test_person_is_told_every_login_and_where_the_password_is(local):
    console = Console(record=True, width=200, file=io.StringIO())
    print_addresses(local, console)
    text = console.export_text()
    for told in (local.email, "log in with admin:PASSWORD", str(local.home / "password")):
        assert told in text
    assert text.count("the-password-of-all") == 1, "a screen that others see shows it in one place"
    assert "the-password-of-all" not in repr(local)
