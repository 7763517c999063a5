"""Where a campaign's images are: a path, or an address."""

from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator
from pydantic_core import PydanticCustomError

from connectors.objects.addresses import place_of


def _check_place(value: object) -> object:
    """A path, or an address as text; an address that is wrong is not repeated, as it may hold a secret."""
    if not isinstance(value, str):
        return value
    if "\0" in value:
        raise ValueError("must be a path, and no path holds a NUL character")
    if "://" not in value:
        return Path(value).expanduser()
    try:
        return str(place_of(value))
    except ValueError as exc:
        raise PydanticCustomError("login_in_address", "{why}", {"why": str(exc)}) from None


PoolPlace = Annotated[Path | str, BeforeValidator(_check_place)]
