"""Why an image is asked for, as text in the batch, and the purpose of each text; no torch is loaded for it."""

from pipeline.types import Purpose

SEED_REASON = "seed set"
AUDIT_REASON = "audit set"
MEASURED_REASON = "audit set: it has no label yet"
RANDOM_SLICE = "random slice"
"""Drawn whatever the strategy says."""


def purpose_of(reason: str) -> Purpose:
    """What an image is asked for, by the reason.

    >>> purpose_of("seed set: coverage"), purpose_of("audit set"), purpose_of("margin 0.97, among the top 1 %")
    ('seed', 'audit', 'query')
    """
    if reason.startswith(SEED_REASON):
        return "seed"
    if reason in (AUDIT_REASON, MEASURED_REASON):
        return "audit"
    return "control" if reason == RANDOM_SLICE else "query"
