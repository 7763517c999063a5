"""Campaigns of images that are on no disk: a pool table, features in the store, and the stages of a round on them."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.measure import high_water, reset_peak
from connectors.frozen_features import open_cache
from connectors.memory import MemoryTool, MemoryTracker
from flows.artefacts import BATCH, CANDIDATES, GUESSES, POOL, PUSHED, SCORES
from flows.cache import features_folder
from flows.campaign import OpenCampaign
from flows.config import load_settings
from flows.folder import Campaign, RoundFolder
from flows.home import VARIABLE
from flows.records import Pushed
from flows.steps.collect import collect
from flows.steps.labels import gather_labels, list_candidates
from flows.steps.plan import begin, look_ahead, plan
from flows.steps.push import begin_push, push, questions_of
from flows.steps.score import embed_labelled, forget_passing, score_shard, shards_of
from flows.steps.select import compare_with_half, select
from flows.steps.track import start_tracking
from flows.steps.train import cross_validate, train
from pipeline.learning.networks import frozen_body
from pipeline.pool.table import as_table
from pipeline.tables import PoolTable

D, N_CLASSES, N_LABELLED, N_ASKED = 384, 10, 500, 1000
CLASSES = tuple(f"class-{number}" for number in range(N_CLASSES))
CHUNK = 1024
"""Images of one file of the store, as scoring appends them."""
FILE = """\
name = "scale"
pool = "images"
classes = {classes}
folder = "campaign"
budget = 1000000
audit_size = 20
query_size = {n_asked}
strategy = "{strategy}"
[model]
name = "benchmarks.big_campaigns:small_body"
weights = "factory"
train = "head"
image_size = 16
max_epochs = 5
device = "cpu"
[members]
ensemble = 2
"""
Told = tuple[float, float | None]
"""Seconds, and the most memory held above what was held before, in 10^6 bytes."""


def small_body() -> nn.Module:
    """A network of 384 features with weights that are the same whenever it is made."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        features = (nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, D), nn.ReLU())
        return nn.Sequential(*features, nn.Linear(D, N_CLASSES))


