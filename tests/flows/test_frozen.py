"""Rounds that train heads on a frozen trunk, from its cached features; and members that are drawn."""

import shutil
from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from connectors import frozen_features
from connectors.escaping import markdown
from connectors.feature_store import usage
from connectors.frozen_features import open_cache
from connectors.images.pixels import load_images
from connectors.mlflow.loader import load_members
from flows import predict as predict_module
from flows.artefacts import (
    AUDIT,
    BATCH,
    CAMPAIGN,
    CANDIDATES,
    LABELLED,
    MEMBERS,
    METRICS,
    OUT_OF_FOLD,
    PUSHED,
    REVIEW,
    SCORES,
    STABILITY,
    SUMMARY,
    SUSPICIOUS,
    TRAINING,
)
from flows.cache import features_folder, features_of
from flows.cli import app
from flows.config import resolved
from flows.predict import predictions
from flows.records import Pushed, Stability
from flows.reports.round_page import notes_of_plan, round_markdown, warnings_of
from flows.reports.status import campaign_status, status_lines
from flows.steps import score
from flows.steps.evaluate import at_temperature_one, evaluate
from flows.steps.labels import review_labels
from flows.steps.plan import plan
from flows.steps.track import summarise
from flows.steps.train import cross_validate, train
from pipeline.evaluation.metrics import negative_log_likelihood
from pipeline.learning import out_of_fold
from pipeline.learning import train as learning
from pipeline.learning.networks import check_network, frozen_body, new_model, phase_of
from pipeline.learning.settings import ModelSettings
from pipeline.members.dropout import stochastic_layers
from pipeline.members.predict import Decided, first_half, predict_members
from pipeline.networks.build import with_new_head
from pipeline.networks.errors import ModelError
from pipeline.networks.features import BATCH as BATCH_OF_TRUNK
from pipeline.networks.features import feature_key
from pipeline.networks.once import once_for_each_network
from pipeline.pool.reasons import PoolError
from pipeline.randomness import derive_seed
from pipeline.selection.acquisition import ACQUISITIONS
from pipeline.selection.batch import select_batch
from pipeline.tables import BatchTable, Labels, class_indices
from pipeline.tasks import classification, segmentation
from pipeline.training.calibration import calibrate
from tests.flows.conftest import CLASSES, PLAIN, TINY, ready_round
from tests.flows.rounds import (
    candidates_of,
    candidates_read,
    change_labels,
    learn,
    networks_of,
    score_candidates,
    select_batch_of,
    weight_files,
)
from tests.flows.words import regions_of, words_of

EVERYTHING = "all_from = 8\nmax_epochs = 2\n"
"""Eight labels for each class train all of the network."""


def trained_round(work, number=1, *, relabel=None, n_audit=0, n_wrong=0):
    """A round whose members are trained; `relabel` changes the labels that they learn from.

    Args:
        n_audit: labels of the audit set, of which the first are wrong: see `label_audit`.
    """
    folder = ready_round(work, number)
    if relabel is not None:
        change_labels(folder, lambda table: table.assign(regions=regions_of(relabel(words_of(table)))))
    if n_audit:
        label_audit(folder, n=n_audit, wrong=n_wrong)
    learn(work, folder)
    work.do(evaluate, folder)
    work.do(review_labels, folder)
    return folder


def scored_round(work):
    return score_candidates(work, trained_round(work))


def images_of(work, table):
    return load_images(work.pool.located(table)["uri"].tolist(), size=12, channels=1)


def label_audit(folder, *, n=6, wrong=0):
    """Candidates whose class is known by their name become the audit set, the first ones with a wrong label."""
    audit = candidates_of(folder).head(n)
    places = audit["uri"].str[-6:-4].astype(int) % 3
    words = np.array(CLASSES)[(places + (np.arange(n) < wrong)) % 3]
    audit = audit.assign(regions=regions_of(words), source="annotators")
    folder.write(AUDIT, Labels(audit.assign(group=None)))
    return audit


def mean_probs(models, images):
    return predict_members(models, images, task=classification, seed=0)[0][:, 0].mean(dim=1)


def test_few_labels_train_heads_on_one_trunk_that_is_written_once(make_work):
    work = make_work(network=TINY)
    folder = trained_round(work)
    record = folder.read(TRAINING)
    assert record.phase == "head", "there are 8 labels for each class"
    assert record.preprocessing["image_size"] == 12
    files = {path.name for path in folder.read(MEMBERS).path.iterdir()}
    assert files == {"trunk.pt", "member-0.pt", "member-0.json", "member-1.pt", "member-1.json"}
    states = [torch.load(path, weights_only=True) for path in weight_files(folder)]
    assert not any(name.startswith("trunk.") for state in states for name in state)
    assert not torch.equal(states[0]["tail.1.weight"], states[1]["tail.1.weight"])
    models = networks_of(work, folder)
    assert models[0].trunk is models[1].trunk
    pretrained = frozen_body(work.settings.model, classification, n_classes=3).trunk.state_dict()
    assert all(torch.equal(values, pretrained[name]) for name, values in models[0].trunk.state_dict().items())


