"""What a campaign's folder knows of its network, so that a run that only looks for labels does not load torch."""

from pathlib import Path
from typing import Any

from connectors.store import StoreError
from flows.artefacts import KNOWN_NETWORK
from flows.folder import Campaign
from flows.records import KnownNetwork
from pipeline.learning.settings import ModelSettings
from pipeline.networks.sources import is_factory


def known_network(base: Path, values: dict[str, Any]) -> str | None:
    """The network's name that an earlier run checked; values without an image size get the size that was looked up.

    Args:
        base: what a relative folder is relative to.
        values: of the campaign file.
    """
    folder = Campaign(base / Path(str(values.get("folder"))).expanduser())
    try:
        known = folder.get(KNOWN_NETWORK)
    except (OSError, StoreError):  # of a folder that is not ours, or cannot be read: whoever needs it tells
        return None
    if known is None:
        return None
    model = values.setdefault("model", {})
    if not isinstance(model, dict):
        return None
    name = model.get("name", ModelSettings.model_fields["name"].default)
    if known.image_size is not None and (name, model.get("weights")) == (known.name, known.weights):
        model.setdefault("image_size", known.image_size)
    return known.name


def remember_network(folder: Campaign, model: ModelSettings) -> None:
    """Write down that the network's name is right, and the size of its images where nobody gave one."""
    known = folder.get(KNOWN_NETWORK)
    is_given = "image_size" in model.model_fields_set or is_factory(model.name)
    found = KnownNetwork(model.name, model.weights, None if is_given else model.image_size)
    is_same = known is not None and (known.name, known.weights) == (found.name, found.weights)
    if not is_same or (known is not None and known.image_size is None and found.image_size is not None):
        folder.write(KNOWN_NETWORK, found)
