"""A campaign that changes its mind between rounds, or in the middle of one."""

from pathlib import Path

import pandas as pd
import pytest
import torch

from connectors.annotation import Pulled
from connectors.escaping import markdown
from flows.advance import notes_of_first
from flows.artefacts import (
    ANSWERS,
    BATCH,
    CAMPAIGN,
    CANDIDATES,
    CONFIG,
    GUESSES,
    LABELLED,
    MEMBERS,
    METRICS,
    PAGE,
    PLAN,
    STABILITY,
    TRAINING,
)
from flows.campaign import OpenCampaign, open_campaign
from flows.changes import (
    CampaignChanged,
    begun_otherwise,
    changes_since_last,
    clear_leftovers,
    notes_of_changes,
    wanted_page,
)
from flows.config import resolved
from flows.folder import Campaign
from flows.outlook import best_round
from flows.records import Plan
from flows.replay.inputs import read_campaign_labels
from flows.reports.round_page import round_markdown
from flows.round import begin_anew, refresh_pool
from flows.steps.plan import begin, look_ahead, plan
from flows.steps.push import questions_of, renew_page
from flows.steps.score import embed_labelled, score_shard
from flows.steps.select import MEASURED_REASON, compare_with_half, select, select_first
from flows.steps.track import start_tracking
from flows.steps.train import cross_validate, train
from pipeline.tables import BatchTable, Guesses
from pipeline.tasks import TASKS, classification
from pipeline.types import Ask, Region
from tests.flows.conftest import CLASSES, TINY, ready_round
from tests.flows.rounds import (
    answer,
    begin_to_push,
    close_round,
    config_of,
    metrics_of,
    networks_of,
    push_tasks,
    train_round,
    training_of,
    with_settings,
)
from tests.flows.tiny import tiny_network

PETS = """\
name = "pets"
pool = "images"
classes = ["cat", "dog"]
budget = 100
audit_size = 20
folder = "campaign"
{extra}

[model]
{model}

[members]
{members}

[label_studio]
{label_studio}

[mlflow]
{mlflow}

[renamed]
{renamed}
"""
SECTIONS = ("extra", "model", "members", "label_studio", "mlflow", "renamed")


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """Write the file of a campaign, some of it otherwise; `classes` are its classes."""
    monkeypatch.setenv("LABELCYCLE_HOME", str(tmp_path / "home"))

    def write(*replacements: tuple[str, str], **sections: str) -> Path:
        text = PETS.format(**dict.fromkeys(SECTIONS, "") | sections)
        for before, after in replacements:
            assert before in text
            text = text.replace(before, after)
        path = tmp_path / "pets.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def asked(pets, tmp_path) -> Campaign:
    """A campaign whose first batch is out, with two labels."""
    work = open_campaign(pets())
    answers = [answer("a", "cat"), answer("b", "dog", answer_id=2), answer("c", None, answer_id=3)]
    close_round(work.folder.round(0), answers, work.settings)
    return work.folder


@pytest.mark.parametrize(
    "sections",
    [
        {"extra": 'strategy = "power"\nstrategy_options = { beta = 2.0 }\nacquisition = "entropy"'},
        {"extra": "query_size = 7\nrandom_slice = 0.5\nseed = 5\nseed_set_size = 1\nbalance_classes = true"},
        {"extra": 'sub_pool = 70\nprefilter = 2.0\ncold_start = "coverage"\nfeature_cache_gb = 1.0'},
        {"extra": 'target_accuracy = 0.9\nmin_gain = 0.01\nclose_at = 0.5\nclose_after = "3d"\nschedule = "0 9 * * *"'},
        {"model": 'name = "small_cnn"\nimage_size = 28\nchannels = 1\naugmentation = "digits"\nmax_minutes = 3'},
        {"model": 'weights = "DEFAULT"\ntrain = "head"\nlearning_rate = 0.1\ndevice = "cpu"\nhead = "mlp"'},
        {"model": 'max_epochs = 3\nstart = "scratch"\n[model.pseudo_labels]\nthreshold = 0.1'},
        {"members": "ensemble = 1\nmc_dropout = 4\nbagging = true"},
        {"label_studio": 'url = "https://other.example.org"\nproject = "another title"\ninstructions = "Look"'},
        {"mlflow": 'uri = "sqlite:////tmp/ml.db"'},
    ],
)
def test_how_a_campaign_is_run_may_change_between_rounds(pets, asked, sections):
    work = open_campaign(pets(**sections))
    assert asked.read(CAMPAIGN) == resolved(work.settings)


