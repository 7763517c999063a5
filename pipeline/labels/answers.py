"""From answers to the labelled set: the ledger of answers, what changed in it, consensus, what is set aside.

The ledger is every record of an answer in the order in which it was collected; it is only ever added to.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import pandas as pd

from pipeline.types import Annotation, Answer, Ask, Region

COLUMNS = {
    "item_id": "str",
    "task_id": "int64",
    "answer_id": "int64",
    "round_number": "int64",
    "purpose": "str",
    "outcome": "str",
    "label": "str",
    "annotator": "str",
    "updated_at": "str",
    "seconds": "Float64",
    "message": "str",
}
LABELLED_COLUMNS = {
    "item_id": "str",
    "label": "str",
    "n_answers": "int64",
    "agreement": "float64",
    "source": "str",
}


def answers_to_table(answers: Sequence[Answer]) -> pd.DataFrame:
    """One row for each answer, in order; `label` and `seconds` are missing where the answer has none.

    Raises:
        ValueError: an answer does not fit the columns, which hold one label for the whole image.
    """
    rows = [{name: _value(answer, name) for name in COLUMNS} for answer in answers]
    table = pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)
    for answer, kept in zip(answers, answers_from_table(table), strict=True):
        if answer != kept:
            raise ValueError(f"answer {answer.answer_id} does not fit the columns: {answer} would become {kept}")
    return table


def answers_from_table(table: pd.DataFrame) -> list[Answer]:
    """The answers that `answers_to_table` wrote."""
    table = table[list(COLUMNS)].astype(COLUMNS).astype(object)
    rows = table.where(table.notna(), None).itertuples(index=False, name=None)
    return [_answer(dict(zip(COLUMNS, row, strict=True))) for row in rows]


def with_present_names(answers: Sequence[Answer], renamed: Mapping[str, str]) -> list[Answer]:
    """The answers with the names that classes have now: `renamed` maps old ones to them."""

    def renew(answer: Answer) -> Answer:
        if answer.annotation is None or not renamed:
            return answer
        regions = tuple(
            dataclasses.replace(region, label=renamed.get(region.label, region.label))
            for region in answer.annotation.regions
        )
        return dataclasses.replace(answer, annotation=dataclasses.replace(answer.annotation, regions=regions))

    return [renew(answer) for answer in answers]


def reconcile(
    known: Sequence[Answer],
    pulled: Sequence[Answer],
    *,
    task_ids: Mapping[Ask, int],
    doubles: Mapping[int, Ask] = MappingProxyType({}),
) -> list[Answer]:
    """What to add to the ledger so that it agrees with the annotation tool: nothing, the second time.

    Answers that are new or that were edited come first, in the order of `pulled`; then a "deleted" record for
    each answer that was withdrawn. An answer whose whole task was deleted stays: a person did give it.

    Args:
        known: the ledger.
        pulled: all answers that stand now on these tasks.
        task_ids: the tasks that exist now, of the rounds that were looked at.
        doubles: further tasks of an ask: task id -> ask.
    """
    latest = {(answer.item_id, answer.answer_id): answer for answer in known}
    standing = {(answer.item_id, answer.answer_id): answer for answer in pulled}
    changed = [answer for key, answer in standing.items() if answer != latest.get(key)]
    return changed + [
        dataclasses.replace(answer, outcome="deleted", annotation=None, message="deleted in the annotation tool")
        for key, answer in latest.items()
        if key not in standing
        and answer.outcome != "deleted"
        and (task_ids.get(answer.ask) == answer.task_id or doubles.get(answer.task_id) == answer.ask)
    ]


def current(answers: Sequence[Answer]) -> list[Answer]:
    """The answers that stand, sorted by item and annotator; at most one of each annotator for an item.

    The last record of an answer counts, and a deleted one does not stand. Of several answers of one annotator
    on one item the latest by the annotation tool's clock stands, whatever its outcome: a later skip takes a
    label back.
    """
    latest = {(answer.item_id, answer.answer_id): answer for answer in answers}
    standing = (answer for answer in latest.values() if answer.outcome != "deleted")
    by_person = {(answer.item_id, answer.annotator): answer for answer in sorted(standing, key=_age)}
    return [by_person[person] for person in sorted(by_person)]


def labelled_set(
    answers: Sequence[Answer], *, prelabelled: Mapping[str, str] | None = None, classes: Sequence[str]
) -> pd.DataFrame:
    """The labels that the answers give, one row for each labelled item, sorted by `item_id`.

    The label is that of most annotators; of labels with equally many votes, the one that was given first.
    Skipped, empty and invalid answers do not vote.

    Args:
        answers: the ledger.
        prelabelled: item id -> label from the manifest; an annotator's label wins over it.
        classes: labels that may occur.

    Returns:
        `item_id`, `label`, `n_answers` (votes counted), `agreement` (share of the votes that is `label`, in
        (0, 1]; missing for a label of the manifest, on which nobody voted) and `source` ("annotators" or
        "manifest").

    Raises:
        ValueError: a label is not one of the classes.
    """
    votes: dict[str, list[str]] = {}
    for answer in sorted(current(answers), key=_age):
        if answer.outcome == "labelled":
            votes.setdefault(answer.item_id, []).append(_label(answer))
    rows: list[tuple[str, str, int, float | None, str]] = [
        (item_id, label, 0, None, "manifest") for item_id, label in (prelabelled or {}).items() if item_id not in votes
    ]
    rows += [(item_id, *_consensus(labels), "annotators") for item_id, labels in votes.items()]
    table = pd.DataFrame(rows, columns=list(LABELLED_COLUMNS)).astype(LABELLED_COLUMNS)
    unknown = table[~table["label"].isin(list(classes))]
    if not unknown.empty:
        item_id, label = unknown.iloc[0][["item_id", "label"]]
        raise ValueError(f"item {item_id} has the label {label!r}; the classes are {', '.join(classes)}")
    return table.sort_values("item_id", ignore_index=True)


def set_aside(answers: Sequence[Answer]) -> frozenset[str]:
    """Items that were answered, and by nobody with a label: they are not to be asked again."""
    standing = current(answers)
    labelled = {answer.item_id for answer in standing if answer.outcome == "labelled"}
    return frozenset(answer.item_id for answer in standing) - labelled


def digest(labelled: pd.DataFrame) -> str:
    """Hash of which item has which label, 32 hex digits; the order of the rows does not matter."""
    pairs = sorted(zip(labelled["item_id"].tolist(), labelled["label"].tolist(), strict=True))
    return hashlib.blake2b(json.dumps(pairs).encode(), digest_size=16).hexdigest()


def _consensus(labels: list[str]) -> tuple[str, int, float]:
    """Most frequent label, votes and agreement; of equals the first in `labels`."""
    label, n_votes = Counter(labels).most_common(1)[0]
    return label, len(labels), n_votes / len(labels)


def _age(answer: Answer) -> tuple[datetime, int]:
    """Sorts answers by time, oldest first; a time without a zone is taken as UTC."""
    time = datetime.fromisoformat(answer.updated_at)
    return time if time.tzinfo else time.replace(tzinfo=UTC), answer.answer_id


def _label(answer: Answer) -> str:
    """The one label that a labelled answer gives to the whole image."""
    regions = answer.annotation.regions if answer.annotation else ()
    if len(regions) != 1 or regions[0].kind != "image":
        raise ValueError(f"answer {answer.answer_id}: wanted one label for the whole image, got {regions}")
    return regions[0].label


def _value(answer: Answer, column: str) -> str | int | float | None:
    if column == "label":
        return _label(answer) if answer.annotation else None
    value: str | int | float | None = answer.ask.purpose if column == "purpose" else getattr(answer, column)
    return value


def _answer(row: Mapping[str, Any]) -> Answer:
    fields = dict(row)
    label = fields.pop("label")
    fields["ask"] = Ask(*(fields.pop(name) for name in ("item_id", "round_number", "purpose")))
    if label is not None:
        regions = (Region("image", label),)
        fields["annotation"] = Annotation(row["item_id"], regions, row["annotator"], row["seconds"])
    return Answer(**fields)
