import base64
import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

import httpx
import mlflow
import numpy as np
import obstore
import pytest
import requests
import torch
from mlflow import MlflowClient
from packaging.requirements import Requirement

import connectors.mlflow.tracker
from connectors.escaping import mlflow_key
from connectors.mlflow.loader import load_ensemble
from connectors.mlflow.tracker import MLflowTracker
from connectors.tracking import MemberHistory, TrackerError, TrackerUnavailable
from deploy import programs
from deploy.logins import USER
from deploy.processes import free_port
from deploy.programs import Place
from pipeline.networks.build import build_model, with_new_head
from pipeline.networks.weights import save_trunk, save_weights
from tests.hostile import HIDDEN, NAMES
from tests.s3 import ADMIN

CHECKOUT = Path(connectors.mlflow.tracker.__file__).parents[2]
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
DESCRIPTION = {
    "name": "small_cnn",
    "n_classes": 3,
    "image_size": 8,
    "channels": 1,
    "dropout": 0.5,
    "classes": ["ant", "bee", "cat"],
}
EPOCHS = [{"train_loss": 1 / epoch, "validation_accuracy": 0.1 * epoch} for epoch in range(1, 6)]
MEMBERS = [MemberHistory("member-0", 7, EPOCHS), MemberHistory("member-1", 8, EPOCHS[:3])]
METRICS = {"accuracy": 0.75, "recall/ant": 0.5}


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with answering(command, QUIET, folder / "log", f"http://127.0.0.1:{port}") as uri:
        yield uri


@contextmanager
def answering(command, environment, file, uri):
    """The address of a server that runs meanwhile."""
    with file.open("wb") as log:
        server = subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(f"{uri}/health", server)
        yield uri
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def wait_for(address, server):
    for _ in range(600):
        assert server.poll() is None, "the server ended while starting"
        try:
            if httpx.get(address, trust_env=False).is_success:
                return
        except httpx.HTTPError:
            time.sleep(0.2)
    raise TimeoutError(f"{address} does not answer")


@pytest.fixture(scope="module")
def sqlite_uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('sqlite') / 'new' / 'mlflow.db'}"


@pytest.fixture(params=["server", "sqlite"])
def uri(request):
    return request.getfixturevalue({"server": "mlflow_uri", "sqlite": "sqlite_uri"}[request.param])


@pytest.fixture
def campaign():
    return f"ants & bees: {uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A round's files: weights of two members, their description, one artefact."""
    folder = tmp_path_factory.mktemp("round")
    for seed in (0, 1):
        save_weights(build(seed), folder / f"member-{seed}.pt")
    (folder / "model.json").write_text(json.dumps(DESCRIPTION))
    (folder / "confusion.csv").write_text("ant,bee,cat\n1,0,0\n")
    return folder


def build(seed):
    shape = {key: DESCRIPTION[key] for key in ("n_classes", "image_size", "channels", "dropout")}
    return build_model(DESCRIPTION["name"], **shape, weights=None, seed=seed)


def log_model(tracker, run_id, files):
    return tracker.log_model(run_id, weights=sorted(files.glob("member-*.pt")), description=files / "model.json")


def log_whole_round(uri, campaign, files):
    tracker = MLflowTracker(uri=uri, campaign=campaign)
    run_id = tracker.start_round(1, params={"strategy": "bald", "seed": 3}, tags={"device": "cpu"})
    tracker.log_members(run_id, MEMBERS)
    model = log_model(tracker, run_id, files)
    tracker.log_round(run_id, metrics=METRICS, step=100, artifacts=[files / "confusion.csv"])
    tracker.name_champion(model)
    tracker.finish_round(run_id)
    return run_id


def runs_of(uri, campaign):
    """All runs of the campaign, told by their kind, round and member."""
    client = MlflowClient(uri, uri)
    experiment = client.get_experiment_by_name(campaign)
    tags = ("labelcycle.kind", "labelcycle.round", "labelcycle.member")
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == len({tuple(run.data.tags.get(tag) for tag in tags) for run in runs})
    return {" ".join(filter(None, (run.data.tags.get(tag) for tag in tags))): run for run in runs}


