import pytest
import torch

from pipeline.selection.pseudo_labels import choose_confident


def by_turns(entropies, guesses, *, threshold, max_count):
    """The classes take turns: each gives its surest, and in each turn the surest class goes first."""
    left = {guess: [] for guess in guesses}
    for position in sorted(range(len(guesses)), key=lambda position: (entropies[position], position)):
        if entropies[position] < threshold:
            left[guesses[position]].append(position)
    chosen = []
    while any(left.values()) and len(chosen) < max_count:
        turn = [positions.pop(0) for positions in left.values() if positions]
        chosen += sorted(turn, key=lambda position: (entropies[position], position))
    return chosen[:max_count]


@pytest.mark.parametrize("seed", range(20))
def test_agrees_with_a_loop_in_which_classes_take_turns(seed):
    generator = torch.Generator().manual_seed(seed)
    entropies = torch.randint(0, 30, (200,), generator=generator) / 20
    guesses = torch.multinomial(torch.tensor([0.7, 0.2, 0.07, 0.03]), 200, replacement=True, generator=generator)
    for max_count in (0, 1, 7, 60, 500):
        chosen = choose_confident(entropies, guesses, threshold=0.8, max_count=max_count).tolist()
        assert chosen == by_turns(entropies.tolist(), guesses.tolist(), threshold=0.8, max_count=max_count)


def test_easy_class_does_not_crowd_out_the_others():
    entropies = torch.cat([torch.full((100,), 0.01), torch.full((5,), 0.04)])
    guesses = torch.tensor([0] * 100 + [1] * 5)
    chosen = choose_confident(entropies, guesses, threshold=0.05, max_count=20)
    assert guesses[chosen].bincount().tolist() == [15, 5]


def test_threshold_itself_is_not_sure():
    entropies = torch.tensor([0.1, 0.2, 0.05])
    guesses = torch.zeros(3, dtype=torch.long)
    assert choose_confident(entropies, guesses, threshold=0.1, max_count=9).tolist() == [2]
    assert choose_confident(entropies, guesses, threshold=0.0, max_count=9).tolist() == []


def test_empty_pool_gives_nothing():
    nothing = choose_confident(torch.empty(0), torch.empty(0, dtype=torch.long), threshold=1.0, max_count=5)
    assert nothing.tolist() == []


@pytest.mark.parametrize(("n_guesses", "max_count", "message"), [(2, 5, "got 3 and 2"), (3, -1, "max_count must be")])
def test_wrong_arguments_are_refused(n_guesses, max_count, message):
    with pytest.raises(ValueError, match=message):
        choose_confident(torch.rand(3), torch.zeros(n_guesses, dtype=torch.long), threshold=1.0, max_count=max_count)
