"""Roles and databases of the servers on PostgreSQL, made where they are missing."""

import time
from collections.abc import Mapping

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import connection as Connection

from deploy.logins import ServerError

DATABASES = {"label_studio": ("label_studio",), "mlflow": ("mlflow", "mlflow_accounts"), "prefect": ("prefect",)}
"""Role -> the databases that it owns, which no other role may open."""
WAIT_SECONDS = 60.0


def make_databases(host: str, port: int, superuser: str | None, passwords: Mapping[str, str]) -> None:
    """Let each role have its databases and the password of now; a second call changes nothing.

    Args:
        host: of PostgreSQL, or the folder of its socket.
        port: of PostgreSQL.
        superuser: the password of `postgres`; None logs in through the socket, as the user that runs this.
        passwords: role -> password.

    Raises:
        ServerError: PostgreSQL is not there after a minute, or refuses.
    """
    try:
        connection = _connect(host, port, superuser)
        try:
            for role, databases in DATABASES.items():
                _make_role(connection, role, passwords[role])
                for database in databases:
                    _make_database(connection, database, role)
        finally:
            connection.close()
    except psycopg2.Error as exc:
        raise ServerError(f"PostgreSQL at {host}, port {port}: {' '.join(str(exc).split())}") from exc


def _connect(host: str, port: int, superuser: str | None) -> Connection:
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            connection = psycopg2.connect(
                host=host,
                port=port,
                user=None if superuser is None else "postgres",
                password=superuser,
                dbname="postgres",
                connect_timeout=5,
                options="-c log_statement=none",  # else a server that logs statements logs passwords
            )
        except psycopg2.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
        else:
            connection.autocommit = True
            return connection


def _make_role(connection: Connection, role: str, password: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role])
        if not cursor.fetchone():
            cursor.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(role)))
        cursor.execute(sql.SQL("ALTER ROLE {} LOGIN PASSWORD %s").format(sql.Identifier(role)), [password])


def _make_database(connection: Connection, database: str, role: str) -> None:
    name = sql.Identifier(database)
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_database WHERE datname = %s", [database])
        if not cursor.fetchone():
            cursor.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(name, sql.Identifier(role)))
        cursor.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(name))
