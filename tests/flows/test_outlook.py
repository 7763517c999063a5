import pytest

from flows.artefacts import CAMPAIGN, CONFIG, METRICS, OUTLOOK, PUSHED, TRAINING
from flows.config import CampaignSettings, ConfigError, resolved
from flows.folder import Campaign
from flows.outlook import learning_curve, measured, outlook
from flows.records import Pushed
from flows.reports.round_page import round_markdown
from flows.reports.status import Limit, campaign_status, status_lines, stopping_text
from flows.round import is_finished
from flows.steps.plan import check_members, look_ahead
from flows.steps.select import check_strategy, query_size_of, select_first
from flows.steps.track import summarise
from pipeline.evaluation.stopping import MeasuredRound, forecast, level_of_look, surely_reached
from pipeline.selection.strategies.rows import STRATEGIES
from pipeline.tasks import classification, multi_label, segmentation
from tests.flows.conftest import CLASSES, ready_round
from tests.flows.rounds import answer, ask_nothing, close_round, config_of, metrics_of, outlook_of, training_of

CURVE = [(50, 150), (100, 170), (150, 178), (200, 182), (250, 184)]
FLAT = [(20, 120), *((100 * index, 180) for index in range(1, 11))]


BOTH = ("target_accuracy", "min_gain")


def write_rounds(folder: Campaign, points, *, first=1, classes=CLASSES):
    """Rounds that were trained on so many labels and got so many of 200 audit images right."""
    for number, (n_labels, n_correct) in enumerate(points, start=first):
        folder.round(number).write(METRICS, metrics_of(n_correct))
        earlier = folder.round(number - 1)
        if earlier.has(METRICS) and not earlier.has(OUTLOOK):
            earlier.write(OUTLOOK, outlook_of(*BOTH))
        folder.round(number).write(TRAINING, training_of(n_labels, classes))


@pytest.fixture
def settings() -> CampaignSettings:
    return CampaignSettings(
        name="pets",
        pool="images",
        folder="campaign",
        classes=CLASSES,
        budget=500,
        audit_size=200,
        query_size=50,
        target_accuracy=0.95,
        min_gain=0.001,
        label_studio={"url": "https://labels.example.org"},
        mlflow={"uri": "sqlite:///mlflow.db"},
    )


@pytest.fixture
def campaign(tmp_path, settings) -> Campaign:
    folder = Campaign(tmp_path / "campaign")
    folder.write(CAMPAIGN, resolved(settings))
    return folder


def otherwise(settings, **changed) -> CampaignSettings:
    return settings.model_copy(update=changed)


def test_curve_has_a_point_for_each_measured_round(campaign, settings):
    write_rounds(campaign, CURVE)
    campaign.round(6).write(METRICS, None)
    campaign.round(6).write(TRAINING, training_of(300))
    campaign.round(0).write(CONFIG, config_of(settings))
    curve = [MeasuredRound(n, right, 200) for n, right in CURVE]
    assert learning_curve(measured(campaign.rounds()), settings) == curve
    write_rounds(campaign, CURVE[:1], first=7, classes=[*CLASSES, "beyond"])
    assert learning_curve(measured(campaign.rounds()), settings) == curve
    wider = otherwise(settings, classes=(*CLASSES, "beyond"))
    assert learning_curve(measured(campaign.rounds()), wider) == curve[:1], "a curve begins anew with a class"
    renamed = otherwise(settings, classes=("sinister", *CLASSES[1:]), renamed={"left": "sinister"})
    assert learning_curve(measured(campaign.rounds()), renamed) == curve, "it goes on under another name"


def test_status_shows_the_forecast_and_what_would_stop_the_campaign(campaign, settings, tmp_path):
    write_rounds(campaign, CURVE[:3])
    early = campaign_status(campaign, tmp_path)
    assert early.forecast is None
    assert early.no_forecast.endswith("there are 3")
    assert "less than 0.10 points (not known yet)" in stopping_text(early.stops_when)
    assert early.as_json()["forecast"] is None

    write_rounds(campaign, CURVE)
    state = campaign_status(campaign, tmp_path)
    curve = learning_curve(measured(campaign.rounds()), settings)
    told = forecast(curve, 50)
    assert state.as_json()["forecast"] == {
        **{"n_labels": 50, "gain": told.gain, "gain_low": told.gain_low, "gain_high": told.gain_high},
        "text": str(told),
    }
    assert state.no_forecast is state.stop is None
    now = surely_reached(curve, look=5)
    assert state.stops_when["target_accuracy"] == Limit(0.95, now, look=5, level=level_of_look(5))
    sure = forecast(curve, 50, alpha=level_of_look(2)).gain_high
    assert state.stops_when["min_gain"] == Limit(0.001, sure, look=2, level=level_of_look(2))
    assert sure > told.gain_high
    assert state.as_json()["stops_when"] == {
        "budget": {"limit": 500, "now": 0},
        "target_accuracy": {"limit": 0.95, "now": now, "look": 5, "level": level_of_look(5)},
        "min_gain": {"limit": 0.001, "now": sure, "look": 2, "level": level_of_look(2)},
    }
    text = stopping_text(state.stops_when)
    assert text.startswith("Stops when 500 labels are paid for (0 now), or when the audit accuracy is surely 95 %")
    assert f"(at least {100 * now:.1f} % now, 99.94 % sure at look 5)" in text
    assert "99.62 % sure at look 2)" in text, "the first three rounds could not be asked what a forecast says"


