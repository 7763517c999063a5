"""Which labels a round learns from and is measured on, which images it may ask for, and which labels look wrong."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from torch import Tensor

from connectors.score_files import ItemList
from flows.artefacts import AUDIT, CANDIDATES, LABELLED, REVIEW, SUSPICIOUS, Review, ReviewedSet
from flows.campaign import standing_labels
from flows.config import CampaignSettings
from flows.step import step
from pipeline.labels.ledger import Ledger
from pipeline.labels.suspicious import FEWEST_RIGHT, LIKELY_WRONG, find_label_errors, share_right
from pipeline.selection.batch import seeded_order
from pipeline.tables import Labels, PoolTable, Predicted, class_indices
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
    out_of_fold: Predicted,
    audit_predictions: Predicted,
    pool: PoolTable,
    ledger: Ledger,
    *,
    classes: Sequence[str],
) -> tuple[Review, pd.DataFrame]:
    """What the model thinks of the labels, and those that are probably wrong, the likeliest first.

    Labels that were trained on are judged by the networks that have not seen them, those of the audit set by the
    round's own. Where the model knows too little no label is listed.
    """
    judged = {LABELS: _judged(labelled, out_of_fold, classes), AUDIT_LABELS: _judged_audit(labelled, audit_predictions)}
    reviews, listed = [], [pd.DataFrame({name: [] for name in SUSPICIOUS_COLUMNS})]
    for name, (table, probs) in judged.items():
        if table.empty:
            continue
        review, suspects = _review(name, table, probs, classes)
        reviews.append(review)
        listed += [] if suspects.empty else [suspects]
    table = pd.concat(listed[1:] or listed).sort_values("wrong_probability", ascending=False, kind="stable")
    uris = pool.table.drop_duplicates("item_id").set_index("item_id")["uri"]
    table = table.assign(
        uri=table["item_id"].map(uris).astype("str"), task=table["item_id"].map(ledger.task_addresses()).astype("str")
    )
    return Review(tuple(reviews), review_text(reviews)), table[list(SUSPICIOUS_COLUMNS)]


def _judged(labelled: Labels, found: Predicted, classes: Sequence[str]) -> tuple[pd.DataFrame, Tensor]:
    """The labels that predictions out of fold tell something of, and these predictions, `(n, C)`."""
    if not len(found):
        return found.table, class_indices([], classes).reshape(0, 1)
    judged = judged_out_of_fold(class_indices(found.labels, classes), labelled.groups)
    return found.table[judged.numpy()], found.logits[judged].softmax(dim=1)


def _judged_audit(labelled: Labels, found: Predicted) -> tuple[pd.DataFrame, Tensor]:
    """The labels of the audit set whose class the networks know, and their predictions, `(n, C)`."""
    known = Predicted(found.table[found.table["label"].map(labelled.counts()).fillna(0) >= MIN_JUDGED])
    return known.table, known.probs if len(known) else class_indices([], ()).reshape(0, 1)


def _review(what: str, table: pd.DataFrame, probs: Tensor, classes: Sequence[str]) -> tuple[ReviewedSet, pd.DataFrame]:
    targets = class_indices(table["label"].tolist(), classes)
    found, right = find_label_errors(probs, targets), share_right(probs, targets)
    is_listed = (found.wrong_probability >= LIKELY_WRONG) & (right >= FEWEST_RIGHT)
    suspects = table.iloc[found.positions[is_listed].numpy()][["item_id", "label"]].assign(
        split="audit" if what == AUDIT_LABELS else "pool",
        suggested=np.array(classes)[found.suggested[is_listed].numpy()],
        given_probability=found.given_probability[is_listed].numpy(),
        suggested_probability=found.suggested_probability[is_listed].numpy(),
        wrong_probability=found.wrong_probability[is_listed].numpy(),
    )
    review = ReviewedSet(
        what=what,
        n=len(table),
        share_right=right,
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
