"""What a run may lose while it works: a server, the store of its pool, a worker of Ray."""

import json
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from time import sleep
from typing import NamedTuple

import psutil

from deploy.programs import HEALTH
from deploy.servers import up
from flows.workers.cluster import OWN_FOLDER, short_folder
from tests import s3
from tests.conftest import LABEL_STUDIO_VENV
from tests.forked import Forked, kill_session
from tests.soak.trial import Place

STORE_AWAY_SECONDS = (5, 30, 600)
"""For one of which the store is away: a run bears two minutes, so that the last ends it."""
LOOK_SECONDS = 0.05
WORKER = "ray::"
"""Begins the titles of Ray's workers, which name the piece that one is at."""
NO_PIECE = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")


class Loss(NamedTuple):
    """Something that a run may lose.

    Attributes:
        take: takes it while the run works, and returns whether there was something to take.
        give_back: sees that it is there for the next run.
        words: of a run that ends for the lack of it.
    """

    take: Callable[[Place, Forked, random.Random], bool]
    give_back: Callable[[Place], object]
    words: tuple[str, ...]


def kill_server(home: Path, name: str) -> None:
    """Kill a server of a home, with all that it started."""
    known = {each["name"]: each for each in json.loads((home / "servers.json").read_text())}
    kill_session(known[name]["pid"], known[name]["created"])


def _of_server(name: str) -> Loss:
    def take(place: Place, _run: Forked, _rng: random.Random) -> bool:
        kill_server(place.servers.home, name)
        return True

    return Loss(
        take,
        lambda place: up(place.servers.home, label_studio_venv=LABEL_STUDIO_VENV),
        ("does not answer", "are not running"),
    )


def _kill_store(place: Place, run: Forked, rng: random.Random) -> bool:
    """Kill the store; it comes back while the run works, or when that has ended."""
    s3.kill(place.s3_home)
    run.process.join(rng.choice(STORE_AWAY_SECONDS))
    s3.shared(place.s3_home, anew=False)
    return True


def _kill_worker(_place: Place, run: Forked, rng: random.Random) -> bool:
    """Kill a worker that has begun a piece."""
    while run.process.is_alive():
        if busy := [process for process in _below(run) if _title(process).startswith(WORKER)]:
            sleep(rng.uniform(0, 0.5))
            with suppress(psutil.NoSuchProcess):
                rng.choice(busy).kill()
                return True
        sleep(LOOK_SECONDS)
    return False


def _below(run: Forked) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(run.process.pid).children(recursive=True)
    return []


def _title(process: psutil.Process) -> str:
    with suppress(psutil.Error, IndexError):
        title = process.cmdline()[0]
        return "" if title.startswith(NO_PIECE) else title
    return ""


SERVERS = {name: _of_server(name) for name in HEALTH}
STORE = {"s3": Loss(_kill_store, lambda place: s3.shared(place.s3_home, anew=False), ("the store does not answer",))}
WORKERS = {"worker": Loss(_kill_worker, lambda _place: None, ())}
"""What it costs to lose a worker is its piece."""


def left_of_ray(pids: Iterable[int]) -> Iterator[str]:
    """What private clusters of runs that have ended left on this machine."""
    names = tuple(f"{OWN_FOLDER}{pid}-" for pid in pids)
    if not names:
        return
    for folder in short_folder().glob(f"{OWN_FOLDER}*"):
        if folder.name.startswith(names):
            yield f"{folder} was left by a run that has ended"
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if any(name in line for name in names):
                yield f"process {process.pid} was left by a run that has ended: {line[:200]}"
