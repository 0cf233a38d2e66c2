"""Examples labelled by a teacher network, for students of the same or another size.

    teacher = functools.partial(apply_mlp, init_mlp(jax.random.key(1), (20, 50, 10)))
    data = taught(jax.random.key(0), teacher, dimension=20, train_size=500, test_size=1000)

A perceptron with tanh and without biases is odd and its classes are about as large as each other;
with ReLU some are often empty.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.lib.data.small import SmallData


def taught(
    key: jax.Array,
    teacher: Callable[[jax.Array], jax.Array],
    *,
    dimension: int,
    train_size: int,
    test_size: int,
    label_noise: float = 0.0,
) -> SmallData:
    """Draws inputs from N(0, I); the label is the place of the teacher's largest output.

    Args:
      key: a PRNG key; inputs do not change with `label_noise`.
      teacher: from inputs (n, dimension) to logits (n, classes), classes at least two.
      dimension: of the inputs.
      train_size: n.
      test_size: m; these labels are always the teacher's.
      label_noise: exactly this fraction of the n labels, rounded, is wrong, each of the other
        classes as likely.

    Returns:
      The data as NumPy arrays.
    """
    if not 0 <= label_noise <= 1:
        raise ValueError(f"label_noise is a fraction in [0, 1], got {label_noise}")
    if min(dimension, train_size, test_size) < 1:
        raise ValueError("dimension, train_size and test_size must be at least 1")
    input_key, which_key, shift_key = jax.random.split(key, 3)
    inputs = jax.random.normal(input_key, (train_size + test_size, dimension))
    logits = teacher(inputs)
    if logits.ndim != 2 or len(logits) != len(inputs) or logits.shape[1] < 2:
        raise ValueError(
            f"the teacher must return ({len(inputs)}, classes) logits of two classes or more, "
            f"returned shape {logits.shape}"
        )
    classes = logits.shape[1]
    labels = np.asarray(jnp.argmax(logits, -1), np.int32)
    clean = labels[:train_size]
    wrong = round(label_noise * train_size)
    shift = np.zeros(train_size, np.int32)
    chosen = np.asarray(jax.random.permutation(which_key, train_size))[:wrong]
    shift[chosen] = np.asarray(jax.random.randint(shift_key, (wrong,), 1, classes))
    return SmallData(
        np.asarray(inputs[:train_size], np.float32),
        (clean + shift) % classes,
        clean,
        np.asarray(inputs[train_size:], np.float32),
        labels[train_size:],
    )
