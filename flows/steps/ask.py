"""The second half of a round: which images to ask for, and the push to the annotators."""

from collections.abc import Hashable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch

from connectors.annotation import Task
from connectors.images.deep_pixels import Reading
from connectors.images.pixels import stream_images
from connectors.store import RoundFolder, write_json, write_table
from flows.campaign import OpenCampaign
from flows.changes import count_labels, keep_page, last_page, refuse_lost_classes, wanted_page
from flows.config import CampaignSettings, ConfigError
from flows.ledger import asked_tasks
from flows.networks import CHUNK
from flows.step import step
from flows.steps.learn import NothingToTrainOn
from flows.steps.score import has_half, read_candidates, read_labelled_embeddings, read_scores_of
from pipeline.randomness import derive_seed
from pipeline.selection.ask import select_seed_set, share_kept, try_strategy
from pipeline.selection.batch import select_batch
from pipeline.selection.explain import batch_table, explain_batch
from pipeline.types import Aim, Batch, Region

AUDIT = "audit set"
MEASURED = "audit set: it has no label yet"
EMBEDDING_SIDE = 16
"""For a cold start that is not random, an image is described by its pixels at this side, before any model exists."""


def check_strategy(settings: CampaignSettings) -> None:
    """Try the strategy's options on a few made-up candidates, before labels are paid for.

    Raises:
        ConfigError: naming what is wrong.
    """
    try:
        try_strategy(settings, n_members=settings.members.n_members, n_classes=len(settings.classes))
    except (TypeError, ValueError) as exc:
        raise ConfigError(f"strategy = {settings.strategy!r} with {settings.strategy_options}: {exc}") from exc


@step("batch.parquet")
def select(folder: RoundFolder, work: OpenCampaign, *, query_size: int) -> None:
    """Choose the batch among the scored candidates, and write down why each image was chosen."""
    settings = work.settings
    measured = work.may_be_asked(split="audit")["item_id"].tolist()[:query_size]
    again = _measured_again(measured, folder.number, work)
    n_candidates = pq.read_metadata(folder / "candidates.parquet").num_rows
    if n_candidates == 0 or query_size == len(measured):
        write_table(folder / "batch.parquet", again)
        return
    candidates = read_candidates(folder, settings)
    how = settings.of_size(query_size - len(measured))
    batch = select_batch(candidates, how, round_number=folder.number, seed=settings.seed)
    scored, labelled = read_scores_of(folder, batch.ids), read_labelled_embeddings(folder)
    table = _located(explain_batch(batch, scored, labelled, n_classes=len(settings.classes)), work)
    if measured:
        table = pd.concat([again, table], ignore_index=True)
        table = table.assign(rank=np.arange(len(table)), guess=table["guess"].fillna(""))
    write_table(folder / "batch.parquet", table)


@step("stability.json")
def compare_with_half(folder: RoundFolder, work: OpenCampaign) -> None:
    """Write which share of the batch half of each network's draws would have asked for; null where that is nothing.

    A share far below 1 says that the batch is the luck of the draws: more of them would ask for other images.
    """
    table = pd.read_parquet(folder / "batch.parquet", columns=["item_id", "reason"])
    batch = set(table.loc[table["reason"] != MEASURED, "item_id"])
    kept = None
    if batch and has_half(folder):
        candidates = read_candidates(folder, work.settings, half=True)
        kept = share_kept(batch, candidates, work.settings, round_number=folder.number, seed=work.settings.seed)
    write_json(folder / "stability.json", {"batch_kept_with_half_the_members": kept})


@step("batch.parquet")
def select_first(folder: RoundFolder, work: OpenCampaign) -> None:
    """Choose the seed set, and add the audit set if it has not been asked for; there is no model yet.

    Raises:
        NothingToTrainOn: when there is no label and no seed set that could bring one.
    """
    settings = work.settings
    audit = work.may_be_asked(split="audit")["item_id"].tolist()
    rest = work.may_be_asked(split="pool")
    size = min(settings.seed_set_size, max(0, work.budget_left() - len(audit)))
    seed_set = _select_seed_set(rest, work, folder.number, size)
    has_labels = not pd.read_parquet(folder / "labelled.parquet").empty
    if not seed_set.ids and not has_labels and not work.outstanding():
        raise NothingToTrainOn(
            f"round {folder.number}: there is no label to learn from and no image to ask for: seed_set_size is "
            f"{settings.seed_set_size}, {len(rest)} images may be asked for, {work.budget_left()} labels are left"
        )
    ids = (*seed_set.ids, *audit)
    reasons = (*[f"seed set: {settings.cold_start}"] * len(seed_set.ids), *[AUDIT] * len(audit))
    checks: list[Aim] = ["check"] * len(audit)
    aims = (*seed_set.aims, *checks)
    table = _located(batch_table(Batch(ids, (0.0,) * len(ids), reasons, folder.number, aims)), work)
    shuffled = table.sample(frac=1, random_state=derive_seed(settings.seed, folder.number, "order"))
    write_table(folder / "batch.parquet", shuffled.assign(rank=np.arange(len(table))))


