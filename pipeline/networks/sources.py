"""Where a network comes from, by its name alone; no library of networks is loaded for that."""

import re

TORCHVISION = "torchvision:"
TIMM = "timm:"
FACTORY = "factory"
"""The weights that the network of one's own factory comes with."""
USUAL_IMAGE_SIZE = 224
"""Side in pixels of the images that weights were trained at, where nothing says otherwise."""
FACTORY_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


def is_own(name: str) -> bool:
    """Whether the network is one of labelcycle's own."""
    return ":" not in name


def is_factory(name: str) -> bool:
    """Whether the name is that of code of somebody's own, which is run when it is imported."""
    return FACTORY_NAME.fullmatch(name) is not None and not name.startswith((TORCHVISION, TIMM))
