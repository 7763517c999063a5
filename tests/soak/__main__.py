"""Trials against real servers that take too long for a test: `python -m tests.soak --help`.

Each prints what it finds wrong, and then ends with code 1. A trial with chance in it prints its seed.
"""

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
TASKS = ("classification", "multi_label", "segmentation", "detection")
Home = Annotated[Path, typer.Option(help="Home of the servers and campaigns; servers stay up for the next trial.")]
HOME = Path(".labelcycle/soak")


@app.command()
def kills(
    task: Annotated[str, typer.Option(help=f"One of {', '.join(TASKS)}; all by default.")] = "",
    rounds: Annotated[int, typer.Option(help="Rounds of each campaign.")] = 30,
    seed: Annotated[int, typer.Option(help="Of moments, people and mistakes.")] = 0,
    servers: Annotated[bool, typer.Option(help="Kill servers, too, and start them again.")] = False,
    home: Home = HOME,
) -> None:
    """Kill runs at random moments while three people answer, correct and take back; nothing may be lost or doubled."""
    from tests.soak.trial import place_at

    found: list[str] = []
    with place_at(home.resolve()) as place:
        from tests.soak.kills import try_kills

        for one in [task] if task else TASKS:
            found += try_kills(place, one, n_rounds=rounds, seed=seed, kill_servers=servers)
    tell(found)


@app.command()
def growth() -> None:
    """."""


def tell(found: list[str]) -> None:
    """Print the findings; they are a failure."""
    for line in found:
        typer.echo(f"FINDING {line}")
    raise typer.Exit(bool(found))


if __name__ == "__main__":
    app()
