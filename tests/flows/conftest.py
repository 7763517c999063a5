"""A small campaign on disk, half of whose images have a label, for steps that need no server."""

import itertools
import json
import shutil
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from connectors.image_folder.index import index_pool
from connectors.memory import MemoryTool, MemoryTracker
from flows.artefacts import POOL, PUSHED
from flows.campaign import OpenCampaign
from flows.config import load_settings
from flows.folder import Campaign, RoundFolder
from flows.records import Pushed
from flows.steps.labels import gather_labels, list_candidates
from flows.steps.plan import begin
from flows.steps.track import start_tracking
from pipeline.learning import train as learning
from pipeline.tables import PoolTable
from pipeline.tasks import TASKS
from tests.flows.loop import N_IMAGES, Loop

CLASSES = ("left", "middle", "right")
TEMPLATE = """\
name = "stripes"
pool = "images.csv"
classes = {classes}
folder = "{folder}"
budget = 100
audit_size = 6
seed_set_size = 10
query_size = 5
{extra}

[model]
image_size = 12
channels = 1
{model}

[members]
{members}

[renamed]
{renamed}
"""
PLAIN = 'name = "small_cnn"\naugmentation = "none"\nmax_epochs = 2\n'
TINY = 'name = "tests.flows.tiny:tiny_network"\nweights = "factory"\naugmentation = "none"\n'
"""Pretrained, as far as anybody can see."""
QUICK = {"all_from": 50, "max_epochs": 4, "min_steps": 4}
"""Where a test says nothing else: 24 labels of three classes train heads, and these are trained little."""


@pytest.fixture(autouse=True)
def _one_thread():
    """Small networks gain nothing from threads, and lose much where other programs want the processor."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("LABELCYCLE_HOME", str(tmp_path / "home"))


@pytest.fixture
def training_is_killed(monkeypatch):
    """Let a training end, as if by a person's Ctrl+C, when it has fitted so many networks."""

    @contextmanager
    def killed(*, after: int):
        fit, done = learning.fit, []

        def fit_until_killed(*data, **how):
            if len(done) == after:
                raise KeyboardInterrupt
            done.append(1)
            return fit(*data, **how)

        with monkeypatch.context() as patch:
            patch.setattr(learning, "fit", fit_until_killed)
            with pytest.raises(KeyboardInterrupt):
                yield

    return killed


@pytest.fixture(scope="session")
def striped_images(tmp_path_factory) -> Path:
    """60 noisy images whose class is where a bright stripe is; the manifest tells the class of 24."""
    folder = tmp_path_factory.mktemp("stripes")
    draw = np.random.default_rng(0)
    rows = []
    for number in range(60):
        image = draw.integers(0, 40, size=(12, 12), dtype=np.uint8)
        place = number % len(CLASSES)
        image[:, 4 * place : 4 * place + 3] += 180
        Image.fromarray(image).save(folder / f"{number:02d}.png")
        rows.append({"uri": f"{number:02d}.png", "label": CLASSES[place] if number < 24 else None})
    pd.DataFrame(rows).to_csv(folder / "images.csv", index=False)
    return folder


@pytest.fixture
def make_work(striped_images, tmp_path):
    """Open a campaign with more lines in its file."""

    def make(
        extra: str = "",
        *,
        network: str = PLAIN,
        model: str = "",
        members: str = "",
        ensemble: int = 2,
        name: str = "campaign",
        classes: Sequence[str] = CLASSES,
        renamed: str = "",
    ) -> OpenCampaign:
        file = striped_images / "campaign.toml"
        quick = [f"{key} = {value}\n" for key, value in QUICK.items() if key not in network + model]
        members = f"ensemble = {ensemble}\n{members}"
        text = TEMPLATE.format(
            folder=tmp_path / name,
            classes=json.dumps(classes),
            extra=extra,
            model=network + "".join(quick) + model,
            members=members,
            renamed=renamed,
        )
        file.write_text(text)
        settings = load_settings(file)
        tool = MemoryTool(settings.classes, asks=TASKS[settings.task].asks)
        tracker = MemoryTracker()
        work = OpenCampaign(settings, Campaign(settings.folder), tool=tool, tracker=tracker)
        pool = index_pool(settings.pool_source, None, audit_size=settings.audit_size, seed=0)
        work.folder.write(POOL, PoolTable(pool))
        return work

    return make


@pytest.fixture(scope="session")
def loop_images(tmp_path_factory) -> Path:
    """Noise with a bright stripe, whose place is the class: the number of the file, modulo three."""
    folder = tmp_path_factory.mktemp("loop") / "images"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(N_IMAGES):
        pixels = draw.integers(0, 60, size=(8, 8), dtype=np.uint8)
        place = 3 * (number % len(CLASSES))
        pixels[:, place : place + 2] += 180
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture
def make_loop(loop_images, tmp_path):
    """Make campaigns in memory, with more lines and other settings in the file."""
    numbers = itertools.count()

    def make(extra: str = "", *, own_images: bool = False, **changes: int) -> Loop:
        name = f"loop {next(numbers)}"
        images = Path(shutil.copytree(loop_images, tmp_path / f"images of {name}")) if own_images else loop_images
        return Loop(tmp_path / name, images, extra, **changes)

    return make


def ready_round(work: OpenCampaign, number: int = 1) -> RoundFolder:
    """A round that knows its labels and its candidates; the audit set was asked for in round 0."""
    first = work.folder.round(0)
    if number > 0 and not first.has(PUSHED):
        audit = work.pool.table.query("split == 'audit'")["item_id"]
        pushed_at = "2026-11-01T12:00:00+00:00"
        tasks = {item_id: n for n, item_id in enumerate(audit)}
        first.write(PUSHED, Pushed(pushed_at, address="", tasks=tasks, purposes=dict.fromkeys(tasks, "audit")))
    folder = work.folder.round(number)
    work.do(begin, folder)
    work.do(gather_labels, folder)
    work.do(list_candidates, folder)
    work.do(start_tracking, folder, flow_run=None)
    return folder
