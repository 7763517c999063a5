"""The line to a Label Studio: token, waits, repeats, and what goes wrong as an error of `connectors.annotation`."""

import base64
import ipaddress
import json
import re
import time
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import httpx
import tenacity

from connectors.annotation import AnnotationToolError, AnnotationToolUnavailable, AuthenticationFailed

TOKEN_VARIABLE = "LABEL_STUDIO_API_KEY"  # noqa: S105
MOST_RESPONSE_BYTES = 256 * 2**20
TIMEOUT_SECONDS = 120.0
RESPONSE_SECONDS = 300.0
ATTEMPTS = 6
PATIENCE_SECONDS = 60.0
FIRST_WAIT_SECONDS = 0.5
LONGEST_WAIT_SECONDS = 20.0
LEADS_AWAY = "labelcycle.leads_away"
"""Marks a request whose answer may lead to another server; nobody follows there with the token."""

T = TypeVar("T")


class NotThere(AnnotationToolError):
    """The server does not have what was asked for (404)."""


class TokenAuth(httpx.Auth):
    """A token of Label Studio; a personal access token gives access for some minutes at a time."""

    requires_response_body = True

    def __init__(self, token: str, *, url: str) -> None:
        self._token = token
        self._refresh = f"{url}/api/token/refresh/"
        self._header = "" if token.count(".") == 2 else f"Token {token}"

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Send the request with access, and once more with new access where the former has ended."""
        is_fresh = not self._header
        if is_fresh:
            yield from self._gain_access()
        request.headers["Authorization"] = self._header
        response = yield request
        if response.status_code == 401 and self._header.startswith("Bearer ") and not is_fresh:
            yield from self._gain_access()
            request.headers["Authorization"] = self._header
            yield request

    def _gain_access(self) -> Generator[httpx.Request, httpx.Response, None]:
        response = yield httpx.Request("POST", self._refresh, json={"refresh": self._token})
        response.raise_for_status()
        self._header = f"Bearer {response.json()['access']}"


class Connection:
    """Requests to one server.

    Args:
        url: address of the server, without a slash at its end.
        token: personal access token; the older kind works where the server still takes it.
        say: called with one line on whatever takes long.
    """

    def __init__(self, url: str, token: str, *, say: Callable[[str], None]) -> None:
        self.url = url
        self._token = _checked_token(token)
        self._secrets = [self._token]
        self.say = say
        self._away_since: float | None = None

    @cached_property
    def _http(self) -> httpx.Client:
        http = httpx.Client(
            auth=TokenAuth(self._token, url=self.url),
            timeout=TIMEOUT_SECONDS,
            follow_redirects=True,
            headers={"Accept-Encoding": "identity"},  # what is small on the way may be huge when it is unpacked
            event_hooks={"response": [self._guard, self._bound]},
            trust_env=not _is_this_machine(self.url),  # a proxy does not reach the servers of this machine
        )
        weakref.finalize(self, http.close)
        return http

    @property
    def token_ends(self) -> datetime | None:
        """When the token is not taken any more; None for one that does not tell, as the older kind."""
        try:
            claims = self._token.split(".")[1]
            return datetime.fromtimestamp(json.loads(base64.urlsafe_b64decode(f"{claims}==="))["exp"], UTC)
        except (IndexError, KeyError, TypeError, ValueError, OverflowError, OSError):
            return None

    def send(self, method: str, path: str, **options: Any) -> httpx.Response:
        """One request, whose answer may be a refusal.

        Args:
            options: `params` and `json`, as httpx takes them.
        """
        return self._http.request(method, f"{self.url}{path}", **options)

    def read(self, method: str, path: str, **options: Any) -> Any:
        """One request that must succeed; the JSON of its answer."""
        return self.send(method, path, **options).raise_for_status().json()

    def look(self, path: str, params: Mapping[str, str]) -> httpx.Response:
        """One request for what may be at another server; its answer leads there then."""
        return self._http.get(f"{self.url}{path}", params=params, follow_redirects=False, extensions={LEADS_AWAY: True})

    def look_elsewhere(self, address: str) -> httpx.Response:
        """What another server answers a page of this one, without the token; errors are those of httpx."""
        headers = {"Origin": self.origin, "Accept-Encoding": "identity"}
        hooks = {"response": [self._bound]}
        here = _is_this_machine(address)
        with httpx.Client(timeout=TIMEOUT_SECONDS, headers=headers, event_hooks=hooks, trust_env=not here) as http:
            return http.get(address)

    @property
    def origin(self) -> str:
        """What browsers tell other servers of a page of this one."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"

    def hide(self, secrets: Iterable[str]) -> None:
        """Leave these out of errors from now on."""
        words = (" ".join(one.split()) for one in secrets)  # as `_told` sees them
        self._secrets += [one for one in words if one]

    @contextmanager
    def talk(self) -> Iterator[None]:
        """Turn what goes wrong while the server is asked and its answer is read into our errors, without the token."""
        try:
            with self._translating():
                yield
        except AnnotationToolUnavailable:
            self._away_since = self._away_since or time.monotonic()
            raise
        self._away_since = None

    def repeatable(self, call: Callable[[], T]) -> T:
        """Make a call that does no harm when it is made twice; repeat it while the server is away or busy."""
        return self.retrying()(call)

    def retrying(self) -> tenacity.Retrying:
        """Attempts while the server is away or busy, with longer and longer waits."""
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(AnnotationToolUnavailable),
            stop=self._is_out_of_patience,
            wait=tenacity.wait_exponential_jitter(
                multiplier=FIRST_WAIT_SECONDS, max=LONGEST_WAIT_SECONDS, jitter=FIRST_WAIT_SECONDS
            ),
            before_sleep=self._say_what_is_waited_for,
            reraise=True,
        )

    def _is_out_of_patience(self, state: tenacity.RetryCallState) -> bool:
        """Whether this call was made often enough, or the server has been away for long, whatever it was asked."""
        away = 0.0 if self._away_since is None else time.monotonic() - self._away_since
        return state.attempt_number >= ATTEMPTS or away > PATIENCE_SECONDS

    def _say_what_is_waited_for(self, state: tenacity.RetryCallState) -> None:
        why = state.outcome.exception() if state.outcome else None
        self.say(f"{why}. Trying again ({state.attempt_number} of {ATTEMPTS})")

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPStatusError as exc:
            raise self._error(exc.response.status_code, _body(exc.response)) from exc
        except httpx.UnsupportedProtocol as exc:
            raise AnnotationToolError(f"{self.url!r} is not the address of a server: {exc}") from exc
        except httpx.TransportError as exc:
            reason = str(exc) or type(exc).__name__
            raise AnnotationToolUnavailable(
                f"Label Studio at {self.url} does not answer: {reason}; try again when it does"
            ) from exc
        except (httpx.TooManyRedirects, httpx.InvalidURL) as exc:
            raise AnnotationToolError(f"{self.url} does not answer as Label Studio does: {exc}") from exc
        except json.JSONDecodeError as exc:
            raise AnnotationToolUnavailable(self._is_no_label_studio(exc.doc)) from exc
        except (httpx.HTTPError, AttributeError, KeyError, TypeError, ValueError) as exc:
            # An empty answer, a page, a list in place of a task.
            raise AnnotationToolUnavailable(self._is_no_label_studio(str(exc))) from exc

    def _is_no_label_studio(self, answer: str) -> str:
        words = self._told(answer) or "an empty answer"
        return f"{self.url} does not answer as Label Studio does: {words}; try again, or mend the address"

    def _error(self, status: int, body: Any) -> AnnotationToolError:
        words = self._told(_words(body))
        if status == 401:
            return AuthenticationFailed(
                f"Label Studio at {self.url} refuses the token: {words}. It wants a personal access token: make one "
                "in Label Studio under Account & Settings, Personal Access Token, and put it into the environment "
                f"variable {TOKEN_VARIABLE}"
            )
        if status in (408, 429) or status >= 500:
            return AnnotationToolUnavailable(f"Label Studio at {self.url} is busy ({status}): {words}; try again")
        kind = NotThere if status == 404 else AnnotationToolError
        return kind(f"Label Studio at {self.url} refuses ({status}): {words}")

    def _told(self, text: str) -> str:
        """The server's words in one line that is not too long, without secrets."""
        words = " ".join(text.split())
        for secret in self._secrets:  # before the cut, which could leave half of one
            words = words.replace(secret, "[secret]")
        return words[:500].rstrip(".")

    def _guard(self, response: httpx.Response) -> None:
        """Follow no answer to another host, as the token may go along."""
        if response.has_redirect_location and LEADS_AWAY not in response.request.extensions:
            there = response.request.url.join(response.headers["location"])
            if _origin(there) != _origin(response.request.url):
                place = there.copy_with(query=None, fragment=None, username=None, password=None)
                raise AnnotationToolError(
                    f"{self.url} points to {place}, where the token was not sent. If that is your Label Studio, write "
                    "its address as the url"
                )
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise AnnotationToolError(f"{self.url} packs its answers, though asked not to")

    def _bound(self, response: httpx.Response) -> None:
        """Believe no answer that has no end."""
        response.stream = _Bounded(cast(httpx.SyncByteStream, response.stream), self.url)


