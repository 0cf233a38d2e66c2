"""Data in memory and an MLP as plain arrays, for trajectories inside compiled loops.

    data = small_data("digits", seed=0, train_size=300)
    params = init_mlp(jax.random.key(0), (64, 64, 64, 10), scale=1.0)
    logits = apply_mlp(params, data.inputs)

Inputs are divided by one standard deviation and centred at each pixel's training mean: without the
centring the largest eigenvalue at the start belongs to the mean image and falls in training, and
progressive sharpening is not seen.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np


class SmallData(NamedTuple):
    """Flattened examples; with a leading axis of seeds if stacked.

    Attributes:
      inputs: (n, d) float32.
      targets: (n,) int32, the labels trained on.
      clean_targets: (n,) int32, the true ones.
      test_inputs: (m, d) float32.
      test_targets: (m,) int32.
    """

    inputs: np.ndarray
    targets: np.ndarray
    clean_targets: np.ndarray
    test_inputs: np.ndarray
    test_targets: np.ndarray

    @property
    def noisy(self) -> np.ndarray:
        """(n,) bool: which labels are wrong."""
        return self.targets != self.clean_targets


def small_data(
    name: str,
    *,
    seed: int,
    train_size: int,
    label_noise: float = 0.0,
    test_size: int | None = None,
    num_classes: int = 10,
) -> SmallData:
    """Draws a subset and wrong labels by the seed.

    Args:
      name: `digits`, read from scikit-learn without a data directory, or a TFDS set that is
        prepared in the data directory.
      seed: of subset, order and wrong labels.
      train_size: n.
      label_noise: exactly this fraction of the labels is wrong.
      test_size: m; default all that are not trained on.
      num_classes: of `digits`.

    Returns:
      The data as NumPy arrays.
    """
    if name != "digits":
        return _prepared(name, seed, train_size, label_noise, test_size)
    images, labels = _all_digits()
    if train_size >= len(labels):
        raise ValueError(f"digits has {len(labels)} examples, {train_size} leave none to test on")
    rng = np.random.RandomState(seed)
    order = rng.permutation(len(labels))
    train, test = order[:train_size], order[train_size:][:test_size]
    shift = np.zeros(train_size, np.int32)
    wrong = rng.permutation(train_size)[: round(label_noise * train_size)]
    shift[wrong] = rng.randint(1, num_classes, size=len(wrong))
    mean = images[train].mean(0)
    clean = labels[train]
    return SmallData(
        images[train] - mean,
        (clean + shift) % num_classes,
        clean,
        images[test] - mean,
        labels[test],
    )


@functools.cache
def _all_digits() -> tuple[np.ndarray, np.ndarray]:
    from experiments.lib.digits import digits_arrays

    images, labels = digits_arrays()
    pixels = images.reshape(len(images), -1).astype(np.float32)
    return pixels / pixels.std(), labels.astype(np.int32)


def _prepared(name, seed, train_size, label_noise, test_size) -> SmallData:
    from experiments.lib.data import DataConfig, load_data

    data = load_data(
        DataConfig(
            name=name,
            train_size=train_size,
            test_size=test_size,
            label_noise=label_noise,
            data_seed=seed,
        )
    )
    train, test = data.train.arrays(), data.test.arrays()
    return SmallData(
        train.inputs.reshape(len(train.inputs), -1),
        train.targets,
        train.clean_targets,
        test.inputs.reshape(len(test.inputs), -1),
        test.targets,
    )


def stack_seeds(each: Sequence[SmallData]) -> SmallData:
    """The data of several seeds with a leading axis for `jax.vmap`."""
    return SmallData(*(np.stack(leaves) for leaves in zip(*each, strict=True)))


def init_mlp(key: jax.Array, sizes: Sequence[int], *, scale: float = 1.0) -> dict[str, Any]:
    """W ~ N(0, scale^2 / fan_in), biases zero.

    Args:
      key: a PRNG key.
      sizes: units of every layer, inputs and classes included.
      scale: 1 for squared error; 0.6 starts a cross-entropy network flat, so that its curvature
        has room to grow.

    Returns:
      `{"layer_0": {"kernel", "bias"}, ...}`.
    """
    params = {}
    keys = jax.random.split(key, len(sizes) - 1)
    for i, (k, fan_in, fan_out) in enumerate(zip(keys, sizes[:-1], sizes[1:], strict=True)):
        kernel = scale / np.sqrt(fan_in) * jax.random.normal(k, (fan_in, fan_out))
        params[f"layer_{i}"] = {"kernel": kernel, "bias": jnp.zeros(fan_out)}
    return params


def apply_mlp(
    params: dict[str, Any],
    inputs: jax.Array,
    *,
    activation: Callable[[jax.Array], jax.Array] = jnp.tanh,
) -> jax.Array:
    """The logits (n, classes) of inputs (n, d)."""
    for i in range(len(params)):
        layer = params[f"layer_{i}"]
        inputs = inputs @ layer["kernel"] + layer["bias"]
        if i < len(params) - 1:
            inputs = activation(inputs)
    return inputs


def shuffled_batches(key: jax.Array, size: int, batch_size: int) -> jax.Array:
    """One epoch of minibatches without replacement: indices (size // batch_size, batch_size)."""
    count = size // batch_size
    return jax.random.permutation(key, size)[: count * batch_size].reshape(count, batch_size)


class FlatMlp:
    """An MLP whose parameters are one vector: programs over it are compiled several times faster.

    Attributes:
      size: the number of parameters.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        scale: float = 1.0,
        activation: Callable[[jax.Array], jax.Array] = jnp.tanh,
    ):
        """Takes the units of every layer, the scale of `init_mlp` and the activation."""
        self.sizes, self.scale, self.activation = tuple(sizes), scale, activation
        shapes = jax.eval_shape(lambda: init_mlp(jax.random.key(0), self.sizes))
        zeros = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), shapes)
        vector, self.unravel = jax.flatten_util.ravel_pytree(zeros)
        self.size = vector.size

    def init(self, key: jax.Array) -> jax.Array:
        """Initial parameters, (size,)."""
        tree = init_mlp(key, self.sizes, scale=self.scale)
        return jax.flatten_util.ravel_pytree(tree)[0]

    def init_seeds(self, seeds: Sequence[int]) -> jax.Array:
        """Initial parameters of several seeds, (seeds, size)."""
        return jnp.stack([self.init(jax.random.key(seed)) for seed in seeds])

    def __call__(self, params: jax.Array, inputs: jax.Array) -> jax.Array:
        """The logits (n, classes) of inputs (n, d)."""
        return apply_mlp(self.unravel(params), inputs, activation=self.activation)

    def losses(self, loss: str) -> Callable[[jax.Array, Any], jax.Array]:
        """Returns `losses_fn(params, (inputs, targets)) -> (n,)`, as flatjax's operators take it.

        Args:
          loss: `cross_entropy` or `squared_error`, half the squared distance to the one-hot label.
        """
        from experiments.lib.losses import per_example

        value = per_example(loss)

        def losses_fn(params, batch):
            inputs, targets = batch
            return value(self(params, inputs), targets)

        return losses_fn

    def accuracy(self, params: jax.Array, inputs: jax.Array, targets: jax.Array) -> jax.Array:
        """The share of the examples that are classified as their targets."""
        return (self(params, inputs).argmax(-1) == targets).mean()
