"""The harness of the benchmarks and its textbook versions; the peers are not needed."""

import json
import math
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import choosers, growth, measure, references, selection, streams, worth
from benchmarks.measure import Case, Contender, Row, Runs, arguments, peak_mb, report, run, side_by_side, write
from benchmarks.pools import CHUNK, N_LABELLED, make_pool
from pipeline.selection.acquisition import bald
from pipeline.selection.geometry.cover import herd
from pipeline.selection.geometry.joint import batch_bald
from pipeline.selection.geometry.spread import d2_sampling, k_center_greedy


class Clock:
    """Stands still but for the work that moves it."""

    def __init__(self):
        self.now = 0.0
        self.seen = []

    def __call__(self):
        return self.now

    def work(self, name, seconds):
        """Work whose runs take the given seconds, one after the other, the last again and again."""
        left = list(seconds)

        def run(inputs, seed):
            self.seen.append((name, inputs, seed))
            self.now += left.pop(0) if len(left) > 1 else left[0]
            return seed

        return Contender(name, run)


def hold(n_megabytes, inputs, seed):
    return len(np.ones(n_megabytes * 1_000_000, dtype=np.uint8))


def some_points(n=300, n_features=5, seed=1):
    return torch.randn(n, n_features, generator=torch.Generator().manual_seed(seed))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def fail(inputs, seed):
    raise ValueError(f"no {inputs}")


def test_a_run_on_small_inputs_warms_up_and_the_median_of_the_others_counts():
    clock = Clock()
    (runs,) = side_by_side([clock.work("a", [9, 1, 5, 2, 4, 3])], "inputs", "small", runs=5, clock=clock)
    assert runs.seconds == [1, 5, 2, 4, 3]
    assert runs.median == 3
    assert runs.results == [0, 1, 2, 3, 4]
    assert [inputs for _, inputs, _ in clock.seen] == ["small", *["inputs"] * 5]


def test_contenders_take_turns():
    clock = Clock()
    side_by_side([clock.work("a", [1]), clock.work("b", [1])], None, None, runs=2, clock=clock)
    seen = [(name, seed) for name, _, seed in clock.seen]
    assert seen == [("a", 0), ("b", 0), ("a", 0), ("b", 0), ("a", 1), ("b", 1)]


@pytest.mark.parametrize(("seconds", "n_runs"), [(6, 5), (7, 4), (10, 3), (15, 2), (16, 1), (500, 1)])
def test_a_slow_contender_runs_as_often_as_fits_and_at_least_once(seconds, n_runs):
    clock = Clock()
    contenders = [clock.work("fast", [1]), clock.work("slow", [0, seconds])]
    runs = side_by_side(contenders, None, None, runs=5, clock=clock)
    assert [len(run.seconds) for run in runs] == [5, n_runs]


def test_a_contender_can_ask_for_fewer_runs():
    clock = Clock()
    contenders = [clock.work("a", [1]), replace(clock.work("b", [1]), runs=1)]
    assert [len(run.seconds) for run in side_by_side(contenders, None, None, runs=3, clock=clock)] == [3, 1]


def test_what_is_prepared_is_not_timed():
    clock = Clock()

    def prepare(inputs):
        clock.now += 100
        return inputs + 1

    def work(inputs, seed):
        clock.now += 1
        return inputs

    (runs,) = side_by_side([Contender("a", work, prepare=prepare)], 1, 5, runs=2, clock=clock)
    assert (runs.seconds, runs.results) == ([1, 1], [2, 2])


def test_who_fails_does_not_run_again_and_stops_nobody():
    clock = Clock()
    fails = Contender("fails", fail)
    failed, fine = side_by_side([fails, clock.work("b", [1])], "inputs", "small", runs=2, clock=clock)
    assert (failed.seconds, failed.median, failed.error) == ([], None, "ValueError: no small")
    assert (fine.seconds, fine.error) == ([1, 1], "")


def a_case(clock, **kwargs):
    filled = {"name": "name", "ours": clock.work("ours", [2])} | kwargs
    return Case(work="work", inputs=lambda: "inputs", small=lambda: "small", **filled)


