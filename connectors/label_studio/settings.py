"""Where the annotators work."""

from pydantic import Field

from pipeline.settings import LOCAL, Address, Settings


class LabelStudioSettings(Settings):
    """Where people label. The token is in the environment: LABEL_STUDIO_API_KEY."""

    url: Address = Field(
        LOCAL, pattern=r"^(local|https?://\S+)$", description="'local' is the server of `labelcycle up`"
    )
    project: str | None = Field(
        None, min_length=3, max_length=50, pattern=r"^\S(.*\S)?$", description="title; the campaign's name if not given"
    )
    instructions: str | None = Field(None, description="what annotators read first; our own text if not given")
