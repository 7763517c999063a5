"""The records that pass between the parts of a round; each is checked once, when it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:  # torch takes seconds to load, and whoever only asks people needs none
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

Split = Literal["pool", "audit"]
RegionKind = Literal["image", "box", "polygon", "mask"]
Counted = Literal["images", "regions"]
"""What a budget counts: labelled images, or the regions that people marked in them."""
OnProgress = Callable[[int, int], None]
"""What is called with (done, total) while a long work goes on."""
Purpose = Literal["seed", "audit", "query", "control", "review", "gold"]
"""Why people are asked: for labels to begin with, for the audit set, because a strategy chose the image, as a control
that was drawn at random, to look at a label again, or with an answer that is known."""
DESCRIBING = frozenset({"embeddings", "probs"})
"""Columns of `Candidates` that may be of a part of them: those that are large."""
CHECKED = 2**20
"""Values of a column looked at together, so that checking a column takes no memory of its size."""

PNG_BEGINS = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR"

Aim = Literal["check", "unsure", "unlike", "typical"]
"""What an image is chosen for: as a check on all images, because the model is unsure of it, because it is unlike what
is labelled, or because many images are like it."""

Outcome = Literal["labelled", "skipped", "empty", "invalid", "deleted"]
"""What came of asking an annotator: see `Answer`."""


class Size(NamedTuple):
    """Of an image or a mask in pixels; an image is turned upright."""

    width: int
    height: int


class Outputs(NamedTuple):
    """What comes out of a network for an image.

    Attributes:
        n: numbers, or channels of a map.
        n_logits: so many of them, the first, are logits; the others tell where things are.
        stride: pixels of the image, in each direction, for a place of the map; None where there is one vector.
    """

    n: int
    n_logits: int
    stride: int | None = None


class AskFor(NamedTuple):
    """What people are asked for: regions of a kind, and whether an image may have several."""

    kind: RegionKind
    several: bool

    @property
    def fewest_classes(self) -> int:
        """Classes that there must be: with one alone, what is there can be asked, but not which it is."""
        return 1 if self.several else 2


ONE_CLASS = AskFor(kind="image", several=False)
"""One class for each image."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One question put to people."""

    item_id: str
    round_number: int
    purpose: Purpose


@dataclass(frozen=True, slots=True)
class Region:
    """One labelled part of an image.

    Attributes:
        kind: "image" labels the whole image and has neither geometry nor mask.
        label: class name.
        geometry: coordinates as fractions of width and height in [0, 1]: of a box its left, upper, right and lower
            edge; of a polygon x and y of each corner, three or more.
        score: probability a model gives to the label, in [0, 1]; None where a person decided.
        mask: of a mask, a PNG as `pipeline.masks` writes it, of the size that the image has when it is upright.
    """

    kind: RegionKind
    label: str
    geometry: tuple[float, ...] | None = None
    score: float | None = None
    mask: bytes | None = None

    def __post_init__(self) -> None:
        if self.score is not None and not 0.0 <= self.score <= 1.0:
            raise ValueError(f"score of label {self.label!r} must be in [0, 1], got {self.score}")
        if (self.kind in ("box", "polygon")) != (self.geometry is not None):
            raise ValueError(f"a region of kind {self.kind!r} and geometry {self.geometry} do not go together")
        if (self.kind == "mask") != (self.mask is not None):
            raise ValueError(f"a mask belongs to a region of kind 'mask', and to no other; got kind {self.kind!r}")
        if self.geometry is not None:
            _check_geometry(self.kind, self.geometry)
        if self.mask is not None:
            mask_size(self.mask)


def _check_geometry(kind: RegionKind, geometry: tuple[float, ...]) -> None:
    if not all(0.0 <= value <= 1.0 for value in geometry):
        raise ValueError(f"geometry must be fractions in [0, 1], got {geometry}")
    if kind == "box" and (len(geometry) != 4 or geometry[0] >= geometry[2] or geometry[1] >= geometry[3]):
        raise ValueError(f"a box has a left, upper, right and lower edge and a size, got {geometry}")
    if kind == "polygon" and (len(geometry) < 6 or len(geometry) % 2):
        raise ValueError(f"a polygon has x and y of three corners or more, got {geometry}")


