"""Files of a campaign that are damaged or gone: found before anything is made of them, and how each is mended."""

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from connectors.store import Damaged, StoreError, explained
from flows.artefacts import (
    ANSWERS,
    AUDIT,
    BATCH,
    CAMPAIGN_ARTEFACTS,
    CAMPAIGN_ID,
    COLLECTED,
    CONFIG,
    CONFUSION_PICTURE,
    CONFUSION_TABLE,
    DEPENDENCE,
    DRAWN_AUDIT,
    GUESSES,
    KNOWN_NETWORK,
    LABELLED,
    LABELLED_EMBEDDINGS,
    METRICS,
    MODEL,
    NOT_USED,
    NOTIFIED,
    OUTLOOK,
    PAGE,
    PAGES,
    PIXEL_RANGES,
    PLAN,
    POOL,
    POOL_FOLDERS,
    POOL_NOTES,
    PROGRESS,
    PUSHED,
    PUSHING,
    REVIEW,
    ROUND,
    ROUND_ARTEFACTS,
    SCORES,
    SECONDS,
    STABILITY,
    SUMMARY,
    TRAINING,
    WHOLE_ROUNDS,
    WITHDRAWN,
)

ROUND_NAME = re.compile(r"\d{4,}", re.ASCII)
ENDS = {
    ".json": (b"", (b"\n}\n", b"\n]\n", b"{}\n", b"[]\n", b"null\n")),
    ".parquet": (b"PAR1", (b"PAR1",)),
    ".pt": (b"PK", (b"\0\0",)),  # a zip archive without a comment
    ".png": (b"\x89PNG", (b"IEND\xaeB`\x82",)),
    ".csv": (b"", (b"\n",)),
}
"""How files begin and may end that are whole, by suffix: a part of one does not end so."""
FEWEST_BYTES = {".parquet": 12, ".pt": 22}

PROJECT = "label_studio.json"
OURS = frozenset(one.name for one in CAMPAIGN_ARTEFACTS) | {PROJECT, "restored_answers.json"}
OF_ROUNDS = frozenset(one.name for one in ROUND_ARTEFACTS.values()) - {PUSHING.name}
"""What is looked at. That PUSHING is there counts, and nothing in it."""
REWRITTEN = frozenset(
    one.name for one in (POOL_FOLDERS, POOL_NOTES, DRAWN_AUDIT, DEPENDENCE, PAGE, NOTIFIED, WHOLE_ROUNDS)
)
"""Of a campaign: the next run writes them anew."""
UNREAD = frozenset(
    one.name
    for one in (
        *(SCORES, LABELLED_EMBEDDINGS, STABILITY, CONFUSION_TABLE, CONFUSION_PICTURE),
        *(PAGES, PROGRESS, SECONDS, COLLECTED),
    )
)
"""Of a round that is out: nothing that is to come needs them, or it is written anew."""
OF_ANSWERS = frozenset(one.name for one in (ANSWERS, WITHDRAWN, NOT_USED))
NEEDED = frozenset(one.name for one in (CONFIG, LABELLED, AUDIT, BATCH, SUMMARY, PUSHED))
"""Of a round that is out."""
LEARNT = frozenset(one.name for one in (PLAN, TRAINING, METRICS, REVIEW, MODEL, OUTLOOK, GUESSES))
"""Of a round that has trained and is out, besides."""
BACKUP = "Bring it back from a backup"
ANEW = "Remove it: the next run writes it anew"
OF_CAMPAIGN = dict.fromkeys([*REWRITTEN, KNOWN_NETWORK.name], ANEW) | {
    CAMPAIGN_ID.name: f"{ANEW}; start `labelcycle serve` again then",
    PROJECT: f"{ANEW}. It finds the project by its title: give the project the title of the campaign file again first",
}
"""The mend of a file of a campaign; of all others `BACKUP`."""


@dataclass(frozen=True)
class _Seen:
    """A round's folder as it was found.

    Attributes:
        names: of what lies in it.
        mark: of names, sizes and times of all its files; it is another one once a file is cut, written over or gone.
    """

    path: Path
    names: frozenset[str]
    mark: str


def check_files(campaign: Path, *, mend: bool = False, anew: bool = False) -> list[str]:
    """See that a campaign's files are there and whole, as far as their ends tell. Files of others are left alone.

    A closed round that was found whole is not opened again while its files have the sizes and times of then, unless
    `anew`: a disk may lose what it holds.

    Args:
        campaign: its folder.
        mend: whether a damaged file that nothing needs is removed, and the rounds that were found whole are kept in
            mind; for who holds the campaign's lock.

    Returns:
        Lines on such files, and on what is gone and comes back by itself.

    Raises:
        StoreError: naming the first that is damaged or gone, and the mend.
    """
    if not campaign.exists():
        return []
    told = []
    with explained(campaign):
        rounds, known = _rounds(campaign), {} if anew else _known_to_be_whole(campaign)
        unknown = [one.path for one in rounds if known.get(one.path.name) != one.mark]
        for path in sorted(_files(campaign, unknown)):
            try:
                if is_whole(path):
                    continue
            except FileNotFoundError:  # a run has removed it meanwhile
                continue
            if not _can_go(path):
                raise Damaged(path, _what(path), mend_of(path))
            if mend:
                path.unlink(missing_ok=True)
            how = "it was removed" if mend else "the next run removes it"
            told.append(f"{path} is damaged, and nothing needs it: {how}")
        told += _check_missing(campaign, rounds)
    whole = {one.path.name: one.mark for one in rounds if ROUND.name in one.names}
    if mend and not told and whole != known:
        WHOLE_ROUNDS.write(campaign / WHOLE_ROUNDS.name, whole)
    return told


