"""How far long work is: bars in a terminal, a line now and then elsewhere; and lines for people."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flows.terminal import Terminal
from pipeline.types import OnProgress

SECONDS_TO_FIRST_LINE = 10.0
SECONDS_BETWEEN_LINES = 60.0


class Lines(Progress):
    """Progress in lines on standard error, for pipes and log files: the first after a while, then one each minute."""

    def __init__(self, unit: str) -> None:
        super().__init__(disable=True)
        self._unit = unit
        self._begun = monotonic()
        self._next = self._begun + SECONDS_TO_FIRST_LINE

    def update(self, task_id: TaskID, **how: Any) -> None:
        """Note how far a work is, and print a line if it is time."""
        super().update(task_id, **how)
        self._say(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Note that a work went on, and print a line if it is time."""
        super().advance(task_id, advance)
        self._say(task_id)

    def _say(self, task_id: TaskID) -> None:
        now = monotonic()
        if now < self._next:
            return
        self._next = now + SECONDS_BETWEEN_LINES
        task, spent = self._tasks[task_id], (now - self._begun) / 60
        told = f"{task.description}: {task.completed:g}"
        if task.total:
            told += f" of {task.total:g}"
        told += f" {self._unit} in {spent:.1f} min"
        if task.total and 0 < task.completed < task.total:
            told += f", about {spent * (task.total - task.completed) / task.completed:.1f} min left"
        say(told)


def say(line: str) -> None:
    """Print one line for people, on standard error."""
    Terminal(stderr=True).print(line, highlight=False, soft_wrap=True)


def progress_bars(unit: str) -> Progress:
    """Bars that count in `unit`, for as long as the context lasts; lines where there is no terminal."""
    columns = (
        TextColumn("  {task.description:<28}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn(unit, markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Terminal(stderr=True)
    return Progress(*columns, console=console, transient=True) if console.is_terminal else Lines(unit)


@contextmanager
def progress_bar(what: str, *, unit: str) -> Iterator[OnProgress]:
    """Show how far a long work is; call the given function with (done, total)."""
    with progress_bars(unit) as bars:
        bar = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)
