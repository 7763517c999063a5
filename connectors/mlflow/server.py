"""Where MLflow is, and who logs in to it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from connectors.mlflow.settings import SQLITE
from connectors.tracking import TrackerError

LOGIN_VARIABLES = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")
SECONDS_TO_ANSWER = 5


@contextmanager
def logged_in(login: tuple[str, str] | None) -> Iterator[None]:
    """Let MLflow's clients use a login while the block lasts, and no longer: it is not for other servers.

    They look for one in the environment alone, at each request.
    """
    if login is None:
        yield
        return
    before = {name: os.environ.get(name) for name in LOGIN_VARIABLES}
    os.environ.update(zip(LOGIN_VARIABLES, login, strict=True))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def check_uri(uri: str) -> tuple[str, Path | None]:
    """Return the address, and for an SQLite file the folder for artefacts beside it."""
    parts = urlsplit(uri)
    if parts.scheme in {"http", "https"}:
        if parts.username or parts.password:
            raise TrackerError(
                f"the address of MLflow at {parts.hostname} must not carry a user name or a password: "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, and give the address without them"
            )
        return uri.rstrip("/"), None
    if parts.scheme == "sqlite" and parts.path.strip("/"):
        database = Path(uri.removeprefix(SQLITE)).resolve()
        return f"{SQLITE}{database}", database.parent / "mlartifacts"
    came = f"the folder {uri}" if parts.scheme in {"", "file"} else f"an address that begins with {parts.scheme}:"
    raise TrackerError(
        "MLflow needs a server, http://host:5000, or an SQLite file, sqlite:////folder/mlflow.db; "
        f"it keeps no runs in folders any more. Got {came}"
    )
