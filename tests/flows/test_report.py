"""What people read of a round, whatever classes and servers are called."""

import csv
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given, settings
from markdown_it import MarkdownIt
from PIL import Image

from connectors.escaping import from_csv_cell, visible
from flows.artefacts import BATCH, CONFUSION_PICTURE, CONFUSION_TABLE, PUSHED
from flows.folder import Campaign, RoundFolder
from flows.records import Pushed
from flows.reports.round_page import round_markdown
from flows.steps.track import draw_confusion
from pipeline.selection.explain import why
from pipeline.tables import BatchTable
from tests.flows.rounds import metrics_of
from tests.hostile import CLASSES, NAMES, TEXTS, Words, shown


@pytest.fixture
def folder(tmp_path) -> RoundFolder:
    return Campaign(tmp_path).round(1)


def test_confusion_matrix_is_drawn_and_written_for_classes_of_any_name(folder):
    classes = (*CLASSES[::6], "$x_1$", "$1", "{x}_", "\\", "=cmd()", "-1", "🫨", "قط", "L" * 200)
    n = len(classes)
    counts = [[int(row == column) for column in range(n)] for row in range(n)]
    table, picture = draw_confusion.function(replace(metrics_of(), table=counts), classes=classes)
    folder.write(CONFUSION_TABLE, table)
    folder.write(CONFUSION_PICTURE, picture)
    with (folder.path / "confusion_matrix.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert tuple(from_csv_cell(cell) for cell in head[1:]) == classes
    assert tuple(from_csv_cell(row[0]) for row in rows) == classes
    assert not any(cell.startswith(("=", "+", "-", "@", "\uff1d")) for line in (head, *rows) for cell in line)
    with Image.open(folder.path / "confusion_matrix.png") as picture:
        assert min(picture.size) > 800


@settings(max_examples=40, deadline=None)
@given(TEXTS.filter(bool), TEXTS)
def test_page_of_a_round_shows_guesses_and_addresses_as_they_are(tmp_path_factory, guess, path):
    folder = Campaign(tmp_path_factory.mktemp("campaign")).round(1)
    address = f"http://127.0.0.1:8080/{path}"
    guess = guess.encode("utf-8", "replace").decode()
    row = {"rank": 0, "item_id": "abc", "reason": "numbers", "guess": guess, "why": why("unsure", guess, guess)}
    folder.write(BATCH, BatchTable(pd.DataFrame([row])))
    address = address.encode("utf-8", "replace").decode()
    folder.write(PUSHED, Pushed("2026-11-01T12:00:00+00:00", address, {"abc": 1}, {"abc": "query"}))
    page = Words(MarkdownIt("gfm-like", {"linkify": False}).render(round_markdown(folder, "pets")))
    assert page.tags.count("table") == 2
    assert page.tags.count("tr") == 2 + 1
    assert page.tags.count("a") == 1
    assert not {"strong", "em", "code", "img", "s", "script", "b"} & set(page.tags)
    told = visible(guess, keep="")
    assert shown(f"abc the model is unsure between {told} and {told} {told}") in shown(page.words)
    assert "numbers" not in page.words


@pytest.mark.parametrize("name", NAMES)
def test_words_of_a_reason_hold_the_names_of_the_classes_as_they_are(name):
    assert why("unsure", name, "dog", 0.4) == f"the model is unsure between {name} and dog"
    assert why("unsure", name, "dog", 0.95) == f"to see whether it is {name}, as the model says"


def test_people_cannot_tell_the_audit_set_from_other_checks():
    assert why("check") == why("check", "cat", "dog", 0.5) == "a check, drawn at random"
