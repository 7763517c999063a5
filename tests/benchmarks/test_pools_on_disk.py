"""Pools that the benchmarks of scale run on."""

from benchmarks.pools_on_disk import write_pool
from pipeline.pool.table import usable
from tests.images import index_images


def test_a_pool_has_as_many_images_as_asked_for_each_of_its_own_content(tmp_path):
    table = index_images(write_pool(tmp_path, 25, per_folder=10))
    assert len(usable(table)) == 25
    assert len(list(tmp_path.iterdir())) == 3


def test_a_larger_pool_keeps_what_is_there(tmp_path):
    small = index_images(write_pool(tmp_path, 15, per_folder=10))
    large = index_images(write_pool(tmp_path, 40, per_folder=10))
    assert large["item_id"].isin(small["item_id"]).sum() == 15
    kept = large[large["item_id"].isin(small["item_id"])]
    assert kept["uri"].tolist() == small["uri"].tolist()
