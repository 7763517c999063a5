from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.masks import mask_to_png
from pipeline.members.predict import predict_members
from pipeline.networks.build import build_model
from pipeline.regions import regions_from_json, regions_to_json
from pipeline.selection.batch import select_batch
from pipeline.selection.scoring import REDUCTIONS, score_columns, score_images
from pipeline.selection.settings import SelectionSettings
from pipeline.tasks import TASKS, classification, detection, multi_label, segmentation
from pipeline.tasks.task_type import TaskType, outputs_of
from pipeline.training.fit import class_weights
from pipeline.types import Candidates, Region
from tests.pipeline import dense_task
from tests.pipeline.training import train

CPU = torch.device("cpu")
N_CLASSES = 4
CLASSES = ("cat", "dog", "owl", "fox")
UNITS = {
    "classification": (classification, lambda g: torch.randn(6, N_CLASSES, generator=g), (6,)),
    "dense": (dense_task, lambda g: torch.randn(6, N_CLASSES, 3, 2, generator=g), (6, 3, 2)),
}
"""Tasks whose every decision is between the campaign's classes, one unit of the targets for each."""


class Case(NamedTuple):
    """A task, what people found in six images, and outputs of a network for them."""

    task: TaskType
    labels: list[tuple[Region, ...]]
    outputs: Tensor

    @property
    def targets(self) -> Tensor:
        return self.task.targets(self.labels, CLASSES)


def draw_case(name: str) -> Case:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(0, N_CLASSES, (6, 6), generator=generator).tolist()
    named = [[CLASSES[index] for index in row] for row in drawn]
    labels = {
        "classification": [(Region("image", row[0]),) for row in named],
        "dense": [dense_task.boxes(row, height=3, width=2) for row in named],
        "multi_label": [
            tuple(Region("image", each) for each in sorted({*row[: number % 3]})) for number, row in enumerate(named)
        ],
        "segmentation": [stripes(row) for row in named],
        "detection": [apart(row[: number % 4]) for number, row in enumerate(named)],
    }
    others = {
        "multi_label": (multi_label, lambda g: torch.randn(6, N_CLASSES, generator=g), (6, N_CLASSES)),
        "segmentation": (segmentation, lambda g: torch.randn(6, 1 + N_CLASSES, 4, 4, generator=g), (6, 256, 256)),
        "detection": (detection, sees_nothing, (6, 3, 5)),
    }
    task, draw_outputs, _ = (UNITS | others)[name]
    return Case(task, labels[name], draw_outputs(generator))


def sees_nothing(generator: torch.Generator) -> Tensor:
    """Outputs of a map in whose places there is rather nothing: some of them, around objects, are taught nothing."""
    outputs = torch.randn(6, 5 + N_CLASSES, 8, 8, generator=generator) / 2
    outputs[:, 0] += 3
    return outputs


def stripes(row: list[str]) -> tuple[Region, ...]:
    """A mask of each class on a map of four columns, of which the last has nothing."""
    columns = np.array([*row[:3], ""])
    masks = {name: np.tile(columns == name, (4, 1)) for name in CLASSES}
    return tuple(Region("mask", name, mask=mask_to_png(mask)) for name, mask in masks.items() if mask.any())


def apart(row: list[str]) -> tuple[Region, ...]:
    """Up to three boxes, apart from each other."""
    return tuple(
        Region("box", name, (x, y, x + 0.375, y + 0.25))
        for name, (x, y) in zip(row, ((0.125, 0.125), (0.5625, 0.125), (0.25, 0.5625)), strict=False)
    )


CASES = ("classification", "dense", "multi_label", "segmentation", "detection")
"""Every task of the product, and tasks that only tests have."""


@pytest.fixture(params=CASES)
def of_people(request) -> Case:
    return draw_case(request.param)


