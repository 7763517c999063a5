"""What a command that learns nothing loads: torch alone takes longer than such a command may."""

import pickle
import subprocess
import sys

import pytest

HEAVY = ("torch", "prefect", "mlflow", "label_studio_sdk", "pandas", "pyarrow", "numpy", "httpx")
OF_LEARNING = ("torch", "torchvision", "mlflow", "matplotlib", "sklearn", "scipy")
IDLE_RUN = """\
import pickle, sys
from pathlib import Path
from flows.campaign import (open_campaign)
from flows.round import work_on
file, kept = map(Path, sys.argv[1:])
tool, tracker = pickle.loads(kept.read_bytes())
print(work_on(open_campaign(file, tool=tool, tracker=tracker)).message, file=sys.stderr)
"""
STATUS = """\
import sys
from flows.cli import app
app(["status", sys.argv[1], "--json"], standalone_mode=False)
"""


def loaded(code: str, names: tuple[str, ...], *arguments: str) -> list[str]:
    """Which of the packages a process has loaded that runs the code."""
    code = f"{code}\nimport sys; print(*(set({names!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize("module", ["flows.cli", "flows.config"])
def test_command_and_settings_load_nothing_that_takes_seconds(module):
    assert loaded(f"import {module}", HEAVY) == []


def test_run_loads_no_grammar_that_nothing_reads():
    assert loaded("from flows.local import use_prefect; use_prefect(None); import flows.flow", ("lark",)) == []


@pytest.fixture
def waiting(make_loop):
    """A campaign that has learnt once and waits for labels; a schedule and a strategy of others are in its file."""
    loop = make_loop(
        'task = "classification"\nschedule = "0 7 * * *"\ntimezone = "Europe/Berlin"\nacquisition = "bald"', budget=30
    )
    loop.run()
    loop.label()
    assert "round 1 asks for" in loop.run()
    return loop


def test_status_loads_neither_torch_nor_prefect(waiting):
    assert loaded(STATUS, (*OF_LEARNING, "prefect", "httpx"), str(waiting.file)) == []


def test_a_run_that_finds_labels_missing_loads_nothing_that_learns(waiting, tmp_path):
    kept = tmp_path / "kept.pickle"
    kept.write_bytes(pickle.dumps((waiting.tool, waiting.tracker)))
    waiting.change(('schedule = "0 7 * * *"\n', ""))  # cron lines are Prefect's, which a run has loaded anyway
    assert loaded(IDLE_RUN, (*OF_LEARNING, "prefect"), str(waiting.file), str(kept)) == []
