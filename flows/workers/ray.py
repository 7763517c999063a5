"""Workers of Ray: pieces of work side by side, each by a process that opens the same folder."""

from __future__ import annotations

import os
import pickle
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import monotonic
from typing import Any, Generic, NamedTuple, TypeVar

from flows.folder import RoundFolder
from flows.home import VARIABLE, home
from flows.progress import progress_bar, say
from flows.step import Step, log
from flows.workers.cluster import WorkersError, fits, last_line, load_ray, place_of
from flows.workers.local import Here, Piece
from flows.workers.settings import WorkerSettings

T = TypeVar("T")
LOOK_SECONDS = 1.0
ALONE_SECONDS = 120.0
"""So long a run waits while no machine of the cluster is left that could do a piece."""
REPEATS = 3
"""How often a piece is done again whose worker died."""
MOST_QUEUED = 1000
"""Pieces that Ray knows of at a time."""


class PieceOfRound(NamedTuple):
    """A piece of a step's work, as it is sent: no object of a campaign goes along."""

    round_number: int
    step: Step[Any]
    piece: Piece
    unit: str

    def __str__(self) -> str:
        part = "".join(f", {name} {value}" for name, value in self.piece.items())
        return f"{self.step.name} of round {self.round_number}{part}"


@dataclass(frozen=True)
class Spread(Generic[T]):
    """What a worker does with each piece; for as long as a cluster is joined.

    Attributes:
        folder: what it opens.
        run: a function that workers can import, of the folder and a piece: paths, names and numbers.
    """

    settings: WorkerSettings
    folder: Path
    run: Callable[[Path, T], None]

    def do(self, pieces: Sequence[T], on_done: Callable[[T], None]) -> None:
        """Do all pieces, in any order; a piece whose worker dies is done again.

        Args:
            on_done: called in this process with each piece that is done.

        Raises:
            WorkersError: a piece loses its worker again and again, or no worker is left.
            Exception: the first error of a piece.
        """
        ray = load_ray()
        queue = iter(pieces)
        waiting: dict[Any, T] = {}
        lost: Counter[str] = Counter()
        last_fit = monotonic()
        try:
            while True:
                waiting |= {self._send(piece): piece for piece in islice(queue, MOST_QUEUED - len(waiting))}
                if not waiting:
                    return
                ready, _ = ray.wait(list(waiting), num_returns=1, timeout=LOOK_SECONDS)
                for sent in ready:
                    piece = waiting.pop(sent)
                    if self._is_done(sent, str(piece), lost):
                        on_done(piece)
                    else:
                        waiting[self._send(piece)] = piece
                if ready or any(fits(node, self.settings) for node in ray.nodes()):
                    last_fit = monotonic()
                elif monotonic() - last_fit > ALONE_SECONDS:
                    raise WorkersError(
                        f"no machine of {place_of(self.settings)} is left that could go on, for {ALONE_SECONDS:.0f} s: "
                        "start machines, and run again, which goes on where this run stopped"
                    )
        finally:
            for sent in waiting:
                ray.cancel(sent, force=True)

    def _send(self, piece: T) -> Any:
        needs = {"num_cpus": self.settings.ray_cpus, "num_gpus": self.settings.ray_gpus}
        do = load_ray().remote(_do).options(max_retries=0, name=str(piece), **needs)
        return do.remote(str(home()), self.settings.ray_cpus, self.run, str(self.folder), piece)

    def _is_done(self, sent: Any, name: str, lost: Counter[str]) -> bool:
        """Whether a piece came to its end; False where its worker died and it may be done again."""
        ray = load_ray()
        try:
            error = ray.get(sent)
        except ray.exceptions.RayTaskError as exc:  # before our code began
            raise WorkersError(f"a worker of Ray cannot begin {name}: {last_line(exc)}") from exc
        except ray.exceptions.LocalRayletDiedError as exc:
            raise WorkersError(
                f"Ray's own process on this machine ended while workers did {name}, perhaps for lack of memory: run "
                "again, which goes on where this run stopped"
            ) from exc
        except ray.exceptions.RayError as exc:
            lost[name] += 1
            if lost[name] > REPEATS:
                raise WorkersError(
                    f"{name} lost its worker {lost[name]} times, perhaps for lack of memory: {last_line(exc)}. With a "
                    "higher ray_cpus fewer workers share a machine; a run goes on where this one stopped"
                ) from exc
            told = f"a worker died, and {name} is done again: {last_line(exc)}"
            log().warning(told)
            say(told)
            return False
        if error is not None:
            raise error
        return True


@dataclass(frozen=True)
class RayWorkers:
    """Processes of Ray, as steps see them."""

    spread: Spread[PieceOfRound]

    def each(
        self, step: Step[None], folder: RoundFolder, pieces: Sequence[Piece], here: Here, *, what: str, unit: str
    ) -> None:
        """See `flows.workers.local.Workers.each`; the bar counts pieces."""
        n_done = 0
        with progress_bar(what, unit="pieces") as on_progress:
            on_progress(0, len(pieces))

            def count(_piece: PieceOfRound) -> None:
                nonlocal n_done
                n_done += 1
                on_progress(n_done, len(pieces))

            self.spread.do([PieceOfRound(folder.number, step, piece, unit) for piece in pieces], count)

    def whole(self, step: Step[Any], folder: RoundFolder) -> None:
        """See `flows.workers.local.Workers.whole`."""
        self.spread.do([PieceOfRound(folder.number, step, {}, "")], lambda _piece: None)


# In a worker


def _do(at_home: str, threads: int, run: Callable[[Path, T], None], folder: str, piece: T) -> Exception | None:
    """Do a piece; return what went wrong, which an error of Ray's own would hide in a traceback."""
    os.environ[VARIABLE] = at_home
    import torch

    torch.set_num_threads(threads)
    try:
        run(Path(folder), piece)
    except Exception as exc:
        exc.add_note(traceback.format_exc())
        return _portable(exc)
    return None


def _portable(exc: Exception) -> Exception:
    """An error that can be sent."""
    try:
        pickle.loads(pickle.dumps(exc))  # noqa: S301 (our own)
    except Exception:
        return WorkersError(f"{type(exc).__name__}: {exc}")
    return exc
