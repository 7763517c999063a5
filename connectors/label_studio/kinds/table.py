"""Which kind answers what a task type asks for."""

from collections.abc import Mapping

from connectors.label_studio.kinds.boxes import BOXES
from connectors.label_studio.kinds.classes import ONE, SEVERAL
from connectors.label_studio.kinds.kind import Kind
from connectors.label_studio.kinds.masks import MASKS
from connectors.label_studio.kinds.polygons import POLYGONS
from pipeline.types import ONE_CLASS, AskFor, RegionKind

KINDS: Mapping[RegionKind, Kind] = {"image": SEVERAL, "box": BOXES, "polygon": POLYGONS, "mask": MASKS}


def kind_of(asks: AskFor) -> Kind:
    """How Label Studio asks for regions."""
    return ONE if asks == ONE_CLASS else KINDS[asks.kind]


def kind_on(tag: str, *, can_be_none: bool) -> Kind | None:
    """The kind of a control on a page; None for one that is no kind of ours.

    Args:
        can_be_none: whether the page has the tick that stands for no region.
    """
    found = [kind for kind in (ONE, *KINDS.values()) if kind.tag == tag and (kind.nothing is not None) == can_be_none]
    return found[0] if found else None
