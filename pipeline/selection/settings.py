"""How a batch is chosen."""

from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator

from pipeline.registries import look_up
from pipeline.selection.strategies.rows import STRATEGIES
from pipeline.settings import MOST, Settings, Size

NEEDS_MEMBERS = {
    "bald": True,
    "entropy": False,
    "least_confidence": False,
    "margin": False,
    "mean_std": True,
    "variance": True,
    "variation_ratio": True,
}
"""Acquisition functions, and whether each measures disagreement, which is zero everywhere with a single member."""
BALANCING = (
    "ask for as many of each guessed class as makes labels even; where an image has several labels, for each class in "
    "turn, that of the fewest labels first"
)
NEEDS_BACKGROUND = {"foreground": True, "max": False, "mean": False, "sum": False, "top_tenth": False}
"""Reductions, and whether each reads the first answer of a decision as nothing being there."""


def _check_acquisition(value: str) -> str:
    look_up(NEEDS_MEMBERS, value, "acquisition function")
    return value


def _check_reduction(value: str) -> str:
    look_up(NEEDS_BACKGROUND, value, "reduction")
    return value


def _check_strategy(value: str) -> str:
    look_up(STRATEGIES, value, "strategy")
    return value


class SelectionSettings(Settings):
    """What a batch is chosen by; the random slice is off unless it is asked for."""

    query_size: Size = Field(100, description="labels that each later round asks for")
    random_slice: float = Field(0.0, ge=0, le=1, description="share of each batch that is drawn at random")
    acquisition: Annotated[str, AfterValidator(_check_acquisition)] = Field(
        "margin", description="acquisition function: the score of an image"
    )
    reduction: Annotated[str, AfterValidator(_check_reduction)] | None = Field(
        None, description="how the scores of an image's decisions become one; by default as suits the task"
    )
    strategy: Annotated[str, AfterValidator(_check_strategy)] = Field(
        "auto", description="query strategy: how a batch is chosen by scores and places"
    )
    strategy_options: dict[str, Any] = Field({}, description="keywords of the strategy")
    sub_pool: Size | None = Field(None, description="the strategy sees a random part of this many candidates")
    prefilter: float | None = Field(None, ge=1, le=MOST, description="and of these the best by score, times query_size")
    balance_classes: bool = Field(False, description=BALANCING)

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        STRATEGIES[self.strategy].check_options(self.strategy_options)
        if self.balance_classes and "max_class_share" in self.strategy_options:
            raise ValueError("balance_classes decides how many of each class are asked for: take max_class_share away")
        return self

    def of_size(self, query_size: int) -> "SelectionSettings":
        """The same for another number of images, and without what else a campaign's settings hold."""
        values = {name: getattr(self, name) for name in SelectionSettings.model_fields}
        return SelectionSettings(**{**values, "query_size": query_size})
