"""The sentence of the loop: collect, train, evaluate, score, select, push."""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Literal

from connectors.annotation import Progress
from connectors.image_folder.index import index_pool
from flows.artefacts import ANSWERS, BATCH, CONFIG, MODEL, NOT_USED, POOL, POOL_NOTES, PUSHED
from flows.campaign import OpenCampaign
from flows.changes import (
    begun_otherwise,
    clear_what_was_put_away,
    notes_of_changes,
    put_away,
    refuse_lost_classes,
)
from flows.dependence import look_for_dependence
from flows.folder import Campaign, RoundFolder
from flows.pixel_ranges import count_multipage, pages_text, range_text, settle_ranges
from flows.progress import progress_bar, say
from flows.publish import flow_run_id, publish
from flows.records import PoolNotes
from flows.reports.round_page import notes_of_plan, round_sentence, warnings_of
from flows.step import in_task, log
from flows.steps.collect import close, collect, is_ready_to_close, look, notes_of
from flows.steps.evaluate import evaluate
from flows.steps.labels import gather_labels, list_candidates, review_labels
from flows.steps.plan import begin, look_ahead, plan
from flows.steps.push import begin_push, prepare_page, push, renew_page
from flows.steps.score import embed_labelled, score_shard, shards_of
from flows.steps.select import AUDIT_REASON, compare_with_half, query_size_of, select, select_first
from flows.steps.track import draw_confusion, log_summary, start_tracking, summarise, track_model
from flows.steps.train import cross_validate, train
from pipeline.pool.notes import changes, unused_lines
from pipeline.tables import PoolTable


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


def work_on(work: OpenCampaign) -> RoundOutcome:
    """Do what can be done now; call it under the campaign's lock."""
    clear_what_was_put_away(work.folder)
    in_task("begin_anew", lambda: begin_anew(work.folder.current_round(), work))
    in_task("refresh_pool", lambda: refresh_pool(work))
    new_ranges = in_task("settle_pixel_ranges", lambda: settle_pixel_ranges(work))
    pixels = (*new_ranges, *notes_on_pages(work.pool))
    for line in look_for_dependence(work):
        say(line)  # at once: what it asks for can be done until the first batch is out
    outcome = go_on(work)
    notes = (*tell_of_pool(work), *pixels)
    return replace(outcome, notes=(*notes, *outcome.notes))


def go_on(work: OpenCampaign) -> RoundOutcome:
    """Wait for the open round's labels, or close it and begin the next."""
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
        finish(folder, work)
        notes = (*notes, *folder.read(NOT_USED))
        folder = work.folder.current_round()
    outcome = finished(work) if is_finished(work) else advance(folder, work)
    return replace(outcome, notes=(*notes, *outcome.notes))


def is_finished(work: OpenCampaign) -> bool:
    """Whether the last round asked for nothing and brought nothing, no task is out, and there is nothing to ask for."""
    rounds = work.folder.rounds()
    if not rounds or not rounds[-1].is_closed:
        return False
    came_to_nothing = not len(rounds[-1].read(BATCH)) and not rounds[-1].read(ANSWERS)
    return came_to_nothing and not work.ledger.n_outstanding and not work.can_ask()


def advance(folder: RoundFolder, work: OpenCampaign) -> RoundOutcome:
    """Take a round from its first file to the push; where it was broken off it goes on."""
    config = work.do(begin, folder)
    _, labelled = work.do(gather_labels, folder)
    work.do(start_tracking, folder, flow_run=flow_run_id())
    if folder.number == 0 or not len(labelled):
        batch = work.do(select_first, folder)
    else:
        candidates = work.do(list_candidates, folder)
        work.do(plan, folder)
        announce(folder, work)
        work.do(cross_validate, folder)
        work.do(train, folder)
        _, metrics = work.do(evaluate, folder)
        if metrics is not None and metrics.table is not None:
            work.do(draw_confusion, folder)
        work.do(review_labels, folder)
        work.do(track_model, folder)
        outlook = work.do(look_ahead, folder)
        if query_size_of(config, outlook) > 0:
            work.do(embed_labelled, folder)
            with progress_bar(f"round {folder.number}: scoring", unit="images") as on_progress:
                for shard in shards_of(candidates):
                    work.do(score_shard, folder, shard=shard, on_progress=on_progress)
        _, batch = work.do(select, folder)
        work.do(compare_with_half, folder)
    work.do(summarise, folder)
    warnings = warnings_of(folder)
    for warning in warnings:
        log().warning(warning)
    work.do(log_summary, folder, sentence=round_sentence(folder), warnings=warnings)
    if not folder.has(PUSHED):
        address = in_task("prepare_page", lambda: prepare_page(work))
        work.do(begin_push, folder)
        work.do(push, folder, address=address)
    publish(folder, work.settings.name)
    notes = (*notes_of_changes(config, work.settings), *notes_of_first(folder, work), *notes_of_plan(folder))
    if len(batch):
        return replace(asked(folder), warnings=warnings, notes=notes)
    if not work.ledger.n_outstanding:
        finish(folder, work)
    return replace(finished(work), warnings=warnings, notes=notes)


