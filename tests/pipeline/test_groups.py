import pandas as pd
import pytest
import torch

from pipeline.pool.group_rules import check_rule, groups_of
from pipeline.pool.groups import draw_groups, group_codes, strata_of_groups
from pipeline.pool.table import group_counts


def drawn_of(sizes, *, size, seed=0, strata=None):
    groups = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    generator = torch.Generator().manual_seed(seed)
    return groups, draw_groups(groups, size=size, generator=generator, strata=strata)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("sizes", [[10] * 16, [1] * 50, [1, 2, 3, 5, 8, 13, 21, 34], [60, 1, 1, 1, 1, 1, 1, 1, 1, 1]])
def test_whole_groups_are_drawn_up_to_the_size_and_none_that_fits_is_left(sizes, seed):
    groups, drawn = drawn_of(sizes, size=12, seed=seed)
    inside, outside = set(groups[drawn].tolist()), set(groups[~drawn].tolist())
    assert not inside & outside
    left = 12 - int(drawn.sum())
    assert 0 <= left < min(sizes[group] for group in outside)


def test_every_group_of_one_size_is_drawn_as_often():
    counts = torch.zeros(8)
    for seed in range(800):
        groups, drawn = drawn_of([5] * 8, size=10, seed=seed)
        counts += torch.isin(torch.arange(8), groups[drawn])
    assert (counts / 800 - 0.25).abs().max() < 0.06


@pytest.mark.parametrize("seed", range(10))
def test_classes_give_groups_in_turn(seed):
    strata = torch.tensor([0, 1] * 8).repeat_interleave(10)
    _, drawn = drawn_of([10] * 16, size=40, seed=seed, strata=strata)
    assert strata[drawn].bincount().tolist() == [20, 20]


def test_a_group_is_of_its_most_frequent_class():
    assert strata_of_groups(torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([1, 1, 0, 2, 0, 0])).tolist() == [1, 0, 0]


def test_an_image_without_a_group_is_on_its_own_even_where_names_are_equal():
    codes = group_codes(pd.Series(["x", None, "x", None], dtype="str"), pd.Series(["a", "x", "c", "d"], dtype="str"))
    assert codes.tolist() == [0, 1, 0, 2]
    assert group_codes(pd.Series([None, None], dtype="str"), pd.Series(["a", "a"], dtype="str")) is None


@pytest.mark.parametrize(
    ("rule", "groups"),
    [
        ("parent", ["v1", "v1", "deep/er", "."]),
        (r"^(v\d+)/", ["v1", "v1", None, None]),
        (r"(\d)\.png$", ["1", "2", "1", None]),
        (r"v(\d)?", ["1", "1", None, None]),
    ],
)
def test_rules_find_groups_in_paths(rule, groups):
    assert groups_of(["v1/f1.png", "v1/f2.png", "deep/er/f1.png", "still.png"], rule) == groups


def test_a_rule_that_finds_nothing_is_an_error_with_an_example():
    with pytest.raises(ValueError, match=r"'clip\(\\\\d\)' names no group in any of 2 paths, for example 'a.png'"):
        groups_of(["a.png", "b.png"], r"clip(\d)")


@pytest.mark.parametrize(
    ("rule", "told"),
    [("(", "not a regular expression"), ("frame", "this one has 0"), ("(a)(b)", "this one has 2"), ("", "has 0")],
)
def test_what_is_no_rule_is_refused(rule, told):
    with pytest.raises(ValueError, match=told):
        check_rule(rule)
    assert check_rule("(?:a|b)(c)") == "(?:a|b)(c)"


def test_counts_are_of_usable_images():
    pool = pd.DataFrame(
        {
            "group": ["a", "a", "b", None, "c"],
            "split": ["audit", "audit", "pool", "audit", "pool"],
            "set_aside_reason": [None, None, None, None, "broken"],
        }
    )
    assert group_counts(pool) == {"n_groups": 2, "largest": 2, "n_alone": 1, "n_audit_groups": 2, "n_audit": 3}
    assert group_counts(pool.assign(group=None)) == group_counts(pool.drop(columns="group")) == {}
