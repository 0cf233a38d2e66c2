"""Modular arithmetic: every pair once, every residue as often as it must be."""

import jax
import numpy as np
import pytest

from experiments.lib.data.modular import modular_arithmetic, one_hot_pairs, table


@pytest.mark.parametrize("operation", ["+", "-", "*", "/"])
def test_every_pair_is_there_once_with_its_result(operation):
    p = 7
    pairs, results = table(p, operation)
    a, b = pairs.T
    assert (
        len(np.unique(pairs, axis=0)) == len(pairs) == (p * (p - 1) if operation == "/" else p**2)
    )
    undone = {"+": results - b, "-": results + b, "/": results * b, "*": a}[operation]
    np.testing.assert_array_equal(undone % p, a)
    # Sums and differences hit each residue p times, quotients p - 1 times; a product is zero if
    # either factor is, and any other residue p - 1 times.
    counts = {"+": [p] * p, "-": [p] * p, "/": [p - 1] * p, "*": [2 * p - 1] + [p - 1] * (p - 1)}
    np.testing.assert_array_equal(np.bincount(results), counts[operation])
    assert table(p, "*")[1][3 * p + 5] == 1  # 3 times 5 is 15


def test_the_parts_share_no_pair_and_are_the_keys():
    data = modular_arithmetic(jax.random.key(0), 11, train_fraction=0.6)
    assert (len(data.targets), len(data.test_targets)) == (73, 48)  # of 121
    both = np.concatenate([data.inputs, data.test_inputs])
    assert len(np.unique(both, axis=0)) == 121
    np.testing.assert_array_equal(data.test_inputs.sum(1) % 11, data.test_targets)
    other = modular_arithmetic(jax.random.key(1), 11, train_fraction=0.6)
    assert (other.inputs != data.inputs).any()


def test_two_unit_vectors_stand_for_a_pair():
    hot = one_hot_pairs(np.array([[0, 2], [1, 1]]), 3)
    np.testing.assert_array_equal(hot, [[1, 0, 0, 0, 0, 1], [0, 1, 0, 0, 1, 0]])


def test_what_is_no_table_or_no_split_is_refused():
    for p, operation, message in (
        (1, "+", "at least 2, got 1"),
        (9, "/", "prime modulus, got p = 9"),
        (5, "^", r"one of \+, -, \*, /, got '\^'"),
    ):
        with pytest.raises(ValueError, match=message):
            table(p, operation)
    with pytest.raises(ValueError, match="of 25 pairs leaves one part empty"):
        modular_arithmetic(jax.random.key(0), 5, train_fraction=1.0)
