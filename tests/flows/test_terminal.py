"""What is printed and logged, whatever is in it."""

import io
import logging
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from rich.progress import TextColumn
from rich.table import Table
from rich.text import Text

from connectors.escaping import visible
from flows import terminal
from flows.progress import progress_bars
from flows.terminal import Terminal, prepare_output
from tests.hostile import HIDDEN, NAMES, TEXTS

DANGEROUS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printed(*what, colours: bool = False) -> str:
    console = Terminal()
    console.file, console.width = io.StringIO(), 10_000
    console._force_terminal, console._color_system = colours, None
    for each in what:
        console.print(each, soft_wrap=isinstance(each, str | Text))
    return console.file.getvalue()


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_printed_as_it_is(name):
    table = Table(name, title=name, caption=name)
    table.add_row(name)
    told = printed(f"{name}: found", Text.assemble(("Error:", "red"), " ", name), table)
    assert told.startswith(f"{name}: found\nError: {name}\n")
    assert told.count(name) == 6


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(TEXTS)
def test_no_text_moves_the_cursor_by_whatever_way_it_is_printed(text):
    table = Table(text, title=text, caption=text)
    table.add_row(text)
    for way in (text, Text(text), Text.assemble(("Error:", "red"), text), table):
        assert not DANGEROUS.search(printed(way))


@pytest.mark.parametrize("text", HIDDEN)
def test_what_is_hidden_in_a_message_can_be_seen(text):
    if text[1] not in "\n\t\r":  # ends of lines stay, or are thrown away by rich as the bell is
        assert visible(text.replace("\x07", "")) in printed(text)


@pytest.mark.parametrize("name", ["[red]x[/red]", "[/]", "{task}", ":cat:"])
def test_a_bar_shows_a_name_as_it_is(name, monkeypatch):
    monkeypatch.setattr(Terminal, "is_terminal", True)
    bars = progress_bars("images")
    bars.add_task(name, total=2)
    column = next(column for column in bars.columns if isinstance(column, TextColumn))
    assert column.render(bars.tasks[0]).plain.strip() == name


def test_no_log_line_moves_the_cursor(monkeypatch):
    monkeypatch.setattr(logging, "_logRecordFactory", logging.LogRecord)
    prepare_output()
    said = io.StringIO()
    log = logging.Logger("of a test")
    log.addHandler(logging.StreamHandler(said))
    log.warning("%s is damaged", "a\x1b[2J\u202e.png")
    assert said.getvalue() == "a\\x1b[2J\\u202e.png is damaged\n"


def test_a_sign_that_the_terminal_does_not_have_is_no_error(monkeypatch):
    monkeypatch.setattr(logging, "_logRecordFactory", logging.LogRecord)
    plain = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(terminal.sys, "stdout", plain)
    prepare_output()
    Terminal().print("caf\xe9 猫")
    plain.flush()
    assert plain.buffer.getvalue() == b"caf\\xe9 \\u732b\n"


def test_everything_is_printed_through_the_terminal_and_nothing_reads_markup():
    for module in Path(terminal.__file__).parent.glob("*.py"):
        source = module.read_text(encoding="utf-8")
        assert "rich.markup" not in source, f"{module.name}: foreign text needs no escape(), and styles come as Text"
        assert not re.search(r"\[/?(?:red|yellow|green|bold|dim|/)\]", source), f"{module.name}: styles come as Text"
        assert module.name == "terminal.py" or not re.search(r"\bConsole\(", source), f"{module.name}: use Terminal"
