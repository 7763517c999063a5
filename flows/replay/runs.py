"""The runs of a replay: one arm at one seed, round by round, as many at a time as there are cores.

A run is one file that grows by a row with each round, so one that was killed goes on where it stood.
"""

import copy
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property, partial
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from connectors.store import read_json, write_json, write_table
from flows.networks import (
    N_SAMPLED,
    TASK,
    Lesson,
    add_out_of_fold,
    frozen_body,
    phase_of,
    predict_images,
    share_frozen_trunk,
    train_network,
    weight_draws,
)
from flows.progress import progress_bars
from pipeline.evaluation.curves import CONTROL, SECONDS, Arm, Split, draw_split, linear_head, parse_arm
from pipeline.evaluation.metrics import evaluate
from pipeline.learning.settings import MemberSettings, ModelSettings
from pipeline.members.predict import predict_from_features
from pipeline.networks.classifier import Classifier
from pipeline.pool.groups import group_codes
from pipeline.randomness import derive_seed, seeded_generator
from pipeline.selection.ask import candidates_of, reads_model
from pipeline.selection.batch import select_batch
from pipeline.selection.settings import SelectionSettings
from pipeline.settings import Settings
from pipeline.training.fit import TrainingError
from pipeline.types import Candidates

FULL_DATA = "full data"
CHUNK = 256
"""Images that are read, or passed through the members, at a time."""
FEATURE_DROPOUT = 0.5
"""Where no network says how many of its features are dropped for the members of a linear head."""
SECONDS_BETWEEN_LOOKS = 0.2
"""How often the processes' progress is shown."""

Report = Callable[[str], None]
Learnt = Callable[[Tensor], tuple[Tensor, Tensor]]
"""What was learnt: positions `(n,)` to probabilities `(n, K, C)` and embeddings `(n, D)`."""


class ReplaySettings(Settings):
    """One replay, resolved: what `replay.json` holds."""

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
    recipe: int | None = None
    data: str

    @property
    def is_linear(self) -> bool:
        """Whether models are linear heads on features that stay as they are."""
        return self.network is None or self.network.train == "head"

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


