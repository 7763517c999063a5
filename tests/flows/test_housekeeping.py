"""What closed rounds give back, what stays, and what is told of it."""

from pathlib import Path

import pytest

from connectors.member_files import MemberFiles
from connectors.tracking import TrackerError
from flows.artefacts import (
    ANSWERS,
    AUDIT,
    BATCH,
    CANDIDATES,
    CONFIG,
    LABELLED,
    LABELLED_EMBEDDINGS,
    MEMBERS,
    METRICS,
    MODEL,
    ROUND,
    SCORES,
    TRAINING,
)
from flows.config import ConfigError, load_settings
from flows.housekeeping import remove_files
from flows.keep import KeepSettings
from flows.outlook import best_rounds
from flows.records import Registered
from flows.results import predict_files
from tests.flows.loop import Loop
from tests.flows.rounds import close_round, metrics_of, training_of

REPRODUCES = (CONFIG, LABELLED, AUDIT, CANDIDATES, TRAINING, METRICS, BATCH, ANSWERS, ROUND)


def old_round(work, number: int, *, n_correct: int = 100, classes: tuple[str, ...] = ("a", "b")) -> None:
    """A closed round with weights and scores that nobody computed."""
    folder = work.folder.round(number)
    close_round(folder, [], work.settings)
    folder.write(TRAINING, training_of(classes=classes, weights=["member-0.pt"]))
    folder.write(METRICS, metrics_of(n_correct))
    folder.write(MODEL, Registered(f"round-{number}", f"models:/stripes/{number}", str(number), ()))
    for path in (folder.path_of(MEMBERS) / "member-0.pt", folder.path_of(SCORES) / "part-00000.parquet"):
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes(1_000_000))
    (folder.path_of(MEMBERS) / "member-0.json").write_text("{}")
    folder.path_of(LABELLED_EMBEDDINGS).write_bytes(bytes(500_000))


def clean(work, **keep: int) -> tuple[str, ...]:
    rounds = work.folder.rounds()
    closed = [folder for folder in rounds if folder.is_closed]
    return remove_files(closed, KeepSettings(**keep), best={folder.number for folder in best_rounds(closed)})


def with_weights(work) -> list[int]:
    return [folder.number for folder in work.folder.rounds() if folder.read(MEMBERS).weights]


def with_scores(work) -> list[int]:
    return [folder.number for folder in work.folder.rounds() if folder.has(SCORES)]


def test_the_newest_rounds_and_the_best_keep_their_weights(make_work):
    work = make_work()
    for number in range(1, 7):
        old_round(work, number, n_correct=150 if number == 2 else 100)
    assert clean(work, models=2, scores=1) == (
        "removed the weights of 3 rounds, 1 to 4, 3.0 MB, by keep.models = 2",
        "removed the scores of 5 rounds, 1 to 5, 7.5 MB, by keep.scores = 1",
    )
    assert (with_weights(work), with_scores(work)) == ([2, 5, 6], [6])
    assert not work.folder.round(5).has(LABELLED_EMBEDDINGS)
    assert (work.folder.round(1).path_of(MEMBERS) / "member-0.json").exists()
    assert clean(work, models=2, scores=1) == ()


def test_the_best_of_former_classes_stays_as_they_may_come_back(make_work):
    work = make_work()
    for number in range(1, 6):
        old_round(work, number, classes=("a", "b") if number < 3 else ("a", "b", "c"))
    clean(work, models=1)
    assert with_weights(work) == [2, 5]


def test_an_open_round_keeps_all_and_no_scores_may_be_kept(make_work):
    work = make_work()
    for number in (1, 2):
        old_round(work, number)
    work.folder.round(2).path_of(ROUND).unlink()
    clean(work, models=1, scores=0)
    assert (with_weights(work), with_scores(work)) == ([1, 2], [2])


def test_what_cannot_be_removed_is_told_and_stops_nothing(make_work, monkeypatch):
    work = make_work()
    for number in (1, 2, 3):
        old_round(work, number)
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.suffix == ".pt":
            raise PermissionError(13, "Permission denied", str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    (line,) = clean(work, models=1)
    assert line.startswith("removed the weights of 2 rounds, 1 to 2, 0.0 MB, by keep.models = 1; not all of it, as ")
    assert "you have no permission" in line


@pytest.fixture
def short_memory(make_loop) -> Loop:
    loop = make_loop(budget=40)
    loop.change(("[members]", "[keep]\nmodels = 1\nscores = 1\ntracked_models = 1\n\n[members]"))
    return loop


def test_a_campaign_with_a_short_memory_goes_on_and_says_what_it_removed(short_memory, make_loop, tmp_path):
    loop, other = short_memory, make_loop(budget=40)
    told: list[str] = []
    for _ in range(5):
        told += loop.run_as().notes
        other.run()
        assert loop.batch(loop.folder.rounds()[-1].number) == other.batch(other.folder.rounds()[-1].number)
        loop.label()
        other.label()
    best = {folder.number for folder in best_rounds(loop.folder.rounds()[:4])}
    removed = sorted({1, 2, 3} - {3} - best)
    for number in removed:
        folder = loop.folder.round(number)
        assert folder.read(MEMBERS).weights == []
        assert [artefact.name for artefact in REPRODUCES if not folder.has(artefact)] == []
    assert [folder.number for folder in loop.folder.rounds() if folder.has(SCORES)] == [3, 4]
    assert any(line.startswith("removed the scores of round 1, 0.") for line in told)
    assert any("by keep.tracked_models = 1" in line for line in told)
    dropped = {name for name, run in loop.tracker.runs.items() if run.is_model_dropped}
    assert dropped == {f"round-{number}" for number in removed}

    settings, gone = load_settings(loop.file), removed[0]
    with pytest.raises(ConfigError) as caught:
        predict_files(settings, settings.pool, tmp_path / "out.csv", round_number=gone)
    message = str(caught.value)
    assert f"the weights of round {gone} were removed: keep.models = 1 keeps" in message
    assert "These rounds have theirs: " in message
    assert predict_files(settings, settings.pool, tmp_path / "out.csv").n_images == 40


def test_a_tracker_that_refuses_fails_no_run(short_memory, monkeypatch):
    def refuse(_: object) -> list[str]:
        raise TrackerError("only an administrator may remove models")

    monkeypatch.setattr(short_memory.tracker, "drop_models", refuse)
    short_memory.run()
    short_memory.label()
    notes = short_memory.run_as().notes
    assert "the tracker keeps models beyond keep.tracked_models = 1: only an administrator may remove models" in notes


def test_members_without_files_have_no_weights(tmp_path):
    assert MemberFiles(tmp_path / "members").weights == []
