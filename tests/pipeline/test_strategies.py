import math
from collections import Counter
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from itertools import permutations, product

import numpy as np
import pytest
import scipy.cluster.hierarchy
import scipy.stats
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from pipeline import types
from pipeline.selection.acquisition import bald, margin
from pipeline.selection.ask import OF_ONE_DECISION, score_candidates, score_classes
from pipeline.selection.batch import rows_seen, seeded_order, select_batch
from pipeline.selection.geometry import cover, distances
from pipeline.selection.geometry.clusters import kmeans
from pipeline.selection.settings import SelectionSettings
from pipeline.selection.strategies import by_cover, by_members
from pipeline.selection.strategies.by_both import top_k_diverse
from pipeline.selection.strategies.by_score import power, top_k
from pipeline.selection.strategies.rows import STRATEGIES, Strategy
from pipeline.types import Batch, Candidates

every = pytest.mark.parametrize("strategy", STRATEGIES)

DIVERSE = [
    "auto", "badge", "batch_bald", "coverage", "drop_query", "k_center", "max_herding", "suggestive",
    "top_k_diverse", "typiclust", "uherding", "weighted_k_center",
]  # fmt: skip


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
        guesses=torch.randint(4, (n,), generator=generator),
        labelled_probs=torch.randn(n_labelled, 3, 4, generator=generator).softmax(dim=-1),
        labelled_targets=torch.randint(4, (n_labelled,), generator=generator),
        n_classes=4,
    )


def without_labels(candidates: Candidates) -> Candidates:
    names = ("labelled_embeddings", "labelled_probs", "labelled_targets")
    return replace(candidates, **{name: getattr(candidates, name)[:0] for name in names})


def required(strategy: str) -> list[str]:
    return [name for name, is_needed in STRATEGIES[strategy].columns.items() if is_needed]


def in_order(candidates: Candidates, order: Tensor) -> Candidates:
    columns = {name: getattr(candidates, name) for name in ("scores", "embeddings", "probs", "guesses")}
    ordered = {name: column[order] for name, column in columns.items() if column is not None}
    return replace(candidates, ids=candidates.ids[order.numpy()], **ordered)


def select(
    candidates: Candidates, strategy: str, query_size: int = 10, *, round_number: int = 2, seed: int = 5, **changes
) -> Batch:
    options = {name: value for name, value in changes.items() if name not in SelectionSettings.model_fields}
    settings = {name: value for name, value in changes.items() if name not in options}
    how = SelectionSettings(strategy=strategy, query_size=query_size, strategy_options=options, **settings)
    return select_batch(candidates, how, round_number=round_number, seed=seed)


def row_of(name: str, ask: Callable[..., Tensor], **facts) -> Strategy:
    return Strategy(name, ask, "pool", **facts)


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
    columns = [getattr(some_candidates(n), name) for name in STRATEGIES[strategy].columns]
    answer = STRATEGIES[strategy].ask(*columns, query_size=query_size, generator=seeded())
    positions = answer[0] if isinstance(answer, tuple) else answer
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
        probs=torch.tensor([[0.6, 0.4], [0.4, 0.6], [0.3, 0.7]]).expand(60, 3, 2),
        guesses=torch.zeros(60, dtype=torch.long),
        labelled_embeddings=torch.ones(8, 6),
        labelled_targets=torch.zeros(8, dtype=torch.long),
    )
    assert set(select(same, strategy).ids) != set(select(same, strategy, **change).ids)


@every
def test_takes_a_pool_of_one_image_many_times_over(strategy):
    candidates = some_candidates()
    columns = {name: getattr(candidates, name)[:1] for name in ("scores", "embeddings", "probs", "guesses")}
    repeated = {name: column.repeat(60, *[1] * (column.ndim - 1)) for name, column in columns.items()}
    copies = replace(candidates, **repeated)
    assert len(set(pick(strategy, copies, 45))) == 45


@every
def test_selects_where_all_labels_and_guesses_are_of_one_class(strategy):
    candidates = some_candidates()
    one = replace(
        candidates,
        probs=torch.tensor([0.0, 1.0]).expand(60, 3, 2),
        labelled_probs=torch.tensor([0.0, 1.0]).expand(8, 3, 2),
        guesses=torch.ones(60, dtype=torch.long),
        labelled_targets=torch.ones(8, dtype=torch.long),
    )
    assert len(set(pick(strategy, one, 10))) == 10


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_takes_embeddings_and_scores_of_any_floating_point_type(strategy, dtype):
    candidates = some_candidates()
    names = ("scores", "embeddings", "probs", "labelled_embeddings", "labelled_probs")
    columns = {name: getattr(candidates, name).to(dtype) for name in names}
    assert len(set(pick(strategy, replace(candidates, **columns), 10))) == 10


@every
def test_selects_before_the_first_label(strategy):
    candidates = without_labels(some_candidates())
    assert len(set(pick(strategy, candidates, 10))) == 10


@every
def test_leaves_the_candidates_as_they_are(strategy):
    candidates = some_candidates()
    columns = {name: getattr(candidates, name) for name in STRATEGIES[strategy].columns}
    before = {name: column.clone() for name, column in columns.items() if isinstance(column, Tensor)}
    pick(strategy, candidates, 10)
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
    assert STRATEGIES[strategy].columns
    assert set(STRATEGIES[strategy].columns) <= names


@every
def test_says_which_column_is_missing(strategy):
    for name in set(required(strategy)) - {"scores"}:
        with pytest.raises(ValueError) as error:  # noqa: PT011
            select(replace(some_candidates(), **{name: None}), strategy)
        assert str(error.value) == f"strategy {strategy!r} needs {name}, which scoring did not compute"


@every
def test_works_without_the_columns_that_it_does_not_read(strategy):
    unread = {field.name for field in fields(Candidates)} - {"ids", "scores"} - set(STRATEGIES[strategy].columns)
    batch = select(replace(some_candidates(), **dict.fromkeys(unread)), strategy)
    assert batch == select(some_candidates(), strategy)
    optional = set(STRATEGIES[strategy].columns) - set(required(strategy))
    fewest = select(replace(some_candidates(), **dict.fromkeys(unread | optional)), strategy)
    assert len(set(fewest.ids)) == len(batch.ids)


def test_auto_covers_places_by_score_alone_where_an_image_takes_several_decisions():
    candidates = replace(some_candidates(), probs=None, labelled_targets=None)
    embeddings, labelled = normalize(candidates.embeddings, dim=1), normalize(candidates.labelled_embeddings, dim=1)
    radius = distances.neighbour_distance(labelled, share=0.25)
    picks = cover.herd(embeddings, 6, centres=labelled, weights=candidates.scores, radius=radius)
    assert pick("auto", candidates, 6) == picks.tolist()
    few = replace(candidates, n_classes=5)
    assert pick("auto", few, 6) == cover.herd(embeddings, 6, centres=labelled, radius=radius).tolist()
    assert all("8 labels are fewer than 2 for each of 5 classes" in reason for reason in select(few, "auto").reasons)


