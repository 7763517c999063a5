from collections import Counter
from dataclasses import fields, replace
from itertools import permutations

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from pipeline.acquisition import margin
from pipeline.strategies import (
    STRATEGIES,
    check_options,
    columns_of,
    power,
    select_batch,
    top_k,
    top_k_diverse,
)
from pipeline.types import Batch, Candidates

every = pytest.mark.parametrize("strategy", STRATEGIES)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_candidates(n: int = 60, n_features: int = 6, n_labelled: int = 8) -> Candidates:
    generator = seeded(1)
    return Candidates(
        ids=np.array([f"item-{i:04d}" for i in range(n)]),
        scores=torch.rand(n, generator=generator),
        embeddings=torch.randn(n, n_features, generator=generator),
        labelled_embeddings=torch.randn(n_labelled, n_features, generator=generator),
        probs=torch.randn(n, 3, 4, generator=generator).softmax(dim=-1),
    )


def in_order(candidates: Candidates, order: Tensor) -> Candidates:
    columns = {name: getattr(candidates, name)[order] for name in ("scores", "embeddings", "probs")}
    return replace(candidates, ids=candidates.ids[order.numpy()], **columns)


def select(candidates: Candidates, strategy: str, query_size: int = 10, **changes) -> Batch:
    return select_batch(candidates, strategy, **{"query_size": query_size, "round_number": 2, "seed": 5} | changes)


# The contract of every strategy


@every
@pytest.mark.parametrize(("n", "query_size", "wanted"), [(60, 10, 10), (7, 10, 7), (10, 10, 10), (1, 3, 1), (0, 3, 0)])
@pytest.mark.parametrize("random_slice", [0.0, 0.3, 1.0])
def test_asks_for_distinct_candidates_and_takes_what_is_left_of_a_small_pool(
    strategy, n, query_size, wanted, random_slice
):
    candidates = some_candidates(n)
    batch = select(candidates, strategy, query_size, random_slice=random_slice)
    assert len(batch.ids) == len(set(batch.ids)) == wanted
    assert set(batch.ids) <= set(candidates.ids)
    assert batch.round_number == 2


@every
@pytest.mark.parametrize(("n", "query_size"), [(60, 10), (7, 10), (1, 1)])
def test_keeps_the_contract_on_its_own(strategy, n, query_size):
    columns = [getattr(some_candidates(n), name) for name in columns_of(strategy)]
    positions = STRATEGIES[strategy](*columns, query_size=query_size, generator=seeded())
    assert positions.dtype == torch.long
    assert len(set(positions.tolist())) == len(positions) == min(n, query_size)
    assert 0 <= positions.min() <= positions.max() < n


@every
def test_each_id_carries_its_own_score(strategy):
    candidates = some_candidates()
    score_of = dict(zip(candidates.ids, candidates.scores.tolist(), strict=True))
    batch = select(candidates, strategy, random_slice=0.3)
    assert batch.scores == tuple(score_of[item_id] for item_id in batch.ids)


@every
@pytest.mark.parametrize("random_slice", [0.0, 0.3])
def test_the_same_seed_gives_the_same_batch_in_any_order_of_the_candidates(strategy, random_slice):
    candidates = some_candidates()
    shuffled = in_order(candidates, torch.randperm(60, generator=seeded(9)))
    batch = select(candidates, strategy, random_slice=random_slice)
    assert select(candidates, strategy, random_slice=random_slice) == batch
    assert select(shuffled, strategy, random_slice=random_slice) == batch


@every
@pytest.mark.parametrize("change", [{"seed": 6}, {"round_number": 3}])
def test_the_seed_and_the_round_break_ties(strategy, change):
    same = replace(
        some_candidates(),
        scores=torch.full((60,), 0.5),
        embeddings=torch.ones(60, 6),
        labelled_embeddings=torch.ones(1, 6),
    )
    assert set(select(same, strategy).ids) != set(select(same, strategy, **change).ids)


