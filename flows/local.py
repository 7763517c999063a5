"""The servers of this machine, as the command uses them."""

import os

from rich.console import Console

from deploy import servers


def prepare_environment() -> None:
    """Set what the libraries read when they are loaded; what the environment already says stays.

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


def use_prefect(local: servers.Servers | None) -> None:
    """Let Prefect report to the local server, unless the environment names another; its log is in its own pages."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    if local is not None:
        os.environ.setdefault("PREFECT_API_URL", local.prefect_api_url)


def print_addresses(local: servers.Servers, console: Console) -> None:
    """Print where the three servers are; a password that somebody chose is not printed."""
    password = (
        local.password if local.password == servers.DEFAULT_PASSWORD else f"what {servers.PASSWORD_VARIABLE} says"
    )
    console.print(
        f"Label Studio  {local.label_studio_url}   log in as {local.email}, password: {password}",
        soft_wrap=True,
    )
    console.print(f"MLflow        {local.mlflow_url}", soft_wrap=True)
    console.print(f"Prefect       {local.prefect_ui_url}", soft_wrap=True)
