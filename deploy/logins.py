"""The password of the local servers: made once, kept in a file that only its owner reads, the same for all three."""

import base64
import hashlib
import os
import secrets
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

EMAIL = "annotator@labelcycle.local"
"""Who logs in to Label Studio."""
USER = "admin"
"""Who logs in to MLflow and Prefect."""
SHORTEST = 12
"""Characters of a password that MLflow takes."""
ROUNDS = 600_000

LABEL_STUDIO_TABLE = ("htx_user", "email", "password")
MLFLOW_TABLE = ("users", "username", "password_hash")


class ServerError(Exception):
    """A local server cannot be installed, started or logged in to."""


def password_file(home: Path) -> Path:
    """Where the password is: one line, so that a shell can read it."""
    return home / "password"


def make_password(home: Path) -> str:
    """The password of the servers of `home`, made where there is none yet."""
    path = password_file(home)
    with suppress(FileExistsError):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(secrets.token_urlsafe(18) + "\n")
    return read_password(home)


def read_password(home: Path) -> str:
    """The password of the servers of `home`.

    Raises:
        ServerError: there is none, others can read it, or no server would take it.
    """
    path = password_file(home)
    mend = "delete the file and run `labelcycle up`, which makes another password"
    try:
        if path.stat().st_mode & 0o077:
            raise ServerError(f"{path} holds the password of the local servers, and others may read it: {mend}")
        password = path.read_text(encoding="ascii").strip()
    except FileNotFoundError as exc:
        raise ServerError(f"{path} is not there: run `labelcycle up`, which makes a password") from exc
    except UnicodeDecodeError as exc:
        raise ServerError(f"{path} must hold a password in plain letters and signs: {mend}") from exc
    if len(password) < SHORTEST or ":" in password or not password.isprintable():
        raise ServerError(f"{path} must hold a password of {SHORTEST} characters or more, without a colon: {mend}")
    return password


def fingerprint(password: str) -> str:
    """What tells one password from another, and does not tell the password."""
    return hashlib.sha256(f"labelcycle {password}".encode()).hexdigest()[:16]


def set_label_studio_password(database: Path, password: str) -> None:
    """Give the person of a Label Studio that is stopped this password; it keeps that of its first start otherwise."""
    salt = secrets.token_hex(8)
    digest = hashlib.pbkdf2_hmac("sha256", password.encode(), salt.encode(), ROUNDS)
    _set(database, LABEL_STUDIO_TABLE, EMAIL, f"pbkdf2_sha256${ROUNDS}${salt}${base64.b64encode(digest).decode()}")


def set_mlflow_password(database: Path, password: str) -> None:
    """Give the administrator of an MLflow that is stopped this password; it keeps that of its first start otherwise."""
    salt = secrets.token_hex(8)
    digest = hashlib.pbkdf2_hmac("sha256", password.encode(), salt.encode(), ROUNDS)
    _set(database, MLFLOW_TABLE, USER, f"pbkdf2:sha256:{ROUNDS}${salt}${digest.hex()}")


def _set(database: Path, table: tuple[str, str, str], name: str, hashed: str) -> None:
    """Write a hash over the one of `name`; a database without the table is that of a start that was broken off."""
    if not database.exists():
        return
    where, who, what = table
    with closing(sqlite3.connect(database)) as connection, connection:
        if connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", [where]).fetchone():
            connection.execute(f"UPDATE {where} SET {what} = ? WHERE {who} = ?", [hashed, name])  # noqa: S608 (constants)
