"""Which MLflow keeps the rounds."""

from pydantic import Field

from pipeline.settings import LOCAL, Address, Settings

SQLITE = "sqlite:///"


class MLflowSettings(Settings):
    """Where rounds are compared."""

    uri: Address = Field(
        LOCAL,
        pattern=r"^(local|sqlite:///\S+|https?://\S+)$",
        description="'local' is the server of `labelcycle up`; else sqlite:///FILE, or the address of a server",
    )
