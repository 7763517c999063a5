"""Whatever names strategies for people names those that there are."""

import re
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner

from flows.cli import app
from flows.config import CampaignSettings
from flows.example import EXAMPLE
from pipeline.selection.acquisition import ACQUISITIONS
from pipeline.selection.page import WORDS, strategies_page
from pipeline.selection.scoring import REDUCTIONS
from pipeline.selection.strategies.rows import STRATEGIES
from pipeline.types import Candidates

ROOT = Path(__file__).parents[2]
FOR_CAMPAIGNS = {name for name, row in STRATEGIES.items() if not row.is_check}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def names_in(text: str, begin: str, end: str) -> set[str]:
    """The words with an underscore, or that are names, of a part of a text."""
    part = text[text.index(begin) + len(begin) :]
    words = re.findall(r"[a-z]\w*", part[: part.index(end)])
    return {word for word in words if "_" in word or word in {**STRATEGIES, **ACQUISITIONS, **REDUCTIONS}}


def test_the_example_of_a_campaign_file_names_every_strategy_for_campaigns_and_no_other():
    assert names_in(EXAMPLE, "# strategy =", "# strategy_options") == FOR_CAMPAIGNS
    assert names_in(EXAMPLE, "# acquisition =", "# reduction =") == set(ACQUISITIONS)
    assert names_in(EXAMPLE, "# reduction =", "# strategy =") == set(REDUCTIONS)


def test_the_help_of_a_replay_names_every_strategy_and_no_other(monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    text = CliRunner().invoke(app, ["simulate", "--help"]).output
    assert names_in(text, "Strategies: ", "Acquisition functions: ") == set(STRATEGIES)
    assert names_in(text, "Acquisition functions: ", "What compares members") == set(ACQUISITIONS)


def test_the_page_of_strategies_is_what_the_rows_give():
    page = (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8")
    assert page == strategies_page(), "write it again: python -m pipeline.selection.page"


@pytest.mark.parametrize("name", [*STRATEGIES, *ACQUISITIONS])
def test_the_docs_name_every_strategy_and_acquisition_function(name):
    assert any(f"`{name}`" in page.read_text(encoding="utf-8") for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_show_no_strategy_or_acquisition_function_that_is_not_there(page):
    text = page.read_text(encoding="utf-8")
    arms = [arm for arms in re.findall(r"--strategies ([\w,:]+)", text) for arm in re.split("[,:]", arms)]
    assert set(re.findall(r'\bstrategy = "(\w+)"', text)) <= set(STRATEGIES)
    assert set(re.findall(r'\bacquisition = "(\w+)"', text)) <= set(ACQUISITIONS)
    assert set(arms) <= {*STRATEGIES, *ACQUISITIONS}


def test_a_seed_set_is_chosen_by_strategies_that_need_no_model():
    known = get_args(CampaignSettings.model_fields["cold_start"].annotation)
    assert set(known) == {name for name, row in STRATEGIES.items() if row.may_begin}
    for name in known:
        assert set(STRATEGIES[name].columns) <= {"scores", "embeddings", "labelled_embeddings"}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_row_is_filed_under_its_name_and_has_a_line_for_people(name):
    row = STRATEGIES[name]
    assert row.name == row.ask.__name__ == name
    assert row.ask.__doc__.partition("\n")[0].endswith(".")


def test_every_column_has_a_word_for_people():
    assert set(WORDS) == set(Candidates.__dataclass_fields__) - {"ids", "described", "is_in_order"}
