"""A round in Prefect's pages, where there is a flow run."""

from connectors.escaping import prefect_key
from flows.folder import RoundFolder
from flows.reports.round_page import round_markdown
from flows.step import is_in_flow


def flow_run_id() -> str | None:
    """The id of the present run; None outside of one."""
    if not is_in_flow():
        return None
    from prefect.runtime import flow_run

    return str(flow_run.id)


def publish(folder: RoundFolder, campaign: str) -> None:
    """Show a round in Prefect's pages."""
    if not is_in_flow():
        return
    from prefect.artifacts import create_markdown_artifact

    create_markdown_artifact(
        key=prefect_key(f"{campaign}-round-{folder.number:04d}"),
        markdown=round_markdown(folder, campaign),
        description=f"Round {folder.number} of campaign {campaign}",
    )