def notes_of_first(folder: RoundFolder, work: OpenCampaign) -> tuple[str, ...]:
    """What the campaign's first round costs, and what its budget can come to."""
    if folder.number > 0:
        return ()
    reasons = folder.read(BATCH).reasons
    n_audit, n_there = int((reasons == AUDIT_REASON).sum()), len(work.pool.usable)
    told = [
        f"the first {len(reasons)} labels come before there is a model: {n_audit} of the audit set, which measures it, "
        f"and {len(reasons) - n_audit} to learn from; then {work.settings.query_size} labels in each round"
    ]
    if work.settings.budget > n_there:
        told.append(f"budget = {work.settings.budget} is more than the {n_there} images that there are")
    return tuple(told)


def finish(folder: RoundFolder, work: OpenCampaign) -> None:
    """Bring in the answers of an open round and close it."""
    pages = work.do(start_tracking, folder, flow_run=flow_run_id())
    registered = folder.get(MODEL)
    if registered is not None and registered.run_id != pages.run_id:  # another MLflow, since then
        work.do(track_model, folder)
        work.do(log_summary, folder, sentence=round_sentence(folder), warnings=warnings_of(folder))
    work.do(collect, folder)
    work.do(close, folder)
    publish(folder, work.settings.name)


def begin_anew(folder: RoundFolder, work: OpenCampaign) -> None:
    """Put a round away that has begun with other settings and that nobody has seen; it begins anew with these.

    Nothing is mixed so, and nothing of people's work is lost. A round that is out ends as it began.
    """
    if begun_otherwise(folder, work.settings):
        discard(folder, work)


def discard(folder: RoundFolder, work: OpenCampaign) -> None:
    """Take back a round that nobody has seen; the tracker first, as the folder is what says that there is one."""
    work.tracker.discard_round(folder.number)
    put_away(folder)


def refresh_pool(work: OpenCampaign) -> None:
    """Index the pool, where an image that is known is not read again, and note what people should know of it."""
    settings = work.settings
    known = work.folder.get(POOL)
    was_asked = work.folder.is_out()
    told: list[str] = []
    with progress_bar("indexing the pool", unit="files") as show:
        table = index_pool(
            settings.pool_source,
            None if known is None else work.pool.table,
            audit_size=settings.audit_size,
            seed=settings.seed,
            reading=work.reading,
            was_asked=was_asked,
            progress=show,
            tell=told.append,
        )
    pool = PoolTable(table)
    refuse_lost_classes(Counter(pool.given_labels().values()), settings)
    before = None if known is None else work.pool.table
    note_pool(work.folder, [*told, *unused_lines(table)], changes(before, table))
    if before is None or not table.equals(before):
        if not was_asked and work.folder.rounds():  # it has begun with another audit set, or without these labels
            discard(work.folder.round(0), work)
        work.keep_pool(pool)


def settle_pixel_ranges(work: OpenCampaign) -> tuple[str, ...]:
    """Write down what black and white are in kinds of deep pixels that are new; return lines on them."""
    new = settle_ranges(work.folder, work.pool, memory_gb=work.settings.decode_memory_gb)
    return tuple(f"Pixels of {range_text(one)}; this stays so in all rounds" for one in new)


def notes_on_pages(pool: PoolTable) -> tuple[str, ...]:
    """Lines on files of which only a part is used."""
    n_files = count_multipage(pool)
    return (pages_text(n_files),) if n_files else ()


def note_pool(folder: Campaign, standing: list[str], news: list[str]) -> None:
    """Remember what is to be told of the pool until a run has told it; what stands as it stood is no news."""
    notes = folder.get(POOL_NOTES)
    before = notes or PoolNotes([], [])
    news = [*news, *(line for line in standing if line not in before.standing)]
    untold = [*before.untold, *(line for line in news if line not in before.untold)]
    if notes != PoolNotes(standing, untold):
        folder.write(POOL_NOTES, PoolNotes(standing, untold))


def tell_of_pool(work: OpenCampaign) -> tuple[str, ...]:
    """What is new in the pool, and what is wrong with it, new or not; it counts as told from now on."""
    notes = work.folder.read(POOL_NOTES)
    if notes.untold:
        work.folder.write(POOL_NOTES, replace(notes, untold=[]))
    wrong = unused_lines(work.pool.table, wrong_only=True)
    return (*notes.untold, *(line for line in wrong if line not in notes.untold))


def announce(folder: RoundFolder, work: OpenCampaign) -> None:
    """Say how long a training takes that is dearer than the last one, before it begins."""
    for note in notes_of_plan(folder):
        log().info(note)
        say(f"{note[0].upper()}{note[1:]}.")
        publish(folder, work.settings.name)


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
