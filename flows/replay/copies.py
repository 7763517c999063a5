"""Copies in labelled data, to the last byte: an image counts once."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from connectors.images.threads import map_in_threads
from flows.replay.inputs import ReplayError


def without_copies(rows: pd.DataFrame, features: NDArray[np.float32] | None) -> tuple[NDArray[np.bool_], list[str]]:
    """Which rows to keep, `(n,)`, so that no image is there twice, and what to tell of it, a line each.

    Of files of the same bytes, or rows of the same features, the first counts, before it one that is tested on. Where
    their labels differ none does.
    """
    content = _content_codes(rows["uri"].tolist()) if features is None else _row_codes(features)
    table = rows[["file", "label", "is_test"]].reset_index(drop=True).assign(content=content)
    table = table[table["content"].duplicated(keep=False)]
    by_content = table.groupby("content")
    is_disputed = by_content["label"].transform("nunique") > 1
    crosses = (by_content["is_test"].transform("nunique") > 1) & ~is_disputed
    first = table.sort_values("is_test", ascending=False, kind="stable").drop_duplicates("content").index
    dropped = table.index[is_disputed | ~table.index.isin(first)]
    what = "files are copies" if features is None else "rows of features are copies"
    told = []
    if n := len(dropped) - int(is_disputed.sum()):
        told.append(f"{n:,} of {len(rows):,} {what} of others, to the last byte: an image counts once")
    if crosses.any():
        told.append(_on_both_sides(table[crosses]))
    if is_disputed.any():
        told.append(_disputed(table[is_disputed], what))
    keep = np.ones(len(rows), dtype=bool)
    keep[dropped] = False
    if not keep.any():
        raise ReplayError(f"no image is left: {'; '.join(told)}")
    return keep, told


def _on_both_sides(copies: pd.DataFrame) -> str:
    """A line on images inside and outside of the test part; their `file`, `is_test` and `content`."""
    pair = copies[copies["content"] == copies["content"].iloc[0]]
    test, pool = (pair.loc[pair["is_test"] == side, "file"].iloc[0] for side in (True, False))
    return (
        f"{copies['content'].nunique():,} images to test on are outside of the test part too, for "
        f"example {test} and {pool}: they are only tested on"
    )


def _disputed(copies: pd.DataFrame, what: str) -> str:
    """A line on copies whose labels differ; their `file`, `label` and `content`."""
    pair = copies[copies["content"] == copies["content"].iloc[0]]
    one, other = pair.drop_duplicates("label").head(2)[["file", "label"]].to_numpy()
    return (
        f"{len(copies):,} {what} with different labels and are set aside, for example {one[0]} "
        f"({one[1]}) and {other[0]} ({other[1]})"
    )


def _content_codes(uris: Sequence[str]) -> NDArray[np.int64]:
    """Numbers `(n,)` that are equal for files of the same bytes; files alone in their size are not read."""
    sizes = pd.Series(map_in_threads(lambda uri: Path(uri).stat().st_size, uris))
    names = sizes.astype("str") + " " + sizes.index.astype("str")
    alike = sizes[sizes.duplicated(keep=False)].index
    names[alike] = map_in_threads(_hash, [uris[row] for row in alike])
    return pd.factorize(names)[0].astype(np.int64)


def _hash(uri: str) -> str:
    with Path(uri).open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _row_codes(features: NDArray[np.float32]) -> NDArray[np.int64]:
    """Numbers `(n,)` that are equal for rows `(n, D)` of the same numbers."""
    rows = np.ascontiguousarray(features).view(np.dtype((np.void, features.dtype.itemsize * features.shape[1])))
    return np.unique(rows.ravel(), return_inverse=True)[1].astype(np.int64)
