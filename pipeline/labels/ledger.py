"""What the rounds of a campaign add up to: what was asked, what was answered, what labels there are, what is left."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING

import pandas as pd

from pipeline.labels.answers import current, labelled_set, set_aside, with_present_names
from pipeline.pool.columns import is_in
from pipeline.pool.table import has_complete_label
from pipeline.tables import Labels, PoolTable
from pipeline.types import Answer, Ask, Counted, Split

if TYPE_CHECKING:
    from pipeline.tasks.task_type import TaskType


@dataclass(frozen=True)
class RoundOfLedger:
    """What one round asked for and brought in.

    Attributes:
        tasks: the task of each ask; None where nothing was pushed.
        address: where people labelled.
        pushed_at: when the batch was with them, ISO 8601; empty before.
        answers: that the round brought in; None where it has not collected yet.
        withdrawn: items whose task somebody deleted before it was answered.
        classes: that people could choose, by the names of then; empty where that is not known.
    """

    number: int
    tasks: Mapping[Ask, int] | None = None
    address: str = ""
    pushed_at: str = ""
    answers: Sequence[Answer] | None = None
    withdrawn: Sequence[str] = ()
    classes: Sequence[str] = ()


@dataclass(frozen=True)
class Ledger:
    """All rounds of a campaign, oldest first.

    Attributes:
        renamed: what a class was ever called -> what it is called now.
    """

    rounds: Sequence[RoundOfLedger] = ()
    renamed: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def of(self, number: int) -> RoundOfLedger:
        """One round."""
        return next(each for each in self.rounds if each.number == number)

    @cached_property
    def answers(self) -> list[Answer]:
        """Every answer that rounds have brought in, oldest first, by the names that classes have now."""
        given = [answer for each in self.rounds for answer in each.answers or ()]
        return with_present_names(given, self.renamed)

    @cached_property
    def standing(self) -> list[Answer]:
        """The answers that stand; see `current`."""
        return current(self.answers)

    @cached_property
    def asked_tasks(self) -> dict[Ask, int]:
        """The task of each ask that was pushed."""
        return {ask: task_id for each in self.rounds for ask, task_id in (each.tasks or {}).items()}

    @cached_property
    def asked_items(self) -> dict[str, int]:
        """Items that were asked for: item id -> the round that asked last.

        A task that somebody deleted before it was answered counts as not asked.
        """
        asked: dict[str, int] = {}
        for each in self.rounds:
            asked |= {ask.item_id: each.number for ask in each.tasks or ()}
            for item_id in each.withdrawn:
                asked.pop(item_id, None)
        return asked

    @cached_property
    def answered_items(self) -> set[str]:
        """Items on which an answer of any kind stands."""
        return {answer.item_id for answer in self.standing}

    @cached_property
    def regions_paid(self) -> dict[str, int]:
        """Regions of each label that was paid for, the audit set's included, by item.

        An image in which nothing was found counts as one region: a person looked at it, too. Of several people the one
        counts who marked the most.
        """
        paid: dict[str, int] = {}
        for answer in self.standing:
            if answer.annotation is not None:
                paid[answer.item_id] = max(1, len(answer.annotation.regions), paid.get(answer.item_id, 0))
        return paid

    @property
    def n_labels_paid(self) -> int:
        """Labels paid for so far, the audit set's included."""
        return len(self.regions_paid)

    @property
    def n_regions_paid(self) -> int:
        """Regions of the labels paid for so far."""
        return sum(self.regions_paid.values())

    def n_paid(self, counted: Counted) -> int:
        """What was paid for so far, as a budget counts it."""
        return self.n_labels_paid if counted == "images" else self.n_regions_paid

    @cached_property
    def n_outstanding(self) -> int:
        """Tasks that are out and may still come back with a label; an image may be asked for a second time."""
        paid, answered = self.regions_paid, {(answer.item_id, answer.round_number) for answer in self.standing}
        return sum(item not in paid and (item, number) not in answered for item, number in self.asked_items.items())

    def budget_left(self, budget: int, counted: Counted = "images") -> int:
        """Images that may still be asked for.

        Of a budget in regions: as many as it pays for if each holds as many regions as the labels so far hold on
        average, or one while there is no label.
        """
        n_paid = self.n_paid(counted)
        n_images = (budget - n_paid) * self.n_labels_paid // n_paid if n_paid else budget
        return max(0, n_images - self.n_outstanding)

    def seconds_to_batch(self, number: int | None = None) -> float | None:
        """How long people waited from the last answer that a round brought in to the batch of the next.

        Args:
            number: of the round whose batch it is; the last that waited if not given.

        Returns:
            None where no answer came before the batch, or the batch is not with people yet; or where it seems to be
            older than the answer, because a clock was set back or two clocks differ.
        """
        for before, after in reversed(list(pairwise(self.rounds))):
            if number in (None, after.number) and after.pushed_at and before.answers:
                last = max(datetime.fromisoformat(answer.updated_at) for answer in before.answers)
                seconds = (datetime.fromisoformat(after.pushed_at) - last).total_seconds()
                return max(0.0, seconds) if seconds > -1 else None  # the batch is stamped in whole seconds
        return None

    def task_addresses(self) -> dict[str, str]:
        """Where people see the task of each item that was asked for."""
        return {
            ask.item_id: f"{each.address}?task={task_id}"
            for each in self.rounds
            for ask, task_id in (each.tasks or {}).items()
        }

    def rounds_out(self) -> list[int]:
        """The rounds with tasks that are out, as far as is known."""
        return sorted({n for item_id, n in self.asked_items.items() if item_id not in self.answered_items})

    def labels(self, pool: PoolTable, task: "TaskType", *, classes: Sequence[str]) -> Labels:
        """The labels that stand, of people and of the manifest, on images that can be used: see `labelled_set`.

        Raises:
            ValueError: a label is not one of the classes.
        """
        labels = labelled_set(self.answers, task, prelabelled=pool.given_labels(), classes=classes)
        there = is_in(pool.usable["item_id"], labels["item_id"])
        images = pool.usable.loc[there, ["item_id", "uri", "split", "group"]]
        return Labels(labels.merge(images, how="inner", validate="one_to_one"))

    def may_be_asked(self, pool: PoolTable, *, split: Split, classes: Collection[str]) -> pd.DataFrame:
        """The images of a split that `are_left`: item_id, uri."""
        rows = self.are_left(pool, split=split, classes=classes)
        return pool.usable.loc[rows, ["item_id", "uri"]].sort_values("item_id", ignore_index=True)

    def are_left(self, pool: PoolTable, *, split: Split, classes: Collection[str]) -> "pd.Series[bool]":
        """Which usable images of a split lack a complete label and are not with the annotators.

        An image that nobody could label is among them once there are classes that people could not choose then.
        """
        before = self._rounds_of_fewer_classes(classes)
        again = {item_id for item_id in set_aside(self.answers) if self.asked_items.get(item_id) in before}
        known = pd.Series(sorted({*self.asked_items, *self.answered_items} - again), dtype="str")
        usable = pool.usable
        return (usable["split"] == split) & ~has_complete_label(usable) & ~is_in(usable["item_id"], known)

    def _rounds_of_fewer_classes(self, classes: Collection[str]) -> set[int]:
        """The rounds that asked when people could not choose each of the classes that there are now."""
        return {
            each.number
            for each in self.rounds
            if each.classes and set(classes) - {self.renamed.get(name, name) for name in each.classes}
        }


def count_labels(answers: Sequence[Answer]) -> Counter[str]:
    """How many labels of each class stand."""
    return Counter(r.label for a in current(answers) if a.annotation for r in a.annotation.regions)
