"""Campaigns in memory whose people mark parts of images and make no mistakes."""

from collections.abc import Sequence
from pathlib import Path

from numpy.typing import NDArray
from PIL import Image

from connectors.memory import MemoryTool, MemoryTracker
from flows.campaign import open_campaign
from flows.round import work_on
from pipeline.types import AskFor, Region

FILE = """\
name = "{task}"
task = "{task}"
pool = "{pool}"
classes = [{classes}]
folder = "campaign"
budget = 60
audit_size = 16
seed_set_size = 12
query_size = 8

[model]
name = "small_cnn"
image_size = {size}
channels = 1
augmentation = "none"
max_epochs = {max_epochs}

[members]
ensemble = 2
"""


def write_images(folder: Path, images: Sequence[NDArray]) -> None:
    """Grey images `(h, w)` named by their numbers."""
    folder.mkdir()
    for number, pixels in enumerate(images):
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")


class RegionCampaign:
    """A campaign of grey images in a folder, and what people find in each of them."""

    def __init__(
        self,
        folder: Path,
        task: str,
        asks: AskFor,
        classes: Sequence[str],
        images: Sequence[NDArray],
        found: Sequence[tuple[Region, ...]],
        *,
        max_epochs: int,
    ) -> None:
        write_images(folder / "images", images)
        self.file = folder / "campaign.toml"
        quoted = ", ".join(f'"{name}"' for name in classes)
        size = images[0].shape[0]
        told = FILE.format(task=task, pool=folder / "images", classes=quoted, size=size, max_epochs=max_epochs)
        self.file.write_text(told)
        self._found = found
        self.tool, self.tracker = MemoryTool(tuple(classes), asks=asks), MemoryTracker()

    def found(self, uri: str) -> tuple[Region, ...]:
        """What people mark in an image."""
        return self._found[int(Path(uri).stem)]

    def after(self, n_rounds: int) -> "RegionCampaign":
        """The campaign when these rounds have asked and people have answered."""
        for number in range(n_rounds):
            work = open_campaign(self.file, tool=self.tool, tracker=self.tracker)
            with work.folder.lock():
                assert f"round {number} asks for" in work_on(work).message
            self.folder = work.folder
            for question in self.tool.served():
                self.tool.answer(question.ask, *self.found(question.uri), annotator="ann")
        return self
