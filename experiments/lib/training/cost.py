"""Arms at equal cost: how many gradients an update takes, and what a run reaches within so many.

among = within(records, GRADIENTS["SAM"] * epochs)               # of SGD, as dear as SAM's epochs
final(records, "test_accuracy", among)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

GRADIENTS = {"SGD": 1.0, "SAM": 2.0, "FP": 4 / 3, "GP": 3.0, "IGR": 3.0}
"""Gradients per update. A refresh of FP, every 10 of them, is 3 and a forward pass, a third."""


def within(records: Mapping[str, np.ndarray], epochs: Any) -> np.ndarray:
    """Which records lie within so many epochs, of all runs or of each: (runs, records)."""
    return records["epoch"] <= np.reshape(epochs, (-1, 1)) + 1e-6  # of a quotient, rounding
