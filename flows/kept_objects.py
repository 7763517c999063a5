"""Images of object stores, kept on the disk between rounds and campaigns: where they are and how many."""

from functools import lru_cache
from pathlib import Path

from connectors.objects.cache import ImageCache
from flows.home import home

GIGABYTE = 1e9


def objects_folder() -> Path:
    """Where the images are: beside the features of frozen networks, for all campaigns that run from here."""
    return home() / "objects"


def image_cache(max_gb: float) -> ImageCache | None:
    """What keeps images within a bound; None for a bound of 0."""
    return _image_cache(objects_folder(), int(max_gb * GIGABYTE)) if max_gb else None


@lru_cache(maxsize=8)
def _image_cache(folder: Path, max_bytes: int) -> ImageCache:
    """One for a process, which remembers how much it has written."""
    return ImageCache(folder, max_bytes)
