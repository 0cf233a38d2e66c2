r"""Losses of a [`LinearHead`][] and products with their matrices, a block of positions at a time.

With $z = h W + b$ the outputs of the model are the head's features, kernel and bias, and the matrix
of the loss with respect to these is $J_z^\top M J_z$. A block forms its own logits and nothing of
the others', so what is kept is the features and one gradient of the kernel.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _collectives as collectives
from flatjax import _loops as loops
from flatjax import _nodes as nodes
from flatjax import _trees as trees
from flatjax.losses._linear_head import LinearHead


def values(loss: Any, head: LinearHead, targets: jax.Array, there: jax.Array) -> jax.Array:
    """The loss of every position, zero where ``there`` is false; shape ``there.shape``.

    A derivative forms the logits of a block anew, by ``jax.checkpoint``.
    """

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def block(layer, features, targets, there):
        found = loss.checked_values(layer(features), targets)
        return jnp.where(there, found, jnp.zeros_like(found))

    layer = _Layer(head.kernel, head.bias)
    features = _where(there, head.features)
    return _over_blocks(
        head, lambda done, *xs: (done, block(layer, *xs)), (), features, targets, there
    )[1]


def product(
    loss: Any, kind: str, head: LinearHead, targets: Any, tangents: LinearHead, factors: jax.Array
) -> LinearHead:
    """The sum over the examples of their factor times the product with their matrix.

    Args:
      loss: an output loss with ``per="example"``.
      kind: ``"hessian_product"``, or with targets of a leading axis of draws, over which the mean
        is taken, ``"score_product"`` or ``"gradient_product"``.
      head: the outputs.
      targets: the targets.
      tangents: a head of tangents.
      factors: of every example, shape ``(n,)``; one of factor zero does not count.

    Returns:
      A head of cotangents.
    """
    rows = factors.reshape(-1, *(1,) * (head.ndim - 2))
    if kind == "hessian_product":
        return _hessian_product(loss, head, targets, tangents, rows)
    draws = jax.tree.leaves(targets)[0].shape[0]

    def one(total, drawn):
        found = _gradient_product(loss, kind, head, drawn, tangents, rows)
        return jax.tree.map(jnp.add, total, found), ()

    first = one(trees.zeros(trees.structure_of(tangents)), jax.tree.map(lambda a: a[0], targets))[0]
    rest = jax.tree.map(lambda a: a[1:], targets)
    total = first if draws == 1 else loops.scan(one, first, rest)[0]
    return jax.tree.map(lambda a: a / draws, total)


def resample(loss: Any, keys: jax.Array, head: LinearHead, targets: jax.Array) -> jax.Array:
    """Targets drawn from the model with one key an example, shape like those of ``sample``.

    Every position has a key of its own, folded from its example's by its place.
    """
    places = jnp.arange(math.prod(head.shape[1:-1])).reshape(head.shape[1:-1])
    fold = lambda key: jax.vmap(lambda i: jax.random.fold_in(key, i))(places.reshape(-1))  # noqa: E731
    each = jax.vmap(fold)(keys).reshape(head.shape[:-1])
    layer = _Layer(head.kernel, head.bias)

    def one(key, z, target):
        return loss.resample(key, z[None], target[None])[0]

    def block(done, features, targets, keys):
        return done, jax.vmap(one)(keys, layer(features), targets)

    return _over_blocks(head, block, (), head.features, targets, each)[1]


def _hessian_product(loss, head, targets, tangents, rows):
    weights = loss.position_weights(head, targets)
    weights = weights * rows.astype(weights.dtype)
    there = weights != 0
    layer, moved = _Layer(head.kernel, head.bias), _Layer(tangents.kernel, tangents.bias)

    def block(total, features, tangents, targets, weights):
        z, back = jax.vjp(lambda layer, features: layer(features), layer, features)
        dz = layer.without_bias(tangents) + moved(features)
        found = loss.hessian_values(z, targets, dz)
        found = found * weights.reshape(-1, *(1,) * (found.ndim - 1)).astype(found.dtype)
        found = jnp.where((weights != 0)[:, None], found, jnp.zeros_like(found))
        own, cotangents = back(found.astype(z.dtype))
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, own), cotangents

    start = trees.zeros(trees.structure_of(layer))
    start = collectives.varying(start, tuple(collectives.axes_of((head, tangents, weights))))
    features, moves = _where(there, head.features), _where(there, tangents.features)
    layer_bar, features_bar = _over_blocks(head, block, start, features, moves, targets, weights)
    return LinearHead(features_bar, layer_bar.kernel, layer_bar.bias, head.block_size)


def _gradient_product(loss, kind, head, targets, tangents, rows):
    """``J^T (s * J t)`` with J of the losses of the examples, or of the single positions."""
    weights = loss.position_weights(head, targets)
    rows = rows.astype(weights.dtype)
    there = weights * rows != 0

    def losses(head):
        found = values(loss, head, targets, there)
        if kind == "gradient_product":
            found = (found * weights.astype(found.dtype)).reshape(found.shape[0], -1).sum(axis=1)
        return found

    slopes = jax.jvp(losses, (head,), (tangents,))[1]
    if kind == "gradient_product":
        slopes = slopes * rows.reshape(-1).astype(slopes.dtype)
    else:
        slopes = jnp.where(there, slopes * (weights * rows).astype(slopes.dtype), 0)
    found = jax.vjp(losses, head)[1](slopes)[0]
    return trees.cast(found, trees.structure_of(tangents))


@nodes.register
@dataclasses.dataclass(frozen=True)
class _Layer:
    kernel: Any
    bias: Any

    def __call__(self, features):
        z = self.without_bias(features)
        return z if self.bias is None else z + self.bias[None]

    def without_bias(self, features):
        return features @ self.kernel


def _where(there, features):
    """Zeros in place of the features that do not count: they may be NaN."""
    return jnp.where(there[..., None], features, jnp.zeros_like(features))


def _over_blocks(head, body, carry, *arrays):
    """``body(carry, *block) -> (carry, rows)`` over blocks of the positions; the rows together."""
    positions = head.shape[:-1]
    count, size = math.prod(positions), head.positions_per_block
    flat = jax.tree.map(lambda a: a.reshape(count, *a.shape[len(positions) :]), arrays)
    if size >= count:
        carry, rows = body(carry, *flat)
        return carry, rows.reshape(*positions, *rows.shape[1:])
    whole, rest = divmod(count, size)
    cut = whole * size
    blocks = jax.tree.map(lambda a: a[:cut].reshape(whole, size, *a.shape[1:]), flat)
    carry, rows = loops.scan(lambda c, xs: body(c, *xs), carry, blocks)
    rows = rows.reshape(cut, *rows.shape[2:])
    if rest:
        carry, last = body(carry, *jax.tree.map(lambda a: a[cut:], flat))
        rows = jnp.concatenate([rows, last])
    return carry, rows.reshape(*positions, *rows.shape[1:])
