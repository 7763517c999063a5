"""A look at the pool's folders in place of one at each of its files, while the last of those is not long ago."""

import hashlib
from datetime import UTC, datetime, timedelta

from connectors.image_folder.folder_times import FolderTimes
from connectors.image_folder.index import is_as_left
from flows.artefacts import DRAWN_AUDIT, POOL, POOL_FOLDERS, POOL_NOTES
from flows.campaign import OpenCampaign
from flows.folder import stamp

TRUSTED_FOR = timedelta(days=1)
"""So long a file may be written over in place, or a store may change, before a run that waits finds it. A run that
begins or ends a round looks at all."""


def is_pool_as_left(work: OpenCampaign) -> bool:
    """Whether the pool table holds still, by its folders, its settings and its file."""
    folder = work.folder
    times = folder.get(POOL_FOLDERS)
    if times is None or not (folder.has(POOL_NOTES) and folder.has(DRAWN_AUDIT)):
        return False
    now = datetime.now(UTC)
    at = datetime.fromisoformat(times.notes["at"])
    if times.notes != _notes(work, at) or not now - TRUSTED_FOR < at <= now:
        return False
    return is_as_left(work.pool.table, work.settings.pool_source, times, work.reading)


def remember_folders(work: OpenCampaign, times: FolderTimes) -> None:
    """Keep the times of the folders that the pool table was made of."""
    times.notes = _notes(work, datetime.now(UTC))
    work.folder.write(POOL_FOLDERS, times)


def _notes(work: OpenCampaign, at: datetime) -> dict[str, str]:
    """What must be the same: what was asked of the pool, and the file of its table."""
    asked = hashlib.blake2b(repr(work.settings.pool_source).encode(), digest_size=16).hexdigest()
    return {"at": at.isoformat(), "source": asked, "table": repr(stamp(work.folder.path_of(POOL)))}