@every
def test_balances_the_classes_and_keeps_the_contract(strategy):
    batch = select(some_candidates(), strategy, balance_classes=True, random_slice=0.2)
    assert len(set(batch.ids)) == 10


@pytest.mark.parametrize("strategy", DIVERSE)
@pytest.mark.parametrize("seed", range(5))
def test_takes_one_of_each_of_five_heaps_of_copies(strategy, seed):
    heaps = torch.arange(100) % 5
    bits = (torch.arange(32) >> torch.arange(5)[:, None]) & 1  # each heap tells a bit of which member is right
    candidates = Candidates(
        ids=np.array([f"{heap}-{i:03d}" for i, heap in enumerate(heaps)]),
        scores=torch.full((100,), 0.5),
        embeddings=10 * torch.eye(5, 6)[heaps] + 1,
        probs=(one_hot(bits, 2) * 0.96 + 0.02)[heaps],
        labelled_embeddings=torch.empty(0, 6),
        labelled_targets=torch.empty(0, dtype=torch.long),
        n_classes=2,
    )
    assert {item_id[0] for item_id in select(candidates, strategy, 5, seed=seed).ids} == set("01234")


@pytest.mark.parametrize("strategy", ["auto", "k_center", "max_herding", "typiclust", "uherding", "weighted_k_center"])
@pytest.mark.parametrize("seed", range(3))
def test_duplicates_of_what_is_labelled_come_after_everything_new(strategy, seed):
    axes = 10 * torch.eye(8)
    heaps = torch.cat([torch.arange(90) % 3, torch.arange(3, 8).repeat_interleave(5)])
    candidates = Candidates(
        ids=np.array([f"{heap}-{i:03d}" for i, heap in enumerate(heaps)]),
        scores=torch.full((115,), 0.5),
        embeddings=axes[heaps],
        probs=torch.full((115, 1, 2), 0.5),
        labelled_embeddings=axes[:3],
        labelled_targets=torch.tensor([0, 1, 1]),
        n_classes=2,
    )
    assert {item_id[0] for item_id in select(candidates, strategy, 5, seed=seed).ids} == set("34567")


def test_only_the_check_of_the_others_is_kept_out_of_campaigns():
    assert [name for name, row in STRATEGIES.items() if row.is_check] == ["anti"]


@pytest.mark.parametrize("name", ["scores", "embeddings", "probs"])
def test_a_value_that_is_not_finite_names_the_item(name):
    values = getattr(some_candidates(), name).clone()
    values[17] = torch.nan
    with pytest.raises(ValueError, match=f"{name} of item item-0017 is not finite"):
        replace(some_candidates(), **{name: values})


def test_the_row_is_named_however_many_are_checked_together(monkeypatch):
    monkeypatch.setattr(types, "CHECKED", 40)
    values = some_candidates().embeddings.clone()
    values[[41, 59], 3] = torch.inf
    with pytest.raises(ValueError, match="embeddings of item item-0041 is not finite"):
        replace(some_candidates(), embeddings=values)


def test_checking_takes_little_memory(monkeypatch):
    monkeypatch.setattr(types, "CHECKED", 2**12)
    candidates = some_candidates(5000, n_features=64)
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        replace(candidates)
    largest = max(event.cpu_memory_usage for event in profile.function_events)
    assert 0 < largest < 50_000 < candidates.embeddings.nbytes // 4


@pytest.mark.parametrize("name", ["labelled_embeddings", "labelled_probs"])
def test_labelled_rows_that_are_not_finite_are_refused(name):
    values = getattr(some_candidates(), name).clone()
    values[3] = torch.inf
    with pytest.raises(ValueError, match=f"{name} are not finite"):
        replace(some_candidates(), **{name: values})


@pytest.mark.parametrize("name", ["labelled_probs", "labelled_targets"])
def test_labelled_columns_must_have_the_same_rows(name):
    with pytest.raises(ValueError, match=f"candidates: 8 labelled images but 7 rows of {name}"):
        replace(some_candidates(), **{name: getattr(some_candidates(), name)[1:]})


def test_there_must_be_a_guess_for_each_candidate():
    with pytest.raises(ValueError, match="candidates: 60 ids but 59 rows of guesses"):
        replace(some_candidates(), guesses=torch.zeros(59, dtype=torch.long))


@pytest.mark.parametrize("name", ["guesses", "labelled_targets"])
@pytest.mark.parametrize("change", [lambda column: column.float(), lambda column: column - 9])
def test_classes_are_given_by_their_index(name, change):
    with pytest.raises(ValueError, match=f"candidates: {name} must be int64 and at least 0"):
        replace(some_candidates(), **{name: change(getattr(some_candidates(), name))})


@pytest.mark.parametrize("positions", [[0, 0, 1], [0, 1], [0, 1, 2, 3], [0, 1, 60], [-1, 0, 1]])
def test_a_strategy_that_breaks_the_contract_is_caught(monkeypatch, positions):
    monkeypatch.setitem(
        STRATEGIES, "bad", row_of("bad", lambda scores, *, query_size, generator: torch.tensor(positions))
    )
    with pytest.raises(RuntimeError, match="strategy 'bad' must return 3 distinct positions below 60"):
        select(some_candidates(), "bad", 3)


# What select_batch does for all of them


def test_a_wrong_name_gets_the_nearest_one():
    with pytest.raises(ValueError, match=r"unknown strategy 'topk', did you mean 'top_k'\?.*coverage, drop_query"):
        select(some_candidates(), "topk")
    with pytest.raises(ValueError, match="unknown strategy 'kcenter', did you mean 'k_center'"):
        select(some_candidates(), "kcenter")


def test_an_unknown_option_gets_the_options_there_are():
    with pytest.raises(ValueError, match="'power' has no option 'temperature'; its options are: beta"):
        select(some_candidates(), "power", temperature=2)
    with pytest.raises(ValueError, match="'top_k' has no option 'generator'; it has no options"):
        select(some_candidates(), "top_k", generator=seeded())
    select(some_candidates(), "top_k_diverse", shortlist=3)


@pytest.mark.parametrize("query_size", [0, -1])
def test_a_batch_holds_at_least_one(query_size):
    with pytest.raises(ValueError, match="query_size\n  Input should be greater than or equal to 1"):
        select(some_candidates(), "top_k", query_size)


@pytest.mark.parametrize(("share", "query_size"), [(0.1, 5), (0.25, 10), (0.1, 1), (0.3, 10)])
def test_the_random_slice_is_its_share_of_the_batch_over_many_rounds(share, query_size):
    sizes = Counter(
        select(some_candidates(), "top_k", query_size, random_slice=share, round_number=number).reasons.count(
            "random slice"
        )
        for number in range(400)
    )
    whole, part = divmod(share * query_size, 1)
    assert set(sizes) <= {whole, whole + 1}
    assert scipy.stats.binomtest(sizes[whole + 1], 400, part).pvalue > 0.001
    again = select(some_candidates(), "top_k", query_size, random_slice=share)
    assert select(some_candidates(), "top_k", query_size, random_slice=share) == again


