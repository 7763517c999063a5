"""Label Studio as the annotation tool: a campaign is a project, an image asked for in a round is a task.

What its pages, tasks and annotations look like is in `label_studio_format` and `label_studio_reading`, what is shown of
an image in `shown_images`; here is the connection.
"""

import ipaddress
import json
import os
import re
import time
import weakref
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast
from unicodedata import normalize
from urllib.parse import quote, urlsplit
from urllib.request import url2pathname

import httpx
import tenacity
from label_studio_sdk import ImportApiRequest, PredictionRequest
from label_studio_sdk.actions import PrepareParamsRequestRequestSelectedItemsIncluded
from label_studio_sdk.client import LabelStudio as Client
from label_studio_sdk.core.api_error import ApiError
from label_studio_sdk.core.parse_error import ParsingError
from pydantic import ValidationError

from connectors.annotation import (
    AnnotationToolError,
    AnnotationToolUnavailable,
    Asked,
    AuthenticationFailed,
    Progress,
    ProjectMismatch,
    Pulled,
    PushMismatch,
    Task,
    Tended,
)
from connectors.escaping import label_studio_choice
from connectors.images.reading import WHOLE, Reading
from connectors.images.shown import RENDITIONS, check_shown, file_to_show, link_to_show
from connectors.label_studio.pages import (
    CONTROL,
    IMAGE,
    check_tasks,
    checked_classes,
    labelling_page,
    page_differences,
    page_with_classes,
    stored_names,
    task_to_import,
)
from connectors.label_studio.reading import READ_FIELDS, HeldTask, is_copied, is_skip, read_answer
from connectors.store import read_json, write_json
from pipeline.pool.reasons import PoolError
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
NEVER_MATCHES = "(?!)"
MOST_RESPONSE_BYTES = 256 * 2**20
MOST_TASKS = 2_000_000
MOST_PROJECTS = 1_000

_CHUNK = 500
_PAGE = 500
_PASSES = 6
_TIMEOUT_SECONDS = 120.0
_RESPONSE_SECONDS = 300.0
_SETTLE_SECONDS = 10.0
_LOOK_SECONDS = 0.5
_ATTEMPTS = 6
_PATIENCE_SECONDS = 60.0
_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 20.0

T = TypeVar("T")
Filter = tuple[str, str, float]
Record = Mapping[int, Mapping[str, int]]
"""For each round, item id -> task id."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a task must be like.

    Attributes:
        prediction: guess, place in the order and model version.
        uri: of the image.
    """

    item_id: str
    round_number: int
    data: Mapping[str, Any]
    prediction: Mapping[str, Any]
    uri: str

    @property
    def address(self) -> str:
        return str(self.data[IMAGE])

    def has_data(self, task: HeldTask) -> bool:
        return task.asks_for(self.item_id, self.round_number) and task.data.get(IMAGE) == self.address

    def guesses(self, task: HeldTask) -> list[int]:
        """Ids of the task's predictions of this round's model."""
        version = self.prediction["model_version"]
        return [guess.id for guess in task.predictions if guess.model_version == version]

    def is_guessed(self, task: HeldTask) -> bool:
        """Whether the task has this one prediction of the round's model."""
        version = self.prediction["model_version"]
        ours = [guess for guess in task.predictions if guess.model_version == version]
        return len(ours) == 1 and ours[0].shows(self.prediction)


@dataclass(slots=True)
class _Mended:
    """How much of what is out had to be mended."""

    n_doubles: int = 0
    n_guesses: int = 0
    n_data: int = 0

    def __str__(self) -> str:
        said = {
            "asked for an image a second time and were removed": self.n_doubles,
            "had lost the model's guess and their place in the order, and have them again": self.n_guesses,
            "showed another image or address, and show theirs again": self.n_data,
        }
        return "; ".join(f"{count} open tasks {what}" for what, count in said.items() if count)


@dataclass(slots=True)
class _Sorted:
    """Tasks of a project, by what our records say of them."""

    own: dict[int, tuple[int, str]] = field(default_factory=dict)
    doubles: dict[int, tuple[int, str]] = field(default_factory=dict)
    foreign: list[HeldTask] = field(default_factory=list)


