"""What a person reads when a command fails: one line that says what is wrong and what to do, and an exit code."""

import sys
import traceback
from typing import Any

import typer
from rich.text import Text
from typer.core import TyperGroup

from connectors.store import explain
from flows.local import proxies
from flows.terminal import Terminal

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_AWAITING = 3
EXIT_STOPPED = 130
EXIT_CODES = {
    0: "done",
    EXIT_FAILURE: "failure: a server, a disk or a training; the same command may work later",
    EXIT_USAGE: "usage or configuration: the command or a file must be changed first",
    EXIT_AWAITING: "awaiting labels: nothing was changed, run again when people have labelled",
    EXIT_STOPPED: "stopped: by Ctrl-C, and the same command goes on",
}
"""What each exit code of a command means."""

KNOWN = (
    ("flows.config", "ConfigError", EXIT_USAGE),
    ("flows.changes", "CampaignChanged", EXIT_USAGE),
    ("connectors.annotation", "AuthenticationFailed", EXIT_USAGE),
    ("pipeline.pool.reasons", "PoolError", EXIT_USAGE),
    ("pipeline.pool.reasons", "PoolRefused", EXIT_USAGE),
    ("pipeline.pool.reasons", "PoolUnavailable", EXIT_FAILURE),
    ("connectors.region_files.labelled", "RegionFileError", EXIT_USAGE),
    ("pipeline.networks.errors", "ModelError", EXIT_USAGE),
    ("connectors.annotation", "AnnotationToolError", EXIT_FAILURE),
    ("connectors.tracking", "TrackerError", EXIT_FAILURE),
    ("flows.folder", "CampaignBusy", EXIT_FAILURE),
    ("flows.workers.cluster", "WrongWorkers", EXIT_USAGE),
    ("flows.workers.cluster", "WorkersError", EXIT_FAILURE),
    ("connectors.store", "StoreError", EXIT_FAILURE),
    ("pipeline.training.fit", "TrainingError", EXIT_FAILURE),
    ("deploy.logins", "ServerError", EXIT_FAILURE),
)
"""Errors whose text says what to do: module, name, exit code; the first that fits counts."""
OUTSIDE = (
    ("connectors.annotation", "AnnotationToolError"),
    ("connectors.tracking", "TrackerError"),
    ("pipeline.networks.errors", "ModelError"),
    ("pipeline.pool.reasons", "PoolUnavailable"),
    ("httpx", "TransportError"),
    ("builtins", "RuntimeError"),
)
"""Errors of other systems, to which a proxy may bar the way."""


class CommandGroup(TyperGroup):
    """Commands that print an error of any kind in one line; `--debug` shows the traceback too."""

    def invoke(self, ctx: Any) -> object:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except (typer.Abort, BrokenPipeError):
            raise
        except Exception as exc:
            if hasattr(exc, "exit_code"):  # typer's own, which it tells itself
                raise
            if ctx.params.get("debug"):
                traceback.print_exc()
            message, exit_code = explain_error(exc)
            raise tell(message, exit_code) from exc


def tell(message: str, exit_code: int = EXIT_USAGE) -> typer.Exit:
    """Print what is wrong; return what ends the command."""
    Terminal(stderr=True).print(Text.assemble(("Error:", "red"), " ", message), soft_wrap=True, highlight=False)
    return typer.Exit(exit_code)


def explain_error(exc: Exception) -> tuple[str, int]:
    """The line that a person reads of an error, and the command's exit code."""
    for module, name, exit_code in KNOWN:
        if _is(exc, module, name):
            return f"{exc}{_proxy_note(exc)}", exit_code
    if _is(exc, "sqlalchemy.exc", "SQLAlchemyError"):
        return f"the database fails: {_first_line(exc)}", EXIT_FAILURE
    if isinstance(exc, MemoryError) or _is(exc, "torch", "OutOfMemoryError"):
        return f"there is not enough memory: {_first_line(exc) or 'end other programs'}", EXIT_FAILURE
    if "Failed to reach API" in str(exc) or _is(exc, "httpx", "TransportError"):
        why = _first_line(exc) or type(exc).__name__
        return f"Prefect does not answer: {why}. Start it, or unset PREFECT_API_URL{_proxy_note(exc)}", EXIT_FAILURE
    if _is(exc, "prefect.exceptions", "PrefectHTTPStatusError"):
        return f"Prefect refuses: {_first_line(exc)}. PREFECT_API_AUTH_STRING is its login", EXIT_FAILURE
    if isinstance(exc, OSError):
        return explain(exc), EXIT_FAILURE
    kind, what = type(exc).__name__, _first_line(exc)
    return f"unexpected: {kind}: {what}; run again with `labelcycle --debug …`, and report it", EXIT_FAILURE


def _is(exc: Exception, module: str, name: str) -> bool:
    """Whether an error is of a class, whose module is loaded already if so."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(exc, getattr(loaded, name))


def _first_line(exc: Exception) -> str:
    return (str(exc).strip().splitlines() or [""])[0]


def _proxy_note(exc: Exception) -> str:
    """That there is a proxy, where an outside system fails: it may be what answers, or does not."""
    found = proxies()
    if not found or not any(_is(exc, module, name) for module, name in OUTSIDE):
        return ""
    told = ", ".join(f"{name}={place}" for name, place in found.items())
    return f". The environment names a proxy for all but local addresses: {told}"