@pytest.mark.parametrize(("task", "word"), [("detection", "boxes"), ("segmentation", "masks")])
def test_status_counts_a_budget_in_regions_by_what_people_mark(campaign, settings, tmp_path, task, word):
    campaign.write(CAMPAIGN, resolved(otherwise(settings, task=task, budget_in="regions")))
    state = campaign_status(campaign, tmp_path)
    assert state.as_json()["paid_in"] == word
    lines = "\n".join(status_lines(state))
    assert f"0 of 500 {word} paid for, which leaves 500 images to ask for" in lines
    assert f"Stops when 500 {word} are paid for (0 now)" in lines
    campaign.write(CAMPAIGN, resolved(otherwise(settings, task=task)))
    assert "500 of 500 left to ask for" in "\n".join(status_lines(campaign_status(campaign, tmp_path)))


def test_rounds_measured_while_the_rule_was_off_are_no_looks(campaign, settings):
    write_rounds(campaign, CURVE)
    for number, rules in enumerate(([], ["min_gain"], ["target_accuracy"], BOTH), start=1):
        campaign.round(number).write(OUTLOOK, outlook_of(*rules))
    seen = outlook(campaign.rounds(), otherwise(settings, target_accuracy=0.85, min_gain=None))
    assert seen.looks["target_accuracy"].look == 3, "two rounds, and the newest, which is looked at now"
    assert seen.looks.keys() == {"target_accuracy"}
    assert outlook(campaign.rounds(), otherwise(settings, target_accuracy=None, min_gain=None)).looks == {}


def test_rounds_after_a_new_class_are_no_looks_until_there_can_be_a_forecast_again(campaign, settings):
    write_rounds(campaign, CURVE)
    classes = (*CLASSES, "beyond")
    wider = otherwise(settings, classes=classes, target_accuracy=None)
    counted = []
    for number, point in enumerate([*CURVE, (300, 185)], start=6):
        write_rounds(campaign, [point], first=number, classes=classes)
        counted.append(outlook(campaign.rounds(), wider).looks["min_gain"].look)
    assert counted == [3, 3, 3, 3, 4, 5], "rounds 4 and 5 could be forecast, and 9 and 10"


def test_status_says_which_rule_is_met(campaign, tmp_path):
    write_rounds(campaign, [(50, 200)])
    assert "at least 95 %" in campaign_status(campaign, tmp_path).stop


def test_status_says_how_long_annotators_waited_for_the_newest_batch(campaign, settings, tmp_path):
    close_round(campaign.round(0), [answer("a", CLASSES[0])], settings)
    assert campaign_status(campaign, tmp_path).seconds_to_batch is None
    pushed = Pushed("2026-01-01T00:02:30+00:00", "http://ls", {"b": 2}, {"b": "query"})
    campaign.round(1).write(PUSHED, pushed)
    state = campaign_status(campaign, tmp_path)
    assert state.as_json()["seconds_to_batch"] == 150
    assert "From the last answer to the next batch: 150 s" in list(status_lines(state))


@pytest.mark.parametrize(
    ("rule", "points", "raised", "reason"),
    [
        ("target_accuracy = 0.8", CURVE, "target_accuracy = 0.95", "the audit accuracy is at least 80 %"),
        ("min_gain = 0.01", FLAT, "min_gain = 0.00001", "the next 5 labels are worth less than 1.00 points"),
    ],
)
def test_rule_that_is_met_asks_for_nothing_until_it_is_raised(make_work, rule, points, raised, reason):
    work = make_work(rule)
    write_rounds(work.folder, points)
    folder = work.folder.round(len(points))
    config = config_of(work.settings, query_size=5)
    assert query_size_of(config, work.do(look_ahead, folder)) == 0
    assert work.reason_to_stop().startswith(reason)
    assert not work.can_ask()
    ask_nothing(folder)
    close_round(folder, [], work.settings)
    assert is_finished(work)
    again = make_work(raised)
    assert again.reason_to_stop() is None
    assert not is_finished(again)


