"""The command that looks at everything a campaign works with."""

import json
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from flows.commands.screen import console, errors
from flows.errors import EXIT_FAILURE
from flows.home import settle_home
from flows.local import use_prefect

SIGNS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "failure": ("✗", "red")}


def doctor(
    campaign: Annotated[
        Path | None, typer.Argument(help="The campaign's TOML file; without it only this machine and its servers.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Look at everything that a campaign works with, and tell what to do about what is not well.

    File, pool, disk, versions, GPU, clock, Label Studio, MLflow, Prefect and the schedule; nothing is changed. Ends
    with exit code 1 when a check fails, for programs that watch; a warning is no failure.
    """
    if errors.is_terminal:
        errors.print("Looking, which takes some seconds ...", soft_wrap=True, highlight=False)
    from deploy import servers
    from deploy.logins import ServerError

    home = settle_home(campaign)
    with suppress(ServerError):  # which a check tells
        use_prefect(servers.remembered(home))  # before Prefect is loaded, which reads it once
    from flows.doctor.examine import examine
    from flows.doctor.subject import subject_of

    findings = []
    for finding in examine(subject_of(home, campaign)):
        findings.append(finding)
        if not as_json:
            sign, style = SIGNS[finding.status]
            console.print(Text.assemble((sign, style), f" {finding.name}: {finding.found}"), soft_wrap=True)
            if finding.mend:
                console.print(Text(f"    {finding.mend}"), soft_wrap=True)
    fails = any(finding.status == "failure" for finding in findings)
    if as_json:
        print(json.dumps({"well": not fails, "checks": [asdict(one) for one in findings]}, indent=2))  # noqa: T201
    if fails:
        raise typer.Exit(EXIT_FAILURE)
