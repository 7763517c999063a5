"""Whether anything answers at an address: one request, with no login, that follows nothing."""

import ssl
from http.client import HTTPException
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, build_opener


class NoRedirect(HTTPRedirectHandler):
    """What is sent, and the address itself, may be secret: neither goes to another host."""

    def redirect_request(self, *_: object, **__: object) -> None:
        """Follow nothing."""


def problem_at(url: str, seconds: float) -> str | None:
    """What is wrong at an address; None where a server answers, whatever it answers but an error of its own."""
    try:
        build_opener(NoRedirect).open(url, timeout=seconds).close()  # a redirect, to a login for example, is an answer
    except HTTPError as exc:
        return f"it answers with {exc.code}" if exc.code >= 500 else None
    except URLError as exc:
        if isinstance(exc.reason, ssl.SSLCertVerificationError):  # whose word we do not need here
            return None
        reason = exc.reason
        return str(reason.strerror or reason) if isinstance(reason, OSError) else str(reason)
    except (OSError, HTTPException) as exc:
        return str(exc) or type(exc).__name__
    return None
