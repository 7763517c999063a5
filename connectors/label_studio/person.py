"""An annotator that knows the answers and labels in Label Studio as a person does, for replays and trials."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import httpx

from connectors.annotation import AnnotationToolError, AnnotationToolUnavailable, AuthenticationFailed
from connectors.label_studio.connection import TokenAuth
from connectors.label_studio.kinds.kind import CONTROL, NOTHING, Kind
from connectors.label_studio.kinds.table import kind_on
from connectors.label_studio.pages import HEIGHT, WIDTH
from connectors.mistakes import NO_MISTAKES, Mistakes, with_mistakes
from pipeline.types import OnProgress, Region

SECONDS_PER_TASK = (1.5, 6.0)
_TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Labelled:
    """What an annotator did, in the order in which Label Studio served it.

    Attributes:
        given: what was marked in each, None where it was skipped.
    """

    item_ids: tuple[str, ...]
    given: tuple[tuple[Region, ...] | None, ...]
    n_labelled: int
    n_wrong: int
    n_skipped: int


class _Page(NamedTuple):
    """What a page asks for: a kind of region, the name of its control, its classes."""

    kind: Kind
    name: str
    classes: tuple[str, ...]


class SimulatedAnnotator:
    """A person at a project of Label Studio who takes what is served next.

    Args:
        url: address of the server.
        token: of the person; a personal access token or one of the older kind.
        project: title of the project.
        answers: the right label by item id, or the right regions, where the page asks for several.
        error_rate: share of labels that name another class.
        skip_rate: share of tasks that are skipped.
        mistakes: in regions; their labels are wrong as often as `error_rate` says.
        seed: of errors, skips and times.
    """

    def __init__(
        self,
        *,
        url: str,
        token: str,
        project: str,
        answers: Mapping[str, str | Sequence[Region]],
        error_rate: float = 0.0,
        skip_rate: float = 0.0,
        mistakes: Mistakes = NO_MISTAKES,
        seed: int = 0,
    ) -> None:
        for name, rate in {"error_rate": error_rate, "skip_rate": skip_rate}.items():
            if not 0.0 <= rate <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {rate}")
        self.url = url.rstrip("/")
        self.project = project
        self.answers = answers
        self.error_rate = error_rate
        self.skip_rate = skip_rate
        self.mistakes = replace(mistakes, relabel_rate=error_rate)
        self._random = random.Random(seed)
        self._token = token.strip()

    def label(self, n: int | None = None, *, on_progress: OnProgress | None = None) -> Labelled:
        """Do `n` tasks, or all that are served; fewer if Label Studio runs out of tasks.

        Args:
            on_progress: called with (done, total) tasks after each.
        """
        done: list[tuple[str, tuple[Region, ...] | None]] = []
        auth = TokenAuth(self._token, url=self.url)
        with httpx.Client(base_url=self.url, timeout=_TIMEOUT_SECONDS, auth=auth) as client:
            project_id, page = self._open_project(client)
            while n is None or len(done) < n:
                task = self._request(client, "GET", f"/api/projects/{project_id}/next")
                if task is None:
                    break
                item_id = str(task["data"].get("item_id"))
                regions = self._decide(item_id, task["data"], page)
                path = f"/api/tasks/{task['id']}/annotations/?project={project_id}"
                self._request(client, "POST", path, json=self._answer(regions, page))
                done.append((item_id, regions))
                if on_progress:
                    on_progress(len(done), n or len(done))
        return Labelled(
            item_ids=tuple(item_id for item_id, _ in done),
            given=tuple(regions for _, regions in done),
            n_labelled=sum(regions is not None for _, regions in done),
            n_wrong=sum(regions is not None and regions != self._right(item_id) for item_id, regions in done),
            n_skipped=sum(regions is None for _, regions in done),
        )

    def _open_project(self, client: httpx.Client) -> tuple[int, _Page]:
        """The project's id and what its page asks for."""
        found = self._request(client, "GET", "/api/projects", params={"title": self.project, "page_size": 100})
        projects = [project for project in found["results"] if project["title"] == self.project]
        if len(projects) > 1:  # a server that is busy leaves empty ones of the same title
            projects = [project for project in projects if project["task_number"]]
        if len(projects) != 1:
            raise AnnotationToolError(f"wanted one project {self.project!r} at {self.url}, found {len(projects)}")
        controls = dict(projects[0]["parsed_label_config"])
        can_be_none = controls.pop(NOTHING, None) is not None
        if len(controls) != 1:
            raise AnnotationToolError(f"project {self.project!r} must ask for one thing, asks for {list(controls)}")
        [(name, control)] = controls.items()
        kind = kind_on(control["type"], can_be_none=can_be_none)
        if kind is None:
            raise AnnotationToolError(f"project {self.project!r} asks for {control['type']}, which nobody can simulate")
        return projects[0]["id"], _Page(kind, name, tuple(control["labels"]))

    def _right(self, item_id: str) -> tuple[Region, ...]:
        answer = self.answers[item_id]
        return (Region("image", answer),) if isinstance(answer, str) else tuple(answer)

    def _decide(self, item_id: str, data: Mapping[str, Any], page: _Page) -> tuple[Region, ...] | None:
        """The regions to give, or None to skip."""
        if item_id not in self.answers:
            raise AnnotationToolError(f"was served item {item_id}, whose label is not known")
        if self._random.random() < self.skip_rate:
            return None
        right = self._right(item_id)
        if page.kind.nothing is not None:
            size = (int(data.get(WIDTH, 0)), int(data.get(HEIGHT, 0)))
            return with_mistakes(right, self.mistakes, page.kind.region, page.classes, self._random, size=size)
        if self._random.random() < self.error_rate:
            return (Region("image", self._random.choice([c for c in page.classes if c != right[0].label])),)
        return right

    def _answer(self, regions: tuple[Region, ...] | None, page: _Page) -> dict[str, Any]:
        seconds = round(self._random.uniform(*SECONDS_PER_TASK), 2)
        if regions is None:
            return {"result": [], "was_cancelled": True, "lead_time": seconds}
        parts = page.kind.write_all(regions, {})
        result = [one | {"from_name": page.name} if one["from_name"] == CONTROL else one for one in parts]
        return {"result": result, "lead_time": seconds}

    def _request(self, client: httpx.Client, method: str, path: str, **options: Any) -> Any:
        """The JSON of one answer; None when all is done."""
        try:
            answer = client.request(method, path, **options)
        except httpx.HTTPStatusError:  # of the request for access
            raise AuthenticationFailed(f"Label Studio at {self.url} refuses the annotator's token") from None
        except httpx.TransportError as exc:
            raise AnnotationToolUnavailable(f"Label Studio at {self.url} does not answer: {exc}") from exc
        if answer.status_code == 404 and path.endswith("/next"):
            return None
        if answer.status_code == 401:
            raise AuthenticationFailed(f"Label Studio at {self.url} refuses the annotator's token")
        if answer.is_error:
            words = answer.text[:300].replace(self._token, "[token]")
            raise AnnotationToolError(f"Label Studio at {self.url} refuses ({answer.status_code}): {words}")
        return answer.json()
