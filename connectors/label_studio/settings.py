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
    presign_minutes: int | None = Field(
        None,
        ge=1,
        le=7 * 24 * 60,
        description="browsers load images of an object store from there, by addresses signed for so many minutes; the "
        "bucket needs a CORS rule. Label Studio passes the images on if not given",
    )
    instructions: str | None = Field(None, description="what annotators read first; our own text if not given")