def test_heads_learn_from_every_label(make_work, monkeypatch):
    told = []
    watch(monkeypatch, learning, "fit", told)
    work = make_work(network=TINY, model="all_from = 1000\nmax_epochs = 1\n")
    folder = ready_round(work)
    labelled = folder.read(LABELLED).table
    change_labels(folder, lambda table: pd.concat([table] * 20))
    learn(work, folder)
    assert [(how["from_features"], fit.train.tolist(), fit.held_out.tolist()) for _, how, fit in told] == [
        (True, list(range(20 * len(labelled))), [])
    ] * 2


def test_phase_follows_the_labels_for_each_class(make_work):
    how = make_work(network=TINY).settings.model
    phases = [phase_of(how, n_trained_on=n, n_classes=3) for n in (1, 149, 150)]
    assert phases == ["head", "head", "all"]
    assert phase_of(how.model_copy(update={"train": "all"}), n_trained_on=3, n_classes=3) == "all"
    drawn = how.model_copy(update={"start": "scratch"})
    assert phase_of(drawn, n_trained_on=3, n_classes=3) == "all", "there are no features to keep"


def test_more_labels_train_the_trunk_of_each_member(make_work):
    work = make_work(network=TINY, model=EVERYTHING.replace("max_epochs = 2", ""))
    folder = trained_round(work)
    assert folder.read(TRAINING).phase == "all"
    assert folder.read(MEMBERS).trunk is None
    models = networks_of(work, folder)
    assert not torch.equal(models[0].trunk[0].weight, models[1].trunk[0].weight)
    calibrations = [member.calibration for member in folder.read(TRAINING).members]
    assert [how.n for how in calibrations] == [24, 24]


def crossed_round(work, *, n_copies):
    """A round on so many copies of each label; returns its folder and the table of what was said out of fold."""
    folder = ready_round(work)
    change_labels(folder, lambda table: pd.concat([table] * n_copies))
    learn(work, folder)
    return folder, folder.read(OUT_OF_FOLD).table


@pytest.mark.parametrize("bagging", ["false", "true"])
def test_few_labels_calibrate_networks_by_others_that_are_trained_alike_without_a_third(
    make_work, monkeypatch, bagging
):
    crossed, trained = [], []
    watch(monkeypatch, out_of_fold, "fit", crossed)
    watch(monkeypatch, learning, "fit", trained)
    work = make_work(network=TINY, model=EVERYTHING, members=f"bagging = {bagging}", ensemble=1)
    folder, table = crossed_round(work, n_copies=1)
    assert table["phase"].unique().tolist() == ["all"]
    logits = folder.read(OUT_OF_FOLD).values[:, 0]
    labelled = folder.read(LABELLED)
    images, targets = images_of(work, labelled.table), class_indices(labelled.words, CLASSES)
    [member] = folder.read(TRAINING).members
    assert member.calibration.temperature == calibrate(logits, targets).temperature
    [((_, seen, _, recipe), as_member, outcome)] = trained
    assert len(crossed) == 3
    assert len(seen) == 24
    assert outcome.held_out.tolist() == []
    judged = torch.zeros(len(targets))
    for (model, part, _, of_fold), how, _ in crossed:
        learnt = part[torch.arange(len(part))]
        unseen = ~(images[:, None] == learnt).flatten(2).all(dim=2).any(dim=1)
        assert unseen.sum() == 8
        assert targets[unseen].bincount(minlength=3).min() >= 2, "each fold has its share of each class"
        with torch.no_grad():
            torch.testing.assert_close(model(images[unseen]), logits[unseen])
        judged += unseen
        assert of_fold == recipe
        own = ("seed", "on_epoch", "held_out", "from_features", "pool_sample")
        assert {name: how[name] for name in how if name not in own} == {
            name: as_member[name] for name in as_member if name not in own
        }
    assert judged.tolist() == [1.0] * 24


def test_networks_with_labels_to_spare_are_calibrated_on_those_and_judged_by_heads(make_work):
    folder, table = crossed_round(make_work(network=TINY, model=EVERYTHING, ensemble=1), n_copies=20)
    assert table["phase"].unique().tolist() == ["head"]
    assert len(table) == 480
    training = folder.read(TRAINING)
    assert training.phase == "all"
    assert training.members[0].calibration.n == 48


