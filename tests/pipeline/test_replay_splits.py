import pytest
import torch

from pipeline.evaluation.splits import draw_split


def test_split_is_disjoint_takes_its_share_of_each_class_and_hangs_on_the_seed_alone():
    targets = torch.arange(200) % 4
    split = draw_split(targets, test_size=40, start=20, seed=3)
    assert torch.cat(split).sort().values.tolist() == list(range(200))
    assert targets[split.test].bincount().tolist() == [10, 10, 10, 10]
    again, other = (draw_split(targets, test_size=40, start=20, seed=seed) for seed in (3, 4))
    assert all(torch.equal(one, two) for one, two in zip(split, again, strict=True))
    assert not torch.equal(split.start, other.start)
    assert not torch.equal(split.test, other.test)


def test_split_takes_a_test_set_that_is_given():
    test = torch.tensor([7, 150, 3, 44])
    splits = [draw_split(torch.arange(200) % 4, test_size=4, start=20, seed=seed, test=test) for seed in (3, 3, 4)]
    assert all(split.test.tolist() == [3, 7, 44, 150] for split in splits)
    assert all(torch.cat(split).sort().values.tolist() == list(range(200)) for split in splits)
    assert len(splits[0].start) == 20
    assert torch.equal(splits[0].start, splits[1].start)
    assert not torch.equal(splits[0].start, splits[2].start)


def test_split_is_drawn_evenly_where_a_class_is_too_rare_to_give_a_test_image():
    targets = torch.tensor([0] * 20 + [1])
    assert len(draw_split(targets, test_size=5, start=4, seed=0).test) == 5
    with pytest.raises(ValueError, match="21 images cannot give 18 to test on and 4 to start with"):
        draw_split(targets, test_size=18, start=4, seed=0)
