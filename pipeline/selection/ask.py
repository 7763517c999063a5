"""Asking: from what the members decide about the candidates to what a strategy reads, the same wherever it is asked."""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.probabilities import check_probs
from pipeline.selection.acquisition import score_all
from pipeline.selection.batch import rows_seen, seeded_order, select_batch
from pipeline.selection.scoring import score_columns, score_images
from pipeline.selection.settings import SelectionSettings
from pipeline.selection.strategies.rows import STRATEGIES
from pipeline.types import Batch, Candidates

BY_GUESS = frozenset({"guesses", "labelled_targets"})
"""Columns that balancing reads where the classes exclude each other."""

OF_EACH_CLASS = frozenset({"class_scores", "class_counts"})
"""Columns that there are, for balancing alone, where each class is a decision of its own."""

OF_ONE_DECISION = frozenset({"probs", "guesses", "labelled_probs", "labelled_targets"})
"""Columns that there are where an image takes one decision."""

MADE_UP = 64
"""Candidates that a strategy is tried on."""


@dataclass(frozen=True)
class Scored:
    """What is known of n candidates when their members have decided; all of them, or a shard.

    Attributes:
        scores: `(n,)` of the acquisition function.
        entropies: `(n,)` of the mean prediction, in nats, a mean over the decisions.
        parts: "aleatoric" and "epistemic", `(n,)` each, likewise; none of a single member.
        likeliest: `(n, 2)` int64, the class that the mean predicts and the runner-up; None where an image takes more
            than one decision.
    """

    scores: Tensor
    entropies: Tensor
    parts: Mapping[str, Tensor]
    likeliest: Tensor | None


def columns_read(how: SelectionSettings, absent: frozenset[str] = OF_EACH_CLASS) -> frozenset[str]:
    """Return the columns of `Candidates` that choosing a batch reads; nothing else need be computed or kept.

    Args:
        absent: columns that are not there to be read: `OF_EACH_CLASS` where an image takes one decision, and
            `OF_ONE_DECISION` where it takes several.
    """
    return (frozenset(STRATEGIES[how.strategy].columns) | _balancing(how, absent)) - absent


def columns_needed(how: SelectionSettings, absent: frozenset[str] = OF_EACH_CLASS) -> frozenset[str]:
    """Return the columns without which no batch can be chosen, those that are absent included."""
    needed = {name for name, is_needed in STRATEGIES[how.strategy].columns.items() if is_needed}
    return _balancing(how, absent) | needed


def _balancing(how: SelectionSettings, absent: frozenset[str]) -> frozenset[str]:
    """Return the columns that balancing the classes reads."""
    if not how.balance_classes:
        return frozenset()
    return BY_GUESS if absent >= OF_EACH_CLASS else OF_EACH_CLASS


def reads_model(how: SelectionSettings) -> bool:
    """Return whether choosing a batch reads anything that a model predicts."""
    return STRATEGIES[how.strategy].reads_model or how.prefilter is not None or how.balance_classes


def score_candidates(
    decisions: Tensor, how: SelectionSettings, *, reduction: str = "mean", has_one_decision: bool = True
) -> Scored:
    """Return the scores and guesses of candidates; any split of these into shards gives the same.

    Args:
        decisions: `(n, U, K, C)` class probabilities by K members.
        reduction: the task's, for settings that name none.
        has_one_decision: whether an image takes one decision, whose answers are the classes.
    """
    parts = ("aleatoric", "epistemic") if decisions.shape[2] > 1 else ()
    means = {name: (name, "mean") for name in ("entropy", *parts)}
    scores = score_columns(decisions, {"score": (how.acquisition, how.reduction or reduction), **means})
    likeliest = decisions[:, 0].mean(dim=1).topk(2).indices if has_one_decision else None
    return Scored(scores["score"], scores["entropy"], {name: scores[name] for name in parts}, likeliest)


def score_classes(decisions: Tensor, how: SelectionSettings) -> Tensor:
    """Return the scores `(n, U)` of each decision about the candidates, `(n, U, K, C)`."""
    return score_all(check_probs(decisions), {how.acquisition})[how.acquisition]


def probs_read(decisions: Tensor, how: SelectionSettings) -> Tensor:
    """Return what the strategy reads of the members: `(n, K, C)` where it compares them, else their mean `(n, 1, C)`.

    Args:
        decisions: `(n, 1, K, C)`.
    """
    probs = decisions[:, 0]
    return probs if STRATEGIES[how.strategy].compares_members else probs.mean(dim=1, keepdim=True)


def gather_candidates(
    ids: NDArray[np.str_] | NDArray[np.bytes_],
    scores: Tensor,
    columns: Mapping[str, Callable[[], Tensor]],
    how: SelectionSettings,
    *,
    n_classes: int,
    absent: frozenset[str] = OF_EACH_CLASS,
    described: Tensor | None = None,
    is_in_order: bool = False,
) -> Candidates:
    """Return the candidates with the columns that choosing a batch reads.

    Args:
        ids: `(N,)`.
        scores: `(N,)`.
        columns: name of each column that there is -> how it is read, which is called only where it is wanted.
        n_classes: C.
        absent: as in `columns_read`.
        described: `(R,)` as in `Candidates`, where embeddings and probs are read of a part; is_in_order likewise.
    """
    wanted = columns_read(how, absent)
    read_columns: dict[str, Any] = {name: read() for name, read in columns.items() if name in wanted}
    if "n_classes" in wanted:
        read_columns["n_classes"] = n_classes
    return Candidates(ids, scores, **read_columns, described=described, is_in_order=is_in_order)


