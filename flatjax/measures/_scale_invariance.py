"""Measures of normalised networks, whose loss ignores the scale of their weights."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from flatjax import _checks as checks
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax.linalg import eigsh, trace
from flatjax.operators._base import Operator
from flatjax.operators._blocks import blocks
from flatjax.operators._selection import By, group_names


@reading.readable
class ScaleInvariantSharpness(NamedTuple):
    r"""The scale-invariant sharpness of groups of params; in dictionaries by group.

    Attributes:
      values: $\lVert w_g \rVert^2$ times the curvature, by the name of the group.
      errors: those of the values, $\lVert w_g \rVert^2$ times the residual norm of the eigenvalue
        or the standard error of the trace.
      curvatures: $\lambda_{\max}(H_{gg})$ or $\mathrm{tr}(H_{gg})$.
      squared_norms: $\lVert w_g \rVert^2$.
      converged: what [`eigsh`][] or [`trace`][] says of its answer.
      total: the sum of the values, a scalar.
      num_products: products spent on all groups.
    """

    values: dict[str, jax.Array]
    errors: dict[str, jax.Array]
    curvatures: dict[str, jax.Array]
    squared_norms: dict[str, jax.Array]
    converged: dict[str, jax.Array]
    total: jax.Array
    num_products: int


def scale_invariant_sharpness(
    op: Operator,
    params: Any,
    *,
    key: jax.Array,
    by: By = "leaf",
    statistic: str = "eigenvalue",
    tol: float | None = None,
    max_products: int | None = None,
    method: str | None = None,
    num_products: int | None = None,
) -> ScaleInvariantSharpness:
    r"""Curvature times squared weight norm, for every group of params.

    $$\lVert w_g \rVert^2\,\lambda_{\max}(H_{gg}) \quad \text{or} \quad
    \lVert w_g \rVert^2\,\mathrm{tr}(H_{gg})$$

    Weights before a normalisation layer have $L(c w) = L(w)$, so that gradients scale as $1 / c$
    and the Hessian as $1 / c^2$ (van Laarhoven 2017): the eigenvalue alone can be made anything,
    this product cannot. It is the curvature on the unit sphere, and gradient descent with step
    $\eta$ is stable there while it is below $2 / (\eta / \lVert w_g \rVert^2)$, with the
    [`effective_learning_rate`][] in place of the step (Lyu, Li & Arora 2022).

    Invariances: exact to the scale of every group for which the loss has none.

    Cost: that of [`eigsh`][] or [`trace`][] for every group, in products with its block.

    Args:
      op: the operator (a Hessian, a Gauss-Newton matrix).
      params: the params at which it was made.
      key: a PRNG key for the estimator.
      by: the groups: ``"leaf"`` (every array), ``"layer"`` (arrays with a common parent), ``"all"``
        (one group), or a function of the path that names the group.
      statistic: ``"eigenvalue"`` or ``"trace"``.
      tol: the residual relative to each eigenvalue; ``None`` for the default of [`eigsh`][].
      max_products: the most products per eigenvalue; ``None`` for the default of [`eigsh`][].
      method: how each trace is estimated; ``None`` for the default of [`trace`][].
      num_products: products per trace; ``None`` for the default of [`trace`][].

    Returns:
      A [`ScaleInvariantSharpness`][] of dictionaries of scalars.

    Raises:
      TypeError: if ``op`` is no operator, or ``params`` another tree.
      ValueError: for an unknown ``by`` or ``statistic``, an option of the other statistic, or other
        shapes.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flatjax
      >>> def loss_fn(w, _):
      ...     return -w[0] / jnp.linalg.norm(w)  # the cosine of an angle
      >>> for scale in (1.0, 10.0):
      ...     w = scale * jnp.array([1.0, 0.0])
      ...     H = flatjax.hessian(loss_fn, w, None)
      ...     s = flatjax.scale_invariant_sharpness(H, w, by="all", key=jax.random.key(0))
      ...     print(round(float(s.total), 3))
      1.0
      1.0

    References:
      van Laarhoven, "L2 regularization versus batch and weight normalization", 2017,
      arXiv:1706.05350; Lyu, Li and Arora, "Understanding the generalization benefit of
      normalization layers: sharpness reduction", NeurIPS 2022, arXiv:2206.07085.
    """
    checks.check_choice("statistic", statistic, ("eigenvalue", "trace"))
    if not isinstance(op, Operator):
        raise TypeError(f"op must be an operator, got {type(op).__name__}: see as_operator.")
    trees.check(params, op.structure, "params")
    options = _options(
        statistic, tol=tol, max_products=max_products, method=method, num_products=num_products
    )
    parts = {"all": op} if by == "all" else blocks(op, by)
    norms = squared_norms(params, by)
    curvatures, errors, converged, spent = {}, {}, {}, 0
    for i, (name, part) in enumerate(parts.items()):
        group_key = jax.random.fold_in(key, i)
        if statistic == "trace":
            found = trace(part, key=group_key, **options)
            curvatures[name], errors[name] = found.value, found.standard_error
            converged[name] = found.converged
        else:
            found = eigsh(part, 1, which="LA", key=group_key, **options)
            curvatures[name], errors[name] = found.values[0], found.residual_norms[0]
            converged[name] = found.converged[0]
        spent += found.num_products
    values = {name: norms[name] * curvatures[name].astype(norms[name].dtype) for name in parts}
    return ScaleInvariantSharpness(
        values=values,
        errors={name: norms[name] * errors[name].astype(norms[name].dtype) for name in parts},
        curvatures=curvatures,
        squared_norms=norms,
        converged=converged,
        total=jnp.stack(list(values.values())).sum(),
        num_products=spent,
    )


def _options(statistic: str, **given: Any) -> dict[str, Any]:
    """The options that are given, all of them of this statistic."""
    takes = ("tol", "max_products") if statistic == "eigenvalue" else ("method", "num_products")
    options = {name: value for name, value in given.items() if value is not None}
    for name in options:
        if name not in takes:
            raise ValueError(f"statistic={statistic!r} takes {' and '.join(takes)}, not {name}.")
    return options


def effective_learning_rate(
    params: Any, learning_rate: ArrayLike, *, by: By = "leaf"
) -> dict[str, jax.Array]:
    r"""The learning rate on the unit sphere, for every group of params.

    $$\eta_{\text{eff}} = \eta / \lVert w_g \rVert^2$$

    (van Laarhoven 2017): where the loss ignores the scale of $w_g$, a gradient step of size $\eta$
    turns its direction as one of size $\eta_{\text{eff}}$ on the unit sphere.

    Invariances: together with $\eta \to c^2 \eta$ under $w_g \to c w_g$.

    Cost: one pass over the params.

    Args:
      params: a pytree of floating arrays.
      learning_rate: the step size of gradient descent.
      by: the groups: ``"leaf"``, ``"layer"``, ``"all"``, or a function of the path.

    Returns:
      A dictionary from the names of the groups to scalars; infinite for a group of zeros.

    Raises:
      ValueError: for an unknown ``by``, or a negative learning rate.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> rates = flatjax.effective_learning_rate({"w": jnp.array([3.0, 4.0])}, 0.5)
      >>> round(float(rates["w"]), 4)
      0.02

    References:
      van Laarhoven, "L2 regularization versus batch and weight normalization", 2017,
      arXiv:1706.05350.
    """
    checks.check_scalar("learning_rate", learning_rate, minimum=0.0)
    norms = squared_norms(params, by)
    return {name: jnp.asarray(learning_rate).astype(a.dtype) / a for name, a in norms.items()}


def angular_update(params: Any, new_params: Any, *, by: By = "leaf") -> dict[str, jax.Array]:
    r"""The angle by which an update turns every group of params.

    $$\angle(w_g, w_g') = \arccos \frac{\langle w_g, w_g' \rangle}
    {\lVert w_g \rVert\,\lVert w_g' \rVert}$$

    in radians (Wan et al. 2021). In equilibrium with weight decay $\lambda$ SGD turns
    scale-invariant weights by $\sqrt{2 \eta \lambda}$ per step. Computed from the chord of the unit
    vectors, which keeps small angles accurate (the arccosine loses all below 3e-4 in float32).

    Invariances: to the scale of every group, before and after; to rotations.

    Cost: one pass over the params.

    Args:
      params: the params before, a pytree of floating arrays.
      new_params: the params after, a pytree like ``params``.
      by: the groups: ``"leaf"``, ``"layer"``, ``"all"``, or a function of the path.

    Returns:
      A dictionary from the names of the groups to angles in [0, pi]; 0 for a group of zeros.

    Raises:
      TypeError: for another tree.
      ValueError: for an unknown ``by``, or other shapes.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> before, after = {"w": jnp.array([1.0, 0.0])}, {"w": jnp.array([2.0, 2.0])}
      >>> round(float(flatjax.angular_update(before, after)["w"]), 4)  # 45 degrees
      0.7854

    References:
      Wan, Zhu, Zhang and Sun, "Spherical motion dynamics: learning dynamics of neural network with
      normalization, weight decay, and SGD", 2020, arXiv:2006.08419.
    """
    trees.check(new_params, trees.structure_of(params), "new_params")
    return {
        name: _angle(old, new)
        for (name, old), new in zip(
            grouped(params, by).items(), grouped(new_params, by).values(), strict=True
        )
    }


def grouped(tree: Any, by: By) -> dict[str, list[jax.Array]]:
    """The leaves of every group, in the order of the leaves."""
    names = group_names(tree, (lambda _: "all") if by == "all" else by)
    groups: dict[str, list[jax.Array]] = {}
    for name, leaf in zip(names, jax.tree.leaves(tree), strict=True):
        groups.setdefault(str(name), []).append(leaf)
    return groups


def squared_norms(params: Any, by: By) -> dict[str, jax.Array]:
    """The squared norm of every group, in at least float32."""
    return {name: trees.vdot(leaves, leaves) for name, leaves in grouped(params, by).items()}


@jax.jit
def _angle(old, new):
    u, v = (trees.normalized(trees.cast(x, trees.structure_of(x)))[0] for x in (old, new))
    return 2 * jnp.arctan2(
        trees.norm(jax.tree.map(jnp.subtract, u, v)), trees.norm(jax.tree.map(jnp.add, u, v))
    )
