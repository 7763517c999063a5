"""A batch: what a strategy asks for among the candidates, and what is drawn beside it."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.randomness import seeded_generator
from pipeline.selection.reasons import RANDOM_SLICE
from pipeline.selection.settings import SelectionSettings
from pipeline.selection.strategies.by_score import top_k
from pipeline.selection.strategies.rows import STRATEGIES, Strategy
from pipeline.selection.turns import even_turns
from pipeline.types import DESCRIBING, Aim, Batch, Candidates

Told = tuple[str, Aim]
"""A note on a pick, and what it was picked for."""

Asking = Callable[[Tensor, int, Tensor], tuple[Tensor, list[Told]]]
"""Rows `(R,)` that may be asked for, how many of them are wanted, and scores `(N,)` of the candidates: these rows, and
what is told of each."""


def select_batch(candidates: Candidates, how: SelectionSettings, *, round_number: int, seed: int) -> Batch:
    """Choose what this round asks for.

    The same candidates and seed give the same batch, in whatever order they come; the seed breaks ties. What the
    strategy reads is copied, unless the candidates come in `seeded_order` already.

    Args:
        candidates: everything that may be asked for; a pool smaller than the batch is taken whole. A batch with
            balanced classes needs their `guesses` and `labelled_targets`, or their `class_scores` and `class_counts`.
        seed: of the campaign.
    """
    row = STRATEGIES[how.strategy]
    order = torch.arange(len(candidates.ids))
    if not candidates.is_in_order:
        order = seeded_order(candidates.ids, round_number=round_number, seed=seed)
    size = min(how.query_size, len(order))
    by_lot = seeded_generator(seed, round_number, "random slice")
    n_random = min(size, int(how.random_slice * size + float(torch.rand((), generator=by_lot, dtype=torch.float64))))
    of_classes = candidates.class_scores if how.balance_classes else None
    n_asks = 1 if of_classes is None else max(1, min(size, of_classes.shape[1]))
    seen = _rows_seen(candidates.scores, order, how, n_asks=n_asks)
    if candidates.described is not None:
        is_described = torch.zeros(len(order), dtype=torch.bool)
        is_described[candidates.described] = True
        seen = seen[is_described[seen]]
        n_random = max(n_random, size - len(seen))  # of what is not described some may be gone
    generator = seeded_generator(seed, round_number, "strategy")

    def ask(rows: Tensor, size: int, scores: Tensor) -> tuple[Tensor, list[Told]]:
        return _ask(candidates, row, rows, size, scores, generator, how.strategy_options)

    if how.balance_classes:
        ask_balanced = _ask_each_class if candidates.class_scores is None else _ask_class_after_class
        chosen, told = ask_balanced(ask, candidates, seen, size - n_random, generator)
    else:
        chosen, told = ask(seen, size - n_random, candidates.scores)
    drawn = _draw_from_the_rest(order, chosen, n_random, by_lot)
    return _batch(candidates, how.strategy, chosen, told, drawn, round_number)


def seeded_order(ids: NDArray[np.str_] | NDArray[np.bytes_], *, round_number: int, seed: int) -> Tensor:
    """Return `(N,)` positions: the random order in which `select_batch` shows candidates to a strategy.

    It depends on the ids and the seed, not on the order the ids come in, nor on whether they are strings or UTF-8.
    """
    by_id = torch.from_numpy(np.argsort(ids))
    return by_id[torch.randperm(len(ids), generator=seeded_generator(seed, round_number, "order"))]


def n_described(n_candidates: int, how: SelectionSettings, *, n_asks: int = 1) -> int:
    """Return how many candidates, the first in `seeded_order`, a strategy may see more of than score and guess.

    Args:
        n_asks: as in `_rows_seen`.
    """
    row = STRATEGIES[how.strategy]
    own = None if row.sub_pool is None else math.ceil(row.sub_pool / n_asks**0.5)
    sub_pool = own if how.sub_pool is None and how.prefilter is None else how.sub_pool
    return n_candidates if sub_pool is None else min(n_candidates, max(sub_pool, how.query_size))


def rows_seen(scores: Tensor, order: Tensor, how: SelectionSettings) -> Tensor:
    """Return `(R,)` sorted positions of the candidates that the strategy sees, for `Candidates.described`.

    Args:
        scores: `(N,)`.
        order: `(N,)` of `seeded_order`.
        how: as for `select_batch`.
    """
    return _rows_seen(scores, order, how, n_asks=1).sort().values


def _rows_seen(scores: Tensor, order: Tensor, how: SelectionSettings, *, n_asks: int) -> Tensor:
    """Return which candidates the strategy sees: the sub-pool, or what the prefilter leaves of it.

    Where it is asked `n_asks` times, for one class after another, its own sub-pool is smaller by their root: its time
    grows with the square, so that all asks together take as long as one.
    """
    seen = order[: n_described(len(order), how, n_asks=n_asks)]
    if how.prefilter is None:
        return seen
    best = scores[seen.to(scores.device)].argsort(descending=True, stable=True)
    return seen[best[: math.ceil(how.prefilter * how.query_size)].sort().values.cpu()]


def _columns(candidates: Candidates, row: Strategy, rows: Tensor, scores: Tensor) -> list[Tensor | None]:
    """Return the columns that a strategy reads, those of the candidates in `rows`; None for an optional one."""
    described = rows if candidates.described is None else torch.searchsorted(candidates.described, rows)
    columns = []
    for name, is_needed in row.columns.items():
        values = scores if name == "scores" else getattr(candidates, name)
        if values is None and is_needed:
            raise ValueError(f"strategy {row.name!r} needs {name}, which scoring did not compute")
        if values is not None and name != "n_classes" and not name.startswith("labelled_"):
            values = _taken(values, described if name in DESCRIBING else rows)
        columns.append(values)
    return columns


def _taken(values: Tensor, rows: Tensor) -> Tensor:
    """Return some rows; a view does where they are the first in their order, and a large pool is held once."""
    is_start = torch.equal(rows, torch.arange(len(rows)))
    return values[: len(rows)] if is_start else values[rows.to(values.device)]


def _ask(
    candidates: Candidates,
    row: Strategy,
    rows: Tensor,
    size: int,
    scores: Tensor,
    generator: torch.Generator,
    options: Mapping[str, object],
) -> tuple[Tensor, list[Told]]:
    """Return `(size,)` of the rows, with a note and an aim each; the best by score fill what the strategy leaves."""
    columns = _columns(candidates, row, rows, scores)
    if size == 0:
        return rows[:0], []
    answer = row.ask(*columns, query_size=size, generator=generator, **options)
    positions, note, aim = answer if isinstance(answer, tuple) else (answer, "", row.aim)
    positions = positions.cpu()
    _check_positions(positions, row, size, len(rows))
    left = torch.ones(len(rows), dtype=torch.bool)
    left[positions] = False
    rest = rows[left]
    of_rest = scores[rest.to(scores.device)]
    filling = rest[top_k(of_rest, query_size=size - len(positions), generator=generator).cpu()]
    filled: list[Told] = [("filled by score", "unsure")] * len(filling)
    return torch.cat([rows[positions], filling]), [(note, aim)] * len(positions) + filled


def _ask_each_class(
    ask: Asking, candidates: Candidates, rows: Tensor, size: int, generator: torch.Generator
) -> tuple[Tensor, list[Told]]:
    """Ask for each predicted class apart, and let the classes take turns, the most wanted first."""
    if candidates.guesses is None or candidates.labelled_targets is None:
        raise ValueError("a class-balanced batch needs guesses and labelled_targets, which scoring did not compute")
    guesses, labels = candidates.guesses.cpu()[rows], candidates.labelled_targets.cpu()
    n_classes = 1 + max((int(column.max()) for column in (guesses, labels) if len(column)), default=-1)
    available = guesses.bincount(minlength=n_classes)
    turns = even_turns(labels.bincount(minlength=n_classes).tolist(), available.tolist(), size, generator)
    chosen = torch.empty(size, dtype=torch.long)
    told: list[Told] = [("", "unsure")] * size
    for guess in turns.unique().tolist():
        places = (turns == guess).nonzero().flatten()
        of_class = rows[guesses == guess]
        chosen[places], of_these = ask(of_class, len(places), candidates.scores)
        for place, each in zip(places.tolist(), of_these, strict=True):
            told[place] = each
    return chosen, told


def _ask_class_after_class(
    ask: Asking, candidates: Candidates, rows: Tensor, size: int, generator: torch.Generator
) -> tuple[Tensor, list[Told]]:
    """Let the classes take turns, the one with the fewest labels first; ask for each by the scores of its decision."""
    if candidates.class_scores is None or candidates.class_counts is None:
        raise ValueError(
            "a batch of class after class needs class_scores and class_counts, which scoring did not compute"
        )
    by_lot = torch.randperm(candidates.class_scores.shape[1], generator=generator)
    rarest_first = by_lot[candidates.class_counts.cpu()[by_lot].argsort(stable=True)]
    turns = torch.arange(size) % len(rarest_first)
    chosen = torch.empty(size, dtype=torch.long)
    told: list[Told] = [("", "unsure")] * size
    for turn, of_class in enumerate(rarest_first[:size].tolist()):
        places = (turns == turn).nonzero().flatten()
        left = rows[~torch.isin(rows, chosen[turns < turn])]
        chosen[places], of_these = ask(left, len(places), candidates.class_scores[:, of_class])
        for place, each in zip(places.tolist(), of_these, strict=True):
            told[place] = each
    return chosen, told


def _check_positions(positions: Tensor, row: Strategy, wanted: int, n_candidates: int) -> None:
    """Refuse what a strategy must never return, before it costs anybody's time."""
    got = positions.tolist()
    in_range = all(0 <= position < n_candidates for position in got)
    enough = len(got) == wanted or (row.may_fall_short and len(got) < wanted)
    if not enough or len(set(got)) != len(got) or not in_range:
        raise RuntimeError(
            f"strategy {row.name!r} must return {wanted} distinct positions below {n_candidates}, got {got}"
        )


