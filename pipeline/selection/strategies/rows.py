"""Query strategies: which candidates to ask for next, one row each.

A row's function does the work, and its positional parameters name the columns of `Candidates` that it reads; only these
are computed. A column with a default may be missing. The keywords are `query_size`, `generator` and options with
defaults. The function returns `min(query_size, N)` distinct positions, most wanted first, alone or with a note for the
reason of each pick and the aim of all, which is otherwise that of the row. Candidates come in a seeded random order, so
a function may break ties by position. The columns may be the caller's own memory: a function writes to none. The first
line of its docstring, with the source of the formula in brackets at the end, is what people read in docs/strategies.md.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from pipeline.selection.strategies.by_both import (
    badge,
    bait,
    cluster_margin,
    falcun,
    top_k_diverse,
    weighted_k_center,
)
from pipeline.selection.strategies.by_cover import auto, max_herding, suggestive, uherding
from pipeline.selection.strategies.by_members import batch_bald, drop_query
from pipeline.selection.strategies.by_place import coverage, k_center, novel, typical, typiclust
from pipeline.selection.strategies.by_score import anti, power, random, top_k
from pipeline.types import Aim

Answer = Tensor | tuple[Tensor, str, Aim]
"""Positions, alone or with a note on them and what they are picked for."""


@dataclass(frozen=True)
class Strategy:
    """All that is known of one query strategy.

    Attributes:
        name: as campaign files and replays write it.
        ask: columns to positions, see the module.
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
    ask: Callable[..., Answer]
    time: str
    aim: Aim = "unsure"
    sub_pool: int | None = None
    compares_members: bool = False
    reads_model: bool = True
    may_fall_short: bool = False
    may_begin: bool = False
    is_check: bool = False

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
        Strategy("random", random, POOL, aim="check", reads_model=False, may_begin=True),
        Strategy("auto", auto, PART, sub_pool=10_000),
        Strategy("top_k", top_k, POOL),
        Strategy("power", power, POOL),
        Strategy("k_center", k_center, PICKS, aim="unlike"),
        Strategy("novel", novel, POOL, aim="unlike"),
        Strategy("typical", typical, POOL, aim="typical"),
        Strategy("coverage", coverage, PICKS, aim="typical", may_begin=True),
        Strategy("typiclust", typiclust, PART, aim="typical", sub_pool=50_000, may_begin=True),
        Strategy("max_herding", max_herding, PART, aim="typical", sub_pool=10_000, may_begin=True),
        Strategy("uherding", uherding, PART, sub_pool=10_000),
        Strategy("suggestive", suggestive, SHORTLIST),
        Strategy("top_k_diverse", top_k_diverse, SHORTLIST),
        Strategy("cluster_margin", cluster_margin, SHORTLIST),
        Strategy("weighted_k_center", weighted_k_center, PICKS, aim="unlike", may_fall_short=True),
        Strategy("badge", badge, PICKS),
        Strategy("falcun", falcun, PICKS),
        Strategy("bait", bait, "pool x dimensions squared"),
        Strategy("batch_bald", batch_bald, "the 2,000 candidates of highest BALD", compares_members=True),
        Strategy("drop_query", drop_query, POOL, compares_members=True),
        Strategy("anti", anti, POOL, is_check=True),
    )
}
