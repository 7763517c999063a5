"""Refuses a wheel: see docs/decisions/0018-distribution.md. Only builds of the package import this."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

WHY = (
    "labelcycle is an application that runs from its checkout, and there is no wheel of it: its top-level packages "
    "(flows, pipeline, connectors, deploy) would collide with others. Clone the repository and run `make install`"
)


class NoWheel(BuildHookInterface[Any]):  # type: ignore[misc]
    """Lets the editable install of `make install` pass and stops every other wheel."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Raise RuntimeError unless the checkout itself is installed."""
        if version != "editable":
            raise RuntimeError(WHY)