@pytest.mark.parametrize("random_slice", [-0.1, 1.1, float("nan")])
def test_the_random_slice_is_a_share(random_slice):
    with pytest.raises(ValueError, match="random_slice\n  Input should be"):
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


def test_a_note_of_the_strategy_goes_into_each_reason(monkeypatch):
    candidates = replace(some_candidates(4), scores=torch.tensor([0.1, 0.8, 0.5, 0.2]))
    monkeypatch.setitem(
        STRATEGIES,
        "noted",
        row_of("noted", lambda scores, *, query_size, generator: (torch.arange(query_size), "few labels", "typical")),
    )
    batch = select(candidates, "noted", 4, random_slice=0.25)
    reasons = batch.reasons
    assert reasons[2] == "random slice"
    assert batch.aims == ("typical", "typical", "check", "typical")
    assert all(reason.endswith(" of the candidates; few labels") for i, reason in enumerate(reasons) if i != 2)


def test_what_a_strategy_may_leave_open_is_filled_by_score(monkeypatch):
    candidates = some_candidates()
    best = top_k(candidates.scores, query_size=3, generator=seeded())
    short = row_of("short", lambda scores, *, query_size, generator: scores.argsort()[:2], may_fall_short=True)
    monkeypatch.setitem(STRATEGIES, "short", short)
    batch = select(candidates, "short", 5)
    assert batch.ids[2:] == tuple(candidates.ids[best])
    assert ["filled by score" in reason for reason in batch.reasons] == [False, False, True, True, True]
    assert batch.aims == ("unsure",) * 5


def seen_by_a_strategy(
    monkeypatch, candidates: Candidates, query_size: int = 4, *, facts: dict[str, int] | None = None, **options
) -> Tensor:
    """The scores of what a strategy was shown, of candidates whose scores are all different."""
    shown = []

    def spy(scores: Tensor, *, query_size: int, generator: torch.Generator) -> Tensor:
        shown.append(scores)
        return torch.arange(min(query_size, len(scores)))

    monkeypatch.setitem(STRATEGIES, "spy", row_of("spy", spy, **(facts or {})))
    select(candidates, "spy", query_size, **options)
    return torch.cat(shown)


@pytest.mark.parametrize("sub_pool", [None, 20])
def test_candidates_in_the_seeded_order_are_not_copied(monkeypatch, sub_pool):
    candidates = some_candidates()
    ordered = in_order(candidates, seeded_order(candidates.ids, round_number=2, seed=5))
    shown = seen_by_a_strategy(monkeypatch, ordered, sub_pool=sub_pool)
    assert torch.equal(shown, seen_by_a_strategy(monkeypatch, candidates, sub_pool=sub_pool))
    monkeypatch.setattr(torch, "cat", lambda shown: shown[0])
    shown = seen_by_a_strategy(monkeypatch, ordered, sub_pool=sub_pool)
    assert shown.data_ptr() == ordered.scores.data_ptr()
    assert len(shown) == (sub_pool or 60)


@every
@pytest.mark.parametrize("changes", [{"sub_pool": 20}, {"prefilter": 3.0}, {}])
def test_a_batch_of_candidates_of_which_only_what_is_seen_is_described_is_that_of_all(strategy, changes):
    candidates = some_candidates()
    ordered = in_order(candidates, seeded_order(candidates.ids, round_number=2, seed=5))
    how = SelectionSettings(strategy=strategy, query_size=5, **changes)
    seen = rows_seen(ordered.scores, torch.arange(60), how)
    described = {"embeddings": ordered.embeddings[seen], "probs": ordered.probs[seen], "described": seen}
    ids = np.array([item_id.encode() for item_id in ordered.ids.tolist()])
    part = replace(ordered, ids=ids, **described, is_in_order=True)
    assert select(part, strategy, 5, **changes) == select(candidates, strategy, 5, **changes)


def test_a_strategy_sees_no_more_than_the_sub_pool(monkeypatch):
    candidates = some_candidates()
    assert len(seen_by_a_strategy(monkeypatch, candidates)) == 60
    assert len(seen_by_a_strategy(monkeypatch, candidates, sub_pool=7)) == 7
    assert len(seen_by_a_strategy(monkeypatch, candidates, sub_pool=99)) == 60
    assert len(seen_by_a_strategy(monkeypatch, candidates, sub_pool=1)) == 4


def test_the_sub_pool_is_drawn_evenly():
    candidates = replace(some_candidates(12), scores=torch.arange(12.0))
    best = Counter(select(candidates, "top_k", 1, sub_pool=4, seed=seed).scores[0] for seed in range(2000))
    odds = [math.comb(rank, 3) / math.comb(12, 4) for rank in range(3, 12)]  # that `rank` is the largest of 4 of 12
    observed = [best[rank] for rank in range(3, 12)]
    assert scipy.stats.chisquare(observed, [2000 * odd for odd in odds]).pvalue > 0.001


def test_costly_strategies_have_a_sub_pool_unless_the_caller_says_otherwise(monkeypatch):
    candidates = some_candidates()
    seen = partial(seen_by_a_strategy, monkeypatch, candidates, facts={"sub_pool": 9})
    assert len(seen()) == 9
    assert len(seen(sub_pool=30)) == 30
    assert len(seen(prefilter=5)) == 20


def test_the_prefilter_leaves_the_highest_scores(monkeypatch):
    candidates = some_candidates()
    highest = candidates.scores.sort(descending=True).values
    seen = seen_by_a_strategy(monkeypatch, candidates, 4, prefilter=2.1)
    assert torch.equal(seen.sort(descending=True).values, highest[:9])
    assert not torch.equal(seen, highest[:9])  # in random order: nothing is told by the position
    assert len(seen_by_a_strategy(monkeypatch, candidates, 4, prefilter=99)) == 60
    assert set(select(candidates, "random", prefilter=1).ids) == set(select(candidates, "top_k").ids)


def test_the_prefilter_looks_into_the_sub_pool(monkeypatch):
    candidates = some_candidates()
    pool = seen_by_a_strategy(monkeypatch, candidates, 4, sub_pool=20)
    seen = seen_by_a_strategy(monkeypatch, candidates, 4, sub_pool=20, prefilter=2)
    assert torch.equal(seen.sort().values, pool.sort().values[-8:])


@pytest.mark.parametrize(("option", "value"), [("sub_pool", 0), ("prefilter", 0.9), ("prefilter", math.nan)])
def test_sub_pool_and_prefilter_leave_something(option, value):
    with pytest.raises(ValueError, match=f"{option}\n  Input should be"):
        select(some_candidates(), "top_k", **{option: value})


