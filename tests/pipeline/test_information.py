import itertools
import math

import pytest
import torch
from torch import Tensor

from pipeline.selection.acquisition import bald
from pipeline.selection.geometry import joint as information
from pipeline.selection.geometry.joint import bait, batch_bald


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_probs(n: int, n_members: int, n_classes: int, *, seed: int = 0, sharpness: float = 2.0) -> Tensor:
    return (sharpness * torch.randn(n, n_members, n_classes, generator=seeded(seed))).softmax(dim=-1)


def joint_entropy(probs: Tensor, *, generator: torch.Generator, n_configurations: int = 10_000) -> Tensor:
    """Entropy of the labels of several images together: of each given those before it, by the steps of BatchBALD."""
    configurations, seed = information._no_labels(probs), int(torch.randint(2**62, (), generator=generator))
    total = torch.zeros((), dtype=torch.float64)
    for place, image in enumerate(probs):
        total += information._conditional_entropy(image[None], configurations)[0]
        configurations = information._with_label(configurations, probs[: place + 1], n_configurations, seed)
    return total


def textbook_joint_entropy(images: list[list[list[float]]]) -> float:
    """Go through every combination of labels."""
    n_members, n_classes = len(images[0]), len(images[0][0])
    total = 0.0
    for labels in itertools.product(range(n_classes), repeat=len(images)):
        by_member = [math.prod(image[k][y] for image, y in zip(images, labels, strict=True)) for k in range(n_members)]
        p = sum(by_member) / n_members
        total -= p * math.log(p) if p > 0 else 0
    return total


def textbook_value(images: list[list[list[float]]]) -> float:
    """Mutual information of the labels of the images and the model."""
    of_rows = [-p * math.log(p) for image in images for row in image for p in row if p > 0]
    return textbook_joint_entropy(images) - sum(of_rows) / len(images[0])


def textbook_batch_bald(probs: Tensor, n_picks: int) -> list[int]:
    images = probs.tolist()
    picks: list[int] = []
    for _ in range(n_picks):
        rest = [i for i in range(len(images)) if i not in picks]
        picks.append(max(rest, key=lambda i: textbook_value([images[j] for j in [*picks, i]])))
    return picks


def value(probs: Tensor, picks: Tensor, n_configurations: int = 10_000) -> float:
    """Mutual information of a batch and the model."""
    told_by_member = torch.distributions.Categorical(probs[picks].double()).entropy().mean(dim=1).sum()
    return float(joint_entropy(probs[picks], generator=seeded(9), n_configurations=n_configurations) - told_by_member)


@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("sharpness", [0.5, 8.0])
def test_joint_entropy_equals_the_sum_over_all_labels(n_classes, sharpness):
    probs = some_probs(5, 4, n_classes, sharpness=sharpness)
    wanted = textbook_joint_entropy(probs.tolist())
    assert joint_entropy(probs, generator=seeded()).item() == pytest.approx(wanted, abs=1e-5)
    assert joint_entropy(probs.double(), generator=seeded()).item() == pytest.approx(wanted, abs=1e-6)


def test_joint_entropy_of_few_configurations_is_right_on_average():
    probs = some_probs(7, 5, 3)
    wanted = textbook_joint_entropy(probs.tolist())
    draws = torch.stack([joint_entropy(probs, generator=seeded(s), n_configurations=100) for s in range(100)])
    assert draws.std() > 0
    assert draws.mean().item() == pytest.approx(wanted, abs=4 * draws.std().item() / 10 + 1e-5)
    assert (draws - wanted).abs().max() < 0.15 < wanted


def test_joint_entropy_of_one_member_is_the_sum_of_the_entropies():
    probs = some_probs(8, 1, 10)
    wanted = torch.distributions.Categorical(probs[:, 0]).entropy().sum().item()
    assert joint_entropy(probs, generator=seeded(), n_configurations=50).item() == pytest.approx(wanted, abs=1e-4)