def mask_size(png: bytes) -> Size:
    """The size of a mask, from its header.

    Raises:
        ValueError: it is no PNG of 1 bit a pixel with a palette.
    """
    if png[:16] != PNG_BEGINS or len(png) < 33 or png[24:26] != b"\x01\x03":
        raise ValueError("a mask is a PNG of 1 bit a pixel with a palette: see pipeline.masks.mask_to_png")
    return Size(int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big"))


@dataclass(frozen=True, slots=True)
class Annotation:
    """What one person found in one image.

    Attributes:
        regions: empty means that the person looked and found nothing there.
        annotator: name or address of the person.
        seconds: time spent, None where the tool does not know it.
    """

    item_id: str
    regions: tuple[Region, ...]
    annotator: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one ask from one person; an ask can have several.

    Attributes:
        task_id: the annotation tool's record of the ask.
        outcome: "labelled" has an annotation. "skipped" and "empty" (submitted without an answer) are not labels and
            are not asked again. "invalid" cannot be used: `message` says why.
            "deleted" withdraws an earlier answer with the same `answer_id`.
        updated_at: ISO 8601 time of the annotation tool's clock; a later answer of one person replaces the earlier.
        message: why an answer cannot be used, or which part of one was left out; empty when all of it is used.
    """

    ask: Ask
    task_id: int
    answer_id: int
    outcome: Outcome
    annotator: str
    updated_at: str
    annotation: Annotation | None = None
    seconds: float | None = None
    message: str = ""

    def __post_init__(self) -> None:
        if (self.outcome == "labelled") != (self.annotation is not None):
            raise ValueError(f"answer {self.answer_id}: outcome {self.outcome!r} and annotation do not go together")

    @property
    def item_id(self) -> str:
        """The image that was asked for."""
        return self.ask.item_id

    @property
    def round_number(self) -> int:
        """The round that asked."""
        return self.ask.round_number


@dataclass(frozen=True, slots=True)
class Calibration:
    """What a temperature changes, on the images it was fitted to.

    Attributes:
        temperature: what logits are divided by; above 1 where the network is too sure.
        n: images that it was fitted to.
        nll_before: mean negative log-likelihood at temperature 1, nats.
        nll_after: the same at `temperature`; never above `nll_before`.
        ece_before: expected calibration error at temperature 1, in [0, 1].
        ece_after: the same at `temperature`; may be above `ece_before`, which is not what is minimised.
    """

    temperature: float
    n: int
    nll_before: float
    nll_after: float
    ece_before: float
    ece_after: float


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that went wrong in a training.

    Attributes:
        name: "constant_predictions", "stuck_at_prior", "labels_do_not_line_up", "learning_rate_too_high",
            "batch_norm_stuck" or "frozen_batch_norm_moved".
        what: what was seen, with its numbers.
        advice: what to try.
    """

    name: str
    what: str
    advice: str


@dataclass(frozen=True, slots=True)
class Candidates:
    """Everything a query strategy may ask for, one row for each unlabelled image.

    Attributes:
        ids: `(N,)` distinct strings, or these in UTF-8, which take a quarter of the memory.
        scores: `(N,)` of the campaign's acquisition function; higher is more informative.
        embeddings: `(N, D)`, None where scoring did not compute them; `(R, D)` of the `described`.
        labelled_embeddings: `(M, D)` of the images that already have a label.
        probs: `(N, K, C)` class probabilities of the members, None where the strategy does not need them; `(R, K, C)`
            of the `described`.
        guesses: `(N,)` int64, index of the class that the model predicts.
        labelled_probs: `(M, K, C)` class probabilities of the images that already have a label.
        labelled_targets: `(M,)` int64, index of the class of each labelled image.
        class_scores: `(N, C)` of the acquisition function, about each class, where each is a decision of its own.
        class_counts: `(C,)` labels of each class.
        n_classes: of the campaign.
        described: `(R,)` sorted positions of those candidates that embeddings and probs are of, which alone a strategy
            sees: see `pipeline.selection.batch.rows_seen`; None where they are of all.
        is_in_order: they come in the random order in which a strategy sees them, as `seeded_order` gives it.
    """

    ids: NDArray[np.str_] | NDArray[np.bytes_]
    scores: Tensor
    embeddings: Tensor | None = None
    labelled_embeddings: Tensor | None = None
    probs: Tensor | None = None
    guesses: Tensor | None = None
    labelled_probs: Tensor | None = None
    labelled_targets: Tensor | None = None
    class_scores: Tensor | None = None
    class_counts: Tensor | None = None
    n_classes: int | None = None
    described: Tensor | None = None
    is_in_order: bool = False

    def __post_init__(self) -> None:
        if _any_twice(self.ids):
            raise ValueError("candidates must have distinct ids")
        for name in ("scores", "embeddings", "probs", "guesses", "class_scores"):
            values = getattr(self, name)
            if values is None:
                continue
            described = self.described if name in DESCRIBING else None
            n_wanted = len(self.ids) if described is None else len(described)
            if len(values) != n_wanted:
                raise ValueError(f"candidates: {n_wanted} ids but {len(values)} rows of {name}")
            row = _first_not_finite(values)
            if row is not None:
                position = row if described is None else int(described[row])
                raise ValueError(f"candidates: {name} of item {self.ids[position]!s} is not finite")
        n_labelled = None
        for name in ("labelled_embeddings", "labelled_probs", "labelled_targets"):
            values = getattr(self, name)
            if values is None:
                continue
            n_labelled = len(values) if n_labelled is None else n_labelled
            if len(values) != n_labelled:
                raise ValueError(f"candidates: {n_labelled} labelled images but {len(values)} rows of {name}")
            if _first_not_finite(values) is not None:
                raise ValueError(f"candidates: {name} are not finite")
        for name in ("guesses", "labelled_targets"):
            values = getattr(self, name)
            if values is not None and (str(values.dtype) != "torch.int64" or (len(values) and values.min() < 0)):
                raise ValueError(f"candidates: {name} must be int64 and at least 0")


def _any_twice(ids: NDArray[np.str_] | NDArray[np.bytes_]) -> bool:
    """Whether an id occurs twice; a million of bytes take 12 MB for that, where a set of strings takes 130."""
    order, step = ids.argsort(), CHECKED // 16
    starts = range(0, len(order) - 1, step)
    return any(
        bool((ids[order[n : n + step]][: len(order) - n - 1] == ids[order[n + 1 : n + step + 1]]).any()) for n in starts
    )


def _first_not_finite(values: Tensor) -> int | None:
    """Return the first row of `(N, ...)` with a value that is not finite, None where there is none."""
    n_rows = max(1, CHECKED // max(1, values[:1].numel()))
    for start in range(0, len(values), n_rows):
        finite = values[start : start + n_rows].isfinite()
        if not finite.all():
            return start + int((~finite).nonzero()[0, 0])
    return None


@dataclass(frozen=True, slots=True)
class Batch:
    """What a round asks for, most wanted first.

    Attributes:
        ids: `(n,)` distinct item ids.
        scores: `(n,)` of the acquisition function.
        reasons: `(n,)` why each was chosen, with the numbers.
        aims: `(n,)` what each was chosen for.
    """

    ids: tuple[str, ...]
    scores: tuple[float, ...]
    reasons: tuple[str, ...]
    round_number: int
    aims: tuple[Aim, ...]

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.scores) == len(self.reasons) == len(self.aims):
            raise ValueError("a batch needs one score, one reason and one aim for each id")
        if len(set(self.ids)) != len(self.ids):
            raise ValueError("a batch must not ask for an image twice")


@dataclass(frozen=True, slots=True)
class Metrics:
    """How good a model is on labelled images that it was not trained on.

    Attributes:
        n: images measured on.
        headline: name of the measure that counts, a share: "accuracy" in classification.
        value: of the headline; `low` and `high` are its 95 % interval.
        nll: mean negative log-likelihood of the decisions whose answer is known, nats.
        ece: expected calibration error of these, 15 bins of equal width, in [0, 1].
        scalars: further measures by name.
        by_class: of each measure the value of each class that occurs.
        table: `(C, C)` counts, row = true class, column = predicted; None where there is no such table.
        is_share_of_images: the headline is the share of the n images that are right, and not another measure.
    """

    n: int
    headline: str
    value: float
    low: float
    high: float
    nll: float
    ece: float
    scalars: Mapping[str, float] = field(default_factory=dict)
    by_class: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    table: Sequence[Sequence[int]] | None = None
    is_share_of_images: bool = True

    @property
    def effective_n(self) -> int:
        """Images of which a share like the headline would have the same standard error: n where it is such a share.

        `v (1 - v) / se^2`, where the 95 % interval is 2 * 1.96 se wide.
        """
        se = (self.high - self.low) / (2 * NormalDist().inv_cdf(0.975))
        if self.is_share_of_images or not 0 < self.value < 1 or se == 0:
            return self.n
        return max(1, round(self.value * (1 - self.value) / se**2))
