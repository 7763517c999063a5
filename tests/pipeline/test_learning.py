"""The rules of learning that need no file: what is crossed, what is held out, what a recipe is made of."""

from dataclasses import fields

import pytest
import torch

from pipeline.learning.lesson import Lesson, OutOfFold, can_cross, held_out_labels, sample_pool
from pipeline.learning.networks import check_network, phase_of
from pipeline.learning.out_of_fold import phase_to_cross, with_out_of_fold
from pipeline.learning.settings import MemberSettings, ModelSettings
from pipeline.networks.errors import ModelError
from pipeline.tasks import classification, detection, segmentation
from pipeline.training.recipe import Recipe

PRETRAINED = ModelSettings(
    name="tests.flows.tiny:tiny_network", weights="factory", image_size=12, channels=1, all_from=10
)
DRAWN = ModelSettings(name="small_cnn", image_size=12, channels=1)
FEW, MANY = torch.arange(30) % 3, torch.arange(600) % 3


@pytest.mark.parametrize(
    ("settings", "phase", "targets", "crossed"),
    [
        (PRETRAINED, "head", FEW, "head"),
        (PRETRAINED, "head", MANY, "head"),
        (PRETRAINED, "all", FEW, "all"),
        (PRETRAINED, "all", MANY, "head"),
        (PRETRAINED, "head", FEW[:1], None),
        (DRAWN, "all", FEW, None),
        (DRAWN, "all", MANY, None),
    ],
)
def test_labels_are_predicted_out_of_fold_as_they_allow(settings, phase, targets, crossed):
    assert phase_to_cross(phase, targets, settings, task=classification) == crossed


def test_labels_of_one_group_cannot_be_crossed():
    one, two = torch.zeros(30).long(), torch.arange(30) // 15
    assert phase_to_cross("head", FEW, PRETRAINED, task=classification, groups=one) is None
    assert phase_to_cross("head", FEW, PRETRAINED, task=classification, groups=two) == "head"
    assert [can_cross(FEW, one), can_cross(FEW, two), can_cross(FEW[:1])] == [False, True, False]


def test_predictions_of_networks_trained_otherwise_calibrate_nothing():
    lesson = Lesson(classification, 3, "all", torch.zeros(30, 1), FEW)
    logits = torch.zeros(30, 1, 3)
    assert with_out_of_fold(lesson, None) is lesson
    assert with_out_of_fold(lesson, OutOfFold("head", logits, epochs=4)) is lesson
    assert with_out_of_fold(lesson, OutOfFold("all", logits)).out_of_fold is not None
    heads = Lesson(classification, 3, "head", torch.zeros(30, 1), FEW)
    assert (heads.epochs, with_out_of_fold(heads, OutOfFold("head", logits, epochs=4)).epochs) == (None, 4)


def test_a_tenth_of_many_labels_can_be_spared():
    assert len(held_out_labels(MANY, task=classification, seed=0)) == 60
    assert len(held_out_labels(FEW, task=classification, seed=0)) == 0


def test_guesses_are_no_labels():
    lesson = Lesson(classification, 3, "head", torch.arange(40)[:, None], torch.arange(40) % 3, n_labels=30)
    assert torch.equal(lesson.labels, FEW)
    assert torch.equal(lesson.labelled_inputs, torch.arange(30)[:, None])


@pytest.mark.parametrize(("n_labels", "phase"), [(1, "head"), (29, "head"), (30, "all")])
def test_what_is_trained_follows_the_labels_of_each_class(n_labels, phase):
    assert phase_of(PRETRAINED, n_trained_on=n_labels, n_classes=3) == phase
    assert phase_of(DRAWN, n_trained_on=n_labels, n_classes=3) == "all", "there are no features to keep"


def test_a_recipe_has_what_the_settings_have():
    given = {"max_epochs": 7, "patience": 3, "learning_rate": 0.01, "label_smoothing": 0.1, "schedule": "plateau"}
    settings = DRAWN.model_copy(update=given)
    assert settings.recipe == Recipe(**given, augmentation="natural")
    assert {field.name for field in fields(Recipe)} <= ModelSettings.model_fields.keys()
    assert settings.recipe.for_epochs(4).patience is None


def test_dice_is_refused_where_nothing_is_painted():
    settings = DRAWN.model_copy(update={"dice": 1.0, "image_size": 32})
    check_network(settings, MemberSettings(), segmentation, n_classes=3)
    for task in (classification, detection):
        with pytest.raises(ModelError, match=r"dice = 1 adds a loss of painted areas .* leave dice out"):
            check_network(settings, MemberSettings(), task, n_classes=3)


def test_a_sample_of_the_pool_is_of_different_images_and_the_same_in_a_round():
    rows = sample_pool(1000, seed=0, round_number=2)
    assert len(rows.unique()) == len(rows) == 256
    assert torch.equal(rows, sample_pool(1000, seed=0, round_number=2))
    assert sorted(sample_pool(5, seed=0, round_number=2).tolist()) == list(range(5))
