"""The `labelcycle` command."""

from typing import Annotated

import typer

from flows.commands import backup, campaign, data, doctor, replay, servers
from flows.errors import CommandGroup
from flows.leaving import leaving_soon
from flows.local import prepare_environment
from flows.terminal import prepare_output

app = typer.Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def labelcycle(
    debug: Annotated[
        bool, typer.Option("--debug", envvar="LABELCYCLE_DEBUG", help="Show where in the code an error came from.")
    ] = False,
) -> None:
    """Cycle train -> score -> select -> push to Label Studio -> collect, one round at a time.

    Start with `labelcycle demo`, or on your own images with `labelcycle init`, `labelcycle up`, `labelcycle run`.

    Exit codes: 0 done, 1 failure, 2 usage or configuration, 3 awaiting labels, 130 stopped.
    """


app.command()(campaign.init)
app.command()(servers.up)
app.command()(servers.down)
app.command()(campaign.run)
app.command()(campaign.serve)
app.command()(campaign.status)
app.command()(doctor.doctor)
app.command()(campaign.notify)
app.command()(data.cache)
app.command()(data.labels)
app.command("import")(data.import_)
app.command()(data.predict)
app.command()(backup.backup)
app.command()(backup.restore)
app.command()(campaign.demo)
app.command()(replay.simulate)


def main() -> None:
    """Run the command."""
    prepare_environment()
    prepare_output()
    with leaving_soon():
        app()


if __name__ == "__main__":
    main()
