"""One run of the loop as a flow of Prefect."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows import books
from flows.campaign import OpenCampaign, open_campaign
from flows.config import ConfigError
from flows.folder import CampaignBusy
from flows.local import prepare_environment
from flows.notify import failure_told, run_and_tell
from flows.outcome import RoundOutcome
from flows.round import work_on

STATES = {"asked": "AskedForLabels", "awaiting": "AwaitingLabels", "finished": "Finished", "busy": "Busy"}
"""Names of a run's last state in Prefect's pages."""
SERVED_FILE = "LABELCYCLE_SERVED_FILE"
"""In the environment of `labelcycle serve`: the one campaign file that its runs may work on."""


@flow(name=books.FLOW, persist_result=False, validate_parameters=False)
def run_round(campaign_file: str) -> State[RoundOutcome]:
    """Advance the campaign by one round: close the open one if its labels are in, then learn and ask again.

    Args:
        campaign_file: path of the campaign's TOML file.

    Returns:
        A `RoundOutcome`; in Prefect's pages it is the name of the run's last state. A round whose labels are missing
        is left as it is; run again later.
    """
    prepare_environment()  # of a worker of Prefect, which is no command of ours
    check_is_served(campaign_file)
    with failure_told(Path(campaign_file)):
        outcome = _run_round(Path(campaign_file))
    where = f"; label here: {outcome.address}" if outcome.kind == "asked" and outcome.address else ""
    return Completed(name=STATES[outcome.kind], message=f"{outcome.message}{where}", data=outcome)


def _run_round(file: Path) -> RoundOutcome:
    work = open_campaign(file)
    round_number = work.folder.current_round().number
    books.sign(work, round_number=round_number)
    try:
        outcome = _work_alone_on(work, file)
    except CampaignBusy as exc:
        outcome = RoundOutcome("busy", round_number, str(exc))
    if outcome.round_number != round_number:
        books.sign(work, round_number=outcome.round_number)
    return outcome


def _work_alone_on(work: OpenCampaign, file: Path) -> RoundOutcome:
    """Do what can be done now; another process that works on the campaign makes this an error."""
    with work.folder.lock():
        closed = books.put_right(work)
        outcome = run_and_tell(work, file, work_on)
    return replace(outcome, notes=(*closed, *outcome.notes))


def check_is_served(campaign_file: object) -> None:
    """Refuse another campaign file than the one that `labelcycle serve` was started with.

    Whoever reaches Prefect's server can ask for a run of any file; the file decides which server gets the token.
    """
    served = os.environ.get(SERVED_FILE)
    if served is not None and campaign_file != served:
        raise ConfigError(
            f"this `labelcycle serve` runs {served} and no other campaign file; the run asked for {campaign_file!r}"
        )


def run_round_of(file: Path) -> RoundOutcome:
    """Run the flow `run_round` here and now.

    Raises:
        CampaignBusy: another process works on the campaign.
    """
    outcome = cast("Callable[[str], RoundOutcome]", run_round)(str(file.resolve()))
    if outcome.kind == "busy":
        raise CampaignBusy(outcome.message)
    return outcome
