"""What the command prints: text is text, whatever is in it."""

import logging
import sys
from collections.abc import Iterable
from io import TextIOWrapper

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from connectors.escaping import visible


class Terminal(Console):
    """A console that reads no markup and lets no text move the cursor; styles come as `rich.text.Text`.

    File names, class names and the errors of servers are printed in many places: here none of them can do harm.
    """

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Everything that is printed, by whatever way, comes through here."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)


class _VisibleRecord(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802 (logging's own name)
        return visible(super().getMessage())


def prepare_output() -> None:
    """Let no log line move the cursor either, and no sign that the terminal does not know be an error."""
    logging.setLogRecordFactory(_VisibleRecord)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
