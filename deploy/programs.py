"""The three programs: the command that starts each, and the environment that it needs.

It imports nothing of other packages: Label Studio is started from an environment that has none of ours.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from deploy import logins
from deploy.private import open_private

HEALTH = {"label-studio": "/health", "mlflow": "/health", "prefect": "/api/health"}
LOOPBACK = "127.0.0.1"
Program = tuple[list[str], dict[str, str]]
"""A command, and the environment that it needs."""
MLFLOW_AUTH = """\
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = {database}
admin_username = {user}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""


@dataclass(frozen=True, slots=True)
class Postgres:
    """Databases of a program on a PostgreSQL server, where the program has a role that is named as the database.

    Attributes:
        role: its name, also that of its database.
        password: of the role; it stands in no address, as those are written to logs and lists of processes.
    """

    host: str
    port: int
    role: str
    password: str

    @property
    def environment(self) -> dict[str, str]:
        """What the drivers of PostgreSQL read."""
        return {"PGPASSWORD": self.password}

    def address(self, driver: str, database: str | None = None) -> str:
        """Of a database, for SQLAlchemy."""
        return f"{driver}://{self.role}@{self.host}:{self.port}/{database or self.role}"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a program keeps its files and listens.

    Attributes:
        url: where people and clients reach it.
        postgres: its databases; None for SQLite files in the folder.
    """

    folder: Path
    url: str
    port: int
    host: str = LOOPBACK
    postgres: Postgres | None = None

    @property
    def hosts(self) -> list[str]:
        """What requests may name as their host: host and port; here any port, for people come through tunnels."""
        named = dict.fromkeys([urlsplit(self.url).netloc, f"{LOOPBACK}:*", "localhost:*"])
        return list(named)


Plan = Callable[[Place, str], Program]
"""From a place and the password to the program."""


def label_studio(place: Place, password: str, *, program: Path, images: Path) -> Program:
    """Label Studio out of its own environment.

    Args:
        place: of the server.
        password: of the first person; on SQLite from now on, on PostgreSQL since the first start.
        program: the command `label-studio`.
        images: it shows files from folders below this one.
    """
    command = [str(program), "start", "--no-browser", "--enable-legacy-api-token"]
    return [*command, "--internal-host", place.host, "--port", str(place.port)], {
        "LABEL_STUDIO_BASE_DATA_DIR": str(place.folder),
        "LABEL_STUDIO_HOST": "",
        "LABEL_STUDIO_ALLOWED_HOSTS": ",".join(host.partition(":")[0] for host in place.hosts),
        "LABEL_STUDIO_CSRF_TRUSTED_ORIGINS": place.url,
        "LABEL_STUDIO_DEBUG": "false",
        "LABEL_STUDIO_USERNAME": logins.EMAIL,
        "LABEL_STUDIO_PASSWORD": password,
        "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(images),
        "LABEL_STUDIO_COLLECT_ANALYTICS": "false",
        "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
        "LABEL_STUDIO_SENTRY_DSN": "",
        "LABEL_STUDIO_FRONTEND_SENTRY_DSN": "",
        **_label_studio_database(place, password),
    }


def _label_studio_database(place: Place, password: str) -> dict[str, str]:
    if place.postgres is None:
        logins.set_label_studio_password(place.folder / "label_studio.sqlite3", password)
        # A write-ahead log: three times the speed, readers never wait.
        return {"LABEL_STUDIO_DJANGO_DB": "sqlite", "LABEL_STUDIO_AZURE_MOUNT_FIX": "true"}
    return {
        "LABEL_STUDIO_DJANGO_DB": "default",
        "LABEL_STUDIO_POSTGRE_HOST": place.postgres.host,
        "LABEL_STUDIO_POSTGRE_PORT": str(place.postgres.port),
        "LABEL_STUDIO_POSTGRE_USER": place.postgres.role,
        "LABEL_STUDIO_POSTGRE_NAME": place.postgres.role,
        "LABEL_STUDIO_POSTGRE_PASSWORD": place.postgres.password,
    }


def mlflow(place: Place, password: str, *, session_key: str, artifacts: str | None = None) -> Program:
    """MLflow with a login.

    Args:
        place: of the server.
        password: of the administrator; on SQLite from now on, on PostgreSQL since the first start.
        session_key: signs the cookies of its pages.
        artifacts: where models and plots go, such as s3://bucket/prefix; a folder of the place by default.
    """
    settings = place.folder / "auth.ini"
    database, accounts = _mlflow_databases(place, password)
    with open_private(settings, os.O_TRUNC) as file:
        file.write(MLFLOW_AUTH.format(database=accounts.replace("%", "%%"), user=logins.USER))
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--app-name", "basic-auth"]
    command += [
        "--backend-store-uri",
        database,
        "--artifacts-destination",
        artifacts or str(place.folder / "artifacts"),
    ]
    return [*command, "--host", place.host, "--port", str(place.port)], {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": session_key,
        "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(place.hosts),
        "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": place.url,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "DO_NOT_TRACK": "true",
        **(place.postgres.environment if place.postgres else {}),
    }


def _mlflow_databases(place: Place, password: str) -> tuple[str, str]:
    """The addresses of the database of runs and of that of accounts."""
    if place.postgres is None:
        accounts = place.folder / "auth.db"
        logins.set_mlflow_password(accounts, password)
        return f"sqlite:///{place.folder / 'mlflow.db'}", f"sqlite:///{accounts}"
    return place.postgres.address("postgresql"), place.postgres.address("postgresql", "mlflow_accounts")


def prefect(place: Place, password: str) -> Program:
    """Prefect's server and its pages, with the password that it takes from now on."""
    login = f"{logins.USER}:{password}"
    database = f"sqlite+aiosqlite:///{place.folder / 'prefect.db'}"
    if place.postgres is not None:
        database = place.postgres.address("postgresql+asyncpg")
    command = [sys.executable, "-m", "prefect", "server", "start"]
    return [*command, "--host", place.host, "--port", str(place.port)], {
        "PREFECT_HOME": str(place.folder),
        "PREFECT_SERVER_API_AUTH_STRING": login,
        "PREFECT_API_AUTH_STRING": login,  # the server asks itself things
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"{place.url},http://localhost:{place.port}",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
        "PREFECT_SERVER_UI_API_URL": f"{place.url}/api",  # else its pages ask port 4200
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(
            place.folder / "ui"
        ),  # else beside its code, which is not ours to write
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",  # those that ended 90 days ago
        "DO_NOT_TRACK": "1",
        **(place.postgres.environment if place.postgres else {}),
    }


def inherited_environment() -> dict[str, str]:
    """The caller's environment without settings for these very programs."""
    foreign = ("LABEL_STUDIO_", "HEARTEX_", "MLFLOW_", "PREFECT_", "LABELCYCLE_")
    return {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
