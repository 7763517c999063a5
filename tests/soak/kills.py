"""Runs killed at random moments, and servers too, while people answer, correct and take back."""

import json
import os
import random
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from pathlib import Path
from time import monotonic, sleep

import typer

from deploy.processes import members
from deploy.programs import HEALTH
from deploy.servers import up
from flows.books import PATIENCE
from tests.conftest import LABEL_STUDIO_VENV
from tests.forked import Forked
from tests.soak.checks import findings
from tests.soak.people import People, sign_up
from tests.soak.trial import Place, make_campaign
from tests.system.conftest import be_command

PEOPLE = 3
FIRST_GUESS_SECONDS = 12.0
EXPECTED = {0, 3, -signal.SIGKILL}
"""Done, awaiting labels, killed by us."""
SERVER_AWAY = ("does not answer", "are not running")
"""What a run says that misses a server."""


class Trial:
    """One campaign, and what came of it.

    Args:
        killed: share of runs that may be killed.
        servers_killed: share of runs after which one more is begun in which a server is killed.
    """

    def __init__(
        self, place: Place, task: str, *, n_rounds: int, seed: int, killed: float, servers_killed: float
    ) -> None:
        self.place, self.n_rounds = place, n_rounds
        self.share_killed, self.share_of_servers = killed, servers_killed
        self.rng = random.Random(seed)
        self.seed = seed
        self.campaign = make_campaign(place, task, n_rounds=n_rounds + 3)
        self.output = self.campaign.file.with_name("output.txt")
        self.tokens = sign_up(place.servers, place.token, PEOPLE)
        self.people: People | None = None
        self.longest = FIRST_GUESS_SECONDS
        self.n_kills = self.n_runs = 0
        self.servers_killed: list[str] = []
        self.found: list[str] = []

    def go_through(self) -> list[str]:
        """Go through all rounds; return the findings."""
        while self.n_begun < self.n_rounds and not self.found:
            before = self.n_begun
            with self.people.at_work() if self.people else nullcontext():
                self.run(may_be_killed=self.rng.random() < self.share_killed)
            if self.people is None and self.campaign.folder.is_out():
                self.people = People(self.campaign, self.tokens, self.seed)
            if self.rng.random() < self.share_of_servers:
                self.lose_a_server()
            if self.people and self.rng.random() < 0.3:
                self.people.finish()
            if self.n_begun > before:
                self.say()
        return list(self._end())

    def _end(self) -> Iterator[str]:
        """Let everybody finish, begin one more round, and look."""
        assert self.people is not None
        begun = self.n_begun
        for _ in range(20):
            if self.found or self.n_begun > begun:
                break
            self.people.finish()
            self.run(may_be_killed=False)
        sleep(max(PATIENCE.values()).total_seconds())  # a run that was killed may have been waiting for the lock
        self.run(may_be_killed=False)  # which puts the books of the last ones right
        yield from self.found or findings(self.campaign, self.people.given)

    @property
    def n_begun(self) -> int:
        return len(self.campaign.folder.rounds())

    def run(self, *, may_be_killed: bool) -> None:
        """Run once; kill the run at a random moment if it may be."""
        started = monotonic()
        running = self.start()
        if may_be_killed:
            running.process.join(self.rng.uniform(0, self.longest))
            self.n_kills += running.process.is_alive()
            running.kill()
        exit_code, error = running.wait(600)
        self.n_runs += 1
        if exit_code == 0 and not may_be_killed:
            self.longest = monotonic() - started
        told = self.output.read_text(encoding="utf-8") if self.output.exists() else ""
        if exit_code not in EXPECTED:
            self.found.append(f"run {self.n_runs} ended with {exit_code}: {error}\n{told}")

    def start(self) -> Forked:
        """Start a run."""
        run = ("run", str(self.campaign.file))
        return self.place.forks.start(be_command, str(self.output), run, self.campaign.environment)

    def lose_a_server(self) -> None:
        """Kill a server while a run works, see that the run ends, and start the server again."""
        name = list(HEALTH)[len(self.servers_killed) % len(HEALTH)]
        running = self.start()
        running.process.join(self.rng.uniform(0, self.longest))
        kill_server(self.place.servers.home, name)
        self.servers_killed.append(name)
        exit_code, error = running.wait(600)
        told = self.output.read_text(encoding="utf-8")
        if exit_code not in EXPECTED and not any(words in told for words in SERVER_AWAY):
            self.found.append(f"with {name} away a run ended with {exit_code}: {error}\n{told}")
        up(self.place.servers.home, label_studio_venv=LABEL_STUDIO_VENV)

    def say(self) -> None:
        """Print how far it is."""
        acts = self.people.given.acts if self.people else {}
        typer.echo(f"{self}, {', '.join(f'{n} {act}' for act, n in acts.items())}")

    def __str__(self) -> str:
        killed = f", servers killed: {' '.join(self.servers_killed)}" if self.servers_killed else ""
        return f"{self.campaign.name}: {self.n_begun} rounds, {self.n_runs} runs, {self.n_kills} killed{killed}"


def kill_server(home: Path, name: str) -> None:
    """Kill a server of a home, with all that it started."""
    known = {each["name"]: each for each in json.loads((home / "servers.json").read_text())}
    for member in members(known[name]["pid"], known[name]["created"]):
        with suppress(ProcessLookupError):
            os.kill(member.pid, signal.SIGKILL)


def try_campaign(
    place: Place, task: str, *, n_rounds: int, seed: int, killed: float = 0.0, servers_killed: float = 0.0
) -> list[str]:
    """Go through so many rounds of a campaign; print what happened, and return the findings."""
    typer.echo(f"{task}, {n_rounds} rounds, seed {seed}")
    trial = Trial(place, task, n_rounds=n_rounds, seed=seed, killed=killed, servers_killed=servers_killed)
    found = trial.go_through()
    given = trial.people.given if trial.people else None
    answers = f"{len(given.standing)} answers stand, {len(given.taken_back)} were taken back" if given else "no answers"
    typer.echo(f"{trial}; {answers}; {len(found)} findings")
    return [f"{trial.campaign.name} (--task {task} --seed {seed}): {one}" for one in found]


def side_by_side(place: Place, tasks: Sequence[str], *, n_rounds: int, seed: int) -> list[str]:
    """Go through so many rounds of campaigns at the same time; return the findings of all."""
    place.forks.begin()
    with ThreadPoolExecutor(len(tasks)) as threads:
        tried = [
            threads.submit(try_campaign, place, task, n_rounds=n_rounds, seed=seed + number)
            for number, task in enumerate(tasks)
        ]
    return [finding for one in tried for finding in one.result()]
