"""Arms of a replay: ways of asking that are compared with each other."""

from typing import NamedTuple

from pipeline.registries import look_up
from pipeline.selection.acquisition import ACQUISITIONS
from pipeline.selection.strategies.rows import STRATEGIES

CONTROL = "random"
"""The arm that others are compared with."""
DEFAULT_ACQUISITION = "margin"


class Arm(NamedTuple):
    """A way of asking: a query strategy, and the acquisition function whose scores it reads."""

    name: str
    strategy: str
    acquisition: str


def parse_arm(name: str) -> Arm:
    """Read the name of an arm: a strategy, an acquisition function (then its top k), or both as STRATEGY:ACQUISITION.

    >>> parse_arm("k_center"), parse_arm("entropy"), parse_arm("power:bald")[1:]
    (Arm(name='k_center', strategy='k_center', acquisition='margin'), \
Arm(name='entropy', strategy='top_k', acquisition='entropy'), ('power', 'bald'))
    """
    strategy, colon, acquisition = name.partition(":")
    if colon:
        look_up(STRATEGIES, strategy, "strategy")
        look_up(ACQUISITIONS, acquisition, "acquisition function")
        return Arm(name, strategy, acquisition)
    if name in ACQUISITIONS:
        return Arm(name, "top_k", name)
    look_up(dict.fromkeys((*STRATEGIES, *ACQUISITIONS)), name, "strategy or acquisition function")
    return Arm(name, name, DEFAULT_ACQUISITION)
