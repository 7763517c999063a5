"""Workers of Ray: a real cluster on loopback, whose machines come and go."""

import ipaddress
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from PIL import Image

from flows.replay.command import replay_strategies
from flows.replay.folder import Replay
from flows.replay.options import Options
from flows.replay.workers import run_jobs
from flows.workers import cluster as joining
from flows.workers import ray as spreading
from flows.workers.cluster import Probed, WorkersError, WrongWorkers, check_machine, joined, load_ray, sweep, told_of
from flows.workers.ray import Spread
from flows.workers.settings import WorkerSettings
from pipeline.evaluation.summary import SECONDS
from pipeline.networks.state_dicts import read_state_dict
from tests.flows.loop import Loop
from tests.flows.workers.pieces import die_always, die_once, fail, tell_node, tell_process
from tests.flows.workers.together_pieces import lose_one

ROOT = Path(__file__).parents[3]
TOKEN = "5a" * 32
N_IMAGES = 4200
"""More than a shard."""
NOT_ALIKE = {
    *("config.json", "seconds.json", "summary.json", "round.json", "pages.json", "pushing.json", "pushed.json"),
    "progress.json",
}
"""Files of a round with times or with the settings, which name the workers."""


@pytest.fixture(scope="module")
def cluster():
    """A machine with two processors, which wants a token; others may be added."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", TOKEN)
        from ray._private.authentication_test_utils import reset_auth_token_state
        from ray.cluster_utils import Cluster

        reset_auth_token_state()  # another test may have loaded Ray
        made = Cluster()
        add_machine(made, "127.0.0.2")
        yield made
        made.shutdown()
    reset_auth_token_state()


def add_machine(cluster, address, **more):
    """Add a machine; Ray gives its processes 30 s, which a busy machine may exceed."""
    for left in (2, 1, 0):
        try:
            return cluster.add_node(num_cpus=2, node_ip_address=address, object_store_memory=10**8, **more)
        except Exception:
            if not left:
                raise
    return None


@pytest.fixture
def settings(cluster):
    return WorkerSettings(workers="ray", ray_address=cluster.address)


@pytest.fixture(scope="module")
def pool(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    rng = np.random.default_rng(0)
    for n in range(N_IMAGES):
        Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8)).save(folder / f"{n}.png")
    return folder


def made_in(folder: Path) -> dict[str, object]:
    """What the files of a round hold, but for times and for the names that PyTorch gives inside its files."""
    made: dict[str, object] = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in NOT_ALIKE):
        name = str(path.relative_to(folder))
        if path.suffix == ".pt":
            made[name] = {key: values.numpy().tobytes() for key, values in read_state_dict(path).items()}
        elif path.name in ("labelled.parquet", "audit.parquet"):
            made[name] = pd.read_parquet(path).drop(columns="answered_at", errors="ignore").to_csv()
        else:
            made[name] = path.read_bytes()
    return made


def test_round_on_ray_writes_what_it_writes_locally(cluster, pool, tmp_path):
    extra = f'workers = "ray"\nray_address = "{cluster.address}"'
    loops = {"local": Loop(tmp_path / "local", pool), "ray": Loop(tmp_path / "ray", pool, extra)}
    rounds = {}
    for name, loop in loops.items():
        loop.change(('pool = "images"', f"pool = {json.dumps(str(pool))}"))
        loop.run()
        loop.label()
        loop.run()
        rounds[name] = made_in(loop.folder.round(1).path)
    assert {"members/member-0.json", "members/member-1.pt", "scores/part-00001.parquet"} <= rounds["ray"].keys()
    assert rounds["ray"].keys() == rounds["local"].keys()
    assert [name for name, content in rounds["ray"].items() if content != rounds["local"][name]] == []


def test_processes_train_a_network_together_on_ray_and_their_lines_come_to_the_screen(cluster, tmp_path, capfd):
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    for n in range(40):
        Image.fromarray(rng.integers(0, 255, (12, 12, 3), dtype=np.uint8)).save(images / f"{n}.png")
    extra = f'workers = "ray"\nray_address = "{cluster.address}"\ngpus_per_network = 2'
    members = {}
    for name, more in {"alone": "", "together": extra}.items():
        loop = Loop(tmp_path / name, images, more)
        loop.change(
            ('pool = "images"', f"pool = {json.dumps(str(images))}"),
            ('"small_cnn"', '"tests.flows.workers.together_pieces:telling_network"'),
            ("channels = 1", "channels = 3\ndropout = 0"),
            ("image_size = 8", "image_size = 12"),
            ("ensemble = 2", "ensemble = 1"),
        )
        loop.run()
        loop.label()
        assert "round 1 asks for 4 labels" in loop.run()
        files = loop.folder.round(1).path / "members"
        members[name] = read_state_dict(files / "member-0.pt")
    torch.testing.assert_close(members["together"], members["alone"], rtol=1e-3, atol=1e-4)
    shown = capfd.readouterr().err
    assert ["process 1 of 2" in shown, "process 2 of 2" in shown] == [True, True]


def test_piece_of_processes_of_which_one_is_killed_is_done_again_and_told(settings, tmp_path, capsys):
    done = []
    with joined(settings, tmp_path):
        Spread(settings, tmp_path, lose_one, together=lambda _n: 2).do([5], done.append)
    assert done == [5]
    assert "a worker died, and 5 is done again: process 2 of 2 ended with SIGKILL" in capsys.readouterr().err


def test_piece_whose_worker_is_killed_is_done_again_and_told(settings, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(spreading, "REPEATS", 1)
    done = []
    with joined(settings, tmp_path):
        Spread(settings, tmp_path, die_once).do(range(4), done.append)
        assert sorted(done) == [0, 1, 2, 3]
        assert len(list(tmp_path.glob("*.done"))) == 4
        assert capsys.readouterr().err.count("a worker died, and 1 is done again") == 1
        with pytest.raises(WorkersError, match="7 lost its worker 2 times"):
            Spread(settings, tmp_path, die_always).do([7], done.append)
        with pytest.raises(ValueError, match="piece 3 is wrong"):
            Spread(settings, tmp_path, fail).do([3], done.append)


def test_machine_that_comes_is_used_and_pieces_of_one_that_goes_are_done_again(cluster, settings, tmp_path):
    added = []

    def change(_n: int) -> None:
        begun = {path.name.split(".")[1] for path in tmp_path.glob("*.begun")}
        if not added:
            added.append(add_machine(cluster, "127.0.0.3"))
        elif added[0] in cluster.worker_nodes and added[0].node_id in begun:
            cluster.remove_node(added[0], allow_graceful=False)

    with joined(settings, tmp_path):
        Spread(settings, tmp_path, tell_node).do(range(24), change)
    assert len(list(tmp_path.glob("*.done"))) == 24
    assert added[0] not in cluster.worker_nodes
    assert list(tmp_path.glob(f"*.{added[0].node_id}.begun"))


def test_piece_with_a_gpu_has_a_process_of_its_own(cluster, tmp_path):
    """Torch computes on the first GPU that a process was given, whichever it is given later."""
    machine = add_machine(cluster, "127.0.0.4", num_gpus=1)
    settings = WorkerSettings(workers="ray", ray_address=cluster.address, ray_gpus=1)
    with joined(settings, tmp_path):
        Spread(settings, tmp_path, tell_process).do(range(2), lambda _piece: None)
    cluster.remove_node(machine)
    told = [path.read_text().split() for path in tmp_path.glob("*.done")]
    assert len({process for process, _ in told}) == 2
    assert [gpu for _, gpu in told] == ["0", "0"]


def test_replay_on_ray_comes_to_what_it_comes_to_locally(settings, tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "features.npy", rng.normal(size=(90, 4)).astype(np.float32))
    pd.DataFrame({"file": range(90), "label": np.arange(90) % 3}).to_csv(tmp_path / "labels.csv", index=False)
    data = {"features": tmp_path / "features.npy", "labels": tmp_path / "labels.csv"}
    how = {"strategies": "random", "seeds": 2, "query_size": 10, "rounds": 2, "workers": 1}
    replay_strategies(Options(out=tmp_path / "out", **data, **how))
    replay = Replay(tmp_path / "out")
    here = replay.curves().drop(columns=list(SECONDS))
    shutil.rmtree(replay.path / "runs")
    run_jobs(replay, workers=1, elsewhere=settings)
    pd.testing.assert_frame_equal(replay.curves().drop(columns=list(SECONDS)), here)


def test_more_processes_for_a_network_than_any_machine_has_room_for_are_refused_at_once(cluster, tmp_path):
    settings = WorkerSettings(workers="ray", ray_address=cluster.address, gpus_per_network=64)
    with pytest.raises(WrongWorkers, match="gpus_per_network = 64 needs a machine with 64 processors and 0 GPUs"):
        joined(settings, tmp_path).__enter__()


def test_gpus_that_no_machine_has_are_refused_at_once(cluster, tmp_path):
    settings = WorkerSettings(workers="ray", ray_address=cluster.address, ray_gpus=1)
    with pytest.raises(WrongWorkers, match=r"ray_gpus = 1: no machine of the Ray .* has so many; .* and 0 GPUs"):
        joined(settings, tmp_path).__enter__()


def test_cluster_lets_nobody_in_without_its_token(cluster, tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "tests.flows.workers.private", tmp_path, cluster.address]
    tried = subprocess.run(
        command, cwd=ROOT, env=environment | {"HOME": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert tried.returncode
    assert f"WrongWorkers: Ray at {cluster.address} wants its token" in tried.stderr
    assert TOKEN not in tried.stderr + tried.stdout


def test_address_that_nobody_answers_at_is_told_within_seconds(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        begun = time.monotonic()
        with pytest.raises(WorkersError, match=f"no Ray cluster answers at {address}"):
            joined(WorkerSettings(workers="ray", ray_address=address), tmp_path).__enter__()
    assert time.monotonic() - begun < joining.REACH_SECONDS + 2


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        (
            RuntimeError("Version mismatch: The cluster was started with:\n Ray: 2.0.0"),
            "is of another version: .*2.0.0",
        ),
        (RuntimeError("Unauthenticated: no token"), "at head:6379 wants its token: let RAY_AUTH_TOKEN_PATH"),
        (RuntimeError("No node info found matching attributes: ''"), "ray start --address=head:6379` makes it one"),
        (OSError("no file descriptors"), "does not begin at head:6379: no file descriptors"),
    ],
)
def test_why_ray_does_not_begin_is_told_with_its_mend(cause, told):
    hidden = ConnectionError("Failed to connect to Ray cluster at head:6379")
    hidden.__cause__ = cause
    for exc in (cause, hidden):
        assert re.search(told, str(told_of(exc, "head:6379")))


def test_death_of_rays_own_process_ends_the_run_at_once(tmp_path, monkeypatch, capsys):
    ray = load_ray()

    def die(_sent):
        raise ray.exceptions.LocalRayletDiedError

    monkeypatch.setattr(ray, "get", die)
    spread = Spread(WorkerSettings(workers="ray"), tmp_path, die_once)
    with pytest.raises(WorkersError, match=r"Ray's own process .* ended while workers did train, .*: run again"):
        spread._is_done(None, "train", Counter())
    assert capsys.readouterr().err == ""


def test_without_ray_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(WrongWorkers, match=r'pip install "labelcycle\[ray\]"'):
        load_ray()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"mark": None}, "does not see the files in .* put it on a disk that all machines mount"),
        ({"mark": "another folder"}, "does not see the files in"),
        ({"unseen": ("/images",)}, "does not see, or may not write to, /images"),
        ({"versions": joining.versions() | {"torch": "1.0"}}, r"has torch 1\.0, not .*: install the same"),
    ],
)
def test_machine_that_sees_something_else_is_refused(changed, told, tmp_path):
    like_this_one = {"host": "far", "versions": joining.versions(), "mark": "here", "unseen": ()}
    check_machine(Probed(**like_this_one), "here", tmp_path)
    with pytest.raises(WrongWorkers, match=told):
        check_machine(Probed(**like_this_one | changed), "here", tmp_path)


def test_private_cluster_listens_on_loopback_alone_and_ends_with_a_run_that_is_killed(tmp_path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    foreign = {"RAY_ADDRESS": "10.255.255.1:6379", "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "tests.flows.workers.private", tmp_path]
    with subprocess.Popen(command, cwd=ROOT, env=environment | foreign, stdout=subprocess.PIPE, text=True) as run:
        try:
            assert run.stdout.readline() == "ready\n"
            started = psutil.Process(run.pid).children(recursive=True)
            connections = [one for each in started for one in each.net_connections()]
            listening = {
                one.laddr.ip.removeprefix("::ffff:") for one in connections if one.status == psutil.CONN_LISTEN
            }
            assert listening
            assert [ip for ip in listening if not ipaddress.ip_address(ip).is_loopback] == []
            assert not (tmp_path / ".ray").exists(), "the token is in the run's environment, and nowhere else"
            kept = list(joining.short_folder().glob(f"{joining.OWN_FOLDER}{run.pid}-*"))
            assert len(kept) == 1
        finally:
            run.send_signal(signal.SIGKILL)
    names = {one.pid: one.name() for one in started if one.is_running()}
    _, alive = psutil.wait_procs([one for one in started if not names.get(one.pid, "").endswith("Agent")], timeout=40)
    assert alive == []
    for agent in started:  # notices by itself, after a minute
        with suppress(psutil.NoSuchProcess):
            agent.kill()
    sweep()
    assert not kept[0].exists()
