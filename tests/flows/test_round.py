"""Whole campaigns in memory: how rounds close, what people change meanwhile, and how a campaign ends."""

import time

import pytest

from connectors.annotation import AnnotationToolError
from flows.artefacts import ANSWERS, BATCH, CAMPAIGN, POOL, TRAINING
from flows.changes import CampaignChanged
from flows.folder import CampaignBusy
from flows.reports.status import campaign_status, status_lines
from pipeline.networks.backbones import ModelError
from pipeline.types import Region
from tests.flows.loop import CLASSES


def test_second_run_says_that_the_first_is_at_work(make_loop):
    loop = make_loop()
    with loop.folder.lock(), pytest.raises(CampaignBusy, match="is being worked on by process"):
        loop.run()
    assert "round 0 asks for 15 labels" in loop.run()


def test_round_closes_without_the_last_labels_and_late_ones_join_the_next(make_loop):
    loop = make_loop("close_at = 0.75")
    loop.run()
    first = loop.label(12)
    loop.run()
    assert loop.known(1).keys() == set(first)
    rest = set(loop.tasks(0)) - set(first)
    assert len(rest) == 3
    assert not rest & set(loop.batch(1)), "what is still out is not asked for again"
    served = loop.label()
    assert set(served[-3:]) == rest, "the new batch is more wanted than what is left of the old one"
    loop.run()
    assert loop.known(2).keys() == {*first, *served}


def test_round_closes_after_its_time(make_loop):
    loop = make_loop('close_after = "1s"')
    loop.run()
    loop.label(13)
    time.sleep(1)
    assert "round 1 asks for" in loop.run()


def test_campaign_survives_skips_edits_and_deletions(make_loop):
    loop = make_loop()
    loop.run()
    skipped = set(loop.batch(0)[::4])
    loop.skip(skipped)
    answered = set(loop.label())
    assert answered == set(loop.batch(0)) - skipped
    loop.run()
    assert loop.known(1).keys() == answered
    assert not skipped & set(loop.batch(1)), "a skipped image is not asked for again"

    edited, deleted = sorted(answered)[:2]
    before = loop.known(1)[edited]
    other = next(label for label in CLASSES if label != before)
    loop.edit(edited, other)
    loop.delete(deleted)
    assert set(loop.label(4)) == set(loop.batch(1))
    loop.run()
    assert loop.known(2)[edited] == other
    assert deleted not in loop.known(2), "a withdrawn label is not learned from"
    [first] = [answer.annotation for answer in loop.folder.round(0).read(ANSWERS) if answer.item_id == edited]
    assert first.regions == (Region("image", before),), "the record of round 0 stays as it was"


def test_budget_is_raised_while_a_round_is_out(make_loop):
    loop = make_loop()
    loop.run()
    loop.change(("budget = 23", "budget = 35"))
    assert "round 0 awaits labels: 0 of 15 labelled" in loop.run()
    assert loop.folder.read(CAMPAIGN)["budget"] == 35


def test_late_labels_after_the_last_batch_are_learned_from(make_loop):
    loop = make_loop("close_at = 0.8", budget=15)
    loop.run()
    first = loop.label(12)
    assert "finished after round 1: the budget is spent; 3 tasks are still open" in loop.run()
    late = loop.label(1)
    assert "2 tasks are still open" in loop.run()
    assert any("0 of 15 left to ask for, 2 images are out" in line for line in shown(loop))
    late += loop.label()
    assert len(late) == 3
    assert not [line for line in shown(loop) if "finished" in line]
    assert loop.run().endswith("finished after round 3: the budget is spent")
    assert "The campaign is finished: the budget is spent" in shown(loop)
    assert loop.run().endswith("finished after round 3: the budget is spent")
    assert loop.known(3).keys() == {*first, *late}
    loop.change(("budget = 15", "budget = 23"))
    assert "round 4 asks for 4 labels" in loop.run()