def test_sure_members_that_contradict_each_other_are_told_apart_by_one_label():
    image = torch.eye(5)
    probs = torch.stack([image, image, image])
    assert joint_entropy(probs, generator=seeded()).item() == pytest.approx(math.log(5), abs=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_batch_bald_picks_what_the_slow_textbook_loop_picks(seed):
    probs = some_probs(12, 5, 3, seed=seed)
    picks = batch_bald(probs, 4, generator=seeded())
    assert picks.tolist() == textbook_batch_bald(probs, 4)
    assert value(probs, picks) == pytest.approx(textbook_value(probs[picks].tolist()), abs=1e-5)


def test_batch_bald_of_a_large_pool_picks_what_updating_every_gain_picks():
    probs = some_probs(200, 6, 3, seed=3)
    picks = batch_bald(probs, 6, generator=seeded()).tolist()
    for place, pick in enumerate(picks):
        batches = [[*picks[:place], other] for other in range(200) if other not in picks[:place]]
        best = max(value(probs, torch.tensor(batch)) for batch in batches)
        assert value(probs, torch.tensor(picks[: place + 1])) == pytest.approx(best, abs=2e-6)
        assert pick not in picks[:place]


def test_batch_bald_starts_with_the_largest_bald():
    probs = some_probs(300, 10, 4)
    assert batch_bald(probs, 1, generator=seeded()).item() == bald(probs).argmax()


def test_a_duplicate_of_a_pick_tells_far_less_than_alone():
    probs = some_probs(40, 8, 3)
    probs = torch.cat([probs, probs])
    first = batch_bald(probs, 1, generator=seeded())
    alone = value(probs, first)
    again = value(probs, torch.cat([first, first + 40])) - alone
    assert again < 0.5 * alone
    picks, ranked = batch_bald(probs, 8, generator=seeded()), bald(probs).topk(8).indices
    assert len((picks % 40).unique()) > 4 == len((ranked % 40).unique())
    assert value(probs, picks) > value(probs, ranked) + 0.1


def test_few_configurations_cost_little_of_the_value():
    probs = some_probs(200, 8, 4, sharpness=1.0)
    exact = value(probs, batch_bald(probs, 6, generator=seeded()))
    for seed in range(3):
        picks = batch_bald(probs, 6, generator=seeded(seed), n_configurations=200)
        assert value(probs, picks) == pytest.approx(exact, rel=0.02)
    at_random = max(value(probs, torch.arange(start, start + 6)) for start in range(0, 60, 6))
    assert at_random < 0.9 * exact


def test_batch_bald_of_equal_images_takes_the_lowest_positions():
    probs = some_probs(1, 5, 3).expand(150, 5, 3)
    assert batch_bald(probs, 4, generator=seeded()).tolist() == [0, 1, 2, 3]


def test_batch_bald_of_one_member_has_nothing_to_tell_apart():
    assert batch_bald(some_probs(20, 1, 3), 3, generator=seeded()).tolist() == [0, 1, 2]


def test_batch_bald_takes_what_is_left_of_a_small_pool():
    assert sorted(batch_bald(some_probs(3, 5, 4), 10, generator=seeded()).tolist()) == [0, 1, 2]
    assert batch_bald(some_probs(3, 5, 4)[:0], 10, generator=seeded()).shape == (0,)


def test_batch_bald_is_the_same_for_the_same_seed_and_any_number_of_threads():
    probs = some_probs(2000, 8, 5)
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = batch_bald(probs, 30, generator=seeded(), n_configurations=3000)
        torch.set_num_threads(2)
        assert torch.equal(batch_bald(probs, 30, generator=seeded(), n_configurations=3000), alone)
    finally:
        torch.set_num_threads(n_threads)


def test_gains_hang_on_no_size_of_block_and_no_number_of_threads():
    probs = some_probs(100, 8, 5)
    configurations = information._no_labels(probs)
    for place in range(8):
        configurations = information._with_label(configurations, probs[: place + 1], 10_000, 0)
    n_threads, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for size in (1, 7, 32, 100):
                blocks = probs.split(size)
                found.append(torch.cat([information._conditional_entropy(block, configurations) for block in blocks]))
    finally:
        torch.set_num_threads(n_threads)
    assert len(configurations.weights) > 5000
    exact = information._conditional_entropy(probs.double(), configurations)
    assert max(float((entropies - found[0]).abs().max()) for entropies in found) < information.ROUNDING / 10
    assert float((found[0] - exact).abs().max()) < information.ROUNDING / 10


def test_batch_bald_takes_half_precision_and_exact_zeros():
    probs = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [1.0, 0.0]], [[0.5, 0.5], [1.0, 0.0]]])
    assert batch_bald(probs.half(), 3, generator=seeded()).tolist() == [0, 1, 2]


