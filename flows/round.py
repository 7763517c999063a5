"""One run of the loop: look after the pool and the open round; what learns is loaded once its labels are in."""

from dataclasses import replace

from connectors.image_folder.folder_times import FolderTimes
from connectors.image_folder.index import index_pool
from connectors.store import Damaged
from deploy.logs import shorten_logs
from flows.artefacts import ANSWERS, BATCH, CONFIG, DRAWN_AUDIT, NOT_USED, POOL, POOL_NOTES, PUSHED
from flows.campaign import OpenCampaign
from flows.changes import begun_otherwise, clear_leftovers, notes_of_changes, put_away, refuse_lost_classes
from flows.dependence import look_for_dependence
from flows.folder import Campaign, RoundFolder
from flows.home import home
from flows.outcome import RoundOutcome, awaiting, finished
from flows.pixel_ranges import count_multipage, pages_text, range_text, settle_ranges
from flows.pool_look import is_pool_as_left, remember_folders
from flows.progress import progress_bar, say
from flows.records import DrawnAudit, PoolNotes
from flows.step import in_task
from flows.steps.collect import is_ready_to_close, look, notes_of
from flows.steps.push import renew_page
from flows.unread import holds_lost, setting_aside
from pipeline.pool.audit import count_known, outgrown_text
from pipeline.pool.notes import changes, unused_lines
from pipeline.tables import PoolTable


def work_on(work: OpenCampaign) -> RoundOutcome:
    """Do what can be done now; call it under the campaign's lock."""
    mended = in_task("check_files", lambda: mend_files(work))
    clear_leftovers(work.folder)
    shorten_logs(home() / "logs")
    in_task("begin_anew", lambda: begin_anew(work.folder.current_round(), work))
    looked: list[tuple[bool, tuple[str, ...]]] = []

    def go() -> RoundOutcome:
        if not looked:
            looked.append(look_after_pool(work, by_folders=work.folder.is_out()))
            if holds_lost(work.folder.current_round(), work.pool):
                discard(work.folder.current_round(), work)
        has_looked, _ = looked[-1]
        for line in look_for_dependence(work):
            say(line)  # at once: what it asks for can be done until the first batch is out
        try:
            return go_on(work, has_looked=has_looked)
        except Damaged as exc:  # in its middle, which only a reader sees
            mended.append(begin_without(exc, work))
            return go_on(work, has_looked=has_looked)

    outcome = setting_aside(go, work, lambda folder: discard(folder, work) if folder else looked.clear())
    pixels = [line for _, lines in looked for line in lines]
    notes = (*mended, *tell_of_pool(work), *notes_on_audit(work), *pixels, *notes_on_pages(work.pool))
    return replace(outcome, notes=(*notes, *outcome.notes))


def go_on(work: OpenCampaign, *, has_looked: bool) -> RoundOutcome:
    """Wait for the open round's labels, or close it and begin the next.

    Args:
        has_looked: this run has looked at all files of the pool.
    """
    folder = work.folder.current_round()
    notes: tuple[str, ...] = ()
    pushed = folder.get(PUSHED)
    if pushed is not None:
        in_task("renew_page", lambda: renew_page(work))
        tended = work.do(look, folder)
        notes = tended.mended
        if not folder.has(ANSWERS) and not is_ready_to_close(folder.read(PUSHED), tended.progress, work):
            answers = notes_of(tended.standing, tended.standing.answers, work.tool)
            notes = (*notes, *answers, *notes_of_changes(folder.read(CONFIG), work.settings))
            is_waiting = not len(folder.read(BATCH))
            return replace(finished(work) if is_waiting else awaiting(folder, tended.progress), notes=notes)
        from flows.advance import finish  # loads torch

        if not has_looked:
            has_looked, pixels = look_after_pool(work)
            notes = (*notes, *pixels)
        removed = finish(folder, work)
        notes = (*notes, *folder.read(NOT_USED), *removed)
        folder = work.folder.current_round()
    if is_finished(work):
        return replace(finished(work), notes=notes)
    if not has_looked:
        notes = (*notes, *look_after_pool(work)[1])
    from flows.advance import advance  # loads torch

    outcome = advance(folder, work)
    return replace(outcome, notes=(*notes, *outcome.notes))


def is_finished(work: OpenCampaign) -> bool:
    """Whether the last round asked for nothing and brought nothing, no task is out, and there is nothing to ask for."""
    rounds = work.folder.rounds()
    if not rounds or not rounds[-1].is_closed:
        return False
    came_to_nothing = not len(rounds[-1].read(BATCH)) and not work.ledger.rounds[-1].answers
    return came_to_nothing and not work.ledger.n_outstanding and not work.can_ask()


def begin_anew(folder: RoundFolder, work: OpenCampaign) -> None:
    """Put a round away that has begun with other settings and that nobody has seen; the round begins anew.

    So no round mixes settings, and no work of people is lost. A round that is out ends as it began.
    """
    if begun_otherwise(folder, work.settings):
        discard(folder, work)