@every
def test_duplicates_in_the_pool_are_asked_for_once_each(strategy):
    candidates = some_candidates()
    twice = replace(candidates, embeddings=candidates.embeddings[torch.arange(60) // 20], scores=torch.full((60,), 0.5))
    batch = select(twice, strategy, 45)
    assert len(set(batch.ids)) == 45


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_takes_embeddings_and_scores_of_any_floating_point_type(strategy, dtype):
    candidates = some_candidates()
    columns = {name: getattr(candidates, name).to(dtype) for name in ("scores", "embeddings")}
    labelled = candidates.labelled_embeddings.to(dtype)
    assert len(select(replace(candidates, labelled_embeddings=labelled, **columns), strategy).ids) == 10


@every
def test_selects_before_the_first_label(strategy):
    candidates = replace(some_candidates(), labelled_embeddings=torch.empty(0, 6))
    assert len(select(candidates, strategy).ids) == 10


@every
def test_leaves_the_candidates_as_they_are(strategy):
    candidates = some_candidates()
    before = {name: getattr(candidates, name).clone() for name in columns_of(strategy)}
    select(candidates, strategy)
    for name, column in before.items():
        assert torch.equal(getattr(candidates, name), column)


@every
def test_draws_nothing_from_the_global_generators(strategy):
    select(some_candidates(), strategy)
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # noqa: NPY002
    select(some_candidates(), strategy, random_slice=0.3)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]  # noqa: NPY002


@every
def test_reads_columns_that_candidates_have(strategy):
    names = {field.name for field in fields(Candidates)} - {"ids"}
    assert columns_of(strategy)
    assert set(columns_of(strategy)) <= names


@every
def test_says_which_column_is_missing(strategy):
    for name in set(columns_of(strategy)) - {"scores"}:
        with pytest.raises(ValueError) as error:  # noqa: PT011
            select(replace(some_candidates(), **{name: None}), strategy)
        assert str(error.value) == f"strategy {strategy!r} needs {name}, which scoring did not compute"


@every
def test_works_without_the_columns_that_it_does_not_read(strategy):
    unread = {"embeddings", "labelled_embeddings", "probs"} - set(columns_of(strategy))
    batch = select(replace(some_candidates(), **dict.fromkeys(unread)), strategy)
    assert batch == select(some_candidates(), strategy)


@pytest.mark.parametrize("name", ["scores", "embeddings", "probs"])
def test_a_value_that_is_not_finite_names_the_item(name):
    values = getattr(some_candidates(), name).clone()
    values[17] = torch.nan
    with pytest.raises(ValueError, match=f"{name} of item item-0017 is not finite"):
        replace(some_candidates(), **{name: values})


def test_labelled_embeddings_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="labelled_embeddings are not finite"):
        replace(some_candidates(), labelled_embeddings=torch.tensor([[torch.inf] * 6]))


@pytest.mark.parametrize("positions", [[0, 0, 1], [0, 1], [0, 1, 2, 3], [0, 1, 60], [-1, 0, 1]])
def test_a_strategy_that_breaks_the_contract_is_caught(monkeypatch, positions):
    monkeypatch.setitem(STRATEGIES, "bad", lambda scores, *, query_size, generator: torch.tensor(positions))
    with pytest.raises(RuntimeError, match="strategy 'bad' must return 3 distinct positions below 60"):
        select(some_candidates(), "bad", 3)


# What select_batch does for all of them


def test_a_wrong_name_gets_the_nearest_one():
    with pytest.raises(ValueError, match=r"unknown strategy 'topk', did you mean 'top_k'\?.*coverage, k_center"):
        select(some_candidates(), "topk")
    with pytest.raises(ValueError, match="unknown strategy 'kcenter', did you mean 'k_center'"):
        columns_of("kcenter")


def test_an_unknown_option_gets_the_options_there_are():
    with pytest.raises(ValueError, match="'power' has no option 'temperature'; its options are: beta"):
        select(some_candidates(), "power", temperature=2)
    with pytest.raises(ValueError, match="'top_k' has no option 'generator'; it has no options"):
        select(some_candidates(), "top_k", generator=seeded())
    check_options("top_k_diverse", {"prefilter": 3})


@pytest.mark.parametrize("query_size", [0, -1])
def test_a_batch_holds_at_least_one(query_size):
    with pytest.raises(ValueError, match=f"query_size must be at least 1, got {query_size}"):
        select(some_candidates(), "top_k", query_size)