def history(uri, run, name):
    points = MlflowClient(uri, uri).get_metric_history(run.info.run_id, name)
    return sorted((point.step, point.value) for point in points)


def assert_one_record(uri, campaign):
    """Everything that `log_whole_round` logs is there, once."""
    client = MlflowClient(uri, uri)
    runs = runs_of(uri, campaign)
    assert runs.keys() == {"campaign", "round 1", "member member-0", "member member-1"}
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert runs["round 1"].data.params == {"strategy": "bald", "seed": "3"}
    assert runs["round 1"].data.tags["device"] == "cpu"
    parents = {name: run.data.tags.get("mlflow.parentRunId") for name, run in runs.items()}
    round_id = runs["round 1"].info.run_id
    assert parents == {
        "campaign": None,
        "round 1": None,
        "member member-0": round_id,
        "member member-1": round_id,
    }
    for member in MEMBERS:
        run = runs[f"member {member.name}"]
        assert run.data.params == {"seed": str(member.seed)}
        for name in EPOCHS[0]:
            wanted = [(step, row[name]) for step, row in enumerate(member.epochs, start=1)]
            assert history(uri, run, name) == wanted
    for name, value in METRICS.items():
        assert history(uri, runs["round 1"], name) == [(100, value)]
        assert history(uri, runs["campaign"], name) == [(100, value)]
    artefacts = [(found.path, found.file_size) for found in client.list_artifacts(round_id)]
    assert artefacts == [("confusion.csv", 18)]
    [model] = client.search_logged_models([runs["round 1"].info.experiment_id])
    assert model.status == "READY"
    assert [output.model_id for output in client.get_run(round_id).outputs.model_outputs] == [model.model_id]
    [version] = client.search_model_versions(f"run_id = '{round_id}'")
    assert client.get_model_version_by_alias(version.name, "champion").version == version.version


def test_a_repeated_round_leaves_one_record(uri, campaign, files):
    first = log_whole_round(uri, campaign, files)
    assert_one_record(uri, campaign)
    assert log_whole_round(uri, campaign, files) == first
    assert_one_record(uri, campaign)


@pytest.mark.skipif(find_spec("boto3") is None, reason="boto3 is not installed")
def test_artefacts_of_a_server_with_a_bucket_lie_there_and_clients_need_no_keys(
    s3, bucket, campaign, files, tmp_path, monkeypatch
):
    s3.put(bucket, {"other": b""})
    place = Place(tmp_path, f"http://127.0.0.1:{(port := free_port())}", port)
    command, environment = programs.mlflow(place, "s3cret-of-mlflow", session_key="k", artifacts=f"s3://{bucket}/runs")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", USER)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "s3cret-of-mlflow")
    with answering(command, environment | s3.environment(), tmp_path / "log", place.url) as uri:
        tracker = MLflowTracker(uri=uri, campaign=campaign)
        run_id = tracker.start_round(1, params={}, tags={})
        log_model(tracker, run_id, files)
        tracker.log_round(run_id, metrics=METRICS, step=100, artifacts=[files / "confusion.csv"])
        [version] = MlflowClient(uri, uri).search_model_versions(f"run_id = '{run_id}'")
        there = {
            path.name: path.read_bytes()
            for path in Path(mlflow.artifacts.download_artifacts(version.source, tracking_uri=uri)).rglob("*.pt")
        }
    assert {*there.values()} == {path.read_bytes() for path in files.glob("member-*.pt")}
    keys = {Path(one["path"]).name for page in obstore.list(s3.store(bucket), "runs") for one in page}
    assert {"confusion.csv", *there} <= keys
    assert not [text for text in (tmp_path / "log").read_text().splitlines() if ADMIN.secret in text]


