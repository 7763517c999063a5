"""A campaign as one file, and from it again: its folder, its campaign file, what annotators hold of it."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from glob import escape
from pathlib import Path, PurePosixPath

import filelock

from connectors.annotation import AnnotationTool, Restored
from connectors.archive import Archive, check_room, open_archive, write_archive
from connectors.objects.addresses import is_address
from connectors.store import explained, write_atomic, write_folder
from connectors.tracking import Tracker, TrackerError
from deploy.private import PRIVATE_FILE, PRIVATE_FOLDER
from flows.artefacts import ANSWERS, POOL, PUSHED, SUSPICIOUS
from flows.campaign import OpenCampaign, begun
from flows.changes import claim
from flows.config import ConfigError, images_root, load_settings
from flows.folder import Campaign, RoundFolder
from flows.home import home
from flows.outputs import check_absent
from flows.progress import progress_bar
from pipeline.settings import Plain

FILE, FOLDER, TASKS = "campaign.toml", "folder", "tasks.jsonl"
"""Names in a backup: the campaign file, the campaign's folder, a record of the annotation tool in each line."""
NOT_SAVED = ("campaign.lock*", "serve.*", ".*")
"""Files of a campaign's folder that are of this machine and this moment alone."""


def write_backup(file: Path, out: Path, *, tool: AnnotationTool | None = None) -> list[str]:
    """Write a campaign as one file.

    Args:
        tool: as of `OpenCampaign`.

    Returns:
        Lines on what was written.

    Raises:
        CampaignBusy: another process works on the campaign.
        ConfigError: there is no campaign yet, or `out` exists.
    """
    check_absent(out)
    settings = load_settings(file)
    work = OpenCampaign(settings, begun(settings), tool=tool)
    with work.folder.lock():
        work.folder.check_files(anew=True)
        facts = {"campaign": settings.name, "file": file.name, "pool": str(images_root(settings.pool) or settings.pool)}
        n_bytes = write_archive(out, _members(file, work), facts)
        open_round = work.folder.current_round()
    told = [
        f"wrote {out}: the folder of the campaign, its file, and {len(work.ledger.asked_tasks)} tasks with all their "
        f"answers, {n_bytes / 1e6:.1f} MB",
        "not in it: the images, kept features, drafts of answers, and the runs of MLflow",
    ]
    if open_round.is_out and not open_round.has(PUSHED):
        told.append(
            f"round {open_round.number} is being put out, and answers to it are not in the backup: run `labelcycle run "
            f"{file}`, and make another backup"
        )
    return told


def _members(file: Path, work: OpenCampaign) -> Iterator[tuple[str, Path | Iterable[bytes]]]:
    """What a backup holds, by name."""
    yield FILE, file
    for path in sorted(work.folder.path.rglob("*")):
        place = path.relative_to(work.folder.path)
        is_passing = any(PurePosixPath(part).match(each) for part in place.parts for each in NOT_SAVED)
        if path.is_file() and not is_passing:
            yield f"{FOLDER}/{place.as_posix()}", path
    asked = work.ledger.asked_tasks
    if asked:
        yield TASKS, _lines(work.tool.save(asked), len(asked))


def _lines(records: Iterable[Plain], n: int) -> Iterator[bytes]:
    with progress_bar("reading the answers", unit="tasks") as on_progress:
        for done, record in enumerate(records):
            yield json.dumps(record).encode() + b"\n"
            on_progress(min(done, n), n)


def restore_backup(
    backup: Path, file: Path | None = None, *, tool: AnnotationTool | None = None, tracker: Tracker | None = None
) -> list[str]:
    """Make a campaign again; nothing is written over, and the whole backup is read and checked first.

    A campaign file that is there counts, with all that it says of places: it may be edited first. The folder appears
    when all is done; broken off before, the same call goes on.

    Args:
        file: the campaign file; by default its name in the backup, in the working folder.
        tool, tracker: as of `OpenCampaign`.

    Returns:
        Lines on what was made, and on what is missing.

    Raises:
        StoreError: the backup is damaged, or is none.
        ConfigError: something is in the way, or another process restores a backup.
        ProjectMismatch: the annotators' project holds what is not of the backup.
    """
    with _alone(), open_archive(backup) as archive:
        name = archive.manifest.facts.get("campaign")
        file = file or Path(PurePosixPath(archive.manifest.facts.get("file", FILE)).name)
        told = _bring_file(archive, file)
        settings = load_settings(file)
        if settings.name != name:
            raise ConfigError(
                f"{file} is of the campaign {settings.name!r}, and {backup} of {name!r}: name another file"
            )
        folder = settings.folder
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(
                f"{folder} is there already, and nothing is written over: move it away, or name another place with "
                f"folder in {file}"
            )
        check_room(archive, next(place for place in folder.parents if place.exists()))

        def write(temporary: Path) -> None:
            for each in archive.names(FOLDER):
                archive.extract(each, temporary / each.removeprefix(f"{FOLDER}/"))
            work = OpenCampaign(settings, Campaign(temporary), tool=tool, tracker=tracker)
            work.folder.check_ours()
            work.folder.check_files()
            claim(work.folder, settings, file, answers=lambda: work.ledger.answers)
            told.extend(_bring_tasks(archive, work))
            told.extend(_discard_rounds(work))

        _clear_leftovers(folder)
        write_folder(folder, write, mode=PRIVATE_FOLDER)
    number = Campaign(folder).current_round().number
    told.append(
        f"MLflow's runs were not in the backup: if the experiment {name!r} ({settings.mlflow.uri}) is gone, the rounds "
        f"from {number} on are logged anew, and the curves and models of earlier ones are lost there; the numbers and "
        "networks of all rounds are in the folder"
    )
    return [f"restored {folder} from {backup}, made {archive.manifest.made_at}", *told, f"go on: labelcycle run {file}"]