def test_pool_and_budget_may_change_too(pets, asked):
    work = open_campaign(pets(('pool = "images"', 'pool = "elsewhere"'), ("budget = 100", "budget = 70")))
    assert asked.read(CAMPAIGN) == resolved(work.settings)
    assert asked.read(CAMPAIGN)["budget"] == 70


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("audit_size = 20", "audit_size = 30", "audit_size: 20 -> 30"),
        ("audit_size = 20", "audit_size = 10", "audit_size: 20 -> 10"),
        ('name = "pets"', 'name = "cars"', "name: 'pets' -> 'cars'"),
        ('["cat", "dog"]', '["cat", "bird"]', "1 of 'dog'"),
    ],
)
def test_what_makes_another_campaign_is_refused_with_how_its_labels_are_taken_along(pets, asked, before, after, told):
    written = asked.read(CAMPAIGN)
    path = pets((before, after))
    with pytest.raises(CampaignChanged) as caught:
        open_campaign(path)
    assert told in str(caught.value)
    assert f"labelcycle init NEW.toml --from {path}" in str(caught.value)
    assert asked.read(CAMPAIGN) == written


def test_all_settings_that_make_another_campaign_are_named_together_and_nothing_is_written(pets, asked):
    path = pets(
        ('name = "pets"', 'name = "cars"'), ("audit_size = 20", "audit_size = 2"), ("budget = 100", "budget = 90")
    )
    with pytest.raises(CampaignChanged, match="audit_size: 20 -> 2; name: 'pets' -> 'cars'") as caught:
        open_campaign(path)
    assert caught.value.settings == ["audit_size", "name"]
    assert asked.read(CAMPAIGN)["budget"] == 100


def test_another_task_makes_another_campaign(pets, asked, monkeypatch):
    monkeypatch.setitem(TASKS, "counting", classification)
    with pytest.raises(CampaignChanged, match="task: 'classification' -> 'counting'"):
        open_campaign(pets(extra='task = "counting"'))


def test_what_killed_runs_left_is_cleared_and_nothing_else(asked):
    whole = {path for path in asked.path.rglob("*") if path.is_file()}
    (asked.path / "rounds" / "0001.put-away").mkdir()
    (asked.round(0).path / ".members.0b6a.part").mkdir()
    (asked.round(0).path / ".members.0b6a.part" / "member-0.pt").touch()
    (asked.round(0).path / ".batch.parquet.0b6a.part").touch()
    for name in (".pool.parquet.0b6a.part", ".campaign.lock.json.0b6a.part", ".campaign.json.0b6a.part"):
        (asked.path / name).touch()
    clear_leftovers(asked)
    whole.add(asked.path / ".campaign.json.0b6a.part")  # of a run that waits for the lock, perhaps
    assert {path for path in asked.path.rglob("*") if path.is_file()} == whole
    assert [folder.number for folder in asked.rounds()] == [0]


@pytest.mark.parametrize(
    "change",
    [('name = "pets"', 'name = "cars"'), ("audit_size = 20", "audit_size = 2"), ('["cat", "dog"]', '["a", "b", "c"]')],
)
def test_nothing_is_frozen_before_the_first_batch_is_out(pets, change):
    work = open_campaign(pets())
    work.folder.round(0).write(CONFIG, config_of(work.settings))
    changed = open_campaign(pets(change))
    assert changed.folder.path == work.folder.path
    assert work.folder.read(CAMPAIGN) == resolved(changed.settings) != resolved(work.settings)


