"""A step runs once, is given what its parameters name, and what it returns is what is written."""

from pathlib import Path

import pytest

from connectors.store import StoreError
from flows.artefacts import METRICS, NOT_USED, PROGRESS, PUSHING, SCORES, SECONDS, WITHDRAWN
from flows.folder import Campaign, RoundFolder
from flows.records import AuditMetrics, Pushing, SeenProgress
from flows.step import step
from tests.flows.rounds import metrics_of


def nothing(name: str) -> object:
    raise AssertionError(f"nobody should have asked for {name}")


@pytest.fixture
def folder(tmp_path) -> RoundFolder:
    return Campaign(tmp_path).round(3)


def test_step_runs_once_and_returns_what_is_written(folder):
    calls = []

    @step(PUSHING)
    def begin_push() -> Pushing:
        calls.append(1)
        return Pushing("now")

    assert begin_push.run(folder, nothing, {}) == Pushing("now")
    assert begin_push.run(folder, nothing, {}) == folder.read(PUSHING) == Pushing("now")
    assert len(calls) == 1
    assert list(folder.read(SECONDS)) == ["begin_push"]


def test_step_that_runs_anew_is_given_what_it_wrote_before(folder):
    seen = []

    @step(PUSHING, anew=True)
    def again(pushing: Pushing | None) -> Pushing:
        seen.append(pushing)
        return Pushing(str(len(seen)))

    assert [again.run(folder, nothing, {}).begun_at for _ in range(2)] == ["1", "2"]
    assert seen == [None, Pushing("1")]


def test_step_that_failed_has_written_nothing_and_runs_again(folder):
    errors = [ValueError("away")]

    @step(NOT_USED, WITHDRAWN)
    def collect() -> tuple[list[str], list[str]]:
        if errors:
            raise errors.pop()
        return ["a"], ["b"]

    with pytest.raises(ValueError, match="away"):
        collect.run(folder, nothing, {})
    assert not folder.path.exists()
    assert collect.run(folder, nothing, {}) == (["a"], ["b"])


def test_step_is_done_when_the_last_of_what_it_writes_is_there(folder):
    @step(NOT_USED, WITHDRAWN)
    def collect() -> tuple[list[str], list[str]]:
        return ["new"], ["new"]

    folder.write(NOT_USED, ["of a run that was killed"])
    assert collect.run(folder, nothing, {}) == (folder.read(NOT_USED), folder.read(WITHDRAWN)) == (["new"], ["new"])
    folder.write(WITHDRAWN, ["written"])
    assert collect.run(folder, nothing, {}) == (["new"], ["written"])


def test_parameters_are_artefacts_and_whatever_else_is_given(folder):
    @step()
    def say(metrics: AuditMetrics | None, progress: SeenProgress | None, *, seed: int, sentence: str) -> object:
        return metrics, progress, seed, sentence

    metrics = metrics_of(9, 10)
    folder.write(METRICS, metrics)
    give, more = {"seed": 7}.__getitem__, {"sentence": "more"}
    assert say.run(folder, give, more) == (metrics, None, 7, "more")
    folder.write(PROGRESS, SeenProgress(1, 2, 3, "now"))
    folder.write(METRICS, None)
    assert say.run(folder, {"seed": 7}.__getitem__, {"sentence": "more"}) == (
        None,
        SeenProgress(1, 2, 3, "now"),
        7,
        "more",
    )


def test_handle_is_given_whether_its_files_are_there_or_not(folder):
    @step()
    def parts(scores: object) -> object:
        return scores

    assert parts.run(folder, nothing, {}) == folder.read(SCORES)
    assert not folder.has(SCORES)


def test_what_a_step_needs_and_nobody_wrote_is_told_by_file(folder):
    @step()
    def needs(metrics: AuditMetrics) -> None:
        raise AssertionError

    with pytest.raises(RuntimeError, match=r"step 'needs' reads metrics\.json, which no step has written in .*0003"):
        needs.run(folder, nothing, {})


def test_damaged_artefact_is_told_before_the_step_runs(folder):
    @step()
    def needs(metrics: AuditMetrics) -> None:
        raise AssertionError

    folder.path.mkdir(parents=True)
    Path(folder.path_of(METRICS)).write_text("{")
    with pytest.raises(StoreError, match=r"metrics\.json is damaged"):
        needs.run(folder, nothing, {})
