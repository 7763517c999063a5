"""What many workers come to is worked out by list scheduling."""

import pytest

from benchmarks.workers import efficiency


def test_pieces_go_to_whichever_worker_is_free_first():
    assert efficiency([1.0] * 8, 4, serial=0.0, of_piece=0.0) == 1
    assert efficiency([1.0] * 9, 4, serial=0.0, of_piece=0.0) == 9 / (4 * 3)
    assert efficiency([3.0, 1.0, 1.0, 1.0], 2, serial=0.0, of_piece=0.0) == 1


def test_what_ray_takes_to_begin_and_for_each_piece_is_lost_to_all_workers():
    assert efficiency([1.0] * 4, 4, serial=1.0, of_piece=0.0) == 0.5
    assert efficiency([1.0] * 4, 4, serial=0.0, of_piece=0.25) == pytest.approx(4 / (4 * 2))
