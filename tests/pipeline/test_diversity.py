import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import pairwise_distances_argmin
from torch import Tensor

from pipeline.selection.geometry import clusters as clustering
from pipeline.selection.geometry import distances, spread
from pipeline.selection.geometry.clusters import kmeans, nearest_to_centroids, typicality
from pipeline.selection.geometry.spread import d2_sampling, k_center_greedy


def handle_at_a_time(monkeypatch: pytest.MonkeyPatch, n_rows: int) -> None:
    for module in (distances, spread, clustering):
        monkeypatch.setattr(module, "ROWS", n_rows)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_points(n: int, n_features: int = 6, seed: int = 1) -> Tensor:
    return torch.randn(n, n_features, generator=seeded(seed))


def some_clusters(n_clusters: int = 5, n_each: int = 20) -> Tensor:
    """Points around far corners, cluster after cluster."""
    corners = 100 * torch.eye(n_clusters, 6)
    return corners.repeat_interleave(n_each, dim=0) + some_points(n_clusters * n_each)


def slow_k_center(points: Tensor, n_picks: int, centres: Tensor, weights=None, groups=None, quota=None, nearest=0.0):
    """The definition, with the whole distance matrix again for every pick."""
    points, covered, picks = points.double().numpy(), list(centres.double().numpy()), []
    weights = np.ones(len(points)) if weights is None else weights.double().numpy()
    groups, room = (np.zeros(len(points), int), [n_picks]) if groups is None else (groups.numpy(), quota.tolist())
    for _ in range(n_picks):
        distance = scipy.spatial.distance.cdist(points, covered).min(axis=1)
        value = weights * distance
        value[picks] = -1
        value[(distance < nearest) | (np.array(room)[groups] < 1)] = -1
        if value.max() < 0:
            break
        picks.append(int(value.argmax()))
        room[groups[picks[-1]]] -= 1
        covered.append(points[picks[-1]])
    return picks


@pytest.mark.parametrize("block", [1, 3, 64, 1000])
@pytest.mark.parametrize("n_centres", [1, 30])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_k_center_is_exact(monkeypatch, block, n_centres, offset):
    monkeypatch.setattr(spread, "BLOCK", block)
    handle_at_a_time(monkeypatch, 70)
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


@pytest.mark.parametrize("block", [2, 40])
@pytest.mark.parametrize("n_features", [1, 2, 6])
def test_k_center_is_exact_where_old_bounds_say_little(monkeypatch, block, n_features):
    monkeypatch.setattr(spread, "BLOCK", block)
    points = torch.rand(400, n_features, generator=seeded())
    picks = k_center_greedy(points, 100, centres=points[:2], generator=seeded())
    assert picks.tolist() == slow_k_center(points, 100, points[:2])


