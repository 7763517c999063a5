import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from pipeline.labels.suspicious import (
    FEWEST_RIGHT,
    HARD,
    HARD_SHARES,
    HIGHEST_RATE,
    LIKELY_WRONG,
    N_RATES,
    N_TEMPERATURES,
    TEMPERATURES,
    find_label_errors,
    share_right,
    wrong_probabilities,
)


def random_probs(n, *, n_classes=4, seed=0, coarse=False):
    """Probabilities and labels; `coarse` ones are tenths, with many ties."""
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.full(n_classes, 0.7), size=n)
    if coarse:
        probs = rng.multinomial(10, probs) / 10
    return torch.tensor(probs), torch.tensor(rng.integers(0, n_classes, n))


def textbook(probs, targets):
    """Probability of each label to be wrong, by Bayes' rule over the grid, one image at a time."""
    n_classes = len(probs[0])
    low, high = map(math.log, TEMPERATURES)
    pairs = []
    for step, hard, number in itertools.product(range(N_TEMPERATURES), HARD_SHARES, range(N_RATES)):
        temperature = math.exp(low + (high - low) * step / (N_TEMPERATURES - 1))
        root = (number + 0.5) / N_RATES
        rate, fit, wrong = HIGHEST_RATE * root**2, 0.0, []
        for row, target in zip(probs, targets, strict=True):
            plain, unsure = ([value ** (1 / each) for value in row] for each in (temperature, HARD * temperature))
            own = (1 - hard) * plain[target] / sum(plain) + hard * unsure[target] / sum(unsure)
            seen = (1 - rate) * own + rate * (1 - own) / (n_classes - 1)
            fit += math.log(seen)
            wrong.append(1 - (1 - rate) * own / seen)
        pairs.append((math.exp(fit) * (1 - rate) ** 19 * root, wrong))
    total = sum(weight for weight, _ in pairs)
    return [sum(weight * wrong[row] for weight, wrong in pairs) / total for row in range(len(probs))]


@pytest.mark.parametrize("n", [1, 12])
def test_probabilities_agree_with_bayes_rule_in_a_loop(n):
    probs, targets = random_probs(n)
    expected = textbook(probs.tolist(), targets.tolist())
    np.testing.assert_allclose(wrong_probabilities(probs, targets), expected, rtol=1e-6)


def weakened(seed, *, n, spread, share_wrong, confusable=False):
    """Digits under so much noise, some labels wrong: out-of-fold probabilities, labels, and which are wrong."""
    pixels, digits = load_digits(return_X_y=True)
    rng = np.random.default_rng(seed)
    rows = rng.permutation(len(digits))[:n]
    seen, given = pixels[rows] / 16 + spread * rng.standard_normal((n, 64)), digits[rows].copy()
    flipped = rng.random(n) < share_wrong
    others = given[flipped] ^ 1 if confusable else (given[flipped] + rng.integers(1, 10, flipped.sum())) % 10
    given[flipped] = others
    folds = StratifiedKFold(5, shuffle=True, random_state=seed)
    probs = cross_val_predict(LogisticRegression(max_iter=300), seen, given, cv=folds, method="predict_proba")
    return torch.tensor(probs), torch.tensor(given), torch.tensor(flipped)


def reviewed(**how):
    """Means over campaigns: share right; contradicted, wrong of them, the estimate; listed, wrong, the estimate."""
    rows = []
    for seed in range(4):
        probs, given, flipped = weakened(seed, **how)
        errors = find_label_errors(probs, given)
        right, is_listed = share_right(probs, given), errors.wrong_probability >= LIKELY_WRONG
        is_listed &= right >= FEWEST_RIGHT
        wrong = flipped[errors.positions].double()
        rows.append(
            (
                *(right, len(wrong), float(wrong.sum()), float(errors.wrong_probability.sum())),
                *(float(is_listed.sum()), float(wrong[is_listed].sum())),
                float(errors.wrong_probability[is_listed].sum()),
            )
        )
    return np.array(rows).mean(axis=0)