@dataclass(frozen=True)
class Replay:
    """A replay's folder, as the processes that work on it see it."""

    folder: Path

    @cached_property
    def settings(self) -> ReplaySettings:
        """The resolved settings."""
        return ReplaySettings.model_validate(read_json(self.folder / "replay.json"))

    @cached_property
    def labels(self) -> pd.DataFrame:
        """file, label, uri, is_test, group."""
        return pd.read_parquet(self.folder / "labels.parquet")

    @cached_property
    def targets(self) -> Tensor:
        """Class indices `(N,)`."""
        codes = pd.Categorical(self.labels["label"], categories=list(self.settings.classes)).codes
        return torch.from_numpy(codes.astype(np.int64))

    @cached_property
    def groups(self) -> Tensor | None:
        """Numbers `(N,)` of the groups; None where every image is on its own."""
        return group_codes(self.labels["group"], self.labels["file"])

    @property
    def data_path(self) -> Path:
        """What models read."""
        return self.folder / ("features.npy" if self.settings.is_linear else "images.npy")

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
        return phase_of(how, n_labels=self.settings.start, n_classes=n_classes) == "head"

    @property
    def trunk_features_path(self) -> Path:
        """What the frozen trunk makes of the images, where networks begin as heads on it."""
        return self.folder / "trunk_features.npy"

    @cached_property
    def trunk_features(self) -> Tensor:
        """Float16 `(N, ...)`, on the disk until read."""
        return torch.from_numpy(np.load(self.trunk_features_path, mmap_mode="c"))

    def split(self, seed: int) -> Split:
        """The images of one seed, the same for every arm."""
        settings = self.settings
        test = torch.from_numpy(np.flatnonzero(self.labels["is_test"]))
        return draw_split(
            self.targets,
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
        drawn = torch.randperm(len(pool), generator=seeded_generator(seed, 0, "pool sample"))[:N_SAMPLED]
        return self.data[pool[drawn]]

    def path(self, job: Job) -> Path:
        """The file of a run."""
        if job.name == FULL_DATA:
            return self.folder / "runs" / f"full-data-{job.seed}.json"
        return self.folder / "runs" / f"{job.name.replace(':', '+')}-{job.seed}.parquet"

    def jobs(self) -> list[Job]:
        """What is not done yet, seed by seed, so that a replay that is stopped has whole seeds to compare."""
        names = (FULL_DATA, *self.settings.arms)
        jobs = [Job(name, seed) for seed in self.settings.seeds for name in names]
        return [job for job in jobs if self.rounds_left(job)]

    def rounds_left(self, job: Job) -> int:
        """Models that the run still trains."""
        if job.name == FULL_DATA:
            return 0 if self.path(job).exists() else 1
        return max(0, self.settings.rounds + 1 - len(self._rounds_of(job)))

    def rounds_done(self, job: Job) -> list[dict[str, Any]]:
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

    def _rounds_of(self, job: Job) -> list[dict[str, Any]]:
        path = self.path(job)
        if not path.exists():
            return []
        table = pd.read_parquet(path)
        return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def run(replay: Replay, job: Job, report: Report) -> None:
    """Do what is left of a job, calling `report` with its name after each model."""
    if job.name == FULL_DATA:
        _run_full_data(replay, job.seed)
        report(job.name)
        return
    settings = replay.settings
    how = settings.selection(parse_arm(job.name))
    split, rows = replay.split(job.seed), replay.rounds_done(job)
    picked = [torch.as_tensor(np.array(row["picks"], dtype=np.int64)) for row in rows]
    labelled = torch.cat([split.start, *picked])
    for round_number in range(len(rows), settings.rounds + 1):
        begun = time.perf_counter()
        learnt, measured = _learn(replay, labelled, split.test, seed=job.seed, round_number=round_number)
        row = {
            "round": round_number,
            "n_labels": len(labelled),
            **measured,
            "seconds_select": None,
            "seconds_train": time.perf_counter() - begun,
            "seconds_score": None,
            "class_histogram": replay.targets[labelled].bincount(minlength=len(settings.classes)).tolist(),
            "picks": None,
        }
        if round_number < settings.rounds:
            rest = _candidate_rows(settings, split.rest, labelled, seed=job.seed, round_number=round_number)
            begun = time.perf_counter()
            candidates = _candidates(replay, how, learnt, labelled, rest)
            scored = time.perf_counter()
            batch = select_batch(candidates, how, round_number=round_number, seed=job.seed)
            picks = torch.tensor([int(item_id) for item_id in batch.ids])
            row |= {
                "seconds_score": scored - begun,
                "seconds_select": time.perf_counter() - scored,
                "picks": picks.tolist(),
            }
            labelled = torch.cat([labelled, picks])
        rows.append(row)
        write_table(replay.path(job), _typed(rows))
        report(job.name)


def _run_full_data(replay: Replay, seed: int) -> None:
    split = replay.split(seed)
    everything = torch.cat([split.start, split.rest])
    _, measured = _learn(replay, everything, split.test, seed=seed, round_number=0)
    write_json(replay.path(Job(FULL_DATA, seed)), {"n_labels": len(everything), **measured})


def _learn(
    replay: Replay, labelled: Tensor, test: Tensor, *, seed: int, round_number: int
) -> tuple[Learnt, dict[str, float]]:
    """What is learnt from the labelled positions, and how good it is on the test positions."""
    settings, targets = replay.settings, replay.targets
    masks = derive_seed(seed, round_number, "mc_dropout")
    if settings.is_linear:
        head = linear_head(replay.data[labelled], targets[labelled], n_classes=len(settings.classes), l2=settings.l2)
        kept = _feature_masks(settings, replay.data.shape[1], masks)
        learnt: Learnt = partial(_predict_linear, replay.data, *head, kept)
        probs = _predict_linear(replay.data, *head, None, test)[0][:, 0]
    else:
        models = _train_networks(replay, labelled, seed=seed, round_number=round_number)
        learnt = partial(_predict_network, replay, models, settings.members, masks)
        probs = _predict_network(replay, models, None, masks, test)[0].mean(dim=1)
    metrics = evaluate(probs, targets[test], classes=settings.classes)
    return learnt, {
        "accuracy": metrics.accuracy,
        "nll": metrics.nll,
        "ece": metrics.ece,
        "balanced_accuracy": metrics.balanced_accuracy,
    }


def _feature_masks(settings: ReplaySettings, n_features: int, seed: int) -> Tensor | None:
    """What each member's features are multiplied with, `(K, D)`, the same for all images; None without dropout."""
    if not settings.members.mc_dropout:
        return None
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(settings.members.mc_dropout, n_features, generator=generator)
    return (drawn >= settings.dropout).float() / (1 - settings.dropout)


def _predict_linear(
    features: Tensor, weights: Tensor, biases: Tensor, masks: Tensor | None, rows: Tensor
) -> tuple[Tensor, Tensor]:
    embeddings = features[rows]
    heads = weights.float().unsqueeze(0) if masks is None else masks.unsqueeze(1) * weights.float()
    logits = torch.einsum("nd,kcd->nkc", embeddings, heads) + biases.float()
    return logits.softmax(dim=-1), embeddings


def _predict_network(
    replay: Replay, models: Sequence[Classifier], members: MemberSettings | None, seed: int, rows: Tensor
) -> tuple[Tensor, Tensor]:
    how = replay.settings.network
    if how is None:
        raise ValueError("a replay of ready features has no network")
    if share_frozen_trunk(models) and not (members and members.views):
        drawn = {} if members is None else {"mc_dropout": members.mc_dropout, "laplace": members.laplace}
        features = replay.trunk_features[rows]
        decisions, embeddings = predict_from_features(models, features, task=TASK, seed=seed, **drawn)
        return decisions[:, 0], embeddings
    images = (replay.data[part] for part in rows.split(CHUNK))
    parts = list(predict_images(models, images, how, members, seed=seed))
    return torch.cat([decisions[:, 0] for decisions, _ in parts]), torch.cat([embedded for _, embedded in parts])


def _train_networks(replay: Replay, labelled: Tensor, *, seed: int, round_number: int) -> list[Classifier]:
    """The networks of one round; heads share the trunk that they do not train."""
    how, members, n_classes = replay.settings.network, replay.settings.members, len(replay.settings.classes)
    if how is None:
        raise ValueError("a replay of ready features has no network to train")
    phase = phase_of(how, n_labels=len(labelled), n_classes=n_classes)
    body = frozen_body(how, n_classes=n_classes) if phase == "head" else None
    sample = None if how.is_pretrained else replay.pool_sample(seed)
    inputs = (replay.data if body is None else replay.trunk_features)[labelled]
    groups = None if replay.groups is None else replay.groups[labelled].unique(return_inverse=True)[1]
    lesson = Lesson(phase, inputs, replay.targets[labelled], body, pool_sample=sample, groups=groups)
    fold_seed = derive_seed(seed, round_number, "out-of-fold")
    lesson = add_out_of_fold(lesson, how, n_classes=n_classes, seed=fold_seed, bagging=members.bagging)
    models = []
    for index in range(members.ensemble):
        member_seed = derive_seed(seed, round_number, f"member-{index}")
        trained = train_network(how, members, lesson, n_classes=n_classes, seed=member_seed)
        draws = weight_draws(trained, how, members, lesson, seed=member_seed)
        shared = {} if lesson.body is None else {id(lesson.body.trunk): lesson.body.trunk}
        models += [copy.deepcopy(model, dict(shared)) for model in draws] if members.swag else [trained.model]
    return models


def _candidate_rows(
    settings: ReplaySettings, rest: Tensor, labelled: Tensor, *, seed: int, round_number: int
) -> Tensor:
    """What may be asked for, or the sub-pool of it, which all arms draw in the same order."""
    if settings.sub_pool is not None:
        rest = rest[torch.randperm(len(rest), generator=seeded_generator(seed, round_number, "sub-pool"))]
    rest = rest[~torch.isin(rest, labelled)]
    return rest if settings.sub_pool is None else rest[: max(settings.sub_pool, settings.query_size)].sort().values


def _candidates(replay: Replay, how: SelectionSettings, learnt: Learnt, labelled: Tensor, rest: Tensor) -> Candidates:
    """The candidates with those columns that the strategy reads; their ids are their rows."""
    ids = np.array([f"{row:09d}" for row in rest.tolist()], dtype=np.str_)
    if not reads_model(how):
        return Candidates(ids=ids, scores=torch.zeros(len(ids)))

    def decided(rows: Tensor) -> tuple[Tensor, Tensor]:
        probs, embeddings = learnt(rows)
        return probs.unsqueeze(1), embeddings

    return candidates_of(ids, decided(rest), lambda: decided(labelled), replay.targets[labelled], how)


def _typed(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows).astype(dict.fromkeys(SECONDS, "float64"))


# Processes: as many runs at a time as there are cores.


def run_jobs(replay: Replay, *, workers: int) -> None:
    """Do all jobs that are not done, in processes of their own where more than one is wanted."""
    jobs = replay.jobs()
    workers = min(workers, len(jobs))
    with _progress(replay) as report:
        if workers > 1:
            _run_in_processes(replay, jobs, workers, report)
        else:
            for job in jobs:
                run(replay, job, report)


def _run_in_processes(replay: Replay, jobs: Sequence[Job], workers: int, report: Report) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["flows.replay.runs", "sklearn.linear_model"])  # loaded once for all workers
    done: SimpleQueue[str] = context.SimpleQueue()
    threads = max(1, (os.cpu_count() or 1) // workers)
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker, initargs=(threads, done))
    try:
        running: set[Future[None]] = {executor.submit(_work, replay.folder, job) for job in jobs}
        while running:
            finished, running = wait(running, timeout=SECONDS_BETWEEN_LOOKS, return_when=FIRST_EXCEPTION)
            while not done.empty():
                report(done.get())
            for future in finished:
                future.result()
    except BrokenProcessPool as exc:
        raise TrainingError(
            "a process of the replay was ended from outside, perhaps for lack of memory: try fewer --workers; the same "
            "command goes on where this one stopped"
        ) from exc
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    executor.shutdown()


_queue: "SimpleQueue[str] | None" = None


def _begin_worker(threads: int, done: "SimpleQueue[str]") -> None:
    """Set up a worker: its share of the cores, and its end with that of the process that began it."""
    from threadpoolctl import threadpool_limits

    global _queue
    _queue = done
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    threadpool_limits(threads)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@cache
def _opened(folder: Path) -> Replay:
    return Replay(folder)


def _work(folder: Path, job: Job) -> None:
    run(_opened(folder), job, lambda name: _queue.put(name) if _queue is not None else None)


@contextmanager
def _progress(replay: Replay) -> Iterator[Report]:
    """A bar for each arm; call what comes with an arm's name after each of its models."""
    settings = replay.settings
    with progress_bars("models") as bars:
        bar_of = {}
        for name in (FULL_DATA, *settings.arms):
            total = len(settings.seeds) * (1 if name == FULL_DATA else settings.rounds + 1)
            left = sum(replay.rounds_left(Job(name, seed)) for seed in settings.seeds)
            bar_of[name] = bars.add_task(name, total=total, completed=total - left)
        yield lambda name: bars.advance(bar_of[name])
