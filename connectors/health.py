"""What a look at an outside system or at this machine finds: one line, and what to do about it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Literal, TypeVar

Part = TypeVar("Part")
Status = Literal["ok", "warning", "failure"]
CLOCK_TOLERANCE = timedelta(seconds=60)
SET_CLOCK = "let both machines set their clocks from the network (NTP): schedules, tokens and times of answers need it"


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found.

    Attributes:
        name: of what was looked at.
        found: one line.
        status: a warning stops no round now; a failure stops a round, or the people who label.
        mend: what to do; empty where all is well.
    """

    name: str
    found: str
    status: Status = "ok"
    mend: str = ""

    def __post_init__(self) -> None:
        if (self.status == "ok") == bool(self.mend):
            raise ValueError(f"{self.name}: what is not well has a mend, and nothing else has: {self.found}")


def warning(name: str, found: str, mend: str) -> Finding:
    """A finding that stops no round now."""
    return Finding(name, found, "warning", mend)


def failure(name: str, found: str, mend: str) -> Finding:
    """A finding that stops a round, or the people who label."""
    return Finding(name, found, "failure", mend)


def beside_clock(name: str, found: str, date: str | None, now: datetime | None = None) -> Finding:
    """A server that is well, unless its clock and ours differ.

    Args:
        name: of the finding.
        found: of the server.
        date: the header `Date` of an answer of the server.
        now: when the answer came; now by default.
    """
    try:
        ahead = parsedate_to_datetime(date or "") - (now or datetime.now(UTC))
    except (ValueError, TypeError):
        return Finding(name, found)
    if abs(ahead) <= CLOCK_TOLERANCE:
        return Finding(name, f"{found}; its clock agrees with ours")
    way = "ahead of" if ahead > timedelta() else "behind"
    return warning(name, f"{found}; its clock is {abs(ahead.total_seconds()):.0f} s {way} this machine's", SET_CLOCK)


def in_order(
    parts: Mapping[str, tuple[Part, str]], look: Callable[[str, Part], Finding | None], known: type[Exception]
) -> Iterator[Finding]:
    """Look at the parts of a system, until one fails; no error is raised.

    Args:
        parts: what is looked at, by name, and what to do where it fails.
        look: looks at one; gives None where no more can be looked at.
        known: the errors whose text is for people.
    """
    for name, (part, mend) in parts.items():
        try:
            finding = look(name, part)
        except known as exc:
            finding = failure(name, str(exc), mend)
        except Exception as exc:  # of a store, say, of whichever kind it is
            finding = failure(name, f"{type(exc).__name__}: {exc}".splitlines()[0], mend)
        if finding is None:
            return
        yield finding
        if finding.status == "failure":
            return
