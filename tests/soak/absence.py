"""`labelcycle serve` while all of its servers are away: their absence costs that time, and nothing else."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import typer

from deploy.programs import HEALTH
from deploy.servers import up
from tests.conftest import LABEL_STUDIO_VENV
from tests.soak.checks import findings
from tests.soak.losses import kill_server
from tests.soak.people import People, sign_up
from tests.soak.trial import Place, make_campaign

PATIENCE_SECONDS = 300.0
"""What `serve` gets for a round that is due, on a schedule of each minute."""
BEFORE, AFTER = 2, 2
"""Rounds that are out before the servers leave, and more that come once they are back."""


def stay_away(place: Place, *, minutes: float) -> list[str]:
    """Let servers leave between two rounds and come back; return the findings."""
    campaign = make_campaign(place, "classification", n_rounds=BEFORE + AFTER + 1, extra='\nschedule = "* * * * *"')
    tokens, found = sign_up(place.servers, place.token, 2), []
    output = campaign.file.with_name("serve.txt")
    with _serving(campaign.file, output, campaign.environment) as process:

        def wait_for(n_rounds: int) -> None:
            if not _comes(lambda: len(campaign.folder.rounds()) > n_rounds and campaign.folder.round(n_rounds).is_out):
                found.append(f"round {n_rounds} did not come within {PATIENCE_SECONDS:.0f} s: see {output}")

        wait_for(0)
        people = People(campaign, tokens, seed=0)
        for n_rounds in range(1, BEFORE):
            people.finish()
            wait_for(n_rounds)
        for name in HEALTH:
            kill_server(place.servers.home, name)
        typer.echo(f"{', '.join(HEALTH)} are away for {minutes:g} min")
        time.sleep(60 * minutes)
        if process.poll() is not None:
            found.append(f"serve ended with {process.returncode} while its servers were away: see {output}")
        up(place.servers.home, label_studio_venv=LABEL_STUDIO_VENV)
        back = time.monotonic()
        for n_rounds in range(BEFORE, BEFORE + AFTER):
            people.finish()
            wait_for(n_rounds)
            typer.echo(f"round {n_rounds} is out {time.monotonic() - back:.0f} s after they were back")
    return [*found, *findings(campaign)]


def _comes(wanted: Callable[[], bool]) -> bool:
    end = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < end:
        if wanted():
            return True
        time.sleep(2)
    return False


@contextmanager
def _serving(file: Path, output: Path, environment: dict[str, str]):
    with output.open("w") as log:
        command = [sys.executable, "-m", "flows.cli", "serve", str(file)]
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **environment})
        try:
            yield process
        finally:
            process.terminate()
            process.wait(timeout=60)