@pytest.mark.parametrize(
    ("classes", "renamed"),
    [
        ('["cat", "dog", "bird"]', ""),
        ('["dog", "cat"]', ""),
        ('["feline", "dog"]', 'cat = "feline"'),
        ('["animal", "plant"]', 'cat = "animal"\ndog = "animal"'),
        ('["dog", "bird"]', 'cat = "dog"'),
        ('["tiger", "dog"]', 'cat = "lion"\nlion = "tiger"'),
    ],
)
def test_classes_may_come_change_places_be_renamed_and_be_merged(pets, asked, classes, renamed):
    work = open_campaign(pets(('["cat", "dog"]', classes), renamed=renamed))
    labels = {a.item_id: a.annotation.regions[0].label for a in work.ledger.answers if a.annotation}
    assert labels == {name: work.settings.former_classes.get(old, old) for name, old in (("a", "cat"), ("b", "dog"))}
    assert set(labels.values()) <= set(work.settings.classes)
    said = [region.label for a in asked.round(0).read(ANSWERS) if a.annotation for region in a.annotation.regions]
    assert said == ["cat", "dog"], "the record of what people said stays"
    assert work.ledger.n_labels_paid == 2


def test_class_without_labels_may_go(pets, asked):
    open_campaign(pets(('["cat", "dog"]', '["cat", "dog", "bird"]')))
    open_campaign(pets())


def test_class_whose_labels_would_be_lost_says_how_to_keep_them(pets, asked):
    with pytest.raises(CampaignChanged, match=r'1 of \'cat\'.*write \[renamed\] "cat" = "\.\.\."'):
        open_campaign(pets(('["cat", "dog"]', '["feline", "dog"]')))


# A round that has begun.


@pytest.mark.parametrize(
    ("changed", "is_anew"),
    [
        ({"model": "dropout = 0.25\n"}, True),
        ({"model": "max_minutes = 90\n"}, True),
        ({"members": "mc_dropout = 2"}, True),
        ({"extra": "seed = 3"}, True),
        ({"extra": 'strategy = "power"'}, True),
        ({"classes": [*CLASSES, "beyond"]}, True),
        ({"extra": 'schedule = "0 9 * * *"\nfeature_cache_gb = 1.0'}, False),
        ({"extra": 'close_at = 0.5\nclose_after = "3d"'}, False),
        ({"model": 'device = "cpu"\n'}, False),
    ],
)
def test_round_that_nobody_has_seen_begins_anew_with_what_it_is_made_of(make_work, changed, is_anew):
    folder = ready_round(make_work())
    work = make_work(**changed)
    assert begun_otherwise(folder, work.settings) == is_anew
    begin_anew(folder, work)
    assert folder.path.exists() != is_anew
    names = {path.name for path in (work.folder.path / "rounds").iterdir()}
    assert names == ({"0000"} if is_anew else {"0000", "0001"})


def test_round_goes_on_when_its_task_has_other_steps_than_when_it_began(make_work, monkeypatch):
    work = make_work()
    folder = ready_round(work)
    monkeypatch.setattr(classification, "batch_size", 8)
    assert not begun_otherwise(folder, work.settings)
    assert changes_since_last([folder], work.settings) == []
    work.do(start_tracking, folder, flow_run=None)
    assert work.tracker.runs["round-1"].params["model.batch_size"] == 32, "as it began"


def test_round_that_is_out_ends_as_it_began(make_work):
    folder = ready_round(make_work())
    begin_to_push(folder)
    work = make_work(model="dropout = 0.25\n")
    begin_anew(folder, work)
    assert folder.has(LABELLED)
    assert notes_of_changes(folder.read(CONFIG), work.settings) == ("from round 2 on: model.dropout: 0.5 -> 0.25",)


