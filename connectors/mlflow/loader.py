"""How MLflow loads a registered model: this file is kept beside the weights and imported where they are used.

There, only MLflow, torch, torchvision, numpy, pandas, Pillow, `pipeline` and what the network itself is from can be
imported.
"""

import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from connectors.images.pixels import stream_images
from connectors.images.reading import WHOLE, Range, Reading
from pipeline.members.predict import predict_members
from pipeline.networks.build import build_model, with_new_head
from pipeline.networks.classifier import Classifier
from pipeline.networks.weights import load_trunk, load_weights
from pipeline.pool.reasons import PoolError
from pipeline.tasks import TASKS, classification
from pipeline.tasks.task_type import TaskType, no_outputs, outputs_of

TRUNK = "trunk.pt"
"""The file of a trunk that all members share; their own files are without it."""
CHUNK = 256
"""Images that pass through the networks at a time."""
NOT_RENAMED: Mapping[str, str] = MappingProxyType({})
CHANNELS = (1, 3, 4)
"""How many an array may have: grey, RGB, RGBA."""


@dataclass(frozen=True)
class Ensemble:
    """The members of one round's model, which know what they decide and what an image must look like.

    Attributes:
        classes: in the order of the networks' outputs.
        image_size: side in pixels of the squares that the networks take.
        channels: 1 for grey, 3 for RGB.
        reading: what is black and white in images of deep pixels.
        task: what they decide.
    """

    members: Sequence[Classifier]
    classes: tuple[str, ...]
    image_size: int
    channels: int
    reading: Reading = WHOLE
    task: TaskType = classification

    def predict(self, images: object) -> pd.DataFrame:
        """Predict what images show; preprocessing is the model's own.

        Args:
            images: one, or a list, a column or a table of one column of them; each a path, the bytes of a file, a
                picture of Pillow, or an array `(H, W)`, `(H, W, channels)` or `(channels, H, W)` of any size. Arrays
                are uint8, uint16, or floats in [0, 1]. An array of four axes is a batch.

        Returns:
            A row for each image: of one class for each `class`, its `probability`, and the probability of each class
            as `p_` and its name; of several `labels` with `|` between them, `|` alone where there is none, and
            likewise the probabilities.

        Raises:
            ValueError: for what is no image, with its place in the list.
        """
        tables = [self.table(chunk) for chunk in self._squares(images)]
        return pd.concat(tables, ignore_index=True) if tables else self.table(self._no_squares)

    def table(self, squares: Tensor, renamed: Mapping[str, str] = NOT_RENAMED) -> pd.DataFrame:
        """What `predict` gives, for uint8 `(N, channels, image_size, image_size)`.

        Args:
            renamed: what a class was called -> what it is called now.
        """
        probs, places = self.probabilities(squares)
        probs, classes = self.task.merged(probs, self.classes, renamed)
        return pd.DataFrame(self.task.in_columns(probs, classes, places))

    def probabilities(self, squares: Tensor) -> tuple[Tensor, Tensor | None]:
        """The members' mean `(N, U, C)`, and what the task needs to know of places."""
        if not len(squares):
            nothing = no_outputs(self.task, 0, len(self.classes))
            return self.task.logits(nothing), self.task.places(nothing)
        decided = predict_members(self.members, squares, task=self.task, seed=0)
        return decided.decisions.mean(dim=2), decided.places

    @property
    def _no_squares(self) -> Tensor:
        return torch.empty((0, self.channels, self.image_size, self.image_size), dtype=torch.uint8)

    def _squares(self, images: object) -> Iterator[Tensor]:
        """Images as the networks take them, `(chunk, channels, image_size, image_size)`."""
        form = (self.channels, self.image_size, self.image_size)
        if (
            isinstance(images, np.ndarray)
            and images.ndim == 4
            and images.shape[1:] == form
            and images.dtype == np.uint8
        ):
            yield from torch.from_numpy(np.array(images)).split(CHUNK)
            return
        one_by_one = _one_by_one(images)
        for start in range(0, len(one_by_one), CHUNK):
            chunk = enumerate(one_by_one[start : start + CHUNK], start)
            with tempfile.TemporaryDirectory() as folder:
                files = [_as_file(image, Path(folder) / str(place), place) for place, image in chunk]
                try:
                    yield from stream_images(
                        files, size=self.image_size, channels=self.channels, chunk=CHUNK, reading=self.reading
                    )
                except PoolError as exc:
                    raise ValueError(f"image {str(exc).removeprefix(f'{folder}/')}") from exc


