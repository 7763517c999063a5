import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from flows.steps.ask import select
from flows.steps.learn import train

from flows.predict import predictions
from flows.steps.score import embed_labelled, read_candidates, score_shard
from pipeline.learning.networks import new_model
from pipeline.networks.classifier import Classifier
from pipeline.selection.acquisition import ACQUISITIONS, score_all
from pipeline.selection.strategies.rows import STRATEGIES, Strategy
from tests.flows.conftest import CLASSES, ready_round


@pytest.fixture
def models(make_work) -> list[Classifier]:
    """Two networks that have seen nothing."""
    settings = make_work().settings
    return [new_model(settings.model, n_classes=len(CLASSES), seed=seed).eval() for seed in (0, 1)]


def score(work, models, *, number=1):
    """Score the candidates in two shards."""
    folder = ready_round(work, number)
    embed_labelled.fn(folder, work, models)
    candidates = pd.read_parquet(folder / "candidates.parquet")
    for shard, rows in enumerate((candidates.iloc[:20], candidates.iloc[20:])):
        score_shard.fn(folder, work, models, rows, shard=shard, count=lambda _done, _total: None)
    return folder


def expected(work, models, table):
    """What the members say of the images of a table, computed at once."""
    parts = list(predictions(models, work.located(table), work.settings.model))
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def test_scores_and_both_parts_of_the_doubt_are_those_of_the_members(make_work, models):
    work = make_work('strategy = "power"\nacquisition = "margin"')
    folder = score(work, models)
    candidates = pd.read_parquet(folder / "candidates.parquet")
    decisions, _ = expected(work, models, candidates)
    table = pd.concat(pd.read_parquet(path) for path in sorted((folder / "scores").glob("*.parquet")))
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
    assert "epistemic" not in pq.read_schema(folder / "scores" / "part-00000.parquet").names


def test_strategy_gets_every_column_that_it_reads(make_work, models, monkeypatch):
    def reads_all(probs, guesses, embeddings, labelled_embeddings, labelled_probs, labelled_targets, *, query_size):
        raise NotImplementedError

    monkeypatch.setitem(STRATEGIES, "reads_all", Strategy("reads_all", reads_all, "pool"))
    work = make_work('strategy = "reads_all"')
    folder = score(work, models)
    read = read_candidates(folder, work.settings)
    labelled = pd.read_parquet(folder / "labelled.parquet")
    decisions, embeddings = expected(work, models, pd.read_parquet(folder / "candidates.parquet"))
    of_labelled, embedded = expected(work, models, labelled)
    assert torch.allclose(read.probs[:, 0], decisions[:, 0].mean(dim=1), atol=1e-6), "none compares the members"
    assert torch.equal(read.guesses, decisions[:, 0].mean(dim=1).argmax(dim=1))
    assert torch.allclose(read.embeddings.float(), embeddings, atol=1e-2)
    assert torch.allclose(read.labelled_embeddings.float(), embedded, atol=1e-2)
    assert torch.allclose(read.labelled_probs[:, 0], of_labelled[:, 0].mean(dim=1), atol=1e-6)
    assert [CLASSES[target] for target in read.labelled_targets] == labelled["label"].tolist()


def test_balanced_batch_asks_for_the_guessed_class_with_the_fewest_labels(make_work, models):
    work = make_work("balance_classes = true\nrandom_slice = 0.0")
    folder = ready_round(work)
    train.fn(folder, work, "run")
    labelled = pd.read_parquet(folder / "labelled.parquet")
    few = labelled[(labelled["label"] != "middle") | (labelled.groupby("label").cumcount() < 2)]
    few.to_parquet(folder / "labelled.parquet", index=False)
    from flows.steps.learn import trained_models

    score(work, trained_models(folder, work))
    select.fn(folder, work, query_size=5)
    batch = pd.read_parquet(folder / "batch.parquet")
    assert batch["guess"].tolist() == ["middle"] * 5
    assert {"aleatoric", "epistemic"} <= set(batch)
