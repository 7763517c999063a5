"""Names in other programs' languages: each is read back by a parser of that language."""

import csv
import io
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_studio_sdk._extensions.label_studio_tools.core.label_config import parse_config
from markdown_it import MarkdownIt
from mlflow.utils import validation

from connectors import escaping
from connectors.escaping import csv_cell, from_csv_cell, markdown, mlflow_key, prefect_key, visible
from connectors.label_studio.pages import labelling_page, page_differences
from tests.hostile import CLASS_NAMES, CLASSES, HIDDEN, NAMES, TEXTS, Words, shown

VARIABLE = re.compile(r"\$[\w\[\].{}]+", re.ASCII)
"""What Label Studio's pages replace in a value: web/libs/editor/src/utils/data.js, parseValue."""
quickly = settings(max_examples=80, deadline=None)


@pytest.mark.parametrize("text", HIDDEN)
def test_what_is_hidden_is_shown_as_an_escape(text):
    told = visible(text, keep="")
    assert told != text or text == "a\xa0b"  # a space, if a hard one
    assert told.replace("\xa0", " ").isprintable()
    assert told.startswith("a")


@quickly
@given(TEXTS)
def test_no_text_moves_the_cursor(text):
    told = visible(text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", told)
    assert visible(told) == told
    assert told.encode().decode() == told


@pytest.mark.parametrize("name", NAMES)
def test_what_can_be_seen_stays_as_it_is(name):
    assert visible(name) == name


@quickly
@given(TEXTS)
def test_markdown_shows_a_text_as_it_is(text):
    lines = f"**Warning:** {markdown(text)}\n\n| a | b |\n|---|---|\n| {markdown(text)} | x |\n"
    page = Words(MarkdownIt("gfm-like", {"linkify": False}).render(lines))
    row = ["thead", "tr", "th", "th", "tbody", "tr", "td", "td"]
    assert page.tags == ["p", "strong", "table", *row]
    wanted = shown(visible(text, keep=""))
    assert shown(page.words) == shown(f"Warning: {wanted} a b {wanted} x")


@quickly
@given(st.lists(TEXTS.filter(lambda text: "\x00" not in text), min_size=2, max_size=2))
def test_a_spreadsheet_takes_no_cell_for_a_formula_and_the_text_comes_back(texts):
    written = io.StringIO()
    csv.writer(written).writerow([csv_cell(text) for text in texts])
    [cells] = csv.reader(io.StringIO(written.getvalue(), newline=""))
    assert [from_csv_cell(cell) for cell in cells] == texts
    assert not any(cell.lstrip()[:1] in set("=+-@\uff1d\uff0b\uff0d\uff20") for cell in cells if cell.strip())


@quickly
@given(st.lists(TEXTS, min_size=2, max_size=2, unique=True))
def test_mlflow_takes_each_name_and_no_two_are_the_same(texts):
    keys = [mlflow_key(f"recall/{text}") for text in texts] + [mlflow_key(text) for text in texts]
    for key in keys:
        validation._validate_metric_name(key)
        validation._validate_param_name(key)
        validation._validate_tag_name(key)
        assert len(key) <= validation.MAX_ENTITY_KEY_LENGTH
    assert len(set(keys)) == len({*texts, *(f"recall/{text}" for text in texts)})


def test_mlflow_keeps_the_longest_name_that_it_takes():
    assert escaping.LONGEST_MLFLOW_KEY == validation.MAX_ENTITY_KEY_LENGTH
    keys = {mlflow_key(f"recall/{'a' * 300}{end}") for end in "xyz"}
    assert len(keys) == 3
    assert all(key.startswith("recall/aaa") for key in keys)


@quickly
@given(TEXTS)
def test_prefect_takes_each_key(text):
    from prefect.types.names import ArtifactKey
    from pydantic import TypeAdapter

    TypeAdapter(ArtifactKey).validate_python(prefect_key(text))


@quickly
@given(st.lists(CLASS_NAMES, min_size=2, max_size=6, unique=True))
def test_the_page_shows_each_class_and_gives_it_back(classes):
    page = labelling_page(classes)
    told = parse_config(page)
    assert told["label"]["labels"] == classes
    assert page_differences(told, page) == []
    for label, choice in zip(classes, ElementTree.fromstring(page).iter("Choice"), strict=True):
        assert not VARIABLE.search(choice.get("value"))
        assert choice.get("alias", choice.get("value")) == label
        assert Words(choice.get("html", "")).words in ("", label)
        assert Words(choice.get("html", "")).tags == []
        assert choice.get("html") or choice.get("value") == label
    assert len({choice.get("value") for choice in ElementTree.fromstring(page).iter("Choice")}) == len(classes)


def test_the_page_of_an_older_version_that_shows_a_class_as_nothing_is_refused():
    choices = '<Choices name="label" toName="image"><Choice value="$5"/><Choice value="a"/></Choices>'
    page = f'<View>{choices}<Image name="image" value="$image"/></View>'
    [told] = page_differences(parse_config(page), page)
    assert told == "shows no name for $5, which it takes for variables of the task"


def test_most_names_can_be_classes():
    assert set(NAMES) - set(CLASSES) == {"na\u0308gel"}  # it becomes the same in Unicode's NFC
