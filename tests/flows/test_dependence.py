import pandas as pd
import pytest

from connectors.images.pixels import load_images
from connectors.images.reading import Range
from flows.artefacts import AUDIT, DEPENDENCE, LABELLED, OUT_OF_FOLD, PIXEL_RANGES, TRAINING
from flows.dependence import look_for_dependence
from flows.records import PixelRanges
from flows.reports.round_page import round_markdown
from flows.steps.labels import gather_labels
from flows.steps.plan import plan
from flows.steps.train import cross_validate, train
from pipeline.tables import Labels, PoolTable
from tests.flows.conftest import TINY, ready_round
from tests.flows.rounds import ask_nothing, train_round


def by_group(work, n_groups=12):
    """The pool table of the campaign, its images in groups."""
    pool = work.pool.table.copy()
    number = pool["uri"].str[-6:-4].astype(int)
    group = "g" + (number * n_groups // len(pool)).astype(str)
    pool["group"] = group
    pool["split"] = pd.Series("pool", pool.index, dtype="str").mask(group == f"g{n_groups - 1}", "audit")
    work.keep_pool(PoolTable(pool))
    return pool


def test_groups_are_told_once_and_kept(make_work):
    work = make_work()
    by_group(work)
    (told,) = look_for_dependence(work)
    assert told.startswith("12 groups of images, the largest of 5; the audit set has 1 whole groups, 5 images.")
    assert "counts the images as independent" in told
    assert look_for_dependence(work) == ()
    assert work.folder.read(DEPENDENCE).notes == [told]


def test_pool_whose_names_and_images_say_nothing_is_no_warning(make_work):
    work = make_work()
    assert look_for_dependence(work) == ()
    assert work.folder.read(DEPENDENCE).notes == []
    assert look_for_dependence(work) == ()


def test_thumbnails_are_read_as_all_images_of_the_campaign_are(make_work, monkeypatch):
    work = make_work("decode_memory_gb = 64")
    work.folder.write(PIXEL_RANGES, PixelRanges((Range("16-bit grey", 0.0, 300.0, 7),)))
    read = []

    def watched(uris, **how):
        read.append(how["reading"])
        return load_images(uris, **how)

    monkeypatch.setattr("connectors.images.pixels.load_images", watched)
    look_for_dependence(work)
    assert [reading.memory_gb for reading in read] == [64, 64]
    assert read[0].ranges == work.reading.ranges != ()


def test_labels_of_one_group_are_predicted_by_networks_that_saw_none_of_it(make_work, monkeypatch):
    from pipeline.training import cross_fit

    work = make_work(network=TINY)
    pool = by_group(work)
    folder = ready_round(work)
    labelled = folder.read(LABELLED).table
    groups = pool.set_index("item_id")["group"].loc[labelled["item_id"]].to_numpy()
    assert labelled["group"].tolist() == groups.tolist()
    folds = []
    split_folds = cross_fit.split_folds

    def watched(*data, **how):
        folds.append(split_folds(*data, **how))
        return folds[-1]

    monkeypatch.setattr(cross_fit, "split_folds", watched)
    work.do(plan, folder)
    work.do(cross_validate, folder)
    of_folds = [set(groups[fold.numpy()]) for fold in folds[-1]]
    assert len(of_folds) > 1
    assert sum(map(len, of_folds)) == len(set(groups))
    work.do(train, folder)
    assert folder.read(TRAINING).n_trained_on == 24


def test_one_group_alone_cannot_be_predicted_out_of_fold_and_still_trains(make_work):
    work = make_work(network=TINY)
    pool = work.pool.table
    work.keep_pool(PoolTable(pool.assign(group=pool["group"].mask(pool["label"].notna(), "only"))))
    folder = train_round(work)
    assert len(folder.read(OUT_OF_FOLD)) == 0
    assert folder.has(TRAINING)


@pytest.mark.parametrize("groups", [True, False])
def test_page_of_a_round_says_that_its_interval_takes_images_for_independent(make_work, groups):
    from tests.flows.test_outlook import CURVE, write_rounds

    work = make_work()
    if groups:
        by_group(work)
    write_rounds(work.folder, CURVE[:1])
    folder = work.folder.round(1)
    work.do(gather_labels, folder)
    audit = work.pool.table.query("split == 'audit'")
    folder.write(AUDIT, Labels(audit[["item_id", "uri", "group"]].assign(label="left", source="annotators")))
    ask_nothing(folder)
    assert ("they are of 1 groups" in round_markdown(folder, "stripes")) == groups
