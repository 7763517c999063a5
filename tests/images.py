"""How tests make and read an image and index a pool, in few words."""

import inspect
import io

import numpy as np
from PIL import Image

from connectors.image_folder.index import index_pool
from connectors.image_folder.source import PoolSource
from connectors.images.pixels import load_images

OF_SOURCE = frozenset(inspect.signature(PoolSource).parameters)


def index_images(path, known=None, *, audit_size=0, seed=0, classes=(), **options):
    """The pool table of a folder or manifest; options of the source and of `index_pool`."""
    of_source = {name: options.pop(name) for name in OF_SOURCE & options.keys()}
    return index_pool(PoolSource(path, classes, **of_source), known, audit_size=audit_size, seed=seed, **options)


def load_image(uri, **how):
    """One image as `load_images` gives it."""
    return load_images([uri], **how)[0]


def png(seed: int) -> bytes:
    """A small image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
