import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.probabilities import check_probs
from pipeline.selection.acquisition import (
    ACQUISITIONS,
    CPU_VALUES,
    bald,
    entropy,
    margin,
    score_all,
    variation_ratio,
)
from pipeline.selection.settings import NEEDS_MEMBERS

Rows = list[list[float]]


def _mean(rows: Rows) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def _entropy(row: list[float]) -> float:
    return -sum(p * math.log(p) for p in row if p > 0)


def _variances(rows: Rows) -> list[float]:
    return [sum((row[c] - m) ** 2 for row in rows) / len(rows) for c, m in enumerate(_mean(rows))]


def _variation_ratio(rows: Rows) -> float:
    votes = [sum(row[c] == max(row) for row in rows) for c in range(len(rows[0]))]
    n = len(rows)
    tie_break = _entropy(_mean(rows)) / math.log(len(rows[0])) * (n - 1) / (2 * n * n)
    return 1 - max(votes) / n + tie_break


TEXTBOOK = {
    "entropy": lambda rows: _entropy(_mean(rows)),
    "margin": lambda rows: 1 - (sorted(_mean(rows))[-1] - sorted(_mean(rows))[-2]),
    "least_confidence": lambda rows: 1 - max(_mean(rows)),
    "variance": lambda rows: sum(_variances(rows)) / len(rows[0]),
    "mean_std": lambda rows: sum(math.sqrt(v) for v in _variances(rows)) / len(rows[0]),
    "variation_ratio": _variation_ratio,
    "bald": lambda rows: _entropy(_mean(rows)) - sum(_entropy(row) for row in rows) / len(rows),
}


def _numpy_margin(probs: np.ndarray) -> np.ndarray:
    top = np.partition(probs.mean(axis=-2), -2, axis=-1)
    return 1 - (top[..., -1] - top[..., -2])


def _scipy_variation_ratio(probs: np.ndarray) -> np.ndarray:
    n_members, n_classes = probs.shape[-2:]
    ratio = 1 - scipy.stats.mode(probs.argmax(axis=-1), axis=-1).count / n_members
    spread = scipy.stats.entropy(probs.mean(axis=-2), axis=-1) / np.log(n_classes)
    return ratio + spread * (n_members - 1) / (2 * n_members**2)


def _scipy_bald(probs: np.ndarray) -> np.ndarray:
    to_the_mean = scipy.special.rel_entr(probs, probs.mean(axis=-2, keepdims=True))
    return to_the_mean.sum(axis=-1).mean(axis=-1)  # mean divergence of the members from their mean


SECOND_LIBRARY = {
    "entropy": lambda probs: scipy.stats.entropy(probs.mean(axis=-2), axis=-1),
    "margin": _numpy_margin,
    "least_confidence": lambda probs: 1 - probs.mean(axis=-2).max(axis=-1),
    "variance": lambda probs: probs.var(axis=-2).mean(axis=-1),
    "mean_std": lambda probs: probs.std(axis=-2).mean(axis=-1),
    "variation_ratio": _scipy_variation_ratio,
    "bald": _scipy_bald,
}

every = pytest.mark.parametrize("name", ACQUISITIONS)


