"""A pool in an object store, or one whose manifest names objects: found by listing, without a byte of any image.

What the store tells of an object gives its item id (see `connectors.objects.store.Found`). Whether it is an image is
seen when it is first read: what cannot be used then is set aside in the pool table, and that stands as long as the
object is the same.
"""

import posixpath
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pandas as pd

from connectors.image_folder.listing import (
    HIDDEN_NAMES,
    IMAGE_SUFFIXES,
    OF_SYSTEMS,
    OTHER_IMAGES,
    OWN_NAMES,
    File,
    Located,
    PassedOver,
    locate,
    stat_file,
)
from connectors.image_folder.manifest import MANIFEST_SUFFIXES
from connectors.image_folder.strict_table import StrictTable
from connectors.images.reading import N_WAITING
from connectors.images.shown import why_not_shown
from connectors.images.threads import map_in_threads
from connectors.objects.addresses import STORES, Place, is_address, is_below, place_of
from connectors.objects.reading import MAX_BYTES
from connectors.objects.store import Found, ListingRefused, get, list_objects, look_at
from pipeline.pool.columns import from_records, is_in
from pipeline.pool.reasons import (
    GONE,
    LASTING,
    NO_SUFFIX,
    NOT_BY_NAME,
    NOT_SHOWN,
    OTHER_FORMAT,
    OUTSIDE,
    PASSING,
    TOO_LARGE,
    PoolError,
)
from pipeline.pool.table import typed

FEWEST_LISTED = 20
"""Objects of one folder from which it is listed rather than that each is asked for."""
LISTED_PER_WANTED = 30
"""So many listed objects cost about what asking for one does."""
TRIED_FIRST = 3
"""Objects that were used before, which are read before those that were forbidden."""
OF_CONTENT = ["width", "height", "pages", "pixels"]
"""Columns that only reading gives; they are missing for objects."""


class Stored(NamedTuple):
    """An address and what its store tells of it; size and time are None where it is not to be read."""

    uri: str
    size_bytes: int | None
    modified_ns: int | None
    set_aside_reason: str | None
    item_id: str | None = None


def list_folder(address: str, tell: Callable[[str], None]) -> list[Stored]:
    """All objects below an address, but for what `listing.walk` passes over by its name.

    Args:
        address: of a bucket or folder.
        tell: called with lines on what was passed over.

    Raises:
        PoolError: as `list_objects`.
        PoolUnavailable: likewise.
    """
    folder, passed = place_of(address), PassedOver()
    rows = [_look(found) for found in list_objects(folder) if not _is_passed_over(found, folder, passed)]
    for line in passed.notes():
        tell(line)
    return rows


def objects_at(address: str) -> list[Stored]:
    """The object at an address, or all objects below it."""
    if PurePosixPath(place_of(address).key).suffix.lower() in IMAGE_SUFFIXES:
        return look_at_all([address])
    return list_folder(address, lambda _line: None)


def _is_passed_over(found: Found, folder: Place, passed: PassedOver) -> bool:
    *folders, name = found.place.key.removeprefix(folder.key).lstrip("/").lower().split("/")
    if name in HIDDEN_NAMES or any(part.startswith(".") for part in (*folders, name)):
        return True
    if found.size_bytes == 0 and "." not in name:  # what consoles write to show an empty folder
        return True
    for part in folders:
        if part in OF_SYSTEMS or part in OWN_NAMES:
            what = "objects in own folders of labelcycle" if part in OWN_NAMES else "objects in folders of systems"
            passed.add(what, str(found.place))
            return True
    return False


def _look(found: Found, *, by_name: bool = True) -> Stored:
    """What is to be known of an object; one that is no image by its name or size is set aside."""
    uri, reason = str(found.place), None
    suffix = PurePosixPath(found.place.key).suffix.lower()
    if by_name and suffix not in IMAGE_SUFFIXES:
        other = OTHER_IMAGES.get(suffix)
        reason = f"{OTHER_FORMAT}: {other}" if other else f"{NOT_BY_NAME}{suffix}" if suffix else NO_SUFFIX
    elif found.size_bytes == 0:
        reason = "empty: the file has no content"
    elif found.size_bytes > MAX_BYTES:
        reason = f"{TOO_LARGE}: {found.size_bytes:,} bytes, more than {MAX_BYTES:,}"
    if reason is not None:
        return Stored(uri, None, None, reason)
    return Stored(uri, found.size_bytes, found.modified_ns, None, found.item_id)


