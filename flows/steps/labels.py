"""Which labels a round learns from and is measured on, which images it may ask for, and which labels look wrong."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from connectors.score_files import ItemList
from flows.artefacts import AUDIT, CANDIDATES, LABELLED, REVIEW, SUSPICIOUS
from flows.campaign import standing_labels
from flows.config import CampaignSettings
from flows.records import Review, ReviewedSet
from flows.step import step
from pipeline.labels.ledger import Ledger
from pipeline.labels.suspicious import FEWEST_RIGHT, LIKELY_WRONG, find_label_errors, share_right
from pipeline.selection.batch import seeded_order
from pipeline.tables import Labels, PoolTable, Predicted
from pipeline.tasks.task_type import Answered, TaskType
from pipeline.training.cross_fit import MIN_JUDGED, judged_out_of_fold

SUSPICIOUS_COLUMNS = (
    *("item_id", "uri", "task", "split", "label", "suggested"),
    *("given_probability", "suggested_probability", "wrong_probability"),
)
"""Columns of the list; `task` is missing for a label that no annotator gave."""
LABELS, AUDIT_LABELS = "labels", "audit labels"


@step(AUDIT, LABELLED)
def gather_labels(pool: PoolTable, ledger: Ledger, settings: CampaignSettings) -> tuple[Labels, Labels]:
    """The labelled set that a round is measured on, and the one that it trains on."""
    labels = standing_labels(pool, ledger, settings)
    return labels.of("audit"), labels.of("pool")


@step(CANDIDATES)
def list_candidates(
    candidates: ItemList,
    pool: PoolTable,
    ledger: Ledger,
    *,
    classes: Sequence[str],
    seed: int,
    round_number: int,
) -> ItemList:
    """The images that a round chooses from, in the order that spares `select_batch` a copy of them."""
    rows = ledger.may_be_asked(pool, split="pool", classes=classes)
    ids = rows["item_id"].to_numpy(dtype=np.str_)
    order = seeded_order(ids, round_number=round_number, seed=seed)
    return ItemList.made(candidates.path, rows.iloc[order.numpy()].reset_index(drop=True))


@step(REVIEW, SUSPICIOUS)
def review_labels(
    labelled: Labels,
    audit: Labels,
    out_of_fold: Predicted,
    audit_predictions: Predicted,
    pool: PoolTable,
    ledger: Ledger,
    *,
    task: TaskType,
    classes: Sequence[str],
) -> tuple[Review, pd.DataFrame]:
    """What the model thinks of the labels, and those that are probably wrong, the likeliest first.

    Networks that have not seen them judge the labels that were trained on; the round's own networks judge the audit
    set. Where the model knows too little, no label is listed.
    """
    judged = [
        *_judged(labelled, out_of_fold, task, classes),
        *_judged_audit(audit, audit_predictions, labelled, task, classes),
    ]
    reviews, listed = [], [pd.DataFrame({name: [] for name in SUSPICIOUS_COLUMNS})]
    for one in judged:
        review, suspects = _review(one, task, classes)
        reviews.append(review)
        listed += [] if suspects.empty else [suspects]
    table = pd.concat(listed[1:] or listed).sort_values("wrong_probability", ascending=False, kind="stable")
    uris = pool.table.drop_duplicates("item_id").set_index("item_id")["uri"]
    table = table.assign(
        uri=table["item_id"].map(uris).astype("str"), task=table["item_id"].map(ledger.task_addresses()).astype("str")
    )
    return Review(tuple(reviews), review_text(reviews)), table[list(SUSPICIOUS_COLUMNS)]


class _Judged(NamedTuple):
    """Labels that predictions can judge: whose they are, their images, and the decisions with their probabilities, of
    so many about an image."""

    what: str
    item_ids: list[str]
    answered: Answered
    n_decisions: int


def _judged(labelled: Labels, found: Predicted, task: TaskType, classes: Sequence[str]) -> Iterator[_Judged]:
    """The labels that predictions out of fold can judge."""
    if not len(found):
        return
    values = found.values
    answered = task.answered(values, labelled.targets(task, classes))
    if not len(answered.right):
        return
    groups = answered.image if labelled.groups is None else labelled.groups[answered.image]
    known = judged_out_of_fold(_kinds(answered, task), groups)
    if known.any():
        items = [labelled.item_ids[row] for row in answered.image[known].tolist()]
        probs = answered.values[known].softmax(dim=1)
        judged = Answered(probs, *(part[known] for part in answered[1:]))
        yield _Judged(LABELS, items, judged, values.shape[1])


def _judged_audit(
    audit: Labels, found: Predicted, labelled: Labels, task: TaskType, classes: Sequence[str]
) -> Iterator[_Judged]:
    """The labels of the audit set whose class the networks know."""
    if not len(found):
        return
    values = found.values
    answered = task.answered(values, audit.targets(task, classes))
    nothing = torch.zeros(()).expand(len(labelled), *values.shape[1:])
    learnt = _kinds(task.answered(nothing, labelled.targets(task, classes)), task)
    known = learnt.bincount(minlength=values[0].numel())[_kinds(answered, task)] >= MIN_JUDGED
    if known.any():
        items = [audit.item_ids[row] for row in answered.image[known].tolist()]
        yield _Judged(AUDIT_LABELS, items, Answered(*(part[known] for part in answered)), values.shape[1])


def _kinds(answered: Answered, task: TaskType) -> Tensor:
    """A number `(m,)` for each right answer to each decision; an answer is the same one wherever it is given."""
    if task.stride:
        return answered.right
    return answered.decision * answered.values.shape[-1] + answered.right


def _review(one: _Judged, task: TaskType, classes: Sequence[str]) -> tuple[ReviewedSet, pd.DataFrame]:
    probs, right, _, decision = one.answered
    found, share = find_label_errors(probs, right), share_right(probs, right)
    is_listed = (found.wrong_probability >= LIKELY_WRONG) & (share >= FEWEST_RIGHT)
    rows = found.positions[is_listed]
    asked = decision[rows].tolist()

    def words(answers: Tensor) -> list[str]:
        return [
            task.in_words(u, answer, classes, one.n_decisions)
            for u, answer in zip(asked, answers.tolist(), strict=True)
        ]

    suspects = pd.DataFrame(
        {
            "item_id": [one.item_ids[row] for row in rows.tolist()],
            "split": "audit" if one.what == AUDIT_LABELS else "pool",
            "label": words(right[rows]),
            "suggested": words(found.suggested[is_listed]),
            "given_probability": found.given_probability[is_listed].numpy(),
            "suggested_probability": found.suggested_probability[is_listed].numpy(),
            "wrong_probability": found.wrong_probability[is_listed].numpy(),
        }
    )
    if task.stride:  # a wrong region is many wrong cells, and a person looks once: at the likeliest one
        suspects = suspects.drop_duplicates("item_id", ignore_index=True)
    review = ReviewedSet(
        what=one.what,
        n=len(one.item_ids),
        share_right=share,
        n_contradicted=len(found.positions),
        n_contradicted_wrong=float(found.wrong_probability.sum()),
        n_listed=len(suspects),
        n_wrong=float(suspects["wrong_probability"].sum()),
    )
    return review, suspects


def review_text(reviews: Sequence[ReviewedSet]) -> str | None:
    """What the list of suspicious labels is worth, for people to read; None where nothing was judged."""
    readable = [review for review in reviews if review.share_right >= FEWEST_RIGHT]
    n_listed = sum(review.n_listed for review in readable)
    told = []
    if n_listed:
        n_audit = sum(review.n_listed for review in readable if review.what == AUDIT_LABELS)
        n_wrong = max(1, round(sum(review.n_wrong for review in readable)))
        looks, are = (
            ("label looks", "it probably is") if n_listed == 1 else ("labels look", f"about {n_wrong} of them are")
        )
        told.append(f"{n_listed} {looks} wrong, {are}" + (f" ({n_audit} in the audit set)" if n_audit else ""))
    elif readable:
        told.append("no label looks wrong")
    told += [
        f"no {review.what} are listed as wrong: the model is right on {100 * review.share_right:.0f} % of those "
        f"that it has not seen, and below {100 * FEWEST_RIGHT:.0f} % no list is worth reading (it contradicts "
        f"{review.n_contradicted}, of which about {review.n_contradicted_wrong:.0f} are wrong)"
        for review in reviews
        if review.share_right < FEWEST_RIGHT
    ]
    return "; ".join(told) or None
