"""Progress bars for long work, silent where nobody looks, and lines for people."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def progress_bars(unit: str) -> Progress:
    """Bars that count in `unit`, for as long as the context lasts; silent where nobody looks."""
    columns = (
        TextColumn("  {task.description:<28}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def progress_bar(what: str, *, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far a long work is; call the given function with (done, total)."""
    with progress_bars(unit) as bars:
        bar = bars.add_task(what, total=None)
        yield lambda done, total: bars.update(bar, completed=done, total=total)


def say(line: str) -> None:
    """Print a line for people, beside what the command prints for programs."""
    Console(stderr=True).print(escape(line), soft_wrap=True, highlight=False)
