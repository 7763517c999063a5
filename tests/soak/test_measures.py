"""A fitted line tells what grows from what is noise."""

import numpy as np
import pytest

from tests.soak.measures import FEWEST, MEASURES, draw, growth_of

N_ROUNDS = 40


def rounds(seed=0, **changes):
    """Rounds that cost the same but for some noise; `changes` gives a measure's values by round."""
    draw_noise = np.random.default_rng(seed)
    rows = []
    for number in range(N_ROUNDS):
        row = {"round": number}
        for name, measure in MEASURES.items():
            cost = 100 * (number if measure.is_total else 1) + draw_noise.normal(0, 5)
            row[name] = changes[name](number) if name in changes else cost
        rows.append(row)
    return rows


@pytest.mark.parametrize("name", MEASURES)
def test_what_stays_the_same_but_for_noise_does_not_grow(name):
    found = growth_of(name, rounds())
    assert not found.is_too_much
    assert found.typical == pytest.approx(100, abs=5)


@pytest.mark.parametrize("name", [name for name, measure in MEASURES.items() if not measure.is_total])
def test_what_doubles_over_a_campaign_is_too_much(name):
    limit = MEASURES[name].limit
    found = growth_of(name, rounds(**{name: lambda number: 100 * (1 + 3 * limit * number / N_ROUNDS)}))
    assert found.is_too_much
    assert found.change == pytest.approx(300 * limit * (N_ROUNDS - 4) / N_ROUNDS)
    assert "GROWS" in str(found)


def test_a_folder_that_grows_with_each_round_is_fine_and_one_that_keeps_all_rounds_in_each_is_not():
    assert not growth_of("folder_mb", rounds(folder_mb=lambda number: 5.0 * number)).is_too_much
    assert growth_of("folder_mb", rounds(folder_mb=lambda number: 5.0 * number**2)).is_too_much


def test_a_campaign_is_drawn(tmp_path):
    draw(rounds()[:FEWEST], tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000
