"""A replay's folder: its settings, its data and the files of its runs, as the processes that work on it see them."""

from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from connectors.store import write_table
from flows.artefacts import Artefact, handle_of, json_of
from flows.folder import Folder
from flows.task_types import TASK
from pipeline.evaluation.arms import CONTROL, Arm
from pipeline.evaluation.splits import ReplaySplit, draw_split
from pipeline.learning.lesson import sample_pool
from pipeline.learning.networks import phase_of
from pipeline.learning.settings import MemberSettings, ModelSettings
from pipeline.pool.groups import group_codes
from pipeline.selection.settings import SelectionSettings
from pipeline.settings import Settings
from pipeline.tasks import TASKS
from pipeline.tasks.task_type import TaskType

ReplayRow = dict[str, object]
"""A round of a run: its measures, its seconds, and what it picked."""
FULL_DATA = "full data"
FEATURE_DROPOUT = 0.5
"""Where no network says how many of its features are dropped for the members of a linear head."""


class ReplaySettings(Settings):
    """One replay, resolved: what `replay.json` holds."""

    format: Literal[1] = 1
    task: str = TASK
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    query_size: int
    rounds: int
    start: int
    test_size: int
    classes: tuple[str, ...]
    model: str
    image_size: int | None
    channels: int | None
    l2: float
    network: ModelSettings | None
    members: MemberSettings
    sub_pool: int | None
    campaign_arm: SelectionSettings | None = None
    caveat: str | None = None
    data: str

    @property
    def task_type(self) -> TaskType:
        """What the models decide."""
        return TASKS[self.task]

    @property
    def is_linear(self) -> bool:
        """Whether models are linear heads on features that stay as they are, which know one decision an image."""
        return self.task_type.has_one_decision and (self.network is None or self.network.train == "head")

    @property
    def n_members(self) -> int:
        """K; a linear head has one, or one for each dropout of its features."""
        return max(1, self.members.mc_dropout) if self.is_linear else self.members.n_members

    def selection(self, arm: Arm) -> SelectionSettings:
        """How an arm asks: the campaign's own as the campaign does, but random stays the control."""
        own = self.campaign_arm
        if own is not None and arm.strategy != CONTROL and arm[1:] == (own.strategy, own.acquisition):
            return own
        return SelectionSettings(strategy=arm.strategy, acquisition=arm.acquisition, query_size=self.query_size)

    @property
    def dropout(self) -> float:
        """Probability of dropping a feature that a linear head reads, for the members."""
        return FEATURE_DROPOUT if self.network is None else self.network.dropout


class Job(NamedTuple):
    """One arm, or the model of all labels, at one seed."""

    name: str
    seed: int

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}"


def _read_table(path: Path) -> pd.DataFrame:
    return pd.read_parquet(path)


def _write_table(path: Path, table: pd.DataFrame) -> None:
    write_table(path, table)


REPLAY = json_of("replay.json", ReplaySettings, "The settings, with a digest of the data")
LABELS = Artefact("labels.parquet", "file, label, uri, is_test and group of each image", _read_table, _write_table)
CURVES = Artefact("curves.parquet", "The rounds of all runs", _read_table, _write_table)
SUMMARY = handle_of("summary.json", Path, "What came out")
REPORT = handle_of("report.html", Path, "What came out, as a page")
"""Of a replay; what a run writes lies in a folder of its own."""


class Replay(Folder):
    """A replay's folder, as the processes that work on it see it."""

    @cached_property
    def settings(self) -> ReplaySettings:
        """The resolved settings."""
        return self.read(REPLAY)

    @cached_property
    def labels(self) -> pd.DataFrame:
        """The labels of all images."""
        return self.read(LABELS)

    @cached_property
    def targets(self) -> Tensor:
        """What the labels are to a model, `(N, ...)`."""
        task, labels = self.settings.task_type, self.labels["label"]
        regions = {label: task.read_label(label) for label in labels.unique()}
        return task.targets([regions[label] for label in labels], self.settings.classes)

    @cached_property
    def groups(self) -> Tensor | None:
        """Numbers `(N,)` of the groups; None where every image is on its own."""
        return group_codes(self.labels["group"], self.labels["file"])

    @property
    def data_path(self) -> Path:
        """What models read."""
        return self.path / ("features.npy" if self.settings.is_linear else "images.npy")

    @cached_property
    def data(self) -> Tensor:
        """Features `(N, D)` or images `(N, channels, S, S)`, on the disk until read."""
        return torch.from_numpy(np.load(self.data_path, mmap_mode="c"))

    @property
    def trains_heads_first(self) -> bool:
        """Whether networks begin as heads on a frozen trunk, and may be trained further later."""
        how, n_classes = self.settings.network, len(self.settings.classes)
        if how is None or self.settings.is_linear:
            return False
        return phase_of(how, n_trained_on=self.settings.start, n_classes=n_classes) == "head"

    @property
    def trunk_features_path(self) -> Path:
        """What the frozen trunk makes of the images, where networks begin as heads on it."""
        return self.path / "trunk_features.npy"

    @cached_property
    def trunk_features(self) -> Tensor:
        """Float16 `(N, ...)`, on the disk until read."""
        return torch.from_numpy(np.load(self.trunk_features_path, mmap_mode="c"))

    def split(self, seed: int) -> ReplaySplit:
        """The images of one seed, the same for every arm."""
        settings = self.settings
        test = torch.from_numpy(np.flatnonzero(self.labels["is_test"]))
        return draw_split(
            self.settings.task_type.strata(self.targets),
            test_size=settings.test_size,
            start=settings.start,
            seed=seed,
            test=test if len(test) else None,
            groups=self.groups,
        )

    def pool_sample(self, seed: int) -> Tensor:
        """Images that networks without pretrained weights are standardised by, of those that may get a label."""
        split = self.split(seed)
        pool = torch.cat([split.start, split.rest])
        return self.data[pool[sample_pool(len(pool), seed=seed, round_number=0)]]

    def run_path(self, job: Job) -> Path:
        """The file of a run."""
        if job.name == FULL_DATA:
            return self.path / "runs" / f"full-data-{job.seed}.json"
        return self.path / "runs" / f"{job.name.replace(':', '+')}-{job.seed}.parquet"

    def jobs(self) -> list[Job]:
        """What is not done yet, seed by seed, so that a replay that is stopped has whole seeds to compare."""
        names = (FULL_DATA, *self.settings.arms)
        jobs = [Job(name, seed) for seed in self.settings.seeds for name in names]
        return [job for job in jobs if self.rounds_left(job)]

    def rounds_left(self, job: Job) -> int:
        """Models that the run still trains."""
        if job.name == FULL_DATA:
            return 0 if self.run_path(job).exists() else 1
        return max(0, self.settings.rounds + 1 - len(self._rounds_of(job)))

    def rounds_done(self, job: Job) -> list[ReplayRow]:
        """The rounds of a run that can be gone on from: a last one that picked nothing is made again."""
        rows = self._rounds_of(job)
        return [row for row in rows if row["picks"] is not None]

    def curves(self) -> pd.DataFrame:
        """The rounds of all runs, as `curves.parquet` has them."""
        jobs = [Job(name, seed) for name in self.settings.arms for seed in self.settings.seeds]
        rows = [
            {"strategy": job.name, "seed": job.seed, **row}
            for job in jobs
            for row in self._rounds_of(job)[: self.settings.rounds + 1]
        ]
        return pd.DataFrame(rows)

    def _rounds_of(self, job: Job) -> list[ReplayRow]:
        path = self.run_path(job)
        if not path.exists():
            return []
        table = pd.read_parquet(path)
        return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
