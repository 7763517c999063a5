"""What a new listing leaves as it was: most of a pool, found by comparing columns; only the rest is gone through.

A row that is left out here takes no part in `pipeline.pool.merge`, and would come out of it as it was.
"""

from dataclasses import dataclass
from functools import reduce

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.pool.columns import Flags, is_doubled, positions, same
from pipeline.pool.reasons import IN_AUDIT
from pipeline.pool.table import SAME_FILE


@dataclass(frozen=True)
class Unchanged:
    """Files and rows that belong together, one to one.

    Attributes:
        files: `(n,)` whether each listed file is as its row has it.
        places: `(n,)` the row of each listed file, by its path; means nothing where `files` is false.
        rows: `(m,)` whether each row of the earlier table has its file.
    """

    files: Flags
    places: NDArray[np.int64]
    rows: Flags

    def but(self, rows: Flags) -> "Unchanged":
        """Without some rows `(m,)` and their files."""
        return Unchanged(self.files & ~rows[self.places], self.places, self.rows & ~rows)


def nothing(listed: pd.DataFrame, earlier: pd.DataFrame) -> Unchanged:
    """Every file and every row is to be gone through."""
    n, m = len(listed), len(earlier)
    return Unchanged(np.zeros(n, dtype=bool), np.full(n, -1), np.zeros(m, dtype=bool))


def unchanged(listed: pd.DataFrame, earlier: pd.DataFrame, *, is_manifest: bool) -> Unchanged:
    """The files that are what the earlier table has: of the same size and time, with the same group, label or reason.

    A path that one of the two has more than once is left to `merge`, and so is each row that may come out as another:
    of an item that was lost or is disputed, of a file that could not be read.

    Args:
        listed: `uri`, `size_bytes`, `modified_ns`, `set_aside_reason`, `label` and `group` of each file; `item_id`
            where the listing tells it.
        earlier: a pool table.
        is_manifest: what was listed gives all labels that there are.
    """
    places = positions(listed["uri"], earlier["uri"])
    found = np.flatnonzero(places >= 0)
    at = places[found]
    now, then = listed.iloc[found], earlier.iloc[at]
    is_read, is_item = now["modified_ns"].notna().to_numpy(), then["item_id"].notna().to_numpy()
    was_used = then["set_aside_reason"].isna().to_numpy()
    is_held_out = (then["set_aside_reason"] == IN_AUDIT).to_numpy() & now["label"].isna().to_numpy()
    same_item = is_read & is_item & (was_used | is_held_out) & same(now["group"], then["group"])
    if is_manifest:
        same_item &= same(now["label"], then["label"])
    same_other = ~is_item & np.where(is_read, ~was_used, same(now["set_aside_reason"], then["set_aside_reason"]))
    is_same: Flags = reduce(np.logical_and, (same(now[name], then[name]) for name in SAME_FILE))
    is_same &= same_item | same_other
    if "item_id" in now:  # of objects of a store, which may be put anew within one second of its clock
        is_same &= now["item_id"].isna().to_numpy() | same(now["item_id"], then["item_id"])
    is_same &= ~(is_doubled(earlier["uri"])[at] | (np.bincount(at, minlength=len(earlier)) > 1)[at])
    files, rows = np.zeros(len(listed), dtype=bool), np.zeros(len(earlier), dtype=bool)
    files[found[is_same]] = True
    rows[at[is_same]] = True
    return Unchanged(files, places, rows)
