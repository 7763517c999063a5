import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from flows.artefacts import LABELLED, LABELLED_EMBEDDINGS, MEMBERS, SCORES, TRAINING
from flows.predict import predictions
from flows.steps import score as scoring
from flows.steps.select import _read_candidates
from pipeline.learning.networks import new_model
from pipeline.networks.classifier import Classifier
from pipeline.selection.acquisition import ACQUISITIONS, score_all
from pipeline.selection.strategies.rows import STRATEGIES, Strategy
from pipeline.tasks import classification
from tests.flows.conftest import CLASSES, ready_round
from tests.flows.rounds import candidates_of, change_labels, learn, score_candidates, select_batch_of, training_of
from tests.flows.words import words_of


@pytest.fixture
def models(make_work) -> list[Classifier]:
    """Two networks that have seen nothing."""
    settings = make_work().settings
    return [new_model(settings.model, classification, n_classes=len(CLASSES), seed=seed).eval() for seed in (0, 1)]


@pytest.fixture(autouse=True)
def _two_shards(monkeypatch):
    monkeypatch.setattr(scoring, "SHARD", 20)


def score(work, models):
    """Score the candidates by networks that nobody trained."""
    folder = ready_round(work)
    networks = folder.read(MEMBERS)
    names = [networks.save(model, f"member-{n}.pt", with_trunk=True) for n, model in enumerate(models)]
    folder.write(TRAINING, training_of(weights=names, phase="all"))
    return score_candidates(work, folder)


def read_candidates(folder, settings):
    """What choosing a batch reads of the scores."""
    return _read_candidates(
        folder.read(SCORES), folder.read(LABELLED_EMBEDDINGS), folder.read(LABELLED), settings, classification
    )


def expected(work, models, table):
    """What the members say of the images of a table, computed at once."""
    parts = list(predictions(models, work.pool.located(table), work.settings.model, task=classification))
    return tuple(torch.cat(part) for part in list(zip(*parts, strict=True))[:2])


def test_scores_and_both_parts_of_the_doubt_are_those_of_the_members(make_work, models):
    work = make_work('strategy = "power"\nacquisition = "margin"')
    folder = score(work, models)
    candidates = candidates_of(folder)
    decisions, _ = expected(work, models, candidates)
    parts = [pd.read_parquet(path) for path in folder.read(SCORES).parts]
    assert [len(part) for part in parts] == [20, 10]
    table = pd.concat(parts)
    doubt = score_all(decisions[:, 0], ["entropy", "aleatoric", "epistemic"])
    assert table["item_id"].tolist() == candidates["item_id"].tolist()
    for name, values in {
        "score": ACQUISITIONS["margin"](decisions[:, 0]),
        **doubt,
    }.items():
        assert torch.allclose(torch.tensor(table[name].to_numpy()), values, atol=1e-5), name
    read = read_candidates(folder, work.settings)
    assert torch.allclose(read.scores, ACQUISITIONS["margin"](decisions[:, 0]), atol=1e-5)
    assert read.embeddings is None, "power reads no embeddings"
    assert "probs" not in table


def test_one_member_has_no_parts_of_doubt(make_work, models):
    folder = score(make_work(), models[:1])
    assert "epistemic" not in pq.read_schema(folder.read(SCORES).part(0)).names


def test_strategy_gets_every_column_that_it_reads(make_work, models, monkeypatch):
    def reads_all(probs, guesses, embeddings, labelled_embeddings, labelled_probs, labelled_targets, *, query_size):
        raise NotImplementedError

    monkeypatch.setitem(STRATEGIES, "reads_all", Strategy("reads_all", reads_all, "pool"))
    work = make_work('strategy = "reads_all"')
    folder = score(work, models)
    read = read_candidates(folder, work.settings)
    labelled = folder.read(LABELLED).table
    decisions, embeddings = expected(work, models, candidates_of(folder))
    of_labelled, embedded = expected(work, models, labelled)
    assert torch.allclose(read.probs[:, 0], decisions[:, 0].mean(dim=1), atol=1e-6), "none compares the members"
    assert torch.equal(read.guesses, decisions[:, 0].mean(dim=1).argmax(dim=1))
    assert torch.allclose(read.embeddings.float(), embeddings, atol=1e-2)
    assert torch.allclose(read.labelled_embeddings.float(), embedded, atol=1e-2)
    assert torch.allclose(read.labelled_probs[:, 0], of_labelled[:, 0].mean(dim=1), atol=1e-6)
    assert [CLASSES[target] for target in read.labelled_targets] == words_of(labelled).tolist()


def test_balanced_batch_asks_for_the_guessed_class_with_the_fewest_labels(make_work, models):
    work = make_work("balance_classes = true\nrandom_slice = 0.0")
    folder = ready_round(work)
    learn(work, folder)
    change_labels(
        folder,
        lambda table: table[(words_of(table) != "middle") | (table.groupby("regions").cumcount() < 2)],
    )
    batch = select_batch_of(work, score_candidates(work, folder), 5).table
    assert batch["guess"].tolist() == ["middle"] * 5
    assert {"aleatoric", "epistemic"} <= set(batch)