@pytest.mark.parametrize("random_slice", [-0.1, 1.1, float("nan")])
def test_the_random_slice_is_a_share(random_slice):
    with pytest.raises(ValueError, match="random_slice must be in"):
        select(some_candidates(), "top_k", random_slice=random_slice)


def test_the_random_slice_is_spread_evenly_and_leaves_the_rest_as_it_was():
    plain = select(some_candidates(), "top_k", 8)
    mixed = select(some_candidates(), "top_k", 10, random_slice=0.2)
    drawn = [rank for rank, reason in enumerate(mixed.reasons) if reason == "random slice"]
    assert drawn == [2, 7]
    assert tuple(i for rank, i in enumerate(mixed.ids) if rank not in drawn) == plain.ids


def test_the_random_slice_comes_evenly_from_what_the_strategy_left():
    candidates = some_candidates(12)
    left = set(candidates.ids) - set(select(candidates, "top_k", 4).ids)
    counts = Counter(
        item_id
        for seed in range(800)
        for item_id in select(candidates, "top_k", 5, random_slice=0.2, seed=seed).ids
        if item_id in left
    )
    assert counts.total() == 800
    assert scipy.stats.chisquare([counts[item_id] for item_id in left]).pvalue > 0.001


def test_the_reason_tells_the_score_and_how_many_score_lower():
    candidates = replace(some_candidates(4), scores=torch.tensor([0.1, 0.8234, 0.5, 0.5]))
    reasons = select(candidates, "top_k", 4).reasons
    assert reasons[0] == "top_k: score 0.823, above 75.0 % of the candidates"
    assert reasons[1] == reasons[2] == "top_k: score 0.5, above 25.0 % of the candidates"
    assert reasons[3] == "top_k: score 0.1, above 0.0 % of the candidates"


# The strategies one by one


def test_top_k_takes_the_highest_scores_first():
    candidates = some_candidates()
    wanted = candidates.ids[np.argsort(-candidates.scores.numpy())[:10]]
    assert select(candidates, "top_k").ids == tuple(wanted)


def test_the_smallest_margin_is_asked_for_first():
    gaps = torch.tensor([0.9, 0.02, 0.5, 0.3])
    probs = torch.stack([(1 + gaps) / 2, (1 - gaps) / 2], dim=-1)[:, None]
    candidates = Candidates(ids=np.array(["sure", "torn", "so-so", "unsure"]), scores=margin(probs))
    assert select(candidates, "top_k", 3).ids == ("torn", "unsure", "so-so")


def test_random_reaches_every_candidate_equally():
    candidates = some_candidates(10)
    counts = Counter(i for seed in range(500) for i in select(candidates, "random", 3, seed=seed).ids)
    assert scipy.stats.chisquare([counts[item_id] for item_id in candidates.ids]).pvalue > 0.001


def test_random_changes_with_the_seed_and_the_round():
    batches = [select(some_candidates(), "random", seed=s, round_number=r).ids for s in (0, 1) for r in (0, 1)]
    assert len(set(batches)) == 4


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.0])
def test_power_draws_without_replacement_with_odds_of_the_scores(beta):
    scores, generator, n_draws = torch.tensor([1.0, 2.0, 3.0]), seeded(), 4000
    weights = scores.double() ** beta
    pairs = list(permutations(range(3), 2))
    odds = [weights[i] / weights.sum() * weights[j] / (weights.sum() - weights[i]) for i, j in pairs]
    draws = (power(scores, query_size=2, generator=generator, beta=beta) for _ in range(n_draws))
    counts = Counter(tuple(draw.tolist()) for draw in draws)
    observed = [counts[pair] for pair in pairs]
    assert scipy.stats.chisquare(observed, [n_draws * float(p) for p in odds]).pvalue > 0.001
    uniform = scipy.stats.chisquare(observed)
    assert uniform.pvalue < 1e-6  # the test can fail


def test_power_with_a_large_beta_is_top_k():
    scores = some_candidates().scores
    picks = power(scores, query_size=10, generator=seeded(), beta=1e6)
    assert torch.equal(picks, top_k(scores, query_size=10, generator=seeded()))


