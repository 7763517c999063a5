import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from connectors import score_files
from connectors.score_files import ItemList, as_lists
from flows.artefacts import LABELLED, MEMBERS, SCORES, STABILITY, TRAINING
from flows.predict import predictions
from flows.steps import score as scoring
from pipeline.learning.networks import new_model
from pipeline.networks.classifier import Classifier
from pipeline.selection.acquisition import ACQUISITIONS
from pipeline.selection.strategies.rows import STRATEGIES, Strategy
from pipeline.tasks import classification
from tests.flows.conftest import CLASSES, ready_round
from tests.flows.rounds import (
    candidates_of,
    candidates_read,
    change_labels,
    learn,
    score_candidates,
    select_batch_of,
    training_of,
)
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


def expected(work, models, table):
    """What the members say of the images of a table, computed at once."""
    parts = list(predictions(models, work.pool.located(table), work.settings.model, task=classification))
    return tuple(torch.cat(part) for part in list(zip(*parts, strict=True))[:2])


def test_scores_and_guesses_are_those_of_the_members(make_work, models):
    work = make_work('strategy = "power"\nacquisition = "margin"')
    folder = score(work, models)
    candidates = candidates_of(folder)
    decisions, _ = expected(work, models, candidates)
    parts = [pd.read_parquet(path) for path in folder.read(SCORES).parts]
    assert [len(part) for part in parts] == [20, 10]
    table = pd.concat(parts)
    margins = ACQUISITIONS["margin"](decisions[:, 0])
    assert torch.allclose(torch.tensor(table["score"].to_numpy()), margins, atol=1e-5)
    assert table["guess"].tolist() == [CLASSES[guess] for guess in decisions[:, 0].mean(dim=1).argmax(dim=1)]
    assert set(table) == {"place", "score", "guess"}, "the list of candidates has their ids"
    assert table["place"].tolist() == [*range(30)]
    read = candidates_read(work, folder)
    assert [each.decode() for each in read.ids] == candidates["item_id"].tolist()
    assert torch.allclose(read.scores, margins, atol=1e-5)
    assert read.embeddings is None, "power reads no embeddings"
    assert not passing_of(folder), "nor anything else"


def passing_of(folder) -> list[str]:
    """Files of what only choosing the batch reads."""
    return sorted(path.name for path in folder.path_of(SCORES).glob("choosing-*"))


def test_what_only_choosing_reads_is_of_the_sub_pool_and_goes_with_the_choice(make_work, models):
    work = make_work('strategy = "k_center"\nsub_pool = 15\nrandom_slice = 0.0')
    folder = score(work, models)
    assert passing_of(folder) == ["choosing-00000.parquet"], "the sub-pool is within the first shard"
    read = candidates_read(work, folder)
    assert (len(read.ids), len(read.embeddings), read.described.tolist()) == (30, 15, [*range(15)])
    assert torch.allclose(read.embeddings.float(), expected(work, models, candidates_of(folder))[1][:15], atol=1e-2)
    batch = select_batch_of(work, folder, 4).table
    assert set(batch["item_id"]) <= set(candidates_of(folder)["item_id"][:15])
    for _ in range(2):
        work.do(scoring.forget_passing, folder)
    assert not passing_of(folder)
    assert len(folder.read(SCORES).parts) == 2


def test_the_best_by_score_alone_are_described_where_a_prefilter_is_set(make_work, models):
    work = make_work('strategy = "k_center"\nprefilter = 2.0')
    folder = score(work, models)
    read = candidates_read(work, folder)
    best = read.scores.argsort(descending=True, stable=True)[:10].sort().values
    assert torch.equal(read.described, best)
    embeddings = expected(work, models, candidates_of(folder))[1]
    assert torch.allclose(read.embeddings.float(), embeddings[best], atol=1e-2)


def test_a_round_that_an_earlier_version_has_scored_goes_on_with_the_same_batch(make_work, models):
    work = make_work('strategy = "badge"\nbalance_classes = true', members="mc_dropout = 4\n")
    folder = score(work, models)
    before = candidates_read(work, folder)
    scores = folder.read(SCORES)
    for shard, path in enumerate(scores.parts):
        beside = folder.path_of(SCORES) / f"choosing-{shard:05d}.parquet"
        columns = pd.read_parquet(path).drop(columns="place").to_dict("series") | pd.read_parquet(beside).to_dict(
            "series"
        )
        pq.write_table(as_written_before(columns), path)
        beside.unlink()
    after = candidates_read(work, folder)
    for name in ("scores", "embeddings", "probs", "guesses"):
        assert torch.equal(getattr(after, name), getattr(before, name)), name
    assert len(select_batch_of(work, folder, 5)) == 5
    assert work.folder.round(1).read(STABILITY).batch_kept_with_half_the_members is not None


def as_written_before(columns) -> pa.Table:
    """One table with an id and all columns, lists among them."""
    lists = {
        name: as_lists(torch.tensor(np.stack(values.tolist())))
        for name, values in columns.items()
        if not np.isscalar(values.iloc[0])
    }
    item_id = [f"{row}" for row in range(len(columns["score"]))]
    return pa.table({"item_id": item_id, **{name: values.to_numpy() for name, values in columns.items()}, **lists})


def test_candidates_that_are_gone_when_they_are_scored_are_not_asked_for(make_work, models, monkeypatch):
    work = make_work('strategy = "k_center"\nsub_pool = 15')
    listed = ItemList.rows
    monkeypatch.setattr(ItemList, "rows", lambda self, start, n: listed(self, start, n).drop([3, 25], errors="ignore"))
    folder = score(work, models)
    monkeypatch.undo()
    ids = candidates_of(folder)["item_id"].tolist()
    read = candidates_read(work, folder)
    assert [each.decode() for each in read.ids] == [
        item_id for place, item_id in enumerate(ids) if place not in (3, 25)
    ]
    assert (len(read.described), len(read.embeddings)) == (14, 14), "of no others was more written"
    assert set(select_batch_of(work, folder, 5).item_ids) <= {*ids[:15]} - {ids[3]}


def test_some_rows_of_a_list_are_read_without_the_others(tmp_path, monkeypatch):
    table = pd.DataFrame({"item_id": [f"{row:04d}" for row in range(95)], "uri": [f"/{row}" for row in range(95)]})
    monkeypatch.setattr(score_files, "GROUP", 10)
    listed = ItemList.made(tmp_path / "list.parquet", table)
    assert pq.read_metadata(listed.path).num_row_groups == 10
    for start, n in [(0, 10), (7, 25), (90, 10), (94, 1), (95, 5), (0, 95)]:
        assert listed.rows(start, n).to_dict() == table.iloc[start : start + n].to_dict()
    assert [each.decode() for each in listed.ids] == table["item_id"].tolist()


def test_strategy_gets_every_column_that_it_reads(make_work, models, monkeypatch):
    def reads_all(probs, guesses, embeddings, labelled_embeddings, labelled_probs, labelled_targets, *, query_size):
        raise NotImplementedError

    monkeypatch.setitem(STRATEGIES, "reads_all", Strategy("reads_all", reads_all, "pool"))
    work = make_work('strategy = "reads_all"')
    folder = score(work, models)
    read = candidates_read(work, folder)
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