def shown(row: Stored) -> Stored:
    """The object; set aside if annotators cannot be shown it."""
    why = why_not_shown(row.uri) if row.set_aside_reason is None else ""
    return Stored(row.uri, None, None, f"{NOT_SHOWN}: {why}") if why else row


def look_at_all(uris: Sequence[str]) -> list[Stored]:
    """What a disk or a store says of paths and addresses, each of which is asked for."""
    return map_in_threads(_look_at, uris, n_threads=N_WAITING)


def _look_at(uri: str) -> Stored:
    if not is_address(uri):
        return Stored(*stat_file(uri))
    try:
        return _look(look_at(place_of(uri)), by_name=False)
    except PoolError as exc:
        return Stored(uri, None, None, str(exc))


def elsewhere(listed: pd.DataFrame, earlier: pd.DataFrame, folder: str) -> list[Stored]:
    """Where items of the earlier table were found last that a listing of a folder does not have, under any address.

    Raises:
        PoolError: the items are files: an object is another item than the file that it is a copy of.
    """
    items = earlier.dropna(subset=["item_id"])
    # One with a reason may lose its id in `seen_in_store`, and is to have a row at its address then.
    is_moved = is_in(items["item_id"], listed["item_id"]) & items["set_aside_reason"].isna()
    away = items.loc[~(is_in(items["uri"], listed["uri"]) | is_moved), "uri"].drop_duplicates()
    files = away[~away.map(is_address).astype(bool)]
    if len(files):
        raise PoolError(
            f"{folder}: the images of this campaign are files on a disk, such as {files.iloc[0]}, and objects of a "
            "store are others, without their labels: set pool back, or begin another campaign"
        )
    gone = [uri for uri in away if is_below(uri, folder)]
    return [
        *(Stored(uri, None, None, f"{GONE}: it was there before") for uri in gone),
        *look_at_all([uri for uri in away if not is_below(uri, folder)]),
    ]


# Manifests


def is_manifest(address: str) -> bool:
    """Whether an address names a manifest, and not a folder."""
    return PurePosixPath(place_of(address).key).suffix.lower() in MANIFEST_SUFFIXES


@contextmanager
def manifest_on_disk(path: Path | str) -> Iterator[Path]:
    """A manifest as a file: itself, or a copy of what is at an address; errors inside name the address.

    Raises:
        PoolError: there is none at the address.
        PoolUnavailable: its store does not answer, or refuses.
    """
    if isinstance(path, Path):
        yield path
        return
    try:
        content = get(place_of(path)).read()
    except PoolError as exc:
        raise PoolError(f"{path}: {exc}") from exc
    with TemporaryDirectory() as folder:
        copy = Path(folder) / PurePosixPath(place_of(path).key).name
        copy.write_bytes(content)
        try:
            yield copy
        except PoolError as exc:
            raise PoolError(str(exc).replace(str(copy), path)) from exc


def locate_all(table: StrictTable, root: Path | str, *, follow_links: bool) -> tuple[Located, pd.DataFrame]:
    """Find what a manifest names: files below its folder, objects by their addresses, or both.

    Args:
        table: with the column `uri`.
        root: the manifest's folder, or its address.
        follow_links: whether links may leave a folder of files.

    Returns:
        The files as `locate` gives them, none for objects; and of all rows, in their order, the columns of `Stored`,
        without `item_id` where all are files.

    Raises:
        PoolError: an address is wrong; it is not repeated, as it may hold a secret.
    """
    uris: list[str] = table.rows["uri"].tolist()
    addresses = [_address(uri, root) for uri in uris]
    places: dict[int, Place] = {}
    for position, address in enumerate(addresses):
        if address is not None:
            try:
                places[position] = place_of(address)
            except ValueError as exc:
                raise PoolError(f"{table.path}: row {table.rows.index[position]}: {exc}") from None
    stored = _look_up(set(places.values()))
    rows: list[Stored | None] = [stored[places[n]] if n in places else None for n in range(len(uris))]
    on_disk = [n for n, row in enumerate(rows) if row is None]
    if isinstance(root, Path):
        located = locate([uris[n] for n in on_disk], root, follow_links=follow_links)
        readings = {what: [on_disk[n] for n in found] for what, found in located.readings.items()}
        files = located.files
    else:
        why = f"{OUTSIDE}: a manifest at an address names no files of this machine"
        files, readings = [File(uris[n], None, None, why) for n in on_disk], {}
    for n, file in zip(on_disk, files, strict=True):
        rows[n] = Stored(*file)
    found = frame(row for row in rows if row is not None)
    return Located(files, readings), found if places else found.drop(columns="item_id")


