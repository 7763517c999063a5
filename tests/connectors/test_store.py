import errno
import os
import pickle
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pandas as pd
import pytest

from connectors.store import (
    Damaged,
    StoreError,
    check_format,
    explain,
    read_json,
    write_atomic,
    write_folder,
    write_json,
    write_table,
)


def test_damage_is_the_same_in_another_process():
    damage = Damaged(Path("a.json"), "no JSON", "Delete it")
    again = pickle.loads(pickle.dumps(damage))
    assert (type(again), again.path, again.what, str(again)) == (Damaged, damage.path, "no JSON", str(damage))


def test_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    path = write_json(tmp_path / "a.json", {"a": 1})

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("the network card is gone")

    with pytest.raises(StoreError, match=r"a\.json: the network card is gone"):
        write_atomic(path, fail)
    assert read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_process_killed_while_writing_leaves_no_artefact(tmp_path):
    code = """
import sys, time
from pathlib import Path
from connectors.store import write_atomic
def slowly(path):
    path.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
write_atomic(Path(sys.argv[1]) / "rounds" / "0000" / "batch.parquet", slowly)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / "rounds" / "0000" / "batch.parquet").exists()


def test_not_a_number_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"accuracy": float("nan")})


def test_table_comes_back_as_it_was(tmp_path):
    table = pd.DataFrame({"item_id": ["a", "b"], "score": [0.5, None]})
    pd.testing.assert_frame_equal(pd.read_parquet(write_table(tmp_path / "t.parquet", table)), table)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_who_may_read_a_file_is_what_the_umask_says(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        path = write_json(tmp_path / "new" / "a.json", {})
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode


WRITERS = """
import resource, sys
from pathlib import Path
import numpy as np, pandas as pd, torch
from PIL import Image
from connectors.store import StoreError, write_atomic, write_table, write_text
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
numbers = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
table = pd.DataFrame({"number": np.random.default_rng(0).random(50_000)})
writers = {
    "text": lambda path: write_text(path, "a" * 200_000),
    "table": lambda path: write_table(path, table),
    "csv": lambda path: write_atomic(path, table.to_csv),
    "weights": lambda path: write_atomic(path, lambda there: torch.save({"a": torch.zeros(100_000)}, there)),
    "picture": lambda path: write_atomic(path, lambda there: Image.fromarray(numbers).save(there, format="PNG")),
}
for name, write in writers.items():
    try:
        write(Path(sys.argv[1]) / name)
    except StoreError as exc:
        print(exc)
"""


def test_writers_of_all_kinds_say_that_the_disk_takes_no_more(tmp_path):
    done = subprocess.run([sys.executable, "-c", WRITERS, tmp_path], capture_output=True, text=True, check=True)
    told = "the file would be larger than this process or this disk allows: see `ulimit -f`"
    assert done.stdout.splitlines() == [
        f"{tmp_path / name}: {told}" for name in ("text", "table", "csv", "weights", "picture")
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no program `mount` on this machine")
def test_full_and_read_only_disks_are_named_and_nothing_is_lost(small_disk):
    old = write_json(small_disk / "a.json", {"a": 1})

    def fail_in_words_of_its_own(temporary):
        with suppress(OSError):
            temporary.write_bytes(bytes(200_000))
        raise RuntimeError("basic_ios::clear: iostream error")

    with pytest.raises(StoreError, match=rf"^{old}: the disk is full: free some space there"):
        write_atomic(old, fail_in_words_of_its_own)
    assert [path.name for path in small_disk.iterdir()] == ["a.json"]
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StoreError, match="the disk can only be read, not written to: name a folder on another one"):
        write_json(old, {"a": 2})
    assert read_json(old) == {"a": 1}


def test_error_that_is_not_the_disks_stays_what_it_was(tmp_path):
    def fail(temporary):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        write_atomic(tmp_path / "a", fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "quota"),
        (errno.EROFS, "only be read"),
        (errno.EACCES, "no permission"),
        (errno.EPERM, "does not permit"),
        (errno.ENOENT, "is not there"),
        (errno.ENOTDIR, "must be a folder"),
        (errno.EISDIR, "must be a file"),
        (errno.ENAMETOOLONG, "too long"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EIO, "fails to read or write"),
        (errno.ECONNRESET, "Connection reset"),
    ],
)
def test_error_of_the_system_is_one_line_with_path_and_reason(tmp_path, number, told):
    exc = OSError(number, os.strerror(number), str(tmp_path / "a"))
    assert explain(exc).startswith(f"{tmp_path / 'a'}: ")
    assert told in explain(exc)
    assert explain(OSError(number, os.strerror(number)), tmp_path).startswith(f"{tmp_path}: ")
    assert "\n" not in explain(exc)


def test_path_that_is_in_the_way_is_told(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(StoreError, match=r"a part of the path is a file|a file is there, and must be a folder"):
        write_json(tmp_path / "file" / "a.json", {})
    with pytest.raises(StoreError, match="a folder is there, and must be a file"):
        write_json(tmp_path / "folder", {})


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "\x00", '{"a": 1'])
def test_damaged_json_is_told_by_name(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(StoreError, match=r"a\.json is damaged: "):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b"\xff")
    with pytest.raises(StoreError, match=r"a\.json is damaged: "):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("held", "found"),
    [
        ({"mine": 1}, "no format"),
        ([], "no format"),
        (None, "no format"),
        ("text", "no format"),
        ({"name": "pets", "budget": 5}, "no format"),
        ({"format": 2, "name": "pets"}, "the format 2"),
        ({"format": "1"}, "the format '1'"),
    ],
)
def test_another_format_is_refused_with_what_was_found_and_what_to_do(tmp_path, held, found):
    told = (
        rf"campaign\.json has {found}, and this version of labelcycle reads the format 1: begin a new folder, or use "
        "the version that made this one$"
    )
    with pytest.raises(StoreError, match=told):
        check_format(tmp_path / "campaign.json", held)


def test_a_folder_is_seen_whole_and_never_takes_the_place_of_another(tmp_path):
    seen: list[bool] = []

    def write(folder: Path) -> None:
        (folder / "a").write_text("a")
        seen.append((tmp_path / "out").exists())

    write_folder(tmp_path / "out", write)
    assert seen == [False]
    (tmp_path / "file").touch()
    for name in ("out", "file"):
        with pytest.raises(StoreError, match=name):
            write_folder(tmp_path / name, write)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "out"], "nothing is left over"