@pytest.mark.parametrize("block", [3, 1000])
@pytest.mark.parametrize("nearest", [0.0, 1.5])
@pytest.mark.parametrize("with_quota", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_k_center_heeds_weights_quotas_and_near_duplicates(monkeypatch, block, nearest, with_quota, weighted):
    monkeypatch.setattr(spread, "BLOCK", block)
    points, centres = some_points(300), some_points(4, seed=2)
    weights = torch.rand(300, generator=seeded(3)) if weighted else None
    groups = torch.randint(4, (300,), generator=seeded(4)) if with_quota else None
    quota = torch.tensor([5, 0, 30, 8]) if with_quota else None
    options = {"weights": weights, "groups": groups, "quota": quota}
    picks = k_center_greedy(points, 60, centres=centres, generator=seeded(), min_distance=nearest, **options)
    assert picks.tolist() == slow_k_center(points, 60, centres, **options, nearest=nearest)
    if with_quota:
        assert (groups[picks].bincount(minlength=4) <= quota).all()
        assert quota.tolist() == [5, 0, 30, 8]  # the caller's own
    if nearest:
        others = torch.cat([points[picks], centres])
        assert torch.cdist(points[picks], others).fill_diagonal_(9).amin() >= nearest


def test_k_center_without_centres_begins_with_the_largest_weight_that_a_quota_allows():
    points, weights = some_points(50), torch.arange(50.0)
    options = {"weights": weights, "groups": torch.arange(50) // 25, "quota": torch.tensor([3, 0])}
    picks = k_center_greedy(points, 9, generator=seeded(), **options).tolist()
    assert picks[0] == 24
    assert picks[1:] == slow_k_center(points[:24], 2, points[24:25], weights=weights[:24])
    assert not len(k_center_greedy(points, 9, generator=seeded(), groups=torch.zeros(50).long(), quota=torch.zeros(1)))


def test_k_center_passes_over_near_duplicates():
    points = some_clusters()
    picks = k_center_greedy(points, 50, generator=seeded(), min_distance=50)
    assert sorted((picks // 20).tolist()) == [0, 1, 2, 3, 4]


def test_k_center_finds_duplicates_to_be_at_no_distance_at_all():
    points = torch.cat([some_points(40, 64) + 5] * 2)
    picks = k_center_greedy(points, 80, generator=seeded(), min_distance=1e-6)
    assert sorted((picks % 40).tolist()) == list(range(40))


@pytest.mark.parametrize("pick", [k_center_greedy, lambda points, *a, **k: d2_sampling([points], *a, **k)])
def test_nothing_as_large_as_the_points_is_made(monkeypatch, pick):
    handle_at_a_time(monkeypatch, 256)
    points = some_points(30_000, 32).half()
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        pick(points, 60, generator=seeded())
    largest = max(event.cpu_memory_usage for event in profile.function_events)
    assert 0 < largest < 1.2e6 < points.nbytes  # BLOCK x BLOCK in float32 is 1.05e6


def test_picks_do_not_depend_on_the_number_of_threads():
    points, threads = some_points(6000, 64), torch.get_num_threads()
    runs = []
    try:
        for n_threads in (1, 2):
            torch.set_num_threads(n_threads)
            centroids, clusters = kmeans(points, 40, generator=seeded())
            picks = k_center_greedy(points, 40, generator=seeded())
            runs.append((picks, d2_sampling([points], 40, generator=seeded()), clusters, centroids))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


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


def slow_d2_odds(points: Tensor, picks: list[int]) -> np.ndarray:
    """The odds of the next draw by the definition."""
    distance = scipy.spatial.distance.cdist(points.double(), points[picks].double(), "sqeuclidean").min(axis=1)
    return distance / distance.sum()


@pytest.mark.parametrize("proposals", [2, 256])  # many passes over all points, or a single one
def test_d2_sampling_draws_with_the_odds_of_the_textbook(monkeypatch, proposals):
    monkeypatch.setattr(spread, "PROPOSALS", proposals)
    factors = [some_points(6, 2), some_points(6, 3, seed=5)]
    points = torch.stack([torch.kron(*rows) for rows in zip(*factors, strict=True)])
    first = int(points.norm(dim=1).argmax())
    generator, n_runs = seeded(), 1500
    counts: dict[tuple[int, ...], int] = {}
    for _ in range(n_runs):
        draw = tuple(d2_sampling(factors, 3, generator=generator).tolist())
        counts[draw] = counts.get(draw, 0) + 1
    odds = {
        (first, i, j): slow_d2_odds(points, [first])[i] * slow_d2_odds(points, [first, i])[j]
        for i in range(6)
        for j in range(6)
        if len({first, i, j}) == 3
    }
    assert set(counts) <= set(odds)
    observed = [counts.get(draw, 0) for draw in odds]
    assert scipy.stats.chisquare(observed, n_runs * np.array(list(odds.values()))).pvalue > 0.01


def test_d2_sampling_goes_on_exactly_in_later_draws(monkeypatch):
    monkeypatch.setattr(spread, "PROPOSALS", 40)
    points = torch.cat([0.1 * some_points(30, 4), some_points(10, 4, seed=3)])
    generator, statistic = seeded(), []
    for _ in range(300):
        picks = d2_sampling([points], 9, generator=generator).tolist()
        for n in (2, 5, 8):  # where in the odds a draw falls is even in [0, 1], if the odds are right
            odds = slow_d2_odds(points, picks[:n])
            statistic.append(odds[: picks[n]].sum() + odds[picks[n]] * torch.rand(1, generator=generator).item())
    assert scipy.stats.kstest(statistic, "uniform").pvalue > 0.01


def test_d2_sampling_begins_with_the_longest_and_repeats_itself():
    factors = [some_points(300, 3), some_points(300, 8, seed=2)]
    runs = [d2_sampling(factors, 200, generator=seeded(seed)) for seed in (0, 0, 1)]
    assert runs[0][0] == (factors[0].norm(dim=1) * factors[1].norm(dim=1)).argmax()
    assert len(runs[0].unique()) == 200
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_d2_sampling_takes_no_duplicate_while_others_remain():
    points = torch.cat([some_points(15, 64)] * 4 + [torch.zeros(3, 64)])
    picks = d2_sampling([points], 63, generator=seeded()).tolist()
    kinds = [15 if pick >= 60 else pick % 15 for pick in picks]
    assert sorted(kinds[:16]) == list(range(16))
    assert picks[16:] == sorted(set(range(63)) - set(picks[:16]))


@pytest.mark.parametrize(("n", "n_picks", "wanted"), [(5, 9, 5), (1, 4, 1), (0, 3, 0), (5, 0, 0)])
def test_d2_sampling_takes_what_is_left(n, n_picks, wanted):
    for points in (some_points(n), torch.zeros(n, 6), some_points(n).half()):
        picks = d2_sampling([points], n_picks, generator=seeded())
        assert len(picks) == len(set(picks.tolist())) == wanted


def test_d2_sampling_takes_one_point_of_each_cluster():
    picks = d2_sampling([some_clusters()], 5, generator=seeded())
    assert sorted((picks // 20).tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("large", [10, 1000])
def test_kmeans_finds_clusters_that_are_far_apart(monkeypatch, large):
    monkeypatch.setattr(clustering, "LARGE", large)
    monkeypatch.setattr(clustering, "LARGE_CLUSTER", 8)
    points = some_clusters()
    centroids, clusters = kmeans(points, 5, generator=seeded())
    for members in clusters.view(5, 20):
        assert len(members.unique()) == 1
    assert len(clusters.unique()) == 5
    if large == 1000:  # those of a sample are near the mean, not on it
        means = torch.stack([points[clusters == c].mean(dim=0) for c in range(5)])
        torch.testing.assert_close(centroids, means, atol=1e-4, rtol=0)


@pytest.mark.parametrize("large", [10, 1000])
def test_kmeans_gives_each_point_its_nearest_centroid(monkeypatch, large):
    monkeypatch.setattr(clustering, "LARGE", large)
    monkeypatch.setattr(clustering, "LARGE_CLUSTER", 5)
    points = some_points(300)
    centroids, clusters = kmeans(points, 12, generator=seeded())
    np.testing.assert_array_equal(clusters.numpy(), pairwise_distances_argmin(points, centroids))


def test_kmeans_clusters_as_tightly_as_a_library():
    points = some_points(1000)
    centroids, clusters = kmeans(points, 30, generator=seeded())
    library = KMeans(30, n_init=1, random_state=0).fit(points.numpy())
    assert (points - centroids[clusters]).square().sum() < 1.03 * library.inertia_


@pytest.mark.parametrize("seed", range(6))
def test_kmeans_keeps_copies_together(seed):
    points = torch.randn(3, 6, generator=seeded())[torch.arange(99) // 33] + 20
    centroids, clusters = kmeans(points, 7, generator=seeded(seed))
    assert centroids.shape == (7, 6)
    assert sorted(clusters.bincount(minlength=7).tolist()) == [0, 0, 0, 0, 33, 33, 33]
    torch.testing.assert_close(centroids[clusters], points)


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
    handle_at_a_time(monkeypatch, 70)
    points = some_points(300)
    centroids, _ = kmeans(points, 12, generator=seeded())
    wanted = pairwise_distances_argmin(centroids, points)
    assert len(set(wanted)) == 12  # else the test would say nothing
    assert nearest_to_centroids(points, centroids).tolist() == wanted.tolist()


def test_a_point_that_is_taken_goes_to_no_other_centroid():
    points = torch.tensor([[0.0], [1.0], [5.0], [2.0]])
    assert nearest_to_centroids(points, torch.tensor([[0.9], [1.1], [1.0]])).tolist() == [1, 3, 0]
    assert nearest_to_centroids(points[:3] * 0, torch.zeros(3, 1)).unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("n_centroids", [30, 60])
def test_centroids_that_want_the_same_point_look_again_in_their_order(monkeypatch, n_centroids):
    handle_at_a_time(monkeypatch, 25)
    points, centroids = some_points(60, 2), some_points(n_centroids, 2, seed=5)
    distance = scipy.spatial.distance.cdist(centroids.double(), points.double())
    wanted: list[int | None] = [None] * n_centroids
    for centroid, position in enumerate(distance.argmin(axis=1)):
        wanted[centroid] = None if position in wanted else int(position)
    for centroid in [c for c, position in enumerate(wanted) if position is None]:
        wanted[centroid] = next(int(p) for p in distance[centroid].argsort() if p not in wanted)
    found = nearest_to_centroids(points, centroids).tolist()
    assert found == wanted
    assert found != distance.argmin(axis=1).tolist()


def test_clashes_take_no_copy_of_the_points(monkeypatch):
    handle_at_a_time(monkeypatch, 256)
    points = some_points(10, 32).repeat(3000, 1)
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        nearest_to_centroids(points, points[:20])
    largest = max(event.cpu_memory_usage for event in profile.function_events)
    assert 0 < largest < 200_000 < points.nbytes // 10


def test_more_centroids_than_points_are_refused():
    with pytest.raises(ValueError, match="5 centroids need as many points, got 2"):
        nearest_to_centroids(some_points(2), some_points(5))


@pytest.mark.parametrize("pairs", [100, 4_000_000])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_typicality_equals_that_of_a_loop(monkeypatch, pairs, dtype):
    monkeypatch.setattr(clustering, "PAIRS", pairs)
    points, clusters = some_points(120).to(dtype), torch.randint(4, (120,), generator=seeded()) * 7
    clusters[:5] = 3  # fewer than n_neighbours
    found = typicality(points, clusters, n_neighbours=10)
    for position in range(120):
        others = (clusters == clusters[position]).numpy()
        others[position] = False
        point = points[position, None].double()
        distance = np.sort(scipy.spatial.distance.cdist(point, points.double()[others])[0])[:10]
        assert found[position].item() == pytest.approx(1 / distance.mean(), rel=1e-4)


def test_typicality_is_nothing_alone_and_boundless_among_duplicates():
    points = torch.cat([some_points(1, 64), 3 + some_points(1, 64, seed=2).repeat(4, 1)])
    assert typicality(points, torch.tensor([0, 1, 1, 1, 1])).tolist() == [0, *[torch.inf] * 4]
    assert typicality(points[:0], torch.zeros(0).long()).shape == (0,)


def test_typicality_is_highest_in_the_middle():
    points = some_points(400)
    found = typicality(points, torch.zeros(400, dtype=torch.long))
    lengths = points.norm(dim=1)
    assert scipy.stats.spearmanr(found, lengths).statistic < -0.9
