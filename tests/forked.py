"""Functions called in processes of their own that have everything imported, and what is killed at once."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import NamedTuple

import psutil
import pytest

from deploy.processes import members

PRELOADED = [
    "flows.cli",
    "flows.flow",
    "flows.advance",
    "flows.tasks",
    "prefect.artifacts",
    "connectors.label_studio.client",
    "connectors.mlflow.tracker",
    "torch._dynamo",  # the first optimiser loads it, which takes seconds
    "matplotlib.backends.backend_agg",
    "sklearn.metrics",
]
SECONDS = 180.0


class Forked(NamedTuple):
    """A function that runs in a process of its own, which leads a process group."""

    process: BaseProcess
    answers: Connection

    def kill(self) -> None:
        """End it and what it started, at once; one that has ended is left alone."""
        if self.process.pid is not None and self.process.is_alive():
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def wait(self, seconds: float | None = SECONDS) -> tuple[int | None, str]:
        """Its exit code and its error; no exit code where it has not ended by then."""
        self.process.join(timeout=seconds)
        if self.process.exitcode is None:
            return None, ""
        try:
            return self.process.exitcode, self.answers.recv()
        except EOFError:  # it was killed, or left by itself with its exit code
            return self.process.exitcode, ""


class Forks:
    """Starts processes from one that has everything imported and that keeps an environment."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._processes = multiprocessing.get_context("forkserver")
        self._processes.set_forkserver_preload(PRELOADED)
        self._has_begun = False

    def start(self, function: Callable[..., object], *arguments: object) -> Forked:
        """Call a function in a process of its own."""
        self.begin()
        ours, theirs = self._processes.Pipe()
        process = self._processes.Process(target=_tell, args=(theirs, function, arguments))
        process.start()
        theirs.close()
        return Forked(process, ours)

    def call(self, function: Callable[..., object], *arguments: object) -> tuple[int | None, str]:
        """Call a function, wait until it has ended; return its exit code and its error."""
        return self.start(function, *arguments).wait()

    def begin(self) -> None:
        """Start the process that forks: it keeps the environment of its start."""
        if self._has_begun:
            return
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self._environment.items():
                patch.setenv(name, value)
            self._processes.Process(target=int).start()
        self._has_begun = True


def kill_session(leader: int, created: float) -> None:
    """End everything in a process's session, at once."""
    killed = members(leader, created)
    for member in killed:
        with suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(killed, timeout=SECONDS)


def _tell(connection: Connection, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
    os.setpgid(0, 0)
    try:
        function(*arguments)
    except Exception as exc:
        connection.send(f"{type(exc).__name__}: {exc}")
    else:
        connection.send("")
