"""The confusion matrix of a round, as a table and as a picture; rows are true classes."""

import warnings
from collections.abc import Sequence
from io import BytesIO

import numpy as np
import pandas as pd

from connectors.escaping import csv_cell

LONGEST_NAME = 40
"""Signs of a class that the picture shows."""


def confusion_table(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> pd.DataFrame:
    """The matrix with names; one that a spreadsheet would take for a formula begins with an apostrophe: `csv_cell`."""
    cells = [csv_cell(name) for name in classes]
    return pd.DataFrame(counts, index=cells, columns=cells)


def confusion_picture(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> bytes:
    """The matrix as a PNG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from sklearn.metrics import ConfusionMatrixDisplay

    side = min(20.0, 3.0 + 0.45 * len(counts))
    picture = BytesIO()
    # A class may be called $x_1$: no text is a formula.
    with rc_context({"text.parse_math": False, "text.usetex": False}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from")  # a box stands for what the font does not have
        warnings.filterwarnings("ignore", r"Matplotlib currently does not support")  # letters that join
        figure = Figure(figsize=(side, side), layout="constrained")
        display = ConfusionMatrixDisplay(np.array(counts), display_labels=[_short(name) for name in classes])
        display.plot(
            ax=figure.subplots(),
            cmap="Blues",
            colorbar=False,
            xticks_rotation="vertical",
            include_values=len(counts) <= 20,
        )
        figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()


def _short(name: str) -> str:
    """A name that leaves room for the picture."""
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