def learnt_by_heart(case: Case, *how: Tensor | float | None) -> Tensor:
    """Outputs that were changed until they fit the targets, by the loss with these weights and smoothing."""
    outputs = case.outputs.clone().requires_grad_()
    for rate in (0.5, 0.05):
        optimiser = torch.optim.Adam([outputs], lr=rate)
        for _ in range(60):
            optimiser.zero_grad()
            case.task.loss(outputs, case.task.wanted(case.targets, outputs), *how).backward()
            optimiser.step()
    return outputs.detach()


def probs_of(case: Case, outputs: Tensor) -> Tensor:
    return case.task.logits(outputs).softmax(dim=-1)


def alike(ours: Tensor, theirs: Tensor) -> bool:
    """Whether targets mean the same: of boxes, up to a fiftieth of the image and to the number of empty rows."""
    if not ours.is_floating_point():
        return torch.equal(ours, theirs)
    n_rows = max(ours.shape[1], theirs.shape[1])
    empty = torch.tensor([-1.0, 0, 0, 0, 0])
    padded = [torch.cat([one, empty.expand(len(one), n_rows - one.shape[1], 5)], dim=1) for one in (ours, theirs)]
    return torch.allclose(*padded, atol=0.02)


def test_every_task_type_keeps_the_contract():
    assert set(TASKS) <= set(CASES)
    assert all(draw_case(name).task is task for name, task in TASKS.items())


@pytest.mark.parametrize("name", TASKS)
def test_a_step_of_training_has_the_images_that_suit_the_task_unless_a_number_is_given(name):
    case = draw_case(name)
    form = {"n_classes": N_CLASSES, "image_size": 32, "channels": 1, "dropout": 0.0, "seed": 0}
    model = build_model("small_cnn", outputs=outputs_of(case.task, N_CLASSES), **form)
    images = torch.arange(36, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 32, 32)
    sizes = []
    model.trunk.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    how = {"task": case.task, "max_epochs": 1, "min_steps": 1, "held_out": torch.arange(0)}
    for given, wanted in ((None, case.task.batch_size), (12, 12)):
        sizes.clear()
        train(model, images, torch.cat([case.targets] * 6), batch_size=given, **how)
        assert (sizes[0], sum(sizes)) == (wanted, 36)


def test_few_images_of_a_map_are_a_step_because_each_has_many_places():
    assert (segmentation.batch_size, detection.batch_size) == (8, 8)
    assert (classification.batch_size, multi_label.batch_size) == (32, 32)


def test_regions_become_the_targets_of_each_image_alone(of_people):
    task, labels, _ = of_people
    targets = of_people.targets
    assert len(targets) == 6
    assert len(targets.unique(dim=0)) > 1
    task.check_targets(targets, 6, N_CLASSES)
    for image, regions in enumerate(labels):
        assert alike(task.targets([regions], CLASSES), targets[image : image + 1])
    kept = [regions_from_json(regions_to_json(regions)) for regions in labels]
    assert torch.equal(task.targets(kept, CLASSES), targets), "they come back from a table"
    for wrong, n in ((targets, 5), (targets, 7), (targets[:0], 0)):
        with pytest.raises(ValueError, match="target"):
            task.check_targets(wrong, n, N_CLASSES)


def test_label_of_a_manifest_means_regions_that_people_could_give(of_people):
    task, labels, _ = of_people
    read = [task.read_label(task.write_label(regions)) for regions in labels]
    assert {region.kind for regions in read for region in regions} == {task.asks.kind}
    assert torch.equal(task.targets(read, CLASSES), of_people.targets)
    for name in CLASSES if task.asks.kind == "image" else ():
        assert [region.label for region in task.read_label(name)] == [name], "as people write it"


def test_what_one_person_found_is_the_consensus_of_those_who_found_the_same(of_people):
    task, labels, _ = of_people
    for n_people in (1, 3):
        agreed = [task.consensus([regions] * n_people) for regions in labels]
        assert alike(task.targets([regions for regions, _ in agreed], CLASSES), of_people.targets)
        assert [agreement for _, agreement in agreed] == pytest.approx([1.0] * 6)


