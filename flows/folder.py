"""The folder of a campaign and of its rounds: artefacts that are written once, and the lock of who works on them."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from connectors.store import Damaged, StoreError, explain, explained
from deploy.private import PRIVATE_FOLDER
from flows.artefacts import (
    CAMPAIGN,
    CAMPAIGN_ID,
    KNOWN_NETWORK,
    NOTIFIED,
    POOL,
    PUSHED,
    PUSHING,
    ROUND,
    AnyArtefact,
    Artefact,
)
from flows.damage import ROUND_NAME, check_files, mend_of
from flows.lease import Taken, hold

T = TypeVar("T")
LOCK, SERVE_LOCK = "campaign.lock", "serve.lock"
BEFORE_THE_LOCK = tuple(f".{artefact.name}." for artefact in (CAMPAIGN, CAMPAIGN_ID, KNOWN_NETWORK, NOTIFIED))
"""What is written without the lock, as the names of its temporary files begin."""


class CampaignBusy(Exception):
    """Another process works on the campaign."""


class Folder:
    """A folder of artefacts; one that exists is a step that is done, and it is never there in part."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def path_of(self, artefact: AnyArtefact) -> Path:
        """Where the artefact is, or will be."""
        return self.path / artefact.name

    def stamp_of(self, artefact: AnyArtefact) -> tuple[int, int, int] | None:
        """The mark of its content, see `stamp`; a run asks for thousands, for which a path of text is made sooner."""
        return stamp(f"{self.path}/{artefact.name}")

    def has(self, artefact: AnyArtefact) -> bool:
        """Whether the artefact is there."""
        return self.path_of(artefact).exists()

    def read(self, artefact: Artefact[T]) -> T:
        """What the artefact holds.

        Raises:
            StoreError: the file cannot be read, or does not hold what was written.
        """
        path = self.path_of(artefact)
        try:
            return artefact.read(path)
        except Damaged as exc:
            raise Damaged(path, exc.what, mend_of(path)) from exc
        except (ValueError, KeyError, TypeError) as exc:
            raise Damaged(path, exc, mend_of(path)) from exc
        except OSError as exc:
            if exc.errno is None:  # Arrow's own, of a table that it cannot make sense of
                raise Damaged(path, exc, mend_of(path)) from exc
            raise

    def get(self, artefact: Artefact[T]) -> T | None:
        """What the artefact holds; None where it is not there."""
        return self.read(artefact) if self.has(artefact) else None

    def write(self, artefact: Artefact[T], value: T) -> None:
        """Write the artefact, whole or not at all."""
        artefact.write(self.path_of(artefact), value)


class RoundFolder(Folder):
    """The artefacts of one round."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.number = int(path.name)

    @property
    def is_closed(self) -> bool:
        """Whether the round's labels are in and counted."""
        return self.has(ROUND)

    @property
    def is_out(self) -> bool:
        """Whether people may have seen some of the round's batch."""
        return self.has(PUSHING) or self.has(PUSHED)


class Campaign(Folder):
    """One campaign's folder.

    Args:
        path: a folder on a local or shared disk; made when first written to.
    """

    def make(self) -> None:
        """Make the folder, for its owner alone; one that is there keeps its rights, as a team may share it."""
        with explained(self.path):
            self.path.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)

    def round(self, number: int) -> RoundFolder:
        """The folder of one round, whether it exists or not."""
        return RoundFolder(self.path / "rounds" / f"{number:04d}")

    def rounds(self) -> list[RoundFolder]:
        """The rounds that have begun, oldest first."""
        folder = self.path / "rounds"
        if folder.exists() and not folder.is_dir():
            raise StoreError(f"{folder} must be a folder, and is a file: move it away")
        names = sorted(p.name for p in folder.iterdir() if ROUND_NAME.fullmatch(p.name)) if folder.is_dir() else []
        return [RoundFolder(folder / name) for name in sorted(names, key=int)]

    def leftovers(self) -> Sequence[Path]:
        """What killed runs left: rounds that were put away, and files that never got their name.

        Only of what is written under the lock: another run may be about to write the others.
        """
        written = [part for part in self.path.glob(".*.part") if not part.name.startswith(BEFORE_THE_LOCK)]
        rounds = self.path / "rounds"
        return [*rounds.glob("*.put-away"), *rounds.rglob(".*.part"), *written]

    def current_round(self) -> RoundFolder:
        """The round that is open, or the one that comes next."""
        rounds = self.rounds()
        if not rounds:
            return self.round(0)
        return self.round(rounds[-1].number + 1) if rounds[-1].is_closed else rounds[-1]

    def is_out(self) -> bool:
        """Whether people were asked for anything: from then on the audit set and its groups stay."""
        return any(folder.is_out for folder in self.rounds())

    def check_ours(self) -> None:
        """Refuse a folder that labelcycle did not make, before anything in it is written over.

        Raises:
            StoreError: naming what is there.
        """
        way_out = "Name another place with folder in the campaign file, or move what is there away"
        if self.path.exists() and not self.path.is_dir():
            raise StoreError(f"{self.path} must be a folder for the campaign, and is a file. {way_out}")
        with explained(self.path):
            if self.has(CAMPAIGN):
                self.read(CAMPAIGN)
                return
            for name in (POOL.name, "rounds"):
                if (self.path / name).exists():
                    raise StoreError(
                        f"{self.path} holds {name} and no {CAMPAIGN.name}, so it is no campaign. {way_out}; if it "
                        f"was one, bring {CAMPAIGN.name} back from a backup"
                    )

    def check_files(self, *, mend: bool = False, anew: bool = False) -> list[str]:
        """See that the campaign's files are there and whole; see `flows.damage.check_files`."""
        return check_files(self.path, mend=mend, anew=anew)

    def lock(self) -> AbstractContextManager[None]:
        """Keep every other process from working on the campaign, on this machine and others: see `flows.lease`.

        Raises:
            CampaignBusy: another process holds it; one of another machine is watched for a while first.
        """
        return self.held(LOCK, lambda who: f"{self.path} is being worked on by {who}; try again when it has ended")

    @contextmanager
    def held(self, lock: str, busy: Callable[[Taken], str]) -> Iterator[None]:
        """Hold one of the folder's locks.

        Args:
            lock: its name.
            busy: what to tell people when another process holds it.

        Raises:
            CampaignBusy: another process holds it.
            StoreError: the disk does not take it.
        """
        with ExitStack() as stack:
            try:
                self.make()
                stack.enter_context(hold(self.path / lock))
            except Taken as exc:
                raise CampaignBusy(busy(exc)) from exc
            except OSError as exc:
                raise StoreError(explain(exc, self.path)) from exc
            yield


def stamp(path: Path | str) -> tuple[int, int, int] | None:
    """The mark of a file's content: a file with the same mark is not read again."""
    try:
        told = os.stat(path)  # noqa: PTH116 (of text, too)
    except FileNotFoundError:
        return None
    return told.st_mtime_ns, told.st_ino, told.st_size
