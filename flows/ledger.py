"""What the closed rounds of a campaign add up to: answers, labels, tasks that are out."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import pandas as pd

from connectors.store import Campaign, RoundFolder, read_json
from pipeline.labels.ledger import answers_from_table, current, with_present_names
from pipeline.types import Answer, Ask


def known_answers(folder: Campaign, renamed: Mapping[str, str] = MappingProxyType({})) -> list[Answer]:
    """Every answer that rounds have brought in, oldest first.

    Args:
        renamed: what a class was called -> what it is called now; the files keep the old name.
    """
    tables = [f / "annotations.parquet" for f in folder.rounds() if f.has("annotations.parquet")]
    answers = [answer for path in tables for answer in answers_from_table(pd.read_parquet(path))]
    return with_present_names(answers, renamed)


def asked_tasks(folder: Campaign) -> dict[Ask, int]:
    """The task of each ask that was pushed."""
    pushed = {f.number: read_json(f / "pushed.json") for f in folder.rounds() if f.has("pushed.json")}
    return {
        Ask(item_id, number, each["purposes"][item_id]): task_id
        for number, each in pushed.items()
        for item_id, task_id in each["tasks"].items()
    }


def of_round(task_ids: Mapping[Ask, int], number: int) -> dict[Ask, int]:
    """The tasks of one round."""
    return {ask: task_id for ask, task_id in task_ids.items() if ask.round_number == number}


def asked_items(folder: Campaign) -> dict[str, int]:
    """Items that were asked for: item id -> the round that asked last.

    A task that somebody deleted before it was answered counts as not asked.
    """
    asked: dict[str, int] = {}
    for f in folder.rounds():
        if f.has("pushed.json"):
            asked |= dict.fromkeys(read_json(f / "pushed.json")["tasks"], f.number)
        if f.has("annotations.parquet"):
            for item_id in read_json(f / "withdrawn.json"):
                asked.pop(item_id, None)
    return asked


def task_addresses(folder: Campaign) -> dict[str, str]:
    """Where people see the task of each item that was asked for."""
    pushed = [read_json(f / "pushed.json") for f in folder.rounds() if f.has("pushed.json")]
    return {
        item_id: f"{each['address']}?task={task_id}" for each in pushed for item_id, task_id in each["tasks"].items()
    }


def answered_items(answers: Sequence[Answer]) -> set[str]:
    """Items on which an answer of any kind stands."""
    return {answer.item_id for answer in current(answers)}


def labels_used(folder: Campaign) -> int:
    """Labels paid for so far, the audit set's included."""
    return len({answer.item_id for answer in current(known_answers(folder)) if answer.outcome == "labelled"})


def outstanding_tasks(folder: Campaign) -> int:
    """Tasks that are out and may still come back with a label; an image may be asked for a second time."""
    standing = current(known_answers(folder))
    labelled = {answer.item_id for answer in standing if answer.outcome == "labelled"}
    answered = {(answer.item_id, answer.round_number) for answer in standing}
    return sum(item not in labelled and (item, number) not in answered for item, number in asked_items(folder).items())


def labels_paid(folder: RoundFolder) -> int:
    """Labels paid for that the round's model was trained and measured on; those of a manifest cost nothing."""
    tables = [folder / name for name in ("labelled.parquet", "audit.parquet") if folder.has(name)]
    return sum(int((pd.read_parquet(path, columns=["source"])["source"] == "annotators").sum()) for path in tables)