def test_network_without_weights_lists_no_labels(make_work):
    work = make_work()
    folder = trained_round(work)
    assert len(folder.read(OUT_OF_FOLD)) == 0
    assert len(folder.read(SUSPICIOUS)) == 0
    work.do(summarise, folder)
    assert "n_suspicious_labels" not in folder.read(SUMMARY).metrics, "nobody looked"


@pytest.mark.parametrize("n_of_class", [(8, 8, 1), (8, 1, 1), (2, 1, 1)])
@pytest.mark.parametrize("members", ["", "laplace = 2"])
def test_images_nearly_alone_in_their_class_set_the_temperature_but_judge_no_label(make_work, n_of_class, members):
    work = make_work(network=TINY, members=members)
    folder = ready_round(work)
    kept = dict(zip(CLASSES, n_of_class, strict=True))
    few = change_labels(folder, lambda table: table[table.groupby("regions").cumcount() < words_of(table).map(kept)])
    learn(work, folder)
    work.do(evaluate, folder)
    work.do(review_labels, folder)
    assert len(folder.read(OUT_OF_FOLD)) == len(few)
    for member in folder.read(TRAINING).members:
        assert member.calibration.n == len(few)
    listed = folder.read(SUSPICIOUS)
    assert not listed["label"].isin([name for name, n in kept.items() if n < 5]).any()
    assert (networks_of(work, folder)[0].posterior is not None) == bool(members)


def with_guesses(work, n_copies=20):
    """A round on so many copies of each label, and twelve guesses of the model."""
    folder = ready_round(work)
    change_labels(folder, lambda table: pd.concat([table] * n_copies))
    learn(work, folder)
    assert folder.read(TRAINING).n_pseudo_labels == 12
    return folder


def watch(monkeypatch, module, name, told):
    """Note what a function that a module calls is given, and what it returns."""
    function = getattr(module, name)

    def watched(*data, **how):
        outcome = function(*data, **how)
        told.append((data, how, outcome))
        return outcome

    monkeypatch.setattr(module, name, watched)


@pytest.mark.parametrize("network", [TINY + EVERYTHING, PLAIN])
def test_guesses_of_the_model_judge_nothing(make_work, monkeypatch, network):
    guesses = "\n[model.pseudo_labels]\nthreshold = 2.0\nmax_count = 12\n"
    fits, crossed, drawn = [], [], []
    watch(monkeypatch, learning, "fit", fits)
    watch(monkeypatch, out_of_fold, "cross_fit", crossed)
    watch(monkeypatch, learning, "swag_draws", drawn)
    work = make_work(network=network, model=guesses, members="laplace = 2\nswag = 1\nbagging = true", ensemble=1)
    folder = with_guesses(work)
    (_, images, targets, _), _, outcome = fits[-1]
    assert len(targets) == 480 + 12
    assert len(outcome.held_out) == 48
    assert outcome.held_out.max() < 480, "guesses come after the labels"
    [member] = folder.read(TRAINING).members
    assert member.calibration.n == 48
    (_, features, judged, recipe), how, _ = crossed[-1]
    assert len(features) == len(judged) == 480
    assert how["bootstrap"], "as the member itself"
    assert recipe == work.settings.model.recipe
    (_, descended, descended_targets, _), _, _ = drawn[-1]
    assert torch.equal(descended[torch.arange(len(descended))], images[outcome.train]), "not on what is held out"
    assert torch.equal(descended_targets, targets[outcome.train])


@pytest.mark.parametrize("network", [TINY, TINY + "all_from = 8\n"])
def test_training_goes_to_its_end_unless_patience_ends_it(make_work, network):
    still = 'learning_rate = 1e-12\nmax_epochs = 12\nschedule = "constant"\n'
    lengths = []
    for number, patience in enumerate(("", "patience = 2\n")):
        folder = trained_round(make_work(network=network, model=still + patience, ensemble=1, name=f"c{number}"))
        [member] = folder.read(TRAINING).members
        lengths.append(len(member.epochs))
    assert lengths[0] == 12
    assert lengths[1] < 12


def test_heads_are_calibrated_on_what_they_have_not_seen(make_work):
    work = make_work(network=TINY)
    folder = trained_round(work)
    found, labelled = folder.read(OUT_OF_FOLD), folder.read(LABELLED)
    assert found.item_ids == labelled.item_ids
    wanted = calibrate(found.values[:, 0], class_indices(labelled.words, CLASSES))
    members = folder.read(TRAINING).members
    assert [member.calibration.temperature for member in members] == [wanted.temperature] * 2
    assert {len(member.epochs) for member in members} == {found.epochs}
    models = networks_of(work, folder)
    assert [float(model.temperature) for model in models] == pytest.approx([wanted.temperature] * 2)
    work.do(summarise, folder)
    assert folder.read(SUMMARY).metrics["temperature"] == pytest.approx(wanted.temperature)


