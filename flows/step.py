"""`step`: a function of artefacts that runs once in a round; its parameters name what it reads, its result is written.

The function itself knows no folder, no Prefect and no server. Inside a flow run a step is a task of Prefect; anywhere
else it is a plain call.
"""

import inspect
import logging
import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from importlib import import_module
from time import perf_counter
from typing import Any, Generic, TypeVar, cast, get_args, get_type_hints

from flows.artefacts import ROUND_ARTEFACTS, SECONDS, AnyArtefact
from flows.folder import RoundFolder

T = TypeVar("T")
Give = Callable[[str], object]
"""What a parameter gets that is no artefact of the round: a setting, an outside system, the pool."""


class Step(Generic[T]):
    """A function and what it writes.

    Attributes:
        function: callable with artefacts, without folder, Prefect or server.
        writes: in this order; where all of them exist the step is done. A step that writes nothing always runs.
        is_anew: whether it runs in each run, done or not, and writes over what it wrote.
        computes: whether networks work in it, so that it is for a worker where there are some.
    """

    def __init__(
        self, function: Callable[..., T], writes: tuple[AnyArtefact, ...], *, is_anew: bool, computes: bool
    ) -> None:
        self.function, self.writes, self.is_anew, self.computes = function, writes, is_anew, computes
        self.name = function.__name__

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        """A step is sent to another process as its place, as a function is."""
        return _step_at, (self.function.__module__, self.name)

    @cached_property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        """What the function takes."""
        return inspect.signature(self.function).parameters

    @cached_property
    def optional(self) -> frozenset[str]:
        """Parameters that may be None: artefacts that need not be there."""
        return frozenset(name for name, kind in get_type_hints(self.function).items() if type(None) in get_args(kind))

    @property
    def reads(self) -> list[str]:
        """Names of the round's artefacts that the function takes."""
        return [name for name in self.parameters if name in ROUND_ARTEFACTS]

    def is_done(self, folder: RoundFolder) -> bool:
        """Whether all that it writes is there."""
        return bool(self.writes) and not self.is_anew and all(map(folder.has, self.writes))

    def run(self, folder: RoundFolder, give: Give, more: Mapping[str, object]) -> T:
        """Run the function unless it is done; return what is written."""
        if self.is_done(folder):
            read = tuple(folder.read(artefact) for artefact in self.writes)
            return cast("T", read if len(read) > 1 else read[0])
        begun = perf_counter()
        result = self.call(folder, give, more)
        values = result if len(self.writes) > 1 else (result,)
        for artefact, value in zip(self.writes, cast("tuple[object, ...]", values), strict=False):
            folder.write(artefact, value)
        add_seconds(folder, self.name, perf_counter() - begun)
        return result

    def call(self, folder: RoundFolder, give: Give, more: Mapping[str, object]) -> T:
        """Call the function with what its parameters name; nothing is written."""
        return self.function(**{name: self._argument(name, folder, give, more) for name in self.parameters})

    def _argument(self, name: str, folder: RoundFolder, give: Give, more: Mapping[str, object]) -> object:
        if name in more:
            return more[name]
        artefact = ROUND_ARTEFACTS.get(name)
        if artefact is None:
            return give(name)
        if artefact.is_handle or folder.has(artefact):
            return folder.read(artefact)
        if name in self.optional:
            return None
        raise RuntimeError(f"step {self.name!r} reads {artefact.name}, which no step has written in {folder.path}")


def _step_at(module: str, name: str) -> Step[Any]:
    found = getattr(import_module(module), name)
    if not isinstance(found, Step):
        raise TypeError(f"{module}.{name} is no step")
    return found


def step(*writes: AnyArtefact, anew: bool = False, computes: bool = False) -> Callable[[Callable[..., T]], Step[T]]:
    """Make a function a step. Its result is written as the artefact; of several artefacts it returns a tuple."""
    return lambda function: Step(function, writes, is_anew=anew, computes=computes)


def in_task(name: str, run: Callable[[], T]) -> T:
    """Do something: as a task of Prefect inside a flow run, else here and now."""
    if not is_in_flow():
        return run()
    from flows.tasks import as_task

    return as_task(name, run)


def is_in_flow() -> bool:
    """Whether this is a flow run of Prefect."""
    context = sys.modules.get("prefect.context")
    return context is not None and context.FlowRunContext.get() is not None


def log() -> logging.Logger | logging.LoggerAdapter[logging.Logger]:
    """The log of the run: Prefect keeps that of a flow run."""
    if not is_in_flow():
        return logging.getLogger("labelcycle")
    from prefect.logging import get_run_logger

    return get_run_logger()


def add_seconds(folder: RoundFolder, name: str, seconds: float) -> None:
    """Add to the time that a step of this round has taken."""
    spent = folder.get(SECONDS) or {}
    folder.write(SECONDS, spent | {name: round(spent.get(name, 0.0) + seconds, 3)})