def test_members_that_were_trained_otherwise_are_not_mixed_with_others(make_work, training_is_killed):
    work = make_work()
    folder = ready_round(work)
    work.do(plan, folder)
    work.do(cross_validate, folder)
    with training_is_killed(after=1):
        work.do(train, folder)
    assert (folder.read(MEMBERS).path / "member-0.pt").exists()
    changed = make_work(network=TINY)
    begin_anew(folder, changed)
    folders = [train_round(changed), train_round(make_work(network=TINY, name="fresh"))]
    trained = [each.read(MEMBERS).files(each.read(TRAINING).weights) for each in folders]
    for one, two in zip(*trained, strict=True):
        a, b = (torch.load(path, weights_only=True) for path in (one, two))
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_killed_while_a_round_is_put_away_leaves_nothing_of_it(make_work, monkeypatch):
    folder = ready_round(make_work())
    work = make_work(members="mc_dropout = 2")

    def killed(*_args, **_how):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            begin_anew(folder, work)
    assert folder.has(CONFIG)
    assert folder.has(LABELLED)
    begin_anew(folder, work)
    assert not folder.path.exists()


def test_first_round_that_begins_anew_draws_its_audit_set_anew(make_work):
    work = make_work()
    work.do(begin, work.folder.round(0))
    changed = with_settings(work, audit_size=4, seed=3)
    refresh_pool(changed)
    assert (changed.pool.table["split"] == "audit").sum() == 4
    assert not changed.folder.rounds(), "the round has begun with another audit set"
    changed.do(begin, changed.folder.round(0))
    begin_to_push(changed.folder.round(0))
    later = with_settings(changed, audit_size=5)
    refresh_pool(later)
    assert (later.pool.table["split"] == "audit").sum() == 4, "people may have been asked for it"


def test_changes_are_told_with_the_round_that_is_made_with_them(make_work):
    folder = ready_round(make_work())
    push_tasks(folder, {}, "http://labels")
    work = make_work(members="mc_dropout = 2", extra='acquisition = "entropy"')
    lines = ["acquisition: margin -> entropy", "members.mc_dropout: 0 -> 2"]
    assert notes_of_changes(folder.read(CONFIG), work.settings) == tuple(f"from round 2 on: {line}" for line in lines)
    following = ready_round(work, 2)
    assert changes_since_last([work.folder.round(0), folder], work.settings) == lines
    assert following.read(CONFIG).changes == lines
    assert notes_of_changes(following.read(CONFIG), work.settings) == tuple(
        f"changed since round 1: {line}" for line in lines
    )
    page = round_markdown(following, "stripes")
    assert f"Changed since the round before: {markdown('members.mc_dropout: 0 -> 2')}" in page


def test_first_round_tells_what_was_taken_of_the_weights_of_a_detector(make_work, tmp_path):
    state = {f"backbone.body.{name}": values for name, values in tiny_network().state_dict().items()}
    torch.save({**state, "rpn.head.bias": torch.zeros(2)}, tmp_path / "detector.pth")
    work = make_work(network=TINY.replace("factory", str(tmp_path / "detector.pth")))
    first, later = work.folder.round(0), ready_round(work)
    work.do(begin, first)
    note = "weights detector.pth: the trunk takes backbone.body (7); left out: rpn (1)"
    assert notes_of_changes(first.read(CONFIG), work.settings) == (note,)
    assert notes_of_changes(later.read(CONFIG), work.settings) == ()


def test_changes_that_count_at_once_are_not_said_to_wait(make_work):
    folder = ready_round(make_work())
    work = make_work(extra='close_at = 0.5\nschedule = "0 9 * * *"\nmin_gain = 0.1')
    changed = with_settings(work, query_size=7, budget=99)
    assert notes_of_changes(folder.read(CONFIG), changed.settings) == ("from round 2 on: query_size: 5 -> 7",)


def test_first_round_says_what_comes_before_a_model_and_that_there_are_fewer_images_than_labels(make_work):
    work = make_work()
    folder = ready_round(work, number=0)
    work.do(select_first, folder)
    assert notes_of_first(folder, work) == (
        "the first 16 labels come before there is a model: 6 of the audit set, which measures it, and 10 to learn "
        "from; then 5 labels in each round",
        "budget = 100 is more than the 60 images that there are",
    )


