"""Runs killed at random moments, and what they rely on too, while people answer, correct and take back."""

import random
import signal
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from time import monotonic, sleep

import typer

from flows.books import PATIENCE
from flows.unread import SET_ASIDE
from tests.forked import Forked
from tests.soak.checks import findings
from tests.soak.losses import SERVERS, STORE, WORKERS, Loss, left_of_ray
from tests.soak.people import People, sign_up
from tests.soak.trial import Place, Pool, Workers, make_campaign
from tests.system.conftest import be_command

PEOPLE = 3
FIRST_GUESS_SECONDS = 12.0
EXPECTED = {0, 3, -signal.SIGKILL}
"""Done, awaiting labels, killed by us."""
SHARE_OF_LOSSES = 0.5
"""Of runs after which one more is begun that loses something, where there is something to lose."""


class Trial:
    """One campaign, and what came of it.

    Args:
        killed: share of runs that may be killed.
        losses: what runs may lose, by its name.
    """

    def __init__(
        self,
        place: Place,
        task: str,
        *,
        n_rounds: int,
        seed: int,
        killed: float,
        losses: Mapping[str, Loss],
        pool: Pool,
        workers: Workers,
    ) -> None:
        self.place, self.n_rounds = place, n_rounds
        self.share_killed, self.losses = killed, losses
        self.rng = random.Random(seed)
        self.seed = seed
        self.campaign = make_campaign(place, task, n_rounds=n_rounds + 3, pool=pool, workers=workers)
        self.output = self.campaign.file.with_name("output.txt")
        self.tokens = sign_up(place.servers, place.token, PEOPLE)
        self.people: People | None = None
        self.longest = FIRST_GUESS_SECONDS
        self.n_kills = 0
        self.lost: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.pids: list[int] = []
        self.found: list[str] = []

    def go_through(self) -> list[str]:
        """Go through all rounds; return the findings."""
        while self.n_begun < self.n_rounds and not self.found:
            before = self.n_begun
            with self.people.at_work() if self.people else nullcontext():
                self.run(may_be_killed=self.rng.random() < self.share_killed)
            if self.people is None and self.campaign.folder.is_out():
                self.people = People(self.campaign, self.tokens, self.seed)
            if self.losses and self.rng.random() < SHARE_OF_LOSSES:
                self.lose(self.rng.choice(list(self.losses)))
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
        yield from self.found or [*findings(self.campaign, self.people.given), *left_of_ray(self.pids)]

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
        exit_code = self._judge(running, "")
        if exit_code == 0 and not may_be_killed:
            self.longest = monotonic() - started

    def start(self) -> Forked:
        """Start a run."""
        run = ("run", str(self.campaign.file))
        running = self.place.forks.start(be_command, str(self.output), run, self.campaign.environment)
        self.pids.append(running.process.pid or 0)
        return running

    def lose(self, name: str) -> None:
        """Take something from a run that has a round to make, see how the run ends, and give it back."""
        if self.people:
            self.people.finish()
        running, loss = self.start(), self.losses[name]
        running.process.join(self.rng.uniform(0, self.longest))
        is_at_work = running.process.is_alive()
        self.lost[name] += loss.take(self.place, running, self.rng) and is_at_work
        self.ended[name] += self._judge(running, f"with {name} lost ", *loss.words) not in EXPECTED
        loss.give_back(self.place)

    def _judge(self, running: Forked, when: str, *excuses: str) -> int | None:
        """Wait for a run; it is a finding where it ends otherwise than it may, or gives up an image."""
        exit_code, error = running.wait(600)
        told = self.output.read_text(encoding="utf-8") if self.output.exists() else ""
        if exit_code not in EXPECTED and not any(words in told for words in excuses):
            self.found.append(f"{when}run {len(self.pids)} ended with {exit_code}: {error}\n{told}")
        if SET_ASIDE in told:  # all of them can be used
            self.found.append(f"{when}run {len(self.pids)} set images aside:\n{told}")
        return exit_code

    def say(self) -> None:
        """Print how far it is."""
        acts = self.people.given.acts if self.people else {}
        typer.echo(f"{self}, {', '.join(f'{n} {act}' for act, n in acts.items())}")

    def __str__(self) -> str:
        lost = "".join(f", lost {name} {n} times and ended {self.ended[name]}" for name, n in self.lost.items())
        return f"{self.campaign.name}: {self.n_begun} rounds, {len(self.pids)} runs, {self.n_kills} killed{lost}"


def try_campaign(
    place: Place,
    task: str,
    *,
    n_rounds: int,
    seed: int,
    killed: float = 0.0,
    servers: bool = False,
    pool: Pool = "disk",
    workers: Workers = "local",
) -> list[str]:
    """Go through so many rounds of a campaign; print what happened, and return the findings."""
    typer.echo(f"{task}, {n_rounds} rounds, seed {seed}")
    losses = (SERVERS if servers else {}) | (STORE if pool == "s3" else {}) | (WORKERS if workers == "ray" else {})
    trial = Trial(place, task, n_rounds=n_rounds, seed=seed, killed=killed, losses=losses, pool=pool, workers=workers)
    found = trial.go_through()
    given = trial.people.given if trial.people else None
    answers = f"{len(given.standing)} answers stand, {len(given.taken_back)} were taken back" if given else "no answers"
    typer.echo(f"{trial}; {answers}; {len(found)} findings")
    return [
        f"{trial.campaign.name} (--task {task} --pool {pool} --workers {workers} --seed {seed}): {one}" for one in found
    ]


def side_by_side(place: Place, tasks: Sequence[str], *, n_rounds: int, seed: int) -> list[str]:
    """Go through so many rounds of campaigns at the same time; return the findings of all."""
    place.forks.begin()
    with ThreadPoolExecutor(len(tasks)) as threads:
        tried = [
            threads.submit(try_campaign, place, task, n_rounds=n_rounds, seed=seed + number)
            for number, task in enumerate(tasks)
        ]
    return [finding for one in tried for finding in one.result()]
