"""`step`: a Prefect task whose result is a named artefact of the round folder."""

import functools
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from connectors.annotation import AnnotationToolUnavailable
from connectors.store import RoundFolder, read_json, write_json
from connectors.tracking import TrackerUnavailable

RETRIES = 1
RETRY_DELAY_SECONDS = 5


def is_worth_a_retry(_task: Any, _run: Any, state: Any) -> bool:
    """Whether a failed task met an outside system that did not answer; nothing else is tried again."""
    try:
        state.result()
    except (AnnotationToolUnavailable, TrackerUnavailable):
        return True
    except Exception:
        return False
    return False


def task_without_result(function: Callable[..., Any]) -> Any:
    """A Prefect task that keeps no result of its own, because the round folder does."""
    make_task = task(
        name=function.__name__.replace("_", "-"),
        tags=["labelcycle"],
        persist_result=False,
        cache_policy=NO_CACHE,
        retries=RETRIES,
        retry_delay_seconds=RETRY_DELAY_SECONDS,
        retry_condition_fn=is_worth_a_retry,
    )
    return make_task(function)


def timed_task(function: Callable[..., Any]) -> Any:
    """A task on a round folder, its first argument, that may run again and notes the time that it takes."""

    @functools.wraps(function)
    def run(folder: RoundFolder, *args: Any, **kwargs: Any) -> Any:
        started = perf_counter()
        result = function(folder, *args, **kwargs)
        add_seconds(folder, function.__name__, perf_counter() - started)
        return result

    return task_without_result(run)


def step(artefact: str) -> Callable[[Callable[..., None]], Any]:
    """Make a function that writes `artefact` into the round folder, its first argument, a task that runs once.

    `artefact` may name keyword arguments of the step, as in "part-{shard:05d}.parquet".
    Where the artefact exists the task returns at once; so a crash, a retry and "run again tomorrow" are one mechanism.
    """

    def decorate(function: Callable[..., None]) -> Any:
        @functools.wraps(function)
        def run_once(folder: RoundFolder, *args: Any, **kwargs: Any) -> Path:
            path = folder / artefact.format(**kwargs)
            if not path.exists():
                started = perf_counter()
                function(folder, *args, **kwargs)
                if not path.exists():
                    raise RuntimeError(f"step {function.__name__!r} ended without its artefact {path}")
                add_seconds(folder, function.__name__, perf_counter() - started)
            return path

        return task_without_result(run_once)

    return decorate


def add_seconds(folder: RoundFolder, name: str, seconds: float) -> None:
    """Add to the time that a step of this round has taken."""
    spent = seconds_of(folder)
    spent[name] = round(spent.get(name, 0.0) + seconds, 3)
    write_json(folder / "seconds.json", spent)


def seconds_of(folder: RoundFolder) -> dict[str, float]:
    """The time that each step of a round has taken so far."""
    path = folder / "seconds.json"
    return read_json(path) if path.exists() else {}
