"""The ledger of a campaign, read from the files of its rounds."""

from flows.artefacts import ANSWERS, CONFIG, PUSHED, WITHDRAWN
from flows.config import CampaignSettings
from flows.folder import Campaign, RoundFolder
from pipeline.labels.ledger import Ledger, RoundOfLedger


def read_ledger(folder: Campaign, settings: CampaignSettings) -> Ledger:
    """The ledger of a campaign's rounds, by the names that classes have now."""
    return Ledger([round_of_ledger(f) for f in folder.rounds()], settings.former_classes)


def round_of_ledger(folder: RoundFolder) -> RoundOfLedger:
    """What one round asked for and brought in, as far as it has come."""
    pushed, answers, gone = folder.get(PUSHED), folder.get(ANSWERS), folder.get(WITHDRAWN)
    config = folder.get(CONFIG) if pushed else None
    return RoundOfLedger(
        number=folder.number,
        tasks=pushed.of_asks(folder.number) if pushed else None,
        address=pushed.address if pushed else "",
        pushed_at=pushed.pushed_at if pushed else "",
        answers=answers,
        withdrawn=() if answers is None or gone is None else gone,
        classes=config.classes if config else (),
    )
