"""From answers to the labelled set: the ledger of answers, what changed in it, consensus, what is set aside.

The ledger is every record of an answer in the order in which it was collected; it is only ever added to.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipeline.regions import OTHERS, regions_from_json, regions_to_json
from pipeline.types import Annotation, Answer, Ask, Region

if TYPE_CHECKING:
    from pipeline.tasks.task_type import TaskType

COLUMNS = {
    "item_id": "str",
    "task_id": "int64",
    "answer_id": "int64",
    "round_number": "int64",
    "purpose": "str",
    "outcome": "str",
    "regions": "str",
    "annotator": "str",
    "updated_at": "str",
    "seconds": "Float64",
    "message": "str",
}
LABELLED_COLUMNS = {
    "item_id": "str",
    "regions": "str",
    "n_answers": "int64",
    "agreement": "float64",
    "source": "str",
}


def answers_to_table(answers: Sequence[Answer]) -> pd.DataFrame:
    """One row for each answer, in order; `regions` (JSON) and `seconds` are missing where the answer has none.

    Raises:
        ValueError: an answer does not fit the columns.
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
    answers: Sequence[Answer], task: "TaskType", *, prelabelled: Mapping[str, str] | None = None, classes: Sequence[str]
) -> pd.DataFrame:
    """The labels that the answers give, one row for each labelled item, sorted by `item_id`.

    What several annotators found becomes one by the consensus of the task type. Skipped, empty and invalid answers do
    not vote.

    Args:
        answers: the ledger.
        prelabelled: item id -> label from the manifest; what annotators found wins over it.
        classes: labels that may occur, besides `OTHERS`.

    Returns:
        `item_id`, `regions` (JSON), `n_answers` (votes counted), `agreement` (of the annotators, in [0, 1]; missing for
        a label of the manifest, on which nobody voted) and `source` ("annotators" or "manifest").

    Raises:
        ValueError: a label is not one of the classes.
    """
    votes: dict[str, list[tuple[Region, ...]]] = {}
    for answer in sorted(current(answers), key=_age):
        if answer.annotation is not None:
            votes.setdefault(answer.item_id, []).append(answer.annotation.regions)
    given = {item_id: task.read_label(label) for item_id, label in (prelabelled or {}).items() if item_id not in votes}
    agreed = {item_id: task.consensus(found) for item_id, found in votes.items()}
    for item_id, regions in (given | {item_id: regions for item_id, (regions, _) in agreed.items()}).items():
        unknown = [region.label for region in regions if region.label not in (*classes, OTHERS)]
        if unknown:
            raise ValueError(f"item {item_id} has the label {unknown[0]!r}; the classes are {', '.join(classes)}")
    rows: list[tuple[str, str, int, float | None, str]] = [
        (item_id, regions_to_json(regions), 0, None, "manifest") for item_id, regions in given.items()
    ]
    rows += [
        (item_id, regions_to_json(regions), len(votes[item_id]), agreement, "annotators")
        for item_id, (regions, agreement) in agreed.items()
    ]
    table = pd.DataFrame(rows, columns=list(LABELLED_COLUMNS)).astype(LABELLED_COLUMNS)
    return table.sort_values("item_id", ignore_index=True)


def set_aside(answers: Sequence[Answer]) -> frozenset[str]:
    """Items that were answered, and by nobody with a label: they are not to be asked again."""
    standing = current(answers)
    labelled = {answer.item_id for answer in standing if answer.outcome == "labelled"}
    return frozenset(answer.item_id for answer in standing) - labelled


def digest(labelled: pd.DataFrame) -> str:
    """Hash of which item has which regions, 32 hex digits; the order of the rows does not matter."""
    pairs = sorted(zip(labelled["item_id"].tolist(), labelled["regions"].tolist(), strict=True))
    return hashlib.blake2b(json.dumps(pairs).encode(), digest_size=16).hexdigest()


def _age(answer: Answer) -> tuple[datetime, int]:
    """Sorts answers by time, oldest first; a time without a zone is taken as UTC."""
    time = datetime.fromisoformat(answer.updated_at)
    return time if time.tzinfo else time.replace(tzinfo=UTC), answer.answer_id


def _value(answer: Answer, column: str) -> str | int | float | None:
    if column == "regions":
        return regions_to_json(answer.annotation.regions) if answer.annotation else None
    value: str | int | float | None = answer.ask.purpose if column == "purpose" else getattr(answer, column)
    return value


def _answer(row: Mapping[str, Any]) -> Answer:
    fields = dict(row)
    regions = fields.pop("regions")
    fields["ask"] = Ask(*(fields.pop(name) for name in ("item_id", "round_number", "purpose")))
    if regions is not None:
        found = regions_from_json(regions)
        fields["annotation"] = Annotation(row["item_id"], found, row["annotator"], row["seconds"])
    return Answer(**fields)
