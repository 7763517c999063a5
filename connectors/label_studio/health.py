"""Whether people can label in a project: the server, the token, the project, its page, and the images. Only looks."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import httpx

from connectors.annotation import AnnotationToolError, Asked
from connectors.health import Finding, beside_clock, failure, in_order, warning
from connectors.label_studio.api import Api
from connectors.label_studio.connection import TOKEN_VARIABLE
from connectors.label_studio.images import ShownImages
from connectors.label_studio.pages import IMAGE
from connectors.label_studio.project import Project
from connectors.label_studio.reading import HeldTask
from connectors.label_studio.tasks import Tasks

TOKEN_NOTICE = timedelta(days=14)
"""How long before its end a token is worth a word."""
IMAGE_SECONDS = 8.0
ALSO_IMAGES = ("application/octet-stream", "binary/octet-stream")
"""Types that stores give to any file, and that a browser shows as the image that it is."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where people label, in parts."""

    api: Api
    project: Project
    images: ShownImages
    tasks: Tasks


def look(place: Place, rounds: Sequence[Asked]) -> Iterator[Finding]:
    """Look at all parts in order, until one fails; see `AnnotationTool.check`."""
    return in_order(PARTS, lambda name, part: part(name, place, rounds), AnnotationToolError)


def _server(name: str, place: Place, _rounds: Sequence[Asked]) -> Finding:
    version, date = place.api.version()
    connection = place.api.connection
    found = beside_clock(name, f"{version} at {connection.url} takes the token of {place.api.person()}", date)
    ends = connection.token_ends
    if ends is not None and ends - datetime.now(UTC) < TOKEN_NOTICE:
        mend = f"make another one under Account & Settings, Personal Access Token, and put it into {TOKEN_VARIABLE}"
        return warning(name, f"{found.found}; the token ends on {ends:%Y-%m-%d}", mend)
    return found


def _project(name: str, place: Place, rounds: Sequence[Asked]) -> Finding:
    if place.project.find() is None and not rounds:
        return Finding(name, f"{place.project.title!r} is not there yet: the first run makes it")
    return Finding(name, f"{place.project.title!r} is at {place.project.address}")


def _page(name: str, place: Place, rounds: Sequence[Asked]) -> Finding | None:
    if not rounds:
        return None  # the first push makes page and tasks what they must be
    held = place.project.held()
    place.project.check(held)
    changed = place.project.changed(held)
    if changed:
        told = f"somebody changed {', '.join(sorted(changed))}, on which the order of tasks depends"
        return warning(name, told, "nothing: the next `labelcycle run` sets it back")
    return Finding(name, f"asks for {', '.join(place.project.classes)}, and serves the most wanted first")


def _images(name: str, place: Place, rounds: Sequence[Asked]) -> Finding:
    opened, uris = _open_tasks(place.tasks, rounds)
    if not opened:
        return Finding(name, "no task is open, so that no image was loaded")
    addresses = {uris[task.item_id]: str(task.data.get(IMAGE)) for task in opened}
    if place.images.lacks_storage(addresses.values()):
        return failure(name, "the project has lost the storage that it shows images from", STORAGE)
    place.images.check(addresses, may_renew=False)
    uri = next(iter(addresses))
    if uri.startswith(("http://", "https://")) and (problem := _problem_elsewhere(uri)):
        return warning(name, f"this machine cannot load {uri}, of an open task: {problem}", ELSEWHERE)
    return Finding(name, f"{len(opened)} open tasks; {uri} loads as an annotator's browser loads it")


def _open_tasks(tasks: Tasks, rounds: Sequence[Asked]) -> tuple[list[HeldTask], dict[str, str]]:
    """The tasks of the newest round of which some are open, and the image of each item."""
    for each in reversed(rounds):
        uris = {question.item_id: question.uri for question in each.questions}
        ours = {task_id: ask.item_id for ask, task_id in each.task_ids.items()}
        held = tasks.between(min(ours) - 1, max(ours)) if ours else ()
        opened = [task for task in held if ours.get(task.id) == task.item_id in uris and not task.is_answered]
        if opened:
            return opened, uris
    return [], {}


def _problem_elsewhere(address: str) -> str:
    """What is wrong with an image of another server, for a browser that has logged in nowhere; empty if nothing."""
    try:
        with httpx.stream("GET", address, timeout=IMAGE_SECONDS, follow_redirects=True) as answer:
            kind = answer.headers.get("content-type", "").partition(";")[0]
            if answer.status_code != httpx.codes.OK:
                return f"its server answers {answer.status_code}"
            return "" if kind.startswith("image/") or kind in ALSO_IMAGES else f"it is of the type {kind or 'unknown'}"
    except (httpx.HTTPError, httpx.InvalidURL) as exc:
        return str(exc) or type(exc).__name__


STORAGE = "run `labelcycle run`, which attaches it again, before anybody labels"
ELSEWHERE = "open an image of the project in a browser; where it does not show, let annotators read its address"

Part = Callable[[str, Place, Sequence[Asked]], Finding | None]
PARTS: dict[str, tuple[Part, str]] = {
    "Label Studio": (
        _server,
        "start it (`labelcycle up` where url is 'local'); mend url in [label_studio], or the token in "
        f"{TOKEN_VARIABLE}",
    ),
    "project": (_project, "bring the project back in Label Studio, or set url and project in [label_studio]"),
    "labelling page": (_page, "set the page back in the project's settings, under Labeling Interface"),
    "images shown": (
        _images,
        "put the images where `pool` says, then `labelcycle run`, which gives open tasks the addresses of now",
    ),
}
"""What is looked at, in order, and what to do where it fails."""
