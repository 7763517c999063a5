"""People are told by the campaign's hooks what happened, each thing once: what was told is kept in the folder."""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from connectors.notify.hooks import WEBHOOK, HookError, Send, hooks_of
from connectors.notify.settings import Kind, NotifySettings
from connectors.store import StoreError
from flows.artefacts import NOTIFIED
from flows.campaign import OpenCampaign
from flows.config import ConfigError, load_place, load_settings
from flows.errors import explain_error
from flows.events import Standing, standing_of
from flows.folder import Campaign
from flows.outcome import RoundOutcome
from flows.progress import say
from flows.records import Notified, Told
from pipeline.settings import Plain

NUMBER = re.compile(r"\d+")
DIED = "its process died"
"""What the failure of a run is about that could not tell of it."""


@dataclass(frozen=True)
class Teller:
    """One campaign, and whom to tell of it.

    Attributes:
        name: of the campaign.
        file: of the campaign.
        folder: keeps what was told.
    """

    name: str
    file: Path
    folder: Campaign
    settings: NotifySettings

    @property
    def record(self) -> Notified:
        """What was told; nothing, where the file is damaged, which is no reason to stop a campaign."""
        try:
            return self.folder.get(NOTIFIED) or Notified()
        except StoreError as exc:
            say(f"Warning: what was told is told again: {exc}")
            return Notified()

    def hooks(self, *, is_shown: bool = False) -> dict[str, Send]:
        """The hooks that are set; `is_shown` as in `hooks_of`."""
        return hooks_of(self.settings.command, folder=self.file.resolve().parent, is_shown=is_shown)

    def event(self, kind: str, message: str, address: str | None = None) -> Plain:
        """What a hook gets; `text` is what chats show."""
        return {
            "event": kind,
            "campaign": self.name,
            "message": message,
            "text": f"{self.name}: {message}",
            "address": address,
            "file": str(self.file),
            "host": os.uname().nodename,
            "at": _now().isoformat(timespec="seconds"),
        }

    def tell(self, standing: Sequence[Standing], *, is_all: bool, address: str | None = None) -> list[str]:
        """Tell each hook what stands and what it was not told yet.

        Args:
            standing: what stands now.
            is_all: whether nothing else stands: what was told of it before is told anew when it comes back.
            address: where people label.

        Returns:
            A line for each hook that failed; the next run tries it again.
        """
        record, abouts = self.record, {(one.kind, one.about) for one in standing}
        told = [each for each in record.told if not is_all or (each.event, each.about) in abouts]
        failed: dict[str, str] = {}
        for hook, send in self.hooks().items():
            for one in standing:
                if hook in failed or one.kind not in self.settings.on or not is_due(one, hook, told):
                    continue
                try:
                    send(self.event(one.kind, one.message, address))
                except HookError as exc:
                    failed[hook] = f"the {hook} that is to be told of {one.kind!r} {exc}"
                    continue
                same = (hook, one.kind, one.about)
                told = [each for each in told if (each.hook, each.event, each.about) != same]
                told.append(Told(*same, at=_now().isoformat(timespec="seconds")))
        now = self.record  # hooks take their time, and a run may have begun or ended meanwhile
        is_death_told = not failed and any(one.about == DIED for one in standing)
        died = None if is_death_told else now.died
        if (tuple(told), died) != (now.told, now.died):
            self.folder.write(NOTIFIED, replace(now, told=tuple(told), died=died))
        more = f"the next run tries again; `labelcycle notify {self.file}` tries it now"
        return [f"{line}; {more}" for line in failed.values()]

    def mark(self) -> None:
        """Note that a run is on. Where the mark of an earlier one is still there its process died, which is told."""
        record = self.record
        died = record.running_since or record.died
        since = _now().isoformat(timespec="seconds")
        self.folder.write(NOTIFIED, replace(record, running_since=since, died=died))
        for warning in self.tell(self.deaths(), is_all=False):
            say(f"Warning: {warning}")

    def unmark(self) -> None:
        """Note that the run is over."""
        self.folder.write(NOTIFIED, replace(self.record, running_since=None))

    def deaths(self) -> list[Standing]:
        """That a run died, until all hooks were told."""
        since = self.record.died
        message = f"the run that began at {since} died: it was killed, or the machine went down. The next one goes on"
        return [] if since is None else [Standing("failed", DIED, message, again=self.settings.again_after)]