class LabelStudio:
    """One Label Studio project that asks for one class for each image.

    Args:
        url: address of the server.
        token: personal access token; the older kind works where the server still takes it.
        project: title, 3 to 50 characters; the project is found or made under it.
        classes: the answers that a person can give, in the order of the page.
        images_root: local images lie in this folder, which the server sees under the same path; None if all
            images have an address of their own (http, s3, …), or are laid out in `shown_in`. What browsers do not show
            gets a rendition in a hidden folder in it.
        shown_in: a folder of ours, which the server sees under the same path, to lay out each image that is asked for
            in, as a link named by its content. Addresses then do not depend on where the images lie.
        remember_in: file that keeps which project is ours, once it is found or made; its title may then change, and
            others may have the same.
        instructions: what annotators read before they begin; may be HTML.
        say: is told, in one line, what takes long.
        reading: how images are read that need a rendition.
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
        shown_in: Path | None = None,
        remember_in: Path | None = None,
        instructions: str = INSTRUCTIONS,
        say: Callable[[str], None] | None = None,
        reading: Reading = WHOLE,
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
        self.shown_in = _normal(shown_in) if shown_in else None
        self.instructions = instructions
        self._remember_in = remember_in
        self._say = say or (lambda line: None)
        self._reading = reading
        self.renamed = renamed
        self.former_project = former_project
        self.former_classes = tuple(former_classes)
        self._token = _checked_token(token)
        self._away_since: float | None = None

    def prepare(self) -> str:
        """Find or make the project, set what the order of tasks depends on, and return its page.

        Raises:
            ProjectMismatch: if the project of that title asks for something else.
        """
        self._project_id = project_id = self._retrying()(self._find_or_create)
        project = self._repeatable(lambda: self._client.projects.get(project_id))
        controls, page = project.parsed_label_config or {}, project.label_config or ""
        differences = page_differences(controls, page)
        stored = [] if differences else list(controls[CONTROL]["labels"])
        shown, before = self._present(stored), self._present(self.former_classes)
        is_ours = bool(before) and before <= shown <= before | set(self.classes)
        if stored and shown != set(self.classes) and not is_ours:
            differences = [f"has the classes {', '.join(stored)} where {', '.join(self.classes)} are wanted"]
        if differences:
            raise ProjectMismatch(
                f"project {self.project!r} at {self.url} exists and {'; '.join(differences)}. "
                "Give this campaign another project title, or set the project back."
            )
        self._remember(project_id, project)
        changes: dict[str, Any] = {"title": self.project} if project.title == self.former_project else {}
        if is_ours and self._shows_otherwise(controls[CONTROL]["labels_attrs"]):
            changes["label_config"] = page_with_classes(page, self.classes, self.renamed)
        self._names = stored_names(stored, self.classes, self.renamed)
        self._set_back(project, changes)
        self._attach_storage()
        return f"{self.url}/projects/{project_id}/data"

    def push(self, tasks: Sequence[Task], *, round_number: int, model_version: str, asked: Record) -> dict[str, int]:
        """Make the round's tasks exist exactly once, most wanted first; see `AnnotationTool.push`.

        Tasks come first and guesses after them: a server on SQLite that meets its database locked tries an import
        again, without the guesses that came with it. A new round is served before what is left of older ones, which
        then comes in any order.
        """
        check_tasks(tasks, round_number, self.classes)
        if not tasks:
            return {}
        wanted = self._wanted(Asked(round_number, tasks, model_version, {}))
        self._check_images(list(wanted.values()))
        newest = max((task_id for task_ids in asked.values() for task_id in task_ids.values()), default=0)

        def find() -> list[HeldTask]:
            tasks_of_round = [task for task in self._tasks(newest) if task.data.get("round_number") == round_number]
            unknown = [task for task in tasks_of_round if task.data.get("item_id") not in wanted]
            if unknown and not asked:
                raise PushMismatch(
                    f"project {self.project!r} at {self.url} holds {len(unknown)} tasks of round {round_number} that "
                    f"this campaign did not select, such as {unknown[0].data.get('item_id')}: it belongs to another "
                    "campaign. Nothing was pushed; give this campaign another project title"
                )
            return [task for task in tasks_of_round if task.data.get("item_id") in wanted]

        held = self._make_whole(find, wanted, may_import=True, mended=_Mended())
        self._show_guesses_of(next(iter(wanted.values())).prediction["model_version"])
        task_ids = {str(task.data["item_id"]): task.id for task in sorted(held, key=_last_choice, reverse=True)}
        return {task.item_id: task_ids[task.item_id] for task in tasks}

    def tend(self, rounds: Sequence[Asked], *, asked: Record) -> Tended:
        """Mend what is out, and count; see `AnnotationTool.tend`."""
        notes: list[str] = []
        mended = _Mended()
        project = self._repeatable(lambda: self._client.projects.get(self._project_id))
        self._set_back(project)
        held = self._out(rounds, asked)
        which = self._sort(held, asked)
        task_ids = self._without_doubles(held, which, asked, mended)
        wanted: dict[int, _Wanted] = {}
        for each in rounds:
            ids = {item_id: task_id for item_id, task_id in task_ids[each.round_number].items() if task_id in held}
            open_items = {item_id for item_id, task_id in ids.items() if not held[task_id].is_answered}
            found = self._wanted(each, only=open_items, lost=notes)
            wanted |= {ids[item_id]: one for item_id, one in found.items()}
        if wanted:
            self._attach_storage()
            self._mend_open(wanted, held, mended)
            first = min(wanted.values(), key=lambda one: (-one.round_number, one.prediction["score"]))
            self._check_images([first])
        self._show_guesses_of_last(rounds, project, held, wanted)
        if str(mended):
            notes.append(str(mended))
        progress = self._progress(rounds[-1].round_number, held, which, task_ids)
        return Tended(progress, task_ids, self._standing(held, which, emails={}), mended=tuple(notes))

    def pull(self, asked: Record) -> Pulled:
        """Read what stands on all tasks of these rounds; see `AnnotationTool.pull`."""
        if not any(asked.values()):
            return Pulled(answers=[], task_ids={}, n_drafts=0)
        held = {task.id: task for task in self._tasks(0)}
        return self._standing(held, self._sort(held, asked), emails=self._emails())

    def _standing(self, held: Mapping[int, HeldTask], which: _Sorted, *, emails: Mapping[int, str]) -> Pulled:
        """What stands on tasks of ours."""
        answers: list[Answer] = []
        copied: list[int] = []
        notes: list[str] = []
        for task_id, (round_number, item_id) in sorted((which.own | which.doubles).items()):
            for annotation in held[task_id].annotations:
                if is_copied(annotation):
                    copied.append(task_id)
                    continue
                answer = read_answer(
                    annotation,
                    item_id=item_id,
                    task_id=task_id,
                    round_number=round_number,
                    classes=self.classes,
                    emails=emails,
                    renamed=self.renamed,
                )
                if answer is None:
                    notes.append(f"an answer without an id cannot be used: {self.task_address(task_id)}")
                else:
                    answers.append(answer)
        if which.foreign:
            n_answered = sum(task.is_answered for task in which.foreign)
            notes.append(
                f"{len(which.foreign)} tasks in project {self.project!r} are not this campaign's ({n_answered} of them "
                f"answered), such as {self.task_address(which.foreign[0].id)}: they are neither trained on nor paid for"
            )
        return Pulled(
            answers=answers,
            task_ids={item_id: task_id for task_id, (_, item_id) in which.own.items()},
            n_drafts=sum(len(held[task_id].drafts) for task_id in which.own | which.doubles),
            doubles={task_id: item_id for task_id, (_, item_id) in which.doubles.items()},
            copied=copied,
            notes=tuple(notes),
        )

    def task_address(self, task_id: int) -> str:
        """Where a person looks at a task."""
        return f"{self.url}/projects/{self._project_id}/data?task={task_id}"

    # ---- the project

    @cached_property
    def _http(self) -> httpx.Client:
        http = httpx.Client(
            timeout=_TIMEOUT_SECONDS,
            follow_redirects=True,
            headers={"Accept-Encoding": "identity"},  # what is small on the way may be huge when it is unpacked
            event_hooks={"response": [self._guard]},
            trust_env=not _is_this_machine(self.url),  # a proxy does not reach the servers of this machine
        )
        weakref.finalize(self, http.close)
        return http

    @cached_property
    def _client(self) -> Client:
        settings = {"base_url": f"{self.url}/", "httpx_client": self._http, "max_retries": 0}
        return self._translated(lambda: Client(api_key=self._token, **settings))  # type: ignore[no-untyped-call]

    def _set_back(self, project: Any, others: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Set what the order of tasks depends on, and `others`."""
        wanted: dict[str, Any] = SETTINGS | {
            "expert_instruction": self.instructions,
            "show_instruction": bool(self.instructions),
        }
        changes = {key: value for key, value in wanted.items() if getattr(project, key, None) != value}
        changes |= others
        if changes:
            self._repeatable(lambda: self._client.projects.update(self._project_id, **changes))

    @cached_property
    def _names(self) -> dict[str, str]:
        """The name under which the page keeps each class: see `stored_names`."""
        controls = self._repeatable(lambda: self._client.projects.get(self._project_id)).parsed_label_config or {}
        return stored_names(list(controls[CONTROL]["labels"]), self.classes, self.renamed)

    def _present(self, names: Iterable[str]) -> set[str]:
        """The names that classes of the page have now."""
        forms = {normalize("NFC", name) for name in names}
        return {self.renamed.get(name, name) for name in forms}

    def _shows_otherwise(self, choices: Mapping[str, Mapping[str, str]]) -> bool:
        """Whether the page lets people choose from other names than those of the classes, by stored name."""
        names = stored_names(list(choices), self.classes, self.renamed)
        kept = {stored for stored in choices if stored not in names.values()}
        values = {stored: label_studio_choice(label)["value"] for label, stored in names.items()}
        return (
            any(choices.get(stored, {}).get("value") != value for stored, value in values.items())
            or bool(self._present(kept) - set(self.classes))
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
        """The project that was remembered; else that of the title, or of the title that it had before."""
        found = self._find_remembered()
        if found is None:
            found = self._find_titled(self.project)
        if found is None and self.former_project is not None:
            found = self._find_titled(self.former_project)
        return found

    def _find_titled(self, title: str) -> int | None:
        """The project of the title that holds tasks, or the first of the title.

        A server on SQLite that meets its database locked runs a whole request again: one creation under load leaves
        several projects, and all but one stay empty.
        """
        list_projects: Any = self._client.projects.list
        listed = islice(list_projects(title=title, page_size=100), MOST_PROJECTS)
        found = {int(project.id): project.task_number or 0 for project in listed if project.title == title}
        used = sorted(project_id for project_id, n_tasks in found.items() if n_tasks)
        if len(used) > 1:
            raise ProjectMismatch(
                f"Label Studio at {self.url} has {len(used)} projects {title!r} with tasks (ids {used}); "
                "rename or delete all but the one that this campaign uses"
            )
        return next(iter(used or sorted(found)), None)

    def _find_remembered(self) -> int | None:
        if self._remember_in is None or not self._remember_in.exists():
            return None
        remembered = read_json(self._remember_in)
        try:
            project: Any = self._client.projects.get(remembered["project_id"])
        except ApiError as exc:
            if exc.status_code == 404:
                return None
            raise
        return int(project.id) if str(project.created_at) == remembered["created_at"] else None

    def _remember(self, project_id: int, project: Any) -> None:
        if self._remember_in is not None:
            mark = {"project_id": project_id, "created_at": str(project.created_at)}
            if not self._remember_in.exists() or read_json(self._remember_in) != mark:
                write_json(self._remember_in, mark)

    def _find_or_create(self) -> int:
        found = self._translated(self._find)
        if found is not None:
            return found
        create: Any = self._client.projects.create
        settings = SETTINGS | {"title": self.project, "label_config": labelling_page(self.classes)}

        def make() -> int:
            created = create(**settings)
            self._remember(int(created.id), created)
            return int(created.id)

        return self._translated(make)

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

    def _attach_storage(self) -> None:
        """Let the project show local images, where there are any."""
        if not (self.shown_in or self.images_root):
            return
        root = self._served_root
        if self.shown_in:
            _made(self.shown_in)
        self._retrying()(lambda: self._find_or_attach_storage(root))

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
        """`shown_in` or `images_root` as the server knows it."""
        wanted = self.shown_in or self.images_root
        if wanted is None:
            raise AnnotationToolError("local images need images_root, the folder that they lie in")
        for root in (wanted, wanted.resolve()):
            if self._document_root in root.parents:
                return root
        if self.shown_in:
            raise AnnotationToolError(
                f"Label Studio at {self.url} serves local images only from folders below {self._document_root}, and "
                f"{self.shown_in} is not one: it was started by another version. Run `labelcycle up` again"
            )
        raise AnnotationToolError(
            f"Label Studio at {self.url} serves local images only from folders below {self._document_root}, "
            f"and {wanted} is not one. Start it with LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={wanted.parent}; "
            'or, if it is the server of `labelcycle up`, write url = "local"'
        )

    def _address(self, uri: str, item_id: str) -> str:
        """What a browser that shows Label Studio loads the image from."""
        if "://" in uri and not uri.startswith("file://"):
            return uri
        path = _normal(Path(url2pathname(urlsplit(uri).path) if uri.startswith("file://") else uri))
        served = self._served_root
        roots = [root for root in (self.images_root, served) if root and path.is_relative_to(root)]
        if not roots and not self.shown_in:
            raise AnnotationToolError(f"image {uri} is not in images_root, {self.images_root}")
        if not path.is_file():
            raise AnnotationToolError(f"image {uri} is not there any more")
        try:
            if self.shown_in:
                shown = served / link_to_show(path, item_id, folder=self.shown_in, reading=self._reading).name
            else:
                file = file_to_show(path, item_id, root=roots[0], reading=self._reading)
                shown = served / file.relative_to(roots[0])
        except PoolError as exc:
            raise AnnotationToolError(f"image {exc}: annotators cannot be shown it") from exc
        except OSError as exc:
            folder = self.shown_in or roots[0] / RENDITIONS
            raise AnnotationToolError(
                f"image {uri}: browsers do not show it as it is, and what they are given instead goes to {folder}: "
                f"{exc.strerror or exc}. Let labelcycle write there"
            ) from exc
        return f"/data/local-files/?d={quote(shown.relative_to(self._document_root).as_posix())}"

    def _check_images(self, wanted: Sequence[_Wanted]) -> None:
        """Load an image of each kind as a browser does; nobody should label what is not shown."""
        kinds = {(Path(one.uri).suffix.lower(), Path(one.address).suffix): one for one in reversed(wanted)}
        for one in kinds.values():
            problem = self._problem_with(one.address)
            if problem:
                raise AnnotationToolError(
                    f"annotators would not see image {one.uri} at {self.url}{one.address}: {problem}. Is the file "
                    f"there, and may the user that runs Label Studio read it and {self.shown_in or self.images_root}? "
                    "Let nobody label before `labelcycle run` finds the image"
                )

    def _problem_with(self, address: str) -> str:
        if not address.startswith("/data/local-files/"):
            return ""  # an address of its own, which the browser may reach and we may not
        return self._repeatable(lambda: self._load(address))

    def _load(self, address: str) -> str:
        answer = self._http.get(f"{self.url}{address}", headers=self._client._client_wrapper.get_headers())
        if answer.status_code >= 500 or answer.status_code in (401, 429):
            raise ApiError(status_code=answer.status_code, body=answer.text)
        if answer.status_code != 200:
            return f"Label Studio answers {answer.status_code}"
        return check_shown(answer.content, answer.headers.get("content-type", ""))

    # ---- tasks

    def _wanted(
        self, round_: Asked, *, only: Collection[str] | None = None, lost: list[str] | None = None
    ) -> dict[str, _Wanted]:
        """What the tasks of a round must be like, by item id, most wanted first.

        Args:
            only: these items.
            lost: where an image cannot be shown any more, gets a line that says so; without it that is an error.
        """
        version = f"round {round_.round_number}: {round_.model_version}"
        n_ranks = 1 + max((task.rank for task in round_.tasks), default=0)
        wanted: dict[str, _Wanted] = {}
        problems = []
        for task in sorted(round_.tasks, key=lambda task: task.rank):
            if only is not None and task.item_id not in only:
                continue
            try:
                address = self._address(task.uri, task.item_id)
            except AnnotationToolUnavailable:
                raise
            except AnnotationToolError as exc:
                if lost is None:
                    raise
                problems.append(str(exc))
                continue
            payload = task_to_import(task, image=address, version=version, n_ranks=n_ranks, names=self._names)
            wanted[task.item_id] = _Wanted(
                task.item_id, round_.round_number, payload["data"], payload["predictions"][0], task.uri
            )
        if problems and lost is not None:
            lost.append(
                f"{len(problems)} open tasks of round {round_.round_number} show no image, such as: {problems[0]}. "
                "Put the files back, or delete these tasks"
            )
        return wanted

    def _make_whole(
        self,
        find: Callable[[], list[HeldTask]],
        wanted: Mapping[str, _Wanted],
        *,
        may_import: bool,
        mended: _Mended,
    ) -> list[HeldTask]:
        """Look, mend what differs, and look again until nothing does; return what is held then.

        After a failure look for a while before anything is sent again: what was sent may still be under way.
        """
        held: list[HeldTask] = []
        has_looked = False
        for attempt in self._retrying():
            with attempt:
                if has_looked:  # else nothing was sent yet
                    self._settle(find, wanted, with_guesses=wanted.keys() <= _by_item(held).keys())
                for _ in range(_PASSES):
                    held, has_looked = find(), True
                    if not self._mend(held, wanted, may_import=may_import, mended=mended):
                        return held
        raise PushMismatch(
            f"project {self.project!r} at {self.url} does not keep what it is sent: wanted {len(wanted)} tasks with "
            f"their guess and image, {_compare(held, wanted)}. Nobody should label there before that is mended; "
            "`labelcycle run` tries again"
        )

    def _settle(self, find: Callable[[], list[HeldTask]], wanted: Mapping[str, _Wanted], *, with_guesses: bool) -> None:
        """Wait until what was sent last is there, or nothing has come for a while."""
        before, quiet_since = (-1, -1), time.monotonic()
        while time.monotonic() - quiet_since < _SETTLE_SECONDS:
            held = find()
            if wanted.keys() <= _by_item(held).keys() and not (with_guesses and _unguessed(held, wanted)):
                return
            now = (len(held), sum(len(task.predictions) for task in held))
            if now != before:
                before, quiet_since = now, time.monotonic()
            time.sleep(_LOOK_SECONDS)

    def _mend(
        self, held: Sequence[HeldTask], wanted: Mapping[str, _Wanted], *, may_import: bool, mended: _Mended
    ) -> bool:
        """Mend what can be mended at once; whether there was anything."""
        there = _by_item(held)
        missing = [one for item_id, one in wanted.items() if item_id not in there] if may_import else []
        for start in range(0, len(missing), _CHUNK):
            chunk = cast("Sequence[ImportApiRequest]", [{"data": one.data} for one in missing[start : start + _CHUNK]])
            self._translated(lambda: self._client.projects.import_tasks(id=self._project_id, request=chunk))  # noqa: B023
        surplus = _surplus(held)
        if surplus:
            self._delete(surplus)
            mended.n_doubles += len(surplus)
        stays = [task for task in held if task.id not in surplus]
        moved = [task for task in stays if not task.is_answered and not wanted[_item(task)].has_data(task)]
        for task in moved:
            self._write_data(task, wanted[_item(task)])
        mended.n_data += len(moved)
        unguessed = _unguessed(stays, wanted)
        for task in unguessed:
            for guess_id in wanted[_item(task)].guesses(task):
                self._delete_guess(guess_id)
        for start in range(0, len(unguessed), _CHUNK):
            self._import_guesses([(task.id, wanted[_item(task)]) for task in unguessed[start : start + _CHUNK]])
        mended.n_guesses += len(unguessed)
        return bool(missing or surplus or moved or unguessed)

    def _import_guesses(self, chunk: Sequence[tuple[int, _Wanted]]) -> None:
        request = cast("Sequence[PredictionRequest]", [{"task": task_id, **one.prediction} for task_id, one in chunk])
        self._translated(lambda: self._client.projects.import_predictions(id=self._project_id, request=request))

    def _delete_guess(self, guess_id: int) -> None:
        try:
            self._repeatable(lambda: self._client.predictions.delete(guess_id))
        except (AnnotationToolUnavailable, AuthenticationFailed):
            raise
        except AnnotationToolError as exc:
            if "(404)" not in str(exc):  # it is gone already
                raise

    def _write_data(self, task: HeldTask, one: _Wanted) -> None:
        data = {**task.data, **one.data}
        self._repeatable(lambda: self._client.tasks.update(id=str(task.id), data=data))

    def _show_guesses_of(self, version: str) -> None:
        """Serve by the order of one model version, and tick its guesses."""
        self._repeatable(lambda: self._client.projects.update(self._project_id, model_version=version))

    def _show_guesses_of_last(
        self, rounds: Sequence[Asked], project: Any, held: Mapping[int, HeldTask], wanted: Mapping[int, _Wanted]
    ) -> None:
        last = rounds[-1]
        version = f"round {last.round_number}: {last.model_version}"
        is_last = any(one.round_number == last.round_number for one in wanted.values())
        if is_last and project.model_version != version:
            self._show_guesses_of(version)

    def _out(self, rounds: Sequence[Asked], asked: Record) -> dict[int, HeldTask]:
        """The tasks of these rounds, and all that came after those of the last one."""
        held: dict[int, HeldTask] = {}
        for each in rounds[:-1]:
            ids = each.task_ids.values()
            if ids:
                held |= {task.id: task for task in self._tasks(min(ids) - 1, max(ids))}
        recorded = [task_id for task_ids in asked.values() for task_id in task_ids.values()]
        first = min(rounds[-1].task_ids.values(), default=1 + max(recorded, default=0))
        return held | {task.id: task for task in self._tasks(first - 1)}

    def _sort(self, held: dict[int, HeldTask], asked: Record) -> _Sorted:
        """Tell our tasks, doubles of them and what is not ours apart; `held` gets the tasks that have doubles.

        A double is what an import leaves that arrived although its connection broke: item, round and image are those
        of a task of ours. What only says so, and shows another image, is not ours.
        """
        ours = {task_id: (number, item_id) for number, ids in asked.items() for item_id, task_id in ids.items()}
        which = _Sorted()
        for task in list(held.values()):
            if task.id in ours:
                which.own[task.id] = ours[task.id]
                continue
            twin = self._twin_of(task, held, asked)
            if twin is None or twin.data.get(IMAGE) is None or twin.data.get(IMAGE) != task.data.get(IMAGE):
                which.foreign.append(task)
                continue
            held[twin.id] = twin
            which.own[twin.id] = which.doubles[task.id] = ours[twin.id]
        return which

    def _twin_of(self, task: HeldTask, held: Mapping[int, HeldTask], asked: Record) -> HeldTask | None:
        """The task of ours that asks for the same, as far as the task's data can be believed."""
        item_id, number = task.data.get("item_id"), task.data.get("round_number")
        if not isinstance(item_id, str) or not isinstance(number, int):
            return None
        twin = asked.get(number, {}).get(item_id)
        if twin is None:
            return None
        return held.get(twin) or next(iter(self._tasks(twin - 1, twin)), None)

    def _without_doubles(
        self, held: dict[int, HeldTask], which: _Sorted, asked: Record, mended: _Mended
    ) -> dict[int, dict[str, int]]:
        """Delete what asks a second time and has no answer; return which task stands for each item."""
        task_ids = {number: dict(ids) for number, ids in asked.items()}
        copies: dict[tuple[int, str], list[int]] = defaultdict(list)
        for task_id, place in which.doubles.items():
            copies[place].append(task_id)
        gone: list[int] = []
        for (number, item_id), doubles in copies.items():
            recorded = task_ids[number][item_id]
            candidates = [task_id for task_id in (recorded, *sorted(doubles)) if task_id in held]
            stays = min(candidates, key=lambda task_id: (not held[task_id].is_answered, candidates.index(task_id)))
            task_ids[number][item_id] = stays
            gone += [task_id for task_id in candidates if task_id != stays and not held[task_id].is_answered]
        if gone:
            self._delete(gone)
            mended.n_doubles += len(gone)
        for task_id in gone:
            del held[task_id]
            which.own.pop(task_id, None)
            which.doubles.pop(task_id, None)
        return task_ids

    def _mend_open(self, wanted: Mapping[int, _Wanted], held: Mapping[int, HeldTask], mended: _Mended) -> None:
        """Mend image, guess and order of open tasks, which are known by their id whatever their data say now."""
        moved = [task_id for task_id, one in wanted.items() if not one.has_data(held[task_id])]
        for task_id in moved:
            self._write_data(held[task_id], wanted[task_id])
        mended.n_data += len(moved)
        for number in {one.round_number for one in wanted.values()}:
            open_ones = {task_id: one for task_id, one in wanted.items() if one.round_number == number}
            if all(one.is_guessed(held[task_id]) for task_id, one in open_ones.items()):
                continue

            def find(open_ones: Mapping[int, _Wanted] = open_ones) -> list[HeldTask]:
                now = self._tasks(min(open_ones) - 1, max(open_ones))
                return [task for task in now if task.id in open_ones and _item(task) == open_ones[task.id].item_id]

            by_item = {one.item_id: one for one in open_ones.values()}
            self._make_whole(find, by_item, may_import=False, mended=mended)

    def _progress(self, number: int, held: Mapping[int, HeldTask], which: _Sorted, task_ids: Record) -> Progress:
        answers: dict[str, list[Any]] = {
            item_id: [] for item_id, task_id in task_ids[number].items() if task_id in held
        }
        for task_id, (of_round, item_id) in (which.own | which.doubles).items():
            if of_round == number and task_id in held:
                given = [each for each in held[task_id].annotations if not is_copied(each)]
                answers.setdefault(item_id, []).extend(given)
        return Progress(
            n_tasks=len(answers),
            n_labelled=sum(any(not is_skip(each) for each in given) for given in answers.values()),
            n_set_aside=sum(bool(given) and all(map(is_skip, given)) for given in answers.values()),
        )

    def _tasks(self, after: int, until: int | None = None) -> Iterator[HeldTask]:
        """All tasks with an id above `after`, by id: pages that begin after an id stay right while tasks come and go.

        Raises:
            AnnotationToolError: for a server that goes on for ever.
        """
        last, n_seen = after, 0
        while True:
            page, total = self._page(last, until)
            yield from page
            n_seen += len(page)
            if not page or len(page) >= total:
                return
            ids = [task.id for task in page]
            if min(ids) <= last or n_seen > MOST_TASKS:
                raise AnnotationToolError(
                    f"{self.url} does not answer as Label Studio does: asked for tasks after {last}, it gives task "
                    f"{min(ids)}, and {n_seen} in all"
                )
            last = max(ids)

    def _page(self, last: int, until: int | None) -> tuple[list[HeldTask], int]:
        filters: list[Filter] = [("id", "greater", last)]
        if until is not None:
            filters.append(("id", "less", until + 1))
        options: dict[str, Any] = {"query": _query(*filters), "include": READ_FIELDS, "fields": "all"}
        list_tasks = self._client.tasks.list

        def read() -> tuple[list[HeldTask], int]:
            answer: Any = list_tasks(project=self._project_id, resolve_uri=False, page_size=_PAGE, **options)
            items = cast("list[Any]", answer.items)
            return [HeldTask.model_validate(item) for item in items], int(answer.response.total)

        return self._repeatable(read)

    def _delete(self, task_ids: Sequence[int]) -> None:
        selected = PrepareParamsRequestRequestSelectedItemsIncluded(all_=False, included=list(task_ids))
        delete = self._client.actions.create
        self._repeatable(lambda: delete(id="delete_tasks", project=self._project_id, selected_items=selected))

    def _emails(self) -> dict[int, str]:
        """Address by user id; empty where the token may not list users."""
        try:
            users = self._repeatable(lambda: [(user.id, user.email) for user in self._client.users.list()])
        except AnnotationToolUnavailable:
            raise
        except AnnotationToolError:
            return {}
        return {user_id: email for user_id, email in users if isinstance(email, str) and email.isprintable()}

    # ---- calls and their errors

    def _repeatable(self, call: Callable[[], T]) -> T:
        """Make a call that does no harm when it is made twice; repeat it while the server is away or busy."""
        return self._retrying()(lambda: self._translated(call))

    def _retrying(self) -> tenacity.Retrying:
        return tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(AnnotationToolUnavailable),
            stop=self._is_out_of_patience,
            wait=tenacity.wait_exponential_jitter(
                multiplier=_FIRST_WAIT_SECONDS, max=_LONGEST_WAIT_SECONDS, jitter=_FIRST_WAIT_SECONDS
            ),
            before_sleep=self._say_what_is_waited_for,
            reraise=True,
        )

    def _is_out_of_patience(self, state: tenacity.RetryCallState) -> bool:
        """Whether this call was made often enough, or the server has been away for long, whatever it was asked."""
        away = 0.0 if self._away_since is None else time.monotonic() - self._away_since
        return state.attempt_number >= _ATTEMPTS or away > _PATIENCE_SECONDS

    def _say_what_is_waited_for(self, state: tenacity.RetryCallState) -> None:
        why = state.outcome.exception() if state.outcome else None
        self._say(f"{why}. Trying again ({state.attempt_number} of {_ATTEMPTS})")

    def _translated(self, call: Callable[[], T]) -> T:
        """Make one call; what goes wrong comes as an error of `connectors.annotation`, without the token."""
        try:
            result = self._called(call)
        except AnnotationToolUnavailable:
            self._away_since = self._away_since or time.monotonic()
            raise
        self._away_since = None
        return result

    def _called(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except (ApiError, ParsingError) as exc:
            raise self._error(exc.status_code, _words(exc.body)) from exc
        except httpx.UnsupportedProtocol as exc:
            raise AnnotationToolError(f"{self.url!r} is not the address of a server: {exc}") from exc
        except httpx.TransportError as exc:
            reason = str(exc) or type(exc).__name__
            raise AnnotationToolUnavailable(
                f"Label Studio at {self.url} does not answer: {reason}; try again when it does"
            ) from exc
        except (httpx.TooManyRedirects, httpx.InvalidURL) as exc:
            raise AnnotationToolError(f"{self.url} does not answer as Label Studio does: {exc}") from exc
        except (httpx.HTTPError, json.JSONDecodeError, ValidationError, AttributeError, KeyError, TypeError) as exc:
            # The SDK believes what it is sent: an empty answer, a page, a list in place of a task.
            raise AnnotationToolUnavailable(
                f"{self.url} does not answer as Label Studio does: {_words(str(exc))}; try again, or mend the address"
            ) from exc

    def _error(self, status: int | None, words: str) -> AnnotationToolError:
        words = words.replace(self._token, "[token]")
        if status == 401:
            return AuthenticationFailed(
                f"Label Studio at {self.url} refuses the token: {words}. It wants a personal access token: make one "
                "in Label Studio under Account & Settings, Personal Access Token, and put it into the environment "
                f"variable {TOKEN_VARIABLE}"
            )
        if status is None or status < 300:
            return AnnotationToolUnavailable(
                f"{self.url} does not answer as Label Studio does: {words or 'an empty answer'}; try again, or mend "
                "the address"
            )
        if status in (408, 429) or status >= 500:
            return AnnotationToolUnavailable(f"Label Studio at {self.url} is busy ({status}): {words}; try again")
        return AnnotationToolError(f"Label Studio at {self.url} refuses ({status}): {words}")

    def _guard(self, response: httpx.Response) -> None:
        """Follow no answer to another host, as the token may go along, and believe none that has no end."""
        if response.has_redirect_location:
            there = response.request.url.join(response.headers["location"])
            if _origin(there) != _origin(response.request.url):
                place = there.copy_with(query=None, fragment=None, username=None, password=None)
                raise AnnotationToolError(
                    f"{self.url} points to {place}, where the token was not sent. If that is your Label Studio, write "
                    "its address as the url"
                )
        if response.headers.get("content-encoding", "identity").lower() != "identity":
            raise AnnotationToolError(f"{self.url} packs its answers, though asked not to")
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
            if time.monotonic() - began > _RESPONSE_SECONDS:
                raise httpx.ReadTimeout(f"an answer was not complete after {_RESPONSE_SECONDS:.0f} s")
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


def _item(task: HeldTask) -> str:
    return str(task.data.get("item_id"))


def _by_item(held: Sequence[HeldTask]) -> dict[str, list[HeldTask]]:
    by_item: dict[str, list[HeldTask]] = defaultdict(list)
    for task in held:
        by_item[_item(task)].append(task)
    return by_item


def _last_choice(task: HeldTask) -> tuple[bool, int]:
    """Sorts the tasks of an item: the one that stands for it comes first."""
    return not task.is_answered, task.id


def _surplus(held: Sequence[HeldTask]) -> list[int]:
    """Ids of the tasks that ask for an item again and have no answer: of each item one task stays."""
    surplus = []
    for copies in _by_item(held).values():
        stays = min(copies, key=_last_choice)
        surplus += [task.id for task in copies if task is not stays and not task.is_answered]
    return surplus


def _unguessed(held: Sequence[HeldTask], wanted: Mapping[str, _Wanted]) -> list[HeldTask]:
    """Tasks without the one right prediction; of an answered task any prediction of the round is enough."""
    return [
        task
        for task in held
        if not (wanted[_item(task)].guesses(task) if task.is_answered else wanted[_item(task)].is_guessed(task))
    ]


def _compare(held: Sequence[HeldTask], wanted: Mapping[str, _Wanted]) -> str:
    counts = Counter(map(_item, held))
    kinds = {
        "have no task": wanted.keys() - counts.keys(),
        "have several": {item_id for item_id, count in counts.items() if count > 1},
        "lack the guess or have another": set(map(_item, _unguessed(held, wanted))),
        "show another image": {_item(task) for task in held if not wanted[_item(task)].has_data(task)},
    }
    return "; ".join(f"{len(ids)} {kind}, such as {min(ids)}" for kind, ids in kinds.items() if ids)


def _query(*filters: Filter) -> str:
    items = [
        {"filter": f"filter:tasks:{name}", "operator": operator, "value": value, "type": "Number"}
        for name, operator, value in filters
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


def _made(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise AnnotationToolError(f"{folder} cannot be made: {exc.strerror}") from exc


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _is_this_machine(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or host.endswith(".localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
