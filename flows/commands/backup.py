"""Commands that keep a campaign in one file, and make it again from there."""

from pathlib import Path
from typing import Annotated

import typer

from flows.commands.screen import CampaignFile, print_lines
from flows.home import settle_home


def backup(
    campaign: CampaignFile, out: Annotated[Path, typer.Argument(help="File to write, such as pets.zip.")]
) -> None:
    """Write a campaign into one file: its folder, its campaign file, and all tasks and answers of Label Studio.

    Images, kept features and MLflow's runs are not in it. Only you can read the file, which holds no token.
    """
    settle_home(campaign)
    from flows.backup import write_backup

    print_lines(write_backup(campaign, out))


def restore(
    archive: Annotated[Path, typer.Argument(metavar="BACKUP", help="What `labelcycle backup` wrote.")],
    campaign: Annotated[
        Path | None,
        typer.Argument(help="Campaign file to write, or one that is there, which counts; as it was called, if open."),
    ] = None,
) -> None:
    """Make a campaign again from a backup: its file, its folder, and its project in Label Studio unless that is there.

    Nothing is written over. To restore to other places or servers, write the campaign file first, with other values of
    pool, folder, url or project.
    """
    settle_home(campaign)
    from flows.backup import restore_backup

    print_lines(restore_backup(archive, campaign))