def labels_of(n_labels: list[int]) -> dict[str, Tensor]:
    targets = torch.arange(len(n_labels)).repeat_interleave(torch.tensor(n_labels))
    return {"labelled_targets": targets, "labelled_embeddings": None, "labelled_probs": None}


@pytest.mark.parametrize(
    ("n_labels", "available", "wanted"),
    [
        ([0, 0, 0], [9, 9, 9], [3, 3, 3]),
        ([5, 1, 0], [9, 9, 9], [0, 4, 5]),
        ([9, 9, 0], [9, 9, 2], [3, 4, 2]),
        ([1, 0, 7], [1, 3, 9], [1, 3, 5]),
        ([4, 4], [9, 9, 9], [2, 2, 5]),
    ],
)
def test_a_class_balanced_batch_makes_the_labels_as_even_as_they_can_be(n_labels, available, wanted):
    guesses = torch.arange(len(available)).repeat_interleave(torch.tensor(available))
    candidates = replace(some_candidates(len(guesses)), guesses=guesses, **labels_of(n_labels))
    batch = select(candidates, "top_k", 9, balance_classes=True)
    guess_of = dict(zip(candidates.ids, guesses.tolist(), strict=True))
    counts = Counter(guess_of[item_id] for item_id in batch.ids)
    got = [counts[c] for c in range(len(available))]
    spread = sorted(labels + more for labels, more in zip([*n_labels, 0], got, strict=False))
    assert spread == sorted(labels + more for labels, more in zip([*n_labels, 0], wanted, strict=False))
    assert sum(got) == 9
    assert all(n <= there for n, there in zip(got, available, strict=True))


def test_a_class_balanced_batch_begins_with_the_class_with_the_fewest_labels_and_takes_the_best_of_each():
    guesses = torch.arange(60) % 3
    candidates = replace(some_candidates(), guesses=guesses, **labels_of([6, 4, 0]))
    best = {c: [i for i in candidates.scores.argsort(descending=True).tolist() if guesses[i] == c] for c in range(3)}
    wanted = [*best[2][:4], best[1][0], best[2][4], best[2][5], best[1][1]]
    ids = select(candidates, "top_k", 8, balance_classes=True).ids
    assert set(ids[4:6]) == set(candidates.ids[wanted[4:6]])  # 4 labels each: a tie
    assert set(ids[6:8]) == set(candidates.ids[wanted[6:8]])
    assert ids[:4] == tuple(candidates.ids[wanted[:4]])


@pytest.mark.parametrize("name", ["guesses", "labelled_targets"])
def test_a_class_balanced_batch_needs_to_know_the_classes(name):
    with pytest.raises(ValueError, match="a class-balanced batch needs guesses and labelled_targets, which scoring"):
        select(replace(some_candidates(), **{name: None}), "top_k", balance_classes=True)


def test_a_class_balanced_batch_takes_no_limit_on_a_class():
    with pytest.raises(
        ValueError, match="balance_classes decides how many of each class are asked for: take max_class_share"
    ):
        select(some_candidates(), "weighted_k_center", balance_classes=True, max_class_share=0.5)
    assert len(select(some_candidates(), "weighted_k_center", balance_classes=True, min_distance=0.1).ids) == 10


def test_classes_with_equally_many_labels_come_first_equally_often():
    candidates = replace(some_candidates(), guesses=torch.arange(60) % 3, **labels_of([0]))
    guess_of = dict(zip(candidates.ids, candidates.guesses.tolist(), strict=True))
    first = Counter(
        guess_of[select(candidates, "top_k", 1, balance_classes=True, seed=seed).ids[0]] for seed in range(300)
    )
    assert scipy.stats.chisquare([first[c] for c in range(3)]).pvalue > 0.001


def of_each_class(n: int = 60, counts: tuple[int, ...] = (9, 0, 4)) -> Candidates:
    scores = torch.rand(n, len(counts), generator=seeded(3))
    absent = {"probs": None, "guesses": None, "labelled_probs": None, "labelled_targets": None}
    return replace(some_candidates(n), class_scores=scores, class_counts=torch.tensor(counts), **absent)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if not OF_ONE_DECISION & {*required(name)}])
@pytest.mark.parametrize(("n", "query_size"), [(60, 10), (60, 2), (7, 10), (1, 3), (0, 3)])
def test_asks_class_after_class_and_keeps_the_contract(strategy, n, query_size):
    batch = select(of_each_class(n), strategy, query_size, balance_classes=True, random_slice=0.2)
    assert len(set(batch.ids)) == min(n, query_size)


def test_asks_for_each_class_in_turn_what_is_best_for_it_and_begins_with_the_one_with_the_fewest_labels():
    candidates = of_each_class()
    wanted: list[int] = []
    of_turns: dict[int, list[int]] = {}
    for of_class, n_turns in ((1, 3), (2, 3), (0, 2)):  # of 8
        best = candidates.class_scores[:, of_class].argsort(descending=True).tolist()
        of_turns[of_class] = [row for row in best if row not in wanted][:n_turns]
        wanted += of_turns[of_class]
    in_turn = [
        of_turns[of_class][turn] for turn in range(3) for of_class in (1, 2, 0) if turn < len(of_turns[of_class])
    ]
    batch = select(candidates, "top_k", 8, balance_classes=True)
    assert batch.ids == tuple(candidates.ids[in_turn])
    assert batch.scores == tuple(candidates.scores[in_turn].tolist()), "of the image, as without balancing"


def test_classes_in_turn_see_so_much_less_of_the_pool_that_they_take_no_longer_together_than_one(monkeypatch):
    seen: list[int] = []

    def best(scores: torch.Tensor, *, query_size: int, generator: torch.Generator) -> torch.Tensor:
        seen.append(len(scores))
        return scores.argsort(descending=True)[:query_size]

    monkeypatch.setitem(STRATEGIES, "top_k", replace(STRATEGIES["top_k"], function=best, sub_pool=40))
    candidates = of_each_class()
    for options in ({}, {"balance_classes": True}, {"balance_classes": True, "sub_pool": 50}):
        select(candidates, "top_k", 9, random_slice=0.0, **options)
    assert seen == [40, 24, 24 - 3, 24 - 6, 50, 47, 44]


def test_asks_class_after_class_only_with_the_labels_of_each_class():
    with pytest.raises(ValueError, match="needs class_scores and class_counts, which scoring did not compute"):
        select(replace(of_each_class(), class_counts=None), "top_k", balance_classes=True)


