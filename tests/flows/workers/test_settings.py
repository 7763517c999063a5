"""Settings of workers: what is refused in the campaign's file."""

import pytest
from pydantic import ValidationError

from flows.config import ConfigError, load_settings
from flows.replay.command import replay_strategies
from flows.replay.inputs import ReplayError
from flows.replay.options import Options
from flows.workers.settings import WorkerSettings


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"workers": "ray", "ray_address": "ray://head:10001"}, "ray://, is not supported: start Ray on this machine"),
        ({"workers": "ray", "ray_address": "auto"}, "that of its head, 'HOST:PORT'"),
        ({"workers": "ray", "ray_address": "head"}, "that of its head, 'HOST:PORT'"),
        ({"workers": "ray", "ray_gpus": 1.5}, "in fractions of one, or as a whole number"),
        ({"ray_address": "head:6379"}, "and workers = 'local' uses none"),
        ({"gpus_per_network": 2}, "and workers = 'local' has none"),
    ],
)
def test_what_would_join_another_cluster_or_do_nothing_is_refused(values, told):
    with pytest.raises(ValidationError, match=told):
        WorkerSettings(**values)


def test_addresses_and_shares_of_gpus_are_taken():
    for address in ("head:6379", "10.0.0.5:6379", "[::1]:6379"):
        assert WorkerSettings(workers="ray", ray_address=address, ray_gpus=0.25).ray_address == address


def test_gpus_for_each_network_are_refused_where_heads_alone_are_trained(tmp_path):
    file = tmp_path / "pets.toml"
    file.write_text(
        'name = "pets"\npool = "."\nclasses = ["cat", "dog"]\nbudget = 9\naudit_size = 2\nseed_set_size = 2\n'
        'workers = "ray"\ngpus_per_network = 2\n[model]\nname = "torchvision:resnet18"\nimage_size = 32\n'
        'weights = "IMAGENET1K_V1"\ntrain = "head"\n'
    )
    with pytest.raises(ConfigError, match="leave gpus_per_network out"):
        load_settings(file)


def test_worker_has_room_for_the_processes_of_a_network():
    on_processors = WorkerSettings(workers="ray", ray_cpus=3, gpus_per_network=2)
    on_gpus = WorkerSettings(workers="ray", ray_cpus=3, ray_gpus=0.5, gpus_per_network=2)
    assert [on_processors.needs(), on_processors.needs(2)] == [(3, 0), (6, 0)]
    assert [on_gpus.needs(), on_gpus.needs(2)] == [(3, 0.5), (6, 2)]


def test_processes_for_a_replay_are_refused_where_the_campaign_has_workers_of_ray(tmp_path):
    file = tmp_path / "pets.toml"
    file.write_text(
        'name = "pets"\npool = "."\nclasses = ["cat", "dog"]\nbudget = 9\naudit_size = 2\nseed_set_size = 2\n'
        'workers = "ray"\n[model]\nname = "small_cnn"\nimage_size = 8\n'
    )
    with pytest.raises(ReplayError, match="workers of Ray: leave it out"):
        replay_strategies(Options(out=tmp_path / "out", campaign=file, workers=2))
