import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from flows.artefacts import AUDIT, CAMPAIGN, CONFIG, LABELLED, PIXEL_RANGES, POOL, PROGRESS, PUSHED, SUMMARY
from flows.campaign import open_campaign
from flows.cli import app
from flows.config import CampaignSettings, ConfigError, resolved
from flows.folder import Campaign
from flows.records import PixelRanges, Pushed, SeenProgress, Summary
from pipeline.labels.answers import LABELLED_COLUMNS
from pipeline.pool.table import as_table
from pipeline.tables import Labels, PoolTable
from tests.flows.rounds import ask_nothing, config_of


@pytest.fixture
def command(tmp_path, monkeypatch):
    """Call `labelcycle` in an empty folder; returns exit code and output."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("LABELCYCLE_HOME", "")  # none is named, and what a command settles on is forgotten afterwards
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")

    def call(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    return call


def test_init_writes_an_example_and_never_over_a_file(command):
    assert command("init", "pets.toml")[0] == 0
    written = Path("pets.toml").read_text()
    exit_code, output = command("init", "pets.toml")
    assert exit_code == 2
    assert "exists already" in output
    assert Path("pets.toml").read_text() == written


@pytest.mark.parametrize("name", ["run", "serve", "status", "up"])
def test_wrong_campaign_file_is_a_usage_error(command, name):
    Path("bad.toml").write_text('name = "pets"\nbudgte = 3\n')
    exit_code, output = command(name, "bad.toml")
    assert exit_code == 2
    assert "bad.toml, line 2: unknown key 'budgte'; did you mean 'budget'?" in output


def test_serve_needs_a_schedule(command):
    command("init", "pets.toml")
    exit_code, output = command("serve", "pets.toml")
    assert exit_code == 2
    assert 'add for example: schedule = "*/15 * * * *"' in output


def test_status_without_a_campaign_says_what_to_name(command):
    assert command("status") == (2, "Error: no campaign has been run here; name one: labelcycle status campaign.toml\n")
    command("init", "pets.toml")
    assert "holds no campaign yet; `labelcycle run` begins one" in command("status", "pets.toml")[1]


def test_status_reads_the_folder_and_asks_the_servers(command, tmp_path):
    folder = Campaign(tmp_path / "campaign")
    settings = CampaignSettings(
        name="pets",
        pool="images",
        folder=folder.path,
        classes=["cat", "dog"],
        budget=10,
        audit_size=2,
        seed_set_size=2,
        query_size=4,
        label_studio={"url": "https://labels.example.org"},
        mlflow={"uri": "sqlite:///mlflow.db"},
    )
    folder.write(CAMPAIGN, resolved(settings))
    tasks = {f"item{number}": number for number in range(4)}
    pushed = Pushed("2026-01-01T00:00:00+00:00", "https://labels.example.org/1", tasks, dict.fromkeys(tasks, "seed"))
    folder.round(0).write(PUSHED, pushed)
    seen = SeenProgress(n_tasks=4, n_labelled=3, n_set_aside=0, seen_at="2026-01-02T00:00:00+00:00")
    folder.round(0).write(PROGRESS, seen)
    empty = Labels(pd.DataFrame(columns=list(LABELLED_COLUMNS)))
    records = {CONFIG: config_of(settings), LABELLED: empty, AUDIT: empty, SUMMARY: Summary(0, {})}
    for artefact, record in records.items():
        folder.round(0).write(artefact, record)
    ask_nothing(folder.round(0))
    folder.write(POOL, PoolTable(as_table(pd.DataFrame())))
    folder.write(PIXEL_RANGES, PixelRanges())
    exit_code, output = command("status", str(folder.path), "--json")
    state = json.loads(output)
    assert exit_code == 0
    assert (state["rounds_closed"], state["n_labels_paid"], state["budget_left"]) == (0, 0, 6), (
        "four labels of ten are asked for"
    )
    assert (state["awaiting"]["n_labelled"], state["awaiting"]["n_tasks"]) == (3, 4)
    assert state["metrics"] is None
    assert state["urls"] == {"label_studio": "https://labels.example.org/1", "mlflow": "sqlite:///mlflow.db"}
    assert state["servers"]["label_studio"].keys() == {"url", "is_local", "answers", "why"}
    text = command("status", str(folder.path))[1]
    assert "Round 0 awaits labels: 3 of 4 labelled" in text
    assert "No forecast yet: a forecast needs 4 measured rounds" in text


def test_run_says_that_prefect_does_not_answer(command):
    command("init", "pets.toml")
    environment = {**os.environ, "PREFECT_API_URL": "http://127.0.0.1:9/api"}
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "run", "pets.toml"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "Prefect does not answer" in done.stderr
    assert "Traceback" not in done.stderr


def test_run_without_servers_says_how_to_start_them(command):
    command("init", "pets.toml")
    with pytest.raises(ConfigError, match="start them with `labelcycle up`"):
        _ = open_campaign(Path("pets.toml")).tool


def test_down_says_when_nothing_runs(command):
    exit_code, output = command("down")
    assert exit_code == 0
    assert output.startswith("Nothing of ours is running in ")


@pytest.mark.parametrize("name", ["init", "up", "down", "run", "serve", "status", "cache", "demo"])
def test_every_command_explains_itself(command, name):
    exit_code, output = command(name, "--help")
    assert exit_code == 0
    assert f"Usage: root {name} [OPTIONS]" in output


def test_demo_of_a_task_that_is_not_there_names_those_that_are(command):
    exit_code, output = command("demo", "--task", "detektion")
    assert exit_code == 2
    assert "unknown task type 'detektion', did you mean 'detection'?" in output
