"""Progress bars for long work, silent where nobody looks, and lines for people."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flows.terminal import Terminal


def say(line: str) -> None:
    """Tell in one line what is waited for."""
    Terminal(stderr=True).print(line, highlight=False, soft_wrap=True)


def progress_bars(unit: str) -> Progress:
    """Bars that count in `unit`, for as long as the context lasts; silent where nobody looks."""
    columns = (
        TextColumn("  {task.description:<28}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn(unit, markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Terminal(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def progress_bar(what: str, *, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far a long work is; call the given function with (done, total)."""
    with progress_bars(unit) as bars:
        bar = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)
