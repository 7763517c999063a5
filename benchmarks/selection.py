"""Choosing a batch, beside the Python peers: python -m benchmarks.selection [--json OUT] [--only NAME ...] [--quick]

Data: pools of ten Gaussian clusters (benchmarks/pools.py), drawn with seed 0; run i of a contender has seed i.
"""

from dataclasses import replace
from functools import partial

import torch

from benchmarks import choosers, growth, peers, streams, worth
from benchmarks.measure import Case, Contender, arguments, report, run, write
from benchmarks.pools import N_LABELLED, make_pool
from pipeline.selection.acquisition import ACQUISITIONS

DATA = "pools of ten Gaussian clusters, drawn with seed 0"

SMALL = partial(make_pool, 600, 16, 10)
"""A pool that takes no time."""

ON_GPU = ("k_center", "badge_500", "uherding", "batch_bald")
"""Cases that run once more where there is a GPU."""


def main() -> None:
    """Measure, print, write."""
    listed = cases()
    options = arguments(__doc__, [*(case.name for case in listed), "growth"])
    rows = run(listed, options, DATA)
    lines = {}
    if not options.only or "growth" in options.only:
        for label, line in growth.growth((1000, 2000, 4000) if options.quick else growth.GROWTH_SIZES):
            rows += growth.growth_rows(label, line)
            lines[label] = line
            write(rows, DATA, options.json)
    report(rows, DATA)
    if options.json and lines:
        growth.draw_growth(lines, options.json.with_name(f"{options.json.stem}-growth.png"))


def cases() -> list[Case]:
    """Return everything that can be measured, except growth; nothing is computed yet."""
    listed = [*k_center_cases(), *other_cases(), *score_cases()]
    return listed + (gpu_cases(listed) if torch.cuda.is_available() else [])


def k_center_cases() -> list[Case]:
    """Return the cases of k-center greedy."""
    case = partial(
        Case, small=SMALL, ours=Contender("ours", choosers.k_center), quality=worth.cover, quality_of=worth.COVER
    )
    one_by_one = Contender("NumPy, one pick at a time, float32", choosers.k_center_reference)
    mundig = Contender("lightly-mundig", peers.mundig, "lightly-mundig")
    core = Contender("lightly-mundig, data loaded,", peers.mundig_core, "lightly-mundig", peers.mundig_loaded)
    skactiveml = Contender("CoreSet of scikit-activeml", peers.core_set, "scikit-activeml")
    small_text = Contender("greedy_coreset of small-text", peers.greedy_coreset, "small-text")
    million = partial(
        case, inputs=choosers.make_million, note=worth.compared_with_bare_passes, quality=None, quality_of=""
    )
    return [
        case(
            name="k_center",
            work="k-center",
            inputs=partial(make_pool, 50_000, 512, 500),
            peers=(mundig, core, skactiveml, one_by_one),
            note=worth.compared_with_one_at_a_time,
        ),
        case(
            name="k_center_10k",
            work="k-center",
            inputs=partial(make_pool, 10_000, 256, 100),
            peers=(mundig, skactiveml, small_text),
            note=worth.compared_with_one_at_a_time,
        ),
        million(name="k_center_million", work="k-center, the bare function k_center_greedy"),
        million(
            name="k_center_million_batch",
            work="k-center, as a round does: Candidates, then select_batch",
            ours=Contender("ours", choosers.k_center_batch, prepare=choosers.with_ids),
        ),
    ]


