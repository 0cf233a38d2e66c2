"""Tokens cut into windows: which are inputs, which targets, and where a document ends."""

import numpy as np
import pytest

from experiments.lib.data.windows import END, cut_windows, join
from experiments.lib.runs.errors import BadData


def test_every_document_has_its_end_behind_it():
    joined = join([np.array([5, 6], np.uint8), np.array([300])])
    np.testing.assert_array_equal(joined, [5, 6, END, 300, END])
    assert joined.dtype == np.int32


@pytest.mark.parametrize(
    ("length", "context", "count"), [(7, 3, 2), (8, 3, 2), (6, 3, 1), (2, 1, 1)]
)
def test_every_token_but_the_first_is_a_target_once(length, context, count):
    tokens = np.arange(length, dtype=np.int32)
    windows = cut_windows(tokens, context, "it")
    assert windows.inputs.shape == windows.targets.shape == (count, context)
    np.testing.assert_array_equal(windows.targets.ravel(), np.arange(1, count * context + 1))
    np.testing.assert_array_equal(windows.inputs + 1, windows.targets)
    with pytest.raises(BadData, match="it have 1 tokens; a window takes 4"):
        cut_windows(tokens[:1], 3, "it")
