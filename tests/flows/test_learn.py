import shutil

import pytest
import torch

from connectors.images.pixels import load_images
from flows.artefacts import LABELLED, MEMBERS, SUMMARY, TRAINING
from flows.steps.evaluate import evaluate
from flows.steps.plan import plan
from flows.steps.track import summarise
from flows.steps.train import cross_validate, train
from pipeline.learning import train as learning
from pipeline.learning.lesson import Lesson
from pipeline.learning.networks import frozen_body
from pipeline.networks.features import extract
from pipeline.tables import class_indices
from pipeline.tasks import classification
from tests.flows.conftest import PLAIN, TINY, ready_round
from tests.flows.rounds import candidates_of, networks_of, train_round, weight_files

PSEUDO = "\n[model.pseudo_labels]\nthreshold = 2.0\ndecay = 0.5\nmax_count = 12\n"


def weights(folder):
    return [torch.load(path, weights_only=True) for path in weight_files(folder)]


def are_same(some, others):
    return all(torch.equal(a[name], b[name]) for a, b in zip(some, others, strict=True) for name in a)


def planned_round(work):
    """A round that is to be trained next."""
    folder = ready_round(work)
    work.do(plan, folder)
    work.do(cross_validate, folder)
    return folder


def pseudo_metrics(folder, work):
    """What the tracker gets to see of pseudo-labels."""
    work.do(summarise, folder)
    return {key: value for key, value in folder.read(SUMMARY).metrics.items() if "pseudo" in key}


def test_pseudo_labels_change_the_training_and_leave_only_a_count(make_work):
    plain = train_round(make_work(name="plain"))
    work = make_work(model=PSEUDO, name="pseudo")
    folder = train_round(work)
    work.do(evaluate, folder)
    record = folder.read(TRAINING)
    assert (record.n_pseudo_labels, record.pseudo_label_threshold) == (12, 1.5)
    assert record.n_trained_on == 24
    assert record.labelled_digest == plain.read(TRAINING).labelled_digest
    assert len(folder.read(LABELLED).table) == 24
    assert not are_same(weights(folder), weights(plain))
    candidates = set(candidates_of(folder)["item_id"])
    text = "".join(path.read_text() for path in folder.path.rglob("*.json"))
    assert not [item_id for item_id in candidates if item_id in text]
    assert {path.name for path in folder.path.rglob("*") if path.is_file()} == {
        *(
            "audit.parquet",
            "labelled.parquet",
            "candidates.parquet",
            "training.json",
            "seconds.json",
            "config.json",
            "plan.json",
            "pages.json",
            "out_of_fold.parquet",
            "audit_predictions.parquet",
            "metrics.json",
        ),
        *(f"member-{index}.{kind}" for index in (0, 1) for kind in ("json", "pt")),
    }
    assert work.ledger.n_labels_paid == 0, "the manifest's labels cost nothing, and neither do pseudo-labels"
    assert len(networks_of(work, folder)) == 2
    assert pseudo_metrics(folder, work) == {"n_pseudo_labels": 12, "pseudo_label_threshold": 1.5}
    assert pseudo_metrics(plain, make_work(name="plain")) == {}


def test_networks_are_standardised_by_the_pool_whatever_is_labelled(make_work):
    work = make_work()
    record = train_round(work).read(TRAINING)
    pool = work.pool.table.query("split == 'pool'")
    images = load_images(pool["uri"].tolist(), size=12, channels=1) / 255
    assert len(pool) > record.n_trained_on
    for member in record.members:
        assert member.preprocessing["mean"] == pytest.approx([float(images.mean())], rel=1e-5)
        assert member.preprocessing["std"] == pytest.approx([float(images.std(correction=0))], rel=1e-4)


