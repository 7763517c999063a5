"""Trainings as tests ask for them: a recipe's values among the arguments, and a validation part where it can be."""

from dataclasses import fields

import torch

from pipeline.tasks import classification
from pipeline.training.cross_fit import cross_fit
from pipeline.training.fit import fit
from pipeline.training.recipe import Recipe
from pipeline.training.splits import split_validation

CPU = torch.device("cpu")
OF_RECIPE = frozenset(field.name for field in fields(Recipe))


def train(model, inputs, targets, *, task=classification, seed=0, device=CPU, held_out=None, **given):
    """`fit`; a tenth of many images is held out unless the test names others."""
    recipe, rest = apart(given)
    if held_out is None:
        generator = torch.Generator().manual_seed(seed)
        held_out = split_validation(task.strata(targets), share=0.1, generator=generator)[1]
    return fit(model, inputs, targets, recipe, task=task, seed=seed, device=device, held_out=held_out, **rest)


def cross(model, features, targets, *, task=classification, seed=0, device=CPU, **given):
    recipe, rest = apart(given)
    return cross_fit(model, features, targets, recipe, task=task, seed=seed, device=device, **rest)


def apart(given):
    """The recipe of what is given, and what belongs to none."""
    recipe = Recipe(**{name: value for name, value in given.items() if name in OF_RECIPE})
    return recipe, {name: value for name, value in given.items() if name not in OF_RECIPE}
