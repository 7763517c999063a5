"""Score the candidates shard by shard; a lost process costs one shard, and memory never holds the pool."""

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from connectors.member_files import MemberFiles
from connectors.score_files import Columns, ItemList, LabelledEmbeddings, ScoreFiles, as_lists
from flows.artefacts import LABELLED_EMBEDDINGS
from flows.config import CampaignSettings
from flows.images import PoolImages
from flows.predict import SHARD
from flows.records import Training
from flows.step import step
from flows.steps.train import load_networks
from pipeline.members.predict import first_half
from pipeline.randomness import derive_seed
from pipeline.selection.ask import Scored, columns_read, probs_read, score_candidates, score_classes
from pipeline.selection.batch import n_described
from pipeline.tables import Labels
from pipeline.tasks.task_type import TaskType, absent_columns
from pipeline.types import DESCRIBING, OnProgress


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
    """Write score and guess of one shard of the candidates, unless they are there, and what choosing the batch reads.

    Embeddings that the store of features keeps are read there.
    """
    if scores.part(shard).exists():
        return
    rows = images.there(candidates.rows(shard * SHARD, SHARD))
    if rows.empty:
        return
    models = load_networks(training, networks, settings.model)
    seed = draws_seed(settings, round_number)
    read = columns_read(settings, absent_columns(task))
    if shard * SHARD >= n_described(len(candidates), settings):
        read -= DESCRIBING
    if images.keeps_embeddings(models, settings.members):
        read -= {"embeddings"}
    kept, passing, start = [], [], 0
    for decisions, embeddings, _ in images.predict(
        models, rows, settings.members, of_pool=True, seed=seed, on_progress=on_progress
    ):
        places = rows.index[start : start + len(decisions)].to_numpy(dtype=np.int32)
        start += len(decisions)
        kept.append({"place": places, **_scores(decisions, settings, task)})
        passing.append(_passing(decisions, embeddings, read, settings, task))
    scores.write(shard, kept, passing)


def _scores(decisions: Tensor, settings: CampaignSettings, task: TaskType) -> Columns:
    scored = score_decisions(decisions, settings, task)
    columns = {"score": scored.scores.numpy()}
    if scored.likeliest is not None:
        columns["guess"] = np.array(settings.classes)[scored.likeliest[:, 0].numpy()]
    return columns


def _passing(
    decisions: Tensor, embeddings: Tensor, read: Collection[str], settings: CampaignSettings, task: TaskType
) -> Columns:
    """What only choosing the batch reads, and comparing it with that of half of the draws."""
    columns = {"embedding": as_lists(embeddings.half())} if "embeddings" in read else {}
    halves = {"": decisions}
    if settings.members.n_half > 1:
        halves["_half"] = first_half(decisions, settings.members.ensemble)
        columns["score_half"] = score_decisions(halves["_half"], settings, task).scores.numpy()
    for of, some in halves.items():
        if "probs" in read:
            columns[f"probs{of}"] = as_lists(probs_read(some, settings))
        if "class_scores" in read:
            columns[f"class_scores{of}"] = as_lists(score_classes(some, settings))
    return columns


def score_decisions(decisions: Tensor, settings: CampaignSettings, task: TaskType) -> Scored:
    """Scores and guesses of images, `(n, U, K, C)`, by the campaign's settings."""
    return score_candidates(decisions, settings, reduction=task.reduction, has_one_decision=task.has_one_decision)


@step()
def forget_passing(scores: ScoreFiles) -> None:
    """Remove what only choosing the batch reads: it is chosen."""
    scores.forget_passing()


@step(LABELLED_EMBEDDINGS, computes=True)
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
