"""The sentence of the loop in memory: a campaign that is killed before any of its files is seen ends as any other."""

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from connectors.annotation import Question
from connectors.memory import MemoryTool, MemoryTracker
from flows import round
from flows.artefacts import AUDIT, BATCH, LABELLED, METRICS
from flows.campaign import OpenCampaign
from flows.config import load_settings
from flows.folder import Campaign, RoundFolder

CLASSES = ("left", "middle", "right")
N_IMAGES, N_ROUNDS = 40, 3
FILE = f"""\
name = "loop"
pool = "images"
classes = {json.dumps(CLASSES)}
folder = "campaign"
budget = 30
audit_size = 6
seed_set_size = 9
query_size = 4

[model]
name = "small_cnn"
image_size = 8
channels = 1
augmentation = "none"
max_epochs = 1

[members]
ensemble = 2
"""


class Killed(BaseException):
    """What `except Exception` does not hold up, as it does not hold up a kill."""


@pytest.fixture(autouse=True)
def _index_only_once(monkeypatch):
    """A hundred processes look at forty images that stay as they are: that alone would take half of the time."""
    index = round.index_pool

    def index_once(place, known, **how):
        return index(place, known, **how) if known is None else known

    monkeypatch.setattr(round, "index_pool", index_once)


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Noise with a bright stripe, whose place is the class: the number of the file, modulo three."""
    folder = tmp_path_factory.mktemp("loop") / "images"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(N_IMAGES):
        pixels = draw.integers(0, 60, size=(8, 8), dtype=np.uint8)
        pixels[:, 3 * (number % 3) : 3 * (number % 3) + 2] += 180
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


class Loop:
    """A campaign whose tool and tracker outlive the processes that work on it."""

    def __init__(self, folder: Path, images: Path) -> None:
        folder.mkdir()
        (folder / "images").symlink_to(images)
        self.file = folder / "campaign.toml"
        self.file.write_text(FILE, encoding="utf-8")
        self.tool, self.tracker = MemoryTool(CLASSES), MemoryTracker()

    @property
    def folder(self) -> Campaign:
        return Campaign(self.file.parent / "campaign")

    def run(self) -> str:
        """Do what can be done, as a new process."""
        work = OpenCampaign(load_settings(self.file), self.folder, tool=self.tool, tracker=self.tracker)
        return round.work_on(work).message

    def asked(self) -> dict[int, Question]:
        """Each task by its id; the images of two campaigns lie in two folders."""
        return {task_id: replace(task, uri=Path(task.uri).name) for task_id, task in self.tool.tasks.items()}

    def label(self) -> None:
        for task in self.tool.served():
            self.tool.answer(task.ask, CLASSES[int(Path(task.uri).stem) % 3], annotator="ann")


def came_to(folder: RoundFolder) -> dict[str, Any]:
    """What a round comes to: the batch in its order, the labels that were learnt, and how good the model is."""
    told: dict[str, Any] = {
        "batch": folder.read(BATCH).table.sort_values("rank").drop(columns="uri").to_csv(index=False)
    }
    for name, artefact in {"labelled": LABELLED, "audit": AUDIT}.items():
        labels = folder.read(artefact)
        told[name] = dict(zip(labels.item_ids, labels.labels, strict=True))
    return told | {"metrics": folder.get(METRICS)}


def tracked(tracker: MemoryTracker) -> dict[str, Any]:
    """What the tracker holds of each round, but the times."""
    return {
        run_id: {
            "metrics": {name: value for name, value in run.metrics.items() if not name.startswith("seconds_")},
            "members": {name: len(member.epochs) for name, member in run.members.items()},
            "model": run.model,
            "artifacts": set(run.artifacts),
            "is_finished": run.is_finished,
        }
        for run_id, run in tracker.runs.items()
    }


def files_of(campaign: Campaign) -> set[Path]:
    """All files of a campaign but its lock, which no step writes."""
    return {path for path in campaign.path.rglob("*") if path.is_file() and path.suffix != ".lock"}


def run_and_kill_before_each_file(loop: Loop, died_at: set[Path]) -> str:
    """Run until the round is out; the process dies once before each file: it is whole, and gets its name then."""
    rename = Path.replace

    def rename_or_die(temporary: Path, target: Path) -> Path:
        if target not in died_at:
            died_at.add(target)
            raise Killed(target)
        return rename(temporary, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", rename_or_die)
        while True:
            with suppress(Killed):
                return loop.run()


def test_a_campaign_killed_between_any_two_steps_ends_as_an_undisturbed_one(tmp_path, images):
    undisturbed, killed = Loop(tmp_path / "undisturbed", images), Loop(tmp_path / "killed", images)
    died_at: set[Path] = set()
    for number in range(N_ROUNDS):
        told = [undisturbed.run(), run_and_kill_before_each_file(killed, died_at)]
        assert told[0] == told[1]
        assert f"round {number} asks for" in told[0]
        undisturbed.label()
        killed.label()
    assert files_of(killed.folder) <= died_at, "each file was once about to be seen when the process died"
    for one, other in zip(undisturbed.folder.rounds(), killed.folder.rounds(), strict=True):
        assert came_to(one) == came_to(other)
    assert killed.asked() == undisturbed.asked(), "no task twice"
    assert tracked(killed.tracker) == tracked(undisturbed.tracker)
    assert killed.tracker.champion == undisturbed.tracker.champion