def other_cases() -> list[Case]:
    """Return the cases of the other ways to choose."""
    skactiveml = partial(Contender, package="scikit-activeml")
    factored = Contender("NumPy, factored, one pick at a time", choosers.badge_reference)
    return [
        Case(
            name="badge",
            work="BADGE",
            inputs=partial(choosers.make_fitted_pool, 50_000, 512, 100),
            small=partial(choosers.make_fitted_pool, 600, 16, 10),
            ours=Contender("ours", choosers.badge),
            peers=(skactiveml("Badge of scikit-activeml", peers.badge, prepare=peers.fitted_classifier), factored),
            quality=worth.badge_potential,
            quality_of=worth.POTENTIAL,
        ),
        Case(
            name="badge_500",
            work="BADGE",
            inputs=partial(choosers.make_fitted_pool, 50_000, 512, 500),
            small=partial(choosers.make_fitted_pool, 600, 16, 10),
            ours=Contender("ours", choosers.badge),
            peers=(factored,),
            quality=worth.badge_potential,
            quality_of=worth.POTENTIAL,
        ),
        Case(
            name="typiclust",
            work="TypiClust on rows of length 1",
            inputs=partial(choosers.make_unit_pool, 20_000, 512, 100),
            small=partial(choosers.make_unit_pool, 600, 16, 10),
            ours=Contender("ours", partial(choosers.ask, "typiclust"), prepare=partial(choosers.asked, "typiclust")),
            peers=(skactiveml("TypiClust of scikit-activeml", peers.typiclust),),
            quality=worth.distance_to_labels,
            quality_of="mean distance of a candidate to the nearest label or pick, lower is better",
            note=worth.about_clustering,
        ),
        Case(
            name="max_herding",
            work="MaxHerding on rows of length 1, radius 1",
            inputs=partial(choosers.make_unit_pool, 5000, 256, 100),
            small=partial(choosers.make_unit_pool, 600, 16, 10),
            ours=Contender("ours", choosers.max_herding),
            peers=(skactiveml("MaxHerding of scikit-activeml", peers.max_herding),),
            quality=worth.herding_coverage,
            quality_of="objective: mean kernel with the nearest label or pick, higher is better",
        ),
        Case(
            name="uherding",
            work="UHerding on rows of length 1, weights 1 - margin, adaptive radius",
            inputs=partial(choosers.make_unit_pool, 5000, 256, 100),
            small=partial(choosers.make_unit_pool, 600, 16, 10),
            ours=Contender("ours", choosers.uherding),
            peers=(Contender("NumPy, whole kernel, one pick at a time", choosers.uherding_reference),),
            quality=worth.uherding_coverage,
            quality_of="objective: weighted mean kernel with the nearest label or pick, higher is better",
        ),
        *batch_bald_cases(),
        Case(
            name="ranked_batch",
            work="uncertainty and distance in one pass (the peer has another objective)",
            inputs=partial(make_pool, 10_000, 256, 100),
            small=SMALL,
            ours=Contender(
                "ours, weighted_k_center",
                partial(choosers.ask, "weighted_k_center"),
                prepare=partial(choosers.asked, "weighted_k_center"),
            ),
            peers=(Contender("ranked batch of modAL", peers.ranked_batch, "modAL-python", peers.fitted_learner),),
            quality=worth.cover,
            quality_of=worth.COVER,
        ),
    ]


def batch_bald_cases() -> list[Case]:
    """Return the cases of BatchBALD; the peers are slow and run once."""
    once = partial(Contender, runs=1)
    case = partial(
        Case,
        small=partial(make_pool, 60 + N_LABELLED, 16, 4, n_members=20),
        ours=Contender("ours", choosers.joint_bald),
        peers=(
            once("batchbald_redux, float32", peers.batch_bald_redux, "batchbald-redux", peers.redux_log_probs),
            once("BatchBALD of baal", peers.batch_bald_baal, "baal", peers.classes_before_members),
        ),
        quality=worth.joint_information,
        quality_of="objective: what the picks' labels tell together, nats, higher is better",
    )
    pool = partial(make_pool, n_features=64, n_members=20)
    unsure = partial(pool, 200 + N_LABELLED, n_picks=8, sharpness=0.25, disagreement=1.0)
    return [
        case(
            name="batch_bald",
            work="BatchBALD",
            inputs=partial(pool, 2000 + N_LABELLED, n_picks=20),
            note=worth.disagreement,
        ),
        case(name="batch_bald_unsure", work="BatchBALD, members that disagree", inputs=unsure, note=worth.disagreement),
    ]


def score_cases() -> list[Case]:
    """Return the cases of acquisition functions: each beside baal's, and all together beside the slowest."""
    stream = partial(Case, inputs=partial(streams.make_stream, 1_000_000), small=partial(streams.make_stream, 2000))
    listed = [
        stream(
            name=f"score_{name}",
            work=name,
            ours=Contender("ours", partial(streams.score_stream, name)),
            peers=(
                Contender(f"{heuristic} of baal", partial(streams.score_with_baal, name), "baal", streams.baal_layout),
            ),
            quality=partial(streams.largest_error, name),
            quality_of="largest difference from the formula in float64",
        )
        for name, heuristic in streams.HEURISTICS.items()
    ]
    together = stream(
        name="score_all",
        work=f"all {len(ACQUISITIONS)} scores in one pass",
        ours=Contender("ours", streams.score_stream_at_once),
        peers=(Contender("the slowest of ours alone", streams.score_slowest, prepare=streams.with_slowest_score),),
        note=streams.about_slowest,
    )
    return [*listed, together]


def gpu_cases(listed: list[Case]) -> list[Case]:
    """Return some of the cases for ours on the GPU, beside ours on the CPU."""
    return [
        replace(
            case,
            name=f"gpu_{case.name}",
            work=f"{case.work}, on {torch.cuda.get_device_name()}",
            ours=replace(case.ours, prepare=choosers.on_gpu, device="cuda"),
            peers=(replace(case.ours, name="ours on the CPU"),),
            note=None,
        )
        for case in listed
        if case.name in ON_GPU
    ]


if __name__ == "__main__":
    main()
