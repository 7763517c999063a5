"""Pages of docs/ that are written from the code: `python -m flows.reference settings > docs/settings.md`."""

import importlib
import pkgutil
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, cast

from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from flows import steps
from flows.artefacts import CAMPAIGN_ARTEFACTS, MEMBERS, PROGRESS, ROUND_ARTEFACTS, SCORES, SECONDS, AnyArtefact
from flows.changes import ANOTHER_CAMPAIGN, CHANGE_NOTHING_BEGUN
from flows.config import CampaignSettings
from flows.errors import EXIT_CODES
from flows.step import Step
from pipeline.settings import MOST

Schema = Mapping[str, Any]
"""A part of a JSON schema."""

SETTINGS_HEAD = """\
# Settings

Every key of a campaign file. `labelcycle init` writes a file with all of them. Each run reads the file anew; the last
column holds from when on a changed key counts:

- **at once**: what is computed already stays right.
- **next round**: the open round ends as it began. A round that nobody has seen yet begins anew.
- **new campaign**: only until the first batch is out. From then on the key makes another campaign:
  `labelcycle init NEW.toml --from OLD.toml` takes all labels along.

A class may come at any time. One that has another name now, or is part of another, stands in `[renamed]`.
"""
COMMANDS_HEAD = """\
# Commands

The option `--help` of a command prints the same. With `labelcycle --debug run` an error also shows where in the code it
came from.
"""
FOLDER_HEAD = """\
# The campaign's folder

`.labelcycle/campaigns/NAME` beside the campaign file, or the setting `folder`. A file is written once and whole: it
appears under its name when it is complete. A file that exists is a step that is done
([how a round lives](../explanation/rounds.md)). JSON files are checked when they are read: a key of a wrong type is an
error that names file and key.

When a round closes, old rounds give back what no later step reads, by the rules of [`[keep]`](../settings.md#keep)
([why](../decisions/0032-housekeeping.md)).

This page is written from the code: `python -m flows.reference reference/campaign-folder`.
"""
BESIDES = (
    (
        "`campaign.lock`, `campaign.lock.holders/`",
        "Who works on the campaign now; the time of a file in it is the holder's last sign",
        "`pid`, `host`, `since`, `boot`",
    ),
    ("`label_studio.json`", "The project in Label Studio", "`project_id`, `created_at`"),
    ("`restored_answers.json`", "Who gave answers that were restored, and when", ""),
    ("`serve.log`, `serve.lock`, `serve.lock.holders/`", "Log and lock of `labelcycle serve`", ""),
    ("`rounds/0003/`", "The files of round 3", ""),
)
"""What lies in a campaign's folder and is no artefact."""
WRITERS = {MEMBERS.name: "`train`", SCORES.name: "`score_shard`", PROGRESS.name: "`look`", SECONDS.name: "each"}
"""Steps that write through a handle, or beside their result."""
LIMITS = (
    ("minimum", "≥"),
    ("exclusiveMinimum", ">"),
    ("maximum", "≤"),
    ("exclusiveMaximum", "<"),
)


def settings_page() -> str:
    """docs/settings.md: each setting with type, default, meaning, and when it may change."""
    schema = CampaignSettings.model_json_schema()
    return "\n".join([SETTINGS_HEAD, *_sections("", schema, schema["$defs"])])


def commands_page() -> str:
    """docs/commands.md: each command with its arguments and options, and the exit codes."""
    from flows.cli import app

    commands = cast("Mapping[str, TyperCommand]", cast(TyperGroup, get_command(app)).commands)
    lines = [COMMANDS_HEAD, *(line for name, command in commands.items() for line in _command(name, command))]
    lines += ["## Exit codes", "", *_table(("code", "meaning"), [(str(n), what) for n, what in EXIT_CODES.items()])]
    return "\n".join(lines)


def folder_page() -> str:
    """docs/reference/campaign-folder.md: each file of a campaign and of a round, what it holds, and who writes it."""
    writers = _writers()
    of_campaign = [*((f"`{one.name}`", one.holds, _keys(one)) for one in CAMPAIGN_ARTEFACTS), *BESIDES]
    of_round = [
        (f"`{one.name}{'' if '.' in one.name else '/'}`", writers[one.name], one.holds, _keys(one), one.goes)
        for one in ROUND_ARTEFACTS.values()
    ]
    lines = [FOLDER_HEAD, "## Of the campaign", "", *_table(("file", "holds", "keys"), of_campaign)]
    lines += ["## Of a round", "", "The steps are functions in `flows/steps`.", ""]
    header = ("file", "written by the step", "holds", "keys", "removed of old rounds")
    return "\n".join([*lines, *_table(header, of_round)])