@pytest.mark.parametrize("network", [TINY, TINY + EVERYTHING])
def test_audit_set_tells_what_the_temperatures_changed(make_work, network):
    work = make_work(network=network)
    folder = ready_round(work)
    learn(work, folder)
    models = networks_of(work, folder)
    for index, model in enumerate(models):
        model.temperature.fill_(2.0 + index)
        torch.save(model.state_dict(), weight_files(folder)[index])
    audit = label_audit(folder)
    work.do(evaluate, folder)
    targets, metrics = class_indices(words_of(audit).tolist(), CLASSES), folder.read(METRICS)
    assert metrics.nll == pytest.approx(
        negative_log_likelihood(mean_probs(models, images_of(work, audit)), targets), rel=1e-2
    )
    for model in models:
        model.temperature.fill_(1.0)
    plain = negative_log_likelihood(mean_probs(models, images_of(work, audit)), targets)
    assert metrics.nll_uncalibrated == pytest.approx(plain, rel=1e-2)
    assert abs(metrics.nll_uncalibrated - metrics.nll) > 0.01


def test_temperature_comes_out_of_probabilities_as_it_went_in():
    logits = 5 * torch.randn(50, 3, 4, generator=torch.Generator().manual_seed(0))
    temperatures = torch.tensor([0.5, 1.0, 3.0])
    probs = (logits / temperatures[:, None]).softmax(dim=2)
    assert torch.allclose(at_temperature_one(probs, temperatures), logits.softmax(dim=2), atol=1e-5)


@pytest.mark.parametrize("phase", ["head", "all"])
def test_labels_that_are_wrong_are_listed_with_file_task_and_estimate(make_work, tmp_path, phase):
    def swap_two(labels):
        rows = labels[labels != "middle"].index[:2]
        return labels.mask(labels.index.isin(rows), labels.replace({"left": "right", "right": "left"}))

    work = make_work(network=TINY, model=f'train = "{phase}"\nmax_epochs = 60\nlearning_rate = 5e-3\n')
    folder = trained_round(work, relabel=swap_two)
    assert folder.read(TRAINING).phase == phase
    labelled = folder.read(LABELLED).table
    truth = work.pool.table.set_index("item_id")["label"].loc[labelled["item_id"]].to_numpy()
    wrong = dict(zip(labelled["item_id"], truth, strict=True))
    wrong = {item: wrong[item] for item in labelled["item_id"][words_of(labelled).to_numpy() != truth]}
    assert len(wrong) == 2
    tasks = {item: number for number, item in enumerate(wrong, start=7)}
    pushed_at = "2026-11-01T12:00:00+00:00"
    work.folder.round(0).write(
        PUSHED, Pushed(pushed_at, "https://labels/projects/3/data", tasks, dict.fromkeys(tasks, "query"))
    )
    folder.path_of(SUSPICIOUS).unlink()
    work.do(review_labels, folder)
    listed = folder.read(SUSPICIOUS)
    assert dict(zip(listed["item_id"], listed["suggested"], strict=True)) == wrong
    assert (listed["suggested_probability"] > listed["given_probability"]).all()
    assert (listed["wrong_probability"] >= 0.5).all()
    assert listed["task"].tolist() == [
        f"https://labels/projects/3/data?task={tasks[item]}" for item in listed["item_id"]
    ]
    assert listed["uri"].tolist() == work.pool.table.set_index("item_id")["uri"].loc[listed["item_id"]].tolist()
    assert set(listed["split"]) == {"pool"}
    work.do(summarise, folder)
    logged = folder.read(SUMMARY).metrics
    assert logged["n_suspicious_labels"] == 2
    assert logged["n_suspicious_labels_wrong"] == pytest.approx(listed["wrong_probability"].sum())
    work.folder.write(CAMPAIGN, resolved(work.settings))
    seen = campaign_status(work.folder, tmp_path).suspicious
    assert (seen.count, seen.text) == (2, "2 labels look wrong, about 2 of them are")
    shown = "\n".join(map(str, status_lines(campaign_status(work.folder, tmp_path))))
    assert "Labels: 2 labels look wrong, about 2 of them are" in shown
    first = listed.iloc[0]
    assert f"{first['uri']}: {first['label']}, rather {first['suggested']} (wrong with" in shown
    assert first["task"] in shown
    folder.write(PUSHED, Pushed(pushed_at, "https://labels", {}, {}))
    folder.write(BATCH, BatchTable(pd.DataFrame({"item_id": []})))
    page = round_markdown(folder, "stripes")
    assert "2 labels look wrong, about 2 of them are." in page
    assert f"| {markdown(first['uri'])} | {first['label']} | {first['suggested']} |" in page


