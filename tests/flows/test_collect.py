from datetime import timedelta

import pytest

from connectors.annotation import Progress
from flows.collect import may_close

DAY = timedelta(days=1)


@pytest.mark.parametrize(
    ("progress", "close_at", "close_after", "waited", "closes"),
    [
        (Progress(n_tasks=100, n_labelled=37, n_set_aside=0), 1.0, None, 9 * DAY, False),
        (Progress(n_tasks=100, n_labelled=100, n_set_aside=0), 1.0, None, 0 * DAY, True),
        (Progress(n_tasks=100, n_labelled=98, n_set_aside=2), 1.0, None, 0 * DAY, True),
        (Progress(n_tasks=100, n_labelled=0, n_set_aside=100), 1.0, None, 0 * DAY, True),
        (Progress(n_tasks=97, n_labelled=97, n_set_aside=0), 1.0, None, 0 * DAY, True),
        (Progress(n_tasks=97, n_labelled=96, n_set_aside=0), 1.0, None, 0 * DAY, False),
        (Progress(n_tasks=100, n_labelled=89, n_set_aside=0), 0.9, None, 0 * DAY, False),
        (Progress(n_tasks=100, n_labelled=90, n_set_aside=0), 0.9, None, 0 * DAY, True),
        (Progress(n_tasks=100, n_labelled=1, n_set_aside=0), 0.9, 3 * DAY, 2 * DAY, False),
        (Progress(n_tasks=100, n_labelled=1, n_set_aside=0), 0.9, 3 * DAY, 3 * DAY, True),
    ],
)
def test_round_closes_when_enough_is_answered_or_enough_time_has_passed(
    progress, close_at, close_after, waited, closes
):
    assert may_close(progress, n_pushed=100, close_at=close_at, close_after=close_after, waited=waited) is closes
