"""The last, linear layer of a model with many classes, of which no logits are kept."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _checks as checks

_BYTES = 2**25  # of the logits of one block: 160 positions of a vocabulary of 50,000


@jax.tree_util.register_dataclass
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

    Tied embeddings: ``LinearHead(features, params["embedding"].T)``. Over devices the positions or
    the classes may be sharded (``Auto`` axes of a mesh); inside ``shard_map`` the positions alone.

    Attributes:
      features: what the layer is applied to, shape ``(n, *positions, d)``.
      kernel: its matrix, shape ``(d, classes)``.
      bias: shape ``(classes,)``, or ``None``.
      block_size: positions per block; ``None`` for as many as make 32 MB of logits in float32.

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
        if self.block_size is not None:
            checks.check_count("block_size", self.block_size)

    @property
    def positions_per_block(self) -> int:
        """How many positions are worked on at once."""
        size = self.block_size or max(16, _BYTES // (4 * max(self.shape[-1], 1)))
        count = 1
        for axis in self.shape[:-1]:
            count *= axis
        return max(1, min(size, count))