def some_probs(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (2 * logits).softmax(dim=-1).to(dtype)


@st.composite
def members(draw: st.DrawFn) -> Tensor:
    """(K, C) probabilities, among them exact zeros and ties."""
    n_classes = draw(st.integers(2, 5))
    weights = st.lists(st.integers(0, 4), min_size=n_classes, max_size=n_classes).filter(any)
    rows = torch.tensor(draw(st.lists(weights, min_size=1, max_size=6)), dtype=torch.float64)
    return rows / rows.sum(dim=-1, keepdim=True)


@every
def test_equals_the_slow_textbook_loop(name):
    probs = some_probs(7, 3, 5, 4)
    got = ACQUISITIONS[name](probs)
    for row in np.ndindex(7, 3):
        assert got[row].item() == pytest.approx(TEXTBOOK[name](probs[row].tolist()), abs=1e-12)


@every
def test_equals_a_second_library(name):
    probs = some_probs(200, 7, 10)
    np.testing.assert_allclose(ACQUISITIONS[name](probs).numpy(), SECOND_LIBRARY[name](probs.numpy()), atol=1e-12)


@every
@given(probs=members())
@settings(deadline=None, max_examples=60)
def test_equals_the_textbook_with_zeros_and_ties(name, probs):
    assert ACQUISITIONS[name](probs).item() == pytest.approx(TEXTBOOK[name](probs.tolist()), abs=1e-12)


@every
@given(probs=members(), data=st.data())
@settings(deadline=None, max_examples=60)
def test_ignores_the_order_of_classes_and_members(name, probs, data):
    classes = data.draw(st.permutations(range(probs.shape[1])))
    order = data.draw(st.permutations(range(probs.shape[0])))
    other = ACQUISITIONS[name](probs[order][:, classes])
    torch.testing.assert_close(other, ACQUISITIONS[name](probs), atol=1e-12, rtol=0)


@every
@pytest.mark.parametrize("shape", [(5, 4), (6, 5, 4), (6, 2, 5, 4), (0, 1, 5, 4)])
def test_keeps_the_leading_axes(name, shape):
    assert ACQUISITIONS[name](some_probs(*shape)).shape == shape[:-2]


@every
def test_does_not_change_its_input(name):
    probs = some_probs(20, 3, 4)
    before = probs.clone()
    ACQUISITIONS[name](probs)
    assert torch.equal(probs, before)


@pytest.mark.parametrize(("name", "largest"), [("entropy", math.log(4)), ("margin", 1.0), ("least_confidence", 0.75)])
def test_is_largest_where_all_classes_are_equally_likely(name, largest):
    uniform = torch.full((1, 1, 4), 0.25)
    assert ACQUISITIONS[name](uniform).item() == pytest.approx(largest, abs=1e-6)
    assert (ACQUISITIONS[name](some_probs(500, 1, 4)) < largest).all()


@every
def test_is_exactly_zero_where_all_members_are_sure_of_one_class(name):
    one_hot = torch.eye(3)[torch.tensor([[0, 0], [2, 2]])]
    assert ACQUISITIONS[name](one_hot).tolist() == [0, 0]


@every
def test_is_finite_with_exact_zeros(name):
    probs = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]])
    assert ACQUISITIONS[name](probs).isfinite().all()


@every
def test_a_sure_image_scores_below_an_unsure_one(name):
    sure = torch.tensor([[0.98, 0.01, 0.01], [0.97, 0.01, 0.02], [0.98, 0.02, 0.0]])
    unsure = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.5, 0.4], [0.2, 0.3, 0.5]])
    low, high = ACQUISITIONS[name](torch.stack([sure, unsure]))
    assert low < high


def test_the_smallest_gap_scores_highest():
    gaps = torch.tensor([0.9, 0.02, 0.5])
    probs = torch.stack([(1 + gaps) / 2, (1 - gaps) / 2], dim=-1)[:, None]
    assert margin(probs).argmax() == 1
    torch.testing.assert_close(margin(probs), 1 - gaps)


def test_margin_and_entropy_may_disagree():
    two_rivals, long_tail = [0.5, 0.5, 0.0, 0.0], [0.4, 0.2, 0.2, 0.2]
    probs = torch.tensor([[two_rivals], [long_tail]])
    assert margin(probs).argmax() == 0
    assert entropy(probs).argmax() == 1


@every
def test_only_what_needs_members_is_zero_with_one(name):
    score = ACQUISITIONS[name](some_probs(50, 1, 6, dtype=torch.float32))
    assert bool((score == 0).all()) == NEEDS_MEMBERS[name]


@every
def test_members_that_agree_count_as_one(name):
    one = some_probs(50, 1, 6)
    copies = one.expand(50, 7, 6)
    if name == "variation_ratio":  # members that agree are ranked by entropy, below any disagreement
        assert (variation_ratio(copies) < 1 / 14).all()
        assert torch.equal(variation_ratio(copies).argsort(), entropy(one).argsort())
    else:
        torch.testing.assert_close(ACQUISITIONS[name](copies), ACQUISITIONS[name](one), atol=1e-12, rtol=0)


@given(probs=members())
@settings(deadline=None)
def test_bald_lies_between_zero_and_log_of_the_classes(probs):
    score = bald(probs.float()).item()
    assert 0 <= score <= math.log(probs.shape[1]) + 1e-6


def test_bald_of_equal_members_rounds_to_zero_from_above():
    score = bald(some_probs(2000, 1, 10, dtype=torch.float32).expand(2000, 7, 10))
    assert (score >= 0).all()
    assert score.max() < 1e-5


def test_bald_is_largest_where_sure_members_contradict_each_other():
    assert bald(torch.eye(5)).item() == pytest.approx(math.log(5))


def test_the_parts_of_the_uncertainty_add_up():
    probs = some_probs(100, 5, 4)
    parts = score_all(probs, ["entropy", "aleatoric", "epistemic"])
    torch.testing.assert_close(parts["entropy"], parts["aleatoric"] + parts["epistemic"])
    torch.testing.assert_close(parts["aleatoric"], torch.distributions.Categorical(probs).entropy().mean(dim=-1))
    assert torch.equal(parts["epistemic"], bald(probs))


