import numpy as np
import pytest
import scipy.spatial.distance
import torch
from sklearn.metrics import pairwise_distances_argmin
from torch import Tensor

from pipeline import diversity
from pipeline.diversity import k_center_greedy, kmeans, nearest_to_centroids


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_points(n: int, n_features: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(n, n_features, generator=seeded(seed))


def some_clusters(n_clusters: int = 5, n_each: int = 20) -> Tensor:
    """Points around far corners, cluster after cluster."""
    corners = 100 * torch.eye(n_clusters, 6)
    return corners.repeat_interleave(n_each, dim=0) + some_points(n_clusters * n_each)


def slow_k_center(points: Tensor, n_picks: int, centres: Tensor) -> list[int]:
    """The definition, with the whole distance matrix again for every pick."""
    points, covered, picks = points.double().numpy(), list(centres.double().numpy()), []
    for _ in range(n_picks):
        distance = scipy.spatial.distance.cdist(points, covered).min(axis=1)
        distance[picks] = -1
        picks.append(int(distance.argmax()))
        covered.append(points[picks[-1]])
    return picks


@pytest.mark.parametrize("block", [1, 3, 64, 1000])
@pytest.mark.parametrize("n_centres", [1, 30])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_k_center_is_exact(monkeypatch, block, n_centres, offset):
    monkeypatch.setattr(diversity, "BLOCK", block)
    monkeypatch.setattr(diversity, "ROWS", 70)
    points, centres = some_points(300) + offset, some_points(n_centres, seed=2) + offset
    picks = k_center_greedy(points, 60, centres=centres, generator=seeded())
    assert picks.tolist() == slow_k_center(points, 60, centres)


def test_k_center_is_exact_on_clusters():
    points = some_clusters()
    picks = k_center_greedy(points, 40, centres=points[:1], generator=seeded())
    assert picks.tolist() == slow_k_center(points, 40, points[:1])


def test_k_center_goes_on_from_its_random_first_pick():
    points = some_points(200)
    picks = k_center_greedy(points, 30, generator=seeded()).tolist()
    assert picks[1:] == slow_k_center(points, 29, points[picks[:1]])
    assert len({int(k_center_greedy(points, 1, generator=seeded(seed))) for seed in range(20)}) > 10


def test_k_center_takes_one_point_of_each_cluster():
    picks = k_center_greedy(some_clusters(), 5, generator=seeded())
    assert sorted((picks // 20).tolist()) == [0, 1, 2, 3, 4]


def test_k_center_leaves_clusters_that_have_a_centre():
    points = some_clusters()
    picks = k_center_greedy(points, 3, centres=points[[0, 45]], generator=seeded())
    assert sorted((picks // 20).tolist()) == [1, 3, 4]


def test_k_center_shrinks_the_cover_more_than_chance():
    points = some_points(500)
    picks = k_center_greedy(points, 25, generator=seeded())
    chance = torch.randperm(500, generator=seeded())[:25]
    assert torch.cdist(points, points[picks]).amin(1).max() < torch.cdist(points, points[chance]).amin(1).max()


def test_k_center_takes_duplicates_last_and_each_once():
    points = torch.cat([torch.zeros(50, 6), some_points(10)])
    picks = k_center_greedy(points, 60, centres=torch.zeros(1, 6), generator=seeded()).tolist()
    assert sorted(picks) == list(range(60))
    assert set(picks[:10]) == set(range(50, 60))


def test_k_center_breaks_ties_by_the_seed():
    corners = torch.eye(40)
    picks = [k_center_greedy(corners, 3, centres=torch.zeros(1, 40), generator=seeded(s)).tolist() for s in (0, 0, 1)]
    assert picks[0] == picks[1] != picks[2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_k_center_computes_in_single_precision(dtype):
    points = some_points(200).to(dtype)
    picks = k_center_greedy(points, 40, centres=points[:3], generator=seeded())
    assert picks.tolist() == slow_k_center(points, 40, points[:3])


@pytest.mark.parametrize(("n", "n_picks", "wanted"), [(5, 9, 5), (1, 1, 1), (1, 4, 1), (0, 3, 0), (5, 0, 0)])
def test_k_center_takes_what_is_left(n, n_picks, wanted):
    picks = k_center_greedy(some_points(n), n_picks, generator=seeded())
    assert len(picks) == len(set(picks.tolist())) == wanted


def test_k_center_takes_no_centres_for_none():
    points = some_points(50)
    without = k_center_greedy(points, 10, generator=seeded())
    assert torch.equal(k_center_greedy(points, 10, centres=points[:0], generator=seeded()), without)


def test_k_center_leaves_its_input_alone():
    points = some_points(50)
    before = points.clone()
    k_center_greedy(points, 10, centres=points[:2], generator=seeded())
    assert torch.equal(points, before)


@pytest.mark.parametrize("large", [10, 1000])
def test_kmeans_finds_clusters_that_are_far_apart(monkeypatch, large):
    monkeypatch.setattr(diversity, "LARGE", large)
    points = some_clusters()
    centroids, clusters = kmeans(points, 5, generator=seeded())
    for members in clusters.view(5, 20):
        assert len(members.unique()) == 1
    assert len(clusters.unique()) == 5
    if large == 1000:  # mini-batches stop near the mean, not on it
        means = torch.stack([points[clusters == c].mean(dim=0) for c in range(5)])
        torch.testing.assert_close(centroids, means, atol=1e-4, rtol=0)


@pytest.mark.parametrize("large", [10, 1000])
def test_kmeans_gives_each_point_its_nearest_centroid(monkeypatch, large):
    monkeypatch.setattr(diversity, "LARGE", large)
    points = some_points(300)
    centroids, clusters = kmeans(points, 12, generator=seeded())
    np.testing.assert_array_equal(clusters.numpy(), pairwise_distances_argmin(points, centroids))


def test_kmeans_repeats_itself_with_the_same_seed():
    points = some_points(300)
    runs = [kmeans(points, 12, generator=seeded(seed))[1] for seed in (0, 0, 1)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_kmeans_bears_duplicates_and_few_points():
    centroids, clusters = kmeans(torch.zeros(8, 3), 4, generator=seeded())
    assert centroids.shape == (4, 3)
    assert len(clusters.unique()) == 1
    centroids, clusters = kmeans(some_points(3), 5, generator=seeded())
    assert len(centroids) == 3
    assert sorted(clusters.tolist()) == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_kmeans_takes_any_floating_point_type(dtype):
    points = some_clusters().to(dtype)
    centroids, clusters = kmeans(points, 5, generator=seeded())
    assert centroids.dtype == torch.float32
    assert len(clusters.view(5, 20).unique(dim=1)) == 5


def test_nearest_points_equal_those_of_a_library(monkeypatch):
    monkeypatch.setattr(diversity, "ROWS", 70)
    points = some_points(300)
    centroids, _ = kmeans(points, 12, generator=seeded())
    wanted = pairwise_distances_argmin(centroids, points)
    assert len(set(wanted)) == 12  # else the test would say nothing
    assert nearest_to_centroids(points, centroids).tolist() == wanted.tolist()


def test_a_point_that_is_taken_goes_to_no_other_centroid():
    points = torch.tensor([[0.0], [1.0], [5.0], [2.0]])
    assert nearest_to_centroids(points, torch.tensor([[0.9], [1.1], [1.0]])).tolist() == [1, 3, 0]
    assert nearest_to_centroids(points[:3] * 0, torch.zeros(3, 1)).unique().tolist() == [0, 1, 2]


def test_more_centroids_than_points_are_refused():
    with pytest.raises(ValueError, match="5 centroids need as many points, got 2"):
        nearest_to_centroids(some_points(2), some_points(5))
