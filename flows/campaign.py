"""One campaign as the flows see it: its settings, its folder, and the outside systems it works with."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from connectors.annotation import AnnotationTool
from connectors.image_folder.index import read_pool, usable
from connectors.images.deep_pixels import Reading
from connectors.label_studio.client import INSTRUCTIONS, LabelStudio
from connectors.label_studio.connection import TOKEN_VARIABLE
from connectors.store import Campaign, RoundFolder, read_json, write_json
from connectors.tracking import Tracker
from deploy import servers
from flows.changes import claim, count_labels, last_page, refuse_lost_classes
from flows.config import (
    LOCAL,
    CampaignSettings,
    ConfigError,
    images_root,
    load_settings,
    resolved,
    with_own_image_size,
)
from flows.home import VARIABLE as HOME_VARIABLE
from flows.home import home, settle_home
from flows.ledger import answered_items, asked_items, known_answers, labels_used, outstanding_tasks
from flows.local import reach_local_addresses_directly
from flows.outlook import outlook
from flows.pixel_ranges import read_ranges
from flows.progress import say
from pipeline.labels.ledger import labelled_set, set_aside
from pipeline.types import Split


@dataclass(frozen=True)
class OpenCampaign:
    """A campaign that a flow works on."""

    settings: CampaignSettings
    folder: Campaign

    @cached_property
    def tool(self) -> AnnotationTool:
        """The annotation tool; connected to when first asked for."""
        return self.connect(self.settings.classes)

    def connect(self, classes: Sequence[str]) -> AnnotationTool:
        """The annotation tool, for answers of these classes."""
        page = last_page(self.folder)
        settings = self.settings.label_studio
        url, token = settings.url, os.environ.get(TOKEN_VARIABLE, "")
        shown_in = None
        if url == LOCAL:
            local = local_servers()
            url = local.label_studio_url
            token = servers.personal_token(local)
            shown_in = local.images / self.settings.name
        return LabelStudio(
            url=url,
            token=token,
            project=self.settings.project,
            classes=classes,
            images_root=None if shown_in else images_root(self.settings.pool),
            shown_in=shown_in,
            remember_in=self.folder.path / "label_studio.json",
            instructions=settings.instructions or INSTRUCTIONS,
            say=say,
            reading=self.reading,
            renamed=self.settings.former_classes,
            former_project=page["project"] if page and page["project"] != self.settings.project else None,
            former_classes=page["classes"] if page else (),
        )

    @cached_property
    def tracker(self) -> Tracker:
        """The experiment tracker; connected to when first asked for."""
        from connectors.mlflow.tracker import (
            MLflowTracker,  # takes seconds to load, and a run that awaits labels needs none
        )

        uri, name = self.settings.mlflow.uri, self.settings.name
        if uri != LOCAL:
            return MLflowTracker(uri=uri, campaign=name)
        local = local_servers()
        return MLflowTracker(uri=local.mlflow_url, campaign=name, login=local.mlflow_login)

    @property
    def pool(self) -> pd.DataFrame:
        """The pool table; labels have the names that their classes have now."""
        pool = read_pool(self.folder.pool)
        return pool.assign(label=pool["label"].replace(self.settings.former_classes))

    @property
    def reading(self) -> Reading:
        """How the campaign's images are read."""
        return Reading(read_ranges(self.folder.path), self.settings.decode_memory_gb)

    def outstanding(self) -> int:
        """Tasks that are out and may still come back with a label."""
        return outstanding_tasks(self.folder)

    def labels_used(self) -> int:
        """Labels paid for so far, the audit set's included."""
        return labels_used(self.folder)

    def labels(self) -> pd.DataFrame:
        """The labels that stand, on images that can be used: see `labelled_set`; with `uri`, `split`, `group`.

        Raises:
            CampaignChanged: some are of no class of the campaign.
        """
        pool = usable(self.pool)
        given = pool[pool["label"].notna()]
        prelabelled = dict(zip(given["item_id"], given["label"], strict=True))
        answers = known_answers(self.folder, self.settings.former_classes)
        refuse_lost_classes(count_labels(answers) + Counter(given["label"]), self.settings)
        labels = labelled_set(answers, prelabelled=prelabelled, classes=self.settings.classes)
        return labels.merge(pool[["item_id", "uri", "split", "group"]], how="inner", validate="one_to_one")

    def may_be_asked(self, *, split: Split) -> pd.DataFrame:
        """The images of a split that are usable, unlabelled and not with the annotators: item_id, uri.

        One that nobody could label is among them once there are classes that people could not choose then.
        """
        pool = self.pool
        asked, answers = asked_items(self.folder), known_answers(self.folder)
        before = self._rounds_of_fewer_classes()
        again = {item_id for item_id in set_aside(answers) if asked.get(item_id) in before}
        known = {*asked, *answered_items(answers)} - again
        rows = (
            pool["set_aside_reason"].isna()
            & (pool["split"] == split)
            & pool["label"].isna()
            & ~pool["item_id"].isin(list(known))
        )
        return pool.loc[rows, ["item_id", "uri"]].sort_values("item_id", ignore_index=True)

    def _rounds_of_fewer_classes(self) -> set[int]:
        """The rounds that asked when people could not choose each of the classes that there are now."""
        present, classes = self.settings.former_classes, set(self.settings.classes)
        asked_with = {
            f.number: read_json(f / "config.json")["settings"]["classes"]
            for f in self.folder.rounds()
            if f.has("config.json")
        }
        return {n for n, names in asked_with.items() if classes - {present.get(name, name) for name in names}}

    def reason_to_stop(self) -> str | None:
        """Why nothing more is to be asked for, by the stopping rules, the budget and the pool; None to go on."""
        stop: str | None = outlook(self.folder, resolved(self.settings))["stop"]
        if stop is not None:
            return stop
        if self.budget_left() == 0:
            return "the budget is spent"
        is_all_asked = self.may_be_asked(split="pool").empty and self.may_be_asked(split="audit").empty
        return "every image of the pool has been asked for" if is_all_asked else None

    def can_ask(self) -> bool:
        """Whether the stopping rules, the budget and the pool leave anything to ask for."""
        return self.reason_to_stop() is None

    def located(self, items: pd.DataFrame) -> pd.DataFrame:
        """The items with the `uri` at which the pool knows them now: files may move while a round lasts."""
        pool = self.pool
        now = pool[pool["set_aside_reason"].isna()].set_index("item_id")["uri"]
        return items.assign(uri=items["item_id"].map(now).fillna(items["uri"]))

    def budget_left(self) -> int:
        """Labels that may still be asked for."""
        return max(0, self.settings.budget - self.labels_used() - self.outstanding())


