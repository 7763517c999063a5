"""Make what a project holds what was wanted: look, mend what differs, and look again until nothing does."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from connectors.annotation import PushMismatch
from connectors.label_studio.connection import Connection
from connectors.label_studio.reading import HeldTask
from connectors.label_studio.tasks import Tasks, Wanted

PASSES = 6
SETTLE_SECONDS = 10.0
LOOK_SECONDS = 0.5


@dataclass(slots=True)
class Mended:
    """How much of what is out had to be mended."""

    n_doubles: int = 0
    n_guesses: int = 0
    n_data: int = 0

    def __str__(self) -> str:
        said = {
            "asked for an image a second time and were removed": self.n_doubles,
            "had lost the model's guess and their place in the order, and have them again": self.n_guesses,
            "showed another image or address, and show theirs again": self.n_data,
        }
        return "; ".join(f"{count} open tasks {what}" for what, count in said.items() if count)


@dataclass(frozen=True)
class Mender:
    """Mends the tasks of one project."""

    connection: Connection
    tasks: Tasks

    def make_whole(
        self,
        find: Callable[[], list[HeldTask]],
        wanted: Mapping[str, Wanted],
        *,
        may_import: bool,
        mended: Mended,
    ) -> list[HeldTask]:
        """Look, mend what differs, and look again until nothing does; return what is held then.

        After a failure look for a while before anything is sent again: what was sent may still be under way.

        Args:
            find: what is held now of a round.
            wanted: what the tasks of the round must be like, by item id.
            may_import: whether tasks that are missing are made.
            mended: counts what was mended.

        Raises:
            PushMismatch: the server does not keep what it is sent.
        """
        held: list[HeldTask] = []
        has_looked = False
        for attempt in self.connection.retrying():
            with attempt:
                if has_looked:  # else nothing was sent yet
                    _settle(find, wanted, with_guesses=wanted.keys() <= _by_item(held).keys())
                for _ in range(PASSES):
                    held, has_looked = find(), True
                    if not self._mend(held, wanted, may_import=may_import, mended=mended):
                        return held
        project = self.tasks.project
        raise PushMismatch(
            f"project {project.title!r} at {self.connection.url} does not keep what it is sent: wanted {len(wanted)} "
            f"tasks with their guess and image, {_compare(held, wanted)}. Nobody should label there before that is "
            "mended; `labelcycle run` tries again"
        )

    def _mend(
        self, held: Sequence[HeldTask], wanted: Mapping[str, Wanted], *, may_import: bool, mended: Mended
    ) -> bool:
        """Mend what can be mended at once; whether there was anything."""
        there = _by_item(held)
        missing = [one for item_id, one in wanted.items() if item_id not in there] if may_import else []
        self.tasks.add(missing)
        surplus = _surplus(held)
        if surplus:
            self.tasks.delete(surplus)
            mended.n_doubles += len(surplus)
        stays = [task for task in held if task.id not in surplus]
        moved = [task for task in stays if not task.is_answered and not wanted[task.item_id].has_data(task)]
        for task in moved:
            self.tasks.write_data(task, wanted[task.item_id])
        mended.n_data += len(moved)
        unguessed = _unguessed(stays, wanted)
        self.tasks.guess_again([(task, wanted[task.item_id]) for task in unguessed])
        mended.n_guesses += len(unguessed)
        return bool(missing or surplus or moved or unguessed)

    def mend_open(self, wanted: Mapping[int, Wanted], held: Mapping[int, HeldTask], mended: Mended) -> None:
        """Mend image, guess and order of open tasks, which are known by their id whatever their data say now."""
        moved = [task_id for task_id, one in wanted.items() if not one.has_data(held[task_id])]
        for task_id in moved:
            self.tasks.write_data(held[task_id], wanted[task_id])
        mended.n_data += len(moved)
        for number in {one.ask.round_number for one in wanted.values()}:
            open_ones = {task_id: one for task_id, one in wanted.items() if one.ask.round_number == number}
            if all(one.is_guessed(held[task_id]) for task_id, one in open_ones.items()):
                continue

            def find(open_ones: Mapping[int, Wanted] = open_ones) -> list[HeldTask]:
                now = self.tasks.between(min(open_ones) - 1, max(open_ones))
                return [task for task in now if task.id in open_ones and task.item_id == open_ones[task.id].ask.item_id]

            by_item = {one.ask.item_id: one for one in open_ones.values()}
            self.make_whole(find, by_item, may_import=False, mended=mended)


def last_choice(task: HeldTask) -> tuple[bool, int]:
    """Sorts the tasks of an item: the one that stands for it comes first."""
    return not task.is_answered, task.id


def _settle(find: Callable[[], list[HeldTask]], wanted: Mapping[str, Wanted], *, with_guesses: bool) -> None:
    """Wait until what was sent last is there, or nothing has come for a while."""
    before, quiet_since = (-1, -1), time.monotonic()
    while time.monotonic() - quiet_since < SETTLE_SECONDS:
        held = find()
        if wanted.keys() <= _by_item(held).keys() and not (with_guesses and _unguessed(held, wanted)):
            return
        now = (len(held), sum(len(task.predictions) for task in held))
        if now != before:
            before, quiet_since = now, time.monotonic()
        time.sleep(LOOK_SECONDS)


def _by_item(held: Sequence[HeldTask]) -> dict[str, list[HeldTask]]:
    by_item: dict[str, list[HeldTask]] = defaultdict(list)
    for task in held:
        by_item[task.item_id].append(task)
    return by_item


def _surplus(held: Sequence[HeldTask]) -> list[int]:
    """Ids of the tasks that ask for an item again and have no answer: of each item one task stays."""
    surplus = []
    for copies in _by_item(held).values():
        stays = min(copies, key=last_choice)
        surplus += [task.id for task in copies if task is not stays and not task.is_answered]
    return surplus


def _unguessed(held: Sequence[HeldTask], wanted: Mapping[str, Wanted]) -> list[HeldTask]:
    """Tasks without the one right prediction; of an answered task any prediction of the round is enough."""
    return [
        task
        for task in held
        if not (wanted[task.item_id].guesses(task) if task.is_answered else wanted[task.item_id].is_guessed(task))
    ]


def _compare(held: Sequence[HeldTask], wanted: Mapping[str, Wanted]) -> str:
    counts = Counter(task.item_id for task in held)
    kinds = {
        "have no task": wanted.keys() - counts.keys(),
        "have several": {item_id for item_id, count in counts.items() if count > 1},
        "lack the guess or have another": {task.item_id for task in _unguessed(held, wanted)},
        "show another image": {task.item_id for task in held if not wanted[task.item_id].has_data(task)},
    }
    return "; ".join(f"{len(ids)} {kind}, such as {min(ids)}" for kind, ids in kinds.items() if ids)
