"""A run reads its tables once, however many rounds there are and whoever asks."""

from collections import Counter

import pytest

from connectors.score_files import ItemList
from flows.artefacts import ANSWERS, POOL
from flows.config import load_settings
from flows.folder import Folder
from flows.ledger import read_ledger
from flows.reports.status import campaign_status, rounds_table


@pytest.fixture
def reads(monkeypatch) -> Counter[str]:
    """How often each table was read, by its folder and name."""
    counts: Counter[str] = Counter()
    read = Folder.read

    def counted(folder, artefact):
        if artefact.name.endswith(".parquet"):
            counts[f"{folder.path.name}/{artefact.name}"] += 1
        return read(folder, artefact)

    monkeypatch.setattr(Folder, "read", counted)
    return counts


@pytest.fixture
def loop(make_loop):
    """A campaign of two closed rounds whose third waits for labels."""
    loop = make_loop(budget=40)
    for _ in range(2):
        loop.run()
        loop.label()
    loop.run()
    return loop


def of_answers(reads: Counter[str]) -> dict[str, int]:
    return {name: count for name, count in reads.items() if name.endswith(ANSWERS.name)}


def test_a_run_that_finds_labels_missing_reads_pool_and_ledger_once(loop, reads):
    assert "awaits labels" in loop.run()
    assert reads[f"campaign/{POOL.name}"] == 1
    assert of_answers(reads) == {f"{n:04d}/{ANSWERS.name}": 1 for n in range(2)}


def test_a_round_reads_pool_and_ledger_once(loop, reads):
    loop.label()
    assert "round 3 asks for" in loop.run()
    assert reads[f"campaign/{POOL.name}"] == 1
    assert of_answers(reads) == {f"{n:04d}/{ANSWERS.name}": 1 for n in range(3)}, "that of round 2 came in this run"


def test_status_reads_each_table_once(loop, reads, tmp_path):
    campaign_status(loop.folder, tmp_path)
    rounds_table(loop.folder)
    assert set(reads.values()) == {1}


def test_tracker_has_the_wait_for_a_batch_when_its_round_closes(loop):
    loop.label()
    loop.run()
    ledger = read_ledger(loop.folder, load_settings(loop.file))
    assert ledger.seconds_to_batch(0) is None, "nobody had answered before the first batch"
    waits = {n: ledger.seconds_to_batch(n) for n in (1, 2, 3)}
    assert all(wait is not None for wait in waits.values())
    assert ledger.seconds_to_batch() == waits[3]
    logged = [run.metrics.get("seconds_to_batch", (None, None))[0] for run in loop.tracker.runs.values()]
    assert logged == [None, waits[1], waits[2], None], "round 3 is open, and its batch is of the next run"


def test_run_that_waits_reads_no_list_of_candidates(make_loop, monkeypatch):
    loop = make_loop()
    loop.run()
    loop.label()
    assert "round 1 asks for" in loop.run()

    def refuse(_):
        raise AssertionError("the candidates were read")

    monkeypatch.setattr(ItemList, "table", property(refuse))
    assert "round 1 awaits labels" in loop.run()
