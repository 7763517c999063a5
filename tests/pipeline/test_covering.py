from itertools import combinations

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity, rbf_kernel
from torch import Tensor

from pipeline.selection.geometry import cover as covering
from pipeline.selection.geometry.cover import facility_location, herd


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_points(n: int, n_features: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(n, n_features, generator=seeded(seed))


def coverage(kernel: np.ndarray, weights: np.ndarray, covering_rows: list[int]) -> float:
    return float((weights * kernel[covering_rows].max(axis=0)).sum())


def check_greedy(picks: list[int], kernel: np.ndarray, weights: np.ndarray, candidates: list[int], start: list[int]):
    """By the definition, with the whole objective again for every candidate and pick, no other would have been better.

    Points that are far from all others but one have a tie with that one, so the picks themselves say little.
    """
    assert len(set(picks)) == len(picks)
    assert set(picks) <= set(candidates)
    for n, pick in enumerate(picks):
        objective = [coverage(kernel, weights, [*start, *picks[:n], candidate]) for candidate in candidates]
        assert objective[candidates.index(pick)] == pytest.approx(max(objective), rel=1e-6)


@pytest.mark.parametrize("cells", [1, 1000, 1 << 20])
@pytest.mark.parametrize("n_centres", [0, 7])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("some_references", [False, True])
def test_herding_equals_the_textbook(monkeypatch, cells, n_centres, weighted, some_references):
    monkeypatch.setattr(covering, "CELLS", cells)
    monkeypatch.setattr(covering, "WIDTH", 3)
    points, centres = some_points(90) + 20, some_points(n_centres, seed=2) + 20
    weights = torch.rand(90, generator=seeded(3)) if weighted else None
    references = torch.randperm(90, generator=seeded(4))[:50] if some_references else None
    options = {"centres": centres, "weights": weights, "references": references}
    picks = herd(points, 20, radius=2.5, **options)
    together = torch.cat([points, centres]).double().numpy()
    kernel = np.vstack([rbf_kernel(together, points.double().numpy(), gamma=1 / 2.5**2), np.zeros(90)])
    counts = np.ones(90) if weights is None else weights.double().numpy()
    if references is not None:
        kernel, counts = kernel[:, references], counts[references]
    start = [*range(90, 90 + n_centres), len(kernel) - 1]  # the last covers nothing
    check_greedy(picks.tolist(), kernel, counts, list(range(90)), start)


@pytest.mark.parametrize("width", [1, 32])
@pytest.mark.parametrize("some_references", [False, True])
def test_facility_location_equals_the_textbook(monkeypatch, width, some_references):
    monkeypatch.setattr(covering, "WIDTH", width)
    points, candidates = some_points(80), torch.randperm(80, generator=seeded())[:30]
    references = torch.randperm(80, generator=seeded(4))[:50] if some_references else None
    picks = facility_location(points, 12, candidates=candidates, references=references)
    kernel = np.vstack([cosine_similarity(points.double().numpy()), np.zeros(80)])
    kernel = kernel if references is None else kernel[:, references]
    check_greedy(picks.tolist(), kernel, np.ones(kernel.shape[1]), candidates.tolist(), [80])


def test_greedy_covers_almost_as_much_as_the_best_of_all_batches():
    points = some_points(14, 2)
    kernel = rbf_kernel(points.numpy(), gamma=1)
    best = max(coverage(kernel, np.ones(14), list(batch)) for batch in combinations(range(14), 4))
    picks = herd(points, 4, radius=1).tolist()
    assert (1 - 1 / np.e) * best <= coverage(kernel, np.ones(14), picks) <= best + 1e-6


def test_few_candidates_are_looked_at_again():
    points, n_looked_at = some_points(2000, 3), 0

    def similarities(rows: Tensor) -> Tensor:
        nonlocal n_looked_at
        n_looked_at += len(rows)
        return (-torch.cdist(points[rows], points)).exp()

    covering._cover(similarities, similarities(torch.arange(50)).amax(dim=0), torch.ones(2000), 2000, 60)
    assert 2000 < n_looked_at < 6 * 2000  # the plain greedy: 60 x 2000


def test_one_point_of_each_cluster_is_enough():
    points = 100 * torch.eye(5, 6).repeat_interleave(20, dim=0) + some_points(100)
    picks = herd(points, 5, radius=10)
    assert sorted((picks // 20).tolist()) == [0, 1, 2, 3, 4]
    picks = herd(points, 3, centres=points[[0, 45]], radius=10)
    assert sorted((picks // 20).tolist()) == [1, 3, 4]
    picks = facility_location(points, 5, candidates=torch.arange(100))
    assert sorted((picks // 20).tolist()) == [0, 1, 2, 3, 4]


def test_with_a_small_radius_the_weights_decide():
    weights = torch.rand(60, generator=seeded())
    picks = herd(some_points(60), 60, weights=weights, radius=1e-2)
    assert picks.tolist() == weights.argsort(descending=True).tolist()


def test_of_equals_the_lowest_comes_first_and_nothing_twice():
    points = torch.ones(40, 3)
    assert herd(points, 40, radius=1).tolist() == list(range(40))
    candidates = torch.tensor([9, 4, 30])
    assert facility_location(points, 3, candidates=candidates).tolist() == [9, 4, 30]


@pytest.mark.parametrize(("n", "n_picks", "wanted"), [(5, 9, 5), (1, 4, 1), (0, 3, 0), (5, 0, 0)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_takes_what_is_left(n, n_picks, wanted, dtype):
    points = some_points(n).to(dtype)
    for picks in (
        herd(points, n_picks, radius=1, centres=points[:1]),
        facility_location(points, n_picks, candidates=torch.arange(n)),
    ):
        assert len(picks) == len(set(picks.tolist())) == wanted


def test_half_precision_is_computed_in_single_precision():
    points = some_points(200).half()
    for picks, wanted in (
        (herd(points, 30, radius=2), herd(points.float(), 30, radius=2)),
        (
            facility_location(points, 30, candidates=torch.arange(200)),
            facility_location(points.float(), 30, candidates=torch.arange(200)),
        ),
    ):
        assert torch.equal(picks, wanted)


def test_a_radius_of_nothing_is_refused():
    with pytest.raises(ValueError, match="radius must be above 0, got 0"):
        herd(some_points(3), 1, radius=0)