def _draw_from_the_rest(order: Tensor, chosen: Tensor, n_draws: int, generator: torch.Generator) -> Tensor:
    """Return `(n_draws,)` of `order`, each of those not chosen equally likely."""
    if not n_draws:
        return order[:0]
    shuffled = order[torch.randperm(len(order), generator=generator)]
    is_left = torch.ones(len(order), dtype=torch.bool)
    is_left[chosen] = False
    return shuffled[is_left[shuffled]][:n_draws]


def _n_below(some: Tensor, scores: Tensor) -> Tensor:
    """Return how many of the scores `(N,)` are below each of some `(n,)`; the many are not sorted for the few."""
    steps = some.sort().values
    n_up_to = torch.searchsorted(steps, scores, right=True, out_int32=True).bincount(minlength=len(some) + 1).cumsum(0)
    return n_up_to[torch.searchsorted(steps, some)]


def _batch(
    candidates: Candidates, strategy: str, chosen: Tensor, told: list[Told], drawn: Tensor, round_number: int
) -> Batch:
    """Spread the drawn images evenly through the chosen ones, with a reason for each."""
    size = len(chosen) + len(drawn)
    is_drawn = torch.zeros(size, dtype=torch.bool)
    is_drawn[((torch.arange(len(drawn)) + 0.5) * size / max(len(drawn), 1)).long()] = True
    positions = torch.empty(size, dtype=torch.long)
    positions[is_drawn], positions[~is_drawn] = drawn, chosen
    scores = candidates.scores.cpu().contiguous()
    picked = scores[positions]
    shares = _n_below(picked, scores) / max(len(scores), 1)
    notes, aims = iter(note for note, _ in told), iter(aim for _, aim in told)
    reasons = tuple(
        RANDOM_SLICE if random_pick else _reason(strategy, score, share, next(notes))
        for random_pick, score, share in zip(is_drawn.tolist(), picked.tolist(), shares.tolist(), strict=True)
    )
    found = candidates.ids[positions.numpy()]
    ids = tuple(each.decode() if isinstance(each, bytes) else str(each) for each in found.tolist())
    return Batch(
        ids=ids,
        scores=tuple(picked.tolist()),
        reasons=reasons,
        round_number=round_number,
        aims=tuple("check" if random_pick else next(aims) for random_pick in is_drawn.tolist()),
    )


def _reason(strategy: str, score: float, share: float, note: str) -> str:
    told = f"{strategy}: score {score:.3g}, above {100 * share:.1f} % of the candidates"
    return f"{told}; {note}" if note else told
