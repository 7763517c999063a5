"""Query strategies: which candidates to ask for next, one row each.

A row's function does the work, and its positional parameters name the columns of `Candidates` that it reads; only these
are computed. A column with a default may be missing. The keywords are `query_size`, `generator` and options with
defaults. The function returns `min(query_size, N)` distinct positions, most wanted first, alone or with a note for the
reason of each pick and the aim of all, which is otherwise that of the row. Candidates come in a seeded random order, so
a function may break ties by position. The columns may be the caller's own memory: a function writes to none. The first
line of its docstring, with the source of the formula in brackets at the end, is what people read in docs/strategies.md.
The functions are loaded when first asked for: torch takes a second, and a campaign file is checked without it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, cast

from pipeline.types import Aim

if TYPE_CHECKING:
    from torch import Tensor

    Answer = Tensor | tuple[Tensor, str, Aim]
    """Positions, alone or with a note on them and what they are picked for."""


@dataclass(frozen=True)
class Strategy:
    """All that is known of one query strategy.

    Attributes:
        name: as campaign files and replays write it.
        function: columns to positions, see the module; or the module beside this one that has it, under this name.
        time: what its time grows with, for people.
        aim: what it picks an image for, where its answer has no other.
        sub_pool: candidates that it sees unless the caller decides, where it costs more than linear time.
        compares_members: it makes no sense with a single member; the others read the mean of the members.
        reads_model: False where scoring the candidates for it would be wasted time.
        may_fall_short: its options can rule out so much that it returns fewer positions than asked for.
        may_begin: it may choose the seed set, before there is a model.
        is_check: not for campaigns: it must lose, which shows in tests and replays that the others are no accident.
    """

    name: str
    function: Callable[..., Answer] | str
    time: str
    aim: Aim = "unsure"
    sub_pool: int | None = None
    compares_members: bool = False
    reads_model: bool = True
    may_fall_short: bool = False
    may_begin: bool = False
    is_check: bool = False

    @cached_property
    def ask(self) -> Callable[..., Answer]:
        """Columns to positions, see the module."""
        if not isinstance(self.function, str):
            return self.function
        held = import_module(f"{__package__}.{self.function}")
        return cast("Callable[..., Answer]", getattr(held, self.name))

    @cached_property
    def columns(self) -> dict[str, bool]:
        """The columns of `Candidates` that it reads, in the order of its parameters, and whether it needs each.

        >>> STRATEGIES["k_center"].columns
        {'embeddings': True, 'labelled_embeddings': True}
        """
        return {p.name: p.default is p.empty for p in self._parameters if p.kind is not p.KEYWORD_ONLY}

    @cached_property
    def options(self) -> dict[str, object]:
        """Its options with their defaults.

        >>> STRATEGIES["power"].options
        {'beta': 1.0}
        """
        keywords = [p for p in self._parameters if p.kind is p.KEYWORD_ONLY]
        return {keyword.name: keyword.default for keyword in keywords if keyword.default is not keyword.empty}

    def check_options(self, names: Iterable[str]) -> None:
        """Refuse the name of an option that the strategy does not have."""
        for name in names:
            if name not in self.options:
                has = f"its options are: {', '.join(self.options)}" if self.options else "it has no options"
                raise ValueError(f"strategy {self.name!r} has no option {name!r}; {has}")

    @cached_property
    def _parameters(self) -> list[inspect.Parameter]:
        return list(inspect.signature(self.ask).parameters.values())


POOL, PICKS, SHORTLIST, PART = "pool", "pool x batch", "pool, shortlist squared", "sub-pool squared"

STRATEGIES: dict[str, Strategy] = {
    row.name: row
    for row in (
        Strategy("random", "by_score", POOL, aim="check", reads_model=False, may_begin=True),
        Strategy("auto", "by_cover", PART, sub_pool=10_000),
        Strategy("top_k", "by_score", POOL),
        Strategy("power", "by_score", POOL),
        Strategy("k_center", "by_place", PICKS, aim="unlike"),
        Strategy("novel", "by_place", POOL, aim="unlike"),
        Strategy("typical", "by_place", POOL, aim="typical"),
        Strategy("coverage", "by_place", PICKS, aim="typical", may_begin=True),
        Strategy("typiclust", "by_place", PART, aim="typical", sub_pool=50_000, may_begin=True),
        Strategy("max_herding", "by_cover", PART, aim="typical", sub_pool=10_000, may_begin=True),
        Strategy("uherding", "by_cover", PART, sub_pool=10_000),
        Strategy("suggestive", "by_cover", SHORTLIST),
        Strategy("top_k_diverse", "by_both", SHORTLIST),
        Strategy("cluster_margin", "by_both", SHORTLIST),
        Strategy("weighted_k_center", "by_both", PICKS, aim="unlike", may_fall_short=True),
        Strategy("badge", "by_both", PICKS),
        Strategy("falcun", "by_both", PICKS),
        Strategy("bait", "by_both", "pool x dimensions squared"),
        Strategy("batch_bald", "by_members", "the 2,000 candidates of highest BALD", compares_members=True),
        Strategy("drop_query", "by_members", POOL, compares_members=True),
        Strategy("anti", "by_score", POOL, is_check=True),
    )
}
