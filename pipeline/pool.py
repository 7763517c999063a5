"""The pool table: which images there are, found by their content, and how their pixels are read.

One row is one image (an item) or one file that holds no usable image:

| column | |
|---|---|
| `item_id` | hash of the file's bytes; missing where the file holds no image that can be decoded |
| `uri` | absolute path; a file that changed has a row for each content it had |
| `width`, `height` | pixels, turned upright as EXIF says; missing without an item |
| `split` | "pool" or "audit" |
| `set_aside_reason` | why the row is not used; missing where it is |
| `size_bytes`, `modified_ns` | of the file when it was read; missing where it was not |
| `label` | from a manifest; missing otherwise and for the audit set |
"""

import hashlib
import os
import re
import stat
import warnings
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from pipeline.randomness import seeded_generator

COLUMNS = {
    "item_id": "str",
    "uri": "str",
    "width": "Int64",
    "height": "Int64",
    "split": "str",
    "set_aside_reason": "str",
    "size_bytes": "Int64",
    "modified_ns": "Int64",
    "label": "str",
}
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "AVIF", "JPEG2000")
IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"}
    | {".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
MANIFEST_SUFFIXES = frozenset({".csv", ".parquet"})
MAX_PIXELS = 1024**3 // 4 // 3
"""Above this Pillow suspects a decompression bomb."""

UNREAD = "cannot be read"
CHANGED = "file changed since it was indexed"
HIDDEN_NAMES = frozenset({"thumbs.db", "desktop.ini"})
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_Box = tuple[float, float, float, float]
T = TypeVar("T")
R = TypeVar("R")


class PoolError(ValueError):
    """The pool cannot be indexed as asked, or an image of it cannot be read."""


class _File(NamedTuple):
    """A path and what the disk says of it; size and time are None where it is not to be read."""

    uri: str
    size_bytes: int | None
    modified_ns: int | None
    set_aside_reason: str | None


class _Content(NamedTuple):
    """What a file holds: an image with its id and upright size, or the reason why not."""

    item_id: str | None
    width: int | None
    height: int | None
    set_aside_reason: str | None


def index_pool(
    source: Path,
    known: pd.DataFrame | None,
    *,
    audit_size: int,
    seed: int,
    classes: Sequence[str],
    progress: Callable[[int, int], None] | None = None,
) -> pd.DataFrame:
    """Pool table of all images of `source`, with those of an earlier table.

    A broken file gets a row with the reason and stops nothing. Of several files with the same content the
    first by path stands for all. Folders behind symbolic links are entered, each once; hidden files are
    passed over.

    With an earlier table, a file of unchanged size and time is not read again, a moved file keeps its
    `item_id` and its split, and no item ever leaves the table: what vanished or changed is set aside, and
    used again once it is back. Items of the earlier table that lie outside of `source` stay as they are.

    The audit set is drawn from the usable images without a label when the first table is made, by item id,
    whatever the order and the names of the files. It stays fixed: images found later are "pool", and a label
    that a later manifest gives to an image of the audit set is ignored, so that it is never trained on.

    Args:
        source: folder, or manifest (.csv, .parquet) with a column `uri`, relative to the manifest's folder,
            and optionally `label`. A labelled image is never in the audit set; one content under two labels
            is set aside.
        known: table of an earlier call.
        audit_size: images of the audit set.
        classes: labels that a manifest may give.
        progress: called with the files done and all files.

    Returns:
        The columns of the module's table, sorted by uri.

    Raises:
        PoolError: `source` is missing, empty, badly formed or without a usable image, or `audit_size` leaves
            nothing for the pool.
    """
    earlier = _as_table(pd.DataFrame(known))
    listed = _list_source(source, classes)
    seen = _read_contents(_with_items_elsewhere(listed, earlier), earlier, progress)
    table = _join(seen, earlier)
    if usable(table).empty:
        raise PoolError(f"{source} has no usable image: {_in_words(set_aside_counts(table))}")
    if earlier["item_id"].notna().any():
        return table
    return _draw_audit(table, audit_size, seed)


def usable(pool: pd.DataFrame) -> pd.DataFrame:
    """Rows of the pool table that are not set aside; `item_id` is distinct among them."""
    return pool[pool["set_aside_reason"].isna()]


def set_aside_counts(pool: pd.DataFrame) -> dict[str, int]:
    """How many rows are set aside for each kind of reason, most frequent first."""
    kinds = pool["set_aside_reason"].dropna().str.split(":", n=1).str[0]
    return {str(kind): int(n) for kind, n in kinds.value_counts().items()}


def load_image(uri: str, *, size: int, channels: int) -> Tensor:
    """One image as a model takes it: see `load_images`.

    Returns:
        uint8 `(channels, size, size)`.
    """
    return load_images([uri], size=size, channels=channels)[0]


def load_images(uris: Sequence[str], *, size: int, channels: int) -> Tensor:
    """Images as a model takes them, decoded in threads.

    Images are turned upright as EXIF says, put on white where they are transparent, and resized with
    antialiasing to a square: nothing is cut off, and the aspect ratio is not kept. 16 bits are scaled to 8.
    32-bit integers and floats have no known range: each image is stretched from its own smallest to its own
    largest value. Of an animation the first frame is read.

    Args:
        uris: `(n,)` paths.
        channels: 1 for grey, 3 for RGB.

    Returns:
        uint8 `(n, channels, size, size)`.

    Raises:
        PoolError: an image cannot be read; the message begins with its uri.
    """
    chunks = list(stream_images(uris, size=size, channels=channels, chunk=max(1, len(uris))))
    return chunks[0] if chunks else torch.empty((0, channels, size, size), dtype=torch.uint8)


def stream_images(uris: Sequence[str], *, size: int, channels: int, chunk: int) -> Generator[Tensor, None, None]:
    """Images as `load_images` gives them, in chunks; the next chunk is decoded while the caller works on this one.

    Threads of the caller's process decode. They end with the iterator: when it is exhausted or closed, or when it
    raises.

    Args:
        uris: `(n,)` paths.
        channels: 1 for grey, 3 for RGB.
        chunk: images in each chunk; the last may have fewer. Two chunks are in memory besides the caller's own.

    Yields:
        uint8 `(chunk, channels, size, size)`, in the order of `uris`.

    Raises:
        PoolError: an image cannot be read; the message begins with its uri. It comes in place of its chunk.
    """
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    ahead: deque[_Decoding] = deque()
    # The filters of warnings belong to the whole process: they are set here, by the caller's thread alone.
    with _without_pillow_warnings(), ThreadPoolExecutor() as threads:
        try:
            for start in range(0, len(uris), chunk):
                ahead.append(_start_decoding(threads, uris[start : start + chunk], size, channels))
                if len(ahead) > 1:
                    yield ahead.popleft().wait()
            if ahead:
                yield ahead.popleft().wait()
        finally:
            threads.shutdown(wait=False, cancel_futures=True)


# Listing: which files there are.


def _list_source(source: Path, classes: Sequence[str]) -> pd.DataFrame:
    """Files of a folder or manifest: `uri`, `size_bytes`, `modified_ns`, `set_aside_reason`, `label`."""
    if source.is_dir():
        files = _frame(_walk(source), _File).assign(label=None)
    elif source.suffix.lower() not in MANIFEST_SUFFIXES:
        missing = "" if source.exists() else ", which does not exist"
        raise PoolError(f"wanted a folder of images or a manifest (.csv, .parquet), got {source}{missing}")
    else:
        rows = _read_manifest(source, classes)
        files = _frame(_map_in_threads(_stat, rows["uri"].tolist()), _File).assign(label=rows["label"].to_numpy())
    if files.empty:
        raise PoolError(f"{source} is empty: wanted at least one image")
    return _typed(files)


def _walk(folder: Path) -> Iterator[_File]:
    """All files under a folder; real folders come before linked ones, and each is entered once."""
    real, linked, entered = deque([os.path.normpath(folder.absolute())]), deque[str](), set[tuple[int, int]]()
    while real or linked:
        here = real.popleft() if real else linked.popleft()
        try:
            status = Path(here).stat()
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            entries = sorted(os.scandir(here), key=lambda entry: entry.name)
        except OSError as exc:
            yield _File(_printable(here), None, None, _reason(exc))
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name.lower() in HIDDEN_NAMES:
                continue
            if _is_folder(entry):
                (linked if entry.is_symlink() else real).append(entry.path)
            else:
                yield _check_suffix(_stat(entry.path))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a loop; `_stat` gives the reason
        return False


def _stat(path: str) -> _File:
    """What the disk says of a path."""
    try:
        path.encode()
        status = Path(path).stat()
    except UnicodeEncodeError:
        return _File(_printable(path), None, None, f"{UNREAD}: the file name is not UTF-8")
    except (OSError, ValueError) as exc:
        return _File(path, None, None, _reason(exc))
    if not stat.S_ISREG(status.st_mode):
        return _File(path, None, None, "not an image: not a regular file")
    return _File(path, status.st_size, status.st_mtime_ns, None)


def _check_suffix(file: _File) -> _File:
    suffix = Path(file.uri).suffix.lower()
    if suffix in IMAGE_SUFFIXES or file.set_aside_reason is not None:
        return file
    return _File(file.uri, None, None, f"not an image: {f'suffix {suffix}' if suffix else 'no suffix'}")


def _printable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _read_manifest(path: Path, classes: Sequence[str]) -> pd.DataFrame:
    """Distinct `uri` (absolute) and `label` of a manifest, checked."""
    rows = _read_rows(path)
    if "uri" not in rows:
        raise PoolError(f"{path} needs a column uri, has {', '.join(map(str, rows.columns)) or 'no columns'}")
    rows = rows.reindex(columns=["uri", "label"]).reset_index(drop=True).astype("str").replace("", None)
    _refuse(path, rows, rows["uri"].isna(), "has no uri")
    wrong = rows["label"].notna() & ~rows["label"].isin(list(classes))
    _refuse(path, rows, wrong, f"has a label that is not one of the classes {', '.join(classes)}")
    folder = path.parent.absolute()
    rows["uri"] = [os.path.normpath(folder / uri) for uri in rows["uri"]]
    rows = rows.sort_values("label", kind="stable").drop_duplicates()
    rows = rows[rows["label"].notna() | ~rows["uri"].duplicated()].sort_index()
    _refuse(path, rows, rows["uri"].duplicated(), "gives a second label to an image")
    return rows


def _read_rows(path: Path) -> pd.DataFrame:
    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        # A class may be called "NA" or "1": only an empty field is missing, and nothing is a number.
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (OSError, ValueError) as exc:
        raise PoolError(f"cannot read the manifest {path}: {exc}") from exc


def _refuse(path: Path, rows: pd.DataFrame, wrong: "pd.Series[bool]", what: str) -> None:
    """Raise with the first wrong row, counted from 1 below the header."""
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        named = ", ".join(f"{name} {value!r}" for name, value in rows.iloc[row].dropna().items())
        raise PoolError(f"{path}: row {int(rows.index[row]) + 1} ({named}) {what}")


def _with_items_elsewhere(listed: pd.DataFrame, earlier: pd.DataFrame) -> pd.DataFrame:
    """The listed files and, not `listed`, where items of the earlier table were found last."""
    homes = earlier.loc[earlier["item_id"].notna(), "uri"].drop_duplicates()
    # An item stays one whatever its suffix: a manifest may have named it.
    listed = listed[listed["modified_ns"].notna() | ~listed["uri"].isin(homes)]
    elsewhere = _map_in_threads(_stat, homes[~homes.isin(listed["uri"])].tolist())
    others = _typed(_frame(elsewhere, _File).assign(label=None))
    files = pd.concat([listed, others], ignore_index=True)
    return files.assign(listed=files.index < len(listed))


# Reading: what the files hold.


def _read_contents(
    files: pd.DataFrame, earlier: pd.DataFrame, progress: Callable[[int, int], None] | None
) -> pd.DataFrame:
    """`files` with `item_id`, `width`, `height`, reason; read only what the earlier table does not know."""
    unchanged = ["uri", "size_bytes", "modified_ns"]
    remembered = earlier.dropna(subset=["modified_ns"]).drop_duplicates(unchanged)
    remembered = remembered[[*unchanged, *_Content._fields]]
    seen = files.merge(remembered, on=unchanged, how="left", suffixes=("", "_earlier"))
    seen["set_aside_reason"] = seen.pop("set_aside_reason_earlier").fillna(seen["set_aside_reason"])
    unread = seen["item_id"].isna() & seen["set_aside_reason"].isna()
    n_before = len(seen) - int(unread.sum())

    def report(n_read: int) -> None:
        if progress is not None:
            progress(n_before + n_read, len(seen))

    items = earlier.dropna(subset=["item_id"]).set_index("item_id")
    ids = frozenset(items.index)
    report(0)
    with _without_pillow_warnings():
        contents = _map_in_threads(lambda uri: _examine(uri, ids), seen.loc[unread, "uri"].tolist(), report)
    read = _frame(contents, _Content).set_index(seen.index[unread])
    for name in _Content._fields:
        seen[name] = seen[name].fillna(read[name])
    for name in ("width", "height"):
        seen[name] = seen[name].fillna(seen["item_id"].map(items[name]))
    not_read = seen["set_aside_reason"].str.startswith(UNREAD, na=False)
    seen.loc[not_read, ["size_bytes", "modified_ns"]] = pd.NA
    return seen


def _examine(uri: str, known_ids: Collection[str]) -> _Content:
    """Hash and decode a file; the content of a known item is not decoded again."""
    try:
        with Path(uri).open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return _Content(None, None, None, "empty: the file has no content")
            item_id = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
            if item_id in known_ids:
                return _Content(item_id, None, None, None)
            image = _open(file)
            width, height = image.size
            orientation, _ = _decode(image, at_least=1)
            _to_eight_bits(image.crop((0, 0, 1, 1)), channels=1)
            return _Content(item_id, *((height, width) if orientation >= 5 else (width, height)), None)
    except Exception as exc:  # a decoder raises anything when it is given any bytes
        return _Content(None, None, None, _reason(exc))


def _reason(exc: Exception) -> str:
    """Why a file cannot be used, for people to read; the part before the colon is the kind."""
    match exc:
        case PoolError():
            return str(exc)
        case Image.DecompressionBombError():
            return f"too large: more than {MAX_PIXELS} pixels"
        case UnidentifiedImageError():
            return "not an image: the content is of no known image format"
        case OSError(errno=int(), strerror=str(strerror)):
            return f"{UNREAD}: {strerror}"
        case _:
            return f"damaged: {str(exc) or type(exc).__name__}"


# Joining: what was seen with what is known.


def _join(seen: pd.DataFrame, earlier: pd.DataFrame) -> pd.DataFrame:
    """The pool table: items found, items lost, and the listed files that hold no image."""
    earlier_items = earlier[earlier["item_id"].notna()]
    found = _found_items(seen, earlier_items)
    lost = earlier_items[~earlier_items["item_id"].isin(found["item_id"])]
    there = seen.drop_duplicates("uri").set_index("uri").loc[lost["uri"]]
    reason = there["set_aside_reason"].where(there["modified_ns"].isna(), CHANGED)
    lost = lost.assign(set_aside_reason=reason.to_numpy())
    broken = seen[seen["item_id"].isna() & seen["listed"]].assign(split="pool", label=None)
    # An item that cannot be read for now carries the reason itself.
    broken = broken[broken["modified_ns"].notna() | ~broken["uri"].isin(lost["uri"])]
    table = pd.concat([_as_table(part) for part in (found, lost, broken)])
    return table.sort_values(["uri", "item_id"], ignore_index=True)


def _found_items(seen: pd.DataFrame, earlier_items: pd.DataFrame) -> pd.DataFrame:
    """One row for each content that was seen; it stays at its earlier path while it is there."""
    known = earlier_items[["item_id", "uri", "split", "label"]]
    copies = seen[seen["item_id"].notna()].merge(known, on="item_id", how="left", suffixes=("", "_earlier"))
    copies["moved"] = copies["uri"] != copies["uri_earlier"]
    labels = copies.loc[copies["label"].notna(), ["item_id", "label"]].drop_duplicates()
    labels = labels.sort_values("label")
    disputed = labels[labels["item_id"].duplicated(keep=False)]
    reasons = disputed.groupby("item_id")["label"].agg(" and ".join).radd("labelled more than one way: ")
    items = copies.sort_values(["moved", "uri"]).drop_duplicates("item_id")
    given = items["item_id"].map(labels.drop_duplicates("item_id").set_index("item_id")["label"])
    label = given.astype("str").fillna(items["label_earlier"])
    label = label.mask(items["item_id"].isin(disputed["item_id"]) | (items["split"] == "audit"), None)
    return items.assign(
        split=items["split"].fillna("pool"), label=label, set_aside_reason=items["item_id"].map(reasons)
    )


def _draw_audit(table: pd.DataFrame, audit_size: int, seed: int) -> pd.DataFrame:
    rows = usable(table)
    candidates = np.sort(rows.loc[rows["label"].isna(), "item_id"].to_numpy(dtype=np.str_))
    if audit_size and len(candidates) <= audit_size:
        raise PoolError(
            f"an audit set of {audit_size} leaves nothing for the pool: "
            f"{len(candidates)} images are usable and have no label"
        )
    order = torch.randperm(len(candidates), generator=seeded_generator(seed, 0, "audit"))
    drawn = candidates[order[:audit_size].numpy()]
    return table.assign(split=table["split"].mask(table["item_id"].isin(drawn), "audit"))


def _as_table(rows: pd.DataFrame) -> pd.DataFrame:
    return _typed(rows.reindex(columns=list(COLUMNS)))


def _frame(records: Iterable[_File | _Content], kind: type[_File] | type[_Content]) -> pd.DataFrame:
    # As objects first: a column of integers with a None would become floats, which cannot tell nanoseconds apart.
    return _typed(pd.DataFrame(list(records), columns=list(kind._fields), dtype=object))


def _typed(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.astype({name: dtype for name, dtype in COLUMNS.items() if name in rows})


def _in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in counts.items())


# Decoding: from a file to pixels.


class _Decoding(NamedTuple):
    """A chunk of images, and the work that fills it."""

    images: NDArray[np.uint8]
    work: list[Future[None]]

    def wait(self) -> Tensor:
        """The images once all are there."""
        for part in self.work:
            part.result()
        return torch.from_numpy(self.images)


def _start_decoding(threads: ThreadPoolExecutor, uris: Sequence[str], size: int, channels: int) -> _Decoding:
    images = np.empty((len(uris), channels, size, size), dtype=np.uint8)

    def load(start: int) -> None:
        for position, uri in enumerate(uris[start : start + 16], start):
            images[position] = _load(uri, size=size, channels=channels)

    return _Decoding(images, [threads.submit(load, start) for start in range(0, len(uris), 16)])


def _load(uri: str, *, size: int, channels: int) -> NDArray[np.uint8]:
    """Pixels `(channels, size, size)` of one image."""
    try:
        with Path(uri).open("rb") as file:
            stored = _open(file)
            # From three times the side on, Pillow calls what comes out "indistinguishable from fair resampling in most
            # cases" (`reducing_gap`); with twice the side, 4 of 512 predictions changed.
            orientation, box = _decode(stored, at_least=3 * size)
            image = _to_eight_bits(stored, channels)
    except Exception as exc:
        raise PoolError(f"{uri}: {_reason(exc)}") from exc
    square = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    if orientation in UPRIGHT:
        square = square.transpose(UPRIGHT[orientation])
    return np.asarray(square).reshape(size, size, channels).transpose(2, 0, 1)


def _open(file: BinaryIO) -> ImageFile.ImageFile:
    """Read the header; an image too large to decode is refused."""
    image = Image.open(file, formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise PoolError(f"too large: {image.width} x {image.height} pixels, more than {MAX_PIXELS}")
    return image


def _decode(image: ImageFile.ImageFile, *, at_least: int) -> tuple[int, _Box | None]:
    """Decode all of the file, a JPEG no finer than sides of `at_least` need.

    Returns:
        The EXIF orientation, and the part of the pixels that is image where a JPEG was made smaller.
    """
    drafted = image.draft(None, (at_least, at_least))
    image.load()
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged metadata does not make a damaged image
        orientation = None
    return (orientation if orientation in UPRIGHT else 1), (drafted[1] if drafted else None)


def _to_eight_bits(image: Image.Image, channels: int) -> Image.Image:
    """The image in grey or RGB."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        image = Image.fromarray(((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_stretch(np.asarray(image)))
    elif image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("L" if channels == 1 else "RGB")


def _stretch(values: NDArray[np.int32 | np.float32]) -> NDArray[np.uint8]:
    """`values` from 0 at the smallest to 255 at the largest; a constant and what is not finite are 0."""
    wide = values.astype(np.float64)
    finite = np.isfinite(wide)
    low = float(np.min(wide, where=finite, initial=np.inf))
    high = float(np.max(wide, where=finite, initial=-np.inf))
    if not high > low:
        return np.zeros(values.shape, dtype=np.uint8)
    return np.rint(255 * (np.where(finite, wide, low) - low) / (high - low)).astype(np.uint8)


@contextmanager
def _without_pillow_warnings() -> Iterator[None]:
    """Pillow warns of size and of odd metadata; both are dealt with here.

    Streams may end in any order, so that each takes away one filter like its own, rather than put back those of before.
    """
    ignored = ("ignore", None, Warning, re.compile(r"PIL\b"), 0)
    cast("list[object]", warnings.filters).insert(0, ignored)
    try:
        yield
    finally:
        with suppress(ValueError):  # the caller has put back filters of before
            cast("list[object]", warnings.filters).remove(ignored)


def _map_in_threads(
    function: Callable[[T], R], values: Sequence[T], report: Callable[[int], None] | None = None
) -> list[R]:
    """`[function(value) for value in values]`; in chunks, as a million futures would fill the memory."""
    chunks = [values[start : start + 64] for start in range(0, len(values), 64)]
    results: list[R] = []
    with ThreadPoolExecutor() as pool:
        for part in pool.map(lambda chunk: [function(value) for value in chunk], chunks):
            results += part
            if report is not None:
                report(len(results))
    return results