def _address(uri: str, root: Path | str) -> str | None:
    """The address that a manifest means by a name; None for a file."""
    if is_address(uri) and uri.partition("://")[0].lower() != "file":
        return uri
    if isinstance(root, Path) or uri.startswith(("/", "~", "file:")):
        return None
    place = place_of(root)
    key = posixpath.normpath(posixpath.join(place.key, uri))
    return None if key.startswith("..") else str(place._replace(key=key))


def _look_up(places: Iterable[Place]) -> dict[Place, Stored]:
    """What stores tell of objects; folders of which many are wanted are listed."""
    by_folder: dict[Place, set[Place]] = defaultdict(set)
    for place in places:
        by_folder[place._replace(key=posixpath.dirname(place.key))].add(place)
    found: dict[Place, Stored] = {}
    missing: list[Place] = []
    for folder, wanted in by_folder.items():
        if folder.scheme in STORES and len(wanted) >= FEWEST_LISTED:
            found |= _listed(folder, wanted)
        missing += [place for place in wanted if place not in found]
    looked = look_at_all([str(place) for place in missing])
    found |= dict(zip(missing, looked, strict=True))
    return {place: shown(row) for place, row in found.items()}


def _listed(folder: Place, wanted: set[Place]) -> dict[Place, Stored]:
    """Those of the wanted objects that a listing comes to before it costs more than asking for each."""
    found: dict[Place, Stored] = {}
    try:
        for n_listed, each in enumerate(list_objects(folder)):
            if each.place in wanted:
                found[each.place] = _look(each, by_name=False)
            if len(found) == len(wanted) or n_listed > LISTED_PER_WANTED * len(wanted):
                break
    except ListingRefused:  # who may read what a manifest names need not be let to list
        pass
    return found


# What is known of objects that were listed before


def seen_in_store(listed: pd.DataFrame, earlier: pd.DataFrame, reason_now: Callable[[str], str | None]) -> pd.DataFrame:
    """Listed objects as an index sees files: those that could not be used when they were read carry the reason.

    Args:
        listed: objects with an `item_id`.
        earlier: the pool table of the last run.
        reason_now: reads an object whose reason may have passed; why it cannot be used, or None.
    """
    items = earlier.dropna(subset=["item_id"]).drop_duplicates("item_id").set_index("item_id")
    known = listed[["item_id"]].join(items[["set_aside_reason", *OF_CONTENT]], on="item_id")
    reason = known.pop("set_aside_reason")
    passing = reason.str.startswith(PASSING, na=False)
    uris = listed.loc[passing, "uri"].tolist()
    if uris:  # after some that can be read: else the first reads might all be forbidden
        used = earlier.loc[earlier["set_aside_reason"].isna(), "uri"]
        for uri in used[used.map(is_address).astype(bool)].head(TRIED_FIRST):
            reason_now(uri)
    now = map_in_threads(reason_now, uris, n_threads=N_WAITING)
    reason = reason.where(reason.str.startswith(LASTING, na=False)).astype(object)
    reason[passing] = now
    seen = listed.assign(**{name: known[name] for name in OF_CONTENT}, set_aside_reason=reason)
    # As a file that cannot be read for now: the item that it was carries the reason.
    seen.loc[seen["set_aside_reason"].notna(), ["item_id", "size_bytes", "modified_ns"]] = pd.NA
    return typed(seen)


def frame(rows: Iterable[Stored]) -> pd.DataFrame:
    """The columns of `Stored`, in the types of the pool table."""
    return typed(from_records(rows, Stored._fields))