def test_wrong_label_of_the_audit_set_is_listed_as_one(make_work):
    work = make_work(network=TINY, model='train = "head"\nmax_epochs = 60\nlearning_rate = 5e-3\n')
    folder = trained_round(work, n_audit=24, n_wrong=1)
    audit, listed = folder.read(AUDIT).table, folder.read(SUSPICIOUS)
    assert listed[["item_id", "split", "label"]].to_numpy().tolist() == [
        [audit["item_id"].iloc[0], "audit", words_of(audit).iloc[0]]
    ]
    assert folder.read(REVIEW).text == "1 label looks wrong, it probably is (1 in the audit set)"


def test_model_that_knows_little_lists_no_label_and_says_why(make_work):
    work = make_work(network=TINY, model="learning_rate = 1e-9\nmax_epochs = 1\n")
    folder = trained_round(work)
    assert len(folder.read(SUSPICIOUS)) == 0
    told = folder.read(REVIEW).text
    right = folder.read(REVIEW).sets[0].share_right
    assert right < 0.6
    assert told.startswith(f"no labels are listed as wrong: the model is right on {100 * right:.0f} % of those that it")
    assert "below 60 % no list is worth reading" in told


@pytest.mark.parametrize("n_labels", [1, 2])
def test_one_label_and_two_train_a_head(make_work, n_labels):
    work = make_work(network=TINY)
    folder = ready_round(work)
    change_labels(folder, lambda table: table.head(n_labels))
    learn(work, folder)
    assert len(folder.read(OUT_OF_FOLD)) == (0 if n_labels == 1 else 2)
    work.do(evaluate, folder)
    work.do(review_labels, folder)


def test_one_label_and_guesses_make_heads_with_a_posterior(make_work):
    guesses = "\n[model.pseudo_labels]\nthreshold = 2.0\nmax_count = 7\n"
    work = make_work(network=TINY, model=guesses, members="laplace = 2")
    folder = ready_round(work)
    change_labels(folder, lambda table: table.head(1))
    learn(work, folder)
    assert folder.read(TRAINING).n_pseudo_labels == 1
    assert all(model.posterior is not None for model in networks_of(work, folder))


def test_networks_come_back_with_what_was_frozen(make_work):
    network = TINY.replace("tiny_network", "two_stages") + 'train = "head"\nmax_epochs = 1\n'
    work = make_work(network=network, members="mc_dropout = 2", ensemble=1)
    folder = trained_round(work)
    trunk = folder.read(MEMBERS).trunk
    loaded_by_mlflow = load_members(asdict(folder.read(TRAINING).model), weight_files(folder), trunk=trunk)
    for [model] in (networks_of(work, folder), loaded_by_mlflow):
        assert model.frozen == ("trunk",)
        assert list(stochastic_layers(model)) == ["tail.0"], "the trunk dropped nothing in training"


def test_killed_training_of_heads_goes_on_to_the_same_members(make_work, training_is_killed):
    whole = trained_round(make_work(network=TINY, name="whole"))
    work = make_work(network=TINY, name="killed")
    folder = ready_round(work)
    work.do(plan, folder)
    work.do(cross_validate, folder)
    with training_is_killed(after=1):
        work.do(train, folder)
    work.do(train, folder)
    assert folder.read(TRAINING) == whole.read(TRAINING)
    for one, other in zip(weight_files(folder), weight_files(whole), strict=True):
        one, other = (torch.load(path, weights_only=True) for path in (one, other))
        assert all(torch.equal(one[name], other[name]) for name in other)


def test_pseudo_labels_are_learned_from_as_features_too(make_work):
    work = make_work(network=TINY, model="\n[model.pseudo_labels]\nthreshold = 2.0\nmax_count = 7\n")
    folder = trained_round(work)
    record = folder.read(TRAINING)
    assert (record.n_pseudo_labels, record.phase) == (7, "head")
    assert {member.calibration.n for member in record.members} == {record.n_trained_on}, "guesses judge nothing"
    assert not (folder.read(MEMBERS).path / "before-pseudo-labels").exists()


def test_network_starts_between_the_last_round_and_its_pretrained_weights(make_work):
    still = "learning_rate = 1e-12\nweight_decay = 0.0\n" + EVERYTHING
    work = make_work(network=TINY, model=still + 'start = "previous"\n')
    first, second = trained_round(work, 1), trained_round(work, 2)
    how, seed = work.settings.model, derive_seed(work.settings.seed, 2, "member-0")
    fresh = new_model(how, classification, n_classes=3, seed=seed)
    before, after = (networks_of(work, folder)[0] for folder in (first, second))
    for name, values in after.named_parameters():
        wanted = 0.6 * before.get_parameter(name) + 0.4 * fresh.get_parameter(name)
        assert torch.allclose(values, wanted, atol=1e-6), name


