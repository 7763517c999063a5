"""Where the local servers live and the last campaign is remembered."""

import os
from pathlib import Path


def home() -> Path:
    """The folder `.labelcycle` of the working directory, or what LABELCYCLE_HOME names."""
    return Path(os.environ.get("LABELCYCLE_HOME", ".labelcycle")).absolute()
