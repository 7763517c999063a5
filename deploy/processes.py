"""Processes and ports of this machine, and the end of what a process wrote."""

import os
import signal
import socket
import time
from contextlib import suppress

import psutil

CLOCK_SECONDS = 2.0
STOP_SECONDS = 10.0
PORT_SECONDS = 5.0
LOG_LINES = 15


def is_process(pid: int, created: float | None) -> bool:
    """Whether the process runs and is the one of then, not another with a recycled id."""
    with suppress(psutil.NoSuchProcess):
        return _is_same(pid, created) and _is_running(psutil.Process(pid))
    return False


def _is_same(pid: int, created: float | None) -> bool:
    """Whether the id is still that of the process of then, though it may have ended and wait to be looked after."""
    try:
        return created is not None and abs(psutil.Process(pid).create_time() - created) < CLOCK_SECONDS
    except psutil.NoSuchProcess:
        return False


def holds_port(leader: int, created: float | None, port: int) -> bool:
    """Whether a process of the session listens at the port, and not another program that took it meanwhile.

    Of its own processes every user may ask this, on Linux and macOS.
    """
    for member in members(leader, created):
        with suppress(psutil.Error):
            for held in member.net_connections(kind="tcp"):
                if held.status == psutil.CONN_LISTEN and held.laddr.port == port:
                    return True
    return False


def end_session(leader: int, created: float | None) -> None:
    """End everything in a process's session, politely first."""
    left = members(leader, created)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for member in left:
            with suppress(psutil.NoSuchProcess):
                member.send_signal(number)
        _, left = psutil.wait_procs(left, timeout=STOP_SECONDS)


def members(leader: int, created: float | None) -> list[psutil.Process]:
    """Everything in the session that a process began; nothing when its id belongs to another process now.

    A system gives a process id away again only when it names no session any more.
    """
    if psutil.pid_exists(leader) and not _is_same(leader, created):
        return []
    return [each for each in psutil.process_iter() if _session(each.pid) == leader and _is_running(each)]


def _is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def is_free(port: int) -> bool:
    """Whether a server could take the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def comes_free(port: int) -> bool:
    """Whether a server could take the port now or soon: a process that was killed holds it for another moment."""
    until = time.monotonic() + PORT_SECONDS
    while not is_free(port):
        if time.monotonic() > until:
            return False
        time.sleep(0.1)
    return True


def free_port() -> int:
    """A port that nobody has taken."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tail(text: str) -> str:
    """The last lines of what a program wrote."""
    return "\n".join(text.strip().splitlines()[-LOG_LINES:])
