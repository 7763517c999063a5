"""A run takes the manifest as it is now, and says what is new in the pool and what is wrong with it."""

import pandas as pd
import pytest

from flows.artefacts import CONFIG, LABELLED, POOL
from flows.campaign import OpenCampaign
from flows.changes import CampaignChanged, claim
from flows.reports.status import campaign_status
from flows.round import refresh_pool, tell_of_pool
from flows.steps.labels import gather_labels
from flows.steps.plan import begin
from pipeline.pool.reasons import PoolError
from pipeline.types import Annotation, Answer, Ask, Region
from tests.flows.rounds import begin_to_push, collect_answers, push_tasks, with_settings


@pytest.fixture
def manifest(striped_images):
    """Change the campaign's manifest, for the length of a test."""
    path = striped_images / "images.csv"
    before = path.read_bytes()
    yield lambda change: change(pd.read_csv(path, dtype=str)).to_csv(path, index=False)
    path.write_bytes(before)


@pytest.fixture
def work(make_work) -> OpenCampaign:
    made = make_work()
    made.folder.path_of(POOL).unlink()  # so that the first run makes it
    return made


def begun(work):
    """The campaign once people have been asked."""
    run(work)
    push_tasks(work.folder.round(0), {})


def run(work):
    """What a run says of the pool."""
    refresh_pool(work)
    return tell_of_pool(work)


def trained_on(work, number):
    folder = work.folder.round(number)
    work.do(gather_labels, folder)
    labels = folder.read(LABELLED)
    return {uri[-6:]: label for uri, label in zip(labels.table["uri"], labels.words, strict=True)}


def test_label_that_was_blanked_or_changed_in_the_manifest_is_not_trained_on(work, manifest):
    assert run(work)[0] == "the pool has 60 images, 24 of them with a label"
    assert trained_on(work, 0)["00.png"] == "left"
    manifest(lambda t: t.assign(label=t["label"].mask(t["uri"] == "00.png").mask(t["uri"] == "01.png", "right")))
    assert run(work) == ("labels of the manifest: 1 changed, 1 withdrawn",)
    labels = trained_on(work, 1)
    assert "00.png" not in labels
    assert labels["01.png"] == "right"
    assert run(work) == ()


def test_image_whose_row_was_removed_leaves_the_pool_with_its_answer_until_the_row_is_back(work, manifest):
    run(work)
    pool = work.pool.table
    item_id = pool.loc[(pool["split"] == "pool") & pool["label"].isna(), "item_id"].iloc[0]
    name = pool.set_index("item_id").loc[item_id, "uri"][-6:]
    annotation = Annotation(item_id, (Region("image", "left"),), "ann", 2.0)
    answer = Answer(
        ask=Ask(item_id, 0, "seed"),
        task_id=1,
        answer_id=1,
        outcome="labelled",
        annotation=annotation,
        annotator="ann",
        seconds=2.0,
        updated_at="2026-01-01T00:00:00+00:00",
    )
    push_tasks(work.folder.round(0), {item_id: 1})
    collect_answers(work.folder.round(0), [answer])
    assert trained_on(work, 0)[name] == "left"
    manifest(lambda t: t[t["uri"] != name])
    assert run(work) == (
        f"the pool has 59 images: 1 image not used any more, such as {work.settings.pool.parent / name}",
        f"1 no longer in the manifest: such as {work.settings.pool.parent / name}",
    )
    assert name not in trained_on(work, 1)
    left = work.ledger.may_be_asked(work.pool, split="pool", classes=work.settings.classes)
    assert item_id not in set(left["item_id"])
    assert work.ledger.n_labels_paid == 1, "a person was paid for it"
    assert run(work) == ()
    manifest(lambda t: pd.concat([t, pd.DataFrame([{"uri": name}])]))
    assert run(work)[0].startswith("the pool has 60 images: 1 image used again")
    assert trained_on(work, 2)[name] == "left"


def test_manifest_that_lost_most_of_its_rows_or_cannot_be_read_changes_nothing(work, manifest, striped_images):
    begun(work)
    before = work.folder.path_of(POOL).read_bytes()
    manifest(lambda t: t.head(20))
    with pytest.raises(PoolError, match="40 of the 60 images of the last run cannot be used any more"):
        run(work)
    (striped_images / "images.csv").write_bytes(b"")
    with pytest.raises(PoolError, match="needs a column uri, has no columns: the file is empty"):
        run(work)
    assert work.folder.path_of(POOL).read_bytes() == before


def test_what_is_wrong_is_said_each_run_and_what_is_new_once(work, manifest, striped_images):
    begun(work)
    manifest(
        lambda t: t.assign(
            uri=t["uri"].where(t["uri"] != "07.png", "07\\x.png").where(t["uri"] != "08.png", "./08.png")
        )
    )
    wrong = f"1 cannot be read: such as {striped_images}/07\\x.png: No such file or directory"
    first, again = run(work), run(work)
    assert [line.partition(" (")[0] for line in first if wrong in line] == [wrong]
    assert any(line.startswith("1 no longer in the manifest") for line in first)
    assert [line.partition(" (")[0] for line in again] == [wrong]
    claim(work.folder, work.settings, striped_images / "campaign.toml", answers=list)
    (told,) = [line for line in campaign_status(work.folder, striped_images).pool_notes if "cannot be read" in line]
    assert told.startswith(wrong)


def test_news_that_no_run_could_tell_waits_for_the_next(work, manifest):
    run(work)
    manifest(lambda t: t.assign(label=t["label"].mask(t["uri"] == "00.png")))
    refresh_pool(work)  # and then a server is away
    refresh_pool(work)
    assert tell_of_pool(work) == ("labels of the manifest: 1 withdrawn",)


def test_round_that_nobody_saw_begins_anew_when_the_manifest_gives_it_other_labels(work, manifest):
    run(work)
    work.do(begin, work.folder.round(0))
    run(work)
    assert work.folder.round(0).has(CONFIG), "nothing has changed"
    manifest(lambda t: t.assign(label=t["label"].mask(t["uri"] == "00.png")))
    run(work)
    assert not work.folder.rounds()
    work.do(begin, work.folder.round(0))
    begin_to_push(work.folder.round(0))
    manifest(lambda t: t.assign(label=t["label"].mask(t["uri"] == "01.png")))
    run(work)
    assert work.folder.round(0).has(CONFIG), "people may have seen it"


def test_labels_that_the_pool_keeps_of_a_class_that_is_gone_are_refused_at_once(work, manifest, striped_images):
    begun(work)
    changed = with_settings(work, classes=("left", "middle"), pool=striped_images)
    with pytest.raises(CampaignChanged, match="8 of 'right'"):
        refresh_pool(changed)
