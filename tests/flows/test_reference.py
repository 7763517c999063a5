import re
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from pydantic import BaseModel
from typer.core import TyperGroup
from typer.main import get_command

from flows import artefacts, errors
from flows.artefacts import CAMPAIGN_ARTEFACTS, ROUND_ARTEFACTS, Artefact
from flows.changes import ANOTHER_CAMPAIGN, CHANGE_NOTHING_BEGUN
from flows.cli import app
from flows.config import CampaignSettings
from flows.example import EXAMPLE
from flows.reference import PAGES

DOCS = Path(__file__).parents[2] / "docs"


def settings_of(model: type[BaseModel], section: str = "") -> Iterator[tuple[str, str, str | None]]:
    """Section, key and description of each setting."""
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings_of(field.annotation, f"{section}.{key}".strip("."))
        else:
            yield section, key, field.description


SETTINGS = list(settings_of(CampaignSettings))
COMMANDS = cast(TyperGroup, get_command(app)).commands


@pytest.mark.parametrize("page", PAGES)
def test_page_is_what_the_code_writes(page):
    written = (DOCS / f"{page}.md").read_text(encoding="utf-8")
    assert written == PAGES[page](), f"python -m flows.reference {page} > docs/{page}.md"


def test_arguments_have_the_names_that_help_prints():
    page = PAGES["commands"]()
    assert "| `FORMAT` | required |" in page
    assert not re.search(r"`[A-Z]+_`", page), "a name of Python's"


@pytest.mark.parametrize(("section", "key", "description"), SETTINGS)
def test_each_setting_is_described_and_stands_in_the_example(section, key, description):
    assert description
    table = "renamed" if key == "renamed" else section
    parts = dict(re.findall(r"^(?:# )?\[([a-z_.]+)\]([^\0]*?)(?=^(?:# )?\[|\Z)", f"[top]\n{EXAMPLE}", re.MULTILINE))
    assert key == "renamed" or re.search(rf"^(# )?{key} = ", parts[table or "top"], re.MULTILINE)


def test_each_artefact_is_listed_and_described():
    listed = [*CAMPAIGN_ARTEFACTS, *ROUND_ARTEFACTS.values()]
    declared = [one for one in vars(artefacts).values() if isinstance(one, Artefact)]
    assert sorted(one.name for one in listed) == sorted(one.name for one in declared)
    assert [one.name for one in listed if not one.holds] == []


def test_what_may_change_names_settings_that_there_are():
    known = {f"{section}.{key}".strip(".") for section, key, _ in SETTINGS}
    assert known >= ANOTHER_CAMPAIGN | CHANGE_NOTHING_BEGUN


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_and_each_of_its_options_is_described(name):
    assert COMMANDS[name].help
    assert [each.name for each in COMMANDS[name].params if not each.help] == []


def test_each_exit_code_has_a_meaning():
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_") and isinstance(value, int)}
    assert codes | {0} == errors.EXIT_CODES.keys()
    told = get_command(app).help
    assert [n for n, what in errors.EXIT_CODES.items() if f"{n} {what.partition(':')[0]}" not in told] == []
