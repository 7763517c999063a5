"""Images that cannot be used, found when they are read: they are set aside, and the run goes on.

The index reads every file of a disk, and no object of a store. What is wrong with an object shows when it is first
read, in the middle of a round.
"""

from collections import Counter
from collections.abc import Callable, Set
from dataclasses import replace
from typing import TypeVar

import pandas as pd

from connectors.image_folder.index import reason_to_set_aside
from connectors.images.threads import map_in_threads
from connectors.objects.reading import Objects
from flows.artefacts import AUDIT, BATCH, CANDIDATES, LABELLED, SCORES
from flows.campaign import OpenCampaign
from flows.folder import RoundFolder
from flows.kept_objects import image_cache
from flows.progress import say
from pipeline.names import printable
from pipeline.pool.reasons import ImageError, PoolError
from pipeline.tables import PoolTable, Rows

T = TypeVar("T")
BLOCK = 4096
"""Images that are looked at where one of them cannot be used: what is wrong with one is often wrong with more."""
MOST_DOUBTED = 3
"""Images that can be read here and could not be in a round: workers elsewhere may lack the rights to all of them."""
SET_ASIDE = "set aside, such as"
"""In the line on images that are."""
TIMES = 2
"""That an image is set aside in a run: an index that finds it usable each time does not read it as the round does."""


def setting_aside(go: Callable[[], T], work: OpenCampaign, anew: Callable[[RoundFolder | None], None]) -> T:
    """Do what reads images of the pool; images that it cannot read are set aside, and it is done again.

    Args:
        go: goes on where it stood when it is called again.
        work: whose pool it reads.
        anew: called when images were set aside, with the round that must begin anew as it holds one of them; with None
            where the pool must be looked after anew, as nobody was asked yet.

    Raises:
        PoolError: so many cannot be read that it is no fault of theirs, or one can be read here and not there,
            or can by each index and not by what comes after.
    """
    doubted: set[str] = set()
    times: Counter[str] = Counter()
    while True:
        try:
            return go()
        except ImageError as exc:
            found = _look_around(exc, work, doubted)
            if found.empty:
                continue
            times.update(found["uri"])
            if times[exc.uri] > TIMES:
                raise PoolError(f"{exc}: set aside {TIMES} times in this run, and found usable by each index") from exc
            set_aside(found, work)
            if not work.folder.is_out():
                anew(None)
            elif _holds(work.folder.current_round(), frozenset(found["item_id"])):
                anew(work.folder.current_round())


def _look_around(failed: ImageError, work: OpenCampaign, doubted: set[str]) -> pd.DataFrame:
    """The images near one that could not be read which cannot be used, as `item_id`, `uri` and `reason`.

    Args:
        failed: names the image.
        work: whose pool has it.
        doubted: images that could be read here after all; gets this one where it can.
    """
    usable = work.pool.usable.reset_index(drop=True)
    places = usable.index[usable["uri"] == failed.uri]
    if not len(places):
        raise failed
    start = int(places[0]) // BLOCK * BLOCK
    block = usable.iloc[start : start + BLOCK]
    uris = block["uri"].tolist()
    reading = replace(work.reading, objects=Objects(dict(zip(uris, block["item_id"], strict=True))))
    say(f"{failed}: looking which images beside it cannot be used")
    reasons = map_in_threads(lambda uri: reason_to_set_aside(uri, reading), uris, n_threads=reading.n_threads(uris))
    found = block[["item_id", "uri"]].assign(reason=pd.Series(reasons, block.index, dtype="str")).dropna()
    if failed.uri not in set(found["uri"]):
        if failed.uri in doubted or len(doubted) >= MOST_DOUBTED:
            raise failed
        doubted.add(failed.uri)
        if (cache := image_cache(work.settings.image_cache_gb)) is not None:  # which may hold what a disk made of it
            cache.forget(usable.loc[places[0], "item_id"])
    if len(found) > work.settings.max_unused * len(block):
        raise PoolError(
            f"{len(found):,} of {len(block):,} images cannot be used, more than max_unused = "
            f"{work.settings.max_unused:g} allows, such as {failed}"
        ) from failed
    return found


def set_aside(found: pd.DataFrame, work: OpenCampaign) -> None:
    """Write into the pool table that images cannot be used, and tell it.

    Args:
        found: `item_id`, `uri`, `reason`.
    """
    table = work.pool.table.copy()
    rows = table["uri"].isin(found["uri"]) & table["item_id"].isin(found["item_id"])
    table.loc[rows, "set_aside_reason"] = table.loc[rows, "uri"].map(found.set_index("uri")["reason"])
    table.loc[rows, ["size_bytes", "modified_ns"]] = pd.NA  # so that the next index looks again
    work.keep_pool(PoolTable(table))
    first = found.iloc[0]
    n = "1 image" if len(found) == 1 else f"{len(found):,} images"
    say(f"{n} {SET_ASIDE} {printable(first['uri'])}: {printable(first['reason'])}")


def _holds(folder: RoundFolder, item_ids: Set[str]) -> bool:
    """Whether a round that nobody has seen learns from one of the images, or has a score of it."""
    if folder.is_out:
        return False
    lists: list[Rows | None] = [folder.get(AUDIT), folder.get(LABELLED), folder.get(BATCH)]
    if any(each is not None and not item_ids.isdisjoint(each.item_ids) for each in lists):
        return True
    if not folder.has(CANDIDATES):
        return False
    from flows.predict import SHARD  # loads torch

    ids = folder.read(CANDIDATES).table["item_id"].tolist()
    shards = {place // SHARD for place, item_id in enumerate(ids) if item_id in item_ids}
    return any(folder.read(SCORES).part(shard).exists() for shard in shards)


def holds_lost(folder: RoundFolder, pool: PoolTable) -> bool:
    """Whether a round that nobody has seen rests on images that the pool has lost since the run that began it."""
    if folder.is_out:  # and a run that waits reads no list of a million candidates
        return False
    lists: list[Rows | None] = [folder.get(AUDIT), folder.get(LABELLED), folder.get(BATCH)]
    ids = {item_id for each in lists if each is not None for item_id in each.item_ids}
    if folder.has(CANDIDATES):
        ids.update(folder.read(CANDIDATES).table["item_id"])
    lost = frozenset(ids).difference(pool.usable["item_id"])
    return bool(lost) and _holds(folder, lost)
