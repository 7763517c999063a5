"""Settings of workers: what is refused in the campaign's file."""

import pytest
from pydantic import ValidationError

from flows.workers.settings import WorkerSettings


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"workers": "ray", "ray_address": "ray://head:10001"}, "ray://, is not supported: start Ray on this machine"),
        ({"workers": "ray", "ray_address": "auto"}, "that of its head, 'HOST:PORT'"),
        ({"workers": "ray", "ray_address": "head"}, "that of its head, 'HOST:PORT'"),
        ({"workers": "ray", "ray_gpus": 1.5}, "in fractions of one, or as a whole number"),
        ({"ray_address": "head:6379"}, "and workers = 'local' uses none"),
    ],
)
def test_what_would_join_another_cluster_or_do_nothing_is_refused(values, told):
    with pytest.raises(ValidationError, match=told):
        WorkerSettings(**values)


def test_addresses_and_shares_of_gpus_are_taken():
    for address in ("head:6379", "10.0.0.5:6379", "[::1]:6379"):
        assert WorkerSettings(workers="ray", ray_address=address, ray_gpus=0.25).ray_address == address