def test_two_of_three_people_are_the_consensus(of_people):
    task, labels, _ = of_people
    targets = of_people.targets
    one, other = next((a, b) for a in range(6) for b in range(6) if not torch.equal(targets[a], targets[b]))
    for given in ((one, one, other), (one, other, one), (other, one, one)):
        regions, agreement = task.consensus([labels[image] for image in given])
        assert alike(task.targets([regions], CLASSES), targets[one, None])
        assert 0 <= agreement < 1
    regions, agreement = task.consensus([labels[one], labels[other]])
    task.check_targets(task.targets([regions], CLASSES), 1, N_CLASSES)
    assert 0 <= agreement < 1


def test_loss_falls_to_what_fits_and_takes_weights_and_smoothing(of_people):
    task, _, outputs = of_people
    targets, wanted = of_people.targets, task.wanted(of_people.targets, outputs)
    weights = class_weights(task.class_counts(targets, N_CLASSES))
    for how in ((), (weights,), (None, 0.1), (weights, 0.1)):
        fitted = learnt_by_heart(of_people, *how)
        before, after = task.loss(outputs, wanted, *how), task.loss(fitted, wanted, *how)
        assert before.shape == ()
        assert after < before
    assert task.loss(learnt_by_heart(of_people), wanted) < 0.1
    assert all(value.shape == () and value.isfinite() for value in task.metrics(outputs, wanted).values())


def test_logits_give_the_probabilities_of_each_decision(of_people):
    task, _, outputs = of_people
    probs = probs_of(of_people, outputs)
    n, n_decisions, _ = probs.shape
    assert n == 6
    assert (n_decisions == 1) == task.has_one_decision
    torch.testing.assert_close(probs.sum(dim=-1), torch.ones(n, n_decisions))
    for image in range(6):
        torch.testing.assert_close(task.logits(outputs[image : image + 1])[0], task.logits(outputs)[image])


def test_answered_decisions_are_those_whose_right_answer_the_targets_tell(of_people):
    task = of_people.task
    fitted = probs_of(of_people, learnt_by_heart(of_people))
    values, right, image, decision = task.answered(fitted, of_people.targets)
    n, n_decisions, n_answers = fitted.shape
    assert len(values) == len(right) == len(image) == len(decision) > 0
    assert 0 <= image.min() <= image.max() < n
    assert 0 <= decision.min() <= decision.max() < n_decisions
    assert 0 <= right.min() <= right.max() < n_answers
    assert len({*zip(image.tolist(), decision.tolist(), strict=True)}) == len(image), "each once"
    assert torch.equal(values, fitted[image, decision])
    assert torch.equal(values.argmax(dim=1), right), "they are what the loss teaches"


def test_strata_and_class_counts_are_those_of_the_answers(of_people):
    task, _, outputs = of_people
    logits, targets = task.logits(outputs), of_people.targets
    strata = task.strata(targets)
    assert strata.shape == (6,)
    assert strata.dtype == torch.int64
    assert strata.min() >= 0
    counts = task.class_counts(targets, N_CLASSES)
    assert counts.dtype == torch.float64
    _, right, _, decision = task.answered(logits, targets)
    if logits.shape[2] == 1 + N_CLASSES:  # images or objects are counted, and not cells
        assert ((counts > 0) == (right.bincount(minlength=1 + N_CLASSES)[1:] > 0)).all()
        return
    are_classes = logits.shape[2] == N_CLASSES  # else each class is a decision of its own, and the last answer is yes
    named = right if are_classes else decision[right == logits.shape[2] - 1]
    assert counts.tolist() == named.bincount(minlength=N_CLASSES).tolist()


def test_guesses_are_regions_of_known_classes_and_of_a_sure_network_the_right_ones(of_people):
    task, _, outputs = of_people
    for each in (outputs, learnt_by_heart(of_people)):
        guesses = task.guess(probs_of(of_people, each), CLASSES, task.places(each))
        assert len(guesses) == 6
        found = [region for regions in guesses for region in regions]
        assert {region.label for region in found} <= set(CLASSES)
        assert {region.kind for region in found} <= {task.asks.kind}
        assert all(region.score is not None and 0 <= region.score <= 1 for region in found)
        assert task.asks.several or all(len(regions) == 1 for regions in guesses)
    assert alike(task.targets(guesses, CLASSES), of_people.targets)


