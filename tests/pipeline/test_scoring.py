import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.selection.acquisition import ACQUISITIONS
from pipeline.selection.scoring import REDUCTIONS, score_columns, score_images
from pipeline.selection.settings import NEEDS_BACKGROUND, SelectionSettings

TEXTBOOK = {
    "foreground": lambda scores, there: sum(s * p for s, p in zip(scores, there, strict=True)) / sum(there),
    "max": lambda scores, _: max(scores),
    "mean": lambda scores, _: sum(scores) / len(scores),
    "sum": lambda scores, _: sum(scores),
    "top_tenth": lambda scores, _: np.mean(sorted(scores)[-max(1, int(np.ceil(len(scores) / 10))) :]),
}

every_reduction = pytest.mark.parametrize("reduce", REDUCTIONS)
every_acquisition = pytest.mark.parametrize("acquisition", ACQUISITIONS)


def some_decisions(n: int = 6, n_decisions: int = 25, n_members: int = 3, n_classes: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, n_decisions, n_members, n_classes, generator=generator).softmax(dim=-1)


@every_reduction
@every_acquisition
@pytest.mark.parametrize("n_decisions", [1, 9, 10, 11, 25])
def test_equals_the_slow_loop_over_decisions(reduce, acquisition, n_decisions):
    decisions = some_decisions(n_decisions=n_decisions)
    wanted = [
        TEXTBOOK[reduce](
            [ACQUISITIONS[acquisition](decision).item() for decision in image],
            [1 - decision[:, 0].mean().item() for decision in image],
        )
        for image in decisions
    ]
    assert score_images(decisions, acquisition, reduce=reduce).tolist() == pytest.approx(wanted, abs=1e-5)


@every_reduction
@every_acquisition
def test_any_split_into_shards_gives_the_same_scores(reduce, acquisition):
    decisions = some_decisions(n=10)
    whole = score_images(decisions, acquisition, reduce=reduce)
    shards = [score_images(shard, acquisition, reduce=reduce) for shard in decisions.split([1, 6, 3])]
    torch.testing.assert_close(torch.cat(shards), whole, atol=1e-6, rtol=0)


@every_reduction
def test_one_decision_is_its_own_score(reduce):
    decisions = some_decisions(n_decisions=1)
    wanted = ACQUISITIONS["entropy"](decisions).squeeze(1)
    torch.testing.assert_close(score_images(decisions, "entropy", reduce=reduce), wanted)


def test_columns_are_the_scores_by_name():
    decisions = some_decisions()
    columns = {"score": ("bald", "sum"), "entropy": ("entropy", "mean"), "most": ("entropy", "max")}
    found = score_columns(decisions, columns)
    assert list(found) == list(columns)
    for name, (acquisition, reduce) in columns.items():
        assert torch.equal(found[name], score_images(decisions, acquisition, reduce=reduce))


def test_the_parts_of_the_uncertainty_are_columns_that_add_up():
    columns = score_columns(some_decisions(), {name: (name, "mean") for name in ("entropy", "aleatoric", "epistemic")})
    torch.testing.assert_close(columns["aleatoric"] + columns["epistemic"], columns["entropy"])


def test_where_nothing_is_there_for_sure_no_foreground_is_a_doubt():
    decisions = torch.tensor([1.0, 0.0, 0.0]).expand(2, 9, 3, 3).clone()
    assert score_images(decisions, "entropy", reduce="foreground").tolist() == [0.0, 0.0]
    decisions[1, 4, :] = torch.tensor([0.5, 0.5, 0.0])
    alone, beside = score_images(decisions, "entropy", reduce="foreground"), decisions[1, 4, None, None]
    assert alone[1] == score_images(beside, "entropy", reduce="mean")


def test_settings_know_every_reduction():
    assert set(NEEDS_BACKGROUND) == set(REDUCTIONS)
    assert {name for name, needs in NEEDS_BACKGROUND.items() if needs} == {"foreground"}
    assert SelectionSettings(reduction="max").of_size(3).reduction == "max"
    with pytest.raises(ValueError, match="unknown reduction 'top_ten', did you mean 'top_tenth'"):
        SelectionSettings(reduction="top_ten")


def test_no_images_give_no_scores():
    assert score_images(some_decisions(n=0), "entropy", reduce="mean").shape == (0,)


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 4), (3, 0, 2, 4)])
def test_wants_four_axes_and_a_decision(shape):
    with pytest.raises(ValueError, match=r"decisions must be \(n, U, K, C\)"):
        score_images(torch.full(shape, 0.25), "entropy", reduce="mean")


def test_refuses_logits():
    decisions = some_decisions()
    decisions[4, 2, 1] = torch.tensor([5.0, 2.0, -1.0, 0.0])
    with pytest.raises(ValueError, match=r"row \(4, 2, 1\)"):
        score_images(decisions, "entropy", reduce="mean")


def test_a_wrong_name_gets_the_nearest_one():
    with pytest.raises(ValueError, match="unknown acquisition function 'entropie', did you mean 'entropy'"):
        score_images(some_decisions(), "entropie", reduce="mean")
    with pytest.raises(ValueError, match=r"unknown reduction 'median'.* foreground, max, mean, sum, top_tenth"):
        score_images(some_decisions(), "entropy", reduce="median")
