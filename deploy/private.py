"""Files and folders that only their owner can read."""

import os
from pathlib import Path
from typing import TextIO

PRIVATE_FOLDER, PRIVATE_FILE, PRIVATE_UMASK = 0o700, 0o600, 0o077


def make_private(folder: Path) -> None:
    """Make a folder for its owner alone, also one that was there before."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(PRIVATE_FOLDER)


def is_open_to_others(path: Path) -> bool:
    """Whether users beside owner and group get at a file or folder, by its rights and those of the folders above."""
    whole = path.resolve()
    return bool(whole.stat().st_mode & 0o005) and all(parent.stat().st_mode & 0o001 for parent in whole.parents)


def open_private(path: Path, how: int) -> TextIO:
    """Open a file of text to be written that only its owner can read, also one that was there before."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | how, PRIVATE_FILE)
    os.fchmod(handle, PRIVATE_FILE)
    return os.fdopen(handle, "w", encoding="utf-8")
