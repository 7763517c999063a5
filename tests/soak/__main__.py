"""Trials against real servers that take too long for a test: `python -m tests.soak --help`.

Each prints what it finds wrong, and then ends with code 1. A trial with chance in it prints its seed.
"""

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
TASKS = ("classification", "multi_label", "segmentation", "detection")
Home = Annotated[Path, typer.Option(help="Home of the servers and campaigns; servers stay up for the next trial.")]
Rounds = Annotated[int, typer.Option(help="Rounds of each campaign.")]
Seed = Annotated[int, typer.Option(help="Of moments, people and mistakes.")]
Pool = Annotated[
    Literal["disk", "s3"], typer.Option(help="Where the images are; s3 is a bucket of a server of its own.")
]
Workers = Annotated[Literal["local", "ray"], typer.Option(help="Who trains and scores.")]
HOME = Path(".labelcycle/soak")


@app.command()
def kills(
    task: Annotated[str, typer.Option(help=f"One of {', '.join(TASKS)}; all by default.")] = "",
    rounds: Rounds = 30,
    seed: Seed = 0,
    servers: Annotated[bool, typer.Option(help="Kill servers, too, and start them again.")] = False,
    pool: Pool = "disk",
    workers: Workers = "local",
    home: Home = HOME,
) -> None:
    """Kill runs at random moments while three people answer, correct and take back; nothing may be lost or doubled.

    With --pool s3 the store is killed, too, for seconds or until the run ends; with --workers ray a worker is.
    """
    from tests.soak.trial import place_at

    found: list[str] = []
    with place_at(home.resolve()) as place:
        from tests.soak.kills import try_campaign

        for one in [task] if task else TASKS:
            found += try_campaign(
                place, one, n_rounds=rounds, seed=seed, killed=0.85, servers=servers, pool=pool, workers=workers
            )
    tell(found)


@app.command()
def campaigns(
    campaigns: Annotated[int, typer.Option(help="How many; of all tasks in turn.")] = 10,
    rounds: Rounds = 3,
    seed: Seed = 0,
    home: Home = HOME,
) -> None:
    """Run campaigns side by side on one set of servers; each must come to what it comes to alone."""
    from tests.soak.trial import place_at

    with place_at(home.resolve()) as place:
        from tests.soak.kills import side_by_side

        tasks = [TASKS[number % len(TASKS)] for number in range(campaigns)]
        found = side_by_side(place, tasks, n_rounds=rounds, seed=seed)
    tell(found)


@app.command()
def absence(
    minutes: Annotated[float, typer.Option(help="How long the servers are away.")] = 60,
    home: Annotated[Path, typer.Option(help="Home of servers that this trial alone uses.")] = HOME / "absence",
) -> None:
    """Take all servers away from `labelcycle serve` and bring them back; it must go on, and nothing may be doubled."""
    from tests.soak.trial import place_at

    with place_at(home.resolve()) as place:
        from tests.soak.absence import stay_away

        found = stay_away(place, minutes=minutes)
    tell(found)


@app.command()
def growth(
    rounds: Rounds = 100,
    minutes: Annotated[float, typer.Option(help="After so many no further round begins.")] = 60,
    out: Annotated[Path, typer.Option(help="Folder for growth.csv, growth.json and growth.png.")] = HOME / "growth",
    pool: Pool = "disk",
    workers: Workers = "local",
    home: Home = HOME,
) -> None:
    """Measure what each round of a long campaign costs, draw it, and find what grows beyond the data."""
    from tests.soak.trial import place_at

    with place_at(home.resolve()) as place:
        from tests.soak.growth import grow

        found = grow(place, n_rounds=rounds, minutes=minutes, out=out, pool=pool, workers=workers)
    tell(found)


def tell(found: list[str]) -> None:
    """Print the findings; they are a failure."""
    for line in found:
        typer.echo(f"FINDING {line}")
    raise typer.Exit(bool(found))


if __name__ == "__main__":
    app()
