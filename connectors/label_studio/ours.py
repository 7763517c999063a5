"""Which tasks of a project are a campaign's own, which ask the same again, and which are none of its."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from connectors.annotation import Progress
from connectors.label_studio.mending import Mended
from connectors.label_studio.pages import IMAGE
from connectors.label_studio.reading import HeldTask, is_copied, is_skip
from connectors.label_studio.tasks import Tasks
from pipeline.types import Ask


@dataclass(slots=True)
class Sorted:
    """Tasks of a project, by what our records say of them.

    Attributes:
        own: task id -> ask.
        doubles: further tasks of an ask: task id -> ask.
        foreign: what this campaign did not ask.
    """

    own: dict[int, Ask] = field(default_factory=dict)
    doubles: dict[int, Ask] = field(default_factory=dict)
    foreign: list[HeldTask] = field(default_factory=list)

    @property
    def ours(self) -> dict[int, Ask]:
        """Own tasks and doubles."""
        return self.own | self.doubles


def sort(held: dict[int, HeldTask], asked: Mapping[Ask, int], tasks: Tasks) -> Sorted:
    """Tell our tasks, doubles of them and what is not ours apart; `held` gets the tasks that have doubles.

    A double is what an import leaves that arrived although its connection broke: item, round and image are those
    of a task of ours. What only says so, and shows another image, is not ours.
    """
    ours = {task_id: ask for ask, task_id in asked.items()}
    by_place = {(ask.item_id, ask.round_number): task_id for ask, task_id in asked.items()}
    which = Sorted()
    for task in list(held.values()):
        if task.id in ours:
            which.own[task.id] = ours[task.id]
            continue
        twin = _twin_of(task, held, by_place, tasks)
        if twin is None or twin.data.get(IMAGE) is None or twin.data.get(IMAGE) != task.data.get(IMAGE):
            which.foreign.append(task)
            continue
        held[twin.id] = twin
        which.own[twin.id] = which.doubles[task.id] = ours[twin.id]
    return which


def _twin_of(
    task: HeldTask, held: Mapping[int, HeldTask], by_place: Mapping[tuple[str, int], int], tasks: Tasks
) -> HeldTask | None:
    """The task of ours that asks for the same, as far as the task's data can be believed."""
    item_id, number = task.data.get("item_id"), task.data.get("round_number")
    if not isinstance(item_id, str) or not isinstance(number, int):
        return None
    twin = by_place.get((item_id, number))
    if twin is None:
        return None
    return held.get(twin) or next(iter(tasks.between(twin - 1, twin)), None)


def without_doubles(
    held: dict[int, HeldTask],
    which: Sorted,
    asked: Mapping[Ask, int],
    *,
    delete: Callable[[list[int]], None],
    mended: Mended,
) -> dict[Ask, int]:
    """Delete what asks a second time and has no answer; return which task stands for each ask."""
    task_ids = dict(asked)
    copies: dict[Ask, list[int]] = defaultdict(list)
    for task_id, ask in which.doubles.items():
        copies[ask].append(task_id)
    gone: list[int] = []
    for ask, doubles in copies.items():
        candidates = [task_id for task_id in (task_ids[ask], *sorted(doubles)) if task_id in held]
        stays = min(candidates, key=lambda task_id: (not held[task_id].is_answered, candidates.index(task_id)))
        task_ids[ask] = stays
        gone += [task_id for task_id in candidates if task_id != stays and not held[task_id].is_answered]
    if gone:
        delete(gone)
        mended.n_doubles += len(gone)
    for task_id in gone:
        del held[task_id]
        which.own.pop(task_id, None)
        which.doubles.pop(task_id, None)
    return task_ids


def progress_of(number: int, held: Mapping[int, HeldTask], which: Sorted, task_ids: Mapping[Ask, int]) -> Progress:
    """How far the annotators are with a round."""
    answers: dict[Ask, list[object]] = {
        ask: [] for ask, task_id in task_ids.items() if ask.round_number == number and task_id in held
    }
    for task_id, ask in which.ours.items():
        if ask.round_number == number and task_id in held:
            given = [each for each in held[task_id].annotations if not is_copied(each)]
            answers.setdefault(ask, []).extend(given)
    return Progress(
        n_tasks=len(answers),
        n_labelled=sum(any(not is_skip(each) for each in given) for given in answers.values()),
        n_set_aside=sum(bool(given) and all(map(is_skip, given)) for given in answers.values()),
    )
