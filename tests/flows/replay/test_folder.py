import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest

from flows.changes import CampaignChanged
from flows.replay.claim import claim
from flows.replay.command import replay_strategies
from flows.replay.folder import Replay
from flows.replay.inputs import ReplayError, read_labels
from flows.replay.options import resolve
from pipeline.pool.reasons import PoolError
from pipeline.tasks import classification
from tests.flows.replay.conftest import options_of, same


def test_more_seeds_arms_and_rounds_add_to_a_replay(digits, replayed, tmp_path):
    grown = options_of(digits, tmp_path / "grown", strategies="margin", seeds=1, rounds=2)
    replay_strategies(grown)
    first = grown.out / "runs" / "margin-0.parquet"
    before = pd.read_parquet(first).iloc[:2]
    replay_strategies(options_of(digits, grown.out))
    assert same(grown.out, replayed)
    assert before.equals(pd.read_parquet(first).iloc[:2]), "what was done, seconds too, was not done again"


def test_a_finished_replay_trains_nothing_again(digits, replayed, monkeypatch):
    monkeypatch.setattr("flows.replay.runs.linear_head", None)
    before = (replayed / "curves.parquet").read_bytes()
    replay_strategies(options_of(digits, replayed))
    assert (replayed / "curves.parquet").read_bytes() == before


LOADED = "print([name for name in ('prefect', 'mlflow') if name in sys.modules], flush=True)"


@pytest.fixture(scope="module")
def killed(digits, tmp_path_factory) -> tuple[Path, str]:
    """The folder of a replay that was killed with its first round, and what its command printed before it began."""
    out = tmp_path_factory.mktemp("killed") / "out"
    code = f"import sys, flows.replay.runs; {LOADED}; from flows.cli import main; main()"
    command = [sys.executable, "-c", code, "simulate", "--features", str(digits / "features.npy")]
    command += ["--labels", str(digits / "labels.csv"), "--strategies", "random,margin", "--seeds", "30"]
    command += ["--query-size", "20", "--rounds", "3", "--workers", "2", "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(out.glob("runs/*.parquet")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.002)
    workers = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    printed, _ = process.communicate()
    assert len(workers) >= 2
    assert psutil.wait_procs(workers, timeout=20)[1] == [], "workers end with the process that began them"
    return out, printed


def test_processes_of_a_replay_load_no_prefect(killed):
    assert killed[1].splitlines()[0] == "[]"


def test_killed_replay_goes_on_and_comes_out_the_same(digits, replayed, killed):
    out, _ = killed
    assert not (out / "curves.parquet").exists()
    assert [job for job in Replay(out).jobs() if job.seed < 3], "it was killed in the midst"
    replay_strategies(options_of(digits, out))
    assert same(out, replayed)


def test_another_replay_in_the_same_folder_is_refused(digits, replayed):
    with pytest.raises(CampaignChanged, match="holds another replay: query_size: 20 -> 10; start: 20 -> 10"):
        replay_strategies(options_of(digits, replayed, query_size=10))
    with pytest.raises(CampaignChanged, match=r"replay: the labels, images or features changed\. Give"):
        replay_strategies(options_of(digits, replayed, features=_shuffled(digits)))


def test_changed_setting_of_a_network_is_named_alone(digits, tmp_path):
    common = {"features": None, "images": digits / "images", "model": "small_cnn", "seeds": 1, "rounds": 2}
    options = options_of(digits, tmp_path / "out", **common, image_size=8)
    settings = resolve(
        options, None, read_labels(digits / "labels.csv", images=digits / "images", task=classification), None, None
    )
    claim(tmp_path, settings)
    claim(tmp_path, settings.model_copy(update={"query_size": 3}))
    assert Replay(tmp_path).settings.query_size == 3, "nothing was computed yet, so that anything may change"
    (tmp_path / "images.npy").write_text("")
    network = settings.network.model_copy(update={"dropout": 0.25})
    with pytest.raises(CampaignChanged, match=r"another replay: network.dropout: 0.5 -> 0.25; query_size: 3 -> 20\."):
        claim(tmp_path, settings.model_copy(update={"network": network}))


@pytest.mark.parametrize("before", [2, None])
def test_replay_in_another_form_is_refused_in_a_sentence(digits, tmp_path, before):
    options = options_of(digits, tmp_path / "out")
    settings = resolve(
        options, None, read_labels(digits / "labels.csv", images=digits / "images", task=classification), None, None
    )
    claim(tmp_path, settings)
    written = json.loads((tmp_path / "replay.json").read_text())
    assert written["format"] == 1
    (tmp_path / "features.npy").write_text("")
    (tmp_path / "replay.json").write_text(json.dumps({**written, "format": before}))
    with pytest.raises(CampaignChanged, match=r"was written by another version of labelcycle\. Give another --out\.$"):
        claim(tmp_path, settings)


def test_linear_head_does_not_care_how_its_network_would_be_trained(digits, tmp_path):
    options = options_of(digits, tmp_path / "out", features=None, images=digits / "images", model="small_cnn")
    settings = resolve(
        options, None, read_labels(digits / "labels.csv", images=digits / "images", task=classification), None, None
    )
    network = settings.network.model_copy(update={"train": "head"})
    claim(tmp_path, settings.model_copy(update={"network": network}))
    (tmp_path / "features.npy").write_text("")
    slower = network.model_copy(update={"learning_rate": 1e-3, "min_steps": 8})
    claim(tmp_path, settings.model_copy(update={"network": slower}))
    with pytest.raises(CampaignChanged, match=r"network.dropout: 0.5 -> 0.25\."):
        claim(tmp_path, settings.model_copy(update={"network": network.model_copy(update={"dropout": 0.25})}))


def test_image_that_was_broken_can_be_mended_and_the_same_command_goes_on(digits, tmp_path):
    shutil.copytree(digits / "images", tmp_path / "images")
    image = tmp_path / "images" / "007.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:60])
    options = options_of(digits, tmp_path / "out", features=None, images=tmp_path / "images", seeds=1, rounds=2)
    options = replace(options, image_size=8)
    with pytest.raises((PoolError, ReplayError), match=r"007\.png"):
        replay_strategies(options)
    image.write_bytes(whole)
    (tmp_path / "out" / ".images.npy.abc.part").write_text("what a killed process was writing")
    replay_strategies(options)
    assert not list((tmp_path / "out").rglob(".*.part"))
    (tmp_path / "images").rename(tmp_path / "moved")
    replay_strategies(replace(options, images=tmp_path / "moved"))
    assert Replay(tmp_path / "out").labels["uri"][0] == str((tmp_path / "moved" / "000.png").resolve())


def _shuffled(digits: Path) -> Path:
    np.save(digits / "shuffled.npy", np.load(digits / "features.npy")[::-1])
    return digits / "shuffled.npy"


def test_folder_with_files_of_somebody_else_is_left_alone(digits, tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ReplayError, match=r"holds other files \(thesis.tex\); name a new folder"):
        replay_strategies(options_of(digits, tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_hidden_files_make_no_folder_somebody_elses(digits, tmp_path):
    (tmp_path / ".DS_Store").write_text("")
    replay_strategies(options_of(digits, tmp_path, seeds=1, rounds=2))
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize("out", ["file/out", "file", "/proc/out"])
def test_folder_that_cannot_be_made_is_refused(digits, tmp_path, out):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ReplayError, match=r"--out .*(cannot be made: (Not a dir|No such file)|is a file; name a folder)"
    ):
        replay_strategies(options_of(digits, tmp_path / out))
