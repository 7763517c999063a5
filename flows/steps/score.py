"""Score the candidates shard by shard; a lost process costs one shard, and memory never holds the pool."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from connectors.store import RoundFolder, write_atomic, write_table
from flows.cache import shrink_features
from flows.campaign import OpenCampaign
from flows.config import CampaignSettings
from flows.networks import SHARD, predictions
from flows.progress import progress_bar
from flows.step import step
from flows.steps.learn import class_indices, trained_models
from pipeline.members.predict import first_half
from pipeline.networks.classifier import Classifier
from pipeline.randomness import derive_seed
from pipeline.selection.ask import columns_read, gather_candidates, probs_read, score_candidates
from pipeline.selection.batch import seeded_order
from pipeline.types import Candidates


@step("candidates.parquet")
def list_candidates(folder: RoundFolder, work: OpenCampaign) -> None:
    """Write down the images that this round chooses from, in the order that spares `select_batch` a copy of them."""
    rows = work.may_be_asked(split="pool")
    ids = rows["item_id"].to_numpy(dtype=np.str_)
    order = seeded_order(ids, round_number=folder.number, seed=work.settings.seed)
    write_table(folder / "candidates.parquet", rows.iloc[order.numpy()].reset_index(drop=True))


def score_pool(folder: RoundFolder, work: OpenCampaign) -> None:
    """Score every candidate that has no score yet, and embed the labelled set."""
    models = trained_models(folder, work)
    embed_labelled(folder, work, models)
    candidates = work.located(pd.read_parquet(folder / "candidates.parquet"))
    with progress_bar(f"round {folder.number}: scoring", unit="images") as advance:
        for shard, start in enumerate(range(0, len(candidates), SHARD)):
            rows = candidates.iloc[start : start + SHARD]

            def count(done: int, _total: int, start: int = start) -> None:
                advance(start + done, len(candidates))

            score_shard(folder, work, models, rows, shard=shard, count=count)
            shrink_features(work.settings)


@step("scores/part-{shard:05d}.parquet")
def score_shard(
    folder: RoundFolder,
    work: OpenCampaign,
    models: Sequence[Classifier],
    rows: pd.DataFrame,
    *,
    shard: int,
    count: Callable[[int, int], None],
) -> None:
    """Write score, guess and embedding of the candidates of one shard, given as item_id and uri."""
    settings = work.settings
    seed = _draws_seed(folder, work)
    parts, start = [], 0
    found = predictions(models, rows, settings.model, settings.members, reading=work.reading, seed=seed, advance=count)
    for decisions, embeddings in found:
        chunk = rows.iloc[start : start + len(decisions)]
        parts.append(_score_chunk(chunk, decisions, embeddings, settings))
        start += len(chunk)
    table = pa.concat_tables(parts)
    write_atomic(folder / "scores" / f"part-{shard:05d}.parquet", lambda path: pq.write_table(table, path))


def _score_chunk(chunk: pd.DataFrame, decisions: Tensor, embeddings: Tensor, settings: CampaignSettings) -> pa.Table:
    scored = score_candidates(decisions, settings)
    guesses, runners_up = np.array(settings.classes)[scored.likeliest.numpy()].T
    columns = {
        "item_id": chunk["item_id"].to_numpy(),
        "score": scored.scores.numpy(),
        "entropy": scored.entropies.numpy(),
        **{name: part.numpy() for name, part in scored.parts.items()},
        "guess": guesses,
        "guess_probability": scored.probabilities[:, 0].numpy(),
        "runner_up": runners_up,
        "embedding": _as_lists(embeddings.half()),
    }
    if "probs" in columns_read(settings):
        columns["probs"] = _as_lists(probs_read(decisions, settings))
    if settings.members.n_half > 1:
        half = first_half(decisions, settings.members.ensemble)
        columns["score_half"] = score_candidates(half, settings).scores.numpy()
        if "probs" in columns:
            columns["probs_half"] = _as_lists(probs_read(half, settings))
    return pa.table(columns)


@step("labelled_embeddings.parquet")
def embed_labelled(folder: RoundFolder, work: OpenCampaign, models: Sequence[Classifier]) -> None:
    """Write the embeddings of the images that already have a label, and what the members say of them if it is read."""
    labelled = work.located(pd.read_parquet(folder / "labelled.parquet"))
    with_probs = "labelled_probs" in columns_read(work.settings)
    settings = work.settings
    models, members = (models, settings.members) if with_probs else (models[:1], None)
    seed, reading = _draws_seed(folder, work), work.reading
    found = predictions(models, labelled, settings.model, members, reading=reading, seed=seed)
    parts = [(probs_read(decisions, settings), embeddings.half()) for decisions, embeddings in found]
    probs, embeddings = (torch.cat(part) for part in zip(*parts, strict=True))
    columns = {"item_id": labelled["item_id"].to_numpy(), "embedding": _as_lists(embeddings)}
    table = pa.table(columns | ({"probs": _as_lists(probs)} if with_probs else {}))
    write_atomic(folder / "labelled_embeddings.parquet", lambda path: pq.write_table(table, path))


def _draws_seed(folder: RoundFolder, work: OpenCampaign) -> int:
    return derive_seed(work.settings.seed, folder.number, "mc_dropout")


def _as_lists(values: Tensor) -> pa.Array:
    """Rows of numbers `(n, ...)` as lists of one length, `(n, 1)` of them where there is a single number."""
    rows = values.flatten(1).contiguous().numpy()
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])


def _read_lists(column: pa.ChunkedArray) -> Tensor:
    values = column.combine_chunks()
    return torch.from_numpy(values.values.to_numpy(zero_copy_only=False).reshape(len(values), -1).copy())


def read_candidates(folder: RoundFolder, settings: CampaignSettings, *, half: bool = False) -> Candidates:
    """The scored candidates, with those columns that choosing a batch reads.

    Args:
        half: as the first half of each network's draws has them.
    """
    columns = columns_read(settings)
    score, probs = ("score_half", "probs_half") if half else ("score", "probs")
    stored = {"embeddings": "embedding", "guesses": "guess"}
    needed = ["item_id", score, *(name for column, name in stored.items() if column in columns)]
    table = pa.concat_tables([pq.read_table(path, columns=needed) for path in _score_files(folder)])
    of_labelled = folder / "labelled_embeddings.parquet"
    readers: dict[str, Callable[[], Tensor]] = {
        "embeddings": lambda: _read_lists(table["embedding"]),
        "probs": lambda: torch.cat([_read_probs(path, probs, settings) for path in _score_files(folder)]),
        "guesses": lambda: class_indices(table["guess"].to_pylist(), settings.classes),
        "labelled_embeddings": lambda: read_labelled_embeddings(folder),
        "labelled_probs": lambda: _read_probs(of_labelled, "probs", settings),
        "labelled_targets": lambda: class_indices(
            pd.read_parquet(folder / "labelled.parquet", columns=["label"])["label"].tolist(), settings.classes
        ),
    }
    ids = np.array(table["item_id"].to_pylist(), dtype=np.str_)
    return gather_candidates(ids, torch.from_numpy(table[score].to_numpy().copy()), readers, settings)


def _read_probs(path: Path, column: str, settings: CampaignSettings) -> Tensor:
    """What the strategy reads, `(n, K, C)`."""
    rows = _read_lists(pq.read_table(path, columns=[column])[column])
    return rows.reshape(len(rows), -1, len(settings.classes))


def has_half(folder: RoundFolder) -> bool:
    """Whether there are scores by half of each network's draws."""
    return all("score_half" in pq.read_schema(path).names for path in _score_files(folder))


def _score_files(folder: RoundFolder) -> list[Path]:
    return sorted((folder / "scores").glob("part-*.parquet"))


def read_labelled_embeddings(folder: RoundFolder) -> Tensor:
    """Embeddings `(M, D)` of the labelled set, float16."""
    return _read_lists(pq.read_table(folder / "labelled_embeddings.parquet", columns=["embedding"])["embedding"])


def read_scores_of(folder: RoundFolder, item_ids: Sequence[str]) -> pd.DataFrame:
    """What scoring wrote about a few candidates, indexed by item id."""
    wanted = pa.array(item_ids)
    tables = [pq.read_table(path, filters=[("item_id", "in", wanted)]) for path in _score_files(folder)]
    table: pd.DataFrame = pa.concat_tables(tables, promote_options="default").to_pandas()  # a version adds columns
    return table.set_index("item_id")
