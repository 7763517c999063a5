"""What all settings have in common."""

import re
from datetime import timedelta
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    ValidationInfo,
)
from pydantic_core import PydanticCustomError

LOCAL = "local"
"""Stands for the server that `labelcycle up` started on this machine."""

Plain = dict[str, JsonValue]
"""Settings as JSON has them."""
MOST = 10**9
"""Of anything that is counted; what is above it is a slip of the hand."""

DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
LONGEST = timedelta(days=100 * 365)
SECONDS_OF_UNIT = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


def _parse_duration(value: object) -> object:
    if not isinstance(value, str):
        return value
    match = DURATION.fullmatch(value.strip())
    if match is None:
        raise ValueError("a duration is a number and a unit (s, m, h, d, w), for example '3d' or '12h'")
    try:
        duration = timedelta(seconds=float(match[1]) * SECONDS_OF_UNIT[match[2]])
    except OverflowError:
        duration = timedelta.max
    if duration > LONGEST:
        raise ValueError(f"a duration is at most {LONGEST.days // 365} years")
    return duration


def _check_no_login(value: str) -> str:
    """An address is written to files, logs and MLflow, a password never."""
    if "@" in urlsplit(value).netloc:
        raise PydanticCustomError("login_in_address", "an address must not hold a login; put it into the environment")
    return value


def is_held(info: ValidationInfo, name: str, value: object) -> bool:
    """Whether the campaign's folder holds this value already: it was checked when it was written, which takes seconds.

    Args:
        info: whose context has the values by name.
    """
    return info.context is not None and info.context.get(name) == value


Size = Annotated[int, Field(ge=1, le=MOST)]
Share = Annotated[float, Field(gt=0, le=1)]
Address = Annotated[str, AfterValidator(_check_no_login)]
Duration = Annotated[
    timedelta,
    BeforeValidator(_parse_duration),
    Field(gt=timedelta(0)),
    PlainSerializer(lambda value: f"{value.total_seconds():g}s", return_type=str),
]


class Settings(BaseModel):
    """What all parts of the campaign file have in common: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)
