"""What image files hold besides pixels: scans, metadata, and what a TIFF says of its numbers."""

import io
import mmap
import re
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from PIL import TiffImagePlugin

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
START_OF_SCAN = b"\xff\xda"
NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""What ends the compressed data of a scan."""
WITH_METADATA = frozenset({b"eXIf", b"tEXt", b"zTXt", b"iTXt"})
"""Chunks of a PNG that may say which side is up."""
BLOCK = 2**20
NUMBERS = {1: "unsigned integers", 2: "signed integers", 3: "floats", 5: "complex integers", 6: "complex floats"}


def count_scans(file: BinaryIO, *, limit: int) -> int:
    """Scans of a JPEG, or some number above `limit` where there are more; the file stays where it is."""
    position = file.tell()
    try:
        file.seek(0)
        n_at_most, last = 0, b""
        while n_at_most <= limit and (block := file.read(BLOCK)):
            n_at_most += (last + block).count(START_OF_SCAN)
            last = block[-1:] if block[-1:] == b"\xff" else b""
        if n_at_most <= limit:
            return n_at_most
        return sum(1 for _ in zip(range(limit + 1), _scans(_content(file)), strict=False))
    finally:
        file.seek(position)


def _scans(content: bytes | mmap.mmap) -> Iterator[int]:
    """Positions of the scans of the first image: thumbnails and films that cameras hide in a JPEG do not count."""
    position = 2
    while (marker := NEXT_MARKER.search(content, position)) is not None:
        position, kind = marker.end(), content[marker.end() - 1]
        if kind == 0xD9:
            return
        if kind in (0x01, 0xD8):
            continue
        if kind == START_OF_SCAN[1]:
            yield position
        position += int.from_bytes(content[position : position + 2], "big")


def _content(file: BinaryIO) -> bytes | mmap.mmap:
    try:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError):
        file.seek(0)
        return file.read()


def without_metadata(file: BinaryIO) -> BinaryIO | None:
    """A copy of a PNG or JPEG with what its pixels need and no more; None for other files."""
    file.seek(0)
    magic = file.read(len(PNG_MAGIC))
    if magic == PNG_MAGIC:
        return io.BytesIO(PNG_MAGIC + b"".join(_png_chunks(file)))
    if magic.startswith(JPEG_MAGIC):
        file.seek(0)
        return io.BytesIO(b"".join(_jpeg_segments(file.read())))
    return None


def may_be_turned(file: BinaryIO) -> bool:
    """Whether a PNG has chunks, anywhere, that may hold EXIF or XMP; the file stays where it is."""
    position = file.tell()
    file.seek(len(PNG_MAGIC))
    kinds = []
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        kinds.append(kind)
        file.seek(length + 4, io.SEEK_CUR)
    file.seek(position)
    return not WITH_METADATA.isdisjoint(kinds)


def _png_chunks(file: BinaryIO) -> Iterator[bytes]:
    """Critical chunks as they are, and of the others what is needed to show the image, where it is whole."""
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        is_ancillary = bool(kind[0] & 0x20)
        if is_ancillary and kind not in (b"tRNS", b"eXIf"):
            file.seek(length + 4, io.SEEK_CUR)
            continue
        content = file.read(length + 4)
        checksum = struct.pack(">I", zlib.crc32(kind + content[:-4]))
        if not is_ancillary or content[length:] == checksum:
            yield head + content
        if kind == b"IEND":
            return
    yield struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))


def _jpeg_segments(content: bytes) -> Iterator[bytes]:
    """All but comments and what applications wrote: Adobe says what the colours are, EXIF which side is up."""
    position = 2
    yield content[:2]
    while (marker := NEXT_MARKER.search(content, position)) is not None:
        kind, start = content[marker.end() - 1], marker.end()
        if kind == START_OF_SCAN[1]:
            yield content[marker.start() :]
            return
        position = start + int.from_bytes(content[start : start + 2], "big")
        is_metadata = 0xE0 <= kind <= 0xEF or kind == 0xFE
        if not is_metadata or _says_how_to_show(content[start:position]):
            yield content[marker.start() : position]


def _says_how_to_show(segment: bytes) -> bool:
    return segment[2:7] == b"Exif\0" or (segment[2:7] == b"Adobe" and len(segment) >= 14)


def describe_tiff(file: BinaryIO) -> str | None:
    """The numbers of a TIFF's first page, for people to read, as in "64-bit floats"; None where it is no TIFF."""
    try:
        file.seek(0)
        head = file.read(8)
        if head[:4] not in TiffImagePlugin.PREFIXES:
            return None
        tags = TiffImagePlugin.ImageFileDirectory_v2(head + (file.read(8) if head[2] == 43 else b""))
        file.seek(tags.next)
        tags.load(file)
        bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
        numbers = NUMBERS.get(tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0], "numbers of an unknown form")
        n_samples = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, len(bits))
        photometric = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION, "none")
        compression = tags.get(TiffImagePlugin.COMPRESSION, 1)
    except Exception:  # of any bytes
        return None
    return (
        f"{n_samples} x {bits[0]}-bit {numbers}, photometric {photometric}, "
        f"compression {TiffImagePlugin.COMPRESSION_INFO.get(compression, compression)}"
    )
