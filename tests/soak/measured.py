"""A command that notes what it costs: memory, open files, and its requests to each server."""

import resource
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import requests.adapters

from tests.soak.trial import as_json
from tests.system.conftest import be_command


def measured_command(report: str, output: str, arguments: tuple[str, ...], environment: Mapping[str, str]) -> None:
    """Be a command; write its costs as JSON, whatever it ends with."""
    asked: Counter[str] = Counter()
    count_requests(asked)
    try:
        be_command(output, arguments, environment)
    finally:
        costs = {
            "rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "open_files": len(list(Path("/proc/self/fd").iterdir())),
            "requests": asked,
        }
        Path(report).write_text(as_json(costs), encoding="utf-8")


def count_requests(asked: Counter[str]) -> None:
    """Count each request of this process under "<port> <method> <path>"."""

    def counted(send: Callable, url_of: Callable) -> Callable:
        def count_and_send(transport, request, *args, **options):
            place = urlsplit(str(url_of(request)))
            asked[f"{place.port} {request.method} {place.path}"] += 1
            return send(transport, request, *args, **options)

        return count_and_send

    for owner, name in (
        (httpx.HTTPTransport, "handle_request"),
        (httpx.AsyncHTTPTransport, "handle_async_request"),
        (requests.adapters.HTTPAdapter, "send"),
    ):
        setattr(owner, name, counted(getattr(owner, name), lambda request: request.url))
