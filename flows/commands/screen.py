"""What all commands print on, and the argument that most of them take."""

from pathlib import Path
from typing import Annotated

import typer

from flows.terminal import Terminal

console = Terminal()
errors = Terminal(stderr=True)

CampaignFile = Annotated[Path, typer.Argument(help="The campaign's TOML file; `labelcycle init` writes one.")]


def print_lines(lines: list[str]) -> None:
    """Print sentences, a line each."""
    for line in lines:
        console.print(f"{line[0].upper()}{line[1:]}.", soft_wrap=True, highlight=False)
