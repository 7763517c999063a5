"""The two hooks: a command that gets an event on its standard input, and a webhook that it is posted to."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, build_opener

from connectors.reachable import NoRedirect
from pipeline.settings import Plain

WEBHOOK = "LABELCYCLE_WEBHOOK"
"""In the environment: the address of the webhook, which is a secret. The same with _FILE names a file that holds it."""
SECONDS = 20.0
"""A hook gets so long; no run waits longer for it."""

Send = Callable[[Plain], None]


class HookError(Exception):
    """A hook did not take an event; the message holds no address and nothing that the hook printed."""


def hooks_of(
    command: tuple[str, ...] | None, *, folder: Path, seconds: float = SECONDS, is_shown: bool = False
) -> dict[str, Send]:
    """The hooks that are set, by name.

    Args:
        command: a program and its arguments; relative paths are relative to `folder`.
        folder: of the campaign file.
        seconds: that a hook may take.
        is_shown: whether what the command prints is shown; a log does not get it, as nobody knows what stands in it.
    """
    hooks: dict[str, Send] = {}
    if command is not None:
        hooks["command"] = partial(run_command, command, folder=folder, seconds=seconds, is_shown=is_shown)
    if os.environ.get(WEBHOOK) or os.environ.get(f"{WEBHOOK}_FILE"):
        hooks["webhook"] = partial(_post_to_webhook, seconds=seconds)
    return hooks


def run_command(
    command: tuple[str, ...], event: Plain, *, folder: Path, seconds: float, is_shown: bool = False
) -> None:
    """Start the command, and wait until it has taken the event.

    Raises:
        HookError: it cannot be started, fails, or takes too long; then it is ended, with all that it started.
    """
    to = None if is_shown else subprocess.DEVNULL
    try:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.PIPE, stdout=to, stderr=to, start_new_session=True
        )
    except (OSError, ValueError) as exc:
        raise HookError(f"cannot be started: {command[0]}: {getattr(exc, 'strerror', None) or exc}") from exc
    try:
        process.communicate(_body(event), timeout=seconds)
    except subprocess.TimeoutExpired as exc:
        raise HookError(f"took more than {seconds:g} s and was ended") from exc
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if process.returncode:
        raise HookError(f"ended with the exit code {process.returncode}")


def webhook_address() -> str:
    """The address of the webhook, from the environment or from the file that it names.

    Raises:
        HookError: the file cannot be read, or what is there is no address.
    """
    address, where = os.environ.get(WEBHOOK, ""), WEBHOOK
    if not address:
        where = f"{WEBHOOK}_FILE"
        try:
            address = Path(os.environ[where]).read_text(encoding="utf-8")
        except (OSError, ValueError, KeyError) as exc:
            raise HookError(f"the file that {where} names cannot be read") from exc
    address = address.strip()
    try:
        parts = urlsplit(address)
        is_address = parts.scheme in ("http", "https") and parts.hostname and address.isprintable()
        parts.port  # noqa: B018 (which is checked when it is read)
    except ValueError:
        is_address = False
    if not is_address or " " in address:
        raise HookError(f"{where} must hold an address that begins with https:// or http://")
    return address


def _post_to_webhook(event: Plain, *, seconds: float) -> None:
    post(webhook_address(), event, seconds=seconds)


def post(address: str, event: Plain, *, seconds: float) -> None:
    """Post the event as JSON; a redirect is not followed, and of the answer only its status is read.

    Raises:
        HookError: there is no answer in time, or it is no success.
    """
    failed: list[str] = []

    def send() -> None:
        request = Request(address, data=_body(event), headers={"Content-Type": "application/json"})  # noqa: S310
        try:
            with build_opener(NoRedirect).open(request, timeout=seconds):
                return
        except HTTPError as exc:
            exc.close()
            failed.append(_refusal(exc.code))
        except URLError as exc:
            failed.append(f"cannot be reached: {getattr(exc.reason, 'strerror', None) or type(exc.reason).__name__}")
        except Exception as exc:  # whose text may hold the address
            failed.append(f"cannot be reached: {type(exc).__name__}")

    # A server that sends a byte now and then would hold us up for ever: each byte begins the socket's time anew.
    sending = threading.Thread(target=send, name="labelcycle-webhook", daemon=True)
    sending.start()
    sending.join(seconds)
    if sending.is_alive():
        raise HookError(f"did not answer within {seconds:g} s")
    if failed:
        raise HookError(failed[0])


def _refusal(status: int) -> str:
    if 300 <= status < 400:
        return f"answers with a redirect ({status}), which is not followed: give the address that it leads to"
    return f"refuses, with the status {status}"


def _body(event: Mapping[str, object]) -> bytes:
    return json.dumps(event, ensure_ascii=False).encode(errors="replace") + b"\n"  # names of files may be no text