# Classes that change while a campaign lasts.


def make_renamed(make_work, **options) -> OpenCampaign:
    return make_work(classes=["sinister", *CLASSES[1:]], renamed='left = "sinister"', **options)


def unlabelled(work: OpenCampaign, split="pool") -> list[str]:
    """What may be asked for."""
    return work.ledger.may_be_asked(work.pool, split=split, classes=work.settings.classes)["item_id"].tolist()


def test_labels_of_people_and_of_the_manifest_go_by_the_new_name(make_work):
    work = make_work()
    item = unlabelled(work)[0]
    close_round(work.folder.round(0), [answer(item, "left")], work.settings)
    before = ready_round(work)
    renamed = make_renamed(make_work)
    folder = ready_round(renamed, 2)
    labels = [f.read(LABELLED) for f in (before, folder)]
    assert len(labels[0]) == 25
    assert labels[1].item_ids == labels[0].item_ids
    assert labels[1].words == [{"left": "sinister"}.get(name, name) for name in labels[0].words]
    assert labels[1].table.set_index("item_id").loc[item, "source"] == "annotators"


def test_manifest_may_give_the_old_name_and_the_new_one_of_one_class(make_work, striped_images):
    renamed = make_renamed(make_work)
    assert set(renamed.pool.given_labels().values()) == {"sinister", "middle", "right"}
    assert set(make_work().pool.given_labels().values()) == set(CLASSES)
    assert set(renamed.pool.given_labels().values()) == {"sinister", "middle", "right"}, "read anew"
    renamed = OpenCampaign(renamed.settings, renamed.folder)
    assert set(renamed.pool.given_labels().values()) == {"sinister", "middle", "right"}


def test_image_that_nobody_could_label_is_asked_for_again_once_there_is_a_new_class(make_work):
    work = make_work()
    first, second, *_ = unlabelled(work)
    measured, *_ = unlabelled(work, "audit")
    answers = [answer(item, None, answer_id=n) for n, item in enumerate((first, measured))]
    close_round(work.folder.round(0), [*answers, answer(second, "left", answer_id=9)], work.settings)
    close_round(work.folder.round(1), [], work.settings)

    def may_be_asked(one):
        return {*unlabelled(one), *unlabelled(one, "audit")}

    assert not {first, second, measured} & may_be_asked(work)
    assert not {first, second, measured} & may_be_asked(make_renamed(make_work)), "people could choose each class"
    wider = make_work(classes=[*CLASSES, "beyond"])
    assert {first, second, measured} & may_be_asked(wider) == {first, measured}
    assert wider.ledger.n_outstanding == 0
    close_round(wider.folder.round(2), [], wider.settings, asked={first: 7, measured: 8})
    assert not {first, measured} & may_be_asked(wider), "once"
    assert wider.ledger.n_outstanding == 2


def test_audit_set_is_asked_for_first_where_it_has_no_label(make_work):
    work = make_work()
    audit = unlabelled(work, "audit")
    answers = [answer(item, None if n < 2 else "left", answer_id=n) for n, item in enumerate(audit)]
    close_round(work.folder.round(0), answers, work.settings)
    work = make_work(classes=[*CLASSES, "beyond"], members="mc_dropout = 4")
    folder = train_round(work)
    work.do(embed_labelled, folder)
    work.do(score_shard, folder, shard=0, on_progress=lambda _done, _total: None)
    work.do(look_ahead, folder)
    guesses, chosen = work.do(select, folder)
    batch = chosen.table
    assert len(folder.read(CANDIDATES)) > 3
    assert batch["item_id"].tolist()[:2] == sorted(audit[:2])
    assert (batch["reason"] == MEASURED_REASON).tolist() == [True] * 2 + [False] * 3
    assert batch["rank"].tolist() == [0, 1, 2, 3, 4]
    assert folder.read(GUESSES).item_ids == guesses.item_ids == batch["item_id"].tolist()[2:]
    questions = questions_of(folder.read(BATCH), guesses, work.pool, work.settings, 1)
    assert [question.ask.purpose for question in questions] == ["audit"] * 2 + ["query"] * 3
    has_guess = [question.guess is not None for question in questions]
    assert has_guess == [False] * 2 + [True] * 3, "a guess would sway who measures"
    work.do(compare_with_half, folder)
    assert 0 <= folder.read(STABILITY).batch_kept_with_half_the_members <= 1