def test_measure_has_a_headline_inside_its_interval(of_people):
    task, _, outputs = of_people
    drawn, fitted = (
        task.measure(probs_of(of_people, each), of_people.targets, CLASSES, task.places(each))
        for each in (outputs, learnt_by_heart(of_people))
    )
    for metrics in (drawn, fitted):
        assert metrics.n == 6
        assert metrics.headline
        assert 0 <= metrics.low <= metrics.value <= metrics.high <= 1
        assert metrics.nll >= 0
        assert 0 <= metrics.ece <= 1
        assert all(set(by_class) <= set(CLASSES) for by_class in metrics.by_class.values())
        assert metrics.table is None or np.shape(metrics.table) == (N_CLASSES, N_CLASSES)
    assert drawn.value < fitted.value == 1.0
    assert fitted.nll < drawn.nll


def test_answers_in_words_name_a_class_and_differ(of_people):
    task, _, outputs = of_people
    _, n_decisions, n_answers = task.logits(outputs).shape
    for decision in range(n_decisions):
        words = [task.in_words(decision, answer, CLASSES, n_decisions) for answer in range(n_answers)]
        assert len(set(words)) == n_answers
        assert all(any(name in told for name in (*CLASSES, "nothing")) for told in words)


@pytest.fixture(params=sorted(UNITS))
def case(request):
    """A task, logits and targets of six images."""
    task, draw_logits, shape = UNITS[request.param]
    generator = torch.Generator().manual_seed(0)
    return task, draw_logits(generator), torch.randint(0, N_CLASSES, shape, generator=generator)


def by_decision(logits, targets):
    """Rows of log-probabilities and their target, in plain lists."""
    rows = logits.double().log_softmax(dim=1).movedim(1, -1).reshape(-1, N_CLASSES)
    return list(zip(rows.tolist(), targets.flatten().tolist(), strict=True))


def test_the_loss_is_the_mean_over_the_decisions(case):
    task, logits, targets = case
    expected = np.mean([-row[target] for row, target in by_decision(logits, targets)])
    assert task.loss(logits, targets).item() == pytest.approx(expected, rel=1e-5)


def test_class_weights_weigh_each_decision_by_its_class(case):
    task, logits, targets = case
    weights = [0.5, 1.0, 2.0, 4.0]
    rows = by_decision(logits, targets)
    expected = sum(-weights[t] * row[t] for row, t in rows) / sum(weights[t] for _, t in rows)
    assert task.loss(logits, targets, torch.tensor(weights)).item() == pytest.approx(expected, rel=1e-5)


def test_label_smoothing_gives_its_share_to_all_classes_evenly(case):
    task, logits, targets = case
    expected = np.mean([-0.9 * row[t] - 0.1 * np.mean(row) for row, t in by_decision(logits, targets)])
    assert task.loss(logits, targets, None, 0.1).item() == pytest.approx(expected, rel=1e-5)


def test_decisions_are_probabilities_of_every_class(case):
    task, logits, targets = case
    decisions = task.logits(logits).softmax(dim=-1)
    assert decisions.shape == (6, targets[0].numel(), N_CLASSES)
    torch.testing.assert_close(decisions.sum(dim=-1), torch.ones(decisions.shape[:2]))
    by_hand = torch.tensor([row for row, _ in by_decision(logits, targets)]).exp().float()
    torch.testing.assert_close(decisions.reshape(-1, N_CLASSES), by_hand)


def test_metrics_are_scalars_and_accuracy_counts_the_right_decisions(case):
    task, logits, targets = case
    metrics = task.metrics(logits, targets)
    assert all(value.shape == () for value in metrics.values())
    expected = np.mean([row[target] == max(row) for row, target in by_decision(logits, targets)])
    assert metrics["accuracy"].item() == pytest.approx(expected)