def _select_seed_set(rest: pd.DataFrame, work: OpenCampaign, round_number: int, size: int) -> Batch:
    settings = work.settings
    is_read = settings.cold_start != "random" and size > 0 and not rest.empty
    return select_seed_set(
        rest["item_id"].to_numpy(dtype=np.str_),
        _pixels(rest["uri"].tolist(), work.reading) if is_read else None,
        settings.cold_start,
        size=size,
        round_number=round_number,
        seed=settings.seed,
    )


def _pixels(uris: list[str], reading: Reading) -> torch.Tensor:
    chunks = stream_images(uris, size=EMBEDDING_SIDE, channels=3, chunk=CHUNK, reading=reading)
    return torch.cat([images.flatten(1).half() / 255 for images in chunks])


def _measured_again(ids: Sequence[str], round_number: int, work: OpenCampaign) -> pd.DataFrame:
    """A table of images of the audit set that have no label yet."""
    aims: list[Aim] = ["check"] * len(ids)
    batch = Batch((*ids,), (0.0,) * len(ids), (MEASURED,) * len(ids), round_number, (*aims,))
    return _located(batch_table(batch), work)


def _located(table: pd.DataFrame, work: OpenCampaign) -> pd.DataFrame:
    uris = work.pool.set_index("item_id")["uri"]
    return table.assign(uri=uris.loc[table["item_id"]].to_numpy())


def tasks_of(folder: RoundFolder, work: OpenCampaign) -> list[Task]:
    """The batch as tasks for the annotation tool; a cold start shows no guess."""
    batch = work.located(pd.read_parquet(folder / "batch.parquet"))
    for name in batch.columns.intersection(["guess"]):  # of classes that may have changed when the push was broken off
        present = batch[name].replace(work.settings.former_classes)
        batch[name] = present.where(present.isin(work.settings.classes), "")
    return [_task(row, folder.number) for row in batch.to_dict("records")]


def _task(row: Mapping[Hashable, Any], round_number: int) -> Task:
    columns: dict[str, str | float] = {"reason": row.get("why", row["reason"])}  # older batches have no words
    guess = None
    if row.get("guess"):
        guess = Region(kind="image", label=row["guess"], score=float(row["guess_probability"]))
        columns["confused_classes"] = row["confused_classes"]
        columns |= {name: round(float(row[name]), 4) for name in ("uncertainty", "novelty")}
    return Task(
        item_id=row["item_id"],
        uri=row["uri"],
        round_number=round_number,
        rank=int(row["rank"]),
        guess=guess,
        columns=columns,
    )


def model_version(folder: RoundFolder, work: OpenCampaign) -> str:
    """Name of the model that guessed in a round, as the annotation tool shows it."""
    return f"{work.settings.name}-round-{folder.number:04d}"


@step("pushed.json")
def push(folder: RoundFolder, work: OpenCampaign) -> None:
    """Make the batch exist in the annotation tool exactly once, prove it, and write which task is which item."""
    tasks = tasks_of(folder, work)
    address = prepare_page(work)
    write_json(folder / "pushing.json", {"begun_at": datetime.now(UTC).isoformat(timespec="seconds")})
    task_ids = work.tool.push(
        tasks,
        round_number=folder.number,
        model_version=model_version(folder, work),
        asked=asked_tasks(work.folder),
    )
    pushed_at = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(folder / "pushed.json", {"pushed_at": pushed_at, "address": address, "tasks": task_ids})


def prepare_page(work: OpenCampaign) -> str:
    """Make the annotators' page what the campaign needs, and return its address.

    Raises:
        CampaignChanged: a class is to go from the page that people have given.
    """
    page = last_page(work.folder)
    present = work.settings.former_classes
    gone = sorted({present.get(name, name) for name in page["classes"]} - set(work.settings.classes)) if page else []
    if page and gone:
        answers = work.connect([*work.settings.classes, *gone]).pull(asked_tasks(work.folder)).answers
        refuse_lost_classes(count_labels(answers), work.settings)
    address = work.tool.prepare()
    keep_page(work.folder, work.settings)
    return address


def renew_page(work: OpenCampaign) -> None:
    """Show the annotators of a round that is out what has changed; another server has another page."""
    page, wanted = last_page(work.folder), wanted_page(work.settings)
    if page is not None and page != wanted and page["url"] == wanted["url"]:
        prepare_page(work)
