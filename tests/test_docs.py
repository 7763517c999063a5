"""README and docs/ name commands, settings, files and exit codes that are there."""

import ast
import re
import shlex
import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import fields
from itertools import dropwhile
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from typer.main import get_command

from flows import errors
from flows.cli import app
from flows.config import CampaignSettings, load_settings
from flows.reports.status import CampaignStatus
from pipeline.selection.strategies.rows import STRATEGIES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(#[^)\s]*)?\)")
CODE = re.compile(r"`([^`\n]+)`")
TREE = re.compile(r"(?:pipeline|connectors|flows|deploy|benchmarks|tests|docs)(?:/[\w.]+)+/?")
COMMANDS: dict[str, Any] = vars(get_command(app))["commands"]
SMALLEST = {
    "name": "pets",
    "pool": "images",
    "classes": ["cat", "dog"],
    "budget": 1000,
    "audit_size": 200,
}


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """The code blocks of a page in a language; that of a shell has none."""
    return [text for marked, text in BLOCK.findall(page.read_text(encoding="utf-8")) if marked == language]


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return BLOCK.sub("", page.read_text(encoding="utf-8"))


def commands(lines: Iterable[str]) -> Iterator[tuple[str, Any, list[str]]]:
    """Each call of the command in these lines: the line, the subcommand and its arguments."""
    for line in lines:
        words = shlex.split(line, comments=True) if line.startswith("labelcycle ") else []
        given = list(dropwhile(lambda word: word.startswith("-"), words[1:]))
        if given and given[0] != "COMMAND":
            assert given[0] in COMMANDS, f"{line}: there is no command {given[0]}"
            yield line, COMMANDS[given[0]], given[1:]


def keys_of(model: type[BaseModel]) -> Iterator[str]:
    """The names of all settings, and of all sections."""
    for name, field in model.model_fields.items():
        yield name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys_of(field.annotation)


def anchor(heading: str) -> str:
    """How a heading is linked to."""
    return re.sub(r"[^\w\- ]", "", heading.strip("# ").lower()).replace(" ", "-")


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


def test_every_test_that_the_page_on_security_names_is_there():
    named = set(re.findall(r"`((?:test|check)_\w+)`", (ROOT / "docs" / "security.md").read_text(encoding="utf-8")))
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py")]
    there = {name for text in texts for name in re.findall(r"def ((?:test|check)_\w+)", text)}
    assert len(named) > 40
    assert named <= there


@each_page
def test_links_lead_somewhere(page):
    for path, heading in LINK.findall(prose(page)):
        target = (page.parent / path) if path else page
        assert target.exists(), f"{name_of(page)} links to {path}, which is not there"
        if heading:
            headings = re.findall(r"^#+ .*", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading[1:] in map(anchor, headings), f"{name_of(page)} links to {path}{heading}"


@each_page
def test_commands_in_blocks_are_understood(page):
    lines = (line.strip() for text in blocks(page, "") for line in text.splitlines())
    for line, command, arguments in commands(lines):
        try:
            command.make_context(command.name, arguments)
        except Exception as exc:
            pytest.fail(f"{name_of(page)}: {line}: {exc}")


@each_page
def test_commands_and_options_in_sentences_exist(page):
    inline = CODE.findall(prose(page))
    for line, command, arguments in commands(inline):
        known = {option for parameter in command.params for option in parameter.opts}
        unknown = {word for word in arguments if word.startswith("-")} - known
        assert not unknown, f"{name_of(page)}: {line}: no option {unknown}"


@each_page
def test_make_has_these_targets(page):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    lines = [*(line for text in blocks(page, "") for line in text.splitlines()), *CODE.findall(prose(page))]
    for line in lines:
        if line.startswith("make "):
            asked = [word for word in re.split(r"[#&]", line)[0].split()[1:] if "=" not in word]
            assert set(asked) <= targets, f"{name_of(page)}: {line}"


@each_page
def test_settings_in_blocks_make_a_campaign(page, tmp_path):
    for weights in ("resnet18.pth", "fasterrcnn_resnet50_fpn.pth"):
        (tmp_path / weights).touch()
    for text in blocks(page, "toml"):
        given = tomllib.loads(text)
        missing = "".join(f"{key} = {value!r}\n" for key, value in SMALLEST.items() if key not in given)
        (tmp_path / "campaign.toml").write_text(missing + text, encoding="utf-8")
        load_settings(tmp_path / "campaign.toml")


@each_page
def test_settings_in_sentences_exist(page):
    known = {*keys_of(CampaignSettings), *(name for row in STRATEGIES.values() for name in row.options)}
    for told in CODE.findall(prose(page)):
        if key := re.match(r"([a-z_]+) = ", told):
            assert key[1] in known, f"{name_of(page)}: `{told}`"


@each_page
def test_files_of_the_tree_exist(page):
    for path in filter(TREE.fullmatch, CODE.findall(prose(page))):
        there = (ROOT / path).exists() or (ROOT / f"{path}.py").exists()
        assert there, f"{name_of(page)} names {path}, which is not there"


@each_page
def test_python_is_python(page):
    for text in blocks(page, "python"):
        ast.parse(text)


def test_readme_is_three_screens_and_leads_to_every_task():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 100
    tasks = {name_of(page) for page in PAGES if page.parent.name in ("how-to", "reference", "explanation")}
    assert tasks <= {path for path, _ in LINK.findall(text)}


def test_every_decision_is_listed():
    listed = (
        (ROOT / "docs" / "explanation" / "defaults.md").read_text(encoding="utf-8").partition("## All decisions")[2]
    )
    there = sorted(page.name for page in PAGES if page.parent.name == "decisions")
    assert re.findall(r"decisions/([\w.-]+)\)", listed) == there


def test_every_exit_code_has_a_row():
    page = (ROOT / "docs" / "reference" / "exit-codes.md").read_text(encoding="utf-8")
    codes = {value for name, value in vars(errors).items() if name.startswith("EXIT_") and name != "EXIT_CODES"}
    assert {int(code) for code in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)} == {0} | codes


def test_every_key_of_the_status_has_a_row():
    page = (ROOT / "docs" / "reference" / "status.md").read_text(encoding="utf-8")
    rows = "".join(re.findall(r"^\| (`[^|]+)\|", page, re.MULTILINE))
    assert re.findall(r"`(\w+)`", rows) == [*(field.name for field in fields(CampaignStatus)), "damaged", "servers"]


def test_every_package_that_is_needed_has_a_reason():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {re.split(r"[^\w-]", line)[0] for line in project["dependencies"]}
    page = (ROOT / "docs" / "reference" / "packages.md").read_text(encoding="utf-8")
    told = {name.strip() for row in re.findall(r"^\| ([^|]+) \|", page, re.MULTILINE) for name in row.split(",")}
    assert needed <= told


def messages() -> str:
    """All texts in the product's code, a line each; what is filled in when it runs is N."""
    texts = []
    for file in (each for top in ("flows", "connectors", "pipeline", "deploy") for each in (ROOT / top).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                texts.append(
                    "".join(
                        getattr(part, "value", "") if isinstance(part, ast.Constant) else "N" for part in node.values
                    )
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_messages_that_are_explained_are_those_that_people_see():
    page = (ROOT / "docs" / "how-to" / "when-something-fails.md").read_text(encoding="utf-8")
    explained = re.findall(r"\*([^*|\n]+)\*(?=[^|\n]*\|[^|\n]*\|[^|\n]*\|$)", page, re.MULTILINE)
    assert len(explained) >= 8
    there = messages()
    assert [told for told in explained if told not in there] == []