@pytest.mark.parametrize("n", [200, 400])
@pytest.mark.parametrize("share_wrong", [0.0, 0.03])
def test_weak_model_lists_nothing_and_knows_that_most_it_contradicts_is_right(n, share_wrong):
    right, contradicted, wrong, estimate, listed, _, _ = reviewed(n=n, spread=0.6, share_wrong=share_wrong)
    assert 0.35 < right < 0.6
    assert contradicted > 0.4 * n
    assert wrong < 0.1 * contradicted
    assert estimate < 0.15 * contradicted, "confident learning counts about all of them"
    assert listed == 0


@pytest.mark.parametrize(("spread", "least_right"), [(0.0, 0.75), (0.25, 0.65)])
@pytest.mark.parametrize("share_wrong", [0.03, 0.08])
def test_better_models_list_labels_most_of_which_are_wrong_and_say_how_many(spread, least_right, share_wrong):
    right, _, wrong, estimate, listed, listed_wrong, told = reviewed(n=600, spread=spread, share_wrong=share_wrong)
    assert right > least_right
    assert listed_wrong >= 0.5 * listed > 0
    assert listed_wrong > 0.4 * wrong
    assert told == pytest.approx(listed_wrong, rel=0.35)
    assert estimate == pytest.approx(wrong, rel=0.5)


@pytest.mark.parametrize("spread", [0.0, 0.25])
def test_where_no_label_is_wrong_hardly_any_is_listed(spread):
    _, _, _, _, listed, _, told = reviewed(n=400, spread=spread, share_wrong=0.0)
    assert listed <= 2, "in each campaign of 400 labels"
    assert told <= listed


def test_wrong_labels_between_two_classes_are_found_too():
    _, _, wrong, _, listed, listed_wrong, told = reviewed(n=600, spread=0.0, share_wrong=0.05, confusable=True)
    assert listed_wrong > 0.6 * listed
    assert listed_wrong > 0.5 * wrong
    assert told == pytest.approx(listed_wrong, rel=0.35)


def test_label_that_a_sure_model_contradicts_is_found_however_alike_its_images_are():
    probs = torch.full((24, 3), 2e-4).double()
    classes = torch.arange(24) % 3
    probs[torch.arange(24), classes] = 1 - 4e-4
    probs[0] = torch.tensor([3e-4, 9.994e-1, 3e-4])  # a little less sure than of the others
    errors = find_label_errors(probs, classes)
    assert errors.positions.tolist() == [0]
    assert errors.suggested.tolist() == [1]
    assert float(errors.wrong_probability[0]) > 0.5


def test_ties_go_to_the_lower_position():
    probs, targets = random_probs(300, seed=1, coarse=True)
    errors = find_label_errors(probs, targets)
    assert (errors.suggested_probability > errors.given_probability).all()
    steps = errors.wrong_probability.diff()
    assert (steps <= 0).all()
    assert (steps == 0).any()
    assert (errors.positions.diff()[steps == 0] > 0).all()


def test_any_order_of_the_classes_finds_the_same_images():
    probs, targets = random_probs(200)
    order = torch.tensor([2, 0, 3, 1])
    errors, reordered = find_label_errors(probs, targets), find_label_errors(probs[:, order], order.argsort()[targets])
    assert torch.equal(errors.positions, reordered.positions)
    assert torch.equal(errors.suggested, order[reordered.suggested])
    torch.testing.assert_close(errors.wrong_probability, reordered.wrong_probability)


def test_predictions_that_know_nothing_find_nothing():
    assert len(find_label_errors(torch.full((30, 3), 1 / 3), torch.arange(30) % 3).positions) == 0


def test_refuses_logits_and_labels_of_other_images():
    with pytest.raises(ValueError, match="probs: row"):
        find_label_errors(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ValueError, match="got 4 and 3"):
        find_label_errors(torch.full((4, 2), 0.5), torch.zeros(3, dtype=torch.long))
