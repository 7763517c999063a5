"""Processes that train one network together; on processors, where a GPU has no part in it."""

import multiprocessing
import time

import psutil
import pytest
import torch

from flows.batch_sizes import NAME
from flows.workers.cluster import WrongWorkers
from flows.workers.together import LostProcess, do_together
from pipeline.training.fit import TrainingError
from tests.flows.workers.together_pieces import be_killed, be_wrong, learn, wait

PLENTY = 10**9


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LABELCYCLE_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


def together(run, folder, piece=None, n=2):
    do_together(run, folder, piece, n=n, on_gpus=False)


def test_two_processes_come_to_the_weights_of_one(tmp_path):
    """Also with classes of weight, random changes to the images, overlaps, and a batch that is not shared evenly."""
    learn(tmp_path, ("segmentation", PLENTY))
    alone = torch.load(tmp_path / "learnt.pt")
    together(learn, tmp_path, ("segmentation", PLENTY))
    found = torch.load(tmp_path / "learnt.pt")
    torch.testing.assert_close(found["state"], alone["state"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found["gradients"], alone["gradients"], rtol=1e-4, atol=1e-6)
    for one, other in zip(found["history"], alone["history"], strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    assert [(tmp_path / f"{rank} of 2").read_text() for rank in (0, 1)] == ["4", "4"]


def test_processes_that_run_out_of_memory_begin_anew_with_half_and_come_to_the_same(tmp_path):
    """Also where what they find cannot be kept."""
    (tmp_path / "home" / NAME).mkdir()
    learn(tmp_path, ("classification", PLENTY))
    alone = torch.load(tmp_path / "learnt.pt")
    together(learn, tmp_path, ("classification", 2))
    torch.testing.assert_close(torch.load(tmp_path / "learnt.pt")["state"], alone["state"], rtol=1e-3, atol=1e-4)


def test_killed_process_ends_the_others_within_seconds(tmp_path):
    begun = time.monotonic()
    with pytest.raises(LostProcess, match="process 2 of 2 ended with SIGKILL"):
        together(be_killed, tmp_path)
    assert time.monotonic() - begun < 60
    assert multiprocessing.active_children() == []


def test_error_of_one_process_is_that_of_the_piece(tmp_path):
    with pytest.raises(TrainingError, match="the loss is nan"):
        together(be_wrong, tmp_path)


def test_processes_end_with_the_one_that_began_them_and_listen_on_this_machine_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")  # as a cluster may have it
    worker = multiprocessing.get_context("spawn").Process(target=together, args=(wait, tmp_path))
    worker.start()
    end = time.monotonic() + 60
    while len(list(tmp_path.glob("*.waits"))) < 2 and time.monotonic() < end:
        time.sleep(0.2)
    ranks = [psutil.Process(int(path.stem)) for path in tmp_path.glob("*.waits")]
    assert len(ranks) == 2
    connections = [one for rank in ranks for one in rank.net_connections() if one.status == psutil.CONN_LISTEN]
    assert connections
    assert {one.laddr.ip.removeprefix("::ffff:") for one in connections} == {"127.0.0.1"}
    worker.kill()
    _, alive = psutil.wait_procs(ranks, timeout=10)
    assert alive == []
    worker.join()


def test_fewer_gpus_than_processes_are_refused_with_the_mend(tmp_path):
    with pytest.raises(WrongWorkers, match="a worker sees 0 GPUs: set ray_gpus = 1"):
        do_together(learn, tmp_path, ("classification", PLENTY), n=2, on_gpus=True)