def test_power_takes_scores_of_zero_last():
    scores = torch.tensor([0.0, 1e-30, 0.0, 2.0, 0.0])
    picks = power(scores, query_size=5, generator=seeded()).tolist()
    assert set(picks[:2]) == {1, 3}
    assert sorted(picks) == [0, 1, 2, 3, 4]


def test_power_refuses_what_has_no_odds():
    with pytest.raises(ValueError, match=r"needs scores of at least 0, got -0\.5"):
        power(torch.tensor([1.0, -0.5]), query_size=1, generator=seeded())
    with pytest.raises(ValueError, match="beta must be above 0, got 0"):
        power(torch.tensor([1.0, 0.5]), query_size=1, generator=seeded(), beta=0)


def clusters_of_candidates() -> Candidates:
    """Five far clusters of twenty; the first one holds all the highest scores."""
    corners = 100 * torch.eye(5, 6).repeat_interleave(20, dim=0)
    scores = torch.linspace(1, 0.01, 100)
    embeddings = corners + torch.randn(100, 6, generator=seeded())
    ids = np.array([f"{i // 20}-{i:03d}" for i in range(100)])
    return Candidates(ids=ids, scores=scores, embeddings=embeddings, labelled_embeddings=embeddings[:1])


def test_top_k_diverse_takes_the_most_informative_of_each_cluster():
    batch = select(clusters_of_candidates(), "top_k_diverse", 5, prefilter=20)
    assert batch.ids == ("0-000", "1-020", "2-040", "3-060", "4-080")


def test_top_k_diverse_looks_no_further_than_its_prefilter():
    batch = select(clusters_of_candidates(), "top_k_diverse", 5, prefilter=4)
    assert all(item_id.startswith("0-") for item_id in batch.ids)
    wide = select(clusters_of_candidates(), "top_k_diverse", 5, prefilter=8)
    assert {item_id[0] for item_id in wide.ids} == {"0", "1"}


def test_top_k_diverse_without_a_choice_is_top_k():
    candidates = some_candidates()
    assert select(candidates, "top_k_diverse", prefilter=1).ids == select(candidates, "top_k").ids


def test_top_k_diverse_fills_up_by_score_where_duplicates_leave_few_clusters():
    candidates = clusters_of_candidates()
    copies = replace(candidates, embeddings=candidates.embeddings[torch.arange(100) // 50 * 50])
    batch = select(copies, "top_k_diverse", 5, prefilter=20)
    assert batch.ids == ("0-000", "2-050", "0-001", "0-002", "0-003")


def test_top_k_diverse_refuses_a_prefilter_smaller_than_the_batch():
    columns = some_candidates().scores, some_candidates().embeddings
    with pytest.raises(ValueError, match="prefilter must be at least 1, got 0"):
        top_k_diverse(*columns, query_size=5, generator=seeded(), prefilter=0)


def test_k_center_keeps_away_from_what_is_labelled():
    batch = select(clusters_of_candidates(), "k_center", 4)
    assert {item_id[0] for item_id in batch.ids} == {"1", "2", "3", "4"}


def test_coverage_reaches_every_cluster_and_takes_its_middle():
    candidates = clusters_of_candidates()
    batch = select(candidates, "coverage", 5)
    clusters = candidates.embeddings.view(5, 20, 6)
    middle = (clusters - clusters.mean(dim=1, keepdim=True)).norm(dim=2).argmin(dim=1)
    assert set(batch.ids) == {f"{c}-{20 * c + m:03d}" for c, m in enumerate(middle.tolist())}


@pytest.mark.parametrize("seed", range(8))
def test_coverage_begins_with_the_largest_cluster(seed):
    candidates = clusters_of_candidates()
    rows = torch.cat([torch.arange(3), torch.arange(20, 40), torch.arange(40, 49)])
    fewer = in_order(replace(candidates, probs=torch.zeros(100, 1)), rows)
    assert [item_id[0] for item_id in select(fewer, "coverage", 3, seed=seed).ids] == ["1", "2", "0"]
