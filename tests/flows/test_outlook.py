import pandas as pd
import pytest
from flows.steps.ask import check_strategy, select_first

from connectors.store import Campaign, read_json, write_json
from flows.config import ConfigError, resolved
from flows.outlook import measured_rounds, outlook
from flows.reports.round_page import campaign_status, round_markdown, stopping_text
from flows.round import is_finished, look_ahead, size_of_query, summarise
from pipeline.evaluation.metrics import wilson_interval
from pipeline.evaluation.stopping import MeasuredRound, forecast, level_of_look, surely_reached
from pipeline.labels.answers import answers_to_table
from pipeline.selection.strategies.rows import STRATEGIES
from tests.flows.conftest import CLASSES, ready_round

CURVE = [(50, 150), (100, 170), (150, 178), (200, 182), (250, 184)]
FLAT = [(20, 120), *((100 * index, 180) for index in range(1, 11))]


def write_rounds(folder: Campaign, points, *, first=1, classes=CLASSES):
    """Rounds that were trained on so many labels and got so many of 200 audit images right."""
    for number, (n_labels, n_correct) in enumerate(points, start=first):
        low, high = wilson_interval(n_correct, 200)
        accuracy = {"accuracy": n_correct / 200, "accuracy_low": low, "accuracy_high": high}
        metrics = accuracy | {"n": 200, "balanced_accuracy": 0.5, "nll": 0.3, "ece": 0.05, "recall": {}}
        metrics["confusion"] = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
        write_json(folder.round(number) / "metrics.json", metrics)
        training = {"n_trained_on": n_labels, "phase": "head", "model": {"classes": list(classes)}}
        earlier = folder.round(number - 1)
        if earlier.has("metrics.json") and not earlier.has("outlook.json"):
            write_json(earlier / "outlook.json", {"looks": {"target_accuracy": {}, "min_gain": {}}})
        write_json(folder.round(number) / "training.json", training | {"findings": [], "preprocessing": {}})


@pytest.fixture
def campaign(tmp_path) -> Campaign:
    folder = Campaign(tmp_path / "campaign")
    write_json(
        folder.path / "campaign.json",
        {
            "format": 1,
            "name": "pets",
            "classes": list(CLASSES),
            "renamed": [],
            "budget": 500,
            "query_size": 50,
            "target_accuracy": 0.95,
            "min_gain": 0.001,
            "label_studio": {"url": "https://labels.example.org"},
            "mlflow": {"uri": "sqlite:///mlflow.db"},
        },
    )
    return folder


def test_curve_has_a_point_for_each_measured_round(campaign):
    write_rounds(campaign, CURVE)
    write_json(campaign.round(6) / "metrics.json", None)
    write_json(campaign.round(0) / "config.json", {})
    settings = read_json(campaign.path / "campaign.json")
    curve = [MeasuredRound(n, right, 200) for n, right in CURVE]
    assert measured_rounds(campaign, settings) == curve
    write_rounds(campaign, CURVE[:1], first=7, classes=[*CLASSES, "beyond"])
    assert measured_rounds(campaign, settings) == curve
    wider = settings | {"classes": [*CLASSES, "beyond"]}
    assert measured_rounds(campaign, wider) == curve[:1], "a curve begins anew with a class"
    renamed = settings | {"classes": ["sinister", *CLASSES[1:]], "renamed": [["left", "sinister"]]}
    assert measured_rounds(campaign, renamed) == curve, "it goes on under another name"


def test_status_shows_the_forecast_and_what_would_stop_the_campaign(campaign, tmp_path):
    write_rounds(campaign, CURVE[:3])
    early = campaign_status(campaign, tmp_path)
    assert early["forecast"] is None
    assert early["no_forecast"].endswith("there are 3")
    assert "less than 0.10 points (not known yet)" in stopping_text(early["stops_when"])

    write_rounds(campaign, CURVE)
    state = campaign_status(campaign, tmp_path)
    curve = measured_rounds(campaign, read_json(campaign.path / "campaign.json"))
    told = forecast(curve, 50)
    assert state["forecast"] == {
        **{"n_labels": 50, "gain": told.gain, "gain_low": told.gain_low, "gain_high": told.gain_high},
        "text": str(told),
    }
    assert state["no_forecast"] is state["stop"] is None
    now = surely_reached(curve, look=5)
    assert state["stops_when"]["target_accuracy"] == {
        **{"limit": 0.95, "now": now, "look": 5, "level": level_of_look(5)}
    }
    sure = forecast(curve, 50, alpha=level_of_look(2)).gain_high
    assert state["stops_when"]["min_gain"] == {"limit": 0.001, "now": sure, "look": 2, "level": level_of_look(2)}
    assert sure > told.gain_high
    text = stopping_text(state["stops_when"])
    assert text.startswith("Stops when 500 labels are paid for (0 now), or when the audit accuracy is surely 95 %")
    assert f"(at least {100 * now:.1f} % now, 99.94 % sure at look 5)" in text
    assert "99.62 % sure at look 2)" in text, "the first three rounds could not be asked what a forecast says"