def candidates_of(
    ids: NDArray[np.str_],
    decided: Iterable[tuple[Tensor, Tensor]],
    labelled: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    labels: Mapping[str, Callable[[], Tensor]],
    how: SelectionSettings,
    *,
    n_classes: int,
    absent: frozenset[str] = OF_EACH_CLASS,
    reduction: str = "mean",
) -> Candidates:
    """Return candidates with the columns that choosing a batch reads; of decisions only what is read is kept.

    Args:
        ids: `(N,)`, N >= 1.
        decided: decisions `(n, U, K, C)` about the candidates and their embeddings `(n, D)`, part by part.
        labelled: gives the same of the M labelled images; called only where the strategy reads it.
        labels: how the columns that labels alone make are read: labelled_targets, class_counts.
        n_classes: of the campaign.
        absent: as in `columns_read`.
        reduction: the task's, for settings that name none.
    """
    read = columns_read(how, absent)
    scores: list[Tensor] = []
    kept: dict[str, list[Tensor]] = {name: [] for name in ("embeddings", "probs", "guesses", "class_scores")}
    for decisions, embeddings in decided:
        scores.append(score_images(decisions, how.acquisition, reduce=how.reduction or reduction))
        kept["embeddings"].append(embeddings)
        if "probs" in read:
            kept["probs"].append(probs_read(decisions, how))
        if "guesses" in read:
            kept["guesses"].append(decisions[:, 0].mean(dim=1).argmax(dim=1))
        if "class_scores" in read:
            kept["class_scores"].append(score_classes(decisions, how))
    columns: dict[str, Callable[[], Tensor]] = {name: partial(torch.cat, parts) for name, parts in kept.items()}
    if read & {"labelled_embeddings", "labelled_probs"}:
        of_labelled = list(labelled())
        columns["labelled_embeddings"] = lambda: torch.cat([embeddings for _, embeddings in of_labelled])
        columns["labelled_probs"] = lambda: torch.cat([probs_read(decisions, how) for decisions, _ in of_labelled])
    return gather_candidates(ids, torch.cat(scores), {**columns, **labels}, how, n_classes=n_classes, absent=absent)


def select_seed_set(
    ids: NDArray[np.str_],
    embeddings: Callable[[Tensor], Tensor],
    strategy: str,
    *,
    size: int,
    round_number: int,
    seed: int,
) -> Batch:
    """Choose the images that are labelled first, before there is a model; all scores are 0.

    Args:
        ids: `(N,)` of what may be asked for.
        embeddings: gives `(R, D)` of those at sorted positions `(R,)`; called once, where the strategy reads them.
        strategy: one that may begin.
        size: images wanted; with 0 the batch is empty.
        seed: of the campaign.
    """
    if size == 0 or len(ids) == 0:
        return Batch((), (), (), round_number, ())
    how, scores = SelectionSettings(strategy=strategy, query_size=size), torch.zeros(len(ids))
    candidates = Candidates(ids, scores)
    if "embeddings" in columns_read(how):
        seen = rows_seen(scores, seeded_order(ids, round_number=round_number, seed=seed), how)
        read = embeddings(seen)
        candidates = Candidates(ids, scores, embeddings=read, labelled_embeddings=read[:0], described=seen)
    return select_batch(candidates, how, round_number=round_number, seed=seed)


def share_kept(
    batch: Collection[str], candidates: Candidates, how: SelectionSettings, *, round_number: int, seed: int
) -> float:
    """Return which share of a batch would be asked for again, had the candidates been scored as they are here.

    Args:
        batch: ids, at least one.
        candidates: the same as those that the batch was chosen from, scored otherwise, such as by half of the members.
    """
    other = select_batch(candidates, how.of_size(len(batch)), round_number=round_number, seed=seed)
    return len(set(batch) & set(other.ids)) / len(batch)


def try_strategy(
    how: SelectionSettings, *, n_members: int, n_classes: int, absent: frozenset[str] = OF_EACH_CLASS
) -> None:
    """Choose a batch of a few made-up candidates, so that an option that cannot be is found before labels are paid for.

    Args:
        absent: as in `columns_read`.

    Raises:
        TypeError or ValueError: what the strategy refuses.
    """
    generator = torch.Generator().manual_seed(0)
    probs = torch.rand(MADE_UP, n_members, n_classes, generator=generator).softmax(dim=2)
    embeddings = torch.rand(MADE_UP, 8, generator=generator)
    labelled = slice(8)
    candidates = Candidates(
        ids=np.arange(MADE_UP).astype(np.str_),
        scores=torch.rand(MADE_UP, generator=generator),
        embeddings=embeddings,
        probs=probs,
        guesses=probs.mean(dim=1).argmax(dim=1),
        labelled_embeddings=embeddings[labelled],
        labelled_probs=probs[labelled],
        labelled_targets=torch.arange(MADE_UP)[labelled] % n_classes,
        class_scores=torch.rand(MADE_UP, n_classes, generator=generator),
        class_counts=torch.arange(n_classes),
        n_classes=n_classes,
    )
    nothing: dict[str, Any] = dict.fromkeys(absent)
    select_batch(replace(candidates, **nothing), how.of_size(4), round_number=0, seed=0)
