"""The servers of this machine, as the command uses them, and what else the surroundings decide."""

import os
import re
import sys
from types import ModuleType
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from rich.console import Console

from flows.home import VARIABLE, home

if TYPE_CHECKING:  # a command that asks no server is not to load what talks to one
    from deploy.servers import Servers

PROXY_VARIABLE = re.compile("(http|https|all)_proxy", re.IGNORECASE)
LOCAL_ADDRESSES = ("localhost", ".localhost", "127.0.0.1", "::1")
SLOW = "rfc3987_syntax"
"""A grammar of international addresses, 1.2 s to load: Prefect's jsonschema does so where it is installed, to check a
format that no schema here has."""
PREFECT_URL, PREFECT_LOGIN = "PREFECT_API_URL", "PREFECT_API_AUTH_STRING"


def prepare_environment() -> None:
    """Set what the libraries read when they are loaded; what is set in the environment already stays.

    Threads of torch that wait spin by default, which takes the processor from the servers beside us and slows
    training down tenfold on two busy cores.
    """
    for name, value in {
        "OMP_WAIT_POLICY": "PASSIVE",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "ERROR",
    }.items():
        os.environ.setdefault(name, value)
    os.environ["PREFECT_SERVER_ALLOW_EPHEMERAL_MODE"] = "false"  # one that starts with each run is not up in time
    reach_local_addresses_directly()


def reach_local_addresses_directly() -> None:
    """Keep local addresses from the proxy, if the environment names one: it would get the logins of local servers.

    Where it names none nothing is set: a variable would hide the proxy of the system's own settings.
    """
    if not proxies():
        return
    told = [os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY")]
    hosts = [host.strip() for host in ",".join(told).split(",") if host.strip()]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys([*hosts, *LOCAL_ADDRESSES]))


def proxies() -> dict[str, str]:
    """The variables of the environment that name a proxy, with host and port; a login in them is left out."""
    named = {name: value for name, value in sorted(os.environ.items()) if PROXY_VARIABLE.fullmatch(name) and value}
    places = {name: urlsplit(value if "://" in value else f"//{value}").netloc for name, value in named.items()}
    return {name: place.rpartition("@")[2] for name, place in places.items()}


def use_prefect(local: "Servers | None") -> None:
    """Let Prefect report to the local server, unless the environment names another; its log is in its own pages.

    Before Prefect is loaded, which reads it once. The processes that it starts get the same.
    """
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")  # each event that a server missed, in full
    sys.modules.setdefault(SLOW, cast("ModuleType", None))  # as if it were not installed
    if local is None:
        return
    if os.environ.setdefault(PREFECT_URL, local.prefect_api_url).rstrip("/") == local.prefect_api_url:
        os.environ[PREFECT_LOGIN] = local.prefect_login


def require_prefect() -> None:
    """Refuse to go on where no Prefect server is named; Prefect would start one of its own for each run.

    Raises:
        ConfigError: with the places where servers were looked for.
    """
    from prefect.settings import get_current_settings

    from flows.config import ConfigError

    if get_current_settings().api.url is None:
        raise ConfigError(
            f"there is no Prefect server: {_what_is_away()}, and {PREFECT_URL} names none. Start what is away "
            f"with `labelcycle up` and the campaign's file, let {VARIABLE} name the folder of those that run, or "
            f"set {PREFECT_URL}"
        )


def _what_is_away() -> str:
    """Local servers are used together: none of them is, where one does not answer."""
    from deploy import servers

    known = servers.addresses(home())
    away = [name for name in known if not servers.answers(home(), name)]
    return f"of those of {home()} {', '.join(away)} does not answer" if away else f"none was started in {home()}"


def print_addresses(local: "Servers", console: Console) -> None:
    """Print where the three servers are and how a person logs in."""
    from deploy import logins

    user, password = local.mlflow_login
    lines = (
        f"Label Studio  {local.label_studio_url}   log in as {local.email}",
        f"MLflow        {local.mlflow_url}   log in as {user}",
        f"Prefect       {local.prefect_ui_url}   log in with {local.prefect_login.replace(password, 'PASSWORD')}",
        f"PASSWORD      {password}   of all three, kept in {logins.password_file(local.home)}, which only you can read",
    )
    for line in lines:
        console.print(line, soft_wrap=True, markup=False, highlight=False)
