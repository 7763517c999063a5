"""docs/strategies.md, written from the rows: `python -m pipeline.selection.page > docs/strategies.md`."""

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator

from pipeline.selection.acquisition import ACQUISITIONS
from pipeline.selection.scoring import REDUCTIONS
from pipeline.selection.settings import NEEDS_MEMBERS
from pipeline.selection.strategies.rows import STRATEGIES, Strategy

WORDS = {
    "scores": "scores",
    "probs": "probabilities",
    "guesses": "guesses",
    "embeddings": "embeddings",
    "labelled_targets": "labels",
    "labelled_embeddings": "embeddings",
    "labelled_probs": "probabilities",
    "n_classes": "number of classes",
    "class_scores": "scores of each class",
    "class_counts": "labels of each class",
}
"""What people call the columns of `Candidates`."""

HEAD = """\
# Query strategies and acquisition functions

This page is written from the code: `python -m pipeline.selection.page > docs/strategies.md`.

A **query strategy** chooses the batch among the candidates: `strategy = "auto"` in the campaign file. It reads only
what the table names, and scoring computes nothing else. Options go into `strategy_options`. A sub-pool is the number of
candidates that a strategy sees, drawn evenly, unless the campaign sets `sub_pool` or `prefilter`. `sub_pool`,
`prefilter`, `balance_classes` and `random_slice` work with every strategy.
[Why `auto` is the default](decisions/0005-auto.md).
"""

SCORES = """
An **acquisition function** gives the scores that strategies read: `acquisition = "margin"`. In a replay its name alone
means `top_k` by it, and `power:bald` means `power` by BALD.
"""

REDUCED = """
Where an image takes many decisions, as the cells of a map, a **reduction** makes one score of theirs: `reduction =
"top_tenth"`. By default a task has its own.
"""

NOTES = {
    "may_begin": "may choose the seed set",
    "compares_members": "needs at least two members",
    "is_check": "not for campaigns",
}
"""What is added to the line of a strategy of which this is true."""


def strategies_page() -> str:
    """Return the page as Markdown."""
    head = ("name", "what it asks for", "reads", "options", "time grows with", "sub-pool", "source of the formula")
    rows = [tuple(_cells(row)) for row in STRATEGIES.values()]
    scores = [
        (f"`{name}`", asks + (" (needs at least two members)" if NEEDS_MEMBERS[name] else ""), source)
        for name, function in ACQUISITIONS.items()
        for asks, source in [_line_and_source(function)]
    ]
    table = _table(("name", "what the score is", "source of the formula"), scores)
    reductions = [(f"`{name}`", _line_and_source(function)[0]) for name, function in REDUCTIONS.items()]
    reduced = _table(("name", "what the score of the image is"), reductions)
    return f"{HEAD}\n{_table(head, rows)}{SCORES}\n{table}{REDUCED}\n{reduced}"


def _cells(row: Strategy) -> Iterator[str]:
    asks, source = _line_and_source(row.ask)
    notes = [note for fact, note in NOTES.items() if getattr(row, fact)]
    yield f"`{row.name}`"
    yield "; ".join([asks, *notes])
    yield ", ".join(dict.fromkeys(WORDS[name] for name in row.columns)) if row.reads_model else ""
    yield ", ".join(f"`{name} = {value}`" for name, value in row.options.items())
    yield row.time
    yield f"{row.sub_pool:,}" if row.sub_pool else ""
    yield source


def _line_and_source(function: Callable[..., object]) -> tuple[str, str]:
    """Return the first line of a docstring, and the reference in brackets at its end.

    >>> _line_and_source(STRATEGIES["typiclust"].ask)[1]
    'Hacohen et al., 2022'
    """
    line = (inspect.getdoc(function) or "").partition("\n")[0].removesuffix(".")
    found = re.fullmatch(r"(.*?) \(([^()]*\d{4}[^()]*)\)", line)
    return (found[1], found[2]) if found else (line, "")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    sys.stdout.write(strategies_page())
