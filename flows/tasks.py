"""Steps as tasks of Prefect: named, logged, and tried again where an outside system did not answer."""

from collections.abc import Callable
from typing import TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State

from connectors.annotation import AnnotationToolUnavailable
from connectors.tracking import TrackerUnavailable

T = TypeVar("T")
RETRIES = 1
RETRY_DELAY_SECONDS = 5


def as_task(name: str, run: Callable[[], T]) -> T:
    """Run something as a task; it keeps no result of its own, because the round's folder does."""
    make = task(
        name=name.replace("_", "-"),
        tags=["labelcycle"],
        persist_result=False,
        cache_policy=NO_CACHE,
        retries=RETRIES,
        retry_delay_seconds=RETRY_DELAY_SECONDS,
        retry_condition_fn=is_worth_a_retry,
    )
    return make(run)()


def is_worth_a_retry(_task: object, _run: object, state: State[object]) -> bool:
    """Whether a failed task met an outside system that did not answer; nothing else is tried again."""
    try:
        state.result()
    except (AnnotationToolUnavailable, TrackerUnavailable):
        return True
    except Exception:
        return False
    return False
