"""The networks with and without batch normalisation, and how they are told apart."""

from __future__ import annotations

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp

from experiments.lib.nets.mlp import FlatMlp, init_mlp

EPSILON = 1e-5


class BatchNormMlp(FlatMlp):
    """A `FlatMlp` that normalises every hidden layer over the batch it is given.

    There are no running averages: the statistics are those of the examples asked about, all of
    them, in training and in measuring. Its losses are therefore no sum over examples, and their
    Hessian is taken with the statistics moving along.
    """

    def __init__(self, sizes: tuple[int, ...], *, scale: float = 1.0):
        """See `FlatMlp`; the hidden layers have a scale and a shift in place of a bias."""
        super().__init__(sizes, scale=scale)
        vector, self.unravel = jax.flatten_util.ravel_pytree(self._tree(jax.random.key(0)))
        self.size = vector.size

    def _tree(self, key):
        tree = init_mlp(key, self.sizes, scale=self.scale)
        for layer in list(tree.values())[:-1]:
            bias = layer.pop("bias")
            layer |= {"shift": bias, "scale": jnp.ones_like(bias)}
        return tree

    def init(self, key: jax.Array) -> jax.Array:
        """Initial parameters, (size,)."""
        return jax.flatten_util.ravel_pytree(self._tree(key))[0]

    def __call__(self, params: jax.Array, inputs: jax.Array) -> jax.Array:
        """The logits (n, classes) of inputs (n, d), normalised over the n."""
        *hidden, last = self.unravel(params).values()
        for layer in hidden:
            values = inputs @ layer["kernel"]
            centred = values - values.mean(0)
            spread = jax.lax.rsqrt(jnp.square(centred).mean(0) + EPSILON)
            inputs = self.activation(centred * spread * layer["scale"] + layer["shift"])
        return inputs @ last["kernel"] + last["bias"]


@functools.cache
def network(inputs: int, width: int, scale: float, batch_norm: bool) -> FlatMlp:
    """Three hidden tanh layers; one object for each, so that programs are compiled once."""
    kind = BatchNormMlp if batch_norm else FlatMlp
    return kind((inputs, width, width, width, 10), scale=scale)


@functools.cache
def losses_of(net: FlatMlp):
    """Per-example cross-entropy of a network; one function object for each."""
    return net.losses("cross_entropy")