class _Bounded(httpx.SyncByteStream):
    """The body of an answer, with an end to its length and to the time that it takes."""

    def __init__(self, stream: httpx.SyncByteStream, url: str) -> None:
        self._stream = stream
        self._url = url

    def __iter__(self) -> Iterator[bytes]:
        began, n_bytes = time.monotonic(), 0
        for chunk in self._stream:
            n_bytes += len(chunk)
            if n_bytes > MOST_RESPONSE_BYTES:
                raise AnnotationToolError(f"{self._url} answers with more than {MOST_RESPONSE_BYTES} bytes at once")
            if time.monotonic() - began > RESPONSE_SECONDS:
                raise httpx.ReadTimeout(f"an answer was not complete after {RESPONSE_SECONDS:.0f} s")
            yield chunk

    def close(self) -> None:
        self._stream.close()


def _checked_token(token: str) -> str:
    token = token.strip()
    if not token:
        raise AuthenticationFailed(f"no token for Label Studio: set the environment variable {TOKEN_VARIABLE}")
    if not re.fullmatch(r"[!-~]+", token):
        raise AuthenticationFailed(f"the token in {TOKEN_VARIABLE} has characters that no token has")
    return token


def _body(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return response.text


def _words(body: Any) -> str:
    """What an answer says in words."""
    said = [body.get("detail"), body.get("validation_errors")] if isinstance(body, dict) else [body]
    return " ".join(_strings(said))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from (f"{name}: {text}" for text in _strings(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
    elif value is not None:
        yield str(value)


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _is_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or host.endswith(".localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