@pytest.mark.parametrize("strategy", ["top_k", "uherding", "auto"])
def test_asks_for_more_images_of_a_rare_class_in_turn_than_by_the_mean_over_the_classes(strategy):
    generator = seeded(7)
    is_there = torch.rand(400, 3, generator=generator) < torch.tensor([0.5, 0.4, 0.03])
    logits = torch.where(is_there, 1.0, -1.0) - torch.tensor([0.0, 0.0, 1.5])  # of the rare class always below 0
    there = (logits + torch.randn(400, 3, generator=generator) * torch.tensor([1.5, 1.5, 0.5])).sigmoid()
    decisions = torch.stack([1 - there, there], dim=2)[:, :, None]
    how = SelectionSettings(acquisition="margin")
    candidates = replace(
        of_each_class(400, counts=(20, 16, 2)),
        scores=score_candidates(decisions, how).scores,
        class_scores=score_classes(decisions, how),
    )
    rare = {*candidates.ids[is_there[:, 2].numpy()]}
    plain, in_turn = (
        sum(len(rare & {*select(candidates, strategy, 18, balance_classes=each, seed=seed).ids}) for seed in range(5))
        for each in (False, True)
    )
    assert len(rare) < 20
    assert in_turn >= 1.5 * plain, (plain, in_turn)


# The strategies one by one


def pick(strategy: str, candidates: Candidates, query_size: int, seed: int = 0, **options) -> list[int]:
    columns = [getattr(candidates, name) for name in STRATEGIES[strategy].columns]
    answer = STRATEGIES[strategy].ask(*columns, query_size=query_size, generator=seeded(seed), **options)
    return (answer[0] if isinstance(answer, tuple) else answer).tolist()


def greedily(objective: Callable[[list[int]], float], choices: list[int], n_picks: int) -> list[int]:
    """Textbook greedy: take again and again what makes the objective of all picks the largest."""
    picks: list[int] = []
    for _ in range(n_picks):
        picks.append(max((i for i in choices if i not in picks), key=lambda i: objective([*picks, i])))
    return picks


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
    for beta in (0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"beta must be above 0 and finite, got {beta}"):
            power(torch.tensor([1.0, 0.5]), query_size=1, generator=seeded(), beta=beta)


def clusters_of_candidates() -> Candidates:
    """Five far clusters of twenty; the first one holds all the highest scores."""
    corners = 100 * torch.eye(5, 6).repeat_interleave(20, dim=0)
    scores = torch.linspace(1, 0.01, 100)
    embeddings = corners + torch.randn(100, 6, generator=seeded())
    ids = np.array([f"{i // 20}-{i:03d}" for i in range(100)])
    return Candidates(ids=ids, scores=scores, embeddings=embeddings, labelled_embeddings=embeddings[:1])


def test_top_k_diverse_takes_the_most_informative_of_each_cluster():
    batch = select(clusters_of_candidates(), "top_k_diverse", 5, shortlist=20)
    assert batch.ids == ("0-000", "1-020", "2-040", "3-060", "4-080")


def test_top_k_diverse_looks_no_further_than_its_shortlist():
    batch = select(clusters_of_candidates(), "top_k_diverse", 5, shortlist=4)
    assert all(item_id.startswith("0-") for item_id in batch.ids)
    wide = select(clusters_of_candidates(), "top_k_diverse", 5, shortlist=8)
    assert {item_id[0] for item_id in wide.ids} == {"0", "1"}


def test_top_k_diverse_without_a_choice_is_top_k():
    candidates = some_candidates()
    assert select(candidates, "top_k_diverse", shortlist=1).ids == select(candidates, "top_k").ids


def test_top_k_diverse_fills_up_by_score_where_duplicates_leave_few_clusters():
    candidates = clusters_of_candidates()
    copies = replace(candidates, embeddings=candidates.embeddings[torch.arange(100) // 50 * 50])
    batch = select(copies, "top_k_diverse", 5, shortlist=20)
    assert batch.ids == ("0-000", "2-050", "0-001", "0-002", "0-003")


def test_top_k_diverse_refuses_a_shortlist_smaller_than_the_batch():
    columns = some_candidates().scores, some_candidates().embeddings
    with pytest.raises(ValueError, match="shortlist must be at least 1, got 0"):
        top_k_diverse(*columns, query_size=5, generator=seeded(), shortlist=0)


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


def test_anti_takes_the_lowest_scores_first():
    candidates = some_candidates()
    assert pick("anti", candidates, 10) == candidates.scores.argsort()[:10].tolist()


@pytest.mark.parametrize("gamma", [0.0, 10.0])
def test_falcun_draws_with_the_published_odds(gamma):
    probs = torch.tensor([[0.4, 0.35, 0.25], [0.36, 0.34, 0.3], [0.3, 0.3, 0.4], [0.5, 0.1, 0.4]], dtype=torch.float64)
    candidates = replace(some_candidates(4), probs=probs[:, None])
    wanted = {}
    unsure = np.array([1 - np.diff(np.sort(row)[-2:])[0] for row in probs.numpy()])

    def odds(distance: np.ndarray, left: list[int]) -> dict[int, float]:
        low, high = min(distance[i] for i in left), max(distance[i] for i in left)
        each = {i: (unsure[i] + (distance[i] - low) / (high - low)) ** gamma for i in left}
        return {i: value / sum(each.values()) for i, value in each.items()}

    for first, first_odds in odds(unsure, [0, 1, 2, 3]).items():
        distance = np.minimum(unsure, np.abs(probs.numpy() - probs[first].numpy()).sum(axis=1))
        for second, second_odds in odds(distance, [i for i in range(4) if i != first]).items():
            wanted[first, second] = 1200 * first_odds * second_odds
    counts = Counter(tuple(pick("falcun", candidates, 2, seed, gamma=gamma)) for seed in range(1200))
    likely = [pair for pair, n in wanted.items() if n > 5]
    expected = np.array([wanted[pair] for pair in likely])
    observed = np.array([counts[pair] for pair in likely])
    assert observed.sum() > 1150
    assert scipy.stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 0.001


def test_falcun_with_a_large_gamma_goes_on_where_the_prediction_is_new():
    probs = torch.tensor([[0.5, 0.5, 0.0], [0.5, 0.499, 0.001], [0.02, 0.5, 0.48], [0.9, 0.1, 0.0]])
    assert pick("falcun", replace(some_candidates(4), probs=probs[:, None]), 3, gamma=1e5) == [0, 2, 3]


def test_falcun_refuses_odds_that_favour_the_certain():
    with pytest.raises(ValueError, match="gamma must be at least 0, got -1"):
        pick("falcun", some_candidates(), 3, gamma=-1)


@pytest.mark.parametrize("strength", [0.0, 1.0, 2.5])
@pytest.mark.parametrize(("share", "apart"), [(1.0, 0.0), (0.3, 0.0), (0.37, 0.0), (0.01, 0.0), (1.0, 2.0)])
def test_weighted_k_center_is_the_greedy_of_score_times_distance_within_its_limits(strength, share, apart):
    candidates = some_candidates()
    points, taken = candidates.embeddings.double(), candidates.labelled_embeddings.double()
    wanted: list[int] = []
    for _ in range(10):
        distance = (points[:, None] - taken).norm(dim=2).amin(dim=1)
        value = candidates.scores.double() ** strength * distance
        mine = Counter(candidates.guesses[wanted].tolist())
        full = torch.tensor([mine[guess] >= max(1, int(10 * share)) for guess in candidates.guesses.tolist()])
        value[full | (distance < apart)] = -1
        value[wanted] = -1
        if value.max() < 0:
            break
        wanted.append(int(value.argmax()))
        taken = torch.cat([taken, points[wanted[-1:]]])
    limits = {"strength": strength, "max_class_share": share, "min_distance": apart}
    assert pick("weighted_k_center", candidates, 10, **limits) == wanted


def test_a_share_of_a_class_that_is_a_whole_number_is_not_rounded_down():
    assert 0.29 * 100 < 29
    candidates = replace(some_candidates(200), guesses=torch.arange(200) % 2)
    picks = pick("weighted_k_center", candidates, 100, max_class_share=0.29)
    assert candidates.guesses[picks].bincount().tolist() == [29, 29]


def test_weighted_k_center_fills_by_score_what_its_limits_leave_open():
    candidates = some_candidates()
    batch = select(candidates, "weighted_k_center", min_distance=3.0)
    filled = ["filled by score" in reason for reason in batch.reasons]
    assert 0 < sum(filled) < 10
    assert filled == sorted(filled)
    assert list(batch.scores[filled.index(True) :]) == sorted(batch.scores[filled.index(True) :], reverse=True)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"strength": -1}, "strength must be at least 0, got -1"),
        ({"max_class_share": 0}, r"max_class_share must be in \(0, 1\], got 0"),
        ({"min_distance": math.nan}, "min_distance must be at least 0, got nan"),
    ],
)
def test_weighted_k_center_refuses_limits_that_mean_nothing(options, error):
    with pytest.raises(ValueError, match=error):
        pick("weighted_k_center", some_candidates(), 3, **options)


