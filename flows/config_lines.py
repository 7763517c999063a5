"""Where in a campaign file a mistake stands, in words."""

import difflib
import re
from pathlib import Path

from pydantic import BaseModel
from pydantic_core import ErrorDetails

SHOWN = 120
"""Characters of a wrong value that an error shows."""


def explain_setting(path: Path, text: str, error: ErrorDetails, model: type[BaseModel]) -> str:
    """What is wrong with a setting, in one line: the file, the line, the key, what is allowed and what was given.

    Args:
        text: of the campaign file.
        error: as pydantic tells it.
        model: of the whole file.
    """
    location = [part for part in error["loc"] if isinstance(part, str)]
    key = ".".join(location)
    line = line_of(text, location)
    where = f"{path}, line {line}" if line else f"{path}"
    if error["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"{where}: unknown key {key!r}; {hint}Known keys here: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{where}: {key!r} is missing; `labelcycle init` writes an example with every key"
    message = error["msg"].removeprefix("Value error, ")
    is_shown = location and not isinstance(error["input"], dict) and error["type"] != "login_in_address"
    given = f" (got {_shortened(repr(error['input']))})" if is_shown else ""
    return f"{where}: {key}: {message}{given}" if key else f"{where}: {message}"


def _shortened(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _known_keys(model: type[BaseModel], section: list[str]) -> list[str]:
    for name in section:
        kind = model.model_fields[name].annotation
        model = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else model
    return sorted(model.model_fields)


def line_of(text: str, location: list[str]) -> int | None:
    """The line that sets a key, else the one that opens its table; `location` is (key,), (table, key) and so on."""
    table: list[str] = []
    found, depth = None, 0
    for number, line in enumerate(text.splitlines(), start=1):
        header = re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line)
        if header:
            table = re.split(r"\s*\.\s*", header[1].strip("\"'"))
            if table == location[: len(table)] and len(table) > depth:
                found, depth = number, len(table)
            continue
        key = re.match(r"\s*[\"']?([^=\"']+?)[\"']?\s*=", line)
        if key and [*table, *re.split(r"\s*\.\s*", key[1])] == location:
            return number
    return found
