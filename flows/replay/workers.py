"""The runs of a replay in processes: as many at a time as there are cores."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch

from flows.batch_sizes import keep_batch_sizes
from flows.progress import progress_bars
from flows.replay.folder import FULL_DATA, Job, Replay
from flows.replay.runs import OnModel, run
from flows.workers.settings import WorkerSettings
from flows.workers.together import end_with_parent
from pipeline.training.fit import TrainingError

SECONDS_BETWEEN_LOOKS = 0.2
"""How often the processes' progress is shown."""


def run_jobs(replay: Replay, *, workers: int, elsewhere: WorkerSettings | None = None) -> None:
    """Do all jobs that are not done, in processes of their own where more than one is wanted.

    Args:
        elsewhere: of a campaign, whose workers of Ray do the jobs if it has them.
    """
    keep_batch_sizes()
    jobs = replay.jobs()
    workers = min(workers, len(jobs))
    with _progress(replay) as on_model:
        if elsewhere is not None and elsewhere.workers == "ray":
            _run_on_ray(replay, jobs, elsewhere, on_model)
        elif workers > 1:
            _run_in_processes(replay, jobs, workers, on_model)
        else:
            for job in jobs:
                run(replay, job, on_model)


def _run_on_ray(replay: Replay, jobs: Sequence[Job], settings: WorkerSettings, on_model: OnModel) -> None:
    from flows.workers.cluster import joined
    from flows.workers.ray import Spread

    settings = settings.model_copy(update={"gpus_per_network": 1})  # a run trains in one process
    folder, n_models = replay.path.absolute(), {job: replay.rounds_left(job) for job in jobs}

    def count(job: Job) -> None:
        for _ in range(n_models[job]):
            on_model(job.name)

    with joined(settings, folder):
        Spread(settings, folder, _work).do(jobs, count)


def _run_in_processes(replay: Replay, jobs: Sequence[Job], workers: int, on_model: OnModel) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["flows.replay.workers", "sklearn.linear_model"])  # loaded once for all workers
    done: SimpleQueue[str] = context.SimpleQueue()
    threads = max(1, (os.cpu_count() or 1) // workers)
    executor = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker, initargs=(threads, done))
    try:
        running: set[Future[None]] = {executor.submit(_work, replay.path, job) for job in jobs}
        while running:
            finished, running = wait(running, timeout=SECONDS_BETWEEN_LOOKS, return_when=FIRST_EXCEPTION)
            while not done.empty():
                on_model(done.get())
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
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    threadpool_limits(threads)


@cache
def _opened(folder: Path) -> Replay:
    return Replay(folder)


def _work(folder: Path, job: Job) -> None:
    keep_batch_sizes()
    run(_opened(folder), job, lambda name: _queue.put(name) if _queue is not None else None)


@contextmanager
def _progress(replay: Replay) -> Iterator[OnModel]:
    """A bar for each arm; call what comes with an arm's name after each of its models."""
    settings = replay.settings
    with progress_bars("models") as bars:
        bar_of = {}
        for name in (FULL_DATA, *settings.arms):
            total = len(settings.seeds) * (1 if name == FULL_DATA else settings.rounds + 1)
            left = sum(replay.rounds_left(Job(name, seed)) for seed in settings.seeds)
            bar_of[name] = bars.add_task(name, total=total, completed=total - left)
        yield lambda name: bars.advance(bar_of[name])
