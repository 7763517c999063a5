"""A campaign that begins with all labels of another one."""

from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from connectors.image_folder.index import index_pool
from flows.artefacts import CONFIG
from flows.changes import claim
from flows.cli import app
from flows.config import load_settings
from flows.steps.labels import gather_labels
from pipeline.tables import PoolTable
from tests.flows.rounds import answer, close_round, config_of, push_tasks


def init(*arguments) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["init", *map(str, arguments)], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.fixture
def old(make_work):
    """A campaign with 24 labels of its manifest, one of them corrected, and two of its audit set; one is skipped."""
    work = make_work('strategy = "power"\nstrategy_options = { beta = 2.0 }\nclose_after = "3d"')
    settings = work.settings
    claim(work.folder, settings, Path("campaign.toml"), answers=list)
    audit = work.ledger.may_be_asked(work.pool, split="audit", classes=settings.classes)["item_id"].tolist()
    given = work.pool.table.query("label == 'left'")["item_id"].tolist()
    answers = [(audit[0], "left"), (audit[1], "right"), (audit[2], None), (given[0], "middle")]
    close_round(work.folder.round(0), [answer(*pair, answer_id=n) for n, pair in enumerate(answers)], settings)
    return work


@pytest.fixture
def below(old, striped_images):
    """A place for files that images lie below, clean afterwards."""
    before = set(striped_images.iterdir())
    yield striped_images
    for path in set(striped_images.iterdir()) - before:
        path.unlink()


def labels_of(work):
    gathered = work.do(gather_labels, work.folder.round(1))
    return {item_id: name for labels in gathered for item_id, name in zip(labels.item_ids, labels.words, strict=True)}


@pytest.mark.parametrize("source", ["file", "folder"])
def test_new_campaign_has_the_settings_and_all_labels_and_an_audit_set_of_its_own(old, below, source):
    wanted = labels_of(old)
    assert len(wanted) == 26
    exit_code, output = init(
        below / "again.toml", "--from", below / "campaign.toml" if source == "file" else old.folder.path
    )
    assert exit_code == 0, output
    assert "26 labels of 60 images" in output
    assert "labels of the old audit set are among them" in output
    assert "of the 34 images without a label 6 are drawn to measure on" in output
    new = load_settings(below / "again.toml")
    assert (new.name, new.pool) == ("again", below / "again-labels.csv")
    changed = {"name", "pool", "folder"}
    assert new.model_dump(exclude=changed) == old.settings.model_dump(exclude=changed)
    pool = index_pool(new.pool_source, None, audit_size=new.audit_size, seed=new.seed)
    assert pool.dropna(subset="label").set_index("item_id")["label"].to_dict() == wanted
    audit = set(pool.query("split == 'audit'")["item_id"])
    assert len(audit) == 6
    assert not audit & wanted.keys()
    assert pool["set_aside_reason"].isna().all()


def test_manifest_lies_in_the_folder_of_images_where_they_are_elsewhere(old, below, tmp_path):
    exit_code, output = init(tmp_path / "again.toml", "--from", below / "campaign.toml")
    assert exit_code == 0, output
    manifest = pd.read_csv(below / "again-labels.csv")
    assert len(manifest) == 60
    assert not manifest["uri"].str.contains("/").any()
    assert load_settings(tmp_path / "again.toml").pool == below / "again-labels.csv"


def test_classes_go_by_their_new_names_and_what_is_left_out_is_said(old, below):
    text = (below / "campaign.toml").read_text()
    text = text.replace('["left", "middle", "right"]', '["sinister", "right"]') + 'left = "sinister"\n'
    (below / "campaign.toml").write_text(text)
    exit_code, output = init(below / "again.toml", "--from", below / "campaign.toml")
    assert exit_code == 0, output
    assert "9 labels of 'middle', which is not one of the classes, are left out" in output
    assert set(pd.read_csv(below / "again-labels.csv")["label"].dropna()) == {"sinister", "right"}
    assert load_settings(below / "again.toml").renamed == {}


def test_new_campaign_without_images_to_measure_on_is_told(old, below):
    (below / "campaign.toml").write_text(
        (below / "campaign.toml").read_text().replace("audit_size = 6", "audit_size = 60")
    )
    assert "leaves nothing to ask for: add images, or set audit_size below 34" in init(
        below / "again.toml", "--from", below / "campaign.toml"
    )[1].replace("\n", " ")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("stripes.toml", "the name of the old one, 'stripes'"),
        ("a.toml", "too short or too long"),
        ("campaign.toml", "exists already"),
    ],
)
def test_file_that_cannot_be_the_new_campaigns_is_refused(old, below, name, told):
    exit_code, output = init(below / name, "--from", below / "campaign.toml")
    assert exit_code == 2
    assert told in output
    assert not (below / "again-labels.csv").exists()


def test_campaign_that_has_not_begun_has_nothing_to_take_along(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert init("old.toml")[0] == 0
    exit_code, output = init("new.toml", "--from", "old.toml")
    assert exit_code == 2
    assert "has no images and no labels yet" in output
    exit_code, output = init("new.toml", "--from", Path())
    assert exit_code == 2
    assert "holds no campaign" in output


def test_groups_are_taken_along_and_what_is_left_out_is_said(old, below):
    pool = old.pool.table
    group = "film" + (pool["uri"].str[-6:-4].astype(int) // 6).astype(str)
    is_lost = pool["item_id"] == old.ledger.answers[0].item_id
    reasons = pool["set_aside_reason"].mask(is_lost, "cannot be read: gone")
    old.keep_pool(PoolTable(pool.assign(group=group, set_aside_reason=reasons)))
    folder = old.folder.round(1)
    folder.write(CONFIG, config_of(old.settings, 1))
    push_tasks(folder, {})
    exit_code, output = init(below / "again.toml", "--from", below / "campaign.toml")
    assert exit_code == 0, output
    assert "1 labels of images that cannot be used are left out" in output
    assert "Round 1 of the old campaign is open" in output
    n_free = (pd.read_csv(below / "again-labels.csv").groupby("group")["label"].transform("count") == 0).sum()
    assert n_free > 0
    assert f"of the {n_free} images without a label in groups without one 6 are drawn" in output
    assert load_settings(below / "again.toml").group is None
