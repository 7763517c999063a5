"""Made-up tasks that ask people for boxes and for masks, as far as their labels go: nothing is learnt from these."""

from collections.abc import Sequence
from types import SimpleNamespace

from pipeline.regions import regions_from_json, regions_to_json
from pipeline.types import AskFor, Region, RegionKind


def _first(given: Sequence[Sequence[Region]]) -> tuple[tuple[Region, ...], float]:
    return tuple(given[0]), sum(found == given[0] for found in given) / len(given)


def task_of(kind: RegionKind) -> SimpleNamespace:
    """A task type without networks."""
    return SimpleNamespace(
        asks=AskFor(kind, several=True),
        has_one_decision=False,
        headline="none",
        stride=None,
        read_label=regions_from_json,
        write_label=regions_to_json,
        consensus=_first,
    )
