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
from flows.campaign import OpenCampaign
from flows.config import CampaignSettings
from flows.learn import CHUNK, class_indices, predict, trained_models
from flows.progress import progress_bar
from flows.steps import step
from pipeline.models import Classifier
from pipeline.randomness import derive_seed
from pipeline.scoring import score_columns
from pipeline.strategies import columns_of, seeded_order
from pipeline.types import Candidates

SHARD = 4096
"""Candidates in one file of scores."""


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

            def count(done: int, start: int = start) -> None:
                advance(start + done, len(candidates))

            score_shard(folder, work, models, rows, shard=shard, count=count)


@step("scores/part-{shard:05d}.parquet")
def score_shard(
    folder: RoundFolder,
    work: OpenCampaign,
    models: Sequence[Classifier],
    rows: pd.DataFrame,
    *,
    shard: int,
    count: Callable[[int], None],
) -> None:
    """Write score, guess and embedding of the candidates of one shard, given as item_id and uri."""
    mc_dropout = work.settings.members.mc_dropout
    seed = _dropout_seed(folder, work)
    parts = []
    for start in range(0, len(rows), CHUNK):
        chunk = rows.iloc[start : start + CHUNK]
        decisions, embeddings = predict(models, chunk["uri"].tolist(), work, mc_dropout=mc_dropout, seed=seed)
        parts.append(_score_chunk(chunk, decisions, embeddings, work))
        count(start + len(chunk))
    table = pa.concat_tables(parts)
    write_atomic(folder / "scores" / f"part-{shard:05d}.parquet", lambda path: pq.write_table(table, path))


def _score_chunk(chunk: pd.DataFrame, decisions: Tensor, embeddings: Tensor, work: OpenCampaign) -> pa.Table:
    several = decisions.shape[2] > 1
    parts = ["aleatoric", "epistemic"] if several else []
    scores = score_columns(decisions, {work.settings.acquisition, "entropy", *parts}, reduce="mean")
    top = decisions[:, 0].mean(dim=1).topk(2)
    classes = np.array(work.settings.classes)
    columns = {
        "item_id": chunk["item_id"].to_numpy(),
        "score": scores[work.settings.acquisition].numpy(),
        "entropy": scores["entropy"].numpy(),
        **{name: scores[name].numpy() for name in parts},
        "guess": classes[top.indices[:, 0].numpy()],
        "guess_probability": top.values[:, 0].numpy(),
        "runner_up": classes[top.indices[:, 1].numpy()],
        "embedding": _as_lists(embeddings.half()),
    }
    return pa.table(columns | ({"probs": _as_lists(decisions[:, 0])} if "probs" in columns_read(work.settings) else {}))


@step("labelled_embeddings.parquet")
def embed_labelled(folder: RoundFolder, work: OpenCampaign, models: Sequence[Classifier]) -> None:
    """Write the embeddings of the images that already have a label, and what the members say of them if it is read."""
    labelled = work.located(pd.read_parquet(folder / "labelled.parquet"))
    with_probs = "labelled_probs" in columns_read(work.settings)
    mc_dropout = work.settings.members.mc_dropout if with_probs else 0
    seed = _dropout_seed(folder, work)
    parts = []
    for start in range(0, len(labelled), CHUNK):
        chunk = labelled.iloc[start : start + CHUNK]
        decisions, embeddings = predict(
            models if with_probs else models[:1], chunk["uri"].tolist(), work, mc_dropout=mc_dropout, seed=seed
        )
        columns = {"item_id": chunk["item_id"].to_numpy(), "embedding": _as_lists(embeddings.half())}
        parts.append(pa.table(columns | ({"probs": _as_lists(decisions[:, 0])} if with_probs else {})))
    table = pa.concat_tables(parts)
    write_atomic(folder / "labelled_embeddings.parquet", lambda path: pq.write_table(table, path))


def columns_read(settings: CampaignSettings) -> frozenset[str]:
    """The columns of `Candidates` that choosing a batch reads; scoring computes no others."""
    balancing = ("guesses", "labelled_targets") if settings.balance_classes else ()
    return frozenset({*columns_of(settings.strategy), *balancing})


def _dropout_seed(folder: RoundFolder, work: OpenCampaign) -> int:
    return derive_seed(work.settings.seed, folder.number, "mc_dropout")


def _as_lists(values: Tensor) -> pa.Array:
    """Rows of numbers `(n, ...)` as lists of one length, `(n, 1)` of them where there is a single number."""
    rows = values.flatten(1).contiguous().numpy()
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])


def _read_lists(column: pa.ChunkedArray) -> Tensor:
    values = column.combine_chunks()
    return torch.from_numpy(values.values.to_numpy(zero_copy_only=False).reshape(len(values), -1).copy())


def read_candidates(folder: RoundFolder, settings: CampaignSettings) -> Candidates:
    """The scored candidates, with those columns that choosing a batch reads."""
    columns = columns_read(settings)
    stored = {"embeddings": "embedding", "probs": "probs", "guesses": "guess"}
    needed = ["item_id", "score", *(name for column, name in stored.items() if column in columns)]
    table = pa.concat_tables([pq.read_table(path, columns=needed) for path in _score_files(folder)])
    n_classes = len(settings.classes)

    def of_labelled(name: str) -> Tensor:
        return _read_lists(pq.read_table(folder / "labelled_embeddings.parquet", columns=[name])[name])

    readers: dict[str, Callable[[], Tensor]] = {
        "embeddings": lambda: _read_lists(table["embedding"]),
        "probs": lambda: _by_member(_read_lists(table["probs"]), n_classes),
        "guesses": lambda: class_indices(table["guess"].to_pylist(), settings.classes),
        "labelled_embeddings": lambda: of_labelled("embedding"),
        "labelled_probs": lambda: _by_member(of_labelled("probs"), n_classes),
        "labelled_targets": lambda: class_indices(
            pd.read_parquet(folder / "labelled.parquet", columns=["label"])["label"].tolist(), settings.classes
        ),
    }
    return Candidates(
        ids=np.array(table["item_id"].to_pylist(), dtype=np.str_),
        scores=torch.from_numpy(table["score"].to_numpy().copy()),
        **{name: read() for name, read in readers.items() if name in columns},
    )


def _by_member(rows: Tensor, n_classes: int) -> Tensor:
    return rows.reshape(len(rows), -1, n_classes)


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
