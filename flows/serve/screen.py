"""What a service shares with the terminal and the system: its screen, its signals, and a loop beside them."""

import asyncio
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TextIO

ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""Signals that ask a process to end."""
LOOP_SECONDS = 5.0
"""What a loop gets to end in."""


class Stopped(BaseException):
    """Somebody asked this process to end."""


@contextmanager
def output_to(log: Path) -> Iterator[TextIO]:
    """Send what Prefect, its runs and their errors print to a file, so that the screen, which is yielded, stays clear.

    A run is a process of its own and writes to the descriptors it inherits.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    screens = [os.dup(descriptor) for descriptor in (1, 2)]
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o600)
    try:
        for descriptor in (1, 2):
            os.dup2(target, descriptor)
        with open(screens[0], "w", encoding="utf-8", errors="replace", closefd=False) as screen:
            yield screen
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, screen_descriptor in zip((1, 2), screens, strict=True):
            os.dup2(screen_descriptor, descriptor)
            os.close(screen_descriptor)
        os.close(target)


def one_line(foreign: object) -> str:
    """The first line of another program's text, without characters that steer a terminal."""
    lines = str(foreign).strip().splitlines() or [""]
    return "".join(character if character.isprintable() else " " for character in lines[0])[:500]


@contextmanager
def signals_raise() -> Iterator[None]:
    """Let the signals that ask a process to end do so in order; one that is ignored already stays so (nohup)."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Stopped

    before = {number: signal.getsignal(number) for number in ENDING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def loop_of_a_thread() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop that runs in a thread of its own; what still waits in it at the end is cancelled there.

    In the main thread Prefect's runner would put its own handler of SIGTERM in place of ours. Ctrl+C, which a terminal
    sends to all its processes, is not heard by the runs that the thread starts: we end them.
    """
    loop = asyncio.new_event_loop()

    def run() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        with asyncio.Runner(loop_factory=lambda: loop) as runner:  # a task that the interpreter's end meets would warn
            runner.get_loop().run_forever()

    thread = threading.Thread(target=run, name="labelcycle-runner", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(LOOP_SECONDS)
