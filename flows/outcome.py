"""How one run of the loop ended, for people."""

from dataclasses import dataclass
from typing import Literal

from connectors.annotation import Progress
from flows.artefacts import PUSHED
from flows.campaign import OpenCampaign
from flows.folder import RoundFolder


@dataclass(frozen=True)
class RoundOutcome:
    """How one run of the loop ended.

    Attributes:
        kind: "asked" a new batch is with the annotators; "awaiting" labels are missing; "finished" nothing more
            is to be asked for; "busy" another process works on the campaign, so this one did nothing.
        message: for people.
        address: where people label.
        warnings: what this run found to be wrong with the round's training or its batch.
        notes: what a person should know of the pool, the answers and the costs; a line each.
    """

    kind: Literal["asked", "awaiting", "finished", "busy"]
    round_number: int
    message: str
    address: str | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def awaiting(folder: RoundFolder, progress: Progress) -> RoundOutcome:
    """The outcome of a run that finds labels missing."""
    pushed = folder.read(PUSHED)
    set_aside = f", {progress.n_set_aside} skipped or set aside" if progress.n_set_aside else ""
    message = f"round {folder.number} awaits labels: {progress.n_labelled} of {len(pushed.tasks)} labelled{set_aside}"
    return RoundOutcome("awaiting", folder.number, message, pushed.address)


def asked(folder: RoundFolder) -> RoundOutcome:
    """The outcome of a run that pushed a batch."""
    pushed = folder.read(PUSHED)
    message = f"round {folder.number} asks for {len(pushed.tasks)} labels"
    return RoundOutcome("asked", folder.number, message, pushed.address)


def finished(work: OpenCampaign) -> RoundOutcome:
    """The outcome of a run that has nothing more to ask for."""
    last = work.folder.rounds()[-1].number
    why = work.reason_to_stop() or "nothing is left to ask for"
    n_open = work.ledger.n_outstanding
    late = f"; {n_open} tasks are still open" if n_open else ""
    return RoundOutcome("finished", last, f"the campaign is finished after round {last}: {why}{late}")
