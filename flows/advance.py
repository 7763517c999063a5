"""The sentence of the loop: train, evaluate, score, select, push; and the end of a round once its labels are in."""

from contextlib import nullcontext
from dataclasses import replace
from time import perf_counter

from flows.artefacts import BATCH, CANDIDATES, MODEL, PUSHED, SCORES
from flows.campaign import OpenCampaign
from flows.changes import notes_of_changes
from flows.folder import RoundFolder
from flows.housekeeping import keep_house
from flows.outcome import RoundOutcome, asked, finished
from flows.progress import say
from flows.publish import flow_run_id, publish
from flows.records import RoundConfig
from flows.reports.round_page import notes_of_plan, round_sentence, warnings_of
from flows.step import add_seconds, in_task, log
from flows.steps.collect import close, collect
from flows.steps.evaluate import evaluate
from flows.steps.labels import gather_labels, list_candidates, review_labels
from flows.steps.plan import begin, look_ahead, plan
from flows.steps.push import begin_push, prepare_page, push
from flows.steps.score import embed_labelled, forget_passing, score_shard, shards_of
from flows.steps.select import compare_with_half, query_size_of, select, select_first
from flows.steps.track import draw_confusion, log_summary, start_tracking, summarise, track_model
from flows.steps.train import cross_validate, train
from flows.workers.local import Piece
from pipeline.selection.reasons import AUDIT_REASON
from pipeline.tables import BatchTable
from pipeline.types import OnProgress


def advance(folder: RoundFolder, work: OpenCampaign) -> RoundOutcome:
    """Take a round from its first file to the push; where it was broken off it goes on."""
    config = work.do(begin, folder)
    _, labelled = work.do(gather_labels, folder)
    work.do(start_tracking, folder, flow_run=flow_run_id())
    if folder.number == 0 or not len(labelled):
        batch = work.do(select_first, folder)
    else:
        batch = learn_and_select(folder, work, config)
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
        notes = (*notes, *finish(folder, work))
    return replace(finished(work), warnings=warnings, notes=notes)


def learn_and_select(folder: RoundFolder, work: OpenCampaign, config: RoundConfig) -> BatchTable:
    """Train on the labels that there are, and choose the batch."""
    work.do(list_candidates, folder)
    with nullcontext() if folder.has(BATCH) else work.with_workers():
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
            in_task(score_shard.name, lambda: score(folder, work))
        _, batch = work.do(select, folder)
    work.do(compare_with_half, folder)
    work.do(forget_passing, folder)
    return batch


def score(folder: RoundFolder, work: OpenCampaign) -> None:
    """Score the candidates, shard by shard, as far as they are not."""

    def here(piece: Piece, on_progress: OnProgress) -> None:
        work.do_piece(score_shard, folder, piece, on_progress)

    begun, scores = perf_counter(), folder.read(SCORES)
    missing = [{"shard": n} for n in shards_of(folder.read(CANDIDATES)) if not scores.part(n).exists()]
    work.workers.each(score_shard, folder, missing, here, what=f"round {folder.number}: scoring", unit="images")
    add_seconds(folder, score_shard.name, perf_counter() - begun)


def finish(folder: RoundFolder, work: OpenCampaign) -> tuple[str, ...]:
    """Bring in the answers of an open round and close it; return lines on what was removed of old rounds."""
    pages = work.do(start_tracking, folder, flow_run=flow_run_id())
    registered = folder.get(MODEL)
    if registered is not None and registered.run_id != pages.run_id:  # another MLflow, since then
        work.do(track_model, folder)
        work.do(log_summary, folder, sentence=round_sentence(folder), warnings=warnings_of(folder))
    work.do(collect, folder)
    work.do(close, folder)
    publish(folder, work.settings.name)
    return in_task("keep_house", lambda: keep_house(work))


def announce(folder: RoundFolder, work: OpenCampaign) -> None:
    """Print how long a training takes that is dearer than the last one, before it begins."""
    for note in notes_of_plan(folder):
        log().info(note)
        say(f"{note[0].upper()}{note[1:]}.")
        publish(folder, work.settings.name)


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
    if work.settings.budget_in == "images" and work.settings.budget > n_there:
        told.append(f"budget = {work.settings.budget} is more than the {n_there} images that there are")
    return tuple(told)
