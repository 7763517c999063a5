from dataclasses import fields

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor

from pipeline.selection.ask import (
    candidates_of,
    columns_read,
    gather_candidates,
    probs_read,
    reads_model,
    score_candidates,
    select_seed_set,
    share_kept,
    try_strategy,
)
from pipeline.selection.batch import select_batch
from pipeline.selection.explain import explain_batch
from pipeline.selection.settings import SelectionSettings
from pipeline.selection.strategies.rows import STRATEGIES
from pipeline.types import Candidates, Region

N, M, K, C, D = 40, 12, 3, 4, 5
IDS = np.array([f"{i:03d}" for i in range(N)])
TARGETS = torch.arange(M) % C
LABELS = {"labelled_targets": lambda: TARGETS}

every = pytest.mark.parametrize("strategy", STRATEGIES)


def how(strategy: str, **settings) -> SelectionSettings:
    return SelectionSettings(strategy=strategy, query_size=6, **settings)


def decided(n: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    decisions = torch.randn(n, 1, K, C, generator=generator).softmax(dim=-1)
    return decisions, torch.randn(n, D, generator=generator)


def candidates(settings: SelectionSettings) -> Candidates:
    return candidates_of(IDS, [decided(N, 0)], lambda: [decided(M, 1)], LABELS, settings, n_classes=C)


@every
@pytest.mark.parametrize("balance_classes", [False, True])
def test_candidates_have_the_columns_that_are_read_and_no_others(strategy, balance_classes):
    settings = how(strategy, balance_classes=balance_classes)
    columns = {field.name for field in fields(Candidates)} - {"is_in_order"}
    there = {name for name in columns if getattr(candidates(settings), name) is not None}
    assert there == columns_read(settings) | {"ids", "scores"}
    assert columns_read(settings) >= set(STRATEGIES[strategy].columns)
    assert ({"guesses", "labelled_targets"} <= columns_read(settings)) or not balance_classes


@every
def test_candidates_read_shard_by_shard_give_the_batch_of_those_in_memory(strategy):
    settings = how(strategy, random_slice=0.2, balance_classes=True)
    decisions, embeddings = decided(N, 0)
    of_labelled, embedded = decided(M, 1)
    shards = decisions.split([1, 30, 9])
    scored = [score_candidates(shard, settings) for shard in shards]
    gathered = gather_candidates(
        IDS,
        torch.cat([shard.scores for shard in scored]),
        {
            "embeddings": lambda: embeddings,
            "probs": lambda: torch.cat([probs_read(shard, settings) for shard in shards]),
            "guesses": lambda: torch.cat([shard.likeliest[:, 0] for shard in scored]),
            "labelled_embeddings": lambda: embedded,
            "labelled_probs": lambda: probs_read(of_labelled, settings),
            "labelled_targets": lambda: TARGETS,
        },
        settings,
        n_classes=decisions.shape[3],
    )
    batches = [select_batch(each, settings, round_number=1, seed=3) for each in (gathered, candidates(settings))]
    assert batches[0].ids == batches[1].ids
    assert batches[0].scores == pytest.approx(batches[1].scores)


@every
def test_the_mean_of_the_members_gives_the_same_batch_unless_they_are_compared(strategy):
    settings = how(strategy)
    read = probs_read(decided(N, 0)[0], settings)
    assert read.shape == (N, K if STRATEGIES[strategy].compares_members else 1, C)
    whole = {"probs": decided(N, 0)[0][:, 0], "labelled_probs": decided(M, 1)[0][:, 0]}
    mean = candidates(settings)
    columns = {field.name: getattr(mean, field.name) for field in fields(Candidates)}
    whole = Candidates(**{**columns, **{name: whole[name] for name in whole if columns[name] is not None}})
    batches = [select_batch(each, settings, round_number=1, seed=3) for each in (mean, whole)]
    assert batches[0] == batches[1]


def test_what_is_labelled_is_only_predicted_where_it_is_read():
    def never() -> tuple[Tensor, Tensor]:
        raise AssertionError("predicted for nothing")

    assert candidates_of(IDS, [decided(N, 0)], never, LABELS, how("badge"), n_classes=C).labelled_embeddings is None
    with pytest.raises(AssertionError, match="predicted for nothing"):
        candidates_of(IDS, [decided(N, 0)], never, LABELS, how("k_center"), n_classes=C)


def test_only_a_random_batch_as_it_is_reads_no_model():
    assert [name for name in STRATEGIES if not reads_model(how(name))] == ["random"]
    assert reads_model(how("random", prefilter=3.0))
    assert reads_model(how("random", balance_classes=True))


def test_scores_come_with_guesses_and_the_parts_of_doubt():
    decisions, _ = decided(N, 0)
    scored = score_candidates(decisions, how("top_k", acquisition="least_confidence"))
    mean = decisions[:, 0].mean(dim=1)
    ranked = mean.argsort(dim=1, descending=True)[:, :2]
    assert torch.equal(scored.likeliest, ranked)
    assert torch.allclose(scored.scores, 1 - mean.amax(dim=1))
    assert torch.allclose(scored.parts["aleatoric"] + scored.parts["epistemic"], scored.entropies, atol=1e-6)
    assert not score_candidates(decisions[:, :, :1], how("top_k")).parts


def test_the_answers_about_a_single_class_of_several_labels_are_no_classes():
    decisions, _ = decided(N, 0)
    assert decisions.shape[1] == 1
    assert score_candidates(decisions, how("top_k"), has_one_decision=False).likeliest is None


def test_the_share_of_a_batch_that_other_scores_keep():
    settings = how("top_k")
    scores = torch.arange(float(N))
    assert share_kept([*IDS[-6:]], Candidates(IDS, scores), settings, round_number=1, seed=0) == 1
    assert share_kept([*IDS[-9:-3]], Candidates(IDS, scores), settings, round_number=1, seed=0) == 0.5
    assert share_kept([*IDS[:4]], Candidates(IDS, scores), settings, round_number=1, seed=0) == 0


@pytest.mark.parametrize("strategy", [name for name, row in STRATEGIES.items() if row.may_begin])
def test_a_seed_set_is_chosen_before_there_is_a_model(strategy):
    shown = []

    def embeddings(rows: Tensor) -> Tensor:
        shown.append(len(rows))
        return decided(N, 0)[1][rows]

    batch = select_seed_set(IDS, embeddings, strategy, size=7, round_number=0, seed=1)
    assert len(batch.ids) == 7
    assert set(batch.scores) == {0.0}
    assert shown == ([] if strategy == "random" else [N])
    assert select_seed_set(IDS, embeddings, strategy, size=0, round_number=0, seed=1).ids == ()


@every
@pytest.mark.parametrize("balance_classes", [False, True])
def test_every_strategy_passes_its_trial(strategy, balance_classes):
    try_strategy(how(strategy, balance_classes=balance_classes), n_members=2, n_classes=3)


def test_the_trial_finds_an_option_that_cannot_be():
    with pytest.raises(ValueError, match="beta must be above 0"):
        try_strategy(how("power", strategy_options={"beta": -1.0}), n_members=1, n_classes=2)


def test_people_read_why_an_image_was_chosen_and_what_the_model_thinks_of_it():
    batch = select_batch(Candidates(IDS, torch.arange(float(N))), how("top_k"), round_number=1, seed=0)
    _, embeddings = decided(N, 0)
    _, labelled = decided(M, 1)
    scored = pd.DataFrame(
        {
            "guess": "cat",
            "runner_up": "dog",
            "entropy": np.log(C) / 2,
        },
        index=range(len(batch.ids)),
    )
    sure = dict(zip(IDS, np.linspace(0.4, 0.99, N), strict=True))
    guesses = {item_id: (Region("image", "cat", score=sure[item_id]),) for item_id in batch.ids}
    rows = [int(item_id) for item_id in batch.ids]
    table = explain_batch(batch, scored, guesses, embeddings[rows], labelled, n_answers=C)
    assert table["item_id"].tolist() == [*batch.ids]
    assert table["rank"].tolist() == list(range(6))
    assert table["uncertainty"].tolist() == pytest.approx([0.5] * 6)
    assert set(table["guess"]) == {"cat"}
    assert set(table["confused_classes"]) == {"cat / dog"}
    assert table["why"].iloc[0] == "to see whether it is cat, as the model says"
    nearest = cdist(embeddings[rows], labelled, metric="cosine").min(axis=1)
    assert table["novelty"].tolist() == pytest.approx(nearest, abs=1e-6)
    assert "epistemic" not in table


def test_settings_of_a_size_hold_nothing_but_the_selection_and_are_checked_again():
    class Campaign(SelectionSettings):
        name: str = "pets"

    smaller = Campaign(strategy="power", strategy_options={"beta": 2.0}).of_size(3)
    assert type(smaller) is SelectionSettings
    assert smaller == SelectionSettings(strategy="power", strategy_options={"beta": 2.0}, query_size=3)
    with pytest.raises(ValueError, match="query_size"):
        smaller.of_size(0)