def test_a_ratio_above_one_says_that_the_peer_is_slower(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(measure, "side_by_side", partial(side_by_side, clock=clock))
    peers = (clock.work("slower", [6]), clock.work("faster", [1]))
    rows = measure.measure(a_case(clock, peers=peers, quality=lambda inputs, seed: seed), quick=True)
    assert [(row.peer, row.ours_s, row.peer_s, row.ratio) for row in rows] == [
        ("slower", 2, 6, 3),
        ("faster", 2, 1, 0.5),
    ]
    assert {row.work for row in rows} == {"work: small"}


def test_quality_is_the_mean_over_the_runs(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(measure, "side_by_side", partial(side_by_side, clock=clock))
    monkeypatch.setattr(measure, "peak_mb", lambda case, who: 7.0)
    case = a_case(clock, peers=(clock.work("slow", [12]),), quality=lambda inputs, seed: 10 * seed)
    (row,) = measure.measure(case)
    assert (row.quality_ours, row.quality_peer) == (20, 5)
    assert (row.ours_runs, row.peer_runs, row.peak_mb, row.peak_mb_peer) == (5, 2, 7, 7)


def test_work_without_a_peer_gives_one_row(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(measure, "side_by_side", partial(side_by_side, clock=clock))
    note = lambda inputs, result, seconds, peak: f"{inputs} {result} {seconds} {peak}"  # noqa: E731
    (row,) = measure.measure(a_case(clock, note=note), quick=True)
    assert (row.peer, row.peer_s, row.ratio, row.note) == (None, None, None, "small 0 2.0 None")


def test_the_row_of_a_peer_that_fails_says_so_and_the_others_are_whole(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(measure, "side_by_side", partial(side_by_side, clock=clock))
    peers = (Contender("broken", fail, package="no-such-package"), clock.work("fine", [6]))
    broken, fine = measure.measure(a_case(clock, peers=peers, quality=lambda inputs, seed: 1), quick=True)
    assert (broken.peer, broken.error) == ("broken (not installed)", "broken: ValueError: no small")
    assert (broken.ours_s, broken.peer_s, broken.ratio, broken.quality_peer) == (2, None, None, None)
    assert (fine.ratio, fine.error) == (3, "")


def test_where_ours_fails_the_peer_is_still_measured(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(measure, "side_by_side", partial(side_by_side, clock=clock))
    case = a_case(clock, ours=Contender("ours", fail), peers=(clock.work("peer", [6]),), note=lambda *_: "note")
    (row,) = measure.measure(case, quick=True)
    assert (row.ours_s, row.peer_s, row.ratio, row.note) == (None, 6, None, "")
    assert row.error == "ours: ValueError: no small"


def test_a_quality_or_a_note_that_fails_leaves_the_times(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(measure, "side_by_side", partial(side_by_side, clock=clock))
    for failing in ({"quality": fail}, {"note": lambda inputs, *_: fail(inputs, 0)}):
        (row,) = measure.measure(a_case(clock, **failing), quick=True)
        assert (row.ours_s, row.error) == (2, "ours: ValueError: no small")


def options(monkeypatch, *words, names=("a", "b")):
    monkeypatch.setattr("sys.argv", ["bench", *map(str, words)])
    return arguments("", names)


def test_an_unknown_name_is_an_error_that_lists_the_names(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        options(monkeypatch, "--only", "a", "k-center", names=("a", "growth"))
    said = capsys.readouterr().err
    assert "'k-center'" in said
    assert "'a', 'growth'" in said


def test_a_run_writes_after_every_case_and_survives_inputs_that_cannot_be_made(monkeypatch, tmp_path):
    clock, out = Clock(), tmp_path / "new" / "out.json"
    before = []

    def inputs():
        before.append(len(json.loads(out.read_text())))
        raise MemoryError("too large")

    cases = [a_case(clock, name="a"), replace(a_case(clock, name="b"), small=inputs), a_case(clock, name="c")]
    rows = run(cases, options(monkeypatch, "--quick", "--json", out), "my data")
    assert before == [1]
    assert [row.error for row in rows] == ["", "MemoryError: too large", ""]
    assert len(json.loads(out.read_text())) == 3
    assert [path.name for path in out.parent.iterdir()] == ["out.json"]


def test_only_what_is_asked_for_runs(monkeypatch):
    clock = Clock()
    cases = [a_case(clock, name=name, ours=clock.work(name, [1])) for name in "ab"]
    run(cases, options(monkeypatch, "--quick", "--only", "b"), "my data")
    assert {name for name, _, _ in clock.seen} == {"b"}


def test_listing_the_cases_computes_nothing(monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("something was computed")

    monkeypatch.setattr(selection, "make_pool", never)
    for module in (choosers, streams, worth):
        for name in {"side_by_side", "make_stream", "make_pool", "slowest_score"} & vars(module).keys():
            monkeypatch.setattr(module, name, never)
    names = [case.name for case in selection.cases()]
    assert len(set(names)) == len(names)


def test_the_rows_are_written_as_a_list_with_what_they_depend_on(tmp_path, capsys):
    row = Row("k-center", 1.0, "a peer", 8.0, 8.0, "radius", 3.5, 3.5, 12.0, None, 5, 2, "identical", "a peer [x]: no")
    write([row], "my data", tmp_path / "new" / "out.json")
    (written,) = json.loads((tmp_path / "new" / "out.json").read_text())
    wanted = {"work", "ours_s", "peer", "peer_s", "ratio", "quality_ours", "quality_peer", "peak_mb"}
    assert wanted <= written.keys()
    assert written["ratio"] == 8
    assert "my data" in written["setting"]
    assert torch.__version__.split("+")[0] in written["setting"]
    report([row], "my data")
    printed = capsys.readouterr().out
    for words in ("a peer", "5/2", "identical", "FAILED: a peer [x]: no"):
        assert words in printed


@pytest.mark.skipif(not measure.RESET_HIGH_WATER.exists(), reason="only Linux tells")
def test_peak_memory_is_that_of_the_work_beyond_its_inputs():
    case = Case("name", "work", partial(np.ones, 10_000_000), partial(np.ones, 1), Contender("ours", partial(hold, 50)))
    assert peak_mb(case, case.ours) == pytest.approx(50, abs=5)


def write_file():
    """A folder with a file in it, which goes when nobody holds it."""
    folder = tempfile.TemporaryDirectory()
    (Path(folder.name) / "file").write_text("here")
    return folder


def path_in(folder):
    return Path(folder.name) / "file"


def read_path(path, seed):
    return path.read_text()


@pytest.mark.skipif(not measure.RESET_HIGH_WATER.exists(), reason="only Linux tells")
def test_files_stay_while_somebody_works_on_their_paths():
    case = Case("name", "work", write_file, write_file, Contender("ours", read_path, prepare=path_in))
    assert peak_mb(case, case.ours) >= 0


def test_a_pool_is_the_same_however_it_is_cut_and_its_probabilities_are_ones(monkeypatch):
    whole = make_pool(500, 6, 3, n_members=2)
    monkeypatch.setattr("benchmarks.pools.CHUNK", CHUNK // 500)
    assert torch.equal(make_pool(500, 6, 3).embeddings, whole.embeddings)
    assert torch.allclose(whole.probs.sum(dim=2), torch.ones(500, 2), atol=1e-6)
    assert len(whole.candidates) + len(whole.labelled) == 500
    assert str(whole) == f"500 x 6, 2 members x 10 classes, {N_LABELLED} labelled, 3 picks"


def test_members_of_an_unsure_pool_disagree_more_on_the_same_images():
    sure, unsure = (
        make_pool(500, 64, 3, n_members=20, **how) for how in ({}, {"sharpness": 0.25, "disagreement": 1.0})
    )
    assert torch.equal(sure.embeddings, unsure.embeddings)
    assert bald(unsure.probs).mean() > 5 * bald(sure.probs).mean()


def test_growth_sees_the_sub_pool_or_everybody(monkeypatch):
    seen = []
    herding = growth.STRATEGIES["max_herding"]

    def watched(embeddings, labelled_embeddings, *, query_size, generator):
        seen.append(len(embeddings))
        return herding.ask(embeddings, labelled_embeddings, query_size=query_size, generator=generator)

    monkeypatch.setitem(growth.STRATEGIES, "max_herding", replace(herding, function=watched, sub_pool=120))
    monkeypatch.setattr(growth, "GROWTH", ("max_herding",))
    lines = dict(growth.growth((150, 300)))
    assert list(lines) == ["max_herding, sub-pool of 120", "max_herding, no sub-pool"]
    assert seen == [120] * 8 + [150] * 5 + [300] * 3  # a run to warm up comes before every three
    rows = growth.growth_rows("max_herding", lines["max_herding, no sub-pool"])
    assert [row.ours_runs for row in rows] == [3, 3]
    assert "seconds grow as" in rows[1].note


def test_growth_stops_at_what_takes_too_long_or_fails(monkeypatch):
    monkeypatch.setattr(growth, "side_by_side", lambda *_, **__: [Runs([growth.GROWTH_LIMIT_S + 1])])
    assert [n for n, _ in growth.growth_line("k_center", (250, 300))] == [250]
    monkeypatch.setattr(growth, "side_by_side", lambda *_, **__: [Runs(error="no")])
    line = growth.growth_line("k_center", (250, 300))
    assert [row.error for row in growth.growth_rows("k_center", line)] == ["no"]


def test_k_center_of_the_textbook_is_ours():
    points, centres = some_points(), some_points(4, seed=2)
    ours = k_center_greedy(points, 40, centres=centres, generator=seeded())
    theirs = references.one_at_a_time(points, 40, centres)
    assert ours.tolist() == theirs.tolist() == references.one_at_a_time(points, 40, centres, dtype=np.float32).tolist()
    everything = torch.cat([centres, points[ours]])
    assert references.cover_radius(points, everything) == pytest.approx(
        float(torch.cdist(points, everything).amin(1).max())
    )


def test_herding_of_the_textbook_is_ours():
    points, centres = some_points(), some_points(4, seed=2)
    weights = torch.rand(len(points), generator=seeded())
    ours = herd(points, 15, centres=centres, weights=weights, radius=1.5)
    theirs = references.herd_one_at_a_time(points, 15, centres, weights, 1.5)
    worth = [references.coverage(points, torch.cat([centres, points[p]]), weights, 1.5) for p in (ours, theirs)]
    assert worth[0] == pytest.approx(worth[1], rel=1e-5)
    assert worth[0] > references.coverage(points, torch.cat([centres, points[:15]]), weights, 1.5)


def test_d2_sampling_of_the_textbook_never_makes_the_products_and_is_as_good_as_ours():
    factors = [some_points(400, 3), some_points(400, 6, seed=2)]
    products = torch.einsum("nc,nd->ncd", *factors).flatten(1)
    ours = [d2_sampling(factors, 20, generator=seeded(seed)) for seed in range(20)]
    theirs = [references.d2_one_at_a_time([f.numpy() for f in factors], 20, seed) for seed in range(20)]
    worth = [np.mean([references.potential(factors, torch.as_tensor(p)) for p in picks]) for picks in (ours, theirs)]
    assert worth[0] == pytest.approx(worth[1], rel=0.1)
    assert all(len(set(picks.tolist())) == 20 for picks in theirs)
    made = float(torch.cdist(products, products[ours[0]]).square().amin(dim=1).mean())
    assert references.potential(factors, ours[0]) == pytest.approx(made, rel=1e-4)


def test_the_worth_of_a_batch_of_bald_is_that_of_enumeration():
    probs = torch.softmax(2 * torch.randn(30, 4, 3, generator=seeded()), dim=2)
    picks = batch_bald(probs, 3, generator=seeded())
    a, b, c = probs[picks].double()
    joint = torch.einsum("ka,kb,kc->kabc", a, b, c)
    together = -torch.special.entr(joint).sum(dim=(1, 2, 3)).mean() + torch.special.entr(joint.mean(dim=0)).sum()
    assert references.batch_bald_score(probs[picks], n_samples=100_000) == pytest.approx(float(together), abs=0.01)
    assert float(together) <= math.log(4)
