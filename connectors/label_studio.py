"""Label Studio as the annotation tool: a campaign is a project, an image asked for in a round is a task.

What its pages, tasks and annotations look like is in `label_studio_format`; here is the connection.
"""

import json
import os
import re
import time
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

import httpx
import tenacity
from label_studio_sdk import ImportApiRequest
from label_studio_sdk.actions import PrepareParamsRequestRequestSelectedItemsIncluded
from label_studio_sdk.client import LabelStudio as Client
from label_studio_sdk.core.api_error import ApiError
from label_studio_sdk.core.parse_error import ParsingError

from connectors.annotation import (
    AnnotationToolError,
    AnnotationToolUnavailable,
    AuthenticationFailed,
    Progress,
    ProjectMismatch,
    Pulled,
    PushMismatch,
    Task,
)
from connectors.label_studio_format import (
    CONTROL,
    check_tasks,
    checked_classes,
    labelling_page,
    page_differences,
    page_with_classes,
    read_answer,
    stored_names,
    task_to_import,
)
from pipeline.types import Answer

TOKEN_VARIABLE = "LABEL_STUDIO_API_KEY"  # noqa: S105
INSTRUCTIONS = (
    "Choose the class that the image shows, with the mouse or the key beside it. Where the model's guess is ticked and "
    "you agree, press Ctrl+Enter; it may be wrong. Skip an image that you cannot judge."
)
SETTINGS = {
    "sampling": "Uncertainty sampling",
    "skip_queue": "IGNORE_SKIPPED",  # a skip is an answer: the task is done, and a round can end
    "maximum_annotations": 1,  # with more, Label Studio serves tasks in another order
    "show_collab_predictions": True,
}
ANSWER_FIELDS = "id,data,annotations,drafts,result,was_cancelled,completed_by,lead_time,updated_at"
NEVER_MATCHES = "(?!)"

_CHUNK = 500
_PAGE = 500
_TIMEOUT_SECONDS = 120.0
_SETTLE_SECONDS = 10.0
_LOOK_SECONDS = 0.5
_ATTEMPTS = 6
_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 20.0

T = TypeVar("T")
Filter = tuple[str, str, str | float]


@dataclass(frozen=True, slots=True)
class _Held:
    """A task that Label Studio holds for a round."""

    task_id: int
    item_id: str
    is_answered: bool


