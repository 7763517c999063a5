"""Work in pieces: what a step knows of whoever does it, and this process, which does one piece after the other."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from flows.folder import RoundFolder
from flows.progress import progress_bar
from flows.step import Step
from pipeline.types import OnProgress

Piece = Mapping[str, int]
"""Keywords of a step that name a part of its work, such as the number of a shard."""
Here = Callable[[Piece, OnProgress], None]
"""Does a piece in this process, with what it has in memory."""


class Workers(Protocol):
    """Whoever does the pieces of a step's work."""

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
        """Do all pieces. Each writes its result into the round's folder, so that the order does not matter.

        Args:
            step: does a piece from the files of the round alone, wherever it is called.
            folder: of the round.
            pieces: what is not done yet.
            here: does the same with what this process has in memory.
            what: for people, beside the bar.
            unit: what a piece in this process counts.
            together: processes that do a piece as one, where it is for somebody else than this process.
        """
        ...

    def whole(self, step: Step[Any], folder: RoundFolder) -> None:
        """Do a step whose networks compute, if it is for somebody else than this process."""
        ...


class LocalWorkers:
    """This process, which does one piece after the other."""

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
        """See `Workers.each`."""
        with progress_bar(what, unit=unit) as on_progress:
            for piece in pieces:
                here(piece, on_progress)

    def whole(self, step: Step[Any], folder: RoundFolder) -> None:
        """See `Workers.whole`: here it is done by whoever asks."""
