"""A whole campaign whose images, classes and annotators have names that mean something to other programs."""

import csv
import json
import os

import httpx
import numpy as np
import pandas as pd
import pytest
from markdown_it import MarkdownIt
from PIL import Image
from prefect import flow
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from connectors.escaping import from_csv_cell, prefect_key
from connectors.memory import MemoryTool, MemoryTracker
from connectors.store import read_json
from flows.artefacts import ANSWERS, AUDIT, CONFUSION_TABLE, LABELLED, POOL, SECONDS
from flows.campaign import OpenCampaign
from flows.config import load_settings
from flows.folder import Campaign
from flows.publish import publish
from flows.reports.round_page import round_markdown
from flows.round import work_on
from tests.hostile import CLASSES, HIDDEN, NAMES
from tests.system.conftest import words_of

FILE = """\
name = "hostile_names"
pool = "images"
classes = {classes}
folder = "campaign"
budget = 1000
audit_size = 20
seed_set_size = 60
query_size = 15

[model]
name = "small_cnn"
image_size = 8
augmentation = "none"
max_epochs = 1

[members]
ensemble = 1
"""


@pytest.fixture
def prefect(servers):
    login = {PREFECT_API_URL: servers.prefect_api_url, PREFECT_API_AUTH_STRING: servers.prefect_login}
    with temporary_settings(login):
        yield


def draw_images(folder) -> int:
    """Images of one colour each, under every name that a file can have; return how many there are."""
    folder.mkdir()
    names = [name for name in (*NAMES, *HIDDEN) if not {"/", "\0", "\ud800"} & set(name) and name[0] != "."]
    files = {os.fsencode(f"{name[:100]}.png") for name in (*names, *(f"plain {number}" for number in range(20)))}
    colours = np.random.default_rng(0).integers(0, 256, size=(len(files), 3), dtype=np.uint8)
    for file, colour in zip(sorted(files), colours, strict=True):
        image = Image.fromarray(np.broadcast_to(colour, (8, 8, 3)).copy())
        with open(os.path.join(os.fsencode(folder), file), "wb") as out:  # noqa: PTH118, PTH123 (names of bytes)
            image.save(out, format="PNG")
    return len(files)


def test_every_label_comes_back_under_its_name_and_every_file_can_be_read(tmp_path, servers, prefect, monkeypatch):
    monkeypatch.setenv("LABELCYCLE_HOME", str(tmp_path / "home"))
    n_images = draw_images(tmp_path / "images")
    file = tmp_path / "campaign.toml"
    file.write_text(FILE.format(classes=json.dumps(CLASSES, ensure_ascii=False)), encoding="utf-8")
    settings = load_settings(file)
    tool, tracker = MemoryTool(settings.classes), MemoryTracker()
    work = OpenCampaign(settings, Campaign(settings.folder), tool=tool, tracker=tracker)
    given: dict[str, str] = {}

    for number in range(2):
        outcome = work_on(work)
        assert (outcome.kind, outcome.round_number) == ("asked", number)
        for question in tool.served():
            label = CLASSES[len(given) % len(CLASSES)]
            tool.answer(question.ask, label, annotator=NAMES[len(given) % len(NAMES)])
            given[question.item_id] = label
    work_on(work)

    folder = work.folder.round(2)
    flow(publish, persist_result=False, validate_parameters=False)(folder, settings.name)
    wanted = {"artifacts": {"key": {"any_": [prefect_key("hostile_names-round-0002")]}}}
    login = tuple(servers.prefect_login.split(":"))
    pages = httpx.post(f"{servers.prefect_api_url}/artifacts/latest/filter", json=wanted, timeout=30, auth=login)
    assert [page["data"] for page in pages.json()] == [round_markdown(folder, settings.name)]
    assert len(work.folder.read(POOL).table.dropna(subset="item_id")) == n_images
    assert words_of(folder, LABELLED) | words_of(folder, AUDIT) == given
    annotators = pd.concat([pd.read_parquet(f.path_of(ANSWERS)) for f in work.folder.rounds()[:2]])["annotator"]
    assert set(annotators) <= set(NAMES)
    assert len(set(annotators)) > 80
    for path in settings.folder.rglob("*.json"):
        read_json(path)
    for path in settings.folder.rglob("*.parquet"):
        pd.read_parquet(path)
    with folder.path_of(CONFUSION_TABLE).open(encoding="utf-8", newline="") as table:
        assert tuple(from_csv_cell(cell) for cell in next(csv.reader(table))[1:]) == CLASSES
    told = tracker.runs["round-2"]
    assert {"confusion_matrix.csv", "confusion_matrix.png", "batch.parquet"} <= told.artifacts.keys()
    rendered = MarkdownIt("gfm-like", {"linkify": False}).render(round_markdown(folder, settings.name))
    assert rendered.count("<tr>") == 1 + 10 + 1 + len(folder.read(SECONDS))
    assert all(question.reason and not question.reason.startswith("auto") for question in tool.tasks.values())
