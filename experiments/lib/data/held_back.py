"""Which examples are held back to test on, where the data themselves do not say."""

from __future__ import annotations

import numpy as np

from experiments.lib.runs.errors import BadData


def split_rows(
    count: int, test_fraction: float, seed: int, of: str
) -> tuple[np.ndarray, np.ndarray]:
    """Splits 0 .. count - 1, the test part `round(test_fraction * count)` but at least 1 long.

    Raises:
      ValueError: `test_fraction` is not in (0, 1).
      BadData: fewer than two are there, or none is left to train on; the message names `of`.
    """
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction lies in (0, 1), got {test_fraction}")
    held_back = max(1, round(test_fraction * count))
    if held_back >= count:
        raise BadData(f"{of}: {count} in all, {held_back} held back to test on, none to train on")
    # RandomState, not default_rng: its streams are frozen across NumPy versions (NEP 19).
    order = np.random.RandomState(seed).permutation(count)
    return np.sort(order[held_back:]), np.sort(order[:held_back])