def test_scores_from_cached_features_are_those_of_the_images(make_work):
    work = make_work('strategy = "batch_bald"\nacquisition = "bald"', network=TINY)
    folder = scored_round(work)
    candidates = candidates_of(folder)
    decisions, embeddings, _ = predict_members(
        networks_of(work, folder), images_of(work, candidates), task=classification, seed=0
    )
    read = candidates_read(work, folder)
    assert torch.allclose(read.probs, decisions[:, 0], atol=2e-3), "features are rounded to float16"
    assert torch.allclose(read.scores, ACQUISITIONS["bald"](decisions[:, 0]), atol=2e-3)
    assert not folder.read(SCORES).has_column("embedding"), "the store has it"
    rows = np.array([0, 7, len(candidates) - 1])
    kept = work.images.embeddings(networks_of(work, folder)[0], folder.read(CANDIDATES), rows)
    assert torch.allclose(kept.float(), embeddings[rows], atol=5e-3)


def test_image_is_computed_once_in_the_life_of_a_trunk(make_work):
    work = make_work(network=TINY)
    folder = scored_round(work)
    models = networks_of(work, folder)
    body = frozen_body(work.settings.model, classification, n_classes=3)
    cache = open_cache(features_folder(), body, image_size=12)
    assert len(cache) == 60 - 6, "all but the audit set, which was not measured"
    nowhere = candidates_of(folder).assign(uri="/nowhere.png")
    assert len(features_of(body, nowhere, work.settings.model)) == len(nowhere)
    assert sum(
        len(decisions) for decisions, *_ in predictions(models, nowhere, work.settings.model, task=classification)
    ) == len(nowhere)
    shutil.rmtree(features_folder())
    frozen_features._opened.cache_clear()
    with pytest.raises(PoolError, match="nowhere"):
        features_of(body, nowhere, work.settings.model)


def test_pool_is_predicted_in_parts_that_make_one(make_work, monkeypatch):
    work = make_work(network=TINY, members="mc_dropout = 3\nlaplace = 2")
    folder = trained_round(work)
    models, items = networks_of(work, folder), work.pool.located(candidates_of(folder))
    told, done, keys = [], [], []
    how = {"members": work.settings.members, "seed": 5}

    def predict(**also):
        parts = list(predictions(models, items, work.settings.model, task=classification, **how, **also))
        return [len(part.decisions) for part in parts], *map(torch.cat, list(zip(*parts, strict=True))[:2])

    sizes, decisions, embeddings = predict()
    assert sizes == [len(items)] == [30]
    watch(monkeypatch, predict_module, "features_of", told)
    monkeypatch.setattr(frozen_features, "feature_key", lambda *_, **__: keys.append(1) or feature_key(*_, **__))
    monkeypatch.setattr(predict_module, "SHARD", 20)
    monkeypatch.setattr("pipeline.learning.predict.MAX_PROBABILITIES", 12 * 3 * 8)
    monkeypatch.setattr(frozen_features, "_key", once_for_each_network(frozen_features._key.__wrapped__))
    sizes, again, embedded = predict(on_progress=lambda done_now, total: done.append((done_now, total)))
    assert sizes == [8, 8, 4, 8, 2]
    assert torch.allclose(again, decisions, atol=1e-6)
    assert torch.equal(embedded, embeddings)
    assert [len(features) for _, _, features in told] == [20, 10], "nothing holds the pool"
    assert done == [(20, 30), (30, 30)]
    assert len(keys) == 1, "the trunk is hashed once"


@pytest.mark.parametrize("task", [classification, segmentation])
def test_shared_trunk_reads_an_image_once_for_three_heads_whether_features_are_kept_or_not(striped_images, task):
    given = {"name": "tests.flows.tiny:tiny_network", "weights": "factory", "augmentation": "none"}
    settings = ModelSettings(**given, image_size=16, channels=1, device="cpu")
    body = frozen_body(settings, task, n_classes=3)
    heads = [with_new_head(body, seed=seed) for seed in range(3)]
    for head in heads:
        head.train_only("head")
    paths = sorted(striped_images.glob("*.png"))[:40]
    items = pd.DataFrame({"item_id": [path.stem for path in paths], "uri": [str(path) for path in paths]})
    n_read: list[int] = []
    body.trunk.register_forward_hook(lambda _trunk, inputs, _features: n_read.append(len(inputs[0])))

    def decided(**how):
        n_read.clear()
        return Decided(
            *map(torch.cat, list(zip(*predictions(heads, items, settings, task=task, **how), strict=True))[:2])
        )

    anew = decided(keep=False)
    once = [BATCH_OF_TRUNK, BATCH_OF_TRUNK]
    assert n_read == [1, *once], "one image to know how large features are, then batches that are filled up"
    assert len(open_cache(features_folder(), body, image_size=16)) == 0
    kept = decided()
    assert n_read == once
    again = decided(keep=False)
    assert n_read == [], "what was kept is read"
    for other in (kept, again):
        assert torch.equal(anew.decisions, other.decisions)
        assert torch.equal(anew.embeddings, other.embeddings)
    assert anew.decisions.shape[2] == 3


