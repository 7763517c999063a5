"""A command's process ends soon after the command, with its exit code."""

import subprocess
import sys
import time

import pytest

ENDING = """
import sys, threading, time
from flows import leaving
leaving.LEAVE_SECONDS = 0.5
threading._register_atexit(time.sleep, {waits})  # as Prefect does, to tell its server what it has not told it
with leaving.leaving_soon():
    print("told", end="")
    {end}
"""


@pytest.mark.parametrize("waits", [0, 60])
@pytest.mark.parametrize(
    ("end", "exit_code"),
    [("sys.exit(3)", 3), ("sys.exit()", 0), ("pass", 0), ("sys.exit('why')", 1), ("raise ValueError", 1)],
)
def test_process_ends_with_the_exit_code_of_its_command_whatever_it_would_wait_for(waits, end, exit_code):
    began = time.monotonic()
    program = [sys.executable, "-c", ENDING.format(waits=waits, end=end)]
    done = subprocess.run(program, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (exit_code, b"told")
    assert (b"ValueError" in done.stderr) == ("ValueError" in end)
    assert time.monotonic() - began < 30