KILLED = """
import importlib.util, os, signal, sys, threading, time
from pathlib import Path
import requests

spec = importlib.util.spec_from_file_location("test_mlflow", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
uri, campaign, files, moments = sys.argv[2], sys.argv[3], Path(sys.argv[4]), sys.argv[5:]

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def die_after_answer(number):
    send, seen = requests.Session.send, []
    def counted(*args, **kwargs):
        answer = send(*args, **kwargs)
        seen.append(answer)
        if len(seen) == number:
            die()
        return answer
    requests.Session.send = counted

for moment in moments:
    child = os.fork()
    if child == 0:
        if uri.startswith("http"):
            die_after_answer(int(moment))
        else:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            threading.Thread(target=lambda: (time.sleep(float(moment)), die()), daemon=True).start()
        tests.log_whole_round(uri, f"{campaign} {moment}", files)
        os._exit(0)
    print(moment, os.waitpid(child, 0)[1], flush=True)
"""
AFTER_ANSWERS = (5, 17, 29, 41, 53)
AFTER_SECONDS = (0.05, 0.2, 0.4)


def test_a_round_killed_at_any_moment_and_repeated_leaves_one_record(uri, campaign, files):
    moments = AFTER_ANSWERS if uri.startswith("http") else AFTER_SECONDS
    MLflowTracker(uri=uri, campaign=campaign).start_round(1, params={})
    worker = subprocess.run(
        [sys.executable, "-c", KILLED, __file__, uri, campaign, str(files), *map(str, moments)],
        env=os.environ | QUIET,
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    ends = [int(line.split()[1]) for line in worker.stdout.splitlines()]
    assert len(ends) == len(moments)
    assert ends.count(signal.SIGKILL) >= 2, f"nearly all rounds were over before they were killed: {ends}"
    for moment in moments:
        log_whole_round(uri, f"{campaign} {moment}", files)
        assert_one_record(uri, f"{campaign} {moment}")


def test_the_campaign_draws_its_learning_curve_with_a_point_for_each_round(uri, campaign):
    tracker = MLflowTracker(uri=uri, campaign=campaign)
    curve = [(100, 0.6), (200, 0.8), (200, 0.7)]  # a round can end without new labels
    for number, (step, accuracy) in enumerate(curve, start=1):
        for _ in range(2):
            run_id = tracker.start_round(number, params={})
            tracker.log_round(run_id, metrics={"accuracy": accuracy}, step=step, artifacts=[])
            tracker.finish_round(run_id)
    runs = runs_of(uri, campaign)
    assert history(uri, runs["campaign"], "accuracy") == sorted(curve)
    assert history(uri, runs["round 2"], "accuracy") == [(200, 0.8)]


def test_a_round_costs_as_many_requests_however_long_the_curve_is(mlflow_uri, campaign, files, monkeypatch):
    tracker = MLflowTracker(uri=mlflow_uri, campaign=campaign)
    metrics = {f"metric_{number}": 0.5 for number in range(30)}
    sent: list[str] = []
    send = requests.adapters.HTTPAdapter.send

    def count_and_send(adapter, request, **options):
        sent.append(urlsplit(request.url).path)
        return send(adapter, request, **options)

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", count_and_send)
    costs = []
    for number in range(1, 4):
        sent.clear()
        run_id = tracker.start_round(number, params={"seed": 3}, tags={"device": "cpu"})
        tracker.log_members(run_id, MEMBERS)
        log_model(tracker, run_id, files)
        tracker.log_round(
            run_id, metrics=metrics, step=10 * number, artifacts=[files / "confusion.csv"], tags={"a": "b"}
        )
        tracker.finish_round(run_id)
        costs.append(len(sent))
    assert costs[2] == costs[1] < costs[0] < 60
    client = MlflowClient(mlflow_uri)
    experiment = client.get_experiment_by_name(campaign).experiment_id
    [curve] = client.search_runs([experiment], "tags.`labelcycle.kind` = 'campaign'")
    assert history(mlflow_uri, curve, "metric_7") == [(10, 0.5), (20, 0.5), (30, 0.5)]


def test_a_replay_has_a_run_for_each_arm_with_its_mean_curve(uri, campaign, files):
    tracker = MLflowTracker(uri=uri, campaign=campaign)
    curves = {
        "random": [(20, {"accuracy": 0.5, "nll": 1.5}), (40, {"accuracy": 0.6, "nll": 1.25})],
        "power:bald": [(20, {"accuracy": 0.5, "nll": 1.5}), (40, {"accuracy": 0.75, "nll": 1.0})],
    }
    totals = {"random": {"aulc_mean": 0.55}, "power:bald": {"aulc_mean": 0.625, "aulc_low": 0.6, "aulc_high": 0.65}}
    artifacts = [files / "confusion.csv"]
    for replay_id in ("first", "first", "other"):
        run_id = tracker.log_replay(replay_id, params={"seeds": 3}, curves=curves, totals=totals, artifacts=artifacts)
    client = MlflowClient(uri, uri)
    found = client.search_runs([client.get_experiment_by_name(campaign).experiment_id])
    assert len(found) == 2 * 3, "what is logged again is found again"
    newest = [run for run in found if run_id in (run.info.run_id, run.data.tags.get("mlflow.parentRunId"))]
    runs = {run.info.run_name: run for run in newest}
    assert set(runs) == {"replay other", "random", "power:bald"}
    assert history(uri, runs["power:bald"], "accuracy") == [(20, 0.5), (40, 0.75)]
    assert history(uri, runs["power:bald"], "aulc_low") == [(40, 0.6)]
    assert runs["random"].data.metrics["aulc_mean"] == 0.55
    assert runs["replay other"].data.params == {"seeds": "3"}
    assert {run.info.status for run in found} == {"FINISHED"}


def test_a_campaign_runs_while_a_round_does(uri, campaign):
    tracker = MLflowTracker(uri=uri, campaign=campaign)
    tracker.finish_round(tracker.start_round(1, params={}))
    assert runs_of(uri, campaign)["campaign"].info.status == "FINISHED"
    tracker.start_round(1, params={})
    assert runs_of(uri, campaign)["campaign"].info.status == "FINISHED"
    tracker.start_round(2, params={})
    assert runs_of(uri, campaign)["campaign"].info.status == "RUNNING"


def test_completes_a_history_that_was_written_in_part(uri, campaign):
    tracker = MLflowTracker(uri=uri, campaign=campaign)
    run_id = tracker.start_round(1, params={})
    tracker.log_members(run_id, [MemberHistory("member-0", 7, EPOCHS[:2])])
    tracker.log_members(run_id, [MemberHistory("member-0", 7, EPOCHS)])
    run = runs_of(uri, campaign)["member member-0"]
    assert [step for step, _ in history(uri, run, "train_loss")] == [1, 2, 3, 4, 5]


def test_a_history_of_thousands_of_points_is_logged_whole(uri, campaign):
    tracker = MLflowTracker(uri=uri, campaign=campaign)
    run_id = tracker.start_round(1, params={})
    epochs = [{"train_loss": 1 / epoch, "validation_loss": 2 / epoch} for epoch in range(1, 700)]
    for _ in range(2):
        tracker.log_members(run_id, [MemberHistory("member-0", 7, epochs)])
    run = runs_of(uri, campaign)["member member-0"]
    assert history(uri, run, "validation_loss") == [(step, 2 / step) for step in range(1, 700)]


def test_numbers_that_are_not_finite_and_names_of_any_signs_are_logged_once(uri, campaign):
    tracker = MLflowTracker(uri=uri, campaign=campaign)
    run_id = tracker.start_round(1, params={})
    metrics = {"loss": math.inf, "nll": -math.inf, "ece": math.nan, "recall/a&b": 0.1, "recall/a+b": 0.2}
    for _ in range(2):
        tracker.log_round(run_id, metrics=metrics, step=10, artifacts=[])
    run = runs_of(uri, campaign)["round 1"]
    assert len(run.data.metrics) == 5
    assert all(len(history(uri, run, name)) == 1 for name in run.data.metrics)
    assert run.data.metrics["recall/a_26_b"] == 0.1


def test_metrics_parameters_and_tags_of_any_name_are_logged(uri, campaign):
    tracker = MLflowTracker(uri=uri, campaign=campaign)
    named = {f"recall/{name}": name for name in (*NAMES, *HIDDEN)}
    for _ in range(2):
        run_id = tracker.start_round(1, params={key: len(name) for key, name in named.items()}, tags={"a\x1b$": "b"})
        tracker.log_round(run_id, metrics={key: len(name) for key, name in named.items()}, step=1, artifacts=[])
    run = runs_of(uri, campaign)["round 1"]
    assert run.data.metrics == {mlflow_key(key): len(name) for key, name in named.items()}
    assert run.data.params == {mlflow_key(key): str(len(name)) for key, name in named.items()}
    assert len(run.data.metrics) == len(named)
    assert run.data.tags["a_1b__24_"] == "b"


def test_a_changed_metric_is_refused(uri, campaign):
    tracker = MLflowTracker(uri=uri, campaign=campaign)
    run_id = tracker.start_round(1, params={})
    tracker.log_round(run_id, metrics={"accuracy": 0.5}, step=10, artifacts=[])
    with pytest.raises(TrackerError, match=r"accuracy: 0.5 at step 10 -> 0.6 at step 10"):
        tracker.log_round(run_id, metrics={"accuracy": 0.6}, step=10, artifacts=[])
    with pytest.raises(TrackerError, match=r"accuracy: 0.5 at step 10 -> 0.5 at step 20"):
        tracker.log_round(run_id, metrics={"accuracy": 0.5}, step=20, artifacts=[])


def test_a_changed_parameter_is_refused_and_a_changed_tag_is_not(uri, campaign):
    tracker = MLflowTracker(uri=uri, campaign=campaign)
    tracker.start_round(1, params={"seed": 3, "strategy": "bald"}, tags={"device": "cpu"})
    with pytest.raises(TrackerError, match=r"seed: '3' -> '4'. Was the campaign's folder .* or delete the run"):
        tracker.start_round(1, params={"seed": 4, "strategy": "bald"})
    tracker.start_round(1, params={"seed": 3, "query_size": 50}, tags={"device": "cuda"})
    run = runs_of(uri, campaign)["round 1"]
    assert run.data.params == {"seed": "3", "strategy": "bald", "query_size": "50"}
    assert run.data.tags["device"] == "cuda"


def test_a_round_that_is_taken_back_leaves_no_run_and_begins_with_other_parameters(uri, campaign):
    tracker = MLflowTracker(uri=uri, campaign=campaign)
    tracker.log_members(tracker.start_round(1, params={"seed_set_size": 10}), MEMBERS)
    tracker.discard_rounds(1)
    assert runs_of(uri, campaign).keys() == {"campaign"}
    tracker.start_round(1, params={"seed_set_size": 8})
    assert runs_of(uri, campaign)["round 1"].data.params["seed_set_size"] == "8"


def test_a_long_parameter_is_shortened_and_kept_whole_beside_it(uri, campaign, tmp_path):
    tracker = MLflowTracker(uri=uri, campaign=campaign)
    ids = ",".join(str(number) for number in range(5000))
    for _ in range(2):
        run_id = tracker.start_round(1, params={"ids": ids})
    client = MlflowClient(uri, uri)
    assert client.get_run(run_id).data.params["ids"].startswith("0,1,2,3,")
    assert Path(client.download_artifacts(run_id, "params/ids.txt", str(tmp_path))).read_text() == ids
    with pytest.raises(TrackerError, match="ids"):
        tracker.start_round(1, params={"ids": ids + "0"})


def test_an_artefact_that_was_cut_short_is_uploaded_again(uri, campaign, tmp_path):
    tracker = MLflowTracker(uri=uri, campaign=campaign)
    run_id = tracker.start_round(1, params={})
    path = tmp_path / "batch.csv"
    for text in ("item", "item,score"):
        path.write_text(text)
        tracker.log_round(run_id, metrics={}, step=10, artifacts=[path])
    stored = MlflowClient(uri, uri).download_artifacts(run_id, "batch.csv", str(tmp_path / ".."))
    assert Path(stored).read_text() == "item,score"


def test_the_champion_is_the_model_named_last(uri, campaign, files):
    tracker = MLflowTracker(uri=uri, campaign=campaign)
    client = MlflowClient(uri, uri)
    runs = [tracker.start_round(number, params={}) for number in (1, 2)]
    models = [log_model(tracker, run_id, files) for run_id in runs]
    assert [model.version for model in models] == ["1", "2"]
    for champion, version in ((models[0], "1"), (models[1], "2")):
        tracker.name_champion(champion)
        name = models[0].model_uri.split("/")[1]
        assert str(client.get_model_version_by_alias(name, "champion").version) == version


LOADED = """
import json, sys
site, folder = sys.argv[1:3]
sys.path = [path for path in sys.path if path.startswith(sys.base_prefix)] + [site]
import mlflow, numpy as np
assert mlflow.__file__.startswith(site)
model = mlflow.pyfunc.load_model(folder)
assert model.metadata.metadata == {"task": "classification", "classes": ["ant", "bee", "cat"]}
told = model.predict(np.load(sys.argv[3]))
print(json.dumps({"class": told["class"].tolist(), "probs": told[["p_ant", "p_bee", "p_cat"]].to_numpy().tolist()}))
"""
OWN = """
import own_layers

def network():
    import tenacity
    return own_layers.make()
"""
OWN_LAYERS = """
from torch import nn

def make():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
"""


def fresh_environment(site, requirements):
    """A folder to import from that holds what the requirements bring, and nothing else of this environment."""
    ahead = [Requirement(line) for line in requirements.read_text().splitlines()]
    seen = set()
    while ahead:
        wanted = ahead.pop()
        if wanted.name in seen or (wanted.marker and not wanted.marker.evaluate({"extra": ""})):
            continue
        seen.add(wanted.name)
        found = distribution(wanted.name)
        assert wanted.specifier.contains(found.version.partition("+")[0], prereleases=True)
        ahead += [Requirement(line) for line in found.requires or []]
        for top in {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(found.locate_file(top))
    return site


@pytest.mark.parametrize(
    "name", ["small_cnn", "torchvision:mobilenet_v3_small", "timm:mobilenetv3_small_050", "own:network"]
)
def test_a_model_loads_in_an_environment_of_its_own_requirements_without_a_gpu(
    name, sqlite_uri, campaign, tmp_path, monkeypatch
):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "own.py").write_text(OWN)
    (tmp_path / "here" / "own_layers.py").write_text(OWN_LAYERS)
    monkeypatch.syspath_prepend(tmp_path / "here")
    told = DESCRIPTION | {"name": name, "image_size": 32}
    shape = {key: told[key] for key in ("n_classes", "image_size", "channels", "dropout")}
    networks = [build_model(name, **shape, weights=None, seed=seed) for seed in (0, 1)]
    weights = [tmp_path / f"member-{seed}.pt" for seed in (0, 1)]
    for network, path in zip(networks, weights, strict=True):
        save_weights(network, path)
    (tmp_path / "description.json").write_text(json.dumps(told))
    tracker = MLflowTracker(uri=sqlite_uri, campaign=campaign)
    run_id = tracker.start_round(1, params={})
    stored = stored_model(
        sqlite_uri, tracker.log_model(run_id, weights=weights, description=tmp_path / "description.json")
    )
    (tmp_path / "site").mkdir()
    site = fresh_environment(tmp_path / "site", stored / "requirements.txt")
    images = torch.randint(256, (5, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "images.npy", images.numpy())
    loaded = subprocess.run(
        [sys.executable, "-I", "-S", "-c", LOADED, str(site), str(stored), str(tmp_path / "images.npy")],
        env=os.environ | QUIET | {"CUDA_VISIBLE_DEVICES": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert loaded.returncode == 0, loaded.stderr
    said = json.loads(loaded.stdout.splitlines()[-1])
    with torch.inference_mode():
        wanted = torch.stack([network.eval()(images).softmax(dim=-1) for network in networks]).mean(dim=0)
    torch.testing.assert_close(torch.tensor(said["probs"]), wanted)
    assert said["class"] == [DESCRIPTION["classes"][place] for place in wanted.argmax(dim=1)]


def test_a_model_of_a_server_loads_by_its_address(mlflow_uri, campaign, files, monkeypatch):
    tracker = MLflowTracker(uri=mlflow_uri, campaign=campaign)
    model = log_model(tracker, tracker.start_round(1, params={}), files)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_uri)
    [said] = mlflow.pyfunc.load_model(model.model_uri).predict(np.zeros((9, 7), dtype=np.uint8))["class"]
    assert said in DESCRIPTION["classes"]


def test_members_of_one_trunk_keep_it_once_and_say_what_they_said(sqlite_uri, campaign, tmp_path):
    body = build(0)
    heads = [with_new_head(body, seed=seed) for seed in (1, 2)]
    heads[1].temperature.fill_(3.0)
    save_trunk(body, tmp_path / "trunk.pt")
    weights = [tmp_path / f"member-{number}.pt" for number in range(2)]
    for head, path in zip(heads, weights, strict=True):
        save_weights(head, path, with_trunk=False)
    (tmp_path / "model.json").write_text(json.dumps(DESCRIPTION))
    tracker = MLflowTracker(uri=sqlite_uri, campaign=campaign)
    run_id = tracker.start_round(1, params={})
    description = tmp_path / "model.json"
    model = tracker.log_model(run_id, weights=weights, trunk=tmp_path / "trunk.pt", description=description)
    [trunk] = stored_model(sqlite_uri, model).rglob("trunk.pt")
    names = {path.name for path in trunk.parent.iterdir()}
    assert names == {"description.json", "trunk.pt", "member-000.pt", "member-001.pt"}
    images = torch.randint(256, (20, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    said = load_ensemble(trunk.parent, device="cpu").probabilities(images)[0][:, 0]
    with torch.inference_mode():
        wanted = torch.stack([head.eval()(images).softmax(dim=-1) for head in heads]).mean(dim=0)
    torch.testing.assert_close(said, wanted)


@pytest.mark.parametrize(("name", "needs_timm"), [("small_cnn", False), ("timm:resnet18", True)])
def test_model_that_is_built_by_timm_says_so(sqlite_uri, campaign, files, tmp_path, name, needs_timm):
    description = tmp_path / "model.json"
    description.write_text(json.dumps(DESCRIPTION | {"name": name}))
    tracker = MLflowTracker(uri=sqlite_uri, campaign=campaign)
    run_id = tracker.start_round(1, params={})
    model = tracker.log_model(run_id, weights=sorted(files.glob("member-*.pt")), description=description)
    assert ("timm==" in (stored_model(sqlite_uri, model) / "requirements.txt").read_text()) == needs_timm


def stored_model(uri, model):
    """The folder that MLflow keeps a model of an SQLite file in."""
    address = MlflowClient(uri, uri).get_model_version_download_uri(*model.model_uri.split("/")[1:])
    return Path(url2pathname(urlsplit(address).path))


def test_tags_of_a_round_are_logged_with_its_numbers(uri, campaign):
    tracker = MLflowTracker(uri=uri, campaign=campaign)
    run_id = tracker.start_round(1, params={})
    for phase in ("head", "all"):
        tracker.log_round(run_id, metrics={}, step=10, artifacts=[], tags={"phase": phase})
    assert runs_of(uri, campaign)["round 1"].data.tags["phase"] == "all"


def test_campaigns_in_threads_keep_apart_and_leave_no_global_state(mlflow_uri, campaign, files):
    before = mlflow.get_tracking_uri()
    campaigns = [f"{campaign} {number}" for number in range(3)]
    threads = [threading.Thread(target=log_whole_round, args=(mlflow_uri, name, files)) for name in campaigns]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in campaigns:
        assert_one_record(mlflow_uri, name)
    assert mlflow.get_tracking_uri() == before
    assert mlflow.active_run() is None


def test_the_machine_is_watched_and_goes_on_after_a_break(uri, campaign, monkeypatch):
    monkeypatch.setattr(connectors.mlflow.tracker, "SECONDS_BETWEEN_SAMPLES", 0.1)
    tracker = MLflowTracker(uri=uri, campaign=campaign)
    run_id = tracker.start_round(1, params={})
    for _ in range(2):
        with tracker.monitor(run_id):
            time.sleep(0.6)
    points = history(uri, runs_of(uri, campaign)["round 1"], "system/cpu_utilization_percentage")
    assert len(points) >= 2
    assert [step for step, _ in points] == list(range(len(points)))


def test_a_deleted_experiment_is_named_with_the_way_back(uri, campaign):
    tracker = MLflowTracker(uri=uri, campaign=campaign)
    tracker.start_round(1, params={})
    client = MlflowClient(uri, uri)
    number = client.get_experiment_by_name(campaign).experiment_id
    client.delete_experiment(number)
    with pytest.raises(TrackerError, match=f"mlflow experiments restore --experiment-id {number}"):
        MLflowTracker(uri=uri, campaign=campaign).start_round(1, params={})


@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "file:///tmp/mlruns", "", "sqlite://"])
def test_a_folder_of_runs_is_refused_with_what_to_use(uri):
    with pytest.raises(TrackerError, match=r"http://host:5000.*sqlite:////folder/mlflow\.db"):
        MLflowTracker(uri=uri, campaign="ants")


@pytest.mark.parametrize("uri", ["http://ann:hush@host:5000", "postgresql://ann:hush@host/mlflow"])
def test_a_password_in_the_address_is_refused_and_not_repeated(uri):
    with pytest.raises(TrackerError) as caught:
        MLflowTracker(uri=uri, campaign="ants")
    assert "hush" not in str(caught.value)
    assert "ann" not in str(caught.value)


def test_a_server_that_answers_can_be_pinged(uri, campaign):
    MLflowTracker(uri=uri, campaign=campaign).ping()
    client = MlflowClient(uri, uri)
    assert client.get_experiment_by_name(campaign) is None, "a look leaves nothing behind"


def test_a_dead_server_is_told_at_once():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{probe.getsockname()[1]}"
    began = time.monotonic()
    with pytest.raises(TrackerUnavailable, match=f"MLflow at {uri} does not answer"):
        MLflowTracker(uri=uri, campaign="ants").start_round(1, params={})
    assert time.monotonic() - began < 2


def test_a_silent_server_is_told_soon(monkeypatch):
    monkeypatch.setattr(connectors.mlflow.tracker, "SECONDS_TO_ANSWER", 0.3)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(TrackerUnavailable, match=f"MLflow at {uri} does not answer"):
            MLflowTracker(uri=uri, campaign="ants").start_round(1, params={})
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    "answer",
    [
        *((429, b"{}"), (500, b"{}"), (502, b"<html>bad gateway</html>"), (503, b""), (504, b"")),
        *((200, b"<html>one moment, please</html>"), (200, b""), (200, b"[]"), (200, b'{"experiment": 5}')),
    ],
)
def test_a_server_that_is_busy_or_another_is_worth_a_retry(relay, answer):
    def answer_oddly(handler, body):
        handler.answer(*(answer if handler.path != "/health" else (200, b"OK")))
        return True

    with relay("http://127.0.0.1:9", answer_oddly) as uri:
        tracker = MLflowTracker(uri=uri, campaign="ants")
        for _ in range(2):
            with pytest.raises(TrackerUnavailable, match=f"{uri} does not answer"):
                tracker.start_round(1, params={})


def test_a_file_that_is_no_database_is_refused(tmp_path):
    (tmp_path / "mlflow.db").write_text("something else")
    with pytest.raises(TrackerError, match="file is not a database"):
        MLflowTracker(uri=f"sqlite:///{tmp_path / 'mlflow.db'}", campaign="ants").start_round(1, params={})


@pytest.fixture
def listening():
    """The address of a server that answers everything with an empty object, and the logins that it was given."""
    logins = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            logins.append(self.headers.get("Authorization"))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        do_GET = do_POST = answer  # noqa: N815

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", logins
    server.shutdown()
    thread.join()
    server.server_close()


def test_login_of_one_server_is_given_to_no_other(listening, monkeypatch):
    address, logins = listening
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    before = dict(os.environ)
    local = MLflowTracker(uri=address, campaign="pets", login=("admin", "of the local server"))
    local.ping()
    assert set(logins) == {f"Basic {base64.b64encode(b'admin:of the local server').decode()}"}
    logins.clear()
    MLflowTracker(uri=address, campaign="pets").ping()
    assert set(logins) == {None}
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "somebody")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "their own")
    local.ping()
    logins.clear()
    MLflowTracker(uri=address, campaign="pets").ping()
    assert set(logins) == {f"Basic {base64.b64encode(b'somebody:their own').decode()}"}
    assert {name for name in before if os.environ.get(name) != before[name]} == set()
