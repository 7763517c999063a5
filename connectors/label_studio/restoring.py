"""A project that was saved, made again: what is there of it already stays, and nothing is made twice."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from connectors.annotation import AnnotationToolError, ProjectMismatch, PushMismatch, Restored
from connectors.label_studio.api import Api
from connectors.label_studio.mending import PASSES, Mended, Mender
from connectors.label_studio.pages import IMAGE
from connectors.label_studio.project import Project
from connectors.label_studio.reading import HeldProject, HeldTask, is_copied
from connectors.label_studio.saving import Given, SavedAnswer, SavedPage, SavedTask, content_of
from connectors.label_studio.tasks import CHUNK, Tasks, Wanted
from pipeline.settings import Plain
from pipeline.types import Ask


@dataclass
class Restoring:
    """A project that is being made again.

    Attributes:
        asked: the task of each ask when it was saved.
        accounts: id by email.
        address: of the image that an item has now; None where there is none any more.
        given: who gave each answer, by its new id.
        homeless: people without an account here; their answers are under the account of the token.
    """

    api: Api
    project: Project
    tasks: Tasks
    mender: Mender
    asked: Mapping[Ask, int]
    accounts: Mapping[str, int]
    address: Callable[[str], str | None]
    task_ids: dict[int, int] = field(default_factory=dict)
    answer_ids: dict[int, int] = field(default_factory=dict)
    given: dict[int, Given] = field(default_factory=dict)
    homeless: set[str] = field(default_factory=set)
    n_without_image: int = 0

    @cached_property
    def _own_account(self) -> int | None:
        """That of the token, under which answers of people without an account are."""
        return self.accounts.get(self.api.connection.repeatable(self.api.person))

    @cached_property
    def _asks(self) -> dict[int, Ask]:
        return {task_id: ask for ask, task_id in self.asked.items()}

    def restore(self, page: SavedPage, saved: Iterable[Plain], prepare: Callable[[], None]) -> Restored | None:
        """Make the project, then its tasks with guesses, then its answers; see `AnnotationTool.restore`.

        Args:
            page: the first record; `saved` are the others.
            prepare: called once there is a project.
        """
        held = self.project.find()
        told = str(getattr(held, "description", ""))
        if page.done in told:
            return self._as_it_is(saved)
        if held is not None and page.mark not in told and self._still_there(held):
            return None
        self.project.remake(page.page, page.mark)
        prepare()
        doubles: list[SavedTask] = []
        versions: set[str] = set()
        for tasks in _of_one_round(saved):
            own = [task for task in tasks if task.task == task.of]
            doubles += [task for task in tasks if task.task != task.of]
            self._restore_tasks(own)
            versions |= {str(task.prediction["model_version"]) for task in own}
        self.task_ids |= {task.task: self.task_ids[task.of] for task in doubles}
        self._restore_answers(self._by_new_task(doubles))
        shown = page.page.get("model_version")
        if shown in versions:
            self.tasks.show_guesses_of(shown)
        self.project.change({"description": page.done})  # last: from here on, what differs is what people did
        return Restored(self.project.address, self.task_ids, self.answer_ids, tuple(self._notes()))

    def _as_it_is(self, saved: Iterable[Plain]) -> Restored:
        """Which tasks and answers of a project that was restored before are which; nothing is added or set back."""
        held: dict[tuple[str, str], int] = {}
        for task in self.tasks.between(0):
            held.setdefault((task.item_id, str(task.data.get("round_number"))), task.id)
        tasks = [SavedTask.model_validate(record) for record in saved]
        found = {task.task: held.get((task.item_id, str(task.round_number))) for task in tasks}
        self.task_ids |= {old: new for old, new in found.items() if new is not None}
        answers = self._by_new_task([task for task in tasks if task.task in self.task_ids])
        if answers:
            self._match(answers, ways=(*ALIKE, _is_by_the_same))
        return Restored(self.project.address, self.task_ids, self.answer_ids, was_there=True)

    def _by_new_task(self, tasks: Iterable[SavedTask]) -> dict[int, list[SavedAnswer]]:
        """The answers to each task as it is now; several tasks may have become one."""
        answers: dict[int, list[SavedAnswer]] = defaultdict(list)
        for task in tasks:
            answers[self.task_ids[task.task]] += task.answers
        return answers

    def _still_there(self, held: HeldProject) -> bool:
        """Whether a project has some of the campaign's tasks.

        Raises:
            ProjectMismatch: it has tasks of others.
        """
        n_tasks = 0
        for task in self.tasks.between(0):
            n_tasks += 1
            if task.id in self._asks and task.asks(self._asks[task.id]):
                return True
        if n_tasks:
            raise ProjectMismatch(
                f"project {held.title!r} at {self.api.connection.url} has {n_tasks} tasks that are not those of the "
                "backup: nothing is restored into it. Rename it in Label Studio, or give the campaign another one: "
                'project = "..." under [label_studio] in the campaign file'
            )
        return False

    def _restore_tasks(self, tasks: Sequence[SavedTask]) -> None:
        """Tasks of one round, with their guess and their answers."""
        if not tasks:
            return
        number, after = tasks[0].round_number, max(self.task_ids.values(), default=0)
        wanted = {task.item_id: self._wanted(task) for task in tasks}

        def find() -> list[HeldTask]:
            held = self.tasks.between(after)
            return [task for task in held if task.item_id in wanted and task.data.get("round_number") == number]

        held = self.mender.make_whole(find, wanted, may_import=True, mended=Mended())
        ids = {task.item_id: task.id for task in held}
        self.task_ids |= {task.task: ids[task.item_id] for task in tasks}
        self._restore_answers(self._by_new_task(tasks))

    def _wanted(self, task: SavedTask) -> Wanted:
        address = self.address(task.item_id)
        self.n_without_image += address is None
        data = task.data | ({} if address is None else {IMAGE: address})
        return Wanted(self._asks[task.of], data, task.prediction, uri="")

    def _restore_answers(self, answers: Mapping[int, Sequence[SavedAnswer]]) -> None:
        """Look which answers there are, add those that are missing, and look again until none is.

        Raises:
            PushMismatch: the server does not keep what it is sent.
        """
        answers = {task_id: some for task_id, some in answers.items() if some}
        if not answers:
            return
        for attempt in self.api.connection.retrying():
            with attempt:
                for _ in range(PASSES):
                    missing = self._match(answers)
                    if not missing:
                        return
                    for task_id, answer in missing:
                        self.api.add_answer(task_id, self._body(answer))
        raise PushMismatch(
            f"project {self.project.title!r} at {self.api.connection.url} does not keep answers that it is sent, such "
            f"as one to {self.project.address}?task={missing[0][0]}; the same command tries again"
        )

    def _match(
        self, answers: Mapping[int, Sequence[SavedAnswer]], ways: Sequence["Alike"] | None = None
    ) -> list[tuple[int, SavedAnswer]]:
        """Note the new id of each answer that is there; return the others with their task.

        An annotation stands for one answer, also where a task and its double have equal ones.

        Args:
            ways: to know an answer again, the surest first.
        """
        missing = []
        for task in self.tasks.between(min(answers) - 1, max(answers)):
            given = {int(one["id"]): one for one in task.annotations if not is_copied(one)}
            there = {new: one for new, one in given.items() if new not in self.given}
            wanted = [one for one in answers.get(task.id, ()) if one.id not in self.answer_ids]
            for is_alike in ALIKE if ways is None else ways:
                for answer in list(wanted):
                    known_as = self.accounts.get(answer.annotator)
                    account = self._own_account if known_as is None else known_as
                    alike = [new for new in sorted(there) if is_alike(answer, account, there[new])]
                    if alike:
                        wanted.remove(answer)
                        self._note(answer, there.pop(alike[0]))
            missing += [(task.id, answer) for answer in wanted]
        return missing

    def _note(self, answer: SavedAnswer, found: Mapping[str, Any]) -> None:
        """Note which annotation stands for an answer; one that was changed since has the time of the change."""
        is_unchanged = content_of(found) == answer.content
        self.answer_ids[answer.id] = int(found["id"])
        self.given[int(found["id"])] = Given(
            annotator=answer.annotator,
            updated_at=answer.updated_at,
            noted_at=str(found["updated_at"]) if is_unchanged else "",
        )

    def _body(self, answer: SavedAnswer) -> dict[str, Any]:
        account = self.accounts.get(answer.annotator)
        if account is None:
            self.homeless.add(answer.annotator)
        body = {"result": answer.result, "was_cancelled": answer.was_cancelled, "lead_time": answer.lead_time}
        return body | ({} if account is None else {"completed_by": account})

    def _notes(self) -> Iterator[str]:
        if self.homeless:
            yield (
                f"answers of {', '.join(sorted(self.homeless))} are under the account of the token in Label Studio, as "
                "these people have none there; the campaign still knows whose answers they are"
            )
        if self.n_without_image:
            yield f"{self.n_without_image} restored tasks show no image until their files are back"


def _is_by_the_same(answer: SavedAnswer, account: int | None, annotation: Mapping[str, Any]) -> bool:
    """Whether it is under the account under which the answer was restored, as far as that is known."""
    person = annotation.get("completed_by")
    return account is None or account == (person.get("id") if isinstance(person, Mapping) else person)


def _is_content(answer: SavedAnswer, account: int | None, annotation: Mapping[str, Any]) -> bool:
    return answer.content == content_of(annotation)


def _is_all(answer: SavedAnswer, account: int | None, annotation: Mapping[str, Any]) -> bool:
    return _is_content(answer, account, annotation) and _is_by_the_same(answer, account, annotation)


Alike = Callable[[SavedAnswer, int | None, Mapping[str, Any]], bool]
ALIKE: tuple[Alike, ...] = (_is_all, _is_content)
"""How an answer that was restored is known again, the surest way first: accounts may come and go meanwhile."""


def read_page(saved: Iterator[Plain]) -> SavedPage:
    """The first record."""
    try:
        return SavedPage.model_validate(next(saved, {}))
    except ValidationError as exc:
        raise AnnotationToolError("the backup does not hold a project of Label Studio") from exc


def _of_one_round(saved: Iterable[Plain]) -> Iterator[list[SavedTask]]:
    """The records in their order, a part of them at a time."""
    part: list[SavedTask] = []
    for record in saved:
        task = SavedTask.model_validate(record)
        if part and (len(part) >= CHUNK or part[0].round_number != task.round_number):
            yield part
            part = []
        part.append(task)
    if part:
        yield part
