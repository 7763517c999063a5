"""What the demo of each task begins with."""

import tomllib
from io import StringIO

import pytest
from rich.console import Console

from flows.config import load_settings
from flows.demo import N_SCENES, campaign_file, choose_campaign, show_of, write_scenes_of
from flows.scenes import CLASSES
from pipeline.tasks import TASKS


@pytest.fixture
def console():
    return Console(file=StringIO(), width=200)


@pytest.mark.parametrize("task", TASKS)
def test_each_task_has_a_campaign_file_that_can_be_loaded(task, tmp_path):
    show = show_of(task)
    (tmp_path / "demo.toml").write_text(campaign_file(show, f"{show.stem}-1"))
    settings = load_settings(tmp_path / "demo.toml")
    assert settings.task == task
    assert settings.classes == tuple(show.classes)
    assert settings.pool.resolve() == tmp_path.parent / show.pool


def test_files_of_tasks_on_scenes_differ_in_name_task_and_model_alone():
    files = [tomllib.loads(campaign_file(show_of(task), "a-demo")) for task in TASKS if task != "classification"]
    for file in files:
        file.pop("task")
        file.pop("model")
    assert len(files) > 1
    assert all(file == files[0] for file in files)
    assert files[0]["classes"] == list(CLASSES)


def test_the_default_is_the_demo_of_digits():
    text = campaign_file(show_of("classification"), "digits-demo-1")
    assert text.startswith(
        "# A campaign of `make demo`: 5,000 MNIST digits, 300 labels in 5 rounds, then a final model."
    )
    assert "task" not in tomllib.loads(text)


def test_each_task_goes_on_with_its_own_last_campaign(tmp_path, console):
    first, other = show_of("classification"), show_of("multi_label")
    for show, name in ((first, "digits-demo-1"), (other, "multi-label-demo-1"), (first, "digits-demo-1")):
        assert choose_campaign(tmp_path, show, console, anew=False) == tmp_path / name / f"{name}.toml"
    assert choose_campaign(tmp_path, first, console, anew=True).parent.name == "digits-demo-2"
    told = console.file.getvalue()
    assert "Starting a new campaign, multi-label-demo-1." in told
    assert "Going on with the campaign digits-demo-1, which is not finished." in told
    assert "Starting a new campaign, digits-demo-2. The earlier one, digits-demo-1, stays as it is." in told


def test_scenes_are_written_with_answers_of_the_kind_that_is_asked_for(tmp_path):
    answers = write_scenes_of("box", tmp_path / "scenes")
    assert sorted(path.name for path in (tmp_path / "scenes").iterdir()) == sorted(answers)
    assert len(answers) == N_SCENES
    assert {region.kind for regions in answers.values() for region in regions} == {"box"}
    assert () in answers.values()
