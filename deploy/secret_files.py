"""Secrets of a deployment: made at its first start, each in a file that only its owner reads."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path

from deploy.logins import ServerError
from deploy.private import PRIVATE_FOLDER, open_private

LOGIN = "password"
"""Of the person in Label Studio and of the administrator of MLflow and Prefect, as in `deploy.logins`."""
API_KEY = "label-studio-token"
SESSION_KEY = "mlflow-session-key"
SUPERUSER = "postgres-password"
ROLES = {"label-studio": "label_studio", "mlflow": "mlflow", "prefect": "prefect"}
"""Server -> its role on PostgreSQL, whose password is a secret too."""


def role_password(server: str) -> str:
    """The name of the secret that a server's role on PostgreSQL logs in with."""
    return f"postgres-{server}-password"


MAKE: dict[str, Callable[[], str]] = {
    LOGIN: lambda: secrets.token_urlsafe(18),
    API_KEY: lambda: secrets.token_hex(20),  # as long as Label Studio's own
    SESSION_KEY: lambda: secrets.token_hex(32),
    SUPERUSER: lambda: secrets.token_hex(24),
    **{role_password(server): lambda: secrets.token_hex(24) for server in ROLES},
}


def make_secrets(folder: Path) -> None:
    """Write the secrets that are missing; those that are there stay."""
    folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    for name, make in MAKE.items():
        path = folder / name
        if path.exists():
            continue
        temporary = path.with_suffix(".part")
        temporary.unlink(missing_ok=True)  # of a start that was broken off
        with open_private(temporary, os.O_EXCL) as file:
            file.write(make() + "\n")
        temporary.rename(path)


def read_secret(folder: Path, name: str) -> str:
    """A secret from its file.

    Raises:
        ServerError: there is none, or it cannot be read.
    """
    path = folder / name
    try:
        secret = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as exc:
        why = getattr(exc, "strerror", None) or "no plain text"
        raise ServerError(
            f"cannot read the secret {path}: {why}. `python -m deploy.services secrets --secrets {folder}` makes those "
            "that are missing"
        ) from exc
    if not secret:
        mend = (
            "PostgreSQL knows no other: take it from a backup"
            if name == SUPERUSER
            else "delete the file, and another is made"
        )
        raise ServerError(f"the secret {path} is empty: {mend}")
    return secret
