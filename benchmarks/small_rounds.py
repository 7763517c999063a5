"""Campaigns of tiny files on disk: index, a run that finds labels missing, and many rounds on one pool."""

import os
from pathlib import Path
from time import perf_counter
from typing import cast

from benchmarks.big_campaigns import CLASSES, N_CLASSES, Told, open_again, timed
from benchmarks.pools_on_disk import write_pool
from connectors.memory import MemoryTool
from flows.artefacts import BATCH, GUESSES
from flows.campaign import OpenCampaign
from flows.round import refresh_pool, work_on
from flows.steps.push import questions_of

N_IMAGES, N_SEED, N_ASKED = 10_000, 500, 2
"""Of many rounds on one pool: the labels to learn from grow by less than half in a hundred."""
FILE = """\
name = "scale"
pool = "images"
classes = {classes}
folder = "campaign"
budget = 1000000
audit_size = 50
seed_set_size = {n_seed}
query_size = {n_asked}
[model]
name = "benchmarks.big_campaigns:small_body"
weights = "factory"
train = "head"
image_size = 16
channels = 1
max_epochs = 5
device = "cpu"
[members]
ensemble = 2
"""


def write_campaign(folder: Path, n: int, *, n_seed: int = 50) -> Path:
    """A campaign of n tiny files that nothing has looked at yet."""
    write_pool(folder / "images", n)
    text = FILE.format(classes=list(CLASSES), n_asked=N_ASKED, n_seed=n_seed)
    (folder / "campaign.toml").write_text(text, encoding="utf-8")
    return folder


def walk(folder: Path) -> Told:
    """A walk over the folder that asks for size and time of each file, and no more."""

    def look(inside: str) -> int:
        with os.scandir(inside) as entries:
            return sum(look(entry.path) if entry.is_dir() else entry.stat().st_size for entry in entries)

    return timed(lambda: look(str(folder / "images")))


def index(folder: Path) -> Told:
    """Make the pool table, or bring it up to date."""
    work = open_again(folder)
    return timed(lambda: refresh_pool(work))


def ask_first(folder: Path) -> Told:
    """A run that asks for the first labels."""
    work = open_again(folder)
    return timed(lambda: work_on(work))


def idle(folder: Path) -> Told:
    """A run that finds labels missing."""
    work = open_again(folder)
    put_out(work)
    return timed(lambda: work_on(work))


def put_out(work: OpenCampaign) -> None:
    """Let people in this process have the tasks of the first round, by the same numbers."""
    folder = work.folder.round(0)
    questions = questions_of(folder.read(BATCH), folder.get(GUESSES), work.pool, work.settings, 0)
    work.tool.push(questions, model_version="", asked={})


def rounds(place: Path, n_rounds: int) -> list[float]:
    """Seconds of rounds one after the other: each brings its labels in, learns, scores, selects and asks.

    Each begins with nothing of the ledger, the pool or the networks in memory, as another process would.
    """
    work = open_again(write_campaign(place / "campaign", N_IMAGES, n_seed=N_SEED))
    tool, seconds = cast("MemoryTool", work.tool), []
    for _ in range(n_rounds + 1):
        again = OpenCampaign(work.settings, work.folder, tool=tool, tracker=work.tracker)
        begun = perf_counter()
        work_on(again)
        seconds.append(perf_counter() - begun)
        for question in tool.served():
            tool.answer(question.ask, CLASSES[int(Path(question.uri).stem) % N_CLASSES], annotator="ann")
    return seconds[1:]  # the first asks for the first labels, and learns nothing
