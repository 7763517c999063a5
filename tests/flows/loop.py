"""A whole campaign in memory: plain functions for steps, an annotation tool and a tracker in this process."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import prefect
import pytest
from prefect.logging import disable_run_logger

from connectors.annotation import Task
from connectors.memory import MemoryTool, MemoryTracker
from connectors.store import Campaign, read_json
from flows import books, round
from flows.campaign import open_campaign
from flows.round import RoundOutcome
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


@contextmanager
def without_prefect() -> Iterator[None]:
    """Let steps be functions: no engine runs them, and no server keeps books."""
    with pytest.MonkeyPatch.context() as patch, disable_run_logger():
        patch.setattr(prefect.Task, "__call__", lambda task, *data, **how: task.fn(*data, **how))
        patch.setattr(books, "put_right", lambda _work: None)
        patch.setattr(round, "create_markdown_artifact", lambda **_page: None)
        yield


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
        self.tool, self.tracker = MemoryTool(CLASSES), MemoryTracker()

    def change(self, *replacements: tuple[str, str]) -> None:
        """Change the campaign's file."""
        text = self.file.read_text(encoding="utf-8")
        for before, after in replacements:
            assert before in text
            text = text.replace(before, after)
        self.file.write_text(text, encoding="utf-8")

    def run_as(self) -> RoundOutcome:
        """Do what can be done, as a new process."""
        work = open_campaign(self.file)
        work.__dict__.update(tool=self.tool, tracker=self.tracker)
        return round.work_on(work)

    def run(self) -> str:
        """Do what can be done, as a new process; return what it says of it."""
        return self.run_as().message

    def label(self, n: int | None = None) -> list[str]:
        """Answer what the tool serves first with the truth; return the items."""
        served = self.tool.served()[:n]
        for task in served:
            self.tool.answer(task.item_id, truth(task.uri), annotator="ann")
        return [task.item_id for task in served]

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

    def asked(self) -> dict[int, Task]:
        """Each task by its id, with the name of its image alone."""
        return {task_id: replace(task, uri=Path(task.uri).name) for task_id, task in self.tool.tasks.items()}

    def batch(self, number: int) -> list[str]:
        """The items that a round asks for."""
        return pd.read_parquet(self.folder.round(number) / "batch.parquet")["item_id"].tolist()

    def tasks(self, number: int) -> dict[str, int]:
        """The tasks that a round put out."""
        return read_json(self.folder.round(number) / "pushed.json")["tasks"]

    def known(self, number: int) -> dict[str, str]:
        """The labels that a round was trained or measured on."""
        tables = [pd.read_parquet(self.folder.round(number) / f"{name}.parquet") for name in ("labelled", "audit")]
        return pd.concat(tables).set_index("item_id")["label"].to_dict()


def truth(uri: str) -> str:
    """The class of an image."""
    return CLASSES[int(Path(uri).stem) % len(CLASSES)]
