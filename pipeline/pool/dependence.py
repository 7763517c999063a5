"""Signs that images depend on each other, though nobody has grouped them: names like frames of a film, near copies."""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import normalize

from pipeline.pool.group_rules import PARENT

NUMBERED = re.compile(r"^(?P<folder>(?:.*/)?)(?P<stem>[^/]*?)(?P<number>\d{1,12})(?P<rest>\D*)\.[^./]+$")
"""A name with a running number, the last of its numbers."""
SERIES = r"^(.+?)[-_. ]*\d+\D*\.[^.]+$"
"""The rule for such names: all before the number is the group."""
STRETCH = r"^(.*?)\d{1,2}\D*\.[^.]+$"
"""The rule for one film: a hundred frames that follow each other are a group."""
TIME = r"(\d{4})-?(\d\d)-?(\d\d)[-_T .]?(\d\d)[-.:]?(\d\d)[-.:]?(\d\d)"
MINUTE = r"(\d{4}-?\d\d-?\d\d[-_T .]?\d\d[-.:]?\d\d)[-.:]?\d\d"
"""The rule for names that tell the time: the images of one minute are a group."""
YEARS = (1980, 2100)
SECONDS_OF_BURST = 2
FRAME = r"(?i:frame|frm)"
COUNTED = r"(?i:video|clip|film|movie|scene|patient|subject|case)$"
"""What the last number of a name counts where it counts no frames: the rule would put the wrong images together."""
FEWEST_OF_SERIES = 3
"""Images with one stem from which on they look like a series."""
SHARE_OF_NAMES = 0.5
"""Of all images, so many have to look like it."""
MOST_NAMES = 200_000
"""Names that are looked at, the first by path."""

THUMB_SIDE = 16
N_LEFT, N_RIGHT = 250, 1000
"""Images of either side of a split that are compared."""
NEAR = 0.993
"""Correlation of two thumbnails, less what all of them share, above which they are near-copies: digits of the same
class reach .989, two frames of a film .995 and more."""
CONTRAST = 2.0
"""Grey values by which a thumbnail has to differ from the mean of all to be compared."""
SHARE_OF_NEAR, FEWEST_NEAR = 0.05, 3
"""Near-copies from which on they are worth a warning."""


@dataclass(frozen=True, slots=True)
class Series:
    """Names that look like images of one film, series or burst.

    Attributes:
        what: what they look like, for people.
        rule: the group rule that puts them together.
        example: a path.
        n_images: how many look like it.
    """

    what: str
    rule: str
    example: str
    n_images: int


def find_series(paths: Sequence[str], *, classes: Collection[str] = ()) -> Series | None:
    """The series of images that depend on each other by their names; None where the names show none.

    Numbers that run through a whole pool, folders or stems that are called after classes, and folders that only keep
    the number of files small make no series.

    Args:
        paths: relative to the folder that the images lie in, with "/".
        classes: their names.
    """
    names = pd.Series(sorted(paths)[:MOST_NAMES], dtype="str")
    if names.empty:
        return None
    return _bursts(names) or _numbered(names, classes)


def _bursts(names: pd.Series) -> Series | None:
    digits = names.map(_file_name).str.extract(TIME).dropna().sum(axis=1)
    times = pd.to_datetime(digits.astype("str"), format="%Y%m%d%H%M%S", errors="coerce").dropna().sort_values()
    times = times[times.dt.year.between(*YEARS)]
    after = times.diff().dt.total_seconds().le(SECONDS_OF_BURST)
    in_burst = times[after | after.shift(-1, fill_value=False)]
    if len(in_burst) < max(FEWEST_OF_SERIES, SHARE_OF_NAMES * len(names)):
        return None
    return Series("bursts, a second or two apart", MINUTE, str(names[in_burst.index[0]]), len(in_burst))


def _numbered(names: pd.Series, classes: Collection[str]) -> Series | None:
    without_time = names[names.map(lambda name: re.search(TIME, name) is None).astype(bool)]
    parts = without_time.str.extract(NUMBERED).dropna(subset=["number"])
    stems = (parts["folder"] + parts["stem"]).str.rstrip("-_. /").map(_file_name)
    parts = parts[~stems.map(lambda stem: _tells_class(stem, classes)).astype(bool) & ~stems.str.contains(COUNTED)]
    key = ["folder", "stem", "rest"]
    series = parts[parts.groupby(key)["number"].transform("size") >= FEWEST_OF_SERIES]
    if len(series) < max(FEWEST_OF_SERIES, SHARE_OF_NAMES * len(names)):
        return None
    n_series, example = series.groupby(key).ngroups, str(names[series.index[0]])
    says_frame = bool(names[series.index].str.contains(FRAME).mean() > SHARE_OF_NAMES)
    if n_series == 1:
        return Series("frames of one film", STRETCH, example, len(series)) if says_frame else None
    begins_anew = bool(series["number"].astype("int64").duplicated(keep=False).mean() > SHARE_OF_NAMES)
    if not (says_frame or begins_anew):
        return None
    rule = PARENT if series["stem"].eq("").all() and series["folder"].nunique() == n_series else SERIES
    return Series(f"{n_series} series of frames", rule, example, len(series))


def _file_name(path: str) -> str:
    return path.rpartition("/")[2]


def _tells_class(stem: str, classes: Collection[str]) -> bool:
    """Whether a folder or stem is called after a class, as in "Cats" or "cat.12"."""
    words = [word for word in re.split(r"[\W_\d]+", stem.casefold()) if word]
    known = {form for name in classes for form in (name.casefold(), f"{name.casefold()}s")}
    return not known.isdisjoint([*words, " ".join(words)])


def near_copies(left: Tensor, right: Tensor) -> Tensor:
    """Whether each image of one side has a near-copy on the other, `(n,)`.

    Args:
        left: `(n, 1, S, S)` grey thumbnails of uint8.
        right: `(m, 1, S, S)`, likewise.
    """
    images = torch.cat([left, right]).flatten(1).float()
    images = images - images.mean(dim=1, keepdim=True)
    images = images - images.mean(dim=0)
    tells = images.square().mean(dim=1).sqrt() >= CONTRAST
    images = torch.where(tells[:, None], normalize(images, dim=1), 0.0)
    if not len(right):
        return torch.zeros(len(left), dtype=torch.bool)
    return (images[: len(left)] @ images[len(left) :].T).amax(dim=1) >= NEAR


def are_many(near: Tensor) -> bool:
    """Whether so many images have a near-copy on the other side that measuring on them flatters."""
    return int(near.sum()) >= max(FEWEST_NEAR, SHARE_OF_NEAR * len(near))


def advice(series: Series | None, near: Tensor | None, *, measured_on: str) -> list[str]:
    """Lines for a person who has not set `group`; none where nothing was found.

    Args:
        near: of `near_copies`, from what is measured on to the rest.
        measured_on: what the left side is called.
    """
    told = []
    flatters = "Frames of one film on both sides make the accuracy too good"
    if series is not None:
        told.append(
            f"{series.n_images:,} names look like {series.what}, for example {series.example}. {flatters}: keep them "
            f"together by group = '{series.rule}'"
        )
    if near is not None and are_many(near):
        told.append(
            f"{int(near.sum())} of {len(near)} images of {measured_on} have a near-copy outside of it. {flatters}: "
            + ("keep near-copies together, as above" if series else "set group, or give a manifest a column group")
        )
    return told