def test_rounds_measured_while_the_rule_was_off_are_no_looks(campaign):
    write_rounds(campaign, CURVE)
    for number, rules in enumerate(([], ["min_gain"], ["target_accuracy"], ["target_accuracy", "min_gain"]), start=1):
        write_json(campaign.round(number) / "outlook.json", {"looks": dict.fromkeys(rules)})
    seen = outlook(campaign, {"classes": CLASSES, "query_size": 50, "target_accuracy": 0.85})
    assert seen["looks"]["target_accuracy"]["look"] == 3, "two rounds, and the newest, which is looked at now"
    assert outlook(campaign, {"classes": CLASSES, "query_size": 50})["looks"] == {}


def test_rounds_after_a_new_class_are_no_looks_until_there_can_be_a_forecast_again(campaign):
    write_rounds(campaign, CURVE)
    classes = [*CLASSES, "beyond"]
    settings = {"classes": classes, "query_size": 50, "min_gain": 0.001}
    counted = []
    for number, point in enumerate([*CURVE, (300, 185)], start=6):
        write_rounds(campaign, [point], first=number, classes=classes)
        counted.append(outlook(campaign, settings)["looks"]["min_gain"]["look"])
    assert counted == [3, 3, 3, 3, 4, 5], "rounds 4 and 5 could be forecast, and 9 and 10"


def test_status_says_which_rule_is_met(campaign, tmp_path):
    write_rounds(campaign, [(50, 200)])
    assert "at least 95 %" in campaign_status(campaign, tmp_path)["stop"]


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
    write_json(folder / "config.json", {"query_size": 5, "settings": resolved(work.settings)})
    look_ahead.fn(folder, work)
    assert size_of_query(folder) == 0
    assert work.reason_to_stop().startswith(reason)
    assert not work.can_ask()
    close_empty(folder)
    assert is_finished(work)
    again = make_work(raised)
    assert again.reason_to_stop() is None
    assert not is_finished(again)


def close_empty(folder):
    """Close a round that asked for nothing and brought nothing."""
    pd.DataFrame({"item_id": []}).to_parquet(folder / "batch.parquet")
    answers_to_table([]).to_parquet(folder / "annotations.parquet")
    for name in ("pushed.json", "round.json"):
        write_json(folder / name, {"tasks": {}})
    write_json(folder / "withdrawn.json", [])


def test_round_without_a_met_rule_asks_for_its_query(make_work):
    work = make_work("target_accuracy = 0.95\nmin_gain = 0.0001")
    write_rounds(work.folder, CURVE)
    folder = work.folder.round(5)
    write_json(folder / "config.json", {"query_size": 4, "settings": resolved(work.settings)})
    look_ahead.fn(folder, work)
    assert size_of_query(folder) == 4
    assert work.reason_to_stop() is None


def test_tracker_and_page_of_the_round_tell_the_forecast(make_work):
    work = make_work("target_accuracy = 0.8")
    write_rounds(work.folder, CURVE)
    folder = ready_round(work, number=5)
    look_ahead.fn(folder, work)
    summarise.fn(folder, work)
    logged = read_json(folder / "summary.json")["metrics"]
    assert 0 <= logged["forecast_gain_low"] <= logged["forecast_gain"] <= logged["forecast_gain_high"]
    pd.DataFrame({"item_id": []}).to_parquet(folder / "batch.parquet")
    page = round_markdown(folder, "stripes")
    assert "The next 5 labels are worth +" in page
    assert "It is time to stop: the audit accuracy is at least 80 %, 99.94 % sure at look 5" in page


@pytest.mark.parametrize("cold_start", ["random", "coverage", "typiclust", "max_herding"])
def test_seed_set_can_be_chosen_without_a_model(make_work, cold_start):
    work = make_work(f'cold_start = "{cold_start}"')
    folder = ready_round(work, number=0)
    select_first.fn(folder, work)
    batch = pd.read_parquet(folder / "batch.parquet")
    seeds = batch[batch["reason"] == f"seed set: {cold_start}"]
    assert len(seeds) == seeds["item_id"].nunique() == 10
    assert (batch["reason"] == "audit set").sum() == 6
    if cold_start != "random":
        answers = work.pool.set_index("item_id")["uri"].str[-6:-4].astype(int) % 3
        assert set(answers.loc[seeds["item_id"]]) == {0, 1, 2}


@pytest.mark.parametrize("strategy", sorted(name for name, row in STRATEGIES.items() if not row.is_check))
def test_every_strategy_passes_the_trial_before_the_first_label(make_work, strategy):
    check_strategy(make_work(f'strategy = "{strategy}"').settings)


def test_option_that_a_strategy_refuses_is_found_before_anything_is_asked(make_work):
    work = make_work('strategy = "power"\nstrategy_options = { beta = -1.0 }')
    with pytest.raises(ConfigError, match="beta must be above 0"):
        check_strategy(work.settings)
    check_strategy(make_work('strategy = "power"\nstrategy_options = { beta = 4.0 }').settings)