def some_features(n: int, n_features: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    features = torch.randn(n, n_features, generator=seeded(seed), dtype=torch.float64)
    return features, 0.3 + 0.7 * torch.rand(n, generator=seeded(seed + 100), dtype=torch.float64)


def fisher(h: Tensor, p: Tensor) -> Tensor:
    """(N, D, D) information of each image."""
    return torch.einsum("n,nd,ne->nde", p * (1 - p), h, h)


def textbook_bait(h: Tensor, p: Tensor, labelled_h: Tensor, labelled_p: Tensor, n_picks: int) -> list[int]:
    """Invert a matrix for every image at every step."""
    labelled = fisher(labelled_h, labelled_p).sum(dim=0)
    everything = labelled + fisher(h, p).sum(dim=0)
    known = labelled + torch.eye(h.shape[1], dtype=h.dtype)

    def trace(picks: list[int]) -> float:
        return float(torch.trace(torch.linalg.inv(known + fisher(h, p)[picks].sum(dim=0)) @ everything))

    picks: list[int] = []
    for _ in range(min(2 * n_picks, len(h))):
        picks.append(min((i for i in range(len(h)) if i not in picks), key=lambda i: trace([*picks, i])))
    while len(picks) > n_picks:
        picks.remove(min(picks, key=lambda i: trace([j for j in picks if j != i])))
    return picks


@pytest.mark.parametrize("n_labelled", [0, 15])
@pytest.mark.parametrize("seed", range(4))
def test_bait_picks_what_the_inverted_matrices_pick(seed, n_labelled):
    pool, labelled = some_features(40, 6, seed=seed), some_features(n_labelled, 6, seed=50 + seed)
    wanted = textbook_bait(*pool, *labelled, 5)
    assert bait(*pool, *labelled, 5).tolist() == wanted
    single = bait(*(part.float() for part in (*pool, *labelled)), 5)
    assert single.tolist() == wanted


def test_bait_drops_early_picks_that_later_ones_replace():
    pool, labelled = some_features(60, 5, seed=6), some_features(3, 5, seed=7)
    first_of_ten, first_of_two = bait(*pool, *labelled, 5).tolist(), bait(*pool, *labelled, 30).tolist()
    assert first_of_ten == textbook_bait(*pool, *labelled, 5)
    assert first_of_ten != first_of_two[:5]


def test_bait_loses_nothing_to_single_precision_over_many_picks():
    pool, labelled = some_features(2000, 24), some_features(50, 24, seed=1)
    everything = fisher(*pool).sum(dim=0) + fisher(*labelled).sum(dim=0)
    known = torch.eye(24, dtype=torch.float64) + fisher(*labelled).sum(dim=0)

    def trace(picks: Tensor) -> float:
        return float(torch.linalg.solve(known + fisher(*pool)[picks].sum(dim=0), everything).trace())

    single = bait(*(part.float() for part in (*pool, *labelled)), 100)
    assert trace(single) == pytest.approx(trace(bait(*pool, *labelled, 100)), rel=1e-3)
    assert trace(single) < 0.6 * trace(torch.arange(100))


def test_bait_spreads_over_the_directions():
    axes = torch.eye(4).repeat(25, 1) + 0.01 * torch.randn(100, 4, generator=seeded())
    picks = bait(axes, torch.full((100,), 0.5), torch.empty(0, 4), torch.empty(0), 4)
    assert sorted((picks % 4).tolist()) == [0, 1, 2, 3]


def test_bait_leaves_a_direction_alone_that_is_labelled():
    axes = torch.eye(2).repeat(20, 1)
    labelled = torch.tensor([[1.0, 0.0]]).repeat(30, 1)
    picks = bait(axes, torch.full((40,), 0.6), labelled, torch.full((30,), 0.6), 3)
    assert (picks % 2).tolist() == [1, 1, 1]


def test_bait_has_no_use_for_a_sure_image():
    features, confidences = some_features(30, 4)
    confidences[::2] = 1.0
    assert (bait(features, confidences, features[:0], confidences[:0], 5) % 2 == 1).all()


def test_bait_of_equal_images_takes_the_lowest_positions():
    features = torch.ones(50, 3)
    half = torch.full((50,), 0.5)
    picks = bait(features, half, features[:5], half[:5], 3)
    assert len(set(picks.tolist())) == 3
    assert picks.max() < 6


def test_bait_takes_what_is_left_of_a_small_pool():
    features, confidences = some_features(3, 4)
    assert sorted(bait(features, confidences, features, confidences, 7).tolist()) == [0, 1, 2]
    assert bait(features[:0], confidences[:0], features, confidences, 7).shape == (0,)


def test_bait_takes_half_precision():
    pool, labelled = some_features(200, 8), some_features(20, 8, seed=1)
    halves = [part.half() for part in (*pool, *labelled)]
    assert torch.equal(bait(*halves, 5), bait(*(part.float() for part in halves), 5))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_picks_the_same():
    probs = some_probs(300, 8, 5).double()
    picks = batch_bald(probs.cuda(), 10, generator=seeded(), n_configurations=500)
    assert picks.is_cuda
    assert torch.equal(picks.cpu(), batch_bald(probs, 10, generator=seeded(), n_configurations=500))
    pool, labelled = some_features(200, 8), some_features(20, 8, seed=1)
    assert bait(*(part.cuda() for part in (*pool, *labelled)), 5).tolist() == bait(*pool, *labelled, 5).tolist()
