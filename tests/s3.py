"""A real S3 server over HTTP: SeaweedFS, which checks secrets, rights and the expiry of signed addresses.

One server does for all tests of a run (fixture `s3`): each takes a bucket of its own (fixture `bucket`). A test that
stops or breaks a server starts its own with `started`. SeaweedFS is a file system below: it changes keys such as
`a//b`, `/a` and `a\\b`.
"""

import json
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import filelock
import httpx
import obstore
import psutil
from obstore.store import S3Store

from deploy.processes import end_session, is_free, is_process, tail
from tests.forked import kill_session

WEED = Path(sys.executable).with_name("weed")
REGION = "us-east-1"
PORTS = range(12_000, 21_000)
"""The first port of a server, below those that systems give to anybody who asks; see `_ports`."""
S3 = 3
"""The port of S3 is the fourth."""
START_SECONDS = 60.0
MOST_BUCKETS = 10_000
"""Each bucket has a file of its own, whatever room the disk has."""
OPEN = "open/"
"""In each bucket, the reader may read what is below this prefix; it may list all."""


@dataclass(frozen=True)
class Identity:
    """Who may ask, and what."""

    name: str
    key: str
    secret: str = field(repr=False)
    actions: tuple[str, ...] = ()


ADMIN = Identity("admin", "key-of-admin", "secret-of-admin", ("Admin", "Read", "List", "Write", "Tagging"))
READER = Identity("reader", "key-of-reader", "secret-of-reader", ("List", f"Read:*/{OPEN}*"))
IMPOSTOR = Identity("admin", "key-of-admin", "a-wrong-secret")


@dataclass(frozen=True)
class S3Server:
    """A server that answers; without a proxy, as it is on this machine."""

    port: int

    @property
    def url(self) -> str:
        """The endpoint."""
        return f"http://127.0.0.1:{self.port + S3}"

    def environment(self, identity: Identity = ADMIN) -> dict[str, str]:
        """What a user's environment holds."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": identity.key,
            "AWS_SECRET_ACCESS_KEY": identity.secret,
            "AWS_REGION": REGION,
        }

    def store(self, bucket: str, identity: Identity = ADMIN) -> S3Store:
        """A bucket as an identity sees it; the first put of the administrator makes it."""
        return S3Store(
            bucket,
            endpoint=self.url,
            access_key_id=identity.key,
            secret_access_key=identity.secret,
            region=REGION,
            client_options={"allow_http": True},
            retry_config={"max_retries": 0},
        )

    def put(self, bucket: str, objects: Mapping[str, bytes]) -> None:
        """Write objects; those that are there are replaced."""
        store = self.store(bucket)
        for key, content in objects.items():
            obstore.put(store, key, content)

    def delete(self, bucket: str, *keys: str) -> None:
        """Take objects away."""
        obstore.delete(self.store(bucket), list(keys))


def shared(home: Path, *, anew: bool = True) -> S3Server:
    """The server of a folder: the one that runs, or another at the same port.

    Args:
        anew: another one is empty; else it has what the last one had.
    """
    with filelock.FileLock(home.with_suffix(".lock")):
        port = _port_of(home)
        if not _running(home):
            if anew:
                shutil.rmtree(home / "data", ignore_errors=True)
            process = _start(home / "data", port)
            process.returncode = 0  # other workers of the run use it too; `stop` ends it
            created = psutil.Process(process.pid).create_time()
            (home / "process.json").write_text(json.dumps({"pid": process.pid, "created": created}))
        return S3Server(port)


def endpoint(home: Path) -> str:
    """Where the server of a folder is, or will be once somebody needs it."""
    with filelock.FileLock(home.with_suffix(".lock")):
        return S3Server(_port_of(home)).url


def stop(home: Path) -> None:
    """End the server of a folder, if it runs."""
    if running := _running(home):
        end_session(**running)


def kill(home: Path) -> None:
    """End the server of a folder at once, if it runs."""
    if running := _running(home):
        kill_session(**running)


@contextmanager
def started(folder: Path, *options: str) -> Iterator[tuple[S3Server, subprocess.Popen[bytes]]]:
    """A server of one's own, and its process, which may be killed; `options` are further ones of `weed mini`."""
    port = _free_ports()
    process = _start(folder, port, *options)
    created = psutil.Process(process.pid).create_time()
    try:
        yield S3Server(port), process
    finally:
        end_session(process.pid, created)
        process.wait()


def _running(home: Path) -> dict[str, float] | None:
    file = home / "process.json"
    known = json.loads(file.read_text()) if file.exists() else None
    return {"leader": known["pid"], "created": known["created"]} if known and is_process(**known) else None


def _port_of(home: Path) -> int:
    file = home / "port"
    if not file.exists():
        home.mkdir(parents=True, exist_ok=True)
        file.write_text(str(_free_ports()))
    return int(file.read_text())


def _ports(first: int) -> list[int]:
    """Of master, volume, filer, S3 and admin; each listens for its own kind 10,000 higher too."""
    return [port + more for port in range(first, first + 5) for more in (0, 10_000)]


def _free_ports() -> int:
    while True:
        first = random.choice(PORTS)
        if all(is_free(port) for port in _ports(first)):
            return first


def _start(folder: Path, port: int, *options: str) -> "subprocess.Popen[bytes]":
    """Start a server, and wait until it takes an object."""
    folder.mkdir(parents=True, exist_ok=True)
    config, log = folder / "s3.json", folder / "log"
    identities = [
        {
            "name": one.name,
            "credentials": [{"accessKey": one.key, "secretKey": one.secret}],
            "actions": list(one.actions),
        }
        for one in (ADMIN, READER)
    ]
    config.write_text(json.dumps({"identities": identities}))
    names = ("master.port", "volume.port", "filer.port", "s3.port", "admin.port")
    command = [str(WEED), "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={config}"]
    command += [f"-{name}={port + more}" for more, name in enumerate(names)]
    command += ["-webdav=false", "-admin.ui=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]
    command += ["-master.telemetry=false", f"-volume.max={MOST_BUCKETS}", *options]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    _wait(S3Server(port), process, log)
    return process


def _wait(server: S3Server, process: "subprocess.Popen[bytes]", log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    with httpx.Client(base_url=server.url, trust_env=False, timeout=5) as client:
        while process.poll() is None and time.monotonic() < until:
            try:
                if client.get("/healthz").is_success:
                    server.put("ready", {"ready": b""})
                    return
            except (httpx.HTTPError, obstore.exceptions.BaseError):
                pass
            time.sleep(0.1)
    process.kill()
    raise RuntimeError(f"the S3 server did not start: {tail(log.read_text(errors='replace'))}")
