"""What labelcycle asks of an experiment tracker, and how such a tracker may fail."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from connectors.health import Finding


class TrackerError(Exception):
    """The tracker refuses what was asked; trying again does not help."""


class TrackerUnavailable(TrackerError):
    """The tracker does not answer; worth a retry."""


class LaterRounds(TrackerError):
    """The tracker holds rounds that the campaign's folder does not have: it was lost, or is older.

    Attributes:
        found: what is there.
        mend: what to do.
    """

    mend = (
        "was the campaign's folder moved, lost, or not mounted? Bring it back, or a backup by `labelcycle restore`. "
        "To begin anew, give the campaign another name"
    )

    def __init__(self, where: str, *, last: int, newest: int) -> None:
        own = f"ends with round {last}" if last >= 0 else "holds no round"
        self.found = f"{where} holds round {newest} of this campaign, and its folder {own}"
        super().__init__(f"{self.found}: {self.mend}")


@dataclass(frozen=True, slots=True)
class MemberHistory:
    """How one member was trained.

    Attributes:
        name: for example "member-0".
        seed: of its weights and its shuffling.
        epochs: one row of metrics for each epoch, for example {"train_loss": 0.3, "validation_accuracy": 0.9}.
    """

    name: str
    seed: int
    epochs: Sequence[Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class TrackedModel:
    """Where a round's model is in the tracker."""

    run_id: str
    model_uri: str
    version: str


class Tracker(Protocol):
    """One campaign in an experiment tracker. Every call may be repeated after a crash and leaves one record."""

    def start_round(
        self,
        round_number: int,
        *,
        params: Mapping[str, str | int | float | bool],
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> str:
        """Find the round's run, or begin it; return its id.

        `params` are logged once, and other values later are a `TrackerError`; `tags`, such as the machine, may change.
        So is a later round that is there already: see `refuse_later`.
        """

    def refuse_later(self, last: int) -> None:
        """See that the tracker has no later round than `last`, the campaign's own last one; -1 for none.

        Raises:
            LaterRounds: it has.
        """

    def discard_rounds(self, first: int) -> int:
        """Put away what there is of a round that begins anew, and of all later ones; return of how many rounds."""

    def log_members(self, run_id: str, members: Sequence[MemberHistory]) -> None:
        """Log each member's epochs in a run of its own, nested in the round's."""

    def log_model(
        self, run_id: str, *, weights: Sequence[Path], trunk: Path | None = None, description: Path
    ) -> TrackedModel:
        """Log and register the round's model.

        `weights` are its members, `trunk` what they share, if anything; `description` is what it takes to build them.
        """

    def log_round(
        self,
        run_id: str,
        *,
        metrics: Mapping[str, float],
        step: int,
        artifacts: Sequence[Path],
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Log a round's metrics once, at `step` = labels paid for, its artefacts, and tags, which may change.

        The tag `description` is shown to people beside the run.
        """

    def name_champion(self, model: TrackedModel) -> None:
        """Make a registered model the campaign's champion."""

    def drop_models(self, models: Sequence[TrackedModel]) -> list[str]:
        """Remove registered models, with their files; return the versions that were removed now.

        One that somebody gave a name of their own, or that is the champion, stays. Runs and their numbers stay too.
        """

    def finish_round(self, run_id: str) -> None:
        """End the run."""

    def address(self, run_id: str) -> str | None:
        """Where a browser shows the run; None where the tracker has no pages."""

    def monitor(self, run_id: str) -> AbstractContextManager[None]:
        """Log the machine's load (processor, memory, disk, network, GPU) to the run while the block lasts."""

    def check(self) -> Iterator[Finding]:
        """Look whether rounds can be logged, one finding after the other; nothing is left behind.

        The first failure is the last finding where the others depend on what failed. No error is raised.
        """
