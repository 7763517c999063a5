"""What long work says where there is no terminal."""

import pytest

from flows import progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when a test says so."""
    now = [1000.0]
    monkeypatch.setattr(progress, "monotonic", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def test_long_work_says_in_a_pipe_how_far_it_is_about_once_a_minute(capsys, clock):
    with progress.progress_bar("round 3: training", unit="epochs") as advance:
        for epoch in range(1, 91):
            clock(5.0)
            advance(epoch, 90)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "round 3: training: 2 of 90 epochs in 0.2 min, about 7.3 min left"
    assert lines[1] == "round 3: training: 14 of 90 epochs in 1.2 min, about 6.3 min left"
    assert len(lines) == 8


def test_short_work_says_nothing(capsys, clock):
    with progress.progress_bar("indexing", unit="files") as advance:
        for done in range(9):
            clock(1.0)
            advance(done, 9)
    assert capsys.readouterr().err == ""


def test_bars_of_several_works_say_how_far_each_is_that_goes_on(capsys, clock):
    with progress.progress_bars("models") as bars:
        first, second = (bars.add_task(name, total=4) for name in ("random", "margin [a]"))
        clock(11.0)
        bars.advance(first)
        clock(61.0)
        bars.advance(second)
    assert [line.split(" models")[0] for line in capsys.readouterr().err.splitlines()] == [
        "random: 1 of 4",
        "margin [a]: 1 of 4",
    ]
