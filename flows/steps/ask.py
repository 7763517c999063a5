"""The second half of a round: which images to ask for, and the push to the annotators."""

from collections.abc import Hashable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize

from connectors.annotation import Question
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
from pipeline.selection.strategies import select_batch
from pipeline.types import Aim, Ask, Batch, Candidates, Purpose, Region

SURE = 0.9
"""A guess of this probability is not called unsure."""
WORDS: Mapping[Aim, str] = {
    "check": "a check, drawn at random",
    "typical": "many images are like it",
    "unlike": "it is unlike the images labelled so far",
    "unsure": "the model is unsure between {guess} and {runner_up}",
}
"""What people read of why an image was chosen."""
SEED = "seed set"
AUDIT = "audit set"
MEASURED = "audit set: it has no label yet"
EMBEDDING_SIDE = 16
"""For a cold start that is not random, an image is described by its pixels at this side, before any model exists."""


def check_strategy(settings: CampaignSettings) -> None:
    """Try the strategy's options on a few made-up candidates, before labels are paid for.

    Raises:
        ConfigError: naming what is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    n, n_members, n_classes = 64, settings.members.n_members, len(settings.classes)
    probs = torch.rand(n, n_members, n_classes, generator=generator).softmax(dim=2)
    embeddings = torch.rand(n, 8, generator=generator)
    labelled = slice(8)
    candidates = Candidates(
        ids=np.arange(n).astype(np.str_),
        scores=torch.rand(n, generator=generator),
        embeddings=embeddings,
        probs=probs,
        guesses=probs.mean(dim=1).argmax(dim=1),
        labelled_embeddings=embeddings[labelled],
        labelled_probs=probs[labelled],
        labelled_targets=torch.arange(n)[labelled] % n_classes,
    )
    try:
        select_from(candidates, settings, query_size=4, round_number=0)
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
    batch = select_from(candidates, settings, query_size=query_size - len(measured), round_number=folder.number)
    table = _batch_table(batch, work)
    scored = read_scores_of(folder, batch.ids).loc[list(batch.ids)]
    table["guess"] = scored["guess"].to_numpy()
    table["guess_probability"] = scored["guess_probability"].to_numpy()
    table["uncertainty"] = scored["entropy"].to_numpy() / np.log(len(settings.classes))
    for part in scored.columns.intersection(["aleatoric", "epistemic"]):
        table[part] = scored[part].to_numpy()
    table["confused_classes"] = (scored["guess"] + " / " + scored["runner_up"]).to_numpy()
    seen = zip(batch.aims, scored["guess"], scored["runner_up"], scored["guess_probability"], strict=True)
    table["why"] = [_words(aim, *guesses) for aim, *guesses in seen]
    table["novelty"] = _novelty(np.stack(scored["embedding"].to_list()), read_labelled_embeddings(folder))
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
        half = select_from(candidates, work.settings, query_size=len(batch), round_number=folder.number)
        kept = len(batch & set(half.ids)) / len(batch)
    write_json(folder / "stability.json", {"batch_kept_with_half_the_members": kept})


def select_from(candidates: Candidates, settings: CampaignSettings, *, query_size: int, round_number: int) -> Batch:
    """Choose a batch as the campaign says."""
    return select_batch(
        candidates,
        settings.strategy,
        query_size=query_size,
        round_number=round_number,
        seed=settings.seed,
        random_slice=settings.random_slice,
        sub_pool=settings.sub_pool,
        prefilter=settings.prefilter,
        class_balanced=settings.balance_classes,
        **settings.strategy_options,
    )


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
    reasons = (*[f"{SEED}: {settings.cold_start}"] * len(seed_set.ids), *[AUDIT] * len(audit))
    checks: list[Aim] = ["check"] * len(audit)
    aims = (*seed_set.aims, *checks)
    table = _batch_table(Batch(ids, (0.0,) * len(ids), reasons, folder.number, aims), work)
    table["why"] = [_words(aim) for aim in aims]
    shuffled = table.sample(frac=1, random_state=derive_seed(settings.seed, folder.number, "order"))
    write_table(folder / "batch.parquet", shuffled.assign(rank=np.arange(len(table))))


def _select_seed_set(rest: pd.DataFrame, work: OpenCampaign, round_number: int, size: int) -> Batch:
    settings = work.settings
    if size == 0 or rest.empty:
        return Batch((), (), (), round_number, ())
    embeddings = None if settings.cold_start == "random" else _pixels(rest["uri"].tolist(), work.reading)
    candidates = Candidates(
        ids=rest["item_id"].to_numpy(dtype=np.str_),
        scores=torch.zeros(len(rest)),
        embeddings=embeddings,
        labelled_embeddings=None if embeddings is None else embeddings[:0],
    )
    return select_batch(
        candidates,
        settings.cold_start,
        query_size=size,
        round_number=round_number,
        seed=settings.seed,
    )


def _pixels(uris: list[str], reading: Reading) -> torch.Tensor:
    chunks = stream_images(uris, size=EMBEDDING_SIDE, channels=3, chunk=CHUNK, reading=reading)
    return torch.cat([images.flatten(1).half() / 255 for images in chunks])


def _words(aim: Aim, guess: str = "", runner_up: str = "", probability: float = 0.0) -> str:
    """Why an image was chosen, for people who label it; of the audit set they are not to know.

    >>> _words("unsure", "cat", "dog", 0.4)
    'the model is unsure between cat and dog'
    """
    if aim == "unsure" and guess and probability >= SURE:
        return f"to see whether it is {guess}, as the model says"
    return WORDS[aim].format(guess=guess, runner_up=runner_up)


def _measured_again(ids: Sequence[str], round_number: int, work: OpenCampaign) -> pd.DataFrame:
    """A table of images of the audit set that have no label yet."""
    aims: list[Aim] = ["check"] * len(ids)
    batch = Batch((*ids,), (0.0,) * len(ids), (MEASURED,) * len(ids), round_number, (*aims,))
    return _batch_table(batch, work).assign(why=_words("check"))


def _batch_table(batch: Batch, work: OpenCampaign) -> pd.DataFrame:
    uris = work.pool.set_index("item_id")["uri"]
    return pd.DataFrame(
        {
            "item_id": pd.Series(batch.ids, dtype="str"),
            "uri": uris.loc[list(batch.ids)].to_numpy(),
            "rank": np.arange(len(batch.ids)),
            "score": np.array(batch.scores, dtype=np.float64),
            "reason": pd.Series(batch.reasons, dtype="str"),
        }
    )


def _novelty(embeddings: NDArray[np.float16], labelled: torch.Tensor) -> NDArray[np.float32]:
    """How unlike anything labelled each image is: one minus the largest cosine similarity, `(n,)` in [0, 2]."""
    here = normalize(torch.from_numpy(embeddings).float(), dim=1)
    there = normalize(labelled.float(), dim=1)
    return (1 - (here @ there.T).amax(dim=1)).clamp(min=0).numpy()


def questions_of(folder: RoundFolder, work: OpenCampaign) -> list[Question]:
    """The batch as questions for the annotation tool; a cold start shows no guess."""
    batch = work.located(pd.read_parquet(folder / "batch.parquet"))
    for name in batch.columns.intersection(["guess"]):  # of classes that may have changed when the push was broken off
        present = batch[name].replace(work.settings.former_classes)
        batch[name] = present.where(present.isin(work.settings.classes), "")
    return [_question(row, folder.number) for row in batch.to_dict("records")]


def _question(row: Mapping[Hashable, Any], round_number: int) -> Question:
    columns: dict[str, str | float] = {}
    guess = None
    if row.get("guess"):
        guess = Region(kind="image", label=row["guess"], score=float(row["guess_probability"]))
        columns["confused_classes"] = row["confused_classes"]
        columns |= {name: round(float(row[name]), 4) for name in ("uncertainty", "novelty")}
    return Question(
        Ask(row["item_id"], round_number, _purpose(row["reason"])),
        uri=row["uri"],
        rank=int(row["rank"]),
        guess=guess,
        reason=row.get("why", row["reason"]),  # older batches have no words
        columns=columns,
    )


def _purpose(reason: str) -> Purpose:
    """What a row of the batch is asked for, by the reason that the table holds."""
    if reason.startswith(SEED):
        return "seed"
    if reason in (AUDIT, MEASURED):
        return "audit"
    return "control" if reason == "random slice" else "query"


def model_version(folder: RoundFolder, work: OpenCampaign) -> str:
    """Name of the model that guessed in a round, as the annotation tool shows it."""
    return f"{work.settings.name}-round-{folder.number:04d}"


@step("pushed.json")
def push(folder: RoundFolder, work: OpenCampaign) -> None:
    """Make the batch exist in the annotation tool exactly once, prove it, and write which task is which item."""
    questions = questions_of(folder, work)
    address = prepare_page(work)
    write_json(folder / "pushing.json", {"begun_at": datetime.now(UTC).isoformat(timespec="seconds")})
    task_ids = work.tool.push(
        questions,
        model_version=model_version(folder, work),
        asked=asked_tasks(work.folder),
    )
    pushed_at = datetime.now(UTC).isoformat(timespec="seconds")
    tasks = {ask.item_id: task_id for ask, task_id in task_ids.items()}
    purposes = {ask.item_id: ask.purpose for ask in task_ids}
    write_json(
        folder / "pushed.json", {"pushed_at": pushed_at, "address": address, "tasks": tasks, "purposes": purposes}
    )


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
