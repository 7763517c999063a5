"""What is so in a campaign that people want to know without looking: each thing that stands, in words."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from connectors.notify.settings import Kind
from flows.artefacts import PUSHED
from flows.campaign import OpenCampaign
from flows.outcome import RoundOutcome
from flows.outlook import best_round, in_words, measured, outlook
from flows.reports.round_page import accuracy_text
from flows.round import notes_on_audit


@dataclass(frozen=True)
class Standing:
    """Something that is so now.

    Attributes:
        about: what it is about; it is told once, and of something else anew.
        message: for people.
        again: time after which it is told once more, if it still stands; None for never.
    """

    kind: Kind
    about: str
    message: str
    again: timedelta | None = None


def standing_of(work: OpenCampaign, outcome: RoundOutcome) -> list[Standing]:
    """What stands after a run of the loop."""
    return [*_awaited(work, outcome), *_finished(work, outcome), *_champion(work), *_audit(work)]


def _awaited(work: OpenCampaign, outcome: RoundOutcome) -> Iterator[Standing]:
    if outcome.kind != "awaiting":
        return
    patience = work.settings.notify.awaiting_after
    pushed_at = datetime.fromisoformat(work.folder.round(outcome.round_number).read(PUSHED).pushed_at)
    waited = datetime.now(UTC) - pushed_at
    if waited >= patience:
        message = f"{outcome.message}, {in_time(waited)} after they were asked for"
        yield Standing("awaiting", f"round {outcome.round_number}", message, again=patience)


def _finished(work: OpenCampaign, outcome: RoundOutcome) -> Iterator[Standing]:
    if outcome.kind == "finished":
        yield Standing(_why(work), "", outcome.message)


def _why(work: OpenCampaign) -> Kind:
    """What ended the campaign; in the order in which `OpenCampaign.reason_to_stop` asks."""
    ahead, target = outlook(work.folder.rounds(), work.settings), work.settings.target_accuracy
    surely = ahead.looks["target_accuracy"].now if target is not None else None
    if target is not None and surely is not None and surely >= target:
        return "target_reached"
    return "budget_spent" if ahead.stop is None and work.budget_left == 0 else "finished"


def _champion(work: OpenCampaign) -> Iterator[Standing]:
    rounds = work.folder.rounds()
    best = best_round(rounds)
    if best is None:
        return
    known = {folder.number: (set(training.model.classes), m) for folder, training, m in measured(rounds)}
    classes, metrics = known[best.number]
    first = next(number for number, (theirs, m) in known.items() if (theirs, m.low) == (classes, metrics.low))
    told = f"the model of round {first} is the best so far: audit {in_words(metrics.headline)}"
    yield Standing("new_champion", f"round {first}", f"{told} {accuracy_text(metrics)}")


def _audit(work: OpenCampaign) -> Iterator[Standing]:
    yield from (Standing("audit_outgrown", "", note) for note in notes_on_audit(work))


def in_time(length: timedelta) -> str:
    """A length of time in its two largest units.

    >>> in_time(timedelta(days=4, hours=2, minutes=10)), in_time(timedelta(minutes=12))
    ('4 d 2 h', '12 min')
    """
    minutes = int(length.total_seconds() // 60)
    parts = ((minutes // 1440, "d"), (minutes // 60 % 24, "h"), (minutes % 60, "min"))
    told = [f"{n} {unit}" for n, unit in parts if n]
    return " ".join(told[:2]) or "less than a minute"