def make_campaign(place: Path, n: int) -> OpenCampaign:
    """A campaign of n candidates, by the strategy `auto`, whose first round has its networks.

    Args:
        place: a folder; below it is the home of the features.
    """
    folder = place / f"{n}-auto"
    (folder / "images").mkdir(parents=True, exist_ok=True)
    text = FILE.format(classes=list(CLASSES), n_asked=min(N_ASKED, n // 10), strategy="auto")
    (folder / "campaign.toml").write_text(text, encoding="utf-8")
    work = open_again(folder)
    table = pool_table(n + N_LABELLED + 20)
    work.folder.write(POOL, PoolTable(table))
    keep_features(work, table["item_id"].tolist())
    audit = table.loc[table["split"] == "audit", "item_id"]
    tasks = {item_id: number for number, item_id in enumerate(audit, 1)}
    work.folder.round(0).write(PUSHED, Pushed("2026-01-01T00:00:00+00:00", "", tasks, dict.fromkeys(tasks, "audit")))
    current = work.folder.round(1)
    work.do(begin, current)
    work.do(gather_labels, current)
    work.do(start_tracking, current, flow_run=None)
    work.do(list_candidates, current)
    work.do(plan, current)
    work.do(cross_validate, current)
    work.do(train, current)
    work.do(look_ahead, current)
    work.do(embed_labelled, current)
    return work


def make_alike(folder: Path, strategy: str) -> Path:
    """The same campaign, about to score for another strategy."""
    other = folder.with_name(f"{folder.name.partition('-')[0]}-{strategy}")
    shutil.copytree(folder, other)
    shutil.rmtree(Campaign(other / "campaign").round(1).path_of(SCORES), ignore_errors=True)
    text = (other / "campaign.toml").read_text(encoding="utf-8")
    (other / "campaign.toml").write_text(
        text.replace('strategy = "auto"', f'strategy = "{strategy}"'), encoding="utf-8"
    )
    return other


def open_again(folder: Path) -> OpenCampaign:
    """The campaign as another process sees it, with tasks and runs of its own."""
    os.environ[VARIABLE] = str(folder.parent / "home")
    settings = load_settings(folder / "campaign.toml")
    tool = MemoryTool(settings.classes)
    return OpenCampaign(settings, Campaign(settings.folder), tool=tool, tracker=MemoryTracker())


def pool_table(n: int) -> pd.DataFrame:
    """A pool table of n images that are on no disk; the first have a label, the last are the audit set."""
    rng = np.random.default_rng(0)
    ids = [bytes(row).hex() for row in rng.integers(0, 256, (n, 16), dtype=np.uint8)]
    rows = pd.DataFrame({"item_id": ids, "uri": [f"/pool/{row // 1000:05d}/{row:08d}.png" for row in range(n)]})
    rows["width"] = rows["height"] = 16
    rows["split"] = ["pool"] * (n - 20) + ["audit"] * 20
    rows["size_bytes"], rows["modified_ns"] = 300, 1
    rows["label"] = [CLASSES[row % N_CLASSES] for row in range(N_LABELLED)] + [None] * (n - N_LABELLED)
    return as_table(rows)


def keep_features(work: OpenCampaign, ids: Sequence[str]) -> None:
    """Put features of the images into the store, ten Gaussian clusters, unless they are there."""
    body = frozen_body(work.settings.model, work.task, n_classes=N_CLASSES)
    cache = open_cache(features_folder(), body, image_size=work.settings.model.image_size)
    if not len(cache.missing(ids[-1:])):
        return
    for start, features in drawn_features(len(ids)):
        cache.append(ids[start : start + len(features)], torch.from_numpy(features))


def drawn_features(n: int) -> Iterator[tuple[int, NDArray[np.float16]]]:
    """Chunks of features `(m, D)` of ten Gaussian clusters, and where each begins."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(N_CLASSES, D)).astype(np.float32)
    for start in range(0, n, CHUNK):
        rows = np.arange(start, min(n, start + CHUNK))
        noise = rng.standard_normal((len(rows), D), dtype=np.float32)
        yield start, (centres[rows % N_CLASSES] + 1.5 * noise).astype(np.float16)


def timed(work: Callable[[], object]) -> Told:
    """Seconds of some work, and the memory that it takes."""
    before = reset_peak()
    begun = perf_counter()
    work()
    seconds = perf_counter() - begun
    return seconds, None if before is None else high_water() - before


# Stages, each for a process of its own


def stage_score(folder: Path) -> Told:
    """Score all candidates from features that are kept."""
    work = open_again(folder)
    current = ready(work)

    def score() -> None:
        for shard in shards_of(current.read(CANDIDATES)):
            work.do(score_shard, current, shard=shard, on_progress=lambda _done, _total: None)

    return timed(score)


def stage_select(folder: Path) -> Told:
    """Choose a batch of the scored candidates."""
    work = open_again(folder)
    current = ready(work)
    return timed(lambda: work.do(select, current))


def stage_push(folder: Path) -> Told:
    """Put the batch out, to people in this process."""
    work = open_again(folder)
    current = ready(work)
    work.do(compare_with_half, current)
    work.do(forget_passing, current)

    def put_out() -> None:
        work.do(begin_push, current)
        work.do(push, current, address="")

    return timed(put_out)


def stage_collect(folder: Path) -> Told:
    """Bring in an answer to each task."""
    work = open_again(folder)
    current = ready(work)
    tool = cast("MemoryTool", work.tool)
    questions = questions_of(current.read(BATCH), current.get(GUESSES), work.pool, work.settings, current.number)
    tool.push(questions, model_version="", asked={})
    for question in questions:
        tool.answer(question.ask, CLASSES[question.rank % N_CLASSES], annotator="ann")
    return timed(lambda: work.do(collect, current))


def ready(work: OpenCampaign) -> RoundFolder:
    """The round, with what each run has read before it comes to a stage: pool, ledger, and what learns."""
    current = work.folder.round(1)
    _ = work.ledger.asked_items, work.pool.uris, work.task, work.images
    return current


def megabytes_of_scores(folder: Path) -> float:
    """What the scores of the round take on the disk, 10^6 bytes."""
    current = open_again(folder).folder.round(1)
    return sum(path.stat().st_size for path in current.path_of(SCORES).iterdir()) / 1e6


@contextmanager
def home_at(place: Path) -> Iterator[None]:
    """Keep features below a folder for a while."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = str(place / "home")
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
