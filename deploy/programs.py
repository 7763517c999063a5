"""The three programs: the command that starts each, and the environment that it needs."""

import os
import secrets
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from deploy import logins
from deploy.private import open_private
from deploy.processes import holds_port, is_process

HEALTH = {"label-studio": "/health", "mlflow": "/health", "prefect": "/api/health"}
MLFLOW_AUTH = """\
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///{database}
admin_username = {user}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 60
"""


@dataclass(frozen=True, slots=True)
class Server:
    """One server, as `servers.json` remembers it.

    Attributes:
        pid: together with `created`, in seconds since 1970, it names one process; None after a stop.
        document_root: Label Studio serves images from folders below this one, not from this one itself.
        login: tells the password that it was started with from others.
    """

    name: str
    port: int
    pid: int | None = None
    created: float | None = None
    document_root: str | None = None
    login: str | None = None

    @property
    def url(self) -> str:
        """Where it is to answer."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self.pid is not None and is_process(self.pid, self.created)

    @property
    def is_listening(self) -> bool:
        """Whether the port is held by the server itself."""
        return self.pid is not None and holds_port(self.pid, self.created, self.port)


Plan = Callable[[Server, Path, str], tuple[list[str], dict[str, str]]]
"""From a server, its folder and the password to a command and the environment that it needs."""


def label_studio(server: Server, folder: Path, password: str, *, venv: Path) -> tuple[list[str], dict[str, str]]:
    """Label Studio out of its own environment, with the password that it takes from now on."""
    logins.set_label_studio_password(folder / "label_studio.sqlite3", password)
    program = [str(venv / "bin" / "label-studio"), "start", "--no-browser", "--enable-legacy-api-token"]
    return [*program, "--internal-host", "127.0.0.1", "--port", str(server.port)], {
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "LABEL_STUDIO_DJANGO_DB": "sqlite",
        "LABEL_STUDIO_AZURE_MOUNT_FIX": "true",  # write-ahead log: three times the speed, readers never wait
        "LABEL_STUDIO_HOST": "",
        "LABEL_STUDIO_DEBUG": "false",
        "LABEL_STUDIO_USERNAME": logins.EMAIL,
        "LABEL_STUDIO_PASSWORD": password,
        "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(server.document_root),
        "LABEL_STUDIO_COLLECT_ANALYTICS": "false",
        "LABEL_STUDIO_LATEST_VERSION_CHECK": "false",
        "LABEL_STUDIO_SENTRY_DSN": "",
        "LABEL_STUDIO_FRONTEND_SENTRY_DSN": "",
    }


def mlflow(server: Server, folder: Path, password: str) -> tuple[list[str], dict[str, str]]:
    """MLflow with a login, with the password that it takes from now on."""
    database, settings = folder / "auth.db", folder / "auth.ini"
    logins.set_mlflow_password(database, password)
    with open_private(settings, os.O_TRUNC) as file:
        file.write(MLFLOW_AUTH.format(database=str(database).replace("%", "%%"), user=logins.USER))
    program = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--app-name", "basic-auth"]
    stores = ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    stores += ["--artifacts-destination", str(folder / "artifacts")]
    return [*program, *stores, "--host", "127.0.0.1", "--port", str(server.port)], {
        "MLFLOW_AUTH_CONFIG_PATH": str(settings),
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "DO_NOT_TRACK": "true",
    }


def prefect(server: Server, folder: Path, password: str) -> tuple[list[str], dict[str, str]]:
    """Prefect's server and its pages, with the password that it takes from now on."""
    login = f"{logins.USER}:{password}"
    program = [sys.executable, "-m", "prefect", "server", "start"]
    return [*program, "--host", "127.0.0.1", "--port", str(server.port)], {
        "PREFECT_HOME": str(folder),
        "PREFECT_SERVER_API_AUTH_STRING": login,
        "PREFECT_API_AUTH_STRING": login,  # the server asks itself things
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"{server.url},http://localhost:{server.port}",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder / 'prefect.db'}",
        "PREFECT_SERVER_UI_API_URL": f"{server.url}/api",  # else its pages ask port 4200
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",  # those that ended 90 days ago
        "DO_NOT_TRACK": "1",
    }


def inherited_environment() -> dict[str, str]:
    """The caller's environment without settings for these very programs."""
    foreign = ("LABEL_STUDIO_", "HEARTEX_", "MLFLOW_", "PREFECT_", "LABELCYCLE_")
    return {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
