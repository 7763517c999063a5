"""When a campaign has enough labels."""

from pydantic import Field

from pipeline.settings import Settings


class StoppingSettings(Settings):
    """What ends a campaign before its budget does."""

    target_accuracy: float | None = Field(None, gt=0, lt=1, description="stop when the audit interval is above it")
    min_gain: float | None = Field(None, gt=0, lt=1, description="stop when the next query_size labels bring less")