def test_entropy_breaks_ties_of_the_variation_ratio_and_never_outweighs_a_vote():
    a_lonely_voice = [[0.99, 0.01]] * 9 + [[0.49, 0.51]]
    all_agree_barely = [[0.501, 0.499]] * 10
    all_agree_surely = [[0.999, 0.001]] * 10
    scores = variation_ratio(torch.tensor([all_agree_surely, a_lonely_voice, all_agree_barely]))
    assert scores.argsort(descending=True).tolist() == [1, 2, 0]
    assert ((scores * 10 + 1e-5).floor() / 10).tolist() == pytest.approx([0, 0.1, 0])


@every
@pytest.mark.parametrize("n_over", [-1, 0, 1])
def test_many_images_score_as_each_of_them_does(name, n_over):
    n = 2 * CPU_VALUES // 40 + n_over
    some = some_probs(101, 4, 10, dtype=torch.float32)
    rows = torch.arange(n) % 101
    torch.testing.assert_close(ACQUISITIONS[name](some[rows]), ACQUISITIONS[name](some)[rows], atol=1e-6, rtol=0)


def test_all_scores_together_equal_each_alone():
    probs = some_probs(30, 4, 5, 6, dtype=torch.float32)
    together = score_all(probs, ACQUISITIONS)
    assert list(together) == list(ACQUISITIONS)
    for name, scores in together.items():
        assert torch.equal(scores, ACQUISITIONS[name](probs))


@every
def test_the_number_of_threads_changes_no_bit(name):
    probs = some_probs(30_000, 5, 10, dtype=torch.float32)
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = ACQUISITIONS[name](probs)
        torch.set_num_threads(3)
        assert torch.equal(ACQUISITIONS[name](probs), alone)
    finally:
        torch.set_num_threads(n_threads)


@every
def test_members_and_classes_may_be_stored_the_other_way_round(name):
    probs = some_probs(50, 5, 4)
    stored = probs.transpose(1, 2).contiguous()
    torch.testing.assert_close(ACQUISITIONS[name](stored.transpose(1, 2)), ACQUISITIONS[name](probs))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@every
def test_a_gpu_gives_the_same_scores(name):
    probs = some_probs(1000, 5, 10, dtype=torch.float32)
    scores = ACQUISITIONS[name](probs.cuda())
    assert scores.is_cuda
    torch.testing.assert_close(scores.cpu(), ACQUISITIONS[name](probs), atol=1e-5, rtol=0)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single_precision(name, dtype):
    probs = some_probs(40, 5, 8, dtype=dtype)
    score = ACQUISITIONS[name](probs)
    assert score.dtype == torch.float32
    assert torch.equal(score, ACQUISITIONS[name](probs.float()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("n_classes", [2, 10, 1000])
def test_check_takes_a_softmax_of_any_type(dtype, n_classes):
    probs = some_probs(64, 2, n_classes, dtype=dtype)
    checked = check_probs(probs)
    assert checked.dtype == (dtype if dtype in (torch.float32, torch.float64) else torch.float32)
    assert torch.equal(checked.to(dtype), probs)


def test_check_copies_nothing():
    probs = some_probs(3, 2, 4, dtype=torch.float32)
    assert check_probs(probs) is probs


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0.5, 0.6], "sums to 1.1"),
        ([3.0, -2.0], "negative value, -2"),
        ([2.0, 5.0], "logits must be turned into probabilities"),
        ([math.nan, 1.0], "is not finite"),
        ([math.inf, 0.0], "is not finite"),
        ([math.inf, -math.inf], "is not finite"),
        ([0.0, 0.0], "sums to 0"),
    ],
)
@pytest.mark.parametrize("later", [[0.5, 0.5], [7.0, 7.0]])
def test_check_names_the_first_bad_row(row, message, later):
    probs = torch.full((4, 3, 2), 0.5)
    probs[2, 1] = torch.tensor(row)
    probs[3, 0] = torch.tensor(later)
    with pytest.raises(ValueError, match=r"row \(2, 1\) .*" + message):
        check_probs(probs)


@pytest.mark.parametrize("shape", [(4,), (4, 0, 3), (4, 3, 1)])
def test_check_wants_members_and_classes(shape):
    with pytest.raises(ValueError, match=r"must be \(..., K, C\)"):
        check_probs(torch.ones(shape))


def test_check_wants_a_floating_point_type():
    with pytest.raises(TypeError, match=r"torch\.int64"):
        check_probs(torch.tensor([[0, 1]]))


def test_check_takes_no_images():
    assert check_probs(torch.empty(0, 1, 2, 3)).shape == (0, 1, 2, 3)