class LabelStudio:
    """One Label Studio project that asks for one class for each image.

    Args:
        url: address of the server.
        token: personal access token; the older kind works where the server still takes it.
        project: title, 3 to 50 characters; the project is found or made under it.
        classes: the answers that a person can give, in the order of the page.
        images_root: local images lie in this folder, which the server sees under the same path; None if all
            images have an address of their own (http, s3, …).
        instructions: what annotators read before they begin; may be HTML.
        renamed: what a class was called -> what it is called now.
        former_project: the title that the project had before, if it was another.
        former_classes: those of the project's page when this campaign saw it last; only such a page gets others.
    """

    def __init__(
        self,
        *,
        url: str,
        token: str,
        project: str,
        classes: Sequence[str],
        images_root: Path | None = None,
        instructions: str = INSTRUCTIONS,
        renamed: Mapping[str, str] = MappingProxyType({}),
        former_project: str | None = None,
        former_classes: Sequence[str] = (),
    ) -> None:
        if not 3 <= len(project) <= 50 or project != project.strip():
            raise ValueError(f"a project title has 3 to 50 characters and no space around, got {project!r}")
        self.url = url.rstrip("/")
        self.project = project
        self.classes = checked_classes(classes)
        self.images_root = _normal(images_root) if images_root else None
        self.instructions = instructions
        self.renamed = renamed
        self.former_project = former_project
        self.former_classes = tuple(former_classes)
        self._token = _checked_token(token)

    def prepare(self) -> str:
        """Find or make the project, set what the order of tasks depends on, and return its page.

        Raises:
            ProjectMismatch: if the project of that title asks for something else.
        """
        self._project_id = project_id = _retrying()(self._find_or_create)
        project = self._repeatable(lambda: self._client.projects.get(project_id))
        controls, page = project.parsed_label_config or {}, project.label_config or ""
        differences = page_differences(controls, page)
        stored = [] if differences else list(controls[CONTROL]["labels"])
        shown = {self.renamed.get(name, name) for name in stored}
        before = {self.renamed.get(name, name) for name in self.former_classes}
        is_ours = bool(before) and before <= shown <= before | set(self.classes)
        if stored and shown != set(self.classes) and not is_ours:
            differences = [f"has the classes {', '.join(stored)} where {', '.join(self.classes)} are wanted"]
        if differences:
            raise ProjectMismatch(
                f"project {self.project!r} at {self.url} exists and {'; '.join(differences)}. "
                "Give this campaign another project title, or set the project back."
            )
        changes = {key: value for key, value in self._settings.items() if getattr(project, key) != value}
        if is_ours and self._shows_otherwise(controls[CONTROL]["labels_attrs"]):
            changes["label_config"] = page_with_classes(page, self.classes, self.renamed)
        self._names = stored_names(stored, self.classes, self.renamed)
        if changes:
            self._repeatable(lambda: self._client.projects.update(project_id, **changes))
        if self.images_root:
            root = self._served_root
            _retrying()(lambda: self._find_or_attach_storage(root))
        return f"{self.url}/projects/{project_id}/data"

    def push(self, tasks: Sequence[Task], *, round_number: int, model_version: str) -> dict[str, int]:
        """Make the round's tasks exist exactly once, most wanted first; see `AnnotationTool.push`.

        A new round is served before what is left of older ones, which then comes in any order.
        """
        check_tasks(tasks, round_number, self.classes)
        if not tasks:
            return {}
        version = f"round {round_number}: {model_version}"
        n_ranks = 1 + max(task.rank for task in tasks)
        payloads = {
            task.item_id: task_to_import(
                task, image=self._address(task.uri), version=version, n_ranks=n_ranks, names=self._names
            )
            for task in sorted(tasks, key=lambda task: task.rank)
        }
        self._import_missing(payloads, round_number)
        task_ids = self._read_back(payloads.keys(), round_number)
        self._repeatable(lambda: self._client.projects.update(self._project_id, model_version=version))
        return {task.item_id: task_ids[task.item_id] for task in tasks}

    def progress(self, *, round_number: int) -> Progress:
        """Count by the server's own counters; see `Progress`."""
        return Progress(
            n_tasks=self._count(round_number),
            n_labelled=self._count(round_number, ("total_annotations", "greater", 0)),
            n_set_aside=self._count(
                round_number, ("total_annotations", "equal", 0), ("cancelled_annotations", "greater", 0)
            ),
        )

    def pull(self, *, round_numbers: Sequence[int]) -> Pulled:
        """Read what stands on all tasks of these rounds; see `AnnotationTool.pull`."""
        answers: list[Answer] = []
        task_ids: dict[str, int] = {}
        n_drafts = 0
        emails = self._emails()
        for round_number in round_numbers:
            for task in self._tasks(round_number, include=ANSWER_FIELDS, fields="all"):
                if not isinstance(task.data, dict) or "item_id" not in task.data:
                    continue
                item_id = str(task.data["item_id"])
                task_ids[item_id] = task.id
                n_drafts += len(task.drafts or [])
                answers += [
                    read_answer(
                        annotation,
                        item_id=item_id,
                        task_id=task.id,
                        round_number=round_number,
                        classes=self.classes,
                        emails=emails,
                        renamed=self.renamed,
                    )
                    for annotation in task.annotations or []
                ]
        return Pulled(answers=answers, task_ids=task_ids, n_drafts=n_drafts)

    # ---- the project

    @cached_property
    def _client(self) -> Client:
        http = httpx.Client(timeout=_TIMEOUT_SECONDS, follow_redirects=True)
        weakref.finalize(self, http.close)
        settings = {"base_url": f"{self.url}/", "httpx_client": http, "max_retries": 0}
        return self._translated(lambda: Client(api_key=self._token, **settings))  # type: ignore[no-untyped-call]

    @property
    def _settings(self) -> dict[str, Any]:
        return SETTINGS | {
            "expert_instruction": self.instructions,
            "show_instruction": bool(self.instructions),
        }

    @cached_property
    def _names(self) -> dict[str, str]:
        """The name under which the page keeps each class: see `stored_names`."""
        controls = self._repeatable(lambda: self._client.projects.get(self._project_id)).parsed_label_config or {}
        return stored_names(list(controls[CONTROL]["labels"]), self.classes, self.renamed)

    def _shows_otherwise(self, choices: Mapping[str, Mapping[str, str]]) -> bool:
        """Whether the page lets people choose from other names than those of the classes, by stored name."""
        names = stored_names(list(choices), self.classes, self.renamed)
        kept = {stored for stored in choices if stored not in names.values()}
        return (
            any(choices.get(stored, {}).get("value") != label for label, stored in names.items())
            or bool({self.renamed.get(stored, stored) for stored in kept} - set(self.classes))
            or list(choices)[: len(names)] != list(names.values())
        )

    @cached_property
    def _project_id(self) -> int:
        project_id = self._repeatable(self._find)
        if project_id is None:
            raise AnnotationToolError(
                f"Label Studio at {self.url} has no project {self.project!r}. Bring it back, or set url and project in "
                "[label_studio] to where it is; to ask here instead, delete pushed.json of the round that is open"
            )
        return project_id

    def _find(self) -> int | None:
        """The project's id; one that still has its former title gets its new one."""
        found = self._find_titled(self.project)
        if found is not None or self.former_project is None:
            return found
        former = self._find_titled(self.former_project)
        if former is not None:
            self._client.projects.update(former, title=self.project)
        return former

    def _find_titled(self, title: str) -> int | None:
        list_projects: Any = self._client.projects.list
        found = list_projects(title=title, include="id,title", page_size=100)
        ids = sorted(project.id for project in found if project.title == title)
        if len(ids) > 1:
            raise ProjectMismatch(
                f"Label Studio at {self.url} has {len(ids)} projects {title!r} (ids {ids}); "
                "rename or delete all but the one that this campaign uses"
            )
        return ids[0] if ids else None

    def _find_or_create(self) -> int:
        found = self._translated(self._find)
        if found is not None:
            return found
        settings = {"title": self.project, "label_config": labelling_page(self.classes), **self._settings}
        created: Any = self._translated(lambda: self._client.projects.create(**settings))
        return int(created.id)

    # ---- local images

    @cached_property
    def _document_root(self) -> Path:
        """The folder that addresses of local images are relative to.

        Label Studio names it only when it refuses to serve a folder, and "/" it always refuses.
        """
        validate = self._client.import_storage.local.validate
        try:
            self._repeatable(lambda: validate(project=self._project_id, path="/"))
        except (AnnotationToolUnavailable, AuthenticationFailed):
            raise
        except AnnotationToolError as exc:
            named = re.search(r'LOCAL_FILES_DOCUMENT_ROOT="([^"]+)"', str(exc))
            if named:
                return Path(named[1])
            raise
        raise AnnotationToolError(f"Label Studio at {self.url} does not say where it looks for local images")

    def _find_or_attach_storage(self, root: Path) -> None:
        local = self._client.import_storage.local
        storages = self._translated(lambda: local.list(project=self._project_id))
        if any(root.is_relative_to(storage.path) for storage in storages if storage.path):
            return
        self._translated(
            lambda: local.create(
                project=self._project_id,
                path=str(root),
                title="Images",
                regex_filter=NEVER_MATCHES,  # a click on "Sync" must not make a task of every image
                use_blob_urls=True,
            )
        )

    @cached_property
    def _served_root(self) -> Path:
        """`images_root` as the server knows it."""
        if self.images_root is None:
            raise AnnotationToolError("local images need images_root, the folder that they lie in")
        for root in (self.images_root, self.images_root.resolve()):
            if self._document_root in root.parents:
                return root
        raise AnnotationToolError(
            f"Label Studio at {self.url} serves local images only from folders below {self._document_root}, "
            f"and {self.images_root} is not one. Start it with "
            f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={self.images_root.parent}"
        )

    def _address(self, uri: str) -> str:
        """What a browser that shows Label Studio loads the image from."""
        if "://" in uri and not uri.startswith("file://"):
            return uri
        path = _normal(Path(url2pathname(urlsplit(uri).path) if uri.startswith("file://") else uri))
        served = self._served_root
        roots = [root for root in (self.images_root, served) if root and path.is_relative_to(root)]
        if not roots:
            raise AnnotationToolError(f"image {uri} is not in images_root, {self.images_root}")
        if not path.is_file():
            raise AnnotationToolError(f"image {uri} is not there any more")
        within = (served / path.relative_to(roots[0])).relative_to(self._document_root)
        return f"/data/local-files/?d={quote(within.as_posix())}"

    # ---- tasks

    def _tasks(self, round_number: int, *filters: Filter, include: str, fields: str = "task_only") -> Iterator[Any]:
        """All tasks of a round, by id: pages that begin after an id stay right while tasks come and go."""
        last = 0
        while True:
            query = _query(round_number, *filters, ("id", "greater", last))
            page = self._list(query, include=include, fields=fields, page_size=_PAGE)
            yield from page.items
            if len(page.items) >= page.response.total:
                return
            last = page.items[-1].id

    def _count(self, round_number: int, *filters: Filter) -> int:
        query = _query(round_number, *filters)
        return int(self._list(query, include="id", fields="task_only", page_size=1).response.total)

    def _list(self, query: str, *, include: str, fields: str, page_size: int) -> Any:
        options = {"query": query, "include": include, "fields": fields, "page_size": page_size}
        list_tasks = self._client.tasks.list
        return self._repeatable(lambda: list_tasks(project=self._project_id, resolve_uri=False, **options))

    def _held(self, round_number: int) -> list[_Held]:
        counters = "total_annotations,cancelled_annotations"
        return [
            _Held(
                task_id=task.id,
                item_id=str(task.data.get("item_id")),
                is_answered=bool(task.total_annotations or task.cancelled_annotations),
            )
            for task in self._tasks(round_number, include=f"id,data,{counters}")
        ]

    def _settled(self, round_number: int, wanted: Set[str]) -> list[_Held]:
        """What the server holds once it has all of `wanted`, or nothing has come for a while.

        An import that we know nothing of any more, as the connection broke, may still be under way.
        """
        held = self._held(round_number)
        quiet_since = time.monotonic()
        while not wanted <= _items(held) and time.monotonic() - quiet_since < _SETTLE_SECONDS:
            time.sleep(_LOOK_SECONDS)
            before, held = held, self._held(round_number)
            if len(held) != len(before):
                quiet_since = time.monotonic()
        return held

    def _import_missing(self, payloads: Mapping[str, dict[str, Any]], round_number: int) -> None:
        """Import the tasks that are not there; after a failure look again before anything is sent again."""
        held = self._held(round_number)
        unknown = _items(held) - payloads.keys()
        if unknown:
            raise PushMismatch(
                f"project {self.project!r} at {self.url} holds {len(unknown)} tasks of round {round_number} that this "
                f"campaign did not select, such as {min(unknown)}: it belongs to another campaign. Nothing was pushed; "
                "give this campaign another project title"
            )
        for attempt in _retrying():
            if attempt.retry_state.attempt_number > 1:
                held = self._settled(round_number, payloads.keys())
            there = _items(held)
            missing = [payload for item_id, payload in payloads.items() if item_id not in there]
            with attempt:
                for start in range(0, len(missing), _CHUNK):
                    self._import(missing[start : start + _CHUNK])

    def _import(self, chunk: Sequence[dict[str, Any]]) -> None:
        # A prediction of the SDK wants the id of its task, which does not exist yet: hence plain dictionaries.
        request = cast(Sequence[ImportApiRequest], chunk)
        self._translated(lambda: self._client.projects.import_tasks(id=self._project_id, request=request))

    def _read_back(self, item_ids: Set[str], round_number: int) -> dict[str, int]:
        """Prove that the server holds each item once and nothing else, and return the task ids."""
        held = self._settled(round_number, item_ids)
        surplus = _surplus(held)
        if surplus:
            self._delete(surplus)
            held = self._held(round_number)
        wrong = _compare(held, item_ids)
        if wrong:
            raise PushMismatch(
                f"round {round_number} of project {self.project!r} at {self.url}: pushed {len(item_ids)} tasks, "
                f"the server holds {len(held)}; {'; '.join(wrong)}"
            )
        return {task.item_id: task.task_id for task in held}

    def _delete(self, task_ids: Sequence[int]) -> None:
        selected = PrepareParamsRequestRequestSelectedItemsIncluded(all_=False, included=list(task_ids))
        delete = self._client.actions.create
        self._repeatable(lambda: delete(id="delete_tasks", project=self._project_id, selected_items=selected))

    def _emails(self) -> dict[int, str]:
        """Address by user id; empty where the token may not list users."""
        try:
            return {user.id: user.email for user in self._repeatable(lambda: self._client.users.list())}
        except AnnotationToolUnavailable:
            raise
        except AnnotationToolError:
            return {}

    # ---- calls and their errors

    def _repeatable(self, call: Callable[[], T]) -> T:
        """Make a call that does no harm when it is made twice; repeat it while the server is away or busy."""
        return _retrying()(lambda: self._translated(call))

    def _translated(self, call: Callable[[], T]) -> T:
        """Make one call; what goes wrong comes as an error of `connectors.annotation`, without the token."""
        try:
            return call()
        except (ApiError, ParsingError) as exc:
            raise self._error(exc.status_code, _words(exc.body)) from exc
        except httpx.UnsupportedProtocol as exc:
            raise AnnotationToolError(f"{self.url!r} is not the address of a server: {exc}") from exc
        except httpx.TransportError as exc:
            reason = str(exc) or type(exc).__name__
            raise AnnotationToolUnavailable(f"Label Studio at {self.url} does not answer: {reason}") from exc
        except (httpx.HTTPError, httpx.InvalidURL, json.JSONDecodeError) as exc:
            raise AnnotationToolError(f"{self.url} does not answer as Label Studio does: {exc}") from exc

    def _error(self, status: int | None, words: str) -> AnnotationToolError:
        words = words.replace(self._token, "[token]")
        if status == 401:
            return AuthenticationFailed(
                f"Label Studio at {self.url} refuses the token: {words}. It wants a personal access token: make one "
                "in Label Studio under Account & Settings, Personal Access Token, and put it into the environment "
                f"variable {TOKEN_VARIABLE}"
            )
        if status in (429, 502, 503, 504) or (status == 500 and "database is locked" in words):
            return AnnotationToolUnavailable(f"Label Studio at {self.url} is busy ({status}): {words}")
        return AnnotationToolError(f"Label Studio at {self.url} refuses ({status}): {words}")


