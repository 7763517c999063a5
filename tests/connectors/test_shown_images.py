"""What annotators see of a local image: the file where browsers show it, else a rendition."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from connectors.images import shown as shown_images
from connectors.images.reading import WHOLE
from connectors.images.shown import RENDITIONS, check_shown, file_to_show, link_to_show, size_shown
from pipeline.pool.reasons import PoolError

ROWS, COLUMNS = np.mgrid[:24, :36]
COLOURS = np.stack([COLUMNS * 7, ROWS * 10, 255 - COLUMNS * 7], axis=-1).astype(np.uint8)
RGB = Image.fromarray(COLOURS)


def deep_colours() -> bytes:
    """A PNG of 16 bits a colour, which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + (row.astype(">u2") * 257).astype(">u2").tobytes() for row in COLOURS)
    header = struct.pack(">IIBBBBB", 36, 24, 16, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return exif


@pytest.mark.parametrize(
    ("name", "mode", "options", "ending"),
    [
        ("a.jpg", "RGB", {}, ".jpg"),
        ("a.jpg", "L", {"progressive": True}, ".jpg"),
        ("a.jpg", "CMYK", {}, ".jpg"),
        ("a.jpg", "RGB", {"exif": turned()}, ".jpg"),
        ("a.png", "P", {}, ".png"),
        ("a.png", "1", {}, ".png"),
        ("a.png", "RGBA", {}, ".png"),
        ("a.gif", "P", {}, ".gif"),
        ("a.bmp", "RGB", {}, ".bmp"),
        ("a.webp", "RGB", {}, ".webp"),
        ("a.avif", "RGB", {}, ".avif"),
        ("a.dat", "RGB", {"format": "PNG"}, ".png"),
        ("a.tif", "RGB", {"format": "JPEG"}, ".jpg"),
    ],
)
def test_what_browsers_show_is_linked_under_the_ending_of_its_content(tmp_path, name, mode, options, ending):
    path = tmp_path / name
    RGB.convert(mode).save(path, **options)
    shown = link_to_show(path, "ab12", folder=tmp_path / "shown", reading=WHOLE)
    assert (shown, shown.readlink()) == (tmp_path / "shown" / f"ab12{ending}", path)
    assert file_to_show(path, "ab12", root=tmp_path, reading=WHOLE) == path


def unshown(tmp_path, name):
    path = tmp_path / name
    deep = COLOURS[..., 0].astype(np.uint16) * 257
    match name:
        case "deep.png":
            Image.fromarray(deep).save(path)
        case "colours.png":
            path.write_bytes(deep_colours())
        case "float.tif":
            Image.fromarray(deep.astype(np.float32)).save(path)
        case "pages.tif":
            RGB.save(path, save_all=True, append_images=[RGB.rotate(90)])
        case "turned.webp":
            RGB.save(path, exif=turned(), lossless=True)
        case "cmyk.tif":
            RGB.convert("CMYK").save(path)
        case _:
            RGB.save(path)
    return path


@pytest.mark.parametrize(
    "name",
    ["a.tif", "cmyk.tif", "pages.tif", "float.tif", "a.jp2", "a.ppm", "deep.png", "colours.png", "turned.webp"],
)
def test_what_browsers_do_not_show_gets_a_rendition_named_by_its_content(tmp_path, name):
    path = unshown(tmp_path, name)
    shown = link_to_show(path, "ab12", folder=tmp_path / "shown", reading=WHOLE)
    beside = file_to_show(path, "ab12", root=tmp_path, reading=WHOLE)
    assert beside == tmp_path / RENDITIONS / "ab12.shown.jpg"
    assert shown.read_bytes() == beside.read_bytes()
    assert check_shown(shown.read_bytes(), "image/jpeg") == ""
    with Image.open(shown) as picture:
        assert picture.size == ((24, 36) if name == "turned.webp" else (36, 24))
        assert np.ptp(np.asarray(picture.convert("L"))) > 100, "it is no black square"
    made = shown.stat().st_mtime_ns
    assert link_to_show(path, "ab12", folder=tmp_path / "shown", reading=WHOLE).stat().st_mtime_ns == made


def test_a_file_that_is_too_small_for_the_editor_gets_a_rendition_that_is_not(tmp_path):
    Image.new("RGB", (16, 16), "teal").save(tmp_path / "a.png")
    small = (tmp_path / "a.png").read_bytes()
    assert check_shown(small, "image/png") == "Label Studio shows none of 100 bytes or fewer"
    shown = file_to_show(tmp_path / "a.png", "i", root=tmp_path, reading=WHOLE)
    assert check_shown(shown.read_bytes(), "image/jpeg") == ""


def test_a_file_that_is_larger_than_worth_loading_is_made_smaller(tmp_path, monkeypatch):
    Image.new("RGB", (3000, 1500), "teal").save(tmp_path / "a.png")
    assert file_to_show(tmp_path / "a.png", "i", root=tmp_path, reading=WHOLE) == tmp_path / "a.png"
    monkeypatch.setattr(shown_images, "MOST_BYTES", 100)
    by_bytes = file_to_show(tmp_path / "a.png", "i", root=tmp_path, reading=WHOLE)
    monkeypatch.setattr(shown_images, "MOST_BYTES", 2**30)
    monkeypatch.setattr(shown_images, "MOST_PIXELS", 3000 * 1500 - 1)
    assert file_to_show(tmp_path / "a.png", "i", root=tmp_path, reading=WHOLE) == by_bytes
    with Image.open(by_bytes) as picture:
        assert picture.size == (2048, 1024)


def test_a_link_follows_a_pool_that_moved(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        RGB.save(tmp_path / name / "a.png")
    first = link_to_show(tmp_path / "old" / "a.png", "i", folder=tmp_path / "shown", reading=WHOLE)
    second = link_to_show(tmp_path / "new" / "a.png", "i", folder=tmp_path / "shown", reading=WHOLE)
    assert (second, second.readlink()) == (first, tmp_path / "new" / "a.png")
    assert [path.name for path in (tmp_path / "shown").iterdir()] == ["i.png"]


@pytest.mark.parametrize("item_id", ["../../up", "a/b", "..", "https://x/y?z"])
def test_an_id_leads_nowhere_else(tmp_path, item_id):
    RGB.save(tmp_path / "a.png")
    assert (
        link_to_show(tmp_path / "a.png", item_id, folder=tmp_path / "shown", reading=WHOLE).parent == tmp_path / "shown"
    )


def test_what_is_no_image_is_told(tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89PNG but not really")
    with pytest.raises(PoolError, match=r"a\.png: .*"):
        link_to_show(tmp_path / "a.png", "i", folder=tmp_path / "shown", reading=WHOLE)


@pytest.mark.parametrize(
    ("format_", "content_type", "problem"),
    [
        ("PNG", "image/png", ""),
        ("JPEG", "image/jpeg", ""),
        ("TIFF", "image/tiff", "browsers do not show TIFF"),
        ("PNG", "text/html", "it is of the type text/html, not an image"),
        ("PNG", "", "it is of the type that nobody names, not an image"),
    ],
)
def test_what_a_browser_was_given_is_judged(format_, content_type, problem):
    content = io.BytesIO()
    RGB.save(content, format_)
    assert check_shown(content.getvalue(), content_type) == problem
    assert check_shown(content.getvalue()[:60], "image/png") != ""


@pytest.mark.parametrize("content", [b"", b"no image", b"<svg/>"])
def test_what_is_no_image_is_told_whatever_type_it_is_said_to_have(content):
    assert "not an image" in check_shown(content, "image/png")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_the_size_that_browsers_show_is_that_of_the_upright_picture(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    RGB.save(tmp_path / name, exif=exif)
    shown = file_to_show(tmp_path / name, "i", root=tmp_path, reading=WHOLE)
    width, height = size_shown(str(shown))
    with Image.open(tmp_path / name) as image:
        assert (width, height) == ImageOps.exif_transpose(image).size


def test_a_file_that_is_no_image_has_no_size(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no image")
    with pytest.raises(PoolError):
        size_shown(str(tmp_path / "a.png"))
