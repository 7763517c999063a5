"""The end of a command's process, which no server that is away puts off."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

LEAVE_SECONDS = 30.0
"""For what is still sent when a command is done: Prefect then tells its server what it has not told it yet, and tries
for 11 s with each of dozens of reports to reach one that is away."""


@contextmanager
def leaving_soon() -> Iterator[None]:
    """Run a command; its process ends with the command's exit code, `LEAVE_SECONDS` later at the latest."""
    code: object = 1
    try:
        yield
        code = 0
    except SystemExit as exc:
        code = 0 if exc.code is None else exc.code
        raise
    finally:
        exit_code = code if isinstance(code, int) else 1
        threading.Thread(target=_leave, args=(exit_code, LEAVE_SECONDS), daemon=True).start()


def _leave(exit_code: int, seconds: float) -> None:
    time.sleep(seconds)
    with suppress(Exception):  # nobody may read it any more
        sys.stdout.flush()
    os._exit(exit_code)
