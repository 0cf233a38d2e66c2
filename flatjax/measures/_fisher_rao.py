"""The Fisher-Rao norm of the params."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax import losses
from flatjax.measures import _objective as objective
from flatjax.operators._arguments import matmul_precision
from flatjax.operators._ggn import GaussNewton, fisher
from flatjax.operators._weighting import over_devices


@reading.readable
class FisherRaoNorm(NamedTuple):
    r"""The Fisher-Rao norm.

    Attributes:
      value: $\lVert w \rVert_{fr} = (w^\top F w)^{1/2}$.
      squared: $w^\top F w$.
      from_outputs: $k^2\,\mathbb{E}\,(f^\top M f)$ with the outputs f and the degree of homogeneity
        k; equal to ``squared`` for a homogeneous network. NaN without ``degree``.
    """

    value: jax.Array
    squared: jax.Array
    from_outputs: jax.Array

    __float__ = reading.as_float


def fisher_rao_norm(
    model_fn: Callable[..., jax.Array],
    loss: losses.OutputLoss | Callable[[Any, Any], jax.Array],
    params: Any,
    batch: tuple[Any, Any],
    *args: Any,
    kind: str = "exact",
    degree: ArrayLike | None = None,
    weights: Any = None,
    axis_name: collectives.AxisName = None,
    precision: str | None = "highest",
) -> FisherRaoNorm:
    r"""The length of the params in the Fisher metric.

    $$\lVert w \rVert_{fr}^2 = w^\top F w
    = \frac{1}{n} \sum_i (J_i w)^\top M_i (J_i w)$$

    (Liang et al. 2019) with $J_i$ the Jacobian of the outputs and $M_i$ the output Hessian
    (``"exact"``, the model's own Fisher information) or the outer product of the output gradient at
    the given target (``"empirical"``, the paper's definition). Where they are positively
    homogeneous of degree k in the params, $J_i w = k f_i$ (Euler), so that
    $\lVert w \rVert_{fr}^2 = k^2\,\mathbb{E} f^\top M f$, for ``"empirical"``
    $k^2\,\mathbb{E} \langle \partial \ell / \partial f, f \rangle^2$: k is the number of layers of
    a ReLU network without biases. Give it as ``degree`` and both sides are computed.

    Invariances: to every reparametrisation $w \to S w$ with S linear and invertible that leaves the
    function as it is, so to the rescaling of nodes of ReLU networks.

    Cost: one forward-mode pass, about two forward passes; memory of a forward pass.

    Args:
      model_fn: ``model_fn(params, inputs, *args)``, the outputs, leading axis ``n``.
      loss: an output loss from ``flatjax.losses``, or a function ``(outputs, targets) -> (n,)``
        (for ``"empirical"``).
      params: a pytree of floating arrays; in low precision, taken in float32.
      batch: a pair ``(inputs, targets)``.
      *args: anything else the model takes.
      kind: ``"exact"`` or ``"empirical"``.
      degree: the degree of homogeneity, if the outputs are homogeneous in the params.
      weights: per-example weights or a padding mask, shape ``(n,)``.
      axis_name: the mesh axis over which the batch is split, inside ``shard_map`` or ``pmap``.
      precision: matmul precision; ``None`` leaves the caller's default.

    Returns:
      A [`FisherRaoNorm`][] of scalars.

    Raises:
      TypeError: for params that are not floating, a batch that is no pair, or ``"exact"`` with a
        bare function as the loss.
      ValueError: for an unknown kind, an empty batch or shapes that do not fit.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> x, y = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.zeros(2)
      >>> w = jnp.array([3.0, 4.0])
      >>> result = flatjax.fisher_rao_norm(
      ...     lambda w, x: x @ w, flatjax.squared_error, w, (x, y), degree=1
      ... )
      >>> float(result.squared), float(result.from_outputs)  # (3**2 + 8**2) / 2
      (36.5, 36.5)

    References:
      Liang, Poggio, Rakhlin and Stokes, "Fisher-Rao metric, geometry, and complexity of neural
      networks", AISTATS 2019, arXiv:1711.01530.
    """
    checks.check_choice("kind", kind, ("exact", "empirical"))
    F = fisher(
        model_fn, loss, objective.widened(params), batch, *args, kind=kind, weights=weights,
        axis_name=axis_name, precision=precision,
    )  # fmt: skip
    op = cast(GaussNewton, F)  # not chunked
    squared, outputs = _quadratic_forms(op)
    from_outputs = jnp.full_like(squared, jnp.nan)
    if degree is not None:
        from_outputs = jnp.square(jnp.asarray(degree).astype(outputs.dtype)) * outputs
    return FisherRaoNorm(jnp.sqrt(squared), squared, from_outputs)


class _Identity:
    """The identity as a linear map with a transpose."""

    def __call__(self, u):
        return u

    def transpose(self, u, cotangent):
        del u
        return cotangent


@jax.jit
def _quadratic_forms(op: GaussNewton) -> tuple[jax.Array, jax.Array]:
    """The means of ``(J w)' M (J w)`` and of ``f' M f`` over all devices' examples."""
    with matmul_precision(op.precision):
        linear, aux = op.linear()
        outputs, dtype = aux[0], trees.dtype(op.params)

        def form(tangents):
            # The rule of the operator, J' (s M (J v)), with the identity in place of J.
            product = op.rule(_Identity(), aux, tangents, op.axis_name)
            # Where nothing counts the outputs may be anything.
            there = jnp.where(product != 0, tangents, jnp.zeros_like(tangents))
            mean = trees.vdot(there, product).astype(dtype)
            return over_devices(mean, op.example_weights, op.scale, op.axis_name)

        return form(linear(collectives.varying(op.params, op.axis_name))), form(outputs)
