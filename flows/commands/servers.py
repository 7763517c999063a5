"""Commands about the servers of this machine."""

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from flows.commands.screen import console
from flows.home import home, settle_home
from flows.local import print_addresses


def up(
    campaign: Annotated[
        Path | None, typer.Argument(help="A campaign whose file is checked first; the servers are the same for all.")
    ] = None,
) -> None:
    """Start Label Studio, MLflow and Prefect on this machine, on SQLite, for nobody else."""
    if campaign is not None:
        from flows.config import load_settings

        load_settings(campaign)
    from deploy import servers

    with console.status("starting the local servers") as status:
        started = servers.up(settle_home(campaign), say=lambda line: status.update(Text(line)))
    print_addresses(started, console)


def down() -> None:
    """Stop what `labelcycle up` or the demo started, by process id."""
    from deploy import servers

    stopped = servers.down(home())
    if stopped:
        console.print(f"Stopped {', '.join(stopped)}.")
    else:
        console.print(f"Nothing of ours is running in {home()}.", soft_wrap=True, highlight=False)
