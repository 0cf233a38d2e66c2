"""A row of tokens cut into examples for next-token prediction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from experiments.lib.runs.errors import BadData

# The token that ends a document.
END = 0


class Windows(NamedTuple):
    """Examples for next-token prediction.

    Attributes:
      inputs: (n, context) int32.
      targets: (n, context) int32, at each place the token that follows it.
    """

    inputs: np.ndarray
    targets: np.ndarray


def join(documents: Iterable[np.ndarray]) -> np.ndarray:
    """The tokens of all documents in a row, (k,) int32, each with `END` behind it."""
    end = np.array([END], np.int32)
    return np.concatenate([part.astype(np.int32) for tokens in documents for part in (tokens, end)])


def cut_windows(tokens: np.ndarray, context: int, of: str) -> Windows:
    """Windows side by side: every token but the first is a target once, but for the remainder.

    Args:
      tokens: (k,) int32.
      context: tokens in a window.
      of: what the tokens are of, for the message.

    Returns:
      `(k - 1) // context` windows.

    Raises:
      BadData: there is not one.
    """
    count = (len(tokens) - 1) // context
    if count < 1:
        raise BadData(f"{of} have {len(tokens)} tokens; a window takes {context + 1}")
    stop = count * context
    shape = (count, context)
    return Windows(tokens[:stop].reshape(shape), tokens[1 : stop + 1].reshape(shape))
