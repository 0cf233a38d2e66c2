"""Modular arithmetic: all pairs of residues with the result of one operation, and a split of them.

Power, Burda, Edwards, Babuschkin and Misra, "Grokking: Generalization Beyond Overfitting on Small
Algorithmic Datasets", 2022.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import jax
import numpy as np

Operation = Literal["+", "-", "*", "/"]


class Pairs(NamedTuple):
    """The table of an operation in two parts that share no pair.

    Attributes:
      inputs: (n, 2) int32, the residues a and b.
      targets: (n,) int32, a op b.
      test_inputs: (m, 2) int32.
      test_targets: (m,) int32.
    """

    inputs: np.ndarray
    targets: np.ndarray
    test_inputs: np.ndarray
    test_targets: np.ndarray


def table(p: int, operation: Operation = "+") -> tuple[np.ndarray, np.ndarray]:
    """All pairs and their results modulo `p`, in the order of a, then b.

    Args:
      p: the modulus, a prime for division.
      operation: a / b is the c with b c = a, for b from 1.

    Returns:
      (n, 2) and (n,) int32; n is $p^2$, for division $p (p - 1)$.
    """
    if p < 2:
        raise ValueError(f"the modulus p must be at least 2, got {p}")
    if operation not in get_args(Operation):
        raise ValueError(f"operation is one of {', '.join(get_args(Operation))}, got {operation!r}")
    division = operation == "/"
    if division and any(p % d == 0 for d in range(2, int(p**0.5) + 1)):
        raise ValueError(f"division needs a prime modulus, got p = {p}")
    first, second = np.indices((p, p), dtype=np.int64).reshape(2, -1)
    if division:
        first, second = first[second > 0], second[second > 0]
        inverse = np.array([0, *(pow(b, -1, p) for b in range(1, p))])
        results = first * inverse[second]
    else:
        results = {"+": first + second, "-": first - second, "*": first * second}[operation]
    return np.stack([first, second], 1).astype(np.int32), (results % p).astype(np.int32)


def modular_arithmetic(
    key: jax.Array, p: int, *, operation: Operation = "+", train_fraction: float = 0.5
) -> Pairs:
    """Splits the table of an operation at random.

    Args:
      key: a PRNG key.
      p: the modulus.
      operation: see `table`.
      train_fraction: of the pairs, rounded to whole ones.

    Example:
      >>> data = modular_arithmetic(jax.random.key(0), 31, train_fraction=0.6)
      >>> data.inputs.shape, data.test_inputs.shape
      ((577, 2), (384, 2))
      >>> one_hot_pairs(data.inputs, 31).shape
      (577, 62)
    """
    pairs, results = table(p, operation)
    count = round(train_fraction * len(results))
    if not 0 < count < len(results):
        raise ValueError(
            f"train_fraction {train_fraction} of {len(results)} pairs leaves one part empty"
        )
    order = np.asarray(jax.random.permutation(key, len(results)))
    train, test = order[:count], order[count:]
    return Pairs(pairs[train], results[train], pairs[test], results[test])


def one_hot_pairs(pairs: np.ndarray, p: int) -> np.ndarray:
    """For a perceptron: (n, 2) residues as (n, 2 p) float32, two unit vectors side by side."""
    return np.eye(p, dtype=np.float32)[pairs].reshape(len(pairs), 2 * p)