def test_every_image_has_one_stratum_and_every_label_is_counted(case):
    task, _, targets = case
    strata = task.strata(targets)
    assert strata.shape == (6,)
    assert strata.dtype == torch.int64
    counts = task.class_counts(targets, N_CLASSES)
    assert counts.tolist() == [(targets == label).sum() for label in range(N_CLASSES)]
    assert (class_weights(counts)[targets]).mean().item() == pytest.approx(1.0)


def test_targets_that_do_not_fit_are_refused(case):
    task, _, targets = case
    task.check_targets(targets, 6, N_CLASSES)
    for wrong, n in ((targets, 5), (targets[:0], 0), (targets - 1, 6), (targets + 1, 6)):
        with pytest.raises(ValueError, match="target"):
            task.check_targets(wrong, n, N_CLASSES)


@pytest.fixture(scope="module")
def dense():
    """A dense network, trained on 64 images of 7 x 7 labelled squares."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = dense_task.dense_model(n_classes=3, image_size=28)
    outcome = train(
        model,
        *dense_task.patchwork(64),
        task=dense_task,
        seed=0,
        device=CPU,
        learning_rate=3e-3,
        max_epochs=8,
        label_smoothing=0.05,
    )
    torch.set_num_threads(threads)
    return model, outcome


def test_a_dense_task_trains_with_the_same_fit(dense):
    model, outcome = dense
    images, targets = dense_task.patchwork(32, seed=1)
    with torch.inference_mode():
        accuracy = (model(images).argmax(dim=1) == targets).float().mean()
    assert accuracy > 0.8  # of three classes
    assert outcome.history[-1]["train_loss"] < outcome.history[0]["train_loss"]


def test_a_large_dense_labelled_set_has_a_validation_part():
    images, targets = dense_task.patchwork(300, size=12)
    model = dense_task.dense_model(n_classes=3, image_size=12)
    outcome = train(model, images, targets, task=dense_task, seed=0, device=CPU, max_epochs=1)
    assert len(outcome.held_out) == pytest.approx(30, abs=2)
    with torch.inference_mode():
        logits = model(images[outcome.held_out])
    weights = class_weights(dense_task.class_counts(targets[outcome.train], 3))
    expected = nn.functional.cross_entropy(logits, targets[outcome.held_out], weight=weights)
    assert outcome.history[0]["validation_loss"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("mc_dropout", [0, 4])
def test_members_scores_and_strategies_take_a_dense_task_as_it_is(dense, mc_dropout):
    """Grey images, between the brightness of two classes, are asked for before clear ones."""
    model, _ = dense
    clear, _ = dense_task.patchwork(20, seed=2)
    unsure = torch.full_like(clear[:4], 70) + clear[:4] % 4
    images = torch.cat([clear, unsure])
    decisions, embeddings, _ = predict_members([model], images, task=dense_task, mc_dropout=mc_dropout, seed=0)
    assert decisions.shape == (24, 49, max(1, mc_dropout), 3)
    assert embeddings.shape == (24, 64)
    for reduce in REDUCTIONS:
        scores = score_columns(decisions, {name: (name, reduce) for name in ("entropy", "margin")})
        assert all(values.shape == (24,) and values.isfinite().all() for values in scores.values())
    scores = score_images(decisions, "entropy", reduce="mean")
    ids = np.array([f"image-{number:02d}" for number in range(24)])
    candidates = Candidates(ids=ids, scores=scores, embeddings=embeddings)
    batch = select_batch(candidates, SelectionSettings(strategy="top_k", query_size=4), round_number=1, seed=0)
    assert set(batch.ids) == set(ids[20:])
    diverse = select_batch(
        candidates, SelectionSettings(strategy="top_k_diverse", query_size=4), round_number=1, seed=0
    )
    assert len(diverse.ids) == 4
