"""Score the candidates shard by shard; a lost process costs one shard, and memory never holds the pool."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from connectors.store import RoundFolder, write_atomic, write_table
from flows.campaign import OpenCampaign
from flows.learn import CHUNK, predict, trained_models
from flows.progress import progress_bar
from flows.steps import step
from pipeline.models import Classifier
from pipeline.randomness import derive_seed
from pipeline.scoring import score_images
from pipeline.types import Candidates

SHARD = 4096
"""Candidates in one file of scores."""


@step("candidates.parquet")
def list_candidates(folder: RoundFolder, work: OpenCampaign) -> None:
    """Write down the images that this round chooses from."""
    write_table(folder / "candidates.parquet", work.may_be_asked(split="pool"))


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
    seed = derive_seed(work.settings.seed, folder.number, "mc_dropout")
    parts = []
    for start in range(0, len(rows), CHUNK):
        chunk = rows.iloc[start : start + CHUNK]
        decisions, embeddings = predict(models, chunk["uri"].tolist(), work, mc_dropout=mc_dropout, seed=seed)
        parts.append(_score_chunk(chunk, decisions, embeddings, work))
        count(start + len(chunk))
    table = pa.concat_tables(parts)
    write_atomic(folder / "scores" / f"part-{shard:05d}.parquet", lambda path: pq.write_table(table, path))


def _score_chunk(chunk: pd.DataFrame, decisions: Tensor, embeddings: Tensor, work: OpenCampaign) -> pa.Table:
    scores = score_images(decisions, work.settings.acquisition, reduce="mean")
    top = decisions[:, 0].mean(dim=1).topk(2)
    classes = np.array(work.settings.classes)
    return pa.table(
        {
            "item_id": chunk["item_id"].to_numpy(),
            "score": scores.numpy(),
            "entropy": score_images(decisions, "entropy", reduce="mean").numpy(),
            "guess": classes[top.indices[:, 0].numpy()],
            "guess_probability": top.values[:, 0].numpy(),
            "runner_up": classes[top.indices[:, 1].numpy()],
            "embedding": _as_lists(embeddings),
        }
    )


@step("labelled_embeddings.parquet")
def embed_labelled(folder: RoundFolder, work: OpenCampaign, models: Sequence[Classifier]) -> None:
    """Write the embeddings of the images that already have a label."""
    labelled = work.located(pd.read_parquet(folder / "labelled.parquet"))
    uris = labelled["uri"].tolist()
    parts = []
    for start in range(0, len(uris), CHUNK):
        _, embeddings = predict(models[:1], uris[start : start + CHUNK], work, mc_dropout=0)
        parts.append(
            pa.table(
                {
                    "item_id": labelled["item_id"].to_numpy()[start : start + CHUNK],
                    "embedding": _as_lists(embeddings),
                }
            )
        )
    table = pa.concat_tables(parts)
    write_atomic(folder / "labelled_embeddings.parquet", lambda path: pq.write_table(table, path))


def _as_lists(embeddings: Tensor) -> pa.Array:
    values = embeddings.to(torch.float16).numpy()
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def _read_embeddings(column: pa.ChunkedArray) -> Tensor:
    values = column.combine_chunks()
    return torch.from_numpy(values.values.to_numpy(zero_copy_only=False).reshape(len(values), -1).copy())


def read_candidates(folder: RoundFolder, *, columns: Sequence[str]) -> Candidates:
    """The scored candidates, with those columns that a query strategy reads."""
    paths = sorted((folder / "scores").glob("part-*.parquet"))
    needed = ["item_id", "score", *(["embedding"] if "embeddings" in columns else [])]
    table = pa.concat_tables([pq.read_table(path, columns=needed) for path in paths])
    return Candidates(
        ids=np.array(table["item_id"].to_pylist(), dtype=np.str_),
        scores=torch.from_numpy(table["score"].to_numpy().copy()),
        embeddings=_read_embeddings(table["embedding"]) if "embeddings" in columns else None,
        labelled_embeddings=read_labelled_embeddings(folder) if "labelled_embeddings" in columns else None,
    )


def read_labelled_embeddings(folder: RoundFolder) -> Tensor:
    """Embeddings `(M, D)` of the labelled set, float16."""
    return _read_embeddings(pq.read_table(folder / "labelled_embeddings.parquet")["embedding"])


def read_scores_of(folder: RoundFolder, item_ids: Sequence[str]) -> pd.DataFrame:
    """What scoring wrote about a few candidates, indexed by item id."""
    wanted = pa.array(item_ids)
    tables = [
        pq.read_table(path, filters=[("item_id", "in", wanted)])
        for path in sorted((folder / "scores").glob("part-*.parquet"))
    ]
    table: pd.DataFrame = pa.concat_tables(tables).to_pandas()
    return table.set_index("item_id")
