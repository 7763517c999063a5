"""The house: each room has a caption, docs/architecture.md lists them all, and no file is too long.

python -m tests.test_architecture   # writes the list of docs/architecture.md anew
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
MARK = "<!-- From here on: python -m tests.test_architecture -->\n"
TOP = ("pipeline", "connectors", "flows", "deploy", "benchmarks")
MOST_LINES = 450


def caption(file: Path) -> str:
    """The first line of a module's docstring; empty where it has none."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return docstring.partition("\n")[0]


def folders(top: str) -> list[Path]:
    """A package and all below it that hold modules."""
    return sorted({file.parent for file in (ROOT / top).rglob("*.py")})


def rows(folder: Path) -> list[str]:
    """The rows of one folder: its own caption, then one for each module."""
    path = folder.relative_to(ROOT).as_posix()
    modules = sorted(file for file in folder.glob("*.py") if file.name != "__init__.py")
    return [
        f"| **{path}/** | **{caption(folder / '__init__.py')}** |",
        *(f"| {file.name} | {caption(file)} |" for file in modules),
    ]


def listed() -> str:
    """The rooms as tables, one for each top-level package."""
    parts = []
    for top in TOP:
        table = [row.replace("\\", "\\\\") for folder in folders(top) for row in rows(folder)]
        parts.append("\n".join([f"\n## {top}\n", "| where | what it holds |", "|---|---|", *table]))
    return "\n".join(parts) + "\n"


def modules() -> list[Path]:
    return [file for top in TOP for file in sorted((ROOT / top).rglob("*.py"))]


@pytest.mark.parametrize("file", modules(), ids=lambda file: file.relative_to(ROOT).as_posix())
def test_each_room_has_a_caption(file):
    assert len(caption(file).split()) > 2, f"{file}: begin its docstring with one line on what it holds"
    assert "|" not in caption(file), f"{file}: a | would break the table of docs/architecture.md"


def test_the_page_lists_the_rooms_that_are_there():
    written = PAGE.read_text(encoding="utf-8").partition(MARK)[2]
    assert written == listed(), "run: python -m tests.test_architecture"


def test_no_file_of_the_product_is_longer_than_a_newcomer_reads():
    files = [*modules(), *(file for top in TOP for file in (ROOT / top).rglob("*.html"))]
    lengths = {file.relative_to(ROOT).as_posix(): len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert {name: n for name, n in lengths.items() if n > MOST_LINES} == {}


if __name__ == "__main__":
    before = PAGE.read_text(encoding="utf-8").partition(MARK)[0]
    PAGE.write_text(before + MARK + listed(), encoding="utf-8")