def scored_in_shards(work, folder, monkeypatch):
    """Bytes of the cache after each of three shards."""
    monkeypatch.setattr(score, "SHARD", 10)
    held = []
    work.do(score.embed_labelled, folder)
    for shard in score.shards_of(folder.read(CANDIDATES)):
        work.do(score.score_shard, folder, shard=shard, on_progress=lambda _done, _total: None)
        held.append(sum(one.n_bytes for one in usage(features_folder())))
    assert len(held) == 3
    return held


def test_cache_stays_in_its_bound_while_a_pool_is_scored(make_work, monkeypatch):
    work = make_work("feature_cache_gb = 0.00004", network=TINY)
    folder = trained_round(work)
    others = open_cache(
        features_folder(), new_model(work.settings.model, classification, n_classes=3, seed=1), image_size=12
    )
    others.append([f"other{number}" for number in range(100)], torch.zeros((100, 128), dtype=torch.float16))
    held = scored_in_shards(work, folder, monkeypatch)
    assert max(held) <= 40_000, "other features go for those that are used"
    body = frozen_body(work.settings.model, classification, n_classes=3)
    assert len(open_cache(features_folder(), body, image_size=12)) > 24


@pytest.mark.parametrize("of_members", ["", "mc_dropout = 2\nlaplace = 2"])
def test_pool_whose_features_do_not_fit_is_scored_alike_and_keeps_those_of_labels(make_work, monkeypatch, of_members):
    scored, n_kept, told, read = [], [], [], []
    for gigabytes in ("0.00005", "0.000015"):  # 60 images of 256 bytes take 15,360
        work = make_work(
            f"feature_cache_gb = {gigabytes}", network=TINY, members=of_members, name=f"of-{gigabytes[5:]}"
        )
        shutil.rmtree(features_folder(), ignore_errors=True)
        frozen_features._opened.cache_clear()
        folder = trained_round(work)
        work.do(plan, folder)
        scored_in_shards(work, folder, monkeypatch)
        scored.append(folder.read(SCORES))
        body = frozen_body(work.settings.model, classification, n_classes=3)
        n_kept.append(len(open_cache(features_folder(), body, image_size=12)))
        told.append(notes_of_plan(folder))
        read.append(candidates_read(work, folder))
    for column in ("scores", "embeddings", "probs"):
        assert torch.equal(getattr(read[0], column), getattr(read[1], column)), column
    assert [each.has_column("embedding") for each in scored] == [False, True], "what is not kept is written down"
    assert n_kept == [54, 24], "the second keeps labelled images alone"
    assert told[0] == ()
    assert "take 1.5e-05 GB, and feature_cache_gb = 1.5e-05" in told[1][0]


@pytest.mark.parametrize("strategy", ["top_k", "badge", "drop_query"])
def test_batch_of_half_the_draws_is_that_of_half_the_members(make_work, strategy):
    work = make_work(f'strategy = "{strategy}"\nrandom_slice = 0.0', network=TINY, members="mc_dropout = 6")
    folder = scored_round(work)
    batch = set(select_batch_of(work, folder, 8).item_ids)
    models, candidates = networks_of(work, folder), candidates_of(folder)
    seed = derive_seed(work.settings.seed, folder.number, "mc_dropout")
    how = {"task": classification, "seed": seed}
    parts = predictions(models, work.pool.located(candidates), work.settings.model, work.settings.members, **how)
    halved = first_half(torch.cat([part.decisions for part in parts]), 2)[:, 0]
    assert halved.shape[1] == 6
    read = candidates_read(work, folder, of="_half")
    assert torch.allclose(read.scores, ACQUISITIONS["margin"](halved), atol=1e-6)
    if strategy == "badge":
        assert torch.allclose(read.probs[:, 0], halved.mean(dim=1), atol=1e-6)
    if strategy == "drop_query":
        assert torch.allclose(read.probs, halved, atol=1e-6)
    half = select_batch(read, work.settings.of_size(8), round_number=folder.number, seed=work.settings.seed)
    share = folder.read(STABILITY).batch_kept_with_half_the_members
    assert share == len(batch & set(half.ids)) / 8
    work.do(summarise, folder)
    assert folder.read(SUMMARY).metrics["batch_kept_with_half_the_members"] == share
    assert any("half the draws" in warning for warning in warnings_of(folder)) == (share < 0.8)


