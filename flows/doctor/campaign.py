"""Checks of a campaign itself: its file and folder, its pool, and who works on it."""

from collections.abc import Iterator

from connectors.health import Finding, failure, warning
from connectors.image_folder.index import reason_to_set_aside
from connectors.image_folder.source import list_pool
from flows.artefacts import POOL
from flows.changes import refuse_another_campaign
from flows.doctor.subject import Subject
from flows.folder import LOCK, RoundFolder
from flows.lease import holder_of
from pipeline.pool.reasons import NO_SUFFIX, NOT_BY_NAME
from pipeline.pool.table import usable


def campaign_file(subject: Subject) -> Iterator[Finding]:
    """The file can be read, and the folder is whole and the campaign's."""
    if subject.error is not None:
        raise subject.error
    work = subject.work
    if work is None or subject.file is None:
        return
    work.folder.check_ours()
    for line in work.folder.check_files(anew=True):
        yield warning("campaign file", line, f"labelcycle run {subject.file}")
    refuse_another_campaign(work.folder, work.settings, subject.file, answers=lambda: work.ledger.answers)
    rounds = work.folder.rounds()
    stands = _stand(rounds[-1]) if rounds else "no run has begun it yet"
    yield Finding("campaign file", f"{subject.file} is right; {stands}, in {work.folder.path}")


def _stand(last: RoundFolder) -> str:
    return f"round {last.number} is {'closed' if last.is_closed else 'out' if last.is_out else 'begun'}"


def pool(subject: Subject) -> Iterator[Finding]:
    """The images are there and can be read, as many as a run wants; a run reads all of them, this a sample."""
    if subject.work is None:
        return
    settings = subject.work.settings
    files = list_pool(settings.pool_source, lambda _line: None)
    files = files[~files["set_aside_reason"].str.startswith((NOT_BY_NAME, NO_SUFFIX), na=False)]
    there = files.loc[files["set_aside_reason"].isna(), "uri"].tolist()
    places = {0, len(there) // 2, len(there) - 1} if there else set()
    unread = {there[n]: reason for n in places if (reason := reason_to_set_aside(there[n], subject.work.reading))}
    before = len(usable(subject.work.pool.table)) if subject.work.folder.has(POOL) else 0
    name, limit, told = "pool", settings.max_unused, f"{len(there):,} images in {settings.pool}"
    if len(files) - len(there) > limit * len(files) or not there:
        lost = files.loc[files["set_aside_reason"].notna()].iloc[0]
        why = f"{len(files) - len(there):,} of {len(files):,} images cannot be used, such as {lost['uri']}"
        yield failure(name, f"{settings.pool}: {why}: {lost['set_aside_reason']}", "put the files back, or mend `pool`")
    elif before - len(there) > limit * before:
        gone = f"the last run knew {before:,}"
        yield failure(name, f"{told}, and {gone}", "put the files back, mend `pool`, or raise `max_unused`")
    elif unread:
        uri, reason = next(iter(unread.items()))
        found = f"{told}; of {len(places)} that were read {len(unread)} cannot be used, such as {uri}: {reason}"
        tell = failure if len(unread) == len(places) else warning
        yield tell(name, found, "mend these files, or take them out; `labelcycle run` names all that are not used")
    else:
        yield Finding(name, f"{told}; {len(places)} were read")


def workers(subject: Subject) -> Iterator[Finding]:
    """Who works on the campaign now."""
    if subject.folder is None:
        return
    holder = holder_of(subject.folder.path / LOCK)
    yield Finding("lock", f"held by {holder}" if holder else "free: nobody works on the campaign now")
