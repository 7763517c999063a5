"""The project in which a campaign asks: found or made, remembered, and set back to what the order of tasks needs."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any
from unicodedata import normalize

from connectors.annotation import AnnotationToolError, ProjectMismatch
from connectors.escaping import label_studio_choice
from connectors.label_studio.api import Api
from connectors.label_studio.connection import NotThere
from connectors.label_studio.kinds.kind import CONTROL
from connectors.label_studio.pages import (
    labelling_page,
    page_differences,
    page_with_classes,
    stored_names,
)
from connectors.label_studio.reading import HeldProject
from connectors.store import read_json, write_json
from pipeline.names import checked_classes
from pipeline.types import ONE_CLASS, AskFor

SETTINGS = {
    "sampling": "Uncertainty sampling",
    "skip_queue": "IGNORE_SKIPPED",  # a skip is an answer: the task is done, and a round can end
    "maximum_annotations": 1,  # with more, Label Studio serves tasks in another order
    "show_collab_predictions": True,
}


class Project:
    """One project of a server; the arguments are those of `LabelStudio`."""

    def __init__(
        self,
        api: Api,
        *,
        title: str,
        classes: Sequence[str],
        instructions: str,
        remember_in: Path | None = None,
        renamed: Mapping[str, str] = MappingProxyType({}),
        former_title: str | None = None,
        former_classes: Sequence[str] = (),
        asks: AskFor = ONE_CLASS,
    ) -> None:
        if not 3 <= len(title) <= 50 or title != title.strip():
            raise ValueError(f"a project title has 3 to 50 characters and no space around, got {title!r}")
        self.title = title
        self.classes = checked_classes(classes, fewest=asks.fewest_classes)
        self.renamed = renamed
        self.asks = asks
        self._api = api
        self._url = api.connection.url
        self._instructions = instructions
        self._remember_in = remember_in
        self._former_title = former_title
        self._former_classes = tuple(former_classes)

    @property
    def address(self) -> str:
        """Where people label."""
        return f"{self._url}/projects/{self.id}/data"

    @cached_property
    def id(self) -> int:
        """The id that the server gave the project.

        Raises:
            AnnotationToolError: there is no such project, and `prepare` was not called.
        """
        project_id = self._api.connection.repeatable(self._find)
        if project_id is None:
            raise AnnotationToolError(
                f"Label Studio at {self._url} has no project {self.title!r}. Bring it back, or set url and project in "
                "[label_studio] to where it is; to ask here instead, delete pushed.json of the round that is open"
            )
        return project_id

    @cached_property
    def names(self) -> dict[str, str]:
        """The name under which the page keeps each class: see `stored_names`."""
        controls = self.held().parsed_label_config
        return stored_names(list(controls[CONTROL]["labels"]), self.classes, self.renamed)

    def held(self) -> HeldProject:
        """The project as the server holds it now."""
        return self._api.connection.repeatable(lambda: self._api.project(self.id))

    def prepare(self) -> None:
        """Find or make the project, and set what the order of tasks depends on.

        Raises:
            ProjectMismatch: if the project of that title asks for something else.
        """
        self.id = self._api.connection.repeatable(self._find_or_create)
        held = self.held()
        stored = self.check(held)
        self._remember(held)
        changes: dict[str, Any] = {"title": self.title} if held.title == self._former_title else {}
        if self._is_ours(stored) and self._shows_otherwise(held.parsed_label_config[CONTROL]["labels_attrs"]):
            changes["label_config"] = page_with_classes(held.label_config, self.classes, self.renamed, self.asks)
        self.names = stored_names(stored, self.classes, self.renamed)
        self.set_back(held, changes)

    def check(self, held: HeldProject) -> list[str]:
        """See that a project asks what the campaign asks; return the names under which its page keeps classes.

        Raises:
            ProjectMismatch: it asks for something else.
        """
        controls = held.parsed_label_config
        differences = page_differences(controls, held.label_config, self.asks)
        stored = [] if differences else list(controls[CONTROL]["labels"])
        if stored and self._present(stored) != set(self.classes) and not self._is_ours(stored):
            differences = [f"has the classes {', '.join(stored)} where {', '.join(self.classes)} are wanted"]
        if differences:
            raise ProjectMismatch(
                f"project {self.title!r} at {self._url} exists and {'; '.join(differences)}. "
                "Give this campaign another project title, or set the project back."
            )
        return stored

    def _is_ours(self, stored: Sequence[str]) -> bool:
        """Whether a page has the classes that this campaign gave it when it saw it last, or some of those of now."""
        shown, before = self._present(stored), self._present(self._former_classes)
        return bool(before) and before <= shown <= before | set(self.classes)

    def find(self) -> HeldProject | None:
        """The project, as the server holds it now; None where there is none."""
        found = self._api.connection.repeatable(self._find)
        if found is None:
            return None
        self.id = found
        return self.held()

    def remake(self, page: Mapping[str, Any], mark: str) -> None:
        """Make the project, or the one that holds the mark or nothing, as another was.

        Args:
            page: settings of the other one; `model_version` comes once there are guesses.
            mark: what the description says.
        """
        settings = {name: value for name, value in page.items() if name != "model_version"}
        wanted = SETTINGS | settings | {"title": self.title, "description": mark}
        held = self.find()
        if held is None:
            held = self._api.create_project(wanted)
            self.id = held.id
        else:
            self.change(wanted)
        self._remember(held)

    def set_back(self, held: HeldProject, others: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Set what the order of tasks depends on, and `others`."""
        changes = self.changed(held)
        if changes or others:
            self.change({**changes, **others})

    def changed(self, held: HeldProject) -> dict[str, Any]:
        """What somebody changed that the order of tasks depends on, with the values that it is set back to."""
        wanted = SETTINGS | {"expert_instruction": self._instructions, "show_instruction": bool(self._instructions)}
        return {key: value for key, value in wanted.items() if getattr(held, key, None) != value}

    def change(self, changes: Mapping[str, Any]) -> None:
        """Change what is named of the project."""
        self._api.connection.repeatable(lambda: self._api.change_project(self.id, changes))

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

    def _find(self) -> int | None:
        """The project that was remembered; else that of the title, or of the title that it had before."""
        found = self._find_remembered()
        if found is None:
            found = self._find_titled(self.title)
        if found is None and self._former_title is not None:
            found = self._find_titled(self._former_title)
        return found

    def _find_titled(self, title: str) -> int | None:
        """The project of the title that holds tasks, or the first of the title.

        A server on SQLite that meets its database locked runs a whole request again: one creation under load leaves
        several projects, and all but one stay empty.
        """
        found = {each.id: each.task_number or 0 for each in self._api.projects(title) if each.title == title}
        used = sorted(project_id for project_id, n_tasks in found.items() if n_tasks)
        if len(used) > 1:
            raise ProjectMismatch(
                f"Label Studio at {self._url} has {len(used)} projects {title!r} with tasks (ids {used}); "
                "rename or delete all but the one that this campaign uses"
            )
        return next(iter(used or sorted(found)), None)

    def _find_remembered(self) -> int | None:
        if self._remember_in is None or not self._remember_in.exists():
            return None
        remembered = read_json(self._remember_in)
        try:
            held = self._api.project(remembered["project_id"])
        except NotThere:
            return None
        return held.id if held.created_at == remembered["created_at"] else None

    def _remember(self, held: HeldProject) -> None:
        if self._remember_in is not None:
            mark = {"project_id": held.id, "created_at": held.created_at}
            if not self._remember_in.exists() or read_json(self._remember_in) != mark:
                write_json(self._remember_in, mark)

    def _find_or_create(self) -> int:
        found = self._find()
        if found is not None:
            return found
        created = self._api.create_project(
            SETTINGS | {"title": self.title, "label_config": labelling_page(self.classes, self.asks)}
        )
        self._remember(created)
        return created.id
