"""A whole campaign in memory: plain functions for steps, an annotation tool and a tracker in this process."""

import json
import tomllib
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from connectors.annotation import Question
from connectors.memory import MemoryTool, MemoryTracker
from flows.artefacts import AUDIT, BATCH, LABELLED, PUSHED
from flows.campaign import open_campaign
from flows.folder import Campaign
from flows.outcome import RoundOutcome
from flows.round import work_on
from pipeline.tasks import TASKS
from pipeline.types import Region

CLASSES = ("left", "middle", "right")
N_IMAGES = 40
FILE = f"""\
name = "loop"
pool = "images"
classes = {json.dumps(CLASSES)}
folder = "campaign"
budget = 23
audit_size = 6
seed_set_size = 9
query_size = 4
{{extra}}

[model]
name = "small_cnn"
image_size = 8
channels = 1
augmentation = "none"
max_epochs = 1

[members]
ensemble = 2
"""
"""Round 0 asks for 15 labels, rounds 1 and 2 for 4 each."""


class Loop:
    """A campaign whose tool and tracker outlive the runs that work on it.

    Args:
        folder: a folder that is not there yet.
        images: where the images lie; the number of a file, modulo three, is its class.
        extra: more lines of the campaign's file.
        changes: settings of the campaign's file that are to be others.
    """

    def __init__(self, folder: Path, images: Path, extra: str = "", **changes: int) -> None:
        folder.mkdir()
        (folder / "images").symlink_to(images)
        self.file = folder / "campaign.toml"
        self.file.write_text(FILE.format(extra=extra), encoding="utf-8")
        for name, value in changes.items():
            before = next(line for line in self.file.read_text().splitlines() if line.startswith(f"{name} = "))
            self.change((before, f"{name} = {value}"))
        self.folder = Campaign(folder / "campaign")
        task = tomllib.loads(self.file.read_text(encoding="utf-8")).get("task", "classification")
        self.tool, self.tracker = MemoryTool(CLASSES, asks=TASKS[task].asks), MemoryTracker()

    def change(self, *replacements: tuple[str, str]) -> None:
        """Change the campaign's file."""
        text = self.file.read_text(encoding="utf-8")
        for before, after in replacements:
            assert before in text
            text = text.replace(before, after)
        self.file.write_text(text, encoding="utf-8")

    def run_as(self) -> RoundOutcome:
        """Do what can be done, as a new process."""
        work = open_campaign(self.file, tool=self.tool, tracker=self.tracker)
        with work.folder.lock():
            return work_on(work)

    def run(self) -> str:
        """Do what can be done, as a new process; return what it says of it."""
        return self.run_as().message

    def label(self, n: int | None = None) -> list[str]:
        """Answer what the tool serves first with the truth; return the items."""
        served = self.tool.served()[:n]
        for question in served:
            self.tool.answer(question.ask, truth(question.uri), annotator="ann")
        return [question.item_id for question in served]

    def skip(self, item_ids: Iterable[str]) -> None:
        """Skip the tasks that ask for these items."""
        for ask in [question.ask for question in self.tool.served() if question.item_id in set(item_ids)]:
            self.tool.skip(ask)

    def edit(self, item_id: str, label: str) -> None:
        """Change the answer to an item, as a person does who thinks again."""
        given = next(answer for answer in self.tool.answers.values() if answer.item_id == item_id)
        assert given.annotation is not None
        changed = replace(given.annotation, regions=(Region("image", label),))
        later = pd.Timestamp(given.updated_at) + pd.Timedelta(minutes=1)
        self.tool.answers[given.answer_id] = replace(given, annotation=changed, updated_at=later.isoformat())

    def delete(self, item_id: str) -> None:
        """Take the answer to an item back."""
        self.tool.delete(next(answer.answer_id for answer in self.tool.answers.values() if answer.item_id == item_id))

    def asked(self) -> dict[int, Question]:
        """Each task by its id, with the name of its image alone."""
        return {task_id: replace(task, uri=Path(task.uri).name) for task_id, task in self.tool.tasks.items()}

    def batch(self, number: int) -> list[str]:
        """The items that a round asks for."""
        return self.folder.round(number).read(BATCH).item_ids

    def tasks(self, number: int) -> dict[str, int]:
        """The tasks that a round put out."""
        return self.folder.round(number).read(PUSHED).tasks

    def known(self, number: int) -> dict[str, str]:
        """The labels that a round was trained or measured on."""
        both = [self.folder.round(number).read(artefact) for artefact in (LABELLED, AUDIT)]
        return {item_id: label for labels in both for item_id, label in zip(labels.item_ids, labels.words, strict=True)}


def truth(uri: str) -> str:
    """The class of an image."""
    return CLASSES[int(Path(uri).stem) % len(CLASSES)]
