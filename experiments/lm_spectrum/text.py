"""The text: a row of tokens, of which the last tenth is held back.

text = load("pydoc", vocabulary=256, context=64)
batch = drawn(key, text.train, 16, 64)               # inside jit
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.lib.data.windows import Windows, cut_windows, join
from experiments.lib.runs.errors import BadData

HELD_BACK = 0.1


class Text(NamedTuple):
    """Rows of tokens.

    Attributes:
      train: (k,) int32, what is trained on.
      test: likewise, what is held back.
    """

    train: np.ndarray
    test: np.ndarray


def load(data: str, *, vocabulary: int, context: int) -> Text:
    """Reads a text.

    Args:
      data: `pydoc`, the reference texts that come with CPython, as bytes with a zero byte behind
        each; a file of text, as bytes; or an `.npy` file of token ids.
      vocabulary: all tokens are smaller.
      context: tokens in a window, of which each part must have one.

    Raises:
      BadData: there is no such text, or it is none of this vocabulary, or too short.
    """
    if data == "pydoc":
        tokens = _reference()
    elif not Path(data).is_file():
        raise BadData(
            f"there is no file {data!r}: --data takes pydoc, a text file, or an .npy file of tokens"
        )
    elif data.endswith(".npy"):
        tokens = _ids(data)
    else:
        tokens = np.frombuffer(Path(data).read_bytes(), np.uint8)
    if len(tokens) and (tokens.min() < 0 or tokens.max() >= vocabulary):
        raise BadData(
            f"{data} has tokens from {tokens.min()} to {tokens.max()}; --vocabulary {vocabulary} "
            f"takes 0 to {vocabulary - 1}"
        )
    tokens = tokens.astype(np.int32)
    cut = len(tokens) - round(HELD_BACK * len(tokens))
    found = Text(tokens[:cut], tokens[cut:])
    for name, part in found._asdict().items():
        cut_windows(part, context, f"the {name} part of {data}")  # or says that it is too short
    return found


def _reference() -> np.ndarray:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise BadData(
            "this Python comes without its reference texts (pydoc_data): give --data FILE.txt"
        ) from error
    return join(np.frombuffer(topics[name].encode(), np.uint8) for name in sorted(topics))


def _ids(path: str) -> np.ndarray:
    try:
        tokens = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise BadData(f"{path} cannot be read: {error}") from error
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise BadData(
            f"{path} holds {tokens.dtype} of shape {tokens.shape}; token ids are one row of "
            "integers"
        )
    return tokens


def spread(tokens: np.ndarray, count: int, context: int) -> Windows:
    """So many windows of a row, evenly spread over it.

    Raises:
      BadData: it has fewer.
    """
    windows = cut_windows(tokens, context, "a part of the text")
    if count > len(windows.inputs):
        raise BadData(f"{count} windows are to be measured; the text has {len(windows.inputs)}")
    chosen = np.linspace(0, len(windows.inputs) - 1, count).round().astype(int)
    return Windows(windows.inputs[chosen], windows.targets[chosen])


def drawn(key: jax.Array, tokens: Any, count: int, context: int) -> tuple[jax.Array, jax.Array]:
    """So many windows that begin anywhere: inputs and the tokens that follow, (count, context)."""
    starts = jax.random.randint(key, (count, 1), 0, len(tokens) - context)
    rows = tokens[starts + np.arange(context + 1)]
    return rows[:, :-1], rows[:, 1:]
