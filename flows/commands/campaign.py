"""Commands that begin a campaign, advance it and show where it stands."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from flows.commands.screen import CampaignFile, console, errors, print_lines
from flows.errors import EXIT_AWAITING, EXIT_FAILURE, tell
from flows.home import home, last_campaign, settle_home
from flows.local import require_prefect, use_prefect


def init(
    path: Annotated[Path, typer.Argument(help="Where to write the campaign file.")] = Path("campaign.toml"),
    old: Annotated[
        Path | None,
        typer.Option("--from", help="File or folder of a campaign: begin another one with its settings and labels."),
    ] = None,
) -> None:
    """Write a commented example of a campaign file, or with --from one that takes all labels of a campaign along."""
    from flows.example import COST, EXAMPLE

    if old is not None:
        from flows.successor import write_successor

        print_lines(write_successor(path, old))
        return
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(EXAMPLE)
    except FileExistsError:
        raise tell(f"{path} exists already; give another name, or move it away") from None
    then = f"Wrote {path}. Set its name, pool and classes, then: labelcycle up {path}; labelcycle run {path}"
    console.print(then, soft_wrap=True, highlight=False)
    console.print(COST, soft_wrap=True, highlight=False)


def run(campaign: CampaignFile) -> None:
    """Advance one round: collect what is labelled, retrain, and ask for the next batch.

    Ends with exit code 3, and changes nothing, while labels of the open round are missing. A run that was killed
    goes on where it stood.
    """
    if errors.is_terminal:
        errors.print(f"Looking what there is to do in {campaign} ...", soft_wrap=True, highlight=False)
    from deploy import servers

    use_prefect(servers.running(settle_home(campaign)))  # before Prefect is loaded, which reads it once
    from flows.config import load_settings
    from flows.folder import Campaign

    settings = load_settings(campaign)
    from flows.notify import failure_told

    with failure_told(campaign):
        require_prefect()
    from flows.flow import run_round_of

    try:
        outcome = run_round_of(campaign)
    except (ValueError, KeyError, TypeError):
        Campaign(settings.folder).check_files()  # one that is damaged shows in many ways
        raise
    for note in outcome.notes:
        console.print(note, soft_wrap=True, highlight=False)
    for warning in outcome.warnings:
        errors.print(Text.assemble(("Warning:", "yellow"), " ", warning), soft_wrap=True)
    console.print(outcome.message[0].upper() + outcome.message[1:] + ".")
    if outcome.address:
        console.print(f"Label here: {outcome.address}", soft_wrap=True)
    if outcome.kind == "awaiting":
        raise typer.Exit(EXIT_AWAITING)


def serve(campaign: CampaignFile) -> None:
    """Run the campaign on its schedule until stopped, one run at a time; print a line for each event."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "INFO")  # into a file
    from deploy import servers

    use_prefect(servers.remembered(settle_home(campaign)))  # before Prefect is loaded, which reads it once
    from flows.config import load_settings

    settings = load_settings(campaign)
    if settings.schedule is None:
        raise tell(f'{campaign} has no schedule; add for example: schedule = "*/15 * * * *"')
    require_prefect()
    from flows.serve.service import serve_campaign

    serve_campaign(campaign.resolve(), settings)


def status(
    campaign: Annotated[
        Path | None,
        typer.Argument(help="Campaign file or folder; the campaign that was run last by default."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show where a campaign stands, from its folder alone, and which of its servers are away."""
    from flows.artefacts import CAMPAIGN
    from flows.config import unresolved
    from flows.folder import Campaign
    from flows.reports.servers import ask_servers, away_lines
    from flows.reports.status import campaign_status, rounds_table, status_lines

    folder = Campaign(_folder_of(campaign))
    folder.check_ours()
    if not folder.has(CAMPAIGN):
        raise tell(f"{folder.path} holds no campaign yet; `labelcycle run` begins one")
    damaged = folder.check_files()
    servers = ask_servers(unresolved(folder.read(CAMPAIGN)), home(campaign))
    state = campaign_status(folder, home(campaign))
    if as_json:
        asked = {name: asdict(server) for name, server in servers().items()}
        print(json.dumps(state.as_json() | {"damaged": damaged, "servers": asked}, indent=2))  # noqa: T201 (for programs, so without rich)
        return
    console.print(rounds_table(folder))
    for line in (*damaged, *status_lines(state), *away_lines(servers())):
        console.print(line, soft_wrap=True, highlight=False)


def _folder_of(campaign: Path | None) -> Path:
    """The folder of a campaign that is named by its file or folder; of the one that was run last where none is."""
    from flows.artefacts import CAMPAIGN
    from flows.config import load_place, load_settings

    if campaign is None:
        if (last := last_campaign()) is None:
            raise tell("no campaign has been run here; name one: labelcycle status campaign.toml")
        return last
    if campaign.is_dir():
        return campaign
    folder = load_place(campaign).folder
    return folder if (folder / CAMPAIGN.name).exists() else load_settings(campaign).folder  # or what is wrong there


def notify(campaign: CampaignFile) -> None:
    """Send a test event to whoever is told of the campaign: the command in [notify], the webhook in the environment.

    What the command prints is shown. Ends with exit code 1 where one of them does not take the event.
    """
    from flows.notify import send_test

    found = send_test(campaign)
    for hook, wrong in found.items():
        if wrong is None:
            console.print(f"The {hook} took the event.")
        else:
            tell(f"the {hook} {wrong}", EXIT_FAILURE)
    if any(found.values()):
        raise typer.Exit(EXIT_FAILURE)


def demo(
    task: Annotated[
        str, typer.Option(help="What is asked for: classification, multi_label, segmentation or detection.")
    ] = "classification",
    anew: Annotated[bool, typer.Option(help="Start a new campaign even where the last one is not finished.")] = False,
) -> None:
    """Run a whole campaign with a simulated annotator working in Label Studio, by default on 5,000 MNIST digits.

    Other tasks run on scenes with several digits.
    """
    from flows.demo import run_demo, show_of

    try:
        show = show_of(task)
    except ValueError as exc:
        raise typer.BadParameter(str(exc), param_hint="--task") from None
    run_demo(settle_home(), show, console=console, anew=anew)
