import pandas as pd
import pytest

from pipeline.pool.audit import count_known, outgrown_text
from pipeline.pool.reasons import IN_AUDIT


def pool(n_used: int, *, n_lost: int = 0, n_late: int = 0, n_broken: int = 0) -> pd.DataFrame:
    """A pool table of so many images that are used, vanished, came late into a group of the audit set, are none."""
    reasons = [None] * n_used + ["cannot be read"] * n_lost + [IN_AUDIT] * n_late + ["damaged"] * n_broken
    n_items = n_used + n_lost + n_late
    items = [f"{number:032x}" for number in range(n_items)] + [None] * n_broken
    return pd.DataFrame({"item_id": items, "set_aside_reason": pd.Series(reasons, dtype="str")})


def test_images_are_known_though_they_vanished_and_not_where_they_are_held_out():
    assert count_known(pool(10, n_lost=3, n_late=2, n_broken=4)) == 13


@pytest.mark.parametrize(("n_then", "is_told"), [(100, False), (81, False), (80, True), (1, True)])
def test_a_pool_outgrows_its_audit_set_when_a_fifth_is_new(n_then, is_told):
    assert (outgrown_text(pool(100), n_then) is not None) == is_told


def test_images_that_vanished_and_are_held_out_are_not_new():
    table = pool(100, n_lost=50, n_late=90)
    assert outgrown_text(table, count_known(table)) is None


def test_the_share_of_new_images_bounds_what_the_accuracy_may_be_off_by():
    told = outgrown_text(pool(4000), 3000)
    assert told is not None
    assert told.startswith("1,000 of 4,000 images came after the audit set was drawn")
    assert "off by up to 25 points on all images" in told
