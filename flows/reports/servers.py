"""Which of a campaign's servers answer now: all are asked at once, with no login, and for a short while only."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from connectors.reachable import problem_at
from deploy import servers
from flows.config import CampaignSettings
from flows.local import PREFECT_URL
from pipeline.settings import LOCAL

SECONDS = 2.0
"""What a server gets to answer in."""
NAMES = {"label_studio": "Label Studio", "mlflow": "MLflow", "prefect": "Prefect"}
OF_UP = {"label_studio": "label-studio", "mlflow": "mlflow", "prefect": "prefect"}
"""What the servers of `labelcycle up` are called there."""


@dataclass(frozen=True)
class SeenServer:
    """A server as it was seen.

    Attributes:
        url: where it is; None for one of `labelcycle up` that was never started.
        is_local: whether `labelcycle up` starts it.
        answers: whether it does.
        why: what is wrong; None where it answers.
    """

    url: str | None
    is_local: bool
    answers: bool = False
    why: str | None = f"no answer within {SECONDS:g} s"


def ask_servers(settings: CampaignSettings, home: Path) -> Callable[[], dict[str, SeenServer]]:
    """Begin to ask the servers of a campaign.

    Returns:
        A call that waits for the answers, for `SECONDS` at most from the beginning on.
    """
    seen = dict(_places(settings, home))
    until = time.monotonic() + SECONDS

    def ask(name: str) -> None:
        why = _ask_local(home, OF_UP[name]) if seen[name].is_local else problem_at(f"{seen[name].url}/health", SECONDS)
        seen[name] = replace(seen[name], answers=why is None, why=why)

    threads = [threading.Thread(target=ask, args=(name,), daemon=True) for name in seen]
    for thread in threads:
        thread.start()

    def answers() -> dict[str, SeenServer]:
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        return dict(seen)

    return answers


def away_lines(seen: Mapping[str, SeenServer]) -> Iterator[str]:
    """A line for each server that does not answer."""
    for name, server in seen.items():
        if not server.answers:
            mend = "; `labelcycle up` starts it" if server.is_local else ""
            yield f"{NAMES[name]} is away{f', {server.url}' if server.url else ''}: {server.why}{mend}"


def _places(settings: CampaignSettings, home: Path) -> Iterator[tuple[str, SeenServer]]:
    """The servers that are asked. A file of MLflow is none; a Prefect that Prefect's own profile names is not known."""
    named = {"label_studio": settings.label_studio.url, "mlflow": settings.mlflow.uri}
    known = servers.addresses(home)
    named["prefect"] = os.environ.get(PREFECT_URL) or (LOCAL if known else "")
    if named["prefect"].rstrip("/") == f"{known.get('prefect')}/api":
        named["prefect"] = LOCAL
    for name, url in named.items():
        if url == LOCAL:
            yield name, SeenServer(known.get(OF_UP[name]), is_local=True)
        elif url.startswith(("http://", "https://")):
            yield name, SeenServer(without_login(url.rstrip("/")), is_local=False)


def without_login(url: str) -> str:
    """An address as it may be shown."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _ask_local(home: Path, name: str) -> str | None:
    """What is wrong with a server of `labelcycle up`."""
    if name not in servers.addresses(home):
        return f"it was never started in {home}"
    return None if servers.answers(home, name) else "it does not run, or does not answer"