def test_campaign_stops_at_its_target_and_goes_on_when_the_target_is_raised(make_loop):
    loop = make_loop("target_accuracy = 0.01")
    loop.run()
    loop.label()
    assert "finished after round 1: the audit accuracy is at least 1 %" in loop.run()
    assert loop.batch(1) == []
    assert "finished after round 1" in loop.run()
    loop.change(("target_accuracy = 0.01", "target_accuracy = 0.99"))
    assert "round 2 asks for 4 labels" in loop.run()


def test_pool_that_is_used_up_ends_the_campaign(make_loop):
    loop = make_loop(budget=200, seed_set_size=30, query_size=100)
    loop.run()
    loop.label()
    assert "round 1 asks for 4 labels" in loop.run()
    loop.label()
    assert "finished after round 2: every image of the pool has been asked for" in loop.run()
    assert "finished after round 2" in loop.run()


def test_campaign_whose_seed_set_is_skipped_asks_for_another(make_loop):
    loop = make_loop()
    loop.run()
    seeds = set(loop.batch(0))
    loop.skip(seeds)
    assert "round 1 asks for 9 labels" in loop.run()
    assert not seeds & set(loop.batch(1))
    assert not loop.folder.round(1).has(TRAINING)


def test_model_that_cannot_be_built_is_found_before_anything_is_asked(make_loop):
    loop = make_loop()
    loop.change(("max_epochs = 1", "dropout = 0\nmax_epochs = 1"), ("ensemble = 2", "ensemble = 2\nmc_dropout = 5"))
    with pytest.raises(ModelError, match="mc_dropout needs dropout"):
        loop.run()
    assert not loop.folder.round(0).has(BATCH)


def test_image_that_vanished_costs_neither_the_campaign_nor_its_label(make_loop, tmp_path):
    loop = make_loop(own_images=True)
    loop.run()
    loop.label()
    pool = loop.folder.read(POOL).table.set_index("item_id")
    seed = next(item_id for item_id in loop.batch(0) if pool.loc[item_id, "split"] == "pool")
    image = loop.file.parent / "images" / pool.loc[seed, "uri"].rpartition("/")[2]
    image.rename(tmp_path / "away")
    loop.run()
    assert seed not in loop.known(1)
    assert seed in {answer.item_id for answer in loop.folder.round(0).read(ANSWERS)}


def test_training_changes_between_rounds_and_a_round_that_nobody_saw_begins_anew(make_loop, monkeypatch):
    loop = make_loop(audit_size=5)

    def refuse(*_, **__):
        raise AnnotationToolError("the project asks for nothing where label (Choices) is wanted")

    with monkeypatch.context() as patch:
        patch.setattr(loop.tool, "prepare", refuse)
        with pytest.raises(AnnotationToolError):
            loop.run()
    assert loop.folder.round(0).has(BATCH)
    assert not loop.folder.round(0).is_out
    loop.change(("audit_size = 5", "audit_size = 6"), ("seed_set_size = 9", "seed_set_size = 8"))
    outcome = loop.run_as()
    assert "round 0 asks for 14 labels" in outcome.message
    assert any("14 labels come before there is a model: 6 of the audit set" in note for note in outcome.notes)
    loop.label()

    loop.change(("max_epochs = 1", "max_epochs = 2"))
    assert any("max_epochs: 1 -> 2" in note for note in loop.run_as().notes)
    members = loop.folder.round(1).read(TRAINING).members
    assert {len(member.epochs) for member in members} == {2}
    rounds = loop.tracker.runs
    assert rounds.keys() == {"round-0", "round-1"}
    assert rounds["round-0"].params["seed_set_size"] == 8
    assert (rounds["round-0"].params["model.max_epochs"], rounds["round-1"].params["model.max_epochs"]) == (1, 2)
    assert rounds["round-1"].params["model.batch_size"] == 32, "the task's own is named, though nobody set it"
    assert "model.max_epochs: 1 -> 2" in rounds["round-1"].tags["changes"]

    loop.change(("audit_size = 6", "audit_size = 5"))
    with pytest.raises(CampaignChanged, match=r"audit_size: 6 -> 5.*labelcycle init NEW\.toml --from "):
        loop.run()


def shown(loop):
    """What `labelcycle status` shows below the table."""
    return list(status_lines(campaign_status(loop.folder, loop.folder.path)))
