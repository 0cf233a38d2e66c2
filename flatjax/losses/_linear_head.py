"""The last, linear layer of a model with many classes, of which no logits are kept."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _nodes as nodes
from flatjax import _reading as reading

# Of the logits of one block: 128 positions of a vocabulary of 50,000, which
# `benchmarks/large_vocabulary.py` measures.
_BYTES = 2**25


@reading.readable
@nodes.register
@dataclasses.dataclass(frozen=True)
class LinearHead:
    r"""Logits $z = h W + b$ that are not formed: what a model returns in their place.

    The output losses of flatjax take one wherever they take logits, and work on a block of
    positions at a time: value, gradient, Hessian, Gauss-Newton and Fisher products, drawn targets.
    No array of all positions times all classes exists, which for a language model of 50,304 tokens
    is most of the memory of a product.

    The memory is that of the features, of the kernel and its gradient and of some five blocks. The
    matrix products are those of the logits, none more in a gradient or a product with a matrix; a
    linearised product and the value beside a gradient (``jax.value_and_grad``) form the logits once
    more, five matrix products of the head for four and four for three.

    Tied embeddings: ``LinearHead(features, params["embedding"].T)``. Over devices the positions may
    be split in every way; the kernel by its columns, the classes, over ``Auto`` axes of a mesh: in
    ``jit``, or in a ``shard_map`` whose ``axis_names`` leave them out.

    Attributes:
      features: what the layer is applied to, shape ``(n, *positions, d)``.
      kernel: its matrix, shape ``(d, classes)``.
      bias: shape ``(classes,)``, or ``None``.
      block_size: positions per block; ``None`` for the power of two that makes up to 32 MB of
        logits in float32.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flatjax
      >>> def model_fn(params, inputs):
      ...     return flatjax.losses.LinearHead(jnp.tanh(inputs @ params["in"]), params["out"])
      >>> params = {"in": jnp.eye(3), "out": jnp.ones((3, 7))}
      >>> batch = jnp.ones((4, 5, 3)), jnp.zeros((4, 5), int)  # 4 sequences of 5 tokens
      >>> loss = flatjax.softmax_cross_entropy(per="token")
      >>> loss.mean(model_fn(params, batch[0]), batch[1]).value.round(4).tolist()  # log 7
      1.9458999633789062
      >>> G = flatjax.ggn(model_fn, loss, params, batch)
      >>> flatjax.trace(G, num_products=G.size, key=jax.random.key(0)).value.round(4).tolist()
      1.4915000200271606
    """

    features: Any
    kernel: Any
    bias: Any = None
    block_size: int | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the logits."""
        return (*self.features.shape[:-1], self.kernel.shape[-1])

    @property
    def ndim(self) -> int:
        """The number of their axes."""
        return len(self.features.shape)

    @property
    def dtype(self) -> Any:
        """Their dtype."""
        leaves = [a for a in (self.features, self.kernel, self.bias) if a is not None]
        return jnp.result_type(*(a.dtype for a in leaves))

    def logits(self) -> jax.Array:
        """The logits themselves, shape ``shape``: as much memory as they take."""
        logits = self.features @ self.kernel
        if self.bias is None:
            return logits
        return logits + self.bias.reshape((1,) * (logits.ndim - 1) + self.bias.shape)

    def check(self) -> None:
        """Raise ``ValueError`` or ``TypeError`` unless the shapes fit together."""
        features, kernel = self.features.shape, self.kernel.shape
        if len(kernel) != 2 or len(features) < 2 or features[-1] != kernel[0]:
            raise ValueError(
                "LinearHead needs features of shape (n, *positions, d) and a kernel of shape "
                f"(d, classes), got {features} and {kernel}"
                f"{': transpose it' if features[-1:] == kernel[1:] else ''}."
            )
        if self.bias is not None and self.bias.shape != kernel[1:]:
            raise ValueError(
                f"the bias of LinearHead must have shape {kernel[1:]}, got {self.bias.shape}."
            )
        split = collectives.axes_of(self.kernel) - collectives.axes_of(self.features)
        if split:
            raise ValueError(
                f"the kernel of LinearHead is split over the mesh axes {sorted(map(str, split))} "
                "of shard_map, over which the features are not: leave these axes to the compiler, "
                "jax.shard_map(..., axis_names=those of the batch), or use jit."
            )
        if self.block_size is not None:
            checks.check_count("block_size", self.block_size)

    @property
    def positions_per_block(self) -> int:
        """How many positions are worked on at once."""
        fit = max(16, _BYTES // (4 * max(self.shape[-1], 1)))
        size = self.block_size or 2 ** (fit.bit_length() - 1)
        return max(1, min(size, math.prod(self.shape[:-1])))
