"""The size of an image by its header is the one that decoding finds."""

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from connectors.images.decode import without_pillow_warnings
from connectors.images.examine import examine, upright_size
from pipeline.pool.reasons import PoolError

PICTURE = Image.fromarray(np.arange(24 * 36 * 3, dtype=np.uint8).reshape(24, 36, 3))


def exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return exif


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "avif"])
def test_size_by_the_header_is_that_of_the_decoded_image(tmp_path, suffix, orientation):
    path = tmp_path / f"a.{suffix}"
    PICTURE.save(path, exif=exif(orientation))
    with without_pillow_warnings(), path.open("rb") as file:
        seen = examine(file)
        assert upright_size(str(path)) == (seen.width, seen.height)
    assert upright_size(str(path)) == ((24, 36) if orientation in (5, 6, 7, 8) else (36, 24))


def test_a_png_turned_behind_its_pixels_is_upright_as_well(tmp_path):
    path = tmp_path / "a.png"
    PICTURE.save(path)
    plain = path.read_bytes()
    PICTURE.save(path, exif=exif(6))
    turned = path.read_bytes()
    begin = turned.index(b"eXIf") - 4
    chunk = turned[begin : begin + 12 + int.from_bytes(turned[begin : begin + 4], "big")]
    path.write_bytes(plain[:-12] + chunk + plain[-12:])
    assert upright_size(str(path)) == (24, 36)


def test_pixels_of_a_plain_png_are_not_decoded(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    PICTURE.save(path)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", lambda _: pytest.fail("decoded"))
    assert upright_size(str(path)) == (36, 24)


def test_what_is_no_image_has_no_size(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(PoolError, match=r"a\.png: not an image"):
        upright_size(str(tmp_path / "a.png"))
