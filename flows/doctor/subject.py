"""What is looked at: a campaign with all that it works with, or this machine alone."""

from dataclasses import dataclass
from pathlib import Path

from connectors.annotation import AnnotationTool
from connectors.tracking import Tracker
from deploy import servers
from flows.campaign import OpenCampaign
from flows.config import CampaignSettings, ConfigError, load_settings
from flows.folder import Campaign


@dataclass(frozen=True)
class Subject:
    """What the checks look at.

    Attributes:
        home: of the local servers.
        file: the campaign's file.
        work: the campaign; None where no file was named, or it cannot be read.
        error: why the file cannot be read.
    """

    home: Path
    file: Path | None = None
    work: OpenCampaign | None = None
    error: Exception | None = None

    @property
    def settings(self) -> CampaignSettings | None:
        """Of the campaign."""
        return self.work.settings if self.work else None

    @property
    def folder(self) -> Campaign | None:
        """Of the campaign."""
        return self.work.folder if self.work else None

    @property
    def named(self) -> str:
        """What follows the name of a command that a person is to call."""
        return f" {self.file}" if self.file else ""


def subject_of(
    home: Path, file: Path | None, *, tool: AnnotationTool | None = None, tracker: Tracker | None = None
) -> Subject:
    """Read the campaign's file, and write nothing.

    Args:
        tool: as of `OpenCampaign`; tracker likewise.
    """
    if file is None:
        return Subject(home)
    try:
        settings = load_settings(file)
    except Exception as exc:  # whatever it is, the other checks go on
        return Subject(home, file, error=exc)
    folder = Campaign(settings.folder)
    work = OpenCampaign(settings, folder, tool=tool, tracker=tracker, local=lambda: known_servers(home))
    return Subject(home, file.resolve(), work)


def known_servers(home: Path) -> servers.Servers:
    """The servers of `labelcycle up`, also where one of them is away.

    Raises:
        ConfigError: none were started.
    """
    known = servers.remembered(home)
    if known is None:
        raise ConfigError(f"the campaign uses the local servers, and none were ever started from {home}")
    return known