def is_due(standing: Standing, hook: str, told: Sequence[Told]) -> bool:
    """Whether a hook is to be told."""
    same = (hook, standing.kind, standing.about)
    before = [each.at for each in told if (each.hook, each.event, each.about) == same]
    if not before:
        return True
    return standing.again is not None and _now() - datetime.fromisoformat(max(before)) >= standing.again


def run_and_tell(work: OpenCampaign, file: Path, run: Callable[[OpenCampaign], RoundOutcome]) -> RoundOutcome:
    """Run the loop, and tell what stands afterwards; call it under the campaign's lock.

    A hook that fails is a warning. Without a hook nothing is written.
    """
    teller = Teller(work.settings.name, file, work.folder, work.settings.notify)
    if not teller.hooks():
        return run(work)
    teller.mark()
    try:
        outcome = run(work)
    finally:
        with suppress(StoreError):  # a disk that takes nothing is the run's own error
            teller.unmark()
    try:
        standing = [*teller.deaths(), *standing_of(work, outcome)]
        warnings = teller.tell(standing, is_all=True, address=outcome.address)
    except StoreError as exc:
        warnings = [f"could not write down what was told, and it is told again: {exc}"]
    return replace(outcome, warnings=(*outcome.warnings, *warnings))


@contextmanager
def failure_told(file: Path) -> Iterator[None]:
    """Tell of an error that ends the run; one that lasts is told again after a while, and not by each run."""
    try:
        yield
    except Exception as exc:
        try:
            _tell_failure(file, exc)
        except Exception as other:  # the run's own error is what counts
            say(f"Warning: could not tell of this failure: {other}")
        raise


def _tell_failure(file: Path, exc: Exception) -> None:
    place = load_place(file)
    settings = NotifySettings.model_validate(place.notify or {})
    teller = Teller(place.name, file, Campaign(place.folder), settings)
    message = explain_error(exc)[0]
    about = NUMBER.sub("#", f"{type(exc).__name__}: {message}")[:200]  # counts and times differ while one failure lasts
    failed = Standing("failed", about, message, again=settings.again_after)
    for warning in teller.tell([*teller.deaths(), failed], is_all=False):
        say(f"Warning: {warning}")


def tell_from_outside(teller: Teller, kind: Kind, message: str) -> None:
    """Tell of what no run can tell: that one ended without a word, or that none begins; it raises nothing.

    A failure that the run has told itself is not told again.
    """
    try:
        record = teller.record
        known = [each.about for each in record.told if each.event == kind]
        about = DIED if kind == "failed" and record.running_since else max(known, default="")
        one = Standing(kind, about, message, again=teller.settings.again_after)
        warnings = teller.tell([one], is_all=False)
    except StoreError as exc:
        warnings = [f"could not write down what was told: {exc}"]
    for warning in warnings:
        say(f"Warning: {warning}")


def send_test(file: Path) -> dict[str, str | None]:
    """Send an event of the kind "test" through each hook; what is wrong with each, or None.

    Raises:
        ConfigError: the file is wrong, or no hook is set.
    """
    settings = load_settings(file)
    teller = Teller(settings.name, file, Campaign(settings.folder), settings.notify)
    found: dict[str, str | None] = {}
    for hook, send in teller.hooks(is_shown=True).items():
        try:
            send(teller.event("test", "labelcycle can tell you what happens in this campaign"))
            found[hook] = None
        except HookError as exc:
            found[hook] = str(exc)
    if not found:
        raise ConfigError(
            f"{file} sets nobody to tell: set command in [notify], or the address of a webhook in {WEBHOOK}, in the "
            "environment of what runs the campaign"
        )
    return found


def _now() -> datetime:
    return datetime.now(UTC)
