"""A loss whose mean has another normaliser than the number of examples."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _nodes as nodes
from flatjax import _reading as reading
from flatjax import _trees as trees


@reading.readable
@nodes.register
@dataclasses.dataclass(frozen=True)
class Mean:
    r"""A weighted mean in two parts, returned by a loss that is no mean over the examples.

    A scalar loss is taken for the mean over the examples of its batch, so that chunks, streams and
    devices are weighed by their examples. A loss that divides by something else (the unmasked
    tokens of language models, the weights of classes) says by what,

    $$L = \frac{\sum_b \text{total}_b}{\sum_b \text{weight}_b},$$

    and every way of cutting the data into parts $b$ gives the same answer.

    Both fields are scalars, or both have one entry an example, shape ``(n,)``. Then example $i$ has
    the loss $\ell_i = \text{total}_i / \text{weight}_i$ and the weight $\text{weight}_i$ in every
    mean (times its entry of ``weights=``): the covariance of gradients is that of
    $\nabla \ell_i$, and $\bar g$ the gradient of $L$.

    The weight may depend on the batch only. It counts as a constant (``stop_gradient``), whatever
    it is made of. An example or a part of weight zero does not count.

    Attributes:
      total: the weighted sum of the losses, a real floating array.
      weight: the sum of their weights, real numbers.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flatjax
      >>> def loss_fn(w, batch):  # the mean over the unmasked entries
      ...     x, mask = batch
      ...     return flatjax.Mean((mask * (w * x) ** 2).sum(), mask.sum())
      >>> batch = jnp.array([[1.0, 2.0], [3.0, 0.0]]), jnp.array([[1.0, 1.0], [1.0, 0.0]])
      >>> loss_fn(jnp.float32(1.0), batch).value.round(3).tolist()  # (1 + 4 + 9) / 3
      4.667000293731689
      >>> H = flatjax.hessian(loss_fn, jnp.float32(1.0), batch, chunk_size=1)
      >>> (3 * (H @ jnp.float32(1.0))).tolist()
      28.0
    """

    total: Any
    weight: Any

    @property
    def value(self) -> jax.Array:
        """The mean over everything, a scalar; NaN where the weight is zero."""
        total, weight = (jnp.asarray(a) for a in (self.total, self.weight))
        dtype = trees.compute_dtype(total.dtype)
        return total.astype(dtype).sum() / weight.astype(dtype).sum()