def _rounds(campaign: Path) -> list[_Seen]:
    folders = (p for p in campaign.glob("rounds/*") if ROUND_NAME.fullmatch(p.name) and p.is_dir())
    return [_see(folder) for folder in sorted(folders, key=lambda p: int(p.name))]


def _see(folder: Path) -> _Seen:
    root, told = str(folder), []

    def look(inside: str) -> frozenset[str]:
        names = set()
        with suppress(FileNotFoundError), os.scandir(inside) as entries:  # a run may remove what another one looks at
            for entry in entries:
                names.add(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    look(entry.path)
                    continue
                with suppress(FileNotFoundError):
                    stat = entry.stat()
                    told.append(f"{entry.path[len(root) :]} {stat.st_size} {stat.st_mtime_ns}")
        return frozenset(names)

    names = look(root)
    return _Seen(folder, names, blake2b("\n".join(sorted(told)).encode(), digest_size=16).hexdigest())


def _known_to_be_whole(campaign: Path) -> dict[str, str]:
    """The marks of closed rounds that were found whole; none where that is not known."""
    try:
        return WHOLE_ROUNDS.read(campaign / WHOLE_ROUNDS.name)
    except StoreError:  # it is not there, or itself damaged
        return {}


def _files(campaign: Path, rounds: Sequence[Path]) -> Iterator[Path]:
    yield from (path for path in campaign.iterdir() if path.name in OURS and path.is_file())
    for folder in rounds:
        ours = (path for path in folder.iterdir() if path.name in OF_ROUNDS)
        yield from (file for path in ours for file in (path, *path.rglob("*")) if file.is_file())


def _can_go(path: Path) -> bool:
    """Whether a damaged file can be removed, and is written anew or not needed."""
    folder = _round_of(path)
    if folder is None:
        return path.name in REWRITTEN
    is_out = (folder / PUSHING.name).exists() or (folder / PUSHED.name).exists()
    return is_out and path.relative_to(folder).parts[0] in UNREAD


def _round_of(path: Path) -> Path | None:
    if path.name in OURS:  # of the campaign, wherever its folder lies
        return None
    return next((p for p in path.parents if p.parent.name == "rounds" and ROUND_NAME.fullmatch(p.name)), None)


def is_whole(path: Path) -> bool:
    """Whether a file begins and ends as one of its kind; a kind that is not ours is left alone."""
    if path.suffix not in ENDS:
        return True
    begin, ends = ENDS[path.suffix]
    with path.open("rb") as file:
        head = file.read(8)
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 64))
        tail = file.read()
    is_long = size >= FEWEST_BYTES.get(path.suffix, 1)
    return is_long and head.startswith(begin) and tail.endswith(ends) and not (begin == b"" and b"\0" in head + tail)


def mend_of(path: Path) -> str:
    """What to do about a file of a campaign or of a round that is damaged."""
    folder = _round_of(path)
    if folder is None:
        return OF_CAMPAIGN.get(path.name, BACKUP)
    name = path.relative_to(folder).parts[0]
    has = {one: (folder / one.name).exists() for one in (PUSHING, PUSHED, ROUND)}
    is_newest = not any(int(p.name) > int(folder.name) for p in folder.parent.glob("*") if p.name.isdigit())
    if not (has[PUSHING] or has[PUSHED]):
        return "Nobody has seen the round: the next run begins it anew"
    if name in UNREAD:
        return "Remove it: nothing needs it any more"
    if name == ROUND.name and is_newest:
        return "Remove it: the next run closes the round again"
    if name == PUSHED.name and not has[ROUND]:
        return "Remove it: the next run finds the tasks in the annotators' project again"
    if name in OF_ANSWERS and not has[ROUND]:
        return "Remove it: the next run reads the answers from the annotators' project again"
    if name == ANSWERS.name:
        return (
            f"{BACKUP}; or remove it, and the answers are read from the annotators' project again, as far as they are "
            "there, when the open round closes"
        )
    if name == NOT_USED.name:
        return "Remove it: nothing needs it any more"
    return BACKUP


def _what(path: Path) -> str:
    return "it is empty" if path.stat().st_size == 0 else "a part of it is missing, or it was written over"


def _check_missing(campaign: Path, rounds: Sequence[_Seen]) -> Iterator[str]:
    """Lines on what comes back by itself; an error for what does not."""
    is_out = any({PUSHED.name, PUSHING.name} & one.names for one in rounds)
    for name in (POOL.name, PIXEL_RANGES.name):
        if is_out and not (campaign / name).exists():
            raise StoreError(f"{campaign / name} is missing, and the audit set and the rounds go by it. {BACKUP}")
    for number, one in enumerate(rounds):
        folder, names = one.path, one.names
        if int(folder.name) != number:
            raise StoreError(f"{folder.parent / f'{number:04d}'} is missing, and there are later rounds. {BACKUP}")
        is_done = ROUND.name in names or one is not rounds[-1]
        needed = set(NEEDED if is_done or PUSHED.name in names else ())
        needed |= LEARNT if needed and LEARNT & names else frozenset()
        needed |= {ROUND.name, WITHDRAWN.name} if is_done else frozenset()
        gone = sorted(needed - names)
        if gone:
            raise StoreError(f"{folder / gone[0]} is missing, and round {number} is out. {BACKUP}")
        if is_done and ANSWERS.name not in names:
            yield (
                f"{folder / ANSWERS.name} is missing: the answers of round {number} are read from the annotators' "
                "project again, as far as they are there, when the open round closes. A backup has all"
            )
