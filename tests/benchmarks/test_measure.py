"""The harness of the benchmarks and its textbook versions; the peers are not needed."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch

from benchmarks import measure, references
from benchmarks.measure import Case, Contender, peak_mb, report, side_by_side
from benchmarks.pools import CHUNK, N_LABELLED, make_pool
from pipeline.covering import herd
from pipeline.diversity import d2_sampling, k_center_greedy
from pipeline.information import batch_bald


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
            self.seen.append((name, seed))
            self.now += left.pop(0) if len(left) > 1 else left[0]
            return seed

        return Contender(name, run)


def hold(n_megabytes, inputs, seed):
    return len(np.ones(n_megabytes * 1_000_000, dtype=np.uint8))


def some_points(n=300, n_features=5, seed=1):
    return torch.randn(n, n_features, generator=torch.Generator().manual_seed(seed))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_first_run_warms_up_and_the_median_of_the_others_counts():
    clock = Clock()
    (runs,) = side_by_side([clock.work("a", [9, 1, 5, 2, 4, 3])], None, runs=5, clock=clock)
    assert runs.seconds == [1, 5, 2, 4, 3]
    assert runs.median == 3
    assert runs.results == [0, 1, 2, 3, 4]


def test_contenders_take_turns():
    clock = Clock()
    side_by_side([clock.work("a", [1]), clock.work("b", [1])], None, runs=2, clock=clock)
    assert clock.seen == [("a", 0), ("b", 0), ("a", 0), ("b", 0), ("a", 1), ("b", 1)]


@pytest.mark.parametrize(("seconds", "n_runs"), [(29, 5), (31, 3), (50, 2), (70, 1), (500, 1)])
def test_a_slow_contender_runs_fewer_times_and_its_first_run_counts(seconds, n_runs):
    clock = Clock()
    runs = side_by_side([clock.work("fast", [1]), clock.work("slow", [seconds])], None, runs=5, clock=clock)
    assert [len(run.seconds) for run in runs] == [5, n_runs]
    assert sum(name == "slow" for name, _ in clock.seen) == n_runs + (seconds < measure.SLOW_S)


def test_what_is_prepared_is_not_timed():
    clock = Clock()

    def prepare(inputs):
        clock.now += 100
        return inputs + 1

    def work(inputs, seed):
        clock.now += 1
        return inputs

    (runs,) = side_by_side([Contender("a", work, prepare=prepare)], 1, runs=2, clock=clock)
    assert (runs.seconds, runs.results) == ([1, 1], [2, 2])


def a_case(clock, **kwargs):
    return Case("name", "work", lambda: "inputs", lambda: "small", clock.work("ours", [2]), **kwargs)


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
    case = a_case(clock, peers=(clock.work("slow", [50]),), quality=lambda inputs, seed: 10 * seed)
    (row,) = measure.measure(case)
    assert (row.quality_ours, row.quality_peer) == (20, 5)
    assert (row.ours_runs, row.peer_runs, row.peak_mb, row.peak_mb_peer) == (5, 2, 7, 7)


def test_work_without_a_peer_gives_one_row(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(measure, "side_by_side", partial(side_by_side, clock=clock))
    note = lambda inputs, result, seconds, peak: f"{inputs} {result} {seconds} {peak}"  # noqa: E731
    (row,) = measure.measure(a_case(clock, note=note), quick=True)
    assert (row.peer, row.peer_s, row.ratio, row.note) == (None, None, None, "small 0 2.0 None")


def test_the_rows_are_written_as_a_list_with_what_they_depend_on(tmp_path, capsys):
    row = measure.Row("k-center", 1.0, "a peer", 8.0, 8.0, "radius", 3.5, 3.5, 12.0, None, 5, 2, "identical")
    report([row], "my data", tmp_path / "new" / "out.json")
    (written,) = json.loads((tmp_path / "new" / "out.json").read_text())
    wanted = {"work", "ours_s", "peer", "peer_s", "ratio", "quality_ours", "quality_peer", "peak_mb"}
    assert wanted <= written.keys()
    assert written["ratio"] == 8
    assert "my data" in written["setting"]
    assert torch.__version__.split("+")[0] in written["setting"]
    printed = capsys.readouterr().out
    assert "a peer" in printed
    assert "identical" in printed


@pytest.mark.skipif(not measure.RESET_HIGH_WATER.exists(), reason="only Linux tells")
def test_peak_memory_is_that_of_the_work_beyond_its_inputs():
    case = Case("name", "work", partial(np.ones, 10_000_000), partial(np.ones, 1), Contender("ours", partial(hold, 50)))
    assert peak_mb(case, case.ours) == pytest.approx(50, abs=5)


def test_a_pool_is_the_same_however_it_is_cut_and_its_probabilities_are_ones(monkeypatch):
    whole = make_pool(500, 6, 3, n_members=2)
    monkeypatch.setattr("benchmarks.pools.CHUNK", CHUNK // 500)
    assert torch.equal(make_pool(500, 6, 3).embeddings, whole.embeddings)
    assert torch.allclose(whole.probs.sum(dim=2), torch.ones(500, 2), atol=1e-6)
    assert len(whole.candidates) + len(whole.labelled) == 500
    assert str(whole) == f"500 x 6, 2 members x 10 classes, {N_LABELLED} labelled, 3 picks"


def test_k_center_of_the_textbook_is_ours():
    points, centres = some_points(), some_points(4, seed=2)
    ours = k_center_greedy(points, 40, centres=centres, generator=seeded())
    theirs = references.one_at_a_time(points, 40, centres)
    assert ours.tolist() == theirs.tolist()
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
