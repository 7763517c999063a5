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
budget = {budget}
audit_size = 16
seed_set_size = 12
query_size = 8
{more}

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
        budget: int = 60,
        more: str = "",
    ) -> None:
        write_images(folder / "images", images)
        self.file = folder / "campaign.toml"
        quoted = ", ".join(f'"{name}"' for name in classes)
        size = images[0].shape[0]
        given = {"task": task, "pool": folder / "images", "classes": quoted, "budget": budget, "more": more}
        self.file.write_text(FILE.format(**given, size=size, max_epochs=max_epochs))
        self._found = found
        self.tool, self.tracker = MemoryTool(tuple(classes), asks=asks), MemoryTracker()

    def found(self, uri: str) -> tuple[Region, ...]:
        """What people mark in an image."""
        return self._found[int(Path(uri).stem)]

    def after(self, n_rounds: int) -> "RegionCampaign":
        """The campaign when these rounds have asked and people have answered."""
        for number in range(n_rounds):
            assert f"round {number} asks for" in self.run()
            self.answer()
        return self

    def answer(self) -> None:
        """Let people mark all that they are asked for."""
        for question in self.tool.served():
            self.tool.answer(question.ask, *self.found(question.uri), annotator="ann")

    def run(self) -> str:
        """What a run says."""
        work = open_campaign(self.file, tool=self.tool, tracker=self.tracker)
        self.folder = work.folder
        with work.folder.lock():
            return work_on(work).message
