"""An annotator that knows the answers and labels in Label Studio as a person does, for replays and trials."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from connectors.annotation import AnnotationToolError, AnnotationToolUnavailable, AuthenticationFailed
from connectors.label_studio.connection import TokenAuth
from pipeline.types import OnProgress

SECONDS_PER_TASK = (1.5, 6.0)
_TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Labelled:
    """What an annotator did, in the order in which Label Studio served it."""

    item_ids: tuple[str, ...]
    n_labelled: int
    n_wrong: int
    n_skipped: int


class SimulatedAnnotator:
    """A person at a project of Label Studio who takes what is served next.

    Args:
        url: address of the server.
        token: of the person; a personal access token or one of the older kind.
        project: title of the project.
        answers: the right label by item id.
        error_rate: share of answers that name another class.
        skip_rate: share of tasks that are skipped.
        seed: of errors, skips and times.
    """

    def __init__(
        self,
        *,
        url: str,
        token: str,
        project: str,
        answers: Mapping[str, str],
        error_rate: float = 0.0,
        skip_rate: float = 0.0,
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
        self._random = random.Random(seed)
        self._token = token.strip()

    def label(self, n: int | None = None, *, on_progress: OnProgress | None = None) -> Labelled:
        """Do `n` tasks, or all that are served; fewer if Label Studio runs out of tasks.

        Args:
            on_progress: called with (done, total) tasks after each.
        """
        done: list[tuple[str, str | None]] = []
        auth = TokenAuth(self._token, url=self.url)
        with httpx.Client(base_url=self.url, timeout=_TIMEOUT_SECONDS, auth=auth) as client:
            project_id, control = self._open_project(client)
            while n is None or len(done) < n:
                task = self._request(client, "GET", f"/api/projects/{project_id}/next")
                if task is None:
                    break
                item_id = str(task["data"].get("item_id"))
                label = self._decide(item_id, control["labels"])
                path = f"/api/tasks/{task['id']}/annotations/?project={project_id}"
                self._request(client, "POST", path, json=self._answer(label, control))
                done.append((item_id, label))
                if on_progress:
                    on_progress(len(done), n or len(done))
        return Labelled(
            item_ids=tuple(item_id for item_id, _ in done),
            n_labelled=sum(label is not None for _, label in done),
            n_wrong=sum(label is not None and label != self.answers[item_id] for item_id, label in done),
            n_skipped=sum(label is None for _, label in done),
        )

    def _open_project(self, client: httpx.Client) -> tuple[int, dict[str, Any]]:
        """The project's id and the one control of its page, with the classes to choose from."""
        found = self._request(client, "GET", "/api/projects", params={"title": self.project, "page_size": 100})
        projects = [project for project in found["results"] if project["title"] == self.project]
        if len(projects) > 1:  # a server that is busy leaves empty ones of the same title
            projects = [project for project in projects if project["task_number"]]
        if len(projects) != 1:
            raise AnnotationToolError(f"wanted one project {self.project!r} at {self.url}, found {len(projects)}")
        controls = projects[0]["parsed_label_config"]
        if len(controls) != 1:
            raise AnnotationToolError(f"project {self.project!r} must ask for one thing, asks for {list(controls)}")
        name, control = next(iter(controls.items()))
        return projects[0]["id"], {**control, "name": name}

    def _decide(self, item_id: str, classes: list[str]) -> str | None:
        """The label to give, or None to skip."""
        if item_id not in self.answers:
            raise AnnotationToolError(f"was served item {item_id}, whose label is not known")
        if self._random.random() < self.skip_rate:
            return None
        if self._random.random() < self.error_rate:
            return self._random.choice([label for label in classes if label != self.answers[item_id]])
        return self.answers[item_id]

    def _answer(self, label: str | None, control: Mapping[str, Any]) -> dict[str, Any]:
        seconds = round(self._random.uniform(*SECONDS_PER_TASK), 2)
        if label is None:
            return {"result": [], "was_cancelled": True, "lead_time": seconds}
        target = {"from_name": control["name"], "to_name": control["to_name"][0], "type": "choices"}
        return {"result": [{**target, "value": {"choices": [label]}}], "lead_time": seconds}

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
