"""Each file of a campaign and its rounds, cut off, emptied, zeroed or gone: told with the mend, or mended."""

import copy
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from connectors.store import StoreError
from flows import round as loop_module
from flows.artefacts import (
    ANSWERS,
    BATCH,
    CAMPAIGN,
    CAMPAIGN_ARTEFACTS,
    CAMPAIGN_ID,
    KNOWN_NETWORK,
    POOL,
    POOL_NOTES,
    PUSHED,
    PUSHING,
    ROUND,
    ROUND_ARTEFACTS,
    TRAINING,
)
from flows.damage import LEARNT, NEEDED, REWRITTEN, UNREAD, check_files, is_whole
from flows.reports.status import campaign_status
from tests.flows.loop import Loop

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut in half": lambda content: content[: len(content) // 2],
    "without its last bytes": lambda content: content[:-3],
    "empty": lambda _: b"",
    "zeros": lambda content: bytes(len(content)),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory, loop_images) -> Loop:
    """Round 0 and round 1 are closed, and round 1 has trained; round 2 is out, and half of it is answered."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("damage")
        patch.setenv("LABELCYCLE_HOME", str(folder / "home"))
        loop = Loop(folder / "loop", loop_images, budget=40)
        for _ in range(2):
            loop.run()
            loop.label()
        loop.run()
        loop.label(2)
        loop.run()
        return loop


@pytest.fixture(scope="module")
def unseen(begun) -> Loop:
    """The same campaign, whose round 3 has everything but what people have seen of it."""
    loop = copy_of(begun, begun.file.parent.with_name("unseen"))
    loop.label()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flows.advance.prepare_page", stop)
        with pytest.raises(InterruptedError):
            loop.run()
    return loop


def stop(*_arguments):
    raise InterruptedError("a person pressed Ctrl-C")


def copy_of(loop: Loop, folder: Path) -> Loop:
    shutil.copytree(loop.file.parent, folder, symlinks=True)
    other = copy.copy(loop)
    other.file = folder / loop.file.name
    other.folder = type(loop.folder)(folder / "campaign")
    other.tool, other.tracker = copy.deepcopy((loop.tool, loop.tracker))
    return other


@pytest.fixture
def again(begun, tmp_path) -> Loop:
    return copy_of(begun, tmp_path / "again")


@pytest.fixture(autouse=True)
def _index_only_once(monkeypatch):
    index = loop_module.index_pool
    monkeypatch.setattr(
        loop_module, "index_pool", lambda at, known, **how: index(at, known, **how) if known is None else known
    )


def files_of(loop: Loop) -> list[Path]:
    """All files but those of locks."""
    return sorted(p for p in loop.folder.path.rglob("*") if p.is_file() and not p.name.startswith("campaign.lock"))


def status(loop: Loop) -> None:
    """What `labelcycle status` does."""
    loop.folder.check_ours()
    loop.folder.check_files()
    campaign_status(loop.folder, loop.file.parent / "home")


@contextmanager
def told_of(path: Path, told: str = "") -> Iterator[None]:
    with pytest.raises(StoreError) as caught:
        yield
    message = str(caught.value)
    assert message.startswith(str(path))
    assert told in message
    assert message.count("\n") == 0
    assert any(mend in message for mend in ("Remove ", "from a backup")), message


@pytest.mark.parametrize("how", DAMAGES)
def test_each_damaged_file_is_named_with_its_mend_by_status_and_by_run(begun, again, how):
    files = files_of(again)
    names = {path.relative_to(again.folder.path / "rounds").parts[1] for path in files if "rounds" in path.parts}
    assert names >= {one.name for one in ROUND_ARTEFACTS.values()} - {"withdrawn", "seconds"}
    for path in files:
        whole = path.read_bytes()
        path.write_bytes(DAMAGES[how](whole))
        if is_spare(path):
            assert again.folder.check_files() == [f"{path} is damaged, and nothing needs it: the next run removes it"]
            if how == "cut in half":
                assert "2 of 4 labelled" in again.run()
                assert again.folder.check_files() == []
        elif path.name != PUSHING.name:
            with told_of(path):
                status(again)
            if how == "cut in half":
                with told_of(path):
                    again.run()
        path.write_bytes(whole)
    assert again.asked() == begun.asked()
    status(again)


def is_spare(path: Path) -> bool:
    parts = path.parts
    return parts[parts.index("rounds") + 2] in UNREAD if "rounds" in parts else path.name in REWRITTEN


def test_closed_round_is_opened_again_only_where_a_file_of_it_has_changed(again, monkeypatch):
    again.run()  # the copies have other times
    opened: list[Path] = []
    monkeypatch.setattr("flows.damage.is_whole", lambda path: opened.append(path) or is_whole(path))
    assert again.folder.check_files() == []
    assert {path.relative_to(again.folder.path).parts[:2] for path in opened if "rounds" in path.parts} == {
        ("rounds", "0002")
    }
    changed = again.folder.round(0).path_of(ANSWERS)
    changed.touch()
    again.folder.check_files()
    assert changed in opened
    changed.unlink()
    assert "annotations.parquet is missing" in again.folder.check_files()[0]


def test_files_and_folders_of_others_are_left_alone(again):
    (again.folder.path / "notes.json").write_text('{"mine": 1}')
    (again.folder.path / "rounds" / "\u00b2").mkdir()
    (again.folder.path / "rounds" / "0009").touch()
    (again.folder.round(1).path / "mine.csv").write_text("a,b")
    assert again.folder.check_files() == []


def test_a_round_that_nobody_has_seen_begins_anew_where_a_table_is_damaged_inside(unseen, tmp_path):
    loop = copy_of(unseen, tmp_path / "inside")
    path = loop.folder.round(3).path / "out_of_fold.parquet"
    content = path.read_bytes()
    path.write_bytes(content[:4] + bytes(len(content) - 8) + content[-4:])
    for later in ("review.json", "summary.json"):
        (loop.folder.round(3).path / later).unlink(missing_ok=True)
    assert "round 3 asks for" in loop.run()
    assert loop.folder.round(3).is_out


def test_tables_that_are_damaged_inside_are_named_when_they_are_read(again):
    for artefact in (PUSHED, TRAINING):
        path = again.folder.round(1).path_of(artefact)
        path.write_text('{\n "a": 1\n}\n')
        with told_of(path, "is damaged"):
            again.folder.round(1).read(artefact)
    for artefact in (BATCH, ANSWERS):
        path = again.folder.round(1).path_of(artefact)
        content = path.read_bytes()
        path.write_bytes(content[:4] + bytes(len(content) - 8) + content[-4:])
        with told_of(path, "is damaged"):
            again.folder.round(1).read(artefact)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_each_file_that_decisions_go_by_is_missed(again, number):
    folder = again.folder.round(number)
    there = {path.name for path in folder.path.iterdir()}
    needed = NEEDED | (LEARNT if number else set()) | ({ROUND.name, "withdrawn.json"} if number < 2 else set())
    for name in sorted(needed & there - {PUSHED.name if number == 2 else ""}):
        if (number, name) == (1, ROUND.name):
            continue
        path = folder.path / name
        content = path.read_bytes()
        path.unlink()
        with told_of(path, "is missing"):
            status(again)
        with told_of(path, "is missing"):
            again.run()
        path.write_bytes(content)
    status(again)


def test_files_of_the_campaign_that_are_gone_are_missed_or_written_anew(again):
    for artefact in CAMPAIGN_ARTEFACTS:
        path = again.folder.path_of(artefact)
        if not path.exists():
            continue
        content = path.read_bytes()
        path.unlink()
        if artefact.name in {*REWRITTEN, CAMPAIGN_ID.name, KNOWN_NETWORK.name}:
            assert "2 of 4 labelled" in again.run()
        elif artefact is CAMPAIGN:
            with pytest.raises(StoreError, match=r"bring campaign\.json back from a backup"):
                again.run()
        else:
            with told_of(path, "is missing"):
                again.run()
        path.write_bytes(content)


def test_a_round_that_is_gone_is_missed(again):
    shutil.rmtree(again.folder.round(1).path)
    with told_of(again.folder.round(1).path, "is missing"):
        again.run()


def test_a_round_that_nobody_has_seen_begins_anew_and_says_why(unseen, tmp_path):
    folder, wanted = unseen.folder.round(3), unseen.batch(3)
    names = {path.name for path in folder.path.rglob("*") if path.is_file()}
    assert names >= LEARNT | NEEDED - {PUSHED.name} | {"member-0.pt"}
    kept = shutil.copytree(unseen.folder.path, tmp_path / "kept")
    outside = unseen.tool, unseen.tracker
    for name in ("config.json", "labelled.parquet", "member-0.pt", "summary.json", "seconds.json"):
        unseen.tool, unseen.tracker = copy.deepcopy(outside)
        [path] = folder.path.rglob(name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(StoreError, match="Nobody has seen the round: the next run begins it anew"):
            status(unseen)
        outcome = unseen.run_as()
        assert any(note.startswith(f"{path} was damaged") and "began anew" in note for note in outcome.notes), name
        assert "asks for 4 labels" in outcome.message
        assert unseen.batch(3) == wanted
        shutil.rmtree(unseen.folder.path)
        shutil.copytree(kept, unseen.folder.path)


def test_answers_that_are_lost_with_their_file_are_read_again(again, begun):
    path = again.folder.round(0).path_of(ANSWERS)
    lost = {one.item_id for one in again.folder.round(0).read(ANSWERS)}
    path.write_bytes(b"")
    with told_of(path, "or remove it, and the answers are read from the annotators' project again"):
        again.run()
    path.unlink()
    outcome = again.run_as()
    assert any("annotations.parquet is missing: the answers of round 0 are read" in note for note in outcome.notes)
    again.label()
    assert "round 3 asks for" in again.run()
    assert {one.item_id for one in again.folder.round(2).read(ANSWERS)} == lost | set(again.batch(2))
    assert again.known(3).keys() >= lost


def test_the_tasks_of_an_open_round_and_the_end_of_a_round_are_found_again(again):
    before = again.tasks(2)
    path = again.folder.round(2).path_of(PUSHED)
    path.write_bytes(b"{")
    with told_of(path, "Remove it: the next run finds the tasks"):
        again.run()
    path.unlink()
    again.run()
    assert again.tasks(2) == before
    assert len(again.tool.tasks) == 15 + 4 + 4


def test_what_nothing_needs_any_more_stops_nothing(again):
    for path in filter(is_spare, files_of(again)):
        if "rounds" in path.parts:
            path.write_bytes(b"")
    again.label()
    assert "round 3 asks for" in again.run()
    status(again)


def test_kinds_that_are_not_ours_are_left_alone(tmp_path):
    (tmp_path / "notes.txt").touch()
    assert is_whole(tmp_path / "notes.txt")
    assert check_files(tmp_path / "absent") == []


def test_a_campaign_below_a_folder_called_rounds_is_one_like_any_other(begun, tmp_path):
    (tmp_path / "rounds" / "0007").mkdir(parents=True)
    loop = copy_of(begun, tmp_path / "rounds" / "project")
    pool = loop.folder.path_of(POOL)
    whole = pool.read_bytes()
    pool.write_bytes(whole[:-3])
    with told_of(pool, "Bring it back from a backup"):
        loop.folder.check_files()
    pool.write_bytes(whole[:4] + bytes(len(whole) - 8) + whole[-4:])
    with told_of(pool, "Bring it back from a backup"):
        loop.folder.read(POOL)
    pool.write_bytes(whole)
    loop.folder.path_of(POOL_NOTES).write_bytes(b"")
    assert "2 of 4 labelled" in loop.run()
