import pytest
import torch

from pipeline.randomness import seeded_generator


def draw(*key) -> list[int]:
    return torch.randint(2**31, (4,), generator=seeded_generator(*key)).tolist()


def test_the_same_key_gives_the_same_numbers_in_any_process():
    # first 8 bytes of `printf 7/3/strategy | sha256sum`
    assert seeded_generator(7, 3, "strategy").initial_seed() == 0xD2A8228308142060
    assert draw(7, 3, "strategy") == draw(7, 3, "strategy")


@pytest.mark.parametrize("key", [(8, 3, "strategy"), (7, 4, "strategy"), (7, 3, "order"), (-7, 3, "strategy")])
def test_another_key_gives_other_numbers(key):
    assert draw(*key) != draw(7, 3, "strategy")


def test_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    draw(7, 3, "strategy")
    assert torch.equal(torch.random.get_rng_state(), before)
