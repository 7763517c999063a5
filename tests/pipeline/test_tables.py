"""The pool table, asked where images are."""

import numpy as np
import pandas as pd
import pytest

from pipeline.pool.table import as_table
from pipeline.tables import PoolTable


@pytest.fixture
def pool() -> PoolTable:
    """Images in no order of their ids, of which one is set aside and one has moved."""
    numbers = np.random.default_rng(0).permutation(50)
    rows = pd.DataFrame({"item_id": [f"{n:032x}" for n in numbers], "uri": [f"/new/{n}" for n in numbers]})
    rows["set_aside_reason"] = [None] * 49 + ["gone"]
    return PoolTable(as_table(rows))


def test_parts_of_a_pool_are_found_where_all_of_it_is(pool):
    ids = [*pool.table["item_id"].tolist()[::7], pool.table["item_id"].iloc[49], "f" * 32, "abc"]
    items = pd.DataFrame({"item_id": ids, "uri": "/old"}, index=range(10, 10 + len(ids)))
    found = pool.located_part(items)
    pd.testing.assert_frame_equal(found, pool.located(items), check_dtype=False)
    assert found["uri"].tolist()[-3:] == ["/old"] * 3
    assert found.index[0] == 10
    assert pool.located_part(items.iloc[:0]).empty


def test_items_that_are_still_usable_are_those_of_the_pool_that_are_not_set_aside(pool):
    items = pd.DataFrame({"item_id": [*pool.table["item_id"].iloc[40:], "f" * 32, "abc"]}, index=range(10, 22))
    pd.testing.assert_frame_equal(pool.usable_part(items), items.iloc[:9])  # the tenth is set aside
    assert pool.usable_part(items.iloc[:0]).empty
