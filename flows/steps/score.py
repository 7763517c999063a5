"""Score the candidates shard by shard; a lost process costs one shard, and memory never holds the pool."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from torch import Tensor

from connectors.member_files import MemberFiles
from connectors.score_files import ItemList, LabelledEmbeddings, ScoreFiles, as_lists
from flows.artefacts import LABELLED_EMBEDDINGS
from flows.config import CampaignSettings
from flows.images import PoolImages
from flows.predict import SHARD
from flows.records import Training
from flows.step import step
from flows.steps.train import load_networks
from pipeline.members.predict import first_half
from pipeline.randomness import derive_seed
from pipeline.selection.ask import columns_read, probs_read, score_candidates, score_classes
from pipeline.tables import Labels
from pipeline.tasks.task_type import TaskType, absent_columns
from pipeline.types import OnProgress


@step()
def score_shard(
    candidates: ItemList,
    training: Training,
    networks: MemberFiles,
    scores: ScoreFiles,
    *,
    images: PoolImages,
    task: TaskType,
    settings: CampaignSettings,
    round_number: int,
    shard: int,
    on_progress: OnProgress,
) -> None:
    """Write score, guess and embedding of one shard of the candidates, unless they are there."""
    if scores.part(shard).exists():
        return
    rows = images.there(candidates.rows(shard * SHARD, SHARD))
    if rows.empty:
        return
    models = load_networks(training, networks, settings.model)
    seed = draws_seed(settings, round_number)
    parts, start = [], 0
    found = images.predict(models, rows, settings.members, of_pool=True, seed=seed, on_progress=on_progress)
    for decisions, embeddings, _ in found:
        chunk = rows.iloc[start : start + len(decisions)]
        parts.append(_score_chunk(chunk, decisions, embeddings, settings, task))
        start += len(chunk)
    scores.write(shard, parts)


def _score_chunk(
    chunk: pd.DataFrame, decisions: Tensor, embeddings: Tensor, settings: CampaignSettings, task: TaskType
) -> pa.Table:
    score = partial(score_candidates, how=settings, reduction=task.reduction, has_one_decision=task.has_one_decision)
    scored = score(decisions)
    columns = {
        "item_id": chunk["item_id"].to_numpy(),
        "score": scored.scores.numpy(),
        "entropy": scored.entropies.numpy(),
        **{name: values.numpy() for name, values in scored.parts.items()},
        "embedding": as_lists(embeddings.half()),
    }
    if scored.likeliest is not None:
        columns["guess"], columns["runner_up"] = np.array(settings.classes)[scored.likeliest.numpy()].T
    read = columns_read(settings, absent_columns(task))
    if "probs" in read:
        columns["probs"] = as_lists(probs_read(decisions, settings))
    if "class_scores" in read:
        columns["class_scores"] = as_lists(score_classes(decisions, settings))
    if settings.members.n_half > 1:
        half = first_half(decisions, settings.members.ensemble)
        columns["score_half"] = score(half).scores.numpy()
        if "probs" in read:
            columns["probs_half"] = as_lists(probs_read(half, settings))
        if "class_scores" in read:
            columns["class_scores_half"] = as_lists(score_classes(half, settings))
    return pa.table(columns)


@step(LABELLED_EMBEDDINGS)
def embed_labelled(
    labelled: Labels,
    training: Training,
    networks: MemberFiles,
    labelled_embeddings: LabelledEmbeddings,
    *,
    images: PoolImages,
    task: TaskType,
    settings: CampaignSettings,
    round_number: int,
) -> LabelledEmbeddings:
    """Write the embeddings of the labelled images and, where the strategy reads it, what the members predict there.

    Images whose labels are not complete may be asked for, and are left out: what is near them is not labelled well.
    """
    labelled = labelled.complete or labelled
    with_probs = "labelled_probs" in columns_read(settings, absent_columns(task))
    models = load_networks(training, networks, settings.model)
    models, members = (models, settings.members) if with_probs else (models[:1], None)
    found = images.predict(models, labelled.table, members, seed=draws_seed(settings, round_number))
    parts = [(probs_read(each.decisions, settings), each.embeddings.half()) for each in found]
    probs, embeddings = (torch.cat(part) for part in zip(*parts, strict=True))
    columns = {"item_id": labelled.table["item_id"].to_numpy(), "embedding": as_lists(embeddings)}
    return labelled_embeddings.write(columns | ({"probs": as_lists(probs)} if with_probs else {}))


def draws_seed(settings: CampaignSettings, round_number: int) -> int:
    """Seed of the members' draws in a round."""
    return derive_seed(settings.seed, round_number, "mc_dropout")


def shards_of(candidates: ItemList) -> Sequence[int]:
    """Numbers of the shards that the candidates make."""
    return range(-(-len(candidates) // SHARD))
