"""What came out of a replay: its curves, their summary, the page, and what is to be known of the images."""

from collections.abc import Mapping, Sequence

import pandas as pd
import torch
from torch import Tensor

from connectors.images.pixels import load_images
from connectors.images.reading import Reading
from connectors.objects.reading import Objects
from connectors.store import read_json, write_json, write_text
from flows.artefacts import PIXEL_RANGES
from flows.records import PixelRanges
from flows.replay.folder import CURVES, FULL_DATA, REPORT, SUMMARY, Job, Replay
from flows.replay.model import FEATURES
from flows.replay.runs import class_histogram
from flows.reports.replay_page import ReplaySummary, report_page
from pipeline.evaluation.summary import balance_of, summarise
from pipeline.pool.dependence import N_LEFT, N_RIGHT, THUMB_SIDE, Series, advice, find_series, near_copies
from pipeline.pool.group_rules import groups_of
from pipeline.randomness import seeded_generator
from pipeline.tasks.task_type import TaskType


def write_results(replay: Replay, *, command: str, notes: Sequence[str] = ()) -> ReplaySummary:
    """Write the curves, the summary and the page of a replay whose runs are done; return the summary.

    Args:
        command: for people who want to run it again.
        notes: what is to be known of the images, a line each.
    """
    settings = replay.settings
    curves = replay.curves()
    measured = {seed: read_json(replay.run_path(Job(FULL_DATA, seed))) for seed in settings.seeds}
    headline, *others = _metrics(settings.task_type, list(measured.values()))
    full = {seed: float(values[headline]) for seed, values in measured.items()}
    data = class_histogram(settings, replay.targets)
    summary: ReplaySummary = {
        **summarise(curves, full, [headline, *others]),
        "command": command,
        "notes": list(notes),
        "class_balance": balance_of(curves, data, settings.classes),
        "settings": settings.model_dump(mode="json", exclude={"format"}),
    }
    if settings.caveat is not None:
        summary["verdict"] += f" {settings.caveat}"
    replay.write(CURVES, curves)
    write_json(replay.path_of(SUMMARY), summary)
    write_text(replay.path_of(REPORT), report_page(summary))
    return summary


def _metrics(task: TaskType, measured: Sequence[Mapping[str, object]]) -> list[str]:
    """The names of what the models of all seeds were measured by, the headline first."""
    names = dict.fromkeys(name for each in measured for name in each if all(name in other for other in measured))
    return [task.headline, *(name for name in names if name not in (task.headline, "n_trained_on"))]


def dependence_of(replay: Replay, *, memory_gb: float) -> list[str]:
    """Lines on images that seem to depend on each other, by name and thumbnail, where nobody has grouped them."""
    if replay.labels["group"].notna().any():
        return []
    near = None if replay.settings.model == FEATURES else _near_copies(replay, memory_gb)
    return advice(_series_in(replay), near, measured_on="the test part")


def _series_in(replay: Replay) -> Series | None:
    """Series of images by their names; None where a name is that of a class, and not of a film."""
    labels = replay.labels
    series = find_series(labels["file"].tolist(), classes=replay.settings.classes)
    if series is None:
        return None
    pairs = pd.DataFrame({"group": groups_of(labels["file"].tolist(), series.rule), "label": labels["label"]})
    pairs = pairs.dropna().drop_duplicates()
    return None if pairs["group"].is_unique and pairs["label"].is_unique else series


def _near_copies(replay: Replay, memory_gb: float) -> Tensor:
    """Which of the test images that are looked at have a near-copy outside of the test part, `(n,)`."""
    settings, labels = replay.settings, replay.labels
    split = replay.split(settings.seeds[0])
    generator = seeded_generator(settings.seeds[0], 0, "near-copies")
    reading = Reading((replay.get(PIXEL_RANGES) or PixelRanges()).ranges, memory_gb, Objects())

    def thumbs(side: Tensor, most: int) -> Tensor:
        drawn = side[torch.randperm(len(side), generator=generator)[:most]].numpy()
        return load_images(labels["uri"].iloc[drawn].tolist(), size=THUMB_SIDE, channels=1, reading=reading)

    test = thumbs(split.test, N_LEFT)
    return near_copies(test, thumbs(torch.cat([split.start, split.rest]), N_RIGHT))