def test_round_without_a_met_rule_asks_for_its_query(make_work):
    work = make_work("target_accuracy = 0.95\nmin_gain = 0.0001")
    write_rounds(work.folder, CURVE)
    seen = work.do(look_ahead, work.folder.round(5))
    assert query_size_of(config_of(work.settings, query_size=4), seen) == 4
    assert work.reason_to_stop() is None


def test_tracker_and_page_of_the_round_tell_the_forecast(make_work):
    work = make_work("target_accuracy = 0.8")
    write_rounds(work.folder, CURVE)
    folder = ready_round(work, number=5)
    work.do(look_ahead, folder)
    logged = work.do(summarise, folder).metrics
    assert 0 <= logged["forecast_gain_low"] <= logged["forecast_gain"] <= logged["forecast_gain_high"]
    ask_nothing(folder)
    page = round_markdown(folder, "stripes")
    assert "The next 5 labels are worth +" in page
    assert "It is time to stop: the audit accuracy is at least 80 %, 99.94 % sure at look 5" in page


@pytest.mark.parametrize("cold_start", ["random", "coverage", "typiclust", "max_herding"])
def test_seed_set_can_be_chosen_without_a_model(make_work, cold_start):
    work = make_work(f'cold_start = "{cold_start}"')
    folder = ready_round(work, number=0)
    batch = work.do(select_first, folder).table
    seeds = batch[batch["reason"] == f"seed set: {cold_start}"]
    assert len(seeds) == seeds["item_id"].nunique() == 10
    assert (batch["reason"] == "audit set").sum() == 6
    if cold_start != "random":
        answers = work.pool.uris.str[-6:-4].astype(int) % 3
        assert set(answers.loc[seeds["item_id"]]) == {0, 1, 2}


@pytest.mark.parametrize("strategy", sorted(name for name, row in STRATEGIES.items() if not row.is_check))
def test_every_strategy_passes_the_trial_before_the_first_label(make_work, strategy):
    check_strategy(make_work(f'strategy = "{strategy}"').settings, classification)


@pytest.mark.parametrize(
    ("strategy", "columns"), [("badge", "probs"), ("falcun", "probs"), ("uherding", None), ("top_k", None)]
)
def test_strategy_that_reads_one_decision_is_refused_where_an_image_takes_several(make_work, strategy, columns):
    settings = make_work(f'strategy = "{strategy}"').settings
    if columns is None:
        check_strategy(settings, multi_label)
    else:
        with pytest.raises(ConfigError, match=f"strategy = '{strategy}' reads {columns}, which need one decision"):
            check_strategy(settings, multi_label)


def test_classes_are_balanced_where_an_image_has_one_or_each_is_a_decision_and_not_in_places(make_work):
    settings = make_work('strategy = "top_k"\nbalance_classes = true').settings
    for task in (classification, multi_label):
        check_strategy(settings, task)
    with pytest.raises(ConfigError, match="balance_classes reads guesses, labelled_targets, which need one decision"):
        check_strategy(settings, segmentation)
    novel = make_work('strategy = "novel"\nbalance_classes = true').settings
    with pytest.raises(ConfigError, match="reads labelled_targets, which need one decision"):
        check_strategy(novel, multi_label)


def test_reduction_that_reads_whether_something_is_there_is_refused_where_nobody_asks_where(make_work):
    settings = make_work('strategy = "top_k"\nreduction = "foreground"').settings
    check_strategy(settings, segmentation)
    with pytest.raises(ConfigError, match="reduction = 'foreground' weighs by how likely something is there"):
        check_strategy(settings, multi_label)
    check_strategy(make_work('strategy = "top_k"\nreduction = "max"').settings, multi_label)


@pytest.mark.parametrize("settings", ["laplace", "pseudo_labels"])
def test_what_needs_one_decision_is_refused_where_an_image_takes_several(make_work, settings):
    pseudo = "[model.pseudo_labels]\nthreshold = 0.1\n"
    work = make_work(members="laplace = 2") if settings == "laplace" else make_work(model=pseudo)
    settings_ = work.settings
    check_members(settings_.members, settings_.model, classification, "classification")
    with pytest.raises(ConfigError, match=f"{settings} needs one decision for each image"):
        check_members(settings_.members, settings_.model, multi_label, "multi_label")


def test_option_that_a_strategy_refuses_is_found_before_anything_is_asked(make_work):
    work = make_work('strategy = "power"\nstrategy_options = { beta = -1.0 }')
    with pytest.raises(ConfigError, match="beta must be above 0"):
        check_strategy(work.settings, work.task)
    check_strategy(make_work('strategy = "power"\nstrategy_options = { beta = 4.0 }').settings, work.task)
