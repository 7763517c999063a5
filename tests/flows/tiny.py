"""A network of one's own with weights that are the same whenever it is made; small enough for 12 pixels."""

import torch
from torch import nn


def tiny_network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 8, kernel_size=3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(128, 10),
        )


def two_stages() -> nn.Module:
    """One that drops something in its first stage."""
    stages = nn.Sequential(
        nn.Conv2d(3, 8, kernel_size=3, padding=1),
        nn.Dropout2d(0.3),
        nn.Conv2d(8, 16, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
    )
    return nn.Sequential(stages, nn.Linear(256, 10))