def test_guess_of_a_push_that_was_broken_off_goes_by_the_names_that_classes_have_now(make_work):
    work = make_renamed(make_work)
    ids = unlabelled(work)[:3]
    numbers = {"uncertainty": 0.5, "novelty": 0.25, "reason": "margin", "why": "the model is unsure of it"}
    rows = [{"item_id": item_id, "uri": "", "rank": rank} | numbers for rank, item_id in enumerate(ids)]
    guesses = Guesses.made(ids, [(Region("image", name, score=0.5),) for name in ("left", "middle", "gone")])
    questions = questions_of(BatchTable(pd.DataFrame(rows)), guesses, work.pool, work.settings, 1)
    assert [question.guess for question in questions] == [
        (Region("image", "sinister", score=0.5),),
        (Region("image", "middle", score=0.5),),
        None,
    ]
    assert [set(question.columns) for question in questions] == [{"uncertainty", "novelty"}] * 2 + [set()]


@pytest.mark.parametrize(
    ("options", "begins_near"),
    [
        ({}, "all"),
        ({"classes": [*CLASSES, "beyond"]}, "trunk"),
        ({"classes": CLASSES[::-1]}, "trunk"),
        ({"classes": ["sinister", *CLASSES[1:]], "renamed": 'left = "sinister"'}, "all"),
        ({"classes": ["edge", "middle"], "renamed": 'left = "edge"\nright = "edge"'}, "trunk"),
        ({"model": "dropout = 0.25\n"}, "nothing"),
        ({"network": TINY.replace('weights = "factory"\n', "")}, "nothing"),
    ],
)
def test_round_that_starts_from_the_last_one_takes_what_fits(make_work, monkeypatch, options, begins_near):
    start = 'start = "previous"\nmax_epochs = 1\nbatch_size = 8\n'
    network = 'name = "small_cnn"\naugmentation = "none"\n'
    train_round(make_work(network=network, model=start, ensemble=1))
    taken = []
    monkeypatch.setattr("pipeline.learning.train.shrink_and_perturb", lambda _model, previous: taken.append(previous))
    work = make_work(**{"network": network, "ensemble": 1} | options | {"model": start + options.get("model", "")})
    [model] = networks_of(work, train_round(work, 2))
    assert model.n_classes == len(work.settings.classes)
    if begins_near == "nothing":
        assert taken == []
    else:
        assert any(name.startswith("trunk.") for name in taken[0])
        assert (f"tail.{len(model.tail) - 1}.weight" in taken[0]) == (begins_near == "all")


def test_weights_of_other_classes_are_taken_but_for_the_last_layer(make_work):
    start = 'start = "previous"\n'
    train_round(make_work(model=start, ensemble=1))
    work = make_work(model=start, ensemble=1, classes=[*CLASSES, "beyond"])
    [model] = networks_of(work, train_round(work, 2))
    assert model.n_classes == 4


def test_champion_knows_the_classes_of_the_campaign(make_work):
    work = make_work()
    best = []
    for number, (right, classes) in enumerate([(190, CLASSES), (120, [*CLASSES, "beyond"]), (80, CLASSES)], start=1):
        work.folder.round(number).write(METRICS, metrics_of(right))
        work.folder.round(number).write(TRAINING, training_of(20, classes))
        best.append(best_round(work.folder.rounds()).number)
    assert best == [1, 2, 1]


def test_replay_of_a_campaign_goes_by_the_names_that_classes_have_now(make_work):
    work = make_work()
    item, other, *_ = unlabelled(work)
    close_round(work.folder.round(0), [answer(item, "left"), answer(other, "right", answer_id=2)], work.settings)
    labels, _ = read_campaign_labels(make_renamed(make_work).settings)
    assert set(labels["label"]) == {"sinister", "middle", "right"}
    assert len(labels) == 26


