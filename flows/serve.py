"""A campaign on its schedule."""

from pathlib import Path
from typing import Any

from prefect import serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy

from flows.config import CampaignSettings
from flows.round import run_round


def serve_campaign(file: Path, settings: CampaignSettings) -> None:
    """Run the campaign on its schedule until stopped; a run that would overlap another is cancelled."""
    deployment: Any = run_round.to_deployment(
        name=settings.name,
        cron=settings.schedule,
        parameters={"campaign_file": str(file)},
        tags=["labelcycle", settings.name],
        concurrency_limit=ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.CANCEL_NEW),
    )
    serve(deployment, limit=1)