def _one_by_one(images: object) -> Sequence[object]:
    """The images that were given, whatever they were given in."""
    if isinstance(images, Tensor):
        images = images.numpy(force=True)
    if isinstance(images, pd.DataFrame):
        if images.shape[1] != 1:
            raise ValueError(f"a table of images has one column, this one has {', '.join(map(str, images.columns))}")
        return list(images.iloc[:, 0])
    if isinstance(images, np.ndarray) and images.dtype != object and images.dtype.kind not in "US":
        is_batch = images.ndim == 4 or (images.ndim == 3 and not {images.shape[0], images.shape[2]} & set(CHANNELS))
        return list(images) if is_batch else [images]
    if isinstance(images, (str, Path, bytes, bytearray, memoryview, Image.Image)):
        return [images]
    if isinstance(images, (list, tuple, pd.Series, np.ndarray)):
        return list(images)
    raise ValueError(
        f"wanted images: paths, bytes, pictures, arrays, or a list or a column of them; got {type(images)}"
    )


def _as_file(image: object, path: Path, place: int) -> str:
    """The path of an image; one that is in memory is written to `path`, so that all are read the same way."""
    if isinstance(image, (str, Path)):
        return str(image)
    if isinstance(image, (bytes, bytearray, memoryview)):
        path.write_bytes(image)
        return str(path)
    if isinstance(image, Tensor):
        image = image.numpy(force=True)
    if isinstance(image, np.ndarray):
        image = _as_picture(image, place)
    if not isinstance(image, Image.Image):
        raise ValueError(f"image {place}: wanted a path, bytes, a picture or an array, got {type(image)}")
    content = io.BytesIO()
    upright = ImageOps.exif_transpose(image)
    upright.save(content, format="TIFF" if upright.mode in ("F", "I", "CMYK", "LAB", "YCbCr", "HSV") else "PNG")
    path.write_bytes(content.getvalue())
    return str(path)


def _as_picture(values: NDArray[Any], place: int) -> Image.Image:
    if values.ndim == 3 and values.shape[2] not in CHANNELS and values.shape[0] in CHANNELS:
        values = values.transpose(1, 2, 0)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[:, :, 0]
    if values.dtype.kind == "f" and values.size and values.min() >= 0 and values.max() <= 1:
        values = np.rint(255 * values).astype(np.uint8)
    is_picture = values.ndim == 2 or (values.ndim == 3 and values.shape[2] in CHANNELS)
    if not is_picture or not values.size or values.dtype not in (np.uint8, np.uint16):
        raise ValueError(
            f"image {place}: wanted an array (H, W) or (H, W, channels) of uint8, uint16, or floats in [0, 1], got "
            f"{values.shape} of {values.dtype}"
        )
    return Image.fromarray(values)


def load_members(told: Mapping[str, Any], weights: Sequence[Path], *, trunk: Path | None) -> list[Classifier]:
    """Build the network once for each file of weights; with a `trunk` they share it. What was frozen is frozen again.

    Args:
        told: name, n_classes, image_size, channels, dropout and head, as `build_model` takes them, and the phase in
            which they were trained: what did not drop anything then does not now.
    """

    def build() -> Classifier:
        names = ("n_classes", "image_size", "channels", "dropout")
        how = {name: told[name] for name in names} | {"head": told.get("head", "linear")}  # which it was before
        outputs = outputs_of(TASKS[told.get("task", "classification")], told["n_classes"])
        return build_model(told["name"], **how, outputs=outputs, weights=None, seed=0)

    if trunk is None:
        members = [build() for _ in weights]
    else:
        body = build()
        load_trunk(body, trunk)
        members = [with_new_head(body, seed=0) for _ in weights]
    for member, file in zip(members, weights, strict=True):
        member.train_only(told.get("phase", "all" if trunk is None else "head"))
        load_weights(member, file)
        member.eval()
    return members


def load_ensemble(folder: Path, *, device: str) -> Ensemble:
    """Build the network of `description.json`, once for each `member-*.pt`, and give it that file's weights."""
    told = json.loads((folder / "description.json").read_text(encoding="utf-8"))
    trunk = folder / TRUNK
    weights = sorted(folder.glob("member-*.pt"))
    return make_ensemble(told, weights, trunk=trunk if trunk.exists() else None, device=torch.device(device))


def make_ensemble(
    told: Mapping[str, Any], weights: Sequence[Path], *, trunk: Path | None, device: torch.device
) -> Ensemble:
    """Build the network that `told` describes once for each file of weights.

    Args:
        trunk: file of the trunk that they share; None where each has its own.
    """
    members = load_members(told, weights, trunk=trunk)
    return Ensemble(
        [member.to(device) for member in members],
        classes=tuple(told["classes"]),
        image_size=told["image_size"],
        channels=told["channels"],
        reading=Reading(tuple(Range(**one) for one in told.get("pixel_ranges", ()))),
        task=TASKS[told.get("task", "classification")],
    )


def _load_pyfunc(path: str, model_config: Mapping[str, str]) -> Ensemble:
    """Load the model for `mlflow.pyfunc.load_model`, whose `model_config={"device": "cuda"}` can move it."""
    return load_ensemble(Path(path), device=model_config["device"])
