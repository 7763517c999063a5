"""Label Studio as the annotation tool: a campaign is a project, a question of a round is a task."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from connectors.annotation import (
    AnnotationTool,
    AnnotationToolError,
    AnnotationToolUnavailable,
    Asked,
    Pulled,
    PushMismatch,
    Question,
    Restored,
    Tended,
    check_questions,
)
from connectors.health import Finding
from connectors.images.reading import WHOLE, Reading
from connectors.label_studio.api import Api
from connectors.label_studio.changes import Changes
from connectors.label_studio.connection import Connection
from connectors.label_studio.health import Place, look
from connectors.label_studio.images import ShownImages
from connectors.label_studio.kinds.table import kind_of
from connectors.label_studio.mending import Mended, Mender, last_choice
from connectors.label_studio.ours import Sorted, progress_of, sort, without_doubles
from connectors.label_studio.pages import check_columns, guess_of_size, task_to_import
from connectors.label_studio.project import Project
from connectors.label_studio.reading import HeldProject, HeldTask, is_copied, read_answer
from connectors.label_studio.restoring import Restoring, read_page
from connectors.label_studio.saving import GivenAnswers, save_page, save_task
from connectors.label_studio.tasks import UNANSWERED, Tasks, Wanted
from pipeline.pool.reasons import PoolUnavailable
from pipeline.settings import Plain
from pipeline.types import ONE_CLASS, Answer, Ask, AskFor


class LabelStudio(AnnotationTool):
    """One Label Studio project that asks for regions of each image.

    Args:
        url: address of the server.
        token: personal access token; the older kind works where the server still takes it.
        project: title, 3 to 50 characters; the project is found or made under it.
        classes: the answers that a person can give, in the order of the page.
        images_root: local images lie in this folder, which the server sees under the same path; None if all
            images have an address of their own (http, s3, …), or are laid out in `shown_in`. What browsers do not show
            gets a rendition in a hidden folder in it.
        shown_in: a folder of ours, which the server sees under the same path, to lay out each image that is asked for
            in, as a link named by its content. Addresses then do not depend on where the images lie.
        remember_in: file that keeps which project is ours, once it is found or made; its title may then change, and
            others may have the same.
        asks: for what: one class for each image, or regions of a kind.
        instructions: what annotators read before they begin; may be HTML. None for our own text.
        say: called with one line on whatever takes long.
        reading: how images are read that need a rendition.
        renamed: what a class was called -> what it is called now.
        former_project: the title that the project had before, if it was another.
        former_classes: those of the project's page when this campaign saw it last; only such a page gets others.
        presign_minutes: browsers load images of an object store from there, by addresses that are signed for so long;
            None where Label Studio passes these images on.
    """

    def __init__(
        self,
        *,
        url: str,
        token: str,
        project: str,
        classes: Sequence[str],
        images_root: Path | None = None,
        shown_in: Path | None = None,
        remember_in: Path | None = None,
        asks: AskFor = ONE_CLASS,
        instructions: str | None = None,
        say: Callable[[str], None] | None = None,
        reading: Reading = WHOLE,
        renamed: Mapping[str, str] = MappingProxyType({}),
        former_project: str | None = None,
        former_classes: Sequence[str] = (),
        presign_minutes: int | None = None,
    ) -> None:
        connection = Connection(url.rstrip("/"), token, say=say or (lambda line: None))
        api = Api(connection)
        self._project = Project(
            api,
            title=project,
            classes=classes,
            instructions=kind_of(asks).instructions if instructions is None else instructions,
            remember_in=remember_in,
            renamed=renamed,
            former_title=former_project,
            former_classes=former_classes,
            asks=asks,
        )
        self._api = api
        self._images = ShownImages(
            api,
            self._project,
            images_root=images_root,
            shown_in=shown_in,
            reading=reading,
            presign_minutes=presign_minutes,
        )
        self._tasks = Tasks(api, self._project)
        self._mender = Mender(connection, self._tasks)
        self._given = GivenAnswers(remember_in and remember_in.with_name("restored_answers.json"))
        self._where = f"project {project!r} at {connection.url}"

    def prepare(self) -> str:
        """Find or make the project, set what the order of tasks depends on, and return its page.

        Raises:
            ProjectMismatch: if the project of that title asks for something else.
        """
        self._project.prepare()
        self._images.attach_storage()
        return self._project.address

    def push(self, questions: Sequence[Question], *, model_version: str, asked: Mapping[Ask, int]) -> dict[Ask, int]:
        """Make the round's tasks exist exactly once, most wanted first; see `AnnotationTool.push`.

        Tasks come first and guesses after them: a server on SQLite that meets its database locked tries an import
        again, without the guesses that came with it. A new round is served before what is left of older ones, which
        then comes in any order.
        """
        check_questions(questions, self._project.classes, self._project.asks)
        check_columns(questions)
        if not questions:
            return {}
        number = questions[0].ask.round_number
        wanted = self._wanted(Asked(number, questions, model_version, {}))
        addresses = {one.uri: one.address for one in wanted.values()}
        self._images.attach_storage(addresses.values())
        self._images.check(addresses)
        newest = max(asked.values(), default=0)

        def find() -> list[HeldTask]:
            tasks_of_round = [task for task in self._tasks.between(newest) if task.data.get("round_number") == number]
            unknown = [task for task in tasks_of_round if task.data.get("item_id") not in wanted]
            if unknown and not asked:
                raise PushMismatch(
                    f"{self._where} holds {len(unknown)} tasks of round {number} that "
                    f"this campaign did not select, such as {unknown[0].data.get('item_id')}: it belongs to another "
                    "campaign. Nothing was pushed; give this campaign another project title"
                )
            return [task for task in tasks_of_round if task.data.get("item_id") in wanted]

        held = self._mender.make_whole(find, wanted, may_import=True, mended=Mended())
        self._tasks.show_guesses_of(_version(number, model_version))
        task_ids = {task.item_id: task.id for task in sorted(held, key=last_choice, reverse=True)}
        return {question.ask: task_ids[question.item_id] for question in questions}

    def tend(self, rounds: Sequence[Asked], *, asked: Mapping[Ask, int]) -> Tended:
        """Mend what is out, and count; see `AnnotationTool.tend`."""
        notes: list[str] = []
        mended = Mended()
        project = self._project.held()
        self._project.set_back(project)
        held = self._out(rounds, asked)
        which = sort(held, asked, self._tasks)
        task_ids = without_doubles(held, which, asked, delete=self._tasks.delete, mended=mended)
        wanted: dict[int, Wanted] = {}
        for each in rounds:
            ids = {
                ask.item_id: task_id
                for ask, task_id in task_ids.items()
                if ask.round_number == each.round_number and task_id in held
            }
            open_items = {item_id for item_id, task_id in ids.items() if not held[task_id].is_answered}
            found = self._wanted(each, only=open_items, lost=notes)
            wanted |= {ids[item_id]: one for item_id, one in found.items()}
        if wanted:
            self._images.attach_storage(one.address for one in wanted.values())
            self._mender.mend_open(wanted, held, mended)
            newest = sorted(wanted.values(), key=lambda one: (-one.ask.round_number, one.prediction["score"]))
            if lost := self._images.check_one({one.uri: one.address for one in newest}):
                notes.append(
                    f"at least {len(lost)} of the open tasks show no image, such as: {lost[0]}. Put the objects back, "
                    "or delete these tasks"
                )
        self._show_guesses_of_last(rounds[-1], project, wanted)
        if str(mended):
            notes.append(str(mended))
        progress = progress_of(rounds[-1].round_number, held, which, task_ids)
        return Tended(progress, task_ids, self._standing(held, which, emails={}), mended=tuple(notes))

    def pull(self, asked: Mapping[Ask, int], *, since: str | None = None) -> Pulled:
        """Read what stands on the tasks of these asks; see `AnnotationTool.pull`."""
        if not asked:
            return Pulled(answers=[], task_ids={})
        emails = self._emails()
        changes = Changes(self._api, self._project, self._tasks, emails)
        held, is_whole = changes.read(since)
        mark = changes.mark(held)
        which = sort(held, asked, self._tasks)
        standing = self._standing(held, which, emails=emails, at_least="" if is_whole else "at least ")
        return replace(standing, mark=mark, is_whole=is_whole)

    def task_address(self, task_id: int) -> str:
        """Where a person looks at a task."""
        return f"{self._project.address}?task={task_id}"

    def check(self, rounds: Sequence[Asked]) -> Iterator[Finding]:
        """Look whether people can label; see `AnnotationTool.check`."""
        yield from look(Place(self._api, self._project, self._images, self._tasks), rounds)

    def save(self, asked: Mapping[Ask, int]) -> Iterator[Plain]:
        """Page, guesses and answers, read a page of tasks at a time; see `AnnotationTool.save`.

        Left out are answers that nobody gave, which a bulk action copied, and drafts.
        """
        yield save_page(self._project.held(), datetime.now(UTC))
        emails = self._emails()
        for tasks in self._tasks.parts():
            which = sort({task.id: task for task in tasks}, asked, self._tasks)
            for task in tasks:
                ask = which.ours.get(task.id)
                if ask is not None:
                    answers = [
                        (annotation, answer)
                        for annotation in task.annotations
                        if not is_copied(annotation) and (answer := self._read(annotation, task, ask, emails))
                    ]
                    yield save_task(task, ask, asked[ask], answers)

    def restore(self, saved: Iterable[Plain], *, asked: Mapping[Ask, int], uris: Mapping[str, str]) -> Restored | None:
        """Make the project again; see `AnnotationTool.restore`. Each answer is a request."""
        records = iter(saved)
        page = read_page(records)
        addresses: list[str] = []

        def address(item_id: str) -> str | None:
            try:
                found = self._images.address(uris[item_id], item_id)
            except AnnotationToolUnavailable:
                raise
            except (AnnotationToolError, KeyError):
                return None
            addresses.append(found)
            return found

        accounts = {email: user_id for user_id, email in self._emails().items()}
        restoring = Restoring(
            self._api, self._project, self._tasks, self._mender, asked=asked, accounts=accounts, address=address
        )
        restored = restoring.restore(page, records, self._images.attach_storage)
        if restored is None:
            return None
        self._given.keep(restoring.given)
        try:
            self._images.attach_storage(addresses)
        except AnnotationToolUnavailable:
            raise
        except (AnnotationToolError, PoolUnavailable) as exc:  # answers are back all the same
            return replace(restored, notes=(*restored.notes, str(exc)))
        return restored

    def _read(self, annotation: Any, task: HeldTask, ask: Ask, emails: Mapping[int, str]) -> Answer | None:
        """What an annotation of a task of ours says, with the person who gave it first and the time then."""
        answer = read_answer(
            annotation,
            ask=ask,
            task_id=task.id,
            classes=self._project.classes,
            emails=emails,
            renamed=self._project.renamed,
            asks=self._project.asks,
            size=task.size,
        )
        return answer and self._given.present(answer)

    def _standing(
        self, held: Mapping[int, HeldTask], which: Sorted, *, emails: Mapping[int, str], at_least: str = ""
    ) -> Pulled:
        """What stands on tasks of ours."""
        answers: list[Answer] = []
        copied: list[int] = []
        notes: list[str] = []
        for task_id in sorted(which.ours):
            for annotation in held[task_id].annotations:
                if is_copied(annotation):
                    copied.append(task_id)
                    continue
                answer = self._read(annotation, held[task_id], which.ours[task_id], emails)
                if answer is None:
                    notes.append(f"an answer without an id cannot be used: {self.task_address(task_id)}")
                else:
                    answers.append(answer)
        if which.foreign:
            n_answered = sum(task.is_answered for task in which.foreign)
            notes.append(
                f"{at_least}{len(which.foreign)} tasks in project {self._project.title!r} are not this campaign's "
                f"({n_answered} of them answered), such as {self.task_address(which.foreign[0].id)}: they are neither "
                "trained on nor paid for"
            )
        return Pulled(
            answers=answers,
            task_ids={ask: task_id for task_id, ask in which.own.items()},
            doubles=which.doubles,
            copied=copied,
            notes=tuple(notes),
        )

    def _emails(self) -> dict[int, str]:
        """Address by user id; empty where the token may not list users."""
        try:
            return self._api.connection.repeatable(self._api.emails)
        except AnnotationToolUnavailable:
            raise
        except AnnotationToolError:
            return {}

    def _wanted(
        self, round_: Asked, *, only: Collection[str] | None = None, lost: list[str] | None = None
    ) -> dict[str, Wanted]:
        """What the tasks of a round must be like, by item id, most wanted first.

        Args:
            only: these items.
            lost: where an image cannot be shown any more, gets a line that says so; without it that is an error.
        """
        version = _version(round_.round_number, round_.model_version)
        n_ranks = 1 + max((question.rank for question in round_.questions), default=0)
        wanted: dict[str, Wanted] = {}
        problems = []
        for question in sorted(round_.questions, key=lambda question: question.rank):
            item_id = question.item_id
            if only is not None and item_id not in only:
                continue
            try:
                image = self._images.address(question.uri, item_id)
                size = self._images.size(image) if kind_of(self._project.asks).has_parts else None
            except AnnotationToolUnavailable:
                raise
            except AnnotationToolError as exc:
                if lost is None:
                    raise
                problems.append(str(exc))
                continue
            task = task_to_import(
                guess_of_size(question, size),
                image=image,
                version=version,
                n_ranks=n_ranks,
                names=self._project.names,
                asks=self._project.asks,
                size=size,
            )
            wanted[item_id] = Wanted(question.ask, task["data"], task["predictions"][0], question.uri)
        if problems and lost is not None:
            lost.append(
                f"{len(problems)} open tasks of round {round_.round_number} show no image, such as: {problems[0]}. "
                "Put the files back, or delete these tasks"
            )
        return wanted

    def _show_guesses_of_last(self, last: Asked, project: HeldProject, wanted: Mapping[int, Wanted]) -> None:
        version = _version(last.round_number, last.model_version)
        is_last = any(one.ask.round_number == last.round_number for one in wanted.values())
        if is_last and project.model_version != version:
            self._tasks.show_guesses_of(version)

    def _out(self, rounds: Sequence[Asked], asked: Mapping[Ask, int]) -> dict[int, HeldTask]:
        """What nobody answered of all rounds but the last one, and all tasks from its first one on."""
        first = min(rounds[-1].task_ids.values(), default=1 + max(asked.values(), default=0))
        before = self._tasks.between(0, first - 1, only=UNANSWERED) if len(rounds) > 1 else ()
        return {task.id: task for task in (*before, *self._tasks.between(first - 1))}


def _version(number: int, model_version: str) -> str:
    """The model version under which a round's guesses are kept: each round has one of its own."""
    return f"round {number}: {model_version}"
