"""Numbers over seeds: means, standard errors of n - 1, rank correlations."""

import math

import numpy as np
import pytest

from experiments.lib.verdicts.statistics import (
    by_seed,
    mean_and_error,
    rank_correlation,
    with_error,
)


def test_the_error_is_that_of_the_mean_with_n_minus_1():
    mean, error = mean_and_error([1.0, 2.0, 6.0])
    assert mean == 3.0
    assert error == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))
    assert mean_and_error([4.0]) == (4.0, None)
    assert mean_and_error([-0.98242456] * 5) == (-0.98242456, 0.0)  # not 5.6e-17
    assert with_error([1.0, 2.0, 6.0]) == "3 ± 1.5"
    assert with_error([0.12345]) == "0.123"


def test_one_number_for_every_seed():
    assert by_seed([7, 9], np.array([1, 2])) == {7: 1.0, 9: 2.0}
    with pytest.raises(ValueError, match="shorter"):
        by_seed([7, 9], [1.0])


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ([1, 2, 3], [1, 8, 27], 1.0),
        ([1, 2, 3, 4], [4, 3, 1, 2], -0.8),
        ([1, 2, 3], [5, 5, 5], math.nan),
        ([5, 5, 5], [1, 2, 3], math.nan),
        ([1, 2, 3], [1, math.inf, 3], math.nan),
        ([1, math.nan, 3], [1, 2, 3], math.nan),
    ],
)
def test_rank_correlation(x, y, expected):
    assert rank_correlation(x, y) == pytest.approx(expected, nan_ok=True)
