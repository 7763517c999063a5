"""Workers of Ray: pieces of work side by side, each by a process that opens the same folder."""

from __future__ import annotations

import os
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
from flows.workers.together import LostProcess, portable

T = TypeVar("T")
LOOK_SECONDS = 1.0
ALONE_SECONDS = 120.0
"""So long a run waits while no machine of the cluster is left that could do a piece."""
REPEATS = 3
"""How often a piece is done again whose worker died."""
MOST_QUEUED = 1000
"""Pieces that Ray knows of at a time."""


class PieceOfRound(NamedTuple):
    """A piece of a step's work, as it is sent: no object of a campaign goes along.

    Attributes:
        together: so many processes do it as one.
    """

    round_number: int
    step: Step[Any]
    piece: Piece
    unit: str
    together: int = 1

    def __str__(self) -> str:
        part = "".join(f", {name} {value}" for name, value in self.piece.items())
        return f"{self.step.name} of round {self.round_number}{part}"


@dataclass(frozen=True)
class Spread(Generic[T]):
    """What a worker does with each piece; for as long as a cluster is joined.

    Attributes:
        folder: what it opens.
        run: a function that workers can import, of the folder and a piece: paths, names and numbers.
        together: how many processes do a piece as one, for which its worker has room.
    """

    settings: WorkerSettings
    folder: Path
    run: Callable[[Path, T], None]
    together: Callable[[T], int] = lambda _piece: 1

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
                most = max(map(self.together, waiting.values()), default=1)
                if ready or any(fits(node, self.settings, together=most) for node in ray.nodes()):
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
        n_cpus, n_gpus = self.settings.needs(self.together(piece))
        # Told here and not by `options`, a piece with GPUs has a process of its own: torch keeps those of its first.
        do = load_ray().remote(max_retries=0, num_cpus=n_cpus, num_gpus=n_gpus)(_do).options(name=str(piece))
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
            error = exc
        if error is None:
            return True
        if not isinstance(error, ray.exceptions.RayError | LostProcess):
            raise error
        lost[name] += 1
        if lost[name] > REPEATS:
            raise WorkersError(
                f"{name} lost its worker {lost[name]} times, perhaps for lack of memory: {last_line(error)}. With a "
                "higher ray_cpus fewer workers share a machine; a run goes on where this one stopped"
            ) from error
        told = f"a worker died, and {name} is done again: {last_line(error)}"
        log().warning(told)
        say(told)
        return False


@dataclass(frozen=True)
class RayWorkers:
    """Processes of Ray, as steps see them."""

    spread: Spread[PieceOfRound]

    def each(
        self,
        step: Step[None],
        folder: RoundFolder,
        pieces: Sequence[Piece],
        here: Here,
        *,
        what: str,
        unit: str,
        together: int = 1,
    ) -> None:
        """See `flows.workers.local.Workers.each`; the bar counts pieces."""
        n_done = 0
        with progress_bar(what, unit="pieces") as on_progress:
            on_progress(0, len(pieces))

            def count(_piece: PieceOfRound) -> None:
                nonlocal n_done
                n_done += 1
                on_progress(n_done, len(pieces))

            sent = [PieceOfRound(folder.number, step, piece, unit, together) for piece in pieces]
            self.spread.do(sent, count)

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
        return portable(exc)
    return None