@pytest.mark.parametrize("renamed", ["", 'bird = "dog"'])
def test_class_of_answers_that_no_round_has_collected_stays_on_the_page(pets, monkeypatch, renamed):
    work = open_campaign(pets(('["cat", "dog"]', '["cat", "dog", "bird"]')))
    close_round(work.folder.round(0), [answer("a", "cat")], work.settings)
    work.folder.write(PAGE, wanted_page(work.settings))
    standing, prepared = Pulled([answer("b", "bird")], {Ask("b", 0, "seed"): 1}, 0), []
    work = open_campaign(pets(renamed=renamed))

    class Tool:
        """Holds an answer of a bird that nobody has collected, and notes whether its page is changed."""

        def __init__(self, classes):
            self.classes = classes

        def pull(self, asked):
            assert {ask.round_number for ask in asked} == {0}
            assert "bird" in self.classes
            return standing

        def prepare(self):
            prepared.append(self.classes)
            return "http://labels"

    monkeypatch.setattr(OpenCampaign, "connect", lambda _work, classes: Tool(classes))
    if renamed:
        renew_page(work)
        assert prepared == [("cat", "dog")]
    else:
        with pytest.raises(CampaignChanged, match="1 of 'bird'"):
            renew_page(work)
        assert prepared == []


# What is trained, and how long it takes.


def planned(work, number=1):
    folder = ready_round(work, number)
    return folder, work.do(plan, folder)


AUTO = "all_from = 8\nmax_epochs = 2\n"
"""Eight labels for each class train everything."""


@pytest.mark.parametrize("train_what", ["auto", "all"])
def test_round_that_would_take_too_long_trains_less_and_says_so(make_work, train_what):
    model = f'{AUTO}train = "{train_what}"\nmax_minutes = 1e-9\n'
    folder, told = planned(work := make_work(network=TINY, model=model))
    assert (told.phase, told.wanted) == ("head", "all")
    assert list(told.minutes) == ["all"]
    assert min(told.minutes.values()) >= 0
    assert "labels enough to train the whole network, which would take about" in told.text
    assert told.text.endswith("max_minutes = 1e-09 leaves the head alone")
    assert folder.read(PLAN) == told
    work.do(cross_validate, folder)
    work.do(train, folder)
    record = folder.read(TRAINING)
    assert record.phase == record.model.phase == "head"
    assert record.plan == told
    assert folder.read(MEMBERS).trunk is not None
    assert len(networks_of(work, folder)) == 2


def test_round_within_its_minutes_trains_what_its_labels_are_worth(make_work):
    folder, told = planned(make_work(network=TINY, model=f"{AUTO}max_minutes = 1e6\n"))
    assert (told.phase, list(told.minutes)) == ("all", ["all"])
    assert "trains the whole network, which takes about" in told.text
    assert f"round {folder.number}" in told.text


def test_estimate_is_made_when_training_becomes_dearer_and_not_again(make_work):
    heads = make_work(network=TINY)
    assert train_round(heads).read(PLAN) == Plan("head", "head", {}, max_minutes=None, text=None)
    work = make_work(network=TINY, model=AUTO)
    folder = train_round(work, 2)
    told = folder.read(PLAN)
    assert list(told.minutes) == ["all"]
    assert "the last round took 0" in told.text
    assert told.text.endswith("max_minutes in [model] would set a limit")
    assert "Round 2 trains the whole network" in round_markdown(folder, "stripes")
    assert planned(work, 3)[1].text is None


def test_network_without_weights_has_nothing_cheaper_to_train(make_work):
    _, told = planned(make_work(model="max_minutes = 1e-9\n"))
    assert told.phase == "all"
    assert "without pretrained weights nothing less can be trained" in told.text
    assert planned(make_work(name="other"))[1].minutes == {}, "nothing is measured that nobody asked for"