def _checked_token(token: str) -> str:
    token = token.strip()
    if not token:
        raise AuthenticationFailed(f"no token for Label Studio: set the environment variable {TOKEN_VARIABLE}")
    if not re.fullmatch(r"[!-~]+", token):
        raise AuthenticationFailed(f"the token in {TOKEN_VARIABLE} has characters that no token has")
    return token


def _items(held: Sequence[_Held]) -> set[str]:
    return {task.item_id for task in held}


def _surplus(held: Sequence[_Held]) -> list[int]:
    """Ids of the tasks that ask for an item again and have no answer: of each item one task stays."""
    by_item: dict[str, list[_Held]] = defaultdict(list)
    for task in held:
        by_item[task.item_id].append(task)
    surplus = []
    for copies in by_item.values():
        stays = min(copies, key=lambda task: (not task.is_answered, task.task_id))
        surplus += [task.task_id for task in copies if task is not stays and not task.is_answered]
    return surplus


def _compare(held: Sequence[_Held], item_ids: Set[str]) -> list[str]:
    counts = Counter(task.item_id for task in held)
    kinds = {
        "missing": item_ids - counts.keys(),
        "unknown": counts.keys() - item_ids,
        "answered in several tasks": {item_id for item_id, count in counts.items() if count > 1},
    }
    return [f"{len(ids)} {kind}, such as {min(ids)}" for kind, ids in kinds.items() if ids]


def _query(round_number: int, *filters: Filter) -> str:
    items = [
        {"filter": f"filter:tasks:{name}", "operator": operator, "value": value, "type": "Number"}
        for name, operator, value in (("data.round_number", "equal", round_number), *filters)
    ]
    return json.dumps({"filters": {"conjunction": "and", "items": items}})


def _words(body: Any) -> str:
    """What the server said, in one line."""
    said = [body.get("detail"), body.get("validation_errors")] if isinstance(body, dict) else [body]
    return " ".join(" ".join(_strings(said)).split())[:500].rstrip(".")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from (f"{name}: {text}" for text in _strings(inner))
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
    elif value is not None:
        yield str(value)


def _normal(path: Path) -> Path:
    """Absolute and without "..", symbolic links kept: the server opens what the path says."""
    return Path(os.path.normpath(path.absolute()))


def _retrying() -> tenacity.Retrying:
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(AnnotationToolUnavailable),
        stop=tenacity.stop_after_attempt(_ATTEMPTS),
        wait=tenacity.wait_exponential_jitter(
            multiplier=_FIRST_WAIT_SECONDS, max=_LONGEST_WAIT_SECONDS, jitter=_FIRST_WAIT_SECONDS
        ),
        reraise=True,
    )