def mend_files(work: OpenCampaign) -> list[str]:
    """See that the campaign's files are whole; a round that nobody has seen begins anew where they are not.

    Returns:
        Lines on what was damaged or gone.

    Raises:
        StoreError: naming the first file that a person has to look after.
    """
    try:
        return work.folder.check_files(mend=True)
    except Damaged as exc:
        return [begin_without(exc, work), *work.folder.check_files(mend=True)]


def begin_without(damage: Damaged, work: OpenCampaign) -> str:
    """Put the round away that a damaged file belongs to; it begins anew. Returns a line on it.

    Raises:
        Damaged: the file is of no round, or of one that people may have seen.
    """
    folder = work.folder.current_round()
    if folder.is_out or not damage.path.is_relative_to(folder.path):
        raise damage
    discard(folder, work)
    return f"{damage.path} was damaged ({damage.what}): round {folder.number}, which nobody has seen, began anew"


def discard(folder: RoundFolder, work: OpenCampaign) -> None:
    """Take back a round that nobody has seen; the tracker first, because a round exists as long as its folder does."""
    work.tracker.discard_rounds(folder.number)
    put_away(folder)


def look_after_pool(work: OpenCampaign, *, by_folders: bool = False) -> tuple[bool, tuple[str, ...]]:
    """Bring the pool table up to date; whether all files were looked at, and lines on pixels of a new kind."""
    has_looked = in_task("refresh_pool", lambda: refresh_pool(work, by_folders=by_folders))
    return has_looked, in_task("settle_pixel_ranges", lambda: settle_pixel_ranges(work))


def refresh_pool(work: OpenCampaign, *, by_folders: bool = False) -> bool:
    """Index the pool, reading only files that are new or changed, and note what people should know of it.

    Args:
        by_folders: where the times of its folders are what they were, nothing is looked at besides.

    Returns:
        Whether each file was looked at.
    """
    if by_folders and is_pool_as_left(work):
        return False
    settings = work.settings
    times = FolderTimes()
    before = work.pool.table if work.folder.has(POOL) else None
    was_asked = work.folder.is_out()
    told: list[str] = []
    with progress_bar("indexing the pool", unit="files") as on_progress:
        table = index_pool(
            settings.pool_source,
            before,
            audit_size=settings.audit_size,
            seed=settings.seed,
            reading=work.reading,
            was_asked=was_asked,
            on_progress=on_progress,
            tell=told.append,
            times=times,
        )
    pool = PoolTable(table)
    refuse_lost_classes(pool.count_given(settings.asks), settings)
    is_other = before is None or not table.equals(before)
    note_pool(work.folder, [*told, *unused_lines(table)], changes(before, table) if is_other else [])
    if is_other:
        if not was_asked and work.folder.rounds():  # it has begun with another audit set, or without these labels
            discard(work.folder.round(0), work)
        work.keep_pool(pool)
    if not was_asked or not work.folder.has(DRAWN_AUDIT):
        work.folder.write(DRAWN_AUDIT, DrawnAudit(count_known(table)))
    remember_folders(work, times)
    return True


def notes_on_audit(work: OpenCampaign) -> tuple[str, ...]:
    """A line where the audit set does not stand for the pool any more."""
    drawn = work.folder.get(DRAWN_AUDIT)
    told = None if drawn is None else outgrown_text(work.pool.table, drawn.n_images)
    return () if told is None else (told,)


def settle_pixel_ranges(work: OpenCampaign) -> tuple[str, ...]:
    """Write down what black and white are in kinds of deep pixels that are new; return lines on them."""
    new = settle_ranges(work.folder, work.pool, memory_gb=work.settings.decode_memory_gb)
    return tuple(f"Pixels of {range_text(one)}; this stays so in all rounds" for one in new)


def notes_on_pages(pool: PoolTable) -> tuple[str, ...]:
    """Lines on files of which only a part is used."""
    n_files = count_multipage(pool)
    return (pages_text(n_files),) if n_files else ()


def note_pool(folder: Campaign, standing: list[str], news: list[str]) -> None:
    """Keep the lines on the pool until a run has printed them; a line that stood before is no news."""
    notes = folder.get(POOL_NOTES)
    before = notes or PoolNotes([], [])
    news = [*news, *(line for line in standing if line not in before.standing)]
    untold = [*before.untold, *(line for line in news if line not in before.untold)]
    if notes != PoolNotes(standing, untold):
        folder.write(POOL_NOTES, PoolNotes(standing, untold))


def tell_of_pool(work: OpenCampaign) -> tuple[str, ...]:
    """Lines on what is new in the pool, and on what is wrong with it, new or not; they count as printed from now on."""
    notes = work.folder.read(POOL_NOTES)
    if notes.untold:
        work.folder.write(POOL_NOTES, replace(notes, untold=[]))
    wrong = unused_lines(work.pool.table, wrong_only=True)
    return (*notes.untold, *(line for line in wrong if line not in notes.untold))