def test_weighted_k_center_needs_guesses_only_for_its_limit_on_a_class():
    candidates = replace(some_candidates(), guesses=None)
    assert len(pick("weighted_k_center", candidates, 5)) == 5
    with pytest.raises(ValueError, match="option 'max_class_share' needs guesses, which scoring did not compute"):
        pick("weighted_k_center", candidates, 5, max_class_share=0.5)


@pytest.mark.parametrize("strategy", ["weighted_k_center", "uherding"])
def test_weights_below_zero_are_refused(strategy):
    candidates = replace(some_candidates(2), scores=torch.tensor([1.0, -0.5]))
    with pytest.raises(ValueError, match=rf"strategy '{strategy}' needs scores of at least 0, got -0\.5"):
        pick(strategy, candidates, 1)


@pytest.mark.parametrize("n_labelled", [8, 0])
def test_novel_is_far_from_every_class_mean_and_typical_near_to_one(n_labelled):
    candidates = some_candidates() if n_labelled else without_labels(some_candidates())
    points, targets = candidates.labelled_embeddings.double(), candidates.labelled_targets
    means = [points[targets == c].mean(dim=0) for c in targets.unique()] or [candidates.embeddings.double().mean(dim=0)]
    distance = torch.tensor([min((row - mean).norm() for mean in means) for row in candidates.embeddings.double()])
    assert pick("novel", candidates, 60) == distance.argsort(descending=True).tolist()
    assert pick("typical", candidates, 60) == distance.argsort().tolist()


def test_cluster_margin_draws_from_the_clusters_of_the_shortlist_the_smallest_first():
    candidates = some_candidates()
    rows = candidates.scores.argsort(descending=True)[:30]
    tree = scipy.cluster.hierarchy.linkage(candidates.embeddings[rows].double().numpy(), "average")
    clusters = scipy.cluster.hierarchy.fcluster(tree, 3, "maxclust")  # half of what is asked for
    cluster_of = dict(zip(rows.tolist(), clusters.tolist(), strict=True))
    sizes = Counter(clusters.tolist())
    left, wanted = dict(sizes), []
    while len(wanted) < 6:
        wanted += [size for c, size in sorted(sizes.items(), key=lambda item: item[1]) if left[c] > 0]
        left = {c: n - 1 for c, n in left.items()}
    batches = [pick("cluster_margin", candidates, 6, seed, shortlist=5) for seed in range(20)]
    assert all([sizes[cluster_of[i]] for i in batch] == wanted[:6] for batch in batches)
    assert len({tuple(batch) for batch in batches}) > 10


def test_cluster_margin_leaves_a_rare_kind_of_image_its_place():
    embeddings = torch.cat([torch.randn(57, 2, generator=seeded()), torch.tensor([[50.0, 0], [0, 50], [50, 50]])])
    picks = pick("cluster_margin", replace(some_candidates(), embeddings=embeddings), 8, shortlist=8)
    assert set(picks[:3]) == {57, 58, 59}
    assert max(picks[3:]) < 57


def test_outliers_do_not_fill_the_batch_of_cluster_margin():
    blobs = torch.tensor([[0.0, 0], [100, 0]]).repeat_interleave(46, dim=0) + torch.randn(92, 2, generator=seeded())
    far, turn = torch.arange(15.0, 31, 2), torch.arange(8) * math.pi / 4
    outliers = far[:, None] * torch.stack([turn.cos(), turn.sin()], dim=1) + torch.tensor([[0.0, 0], [100, 0]] * 4)
    embeddings = torch.cat([blobs, outliers])
    tree = scipy.cluster.hierarchy.linkage(embeddings.double().numpy(), "average")
    assert sorted(np.bincount(scipy.cluster.hierarchy.fcluster(tree, 10, "maxclust"))[1:]) == [1] * 8 + [46] * 2
    picks = pick("cluster_margin", replace(some_candidates(100), embeddings=embeddings), 10)
    kinds = Counter("blob" if i < 92 else "outlier" for i in picks)
    assert 1 <= kinds["outlier"] <= 5


def test_cluster_margin_asks_as_often_for_each_of_five_heaps_of_copies():
    candidates = replace(some_candidates(100), embeddings=10 * torch.eye(5, 6)[torch.arange(100) % 5])
    assert sorted(i % 5 for i in pick("cluster_margin", candidates, 10)) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("query_size", [4, 25])
@pytest.mark.parametrize("n_labelled", [0, 8])
def test_typiclust_takes_the_densest_of_the_clusters_with_the_fewest_labels(query_size, n_labelled):
    candidates = some_candidates(n_labelled=n_labelled)
    points = normalize(torch.cat([candidates.embeddings, candidates.labelled_embeddings]), dim=1)
    clusters = kmeans(points, n_labelled + query_size, generator=seeded())[1].tolist()

    def typicality(i: int) -> float:
        others = [j for j in range(60) if clusters[j] == clusters[i] and j != i]
        near = sorted(float((points[i] - points[j]).double().norm()) for j in others)[:20]
        return len(near) / sum(near) if near else 0.0

    sizes, labels = Counter(clusters), Counter(clusters[60:])
    order = sorted(set(clusters[:60]), key=lambda c: (sizes[c] < 5, labels[c], -sizes[c], c))
    members = {c: sorted((i for i in range(60) if clusters[i] == c), key=typicality, reverse=True) for c in order}
    turns = [members[c][turn] for turn in range(60) for c in order if turn < len(members[c])]
    picks = pick("typiclust", candidates, query_size)
    assert [clusters[i] for i in picks] == [clusters[i] for i in turns[:query_size]]
    assert [typicality(i) for i in picks] == pytest.approx([typicality(i) for i in turns[:query_size]], rel=1e-4)