@contextmanager
def _alone() -> Iterator[None]:
    """Keep other restores out: two of one folder would each delete what the other has half made."""
    home().mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    try:
        with filelock.FileLock(home() / "restoring.lock", blocking=False):
            yield
    except filelock.Timeout:
        raise ConfigError(f"another `labelcycle restore` works in {home()}: wait until it has ended") from None


def _bring_file(archive: Archive, file: Path) -> list[str]:
    """Write the campaign file unless there is one."""
    if not file.exists():

        def write(temporary: Path) -> None:
            temporary.chmod(PRIVATE_FILE)  # it may hold a command
            temporary.write_bytes(archive.read(FILE))

        write_atomic(file, write)
        return [f"wrote {file}"]
    is_same = file.read_bytes() == archive.read(FILE)
    return [] if is_same else [f"{file} was there, and differs from the one in the backup: it counts"]


def _bring_tasks(archive: Archive, work: OpenCampaign) -> Iterator[str]:
    """Make the annotators' tasks again, and number those of the folder as they are now; lines on what came of it."""
    uris, lost = _images(work, archive.manifest.facts.get("pool", ""))
    if lost:
        n_all = len(work.pool.usable)
        yield (
            f"{len(lost)} of {n_all} images are not where the campaign knows them, such as {lost[0]}: bring them back, "
            "or set pool in the campaign file; a run finds them by their content"
        )
    asked = work.ledger.asked_tasks
    if not asked:
        return
    with progress_bar("restoring the tasks", unit="tasks") as on_progress:

        def records() -> Iterator[Plain]:
            for done, record in enumerate(archive.records(TASKS)):
                on_progress(min(done, len(asked)), len(asked))
                yield record

        restored = work.tool.restore(records(), asked=asked, uris=uris)
    if restored is not None:
        renumber(work.folder, restored)
    if restored is None or restored.was_there:
        yield "the project of the annotators is still there: it was left as it is, and is used"
        return
    n_tasks, n_answers = len(restored.task_ids), len(restored.answer_ids)
    yield f"made {n_tasks} tasks with {n_answers} answers again (see {restored.address})"
    yield from restored.notes


def _discard_rounds(work: OpenCampaign) -> Iterator[str]:
    """Put away what MLflow has of rounds that come anew, and will have other numbers; lines on what came of it."""
    number, name = work.folder.current_round().number, work.settings.name
    try:
        n_gone = work.tracker.discard_rounds(number)
    except (TrackerError, ConfigError) as exc:
        yield (
            f"MLflow was not asked for runs of rounds from {number} on, which come anew: {exc}. If a run fails as "
            f"MLflow holds other values, delete these rounds' runs of the experiment {name!r} there"
        )
        return
    if n_gone:
        yield (
            f"deleted the runs of {n_gone} rounds in MLflow, from round {number} on: they come anew (MLflow keeps them "
            f"among the deleted runs of the experiment {name!r})"
        )


def _clear_leftovers(folder: Path) -> None:
    """Delete what restores of the folder left that were killed: it holds all answers."""
    for part in folder.parent.glob(f".{escape(folder.name)}.{'[0-9a-f]' * 32}.part"):
        if part.is_dir():
            with explained(part):
                shutil.rmtree(part)


def _images(work: OpenCampaign, root_before: str) -> tuple[dict[str, str], list[str]]:
    """Where each image is now, by item; and those that are not there, or are other files."""
    if not work.folder.has(POOL):
        return {}, []
    root = images_root(work.settings.pool)
    uris, lost = {}, []
    usable = work.pool.usable
    for item_id, uri, size in zip(usable["item_id"], usable["uri"], usable["size_bytes"], strict=True):
        if is_address(uri):
            uris[item_id] = uri
            continue
        path = Path(uri)
        if root is not None and path.is_relative_to(root_before):
            path = root / path.relative_to(root_before)
        if path.is_file() and path.stat().st_size == size:
            uris[item_id] = str(path)
        else:
            lost.append(uri)
    return uris, lost


def renumber(campaign: Campaign, restored: Restored) -> None:
    """Give the tasks and answers that the folder names their new numbers.

    What did not come back, as it was deleted before, gets its old number below zero, which is nobody's.
    """
    tasks, answers = restored.task_ids, restored.answer_ids
    addresses: dict[str, str] = {}
    for folder in campaign.rounds():
        pushed = folder.get(PUSHED)
        if pushed is not None:
            moved = {item_id: _new(task_id, tasks) for item_id, task_id in pushed.tasks.items()}
            addresses |= {
                f"{pushed.address}?task={task_id}": f"{restored.address}?task={moved[item_id]}"
                for item_id, task_id in pushed.tasks.items()
            }
            folder.write(PUSHED, replace(pushed, address=restored.address, tasks=moved))
        given = folder.get(ANSWERS)
        if given is not None:
            folder.write(
                ANSWERS,
                [
                    replace(one, task_id=_new(one.task_id, tasks), answer_id=_new(one.answer_id, answers))
                    for one in given
                ],
            )
        _move_addresses(folder, addresses)


def _move_addresses(folder: RoundFolder, addresses: Mapping[str, str]) -> None:
    suspicious = folder.get(SUSPICIOUS)
    if suspicious is not None and len(suspicious):
        moved = suspicious["task"].map(lambda one: addresses.get(one, one)).astype(suspicious["task"].dtype)
        folder.write(SUSPICIOUS, suspicious.assign(task=moved))


def _new(number: int, numbers: Mapping[int, int]) -> int:
    return numbers.get(number, -abs(number))