def _keys(artefact: AnyArtefact) -> str:
    return ", ".join(f"`{key}`" for key in artefact.keys)


def _writers() -> dict[str, str]:
    """The step, or the steps, that write each file of a round."""
    found: dict[str, dict[str, None]] = defaultdict(dict)
    for module in pkgutil.iter_modules(steps.__path__, f"{steps.__name__}."):
        for one in vars(importlib.import_module(module.name)).values():
            for artefact in one.writes if isinstance(one, Step) else ():
                found[artefact.name][one.name] = None
    return WRITERS | {name: ", ".join(f"`{each}`" for each in names) for name, names in found.items()}


def _sections(name: str, schema: Schema, kinds: Mapping[str, Schema]) -> Iterator[str]:
    """A table of the settings of a section, then those of the sections in it."""
    fields: Mapping[str, Schema] = schema["properties"]
    inner = {key: kinds[_kind(field)] for key, field in fields.items() if _kind(field)}
    yield f"## `[{name}]`\n" if name else "## At the top of the file\n"
    yield f"{_one_line(schema['description'])}\n"
    required = schema.get("required", ())
    rows = [
        (
            f"`{key}`",
            _type(field),
            "required" if key in required and key != "folder" else _default(field),
            field["description"],
            _changes(f"{name}.{key}" if name else key),
        )
        for key, field in sorted(fields.items(), key=lambda pair: pair[0] not in required)
        if key not in inner
    ]
    yield from _table(("key", "type", "default", "what it does", "a change counts"), rows)
    for key, section in inner.items():
        yield from _sections(f"{name}.{key}" if name else key, section, kinds)


def _kind(field: Schema) -> str:
    """The model of a section, by name; empty for a setting."""
    return str(field.get("$ref", "")).rpartition("/")[2]


def _type(field: Schema) -> str:
    if "anyOf" in field:
        return _type(next(one for one in field["anyOf"] if one.get("type") != "null"))
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if field["type"] == "array":
        return "list of texts"
    if field["type"] == "object":
        return "table"
    named = {"integer": "whole number", "boolean": "`true` or `false`", "string": "text"}
    formats = {"path": "path", "duration": "duration: `3d`, `12h`"}
    limits = " and ".join(f"{sign} {field[key]:,}" for key, sign in LIMITS if field.get(key, MOST) != MOST)
    return " ".join(filter(None, [formats.get(field.get("format", "")) or named.get(field["type"], "number"), limits]))


def _default(field: Schema) -> str:
    if "default" not in field:
        return "follows others"
    value = field["default"]
    if field.get("format") == "duration":
        value = str(value).translate({ord("P"): None, ord("T"): None}).lower()  # "P3D", as ISO 8601 has it
    if value is None or value in ({}, []):
        return "not set"
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value}`"


def _changes(key: str) -> str:
    if key in ANOTHER_CAMPAIGN:
        return "new campaign"
    return "at once" if key in CHANGE_NOTHING_BEGUN else "next round"


def _command(name: str, command: TyperCommand) -> Iterator[str]:
    yield f"## `labelcycle {name}`\n"
    yield "\n\n".join(_one_line(part) for part in (command.help or "").split("\n\n")) + "\n"
    rows = []
    for parameter in command.params:
        is_argument = parameter.param_type_name == "argument"
        argument = getattr(parameter, "metavar", None) or (parameter.name or "").upper()
        names = [argument] if is_argument else [*parameter.opts, *parameter.secondary_opts]
        is_open = parameter.default is None or parameter.default is False
        default = "required" if parameter.required else "" if is_open else f"`{parameter.default}`"
        told = _one_line(getattr(parameter, "help", None) or "")
        rows.append((", ".join(f"`{each}`" for each in names), default, told))
    if rows:
        yield from _table(("argument or option", "default", "what it does"), rows)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield "|" + "---|" * len(header)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"
    yield ""


PAGES: dict[str, Callable[[], str]] = {
    "settings": settings_page,
    "commands": commands_page,
    "reference/campaign-folder": folder_page,
}

if __name__ == "__main__":
    sys.stdout.write(PAGES[sys.argv[1]]())