def test_typiclust_takes_a_few_outliers_last():
    heaps = torch.tensor([0] * 20 + [1] * 30 + [2] * 4)
    embeddings = torch.eye(3, 6)[heaps] + 0.05 * torch.randn(54, 6, generator=seeded())
    candidates = replace(some_candidates(54), embeddings=embeddings)
    labelled = replace(
        candidates, labelled_embeddings=torch.eye(2, 6), labelled_probs=None, labelled_targets=torch.arange(2)
    )
    assert [int(heaps[i]) for i in pick("typiclust", labelled, 1)] == [1]
    assert [int(heaps[i]) for i in pick("typiclust", without_labels(candidates), 3)] == [1, 0, 2]


@pytest.mark.parametrize("n_labelled", [0, 1, 8])
@pytest.mark.parametrize("strategy", ["max_herding", "uherding"])
def test_herding_is_the_greedy_of_weighted_coverage(strategy, n_labelled):
    candidates = some_candidates(n_labelled=n_labelled)
    points = normalize(candidates.embeddings.double(), dim=1)
    labelled = normalize(candidates.labelled_embeddings.double(), dim=1)
    if n_labelled:
        labelled = torch.cat([labelled, labelled[:1]])  # a copy says nothing about the radius
        candidates = replace(candidates, **{"labelled_probs": None, "labelled_targets": None})
        candidates = replace(candidates, labelled_embeddings=labelled.float())
    uncertain = strategy == "uherding"
    weights = candidates.scores.double() if uncertain and n_labelled else torch.ones(60).double()
    pairs = [float((a - b).norm()) for a, b in product(labelled, labelled) if not torch.equal(a, b)]
    radius = min(pairs) if uncertain and pairs else 1.0

    def coverage(picks: list[int]) -> float:
        centres = torch.cat([labelled, points[picks]])
        distance = (points[:, None] - centres).norm(dim=2)
        return float((weights * (-((distance / radius) ** 2)).exp().amax(dim=1)).sum())

    assert pick(strategy, candidates, 8) == greedily(coverage, list(range(60)), 8)


@pytest.mark.parametrize("n_labelled", [0, 7, 8, 30])
def test_auto_is_the_greedy_of_its_coverage_and_says_which(n_labelled):
    candidates = some_candidates(n_labelled=n_labelled)
    points = normalize(candidates.embeddings.double(), dim=1).numpy()
    labelled = normalize(candidates.labelled_embeddings.double(), dim=1).numpy()
    alike = np.sqrt(candidates.probs.double().numpy().mean(axis=1))
    sure = np.eye(4)[candidates.labelled_targets.numpy()]
    weights = candidates.scores.double().numpy()
    few = n_labelled < 2 * 4
    radius = 1.0
    if n_labelled:
        nearest = [min(np.linalg.norm(a - b) for j, b in enumerate(labelled) if i != j) for i, a in enumerate(labelled)]
        radius = np.quantile(nearest, 0.25)

    def coverage(picks: list[int]) -> float:
        total = 0.0
        for y in range(60):
            kernels = [0.0]
            for x, affinity in [*zip(labelled, sure, strict=True), *((points[i], alike[i]) for i in picks)]:
                near = math.exp(-(np.linalg.norm(x - points[y]) ** 2) / radius**2)
                kernels.append(near if few else near * float(affinity @ alike[y]))
            total += max(kernels) * (1 if few else weights[y])
        return total

    assert pick("auto", candidates, 6) == greedily(coverage, list(range(60)), 6)
    aim = "covers the whole pool" if few else "covers what is uncertain"
    compared = f"{n_labelled} labels are {'fewer than' if few else 'at least'} 2 for each of 4 classes"
    batch = select(candidates, "auto")
    assert all(f"; {aim}: {compared}" in reason for reason in batch.reasons)
    assert set(batch.aims) == {"typical" if few else "unsure"}


def test_a_label_of_another_class_settles_nothing_for_auto():
    here, there = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    candidates = Candidates(
        ids=np.array(["a", "b"]),
        scores=torch.full((2,), 0.5),
        embeddings=torch.cat([here, there]),
        probs=torch.tensor([[[0.9, 0.1]], [[0.9, 0.1]]]),
        labelled_embeddings=torch.cat([here, there, 0.9 * here + there, here + 0.9 * there]),
        labelled_targets=torch.tensor([1, 0, 0, 0]),
        n_classes=2,
    )
    assert select(candidates, "auto", 1).ids == ("a",)
    swapped = replace(candidates, labelled_targets=torch.tensor([0, 1, 0, 0]))
    assert select(swapped, "auto", 1).ids == ("b",)


def test_herding_of_a_large_pool_is_measured_on_an_even_part_of_it(monkeypatch):
    monkeypatch.setattr(by_cover, "MOST_REFERENCES", 20)
    calls = []
    monkeypatch.setattr(by_cover, "herd", lambda rows, n, **given: calls.append(given) or torch.arange(n))
    monkeypatch.setattr(distances, "MOST_COMPARED", 4)
    pick("max_herding", some_candidates(), 3)
    pick("uherding", some_candidates(), 3)
    pick("auto", some_candidates(), 3)
    assert [call["references"].tolist() for call in calls] == [list(range(0, 60, 3))] * 3
    labelled = normalize(some_candidates().labelled_embeddings.double(), dim=1)
    nearest = (labelled[::2, None] - labelled).norm(dim=2)
    nearest = nearest[nearest > 0].view(4, 7).amin(dim=1)
    wanted = [1.0, nearest.min(), nearest.quantile(0.25)]
    assert [call["radius"] for call in calls] == pytest.approx([float(radius) for radius in wanted])


def gradients(candidates: Candidates) -> Tensor:
    mean = candidates.probs.double().mean(dim=1)
    error = mean - one_hot(mean.argmax(dim=1), mean.shape[1])
    return torch.einsum("nc,nd->ncd", error, candidates.embeddings.double()).flatten(1)


def test_badge_draws_by_squared_distance_between_the_gradients():
    candidates = replace(some_candidates(7), probs=torch.randn(7, 3, 4, generator=seeded(3)).mul(4).softmax(dim=-1))
    rows = gradients(candidates)
    longest = int(rows.norm(dim=1).argmax())
    odds = (rows - rows[longest]).square().sum(dim=1)
    batches = [pick("badge", candidates, 2, seed) for seed in range(600)]
    assert {batch[0] for batch in batches} == {longest}
    counts = Counter(batch[1] for batch in batches)
    others = [i for i in range(7) if i != longest]
    expected = (600 * odds / odds.sum())[others].numpy()
    assert scipy.stats.chisquare([counts[i] for i in others], expected).pvalue > 0.001


