"""The pool table: which images there are, and which of them are used.

One row is one image (an item) or one file that holds no usable image:

| column | |
|---|---|
| `item_id` | hash of the file's bytes; missing where the file holds no image that can be decoded |
| `uri` | absolute path; a file that changed has a row for each content it had |
| `width`, `height` | pixels, turned upright by EXIF; missing without an item |
| `split` | "pool" or "audit" |
| `set_aside_reason` | why the row is not used; missing where it is |
| `size_bytes`, `modified_ns` | of the file when it was read; missing where it was not |
| `label` | from a manifest; missing otherwise and for the audit set |
| `group` | which images depend on each other, see `pipeline.pool.groups`; missing where an image is on its own |
| `pages` | pages or frames of a file that holds several, of which the first is used; missing otherwise |
| `pixels` | the kind of pixels deeper than 8 bits; missing for 8 bits |
"""

import pandas as pd

from pipeline.regions import OPEN

COLUMNS = {
    "item_id": "str",
    "uri": "str",
    "width": "Int64",
    "height": "Int64",
    "split": "str",
    "set_aside_reason": "str",
    "size_bytes": "Int64",
    "modified_ns": "Int64",
    "label": "str",
    "group": "str",
    "pages": "Int64",
    "pixels": "str",
}


SAME_FILE = ("size_bytes", "modified_ns")
"""A file in its place is taken for the one that was read while these are what they were."""


def as_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the columns of the pool table and no others; a column that they lack has missing values."""
    return typed(rows.reindex(columns=list(COLUMNS)))


def typed(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows, with the columns of the pool table in its types."""
    return rows.astype({name: dtype for name, dtype in COLUMNS.items() if name in rows})


def usable(pool: pd.DataFrame) -> pd.DataFrame:
    """Rows of the pool table that are not set aside; `item_id` is distinct among them."""
    return pool[pool["set_aside_reason"].isna()]


def has_complete_label(rows: pd.DataFrame) -> "pd.Series[bool]":
    """Whether the manifest gives each row a label that tells of all classes, and not only of those that are there."""
    return rows["label"].notna() & ~rows["label"].astype("str").str.endswith(OPEN, na=False)


def set_aside_counts(pool: pd.DataFrame) -> dict[str, int]:
    """How many rows are set aside for each kind of reason, most frequent first."""
    kinds = pool["set_aside_reason"].dropna().str.split(":", n=1).str[0]
    return {str(kind): int(n) for kind, n in kinds.value_counts().items()}


def group_counts(pool: pd.DataFrame) -> dict[str, int]:
    """How the usable images of a pool table are grouped; empty where they are not.

    Returns:
        `n_groups`, the `largest` (images), `n_alone` (images in none), and of the audit set `n_audit_groups`, its
        images without a group counted as one each, for `n_audit` images.
    """
    rows = usable(pool)
    if "group" not in rows or rows["group"].isna().all():
        return {}
    sizes, audit = rows["group"].value_counts(), rows[rows["split"] == "audit"]
    return {
        "n_groups": len(sizes),
        "largest": int(sizes.max()),
        "n_alone": int(rows["group"].isna().sum()),
        "n_audit_groups": audit["group"].nunique() + int(audit["group"].isna().sum()),
        "n_audit": len(audit),
    }