def local_servers() -> servers.Servers:
    """The servers of `labelcycle up`.

    Raises:
        ConfigError: when they are not running.
    """
    running = servers.running(home())
    if running is None:
        raise ConfigError(
            f"the campaign uses the local servers and those of {home()} are not running: start them with "
            f"`labelcycle up` and the campaign's file, or let {HOME_VARIABLE} name the folder of those that run, or "
            "set url in [label_studio] and uri in [mlflow]"
        )
    return running


def open_campaign(path: Path) -> OpenCampaign:
    """Read a campaign file, claim its folder and remember it as the one that was used last."""
    reach_local_addresses_directly()
    settings = load_settings(path)
    settings = settings.model_copy(update={"model": with_own_image_size(settings.model)})
    folder = Campaign(settings.folder)
    folder.check_ours()
    claim(folder, settings, path)
    write_json(settle_home(path) / "last-campaign.json", {"folder": str(settings.folder), "file": str(path.resolve())})
    return OpenCampaign(settings=settings, folder=folder)


def current_round(folder: Campaign) -> RoundFolder:
    """The round that is open, or the one that comes next."""
    rounds = folder.rounds()
    if not rounds:
        return folder.round(0)
    return folder.round(rounds[-1].number + 1) if rounds[-1].is_closed else rounds[-1]
