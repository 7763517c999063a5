"""What all settings have in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

MOST = 10**9
"""Of anything that is counted; what is above it is a slip of the hand."""

Size = Annotated[int, Field(ge=1, le=MOST)]
Share = Annotated[float, Field(gt=0, le=1)]


class Settings(BaseModel):
    """What all parts of the campaign file have in common: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")