def test_members_are_told_the_labels_and_what_the_model_guesses(make_work, monkeypatch):
    told = []
    fit = learning.fit

    def watch(model, images, targets, recipe, **how):
        told.append(targets.tolist())
        return fit(model, images, targets, recipe, **how)

    monkeypatch.setattr(learning, "fit", watch)
    work = make_work(model=PSEUDO + "\n")
    folder = train_round(work)
    labels = [work.settings.classes.index(label) for label in folder.read(LABELLED).words]
    assert told[:2] == [labels, labels], "first on labels alone"
    assert [len(targets) for targets in told[2:]] == [36, 36]
    assert all(targets[:24] == labels for targets in told[2:])


def test_there_are_never_more_pseudo_labels_than_labels(make_work):
    model = PSEUDO.replace("max_count = 12", "max_count = 1000")
    assert train_round(make_work(model=model)).read(TRAINING).n_pseudo_labels == 24


def test_threshold_that_has_decayed_away_trains_on_labels_alone(make_work):
    folder = train_round(make_work(model=PSEUDO, name="pseudo"), number=4)
    plain = train_round(make_work(name="plain"), number=4)
    record = folder.read(TRAINING)
    assert (record.n_pseudo_labels, record.pseudo_label_threshold) == (0, 0.0)
    assert are_same(weights(folder), weights(plain))


@pytest.mark.parametrize("network", [PLAIN, TINY])
def test_model_that_is_sure_of_nothing_trains_on_labels_alone(make_work, network):
    work = make_work(network=network, model="learning_rate = 1e-9\n" + PSEUDO.replace("2.0", "0.5001"))
    folder = train_round(work)
    record = folder.read(TRAINING)
    assert (record.n_pseudo_labels, record.pseudo_label_threshold > 0) == (0, True)
    assert len(networks_of(work, folder)) == 2


@pytest.mark.parametrize("n_fits", [1, 3])
def test_killed_training_goes_on_to_the_same_members(make_work, training_is_killed, n_fits):
    whole = train_round(make_work(model=PSEUDO, name="whole"))
    work = make_work(model=PSEUDO, name="killed")
    folder = planned_round(work)
    with training_is_killed(after=n_fits):
        work.do(train, folder)
    work.do(train, folder)
    assert are_same(weights(folder), weights(whole))
    records = [f.read(TRAINING) for f in (folder, whole)]
    assert records[0] == records[1]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_run_killed_while_it_clears_up_after_pseudo_labels_keeps_its_record(make_work, monkeypatch, moment):
    work = make_work(model=PSEUDO)
    folder = train_round(work)
    rmtree = shutil.rmtree

    def killed(path, **how):
        if moment == "after":
            rmtree(path, **how)
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        work.do(evaluate, folder)
    monkeypatch.setattr("shutil.rmtree", rmtree)
    assert folder.has(TRAINING), "what the scratch tells is on record before it goes"
    scratch = folder.read(MEMBERS).path / "before-pseudo-labels"
    assert scratch.exists() == (moment == "before")
    work.do(train, folder)
    assert folder.read(TRAINING).n_pseudo_labels == 12
    work.do(evaluate, folder)
    assert not scratch.exists()


@pytest.mark.parametrize("model", ["", "all_from = 8\nmax_epochs = 2\n"])
@pytest.mark.parametrize("members", ["", "swag = 2\nlaplace = 2\nbagging = true"])
def test_labels_in_memory_make_the_networks_of_the_round_that_has_them_in_files(make_work, model, members):
    work = make_work(network=TINY, model=model, members=members)
    folder = train_round(work)
    labelled, settings = folder.read(LABELLED), work.settings
    targets = class_indices(labelled.words, settings.classes)
    images = load_images(work.pool.located(labelled.table)["uri"].tolist(), size=12, channels=1)
    body = None if model else frozen_body(settings.model, classification, n_classes=3)
    inputs = images if body is None else extract(body, images, device=body.mean.device)
    lesson = Lesson(classification, 3, "head" if body else "all", inputs, targets, body)
    networks = learning.learn(lesson, settings.model, settings.members, seed=settings.seed, round_number=folder.number)
    written = networks_of(work, folder)
    assert len(networks) == len(written) == settings.members.n_networks
    assert are_same([one.state_dict() for one in networks], [one.state_dict() for one in written])
