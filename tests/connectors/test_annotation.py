"""Every annotation tool keeps what `AnnotationTool` promises."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from connectors.label_studio.client import LabelStudio
from connectors.label_studio.kinds.table import kind_of
from connectors.label_studio.person import SimulatedAnnotator
from connectors.memory import NOW, MemoryTool
from pipeline.types import ONE_CLASS, AskFor, Region
from tests.connectors.annotation_contract import CLASSES, AnnotationContract, People
from tests.connectors.made_up_tool import FolderTool


class InMemory:
    uris = ("a.png", "b.png")

    def __init__(self, asks=ONE_CLASS):
        self.tool = MemoryTool(CLASSES, asks=asks)

    def answer(self, task_id, label):
        return self.tool.answer(self.tool.tasks[task_id].ask, label, annotator="ann", seconds=2.5)

    def mark(self, task_id, *regions):
        self.tool.answer(self.tool.tasks[task_id].ask, *regions)

    def skip(self, task_id):
        self.tool.skip(self.tool.tasks[task_id].ask)

    def change(self, answer_id, label):
        given = self.tool.answers[answer_id]
        annotation = replace(given.annotation, regions=(Region("image", label),))
        self.tool.answers[answer_id] = replace(given, annotation=annotation, updated_at=NOW().isoformat())

    def take_back(self, answer_id):
        self.tool.delete(answer_id)

    def delete(self, task_id):
        del self.tool.tasks[task_id]

    def lose(self):
        self.tool.tasks.clear()
        self.tool.answers.clear()

    def label(self, truth, n=None):
        done = self.tool.served()[:n]
        for question in done:
            self.tool.answer(question.ask, truth[question.item_id])
        return [question.item_id for question in done]


class InAFolder:
    uris = ("a.png", "b.png")

    def __init__(self, folder: Path, asks=ONE_CLASS):
        self.tool = FolderTool(folder / "project", CLASSES, asks)
        self.tool.prepare()
        self.mark, self.skip = self.tool.answer, self.tool.skip
        self.delete, self.take_back = self.tool.delete, self.tool.take_back

    def lose(self):
        shutil.rmtree(self.tool.folder)
        self.tool.prepare()
        self.tool._write("spoon", {})  # so that what comes next has other numbers

    def answer(self, task_id, label):
        return self.tool.answer(task_id, Region("image", label))

    def change(self, answer_id, label):
        self.tool.change(answer_id, Region("image", label))

    def label(self, truth, n=None):
        items = {task_id: ask.item_id for ask, task_id in self.tool._held().items()}
        done = self.tool.served()[:n]
        for task_id in done:
            self.answer(task_id, truth[items[task_id]])
        return [items[task_id] for task_id in done]


class InLabelStudio:
    def __init__(self, space, api: httpx.Client, asks=ONE_CLASS):
        self.uris = space.uris
        settings = {"url": space.url, "token": space.token, "project": space.project}
        self._connect = lambda: LabelStudio(**settings, classes=CLASSES, images_root=space.images_root, asks=asks)
        self.tool = self._connect()
        self.tool.prepare()
        self._kind = kind_of(asks)
        self._settings = settings
        self._api = api

    def answer(self, task_id, label):
        return self._annotate(task_id, {"result": [chosen(label)], "lead_time": 2.5})

    def mark(self, task_id, *regions):
        self._annotate(task_id, {"result": self._kind.write_all(regions, {}), "lead_time": 2.5})

    def skip(self, task_id):
        self._annotate(task_id, {"result": [], "was_cancelled": True, "lead_time": 1.0})

    def _annotate(self, task_id, body):
        return self._api.post(f"/api/tasks/{task_id}/annotations/", json=body).raise_for_status().json()["id"]

    def take_back(self, answer_id):
        self._api.delete(f"/api/annotations/{answer_id}/").raise_for_status()

    def change(self, answer_id, label):
        body = {"result": [chosen(label)], "lead_time": 9.5}
        self._api.patch(f"/api/annotations/{answer_id}/", json=body).raise_for_status()

    def delete(self, task_id):
        self._api.delete(f"/api/tasks/{task_id}/").raise_for_status()

    def lose(self):
        self._api.delete(f"/api/projects/{self.tool._project.id}/").raise_for_status()
        self.tool = self._connect()

    def label(self, truth, n=None):
        return list(SimulatedAnnotator(**self._settings, answers=truth).label(n).item_ids)


def chosen(label):
    return {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}


class TestMemory(AnnotationContract):
    @pytest.fixture
    def people(self, people_of) -> People:
        return people_of(ONE_CLASS)

    @pytest.fixture
    def people_of(self):
        return InMemory


class TestFolderOfFiles(AnnotationContract):
    @pytest.fixture
    def people(self, people_of) -> People:
        return people_of(ONE_CLASS)

    @pytest.fixture
    def people_of(self, tmp_path):
        return lambda asks: InAFolder(tmp_path, asks)


class TestLabelStudio(AnnotationContract):
    @pytest.fixture
    def people(self, people_of) -> People:
        return people_of(ONE_CLASS)

    @pytest.fixture
    def people_of(self, space) -> Iterator[Callable[[AskFor], People]]:
        headers = {"Authorization": f"Token {space.token}"}
        with httpx.Client(base_url=space.url, headers=headers, timeout=60) as api:
            yield lambda asks: InLabelStudio(space, api, asks)


@pytest.mark.parametrize("module", ["connectors.annotation", "connectors.tracking", "connectors.memory"])
def test_what_only_asks_people_loads_in_no_time(module):
    heavy = ("torch", "mlflow", "pandas", "httpx")
    code = f"import sys, {module}; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []
