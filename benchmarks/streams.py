"""Acquisition functions on probabilities in chunks: ours, baal's, and how far each is from its formula."""

from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from benchmarks import peers
from benchmarks.measure import RUNS, Contender, side_by_side
from benchmarks.pools import CHUNK, make_pool
from pipeline.selection.acquisition import ACQUISITIONS, score_all

HEURISTICS = {
    "bald": "BALD",
    "entropy": "Entropy",
    "least_confidence": "Certainty",
    "margin": "Margin",
    "variance": "Variance",
}
"""Acquisition function -> the same in baal."""


@dataclass(frozen=True)
class Stream:
    """Class probabilities in chunks.

    Attributes:
        chunks: each `(n, K, C)`; as baal wants them `(n, C, K)`.
    """

    chunks: list[Tensor]

    def __str__(self) -> str:
        n = sum(map(len, self.chunks))
        _, n_members, n_classes = self.chunks[0].shape
        return f"{n:,} x {n_members} members x {n_classes} classes, in chunks of {len(self.chunks[0]):,}"


def make_stream(n: int) -> Stream:
    """Return probabilities of 20 members for 10 classes; each chunk is a copy of the first, in memory of its own."""
    first = make_pool(min(n, CHUNK), 16, 0, n_members=20).probs
    return Stream([first.clone() for _ in range(0, n, CHUNK)])


def baal_layout(stream: Stream) -> Stream:
    """Return the chunks with the members last."""
    return Stream([chunk.swapaxes(1, 2).contiguous() for chunk in stream.chunks])


def score_stream(name: str, stream: Stream, seed: int) -> list[Tensor]:
    """Score the chunks with one acquisition function."""
    return [ACQUISITIONS[name](chunk) for chunk in stream.chunks]


def score_stream_at_once(stream: Stream, seed: int) -> list[dict[str, Tensor]]:
    """Score the chunks with all acquisition functions."""
    return [score_all(chunk, list(ACQUISITIONS)) for chunk in stream.chunks]


def score_with_baal(name: str, stream: Stream, seed: int) -> list[NDArray[np.float32]]:
    """Score the chunks with baal's function, in the direction that ours has."""
    scores = [peers.baal_scores(HEURISTICS[name], chunk.numpy()) for chunk in stream.chunks]
    return [1 - some for some in scores] if name in ("margin", "least_confidence") else scores


@cache
def slowest_score() -> str:
    """Return the name of the acquisition function that takes longest."""
    contenders = [Contender(name, partial(score_stream, name)) for name in ACQUISITIONS]
    stream = make_stream(20_000)
    measured = side_by_side(contenders, stream, stream, runs=RUNS)
    return contenders[int(np.argmax([np.median(runs.seconds) for runs in measured]))].name


def with_slowest_score(stream: Stream) -> tuple[str, Stream]:
    """Return the name of the slowest acquisition function, and the stream."""
    return slowest_score(), stream


def score_slowest(named: tuple[str, Stream], seed: int) -> list[Tensor]:
    """Score the chunks with the acquisition function that takes longest."""
    return score_stream(*named, seed)


def largest_error(name: str, stream: Stream, scores: list[Tensor] | list[NDArray[np.float32]]) -> float:
    """Return the largest difference from the formula in float64, in the first chunk."""
    p = stream.chunks[0].double().numpy()
    mean = p.mean(axis=1)
    ordered = np.sort(mean, axis=1)
    entropy = -(mean * np.log(mean)).sum(axis=1)
    formulas = {
        "bald": entropy + (p * np.log(p)).sum(axis=2).mean(axis=1),
        "entropy": entropy,
        "least_confidence": 1 - ordered[:, -1],
        "margin": 1 - ordered[:, -1] + ordered[:, -2],
        "variance": p.var(axis=1).mean(axis=1),
    }
    return float(np.abs(formulas[name] - np.asarray(scores[0])).max())


def about_slowest(stream: Stream, scores: list[dict[str, Tensor]], seconds: float, peak: float | None) -> str:
    """Say which acquisition function is the slowest."""
    return f"the slowest alone is {slowest_score()}"