@pytest.mark.parametrize(
    ("members", "n_half"), [("", 0), ("mc_dropout = 2", 2), ("swag = 3", 2), ("laplace = 5\nswag = 2", 10)]
)
def test_half_is_of_what_is_drawn_for_each_network(make_work, members, n_half):
    assert make_work(network=TINY, members=members).settings.members.n_half == n_half


@pytest.mark.parametrize("members", ["", "mc_dropout = 2"])
def test_one_member_is_no_half_of_anything(make_work, members):
    work = make_work(network=TINY, members=members)
    if members:
        work = make_work('strategy = "drop_query"', network=TINY, members=members, ensemble=1)
    folder = scored_round(work)
    select_batch_of(work, folder, 4)
    assert folder.read(STABILITY) == Stability(None)
    work.do(summarise, folder)
    assert "batch_kept_with_half_the_members" not in folder.read(SUMMARY).metrics


@pytest.mark.parametrize("network", [TINY, TINY + EVERYTHING])
def test_every_kind_of_members_goes_through_a_round(make_work, network):
    network = network.replace('augmentation = "none"', 'augmentation = "digits"')
    members = "swag = 2\nlaplace = 2\nmc_dropout = 2\nbagging = true\n" + ("views = 2" if EVERYTHING in network else "")
    work = make_work('strategy = "drop_query"', network=network, members=members)
    folder = scored_round(work)
    files = [path.name for path in weight_files(folder)]
    assert files == [f"member-{member}-swag-{draw:02d}.pt" for member in (0, 1) for draw in (0, 1)]
    assert (folder.read(MEMBERS).path / "member-0.pt").exists(), "the next round may start from it"
    models = networks_of(work, folder)
    assert all(model.posterior is not None for model in models)
    assert not torch.equal(models[0].tail[1].weight, models[1].tail[1].weight)
    n_members = work.settings.members.n_members
    assert n_members == (32 if EVERYTHING in network else 16)
    probs = candidates_read(work, folder).probs
    assert probs.shape[1:] == (n_members, 3)
    assert len({tuple(row) for row in probs[0].tolist()}) == n_members, "each says something of its own"
    work.do(evaluate, folder)
    select_batch_of(work, folder, 4)


def test_training_that_learns_nothing_is_told_on_the_page(make_work):
    work = make_work(network=TINY, model="learning_rate = 1e-9\nmax_epochs = 2\n")
    folder = trained_round(work, n_audit=6)
    [finding] = folder.read(TRAINING).findings
    assert finding.members == ("member-0", "member-1")
    work.do(summarise, folder)
    folder.write(BATCH, BatchTable(pd.DataFrame({"item_id": []})))
    [warning] = warnings_of(folder)
    assert warning.startswith(f"{finding.name} (member-0, member-1): ")
    page = round_markdown(folder, "stripes")
    assert f"**Warning:** {markdown(warning)}" in page
    assert "Trained the head alone. Without the temperatures NLL would be" in page


def check(settings):
    check_network(settings.model, settings.members, classification, n_classes=len(CLASSES))


def test_mc_dropout_needs_dropout_in_every_phase(make_work):
    with pytest.raises(ModelError, match=r"trains has none \(phase head\)"):
        check(make_work(network=TINY, model="dropout = 0\n", members="mc_dropout = 2").settings)
    check(make_work(network=TINY, members="mc_dropout = 2").settings)


def test_cache_is_shown_shrunk_and_cleared(make_work, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    folder = scored_round(make_work(network=TINY))
    assert len(folder.read(SCORES).parts) == 1

    def cache(*options):
        result = CliRunner().invoke(app, ["cache", *options])
        assert result.exit_code == 0, result.output
        return result.output

    [key] = [path.name for path in features_folder().iterdir()]
    assert key in cache()
    assert " 54 " in cache()
    assert key in cache("--shrink-to", "1")
    assert key not in cache("--shrink-to", "0")
    scored_round(make_work(network=TINY, name="other"))
    assert key in cache()
    assert key not in cache("--clear")


def test_cache_is_not_cleared_and_shrunk_at_once(make_work):
    scored_round(make_work(network=TINY))
    result = CliRunner().invoke(app, ["cache", "--clear", "--shrink-to", "1"])
    assert result.exit_code == 2
    assert usage(features_folder())[0].n_items > 0, "nothing is lost"
