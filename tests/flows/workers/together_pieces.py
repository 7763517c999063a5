"""What processes do together in tests: functions that they can import."""

import copy
import os
import signal
import time
from functools import partial
from pathlib import Path

import torch
from torch import distributed, nn

from flows.batch_sizes import keep_batch_sizes
from flows.progress import say
from flows.workers.together import LostProcess
from pipeline.members.swag import swag_draws
from pipeline.tasks import TASKS
from pipeline.tasks.task_type import TaskType
from pipeline.training.fit import TrainingError, loss_of
from pipeline.training.gradients import Learner
from pipeline.training.ranks import Ranks
from pipeline.training.recipe import Recipe
from tests.pipeline.test_halving import N_CLASSES, SIDE, network
from tests.pipeline.training import CPU, train

N = 35
"""Of which 31 are trained on: the last batch of 8 has 7, an odd number."""
RECIPE = {"max_epochs": 3, "batch_size": 8, "min_steps": 1, "augmentation": "natural", "patience": 5}


def learn(folder: Path, how: tuple[str, int]) -> None:
    """Train a network for a task, whose device has room for so many images; the first process writes it."""
    task, ranks = TASKS[how[0]], Ranks.here()
    keep_batch_sizes()
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (N, 1, SIDE, SIDE), dtype=torch.uint8, generator=generator)
    targets = torch.arange(N) % N_CLASSES
    if how[0] == "segmentation":
        painted = torch.randint(N_CLASSES + 1, (N, SIDE, SIDE), generator=generator)
        targets = painted.repeat_interleave(32, 1).repeat_interleave(32, 2).to(torch.uint8)
    model = network(how[1], task=task)
    outcome = train(model, images, targets, task=task, held_out=torch.arange(4, 8), **RECIPE)
    state, most = copy.deepcopy(model.state_dict()), max(model.trunk[0].seen)
    (folder / f"{ranks.rank} of {ranks.size}").write_text(f"{most}")
    gradients = [gradients_of(task, images[:n], targets[:n]) for n in (7, 1)]
    check_alike(task, images, targets)
    if ranks.is_first:  # what it does afterwards does not wait for the others
        how_drawn = {"n_draws": 1, "n_columns": 2, "seed": 0, "device": CPU}
        next(iter(swag_draws(model, images, targets, Recipe(batch_size=8), task=task, **how_drawn)))
        torch.save({"state": state, "history": outcome.history, "gradients": gradients}, folder / "learnt.pt")


def gradients_of(task: TaskType, images: torch.Tensor, targets: torch.Tensor) -> list[torch.Tensor]:
    """Of the loss of one batch."""
    model, ranks = network(task=task).train(), Ranks.here()
    loss = partial(loss_of, recipe=Recipe(), task=task, class_weights=torch.tensor([1.0, 2.0, 10.0]))
    weights = list(model.parameters())
    Learner(model, ranks.wrapped(model), task, loss, weights, ranks).set_gradients(images, targets, label_smoothing=0.1)
    return [values.grad for values in weights]


def check_alike(task: TaskType, images: torch.Tensor, targets: torch.Tensor) -> None:
    """See that all processes come to the same network, though each drops other features and sees other statistics.

    Also one with weights that play no part in what it answers.
    """
    model = network(task=task, norm=True, dropout=0.5)
    model.spare = nn.Linear(1, 1)
    train(model, images, targets, task=task, held_out=torch.arange(4, 8), **RECIPE)
    of_first = Ranks.here().as_first(model.state_dict())
    torch.testing.assert_close(model.state_dict(), of_first, rtol=0, atol=0)


def be_killed(_folder: Path, _piece: None) -> None:
    """The second process dies while the first one waits for it."""
    if Ranks.here().rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    distributed.barrier()


def be_wrong(_folder: Path, _piece: None) -> None:
    if Ranks.here().rank == 1:
        raise TrainingError("the loss is nan")
    distributed.barrier()


def wait(folder: Path, _piece: None) -> None:
    (folder / f"{os.getpid()}.waits").touch()
    if Ranks.here().rank == 1:
        time.sleep(600)
    distributed.barrier()


def lose_one(folder: Path, _n: int) -> None:
    """What a worker of Ray tells of a piece that lost a process at the first try."""
    if not (folder / "lost").exists():
        (folder / "lost").touch()
        raise LostProcess("process 2 of 2 ended with SIGKILL")


def telling_network() -> nn.Module:
    """A network that tells once which process of how many it is trained by."""
    return nn.Sequential(
        Tells(), nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10)
    )


class Tells(nn.Module):
    has_told = False

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training and not self.has_told:
            self.has_told = True
            say(f"process {Ranks.here().rank + 1} of {Ranks.here().size}")
        return images