def test_batch_bald_is_the_greedy_of_the_joint_information():
    probs = torch.randn(7, 5, 3, generator=seeded(4)).mul(3).softmax(dim=-1).double()
    entropies = torch.special.entr(probs).sum(dim=2).mean(dim=1)

    def information(picks: list[int]) -> float:
        joint = [probs[picks, :, list(labels)].prod(dim=0).mean() for labels in product(range(3), repeat=len(picks))]
        return float(torch.special.entr(torch.stack(joint)).sum() - entropies[picks].sum())

    candidates = replace(some_candidates(7), probs=probs)
    assert pick("batch_bald", candidates, 3) == greedily(information, list(range(7)), 3)


def test_batch_bald_looks_among_the_highest_bald(monkeypatch):
    monkeypatch.setattr(by_members, "MOST_JOINT", 8)
    candidates = some_candidates()
    best = bald(candidates.probs).argsort(descending=True)[:8]
    assert set(pick("batch_bald", candidates, 5)) <= set(best.tolist())
    assert set(pick("batch_bald", candidates, 8)) == set(best.tolist())


@pytest.mark.parametrize("strategy", ["batch_bald", "drop_query"])
def test_what_lives_on_disagreement_needs_several_members(strategy):
    candidates = replace(some_candidates(), probs=some_candidates().probs[:, :1])
    with pytest.raises(ValueError, match=f"'{strategy}' needs the probabilities of at least 2 members, got 1"):
        pick(strategy, candidates, 3)


def test_suggestive_stands_for_all_candidates_with_its_shortlist():
    candidates = some_candidates()
    points = normalize(candidates.embeddings.double(), dim=1)
    alike = (points @ points.T).clamp(min=0)
    rows = candidates.scores.argsort(descending=True)[:20].tolist()
    wanted = greedily(lambda picks: float(alike[picks].amax(dim=0).sum()), rows, 5)
    assert pick("suggestive", candidates, 5, shortlist=4) == wanted


@pytest.mark.parametrize("strategy", ["suggestive", "cluster_margin"])
def test_a_shortlist_of_the_batch_is_the_choice_of_top_k(strategy):
    candidates = some_candidates()
    assert set(pick(strategy, candidates, 10, shortlist=1)) == set(pick("top_k", candidates, 10))
    with pytest.raises(ValueError, match="shortlist must be at least 1, got nan"):
        pick(strategy, candidates, 10, shortlist=math.nan)


def test_bait_leaves_the_least_doubt_over_the_pool():
    candidates = some_candidates(12, n_features=2, n_labelled=3)
    length = candidates.embeddings.norm(dim=1).mean()

    def information(probs: Tensor, embeddings: Tensor) -> Tensor:
        confidence = probs.mean(dim=1).amax(dim=1).double()
        rows = (embeddings / length).double()
        return torch.einsum("n,nd,ne->nde", confidence * (1 - confidence), rows, rows)

    pool = information(candidates.probs, candidates.embeddings)
    known = information(candidates.labelled_probs, candidates.labelled_embeddings).sum(dim=0)

    def certainty(picks: list[int]) -> float:
        inverse = torch.linalg.inv(torch.eye(2).double() + known + pool[picks].sum(dim=0))
        return -float((inverse @ (pool.sum(dim=0) + known)).trace())

    wanted = greedily(certainty, list(range(12)), 6)
    while len(wanted) > 3:
        wanted.remove(max(wanted, key=lambda i: certainty([j for j in wanted if j != i])))
    assert pick("bait", candidates, 3) == wanted


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_bait_does_not_mind_the_scale_of_the_embeddings(scale):
    candidates = some_candidates()
    scaled = replace(
        candidates,
        embeddings=scale * candidates.embeddings,
        labelled_embeddings=scale * candidates.labelled_embeddings,
    )
    assert pick("bait", scaled, 10) == pick("bait", candidates, 10)


def votes(*rows: str) -> Tensor:
    """Probabilities of members that vote for the classes written as digits."""
    return torch.eye(4)[torch.tensor([[int(vote) for vote in row] for row in rows])] * 0.9 + 1 / 40


@pytest.mark.parametrize(
    ("kinds", "query_size", "clustered"),
    [
        (["0000"] * 30 + ["0123"] * 30 + ["0012"] * 20, 1, slice(30, 60)),  # half is not more than half
        (["000"] * 30 + ["012"] * 30 + ["001"] * 20, 1, slice(30, 60)),
        (["0000"] * 30 + ["0123"] * 3 + ["0012"] * 22 + ["0001"] * 20, 1, slice(30, 55)),  # 25 for each, those first
        (["0000"] * 30 + ["0123"] * 3 + ["0012"] * 22 + ["0001"] * 20, 2, slice(30, 75)),  # on which most differ
        (["0000"] * 30 + ["0123"] * 30 + ["0012"] * 20, 2, slice(30, 80)),
    ],
)
def test_drop_query_clusters_what_most_members_do_not_agree_on(monkeypatch, kinds, query_size, clustered):
    candidates = replace(some_candidates(len(kinds)), probs=votes(*kinds))
    seen = []
    monkeypatch.setattr(
        by_members, "kmeans", lambda rows, *args, **given: seen.append(rows) or kmeans(rows, *args, **given)
    )
    picks = pick("drop_query", candidates, query_size)
    wanted = normalize(candidates.embeddings[clustered], dim=1)
    assert sorted(seen[0].tolist()) == sorted(wanted.tolist())
    assert all(clustered.start <= i < clustered.stop for i in picks)


def test_drop_query_takes_the_middle_of_clusters():
    candidates = replace(clusters_of_candidates(), probs=votes(*["01"] * 100))
    points = normalize(candidates.embeddings, dim=1).view(5, 20, 6)
    middle = (points - points.mean(dim=1, keepdim=True)).norm(dim=2).argmin(dim=1)
    assert set(pick("drop_query", candidates, 5)) == {20 * c + m for c, m in enumerate(middle.tolist())}


def test_drop_query_tops_up_at_random():
    candidates = replace(some_candidates(60), probs=votes(*["00"] * 57, *["01"] * 3))
    batches = [pick("drop_query", candidates, 6, seed) for seed in range(200)]
    assert all(set(batch[:3]) == {57, 58, 59} for batch in batches)
    counts = Counter(i for batch in batches for i in batch[3:])
    assert scipy.stats.chisquare([counts[i] for i in range(57)]).pvalue > 0.001
    agreed = replace(candidates, probs=votes(*["00"] * 60))
    assert len({tuple(pick("drop_query", agreed, 6, seed)) for seed in range(20)}) == 20
