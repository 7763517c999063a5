"""The requests of Label Studio's HTTP API that are used: each is sent once, and its answer is checked."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from connectors.label_studio.connection import Connection
from connectors.label_studio.reading import READ_FIELDS, HeldProject, HeldStorage, HeldTask

MOST_PROJECTS = 1_000
PAGE = 500
Filter = dict[str, Any]
"""A condition on tasks, as Label Studio's tabs have them."""


class Api:
    """What a server can be asked.

    Whoever asks for what does no harm when it is done twice says so: `connection.repeatable(lambda: api.users())`.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def version(self) -> tuple[str, str | None]:
        """Version of the server, and the header `Date` of its answer."""
        with self.connection.talk():
            answer = self.connection.send("GET", "/api/version").raise_for_status()
            return str(answer.json()["release"]), answer.headers.get("date")

    def person(self) -> str:
        """Address of the person whose token this is."""
        with self.connection.talk():
            return str(self.connection.read("GET", "/api/current-user/whoami")["email"])

    def projects(self, title: str) -> list[HeldProject]:
        """The projects of the title, and those whose title it is a part of."""
        found: list[HeldProject] = []
        with self.connection.talk():
            page: Any = {"next": True}
            number = 0
            while page.get("next") and len(found) < MOST_PROJECTS:
                number += 1
                params = {"title": title, "page_size": 100, "page": number}
                page = self.connection.read("GET", "/api/projects/", params=params)
                found += [HeldProject.model_validate(each) for each in page["results"]]
        return found

    def project(self, project_id: int) -> HeldProject:
        """One project, with its page."""
        return self._project("GET", f"/api/projects/{project_id}/")

    def create_project(self, settings: Mapping[str, Any]) -> HeldProject:
        """Make a project."""
        return self._project("POST", "/api/projects/", json=settings)

    def change_project(self, project_id: int, changes: Mapping[str, Any]) -> HeldProject:
        """Change what is named of a project."""
        return self._project("PATCH", f"/api/projects/{project_id}/", json=changes)

    def _project(self, method: str, path: str, **options: Any) -> HeldProject:
        with self.connection.talk():
            return HeldProject.model_validate(self.connection.read(method, path, **options))

    def tasks(
        self, project_id: int, after: int, until: int | None, *, only: Sequence[Filter] = (), n: int = PAGE
    ) -> tuple[list[HeldTask], int]:
        """A page of `n` tasks with an id above `after` and up to `until`, and how many there are in all."""
        filters = [where("id", "greater", after), *([] if until is None else [where("id", "less", until + 1)]), *only]
        query = json.dumps({"filters": {"conjunction": "and", "items": filters}})
        params = {"project": project_id, "resolve_uri": False, "page_size": min(n, PAGE), "query": query}
        with self.connection.talk():
            page = self.connection.read("GET", "/api/tasks/", params=params | {"include": READ_FIELDS, "fields": "all"})
            return [HeldTask.model_validate(item) for item in page["tasks"]], int(page["total"])

    def import_tasks(self, project_id: int, data: Sequence[Mapping[str, Any]]) -> None:
        """Make a task of each of these data."""
        self._done("POST", f"/api/projects/{project_id}/import", json=[{"data": each} for each in data])

    def change_task(self, task_id: int, data: Mapping[str, Any]) -> None:
        """Give a task other data."""
        self._done("PATCH", f"/api/tasks/{task_id}/", json={"data": data})

    def delete_tasks(self, project_id: int, task_ids: Sequence[int]) -> None:
        """Delete tasks, with all that is on them."""
        params = {"id": "delete_tasks", "project": project_id}
        self._done(
            "POST", "/api/dm/actions/", params=params, json={"selectedItems": {"all": False, "included": task_ids}}
        )

    def import_guesses(self, project_id: int, guesses: Sequence[Mapping[str, Any]]) -> None:
        """Add predictions, each to its `task`."""
        self._done("POST", f"/api/projects/{project_id}/import/predictions", json=guesses)

    def delete_guess(self, guess_id: int) -> None:
        """Delete a prediction."""
        with self.connection.talk():
            self.connection.send("DELETE", f"/api/predictions/{guess_id}/").raise_for_status()

    def add_answer(self, task_id: int, answer: Mapping[str, Any]) -> None:
        """Add an annotation to a task, as somebody's who has an account."""
        self._done("POST", f"/api/tasks/{task_id}/annotations/", json=answer)

    def emails(self) -> dict[int, str]:
        """Address of each user, by id."""
        with self.connection.talk():
            users = [(user["id"], user["email"]) for user in self.connection.read("GET", "/api/users/")]
        return {user_id: email for user_id, email in users if isinstance(email, str) and email.isprintable()}

    def storages(self, kind: str, project_id: int) -> list[HeldStorage]:
        """Where a project shows images from: folders ("localfiles"), or buckets of a kind of store."""
        with self.connection.talk():
            found = self.connection.read("GET", f"/api/storages/{kind}/", params={"project": project_id})
            return [HeldStorage.model_validate(each) for each in found]

    def attach_storage(self, kind: str, project_id: int, settings: Mapping[str, Any]) -> int:
        """Let a project show images from somewhere; return the id of the storage."""
        with self.connection.talk():
            body = {"project": project_id, **settings}
            return HeldStorage.model_validate(self.connection.read("POST", f"/api/storages/{kind}/", json=body)).id

    def change_storage(self, kind: str, storage_id: int, changes: Mapping[str, Any]) -> None:
        """Change what is named of a storage."""
        self._done("PATCH", f"/api/storages/{kind}/{storage_id}", json=changes)

    def delete_storage(self, kind: str, storage_id: int) -> None:
        """Show no images from there any more."""
        with self.connection.talk():
            self.connection.send("DELETE", f"/api/storages/{kind}/{storage_id}").raise_for_status()

    def check_storage(self, project_id: int, path: str) -> None:
        """Ask whether a project could show the images of a folder; an error names why not."""
        with self.connection.talk():
            options = {"json": {"project": project_id, "path": path}}
            self.connection.send("POST", "/api/storages/localfiles/validate", **options).raise_for_status()

    def _done(self, method: str, path: str, **options: Any) -> None:
        with self.connection.talk():
            self.connection.read(method, path, **options)


def where(column: str, operator: str, value: int | datetime) -> Filter:
    """A condition on a column of the tasks; a time has a zone."""
    if isinstance(value, datetime):
        text = value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {"filter": f"filter:tasks:{column}", "operator": operator, "value": text, "type": "Datetime"}
    return {"filter": f"filter:tasks:{column}", "operator": operator, "value": value, "type": "Number"}
