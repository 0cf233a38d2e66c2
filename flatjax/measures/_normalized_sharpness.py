"""Tsuzuku's normalised sharpness: flatness that no rescaling of nodes can change."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from flatjax import _checks as checks
from flatjax import _layouts as layouts
from flatjax import _reading as reading
from flatjax import _trees as trees


@reading.readable
class NormalizedSharpness(NamedTuple):
    """The normalised sharpness of a network and of its layers.

    Attributes:
      value: the sum over the layers.
      layers: the part of every array of params, a pytree of scalars with the structure of the
        params.
      imbalance: the largest relative imbalance of the two terms over all rows and columns, 0 at the
        minimum; the relative error of ``value`` is of the order of its square.
      num_iters: the largest number of alternations that a layer took.
      converged: whether every layer's imbalance came below the tolerance.
    """

    value: jax.Array
    layers: Any
    imbalance: jax.Array
    num_iters: jax.Array
    converged: jax.Array

    __float__ = reading.as_float


def normalized_sharpness(
    params: Any,
    diagonal: Any,
    *,
    axes: tuple[int, int] | None = None,
    form: str = "matrix",
    tol: float | None = None,
    max_iters: int = 10_000,
) -> NormalizedSharpness:
    r"""The normalised sharpness of Tsuzuku et al., from the diagonal of the curvature.

    $$\sum_l \min_{a, b > 0} \sum_{ij} \left( H^l_{ij,ij}\, a_i b_j
    + \frac{(W^l_{ij})^2}{a_i b_j} \right)$$

    (Tsuzuku, Sato & Sugiyama 2020): the expected rise of the loss under noise of variance $a_i b_j$
    against the divergence from a prior of that width, with the best noise level for every node. The
    problem is convex in $\log a, \log b$ and solved by alternating the closed forms
    $a_i^2 = \sum_j (W_{ij}^2 / b_j) / \sum_j H_{ij} b_j$ and the like for $b$.

    Axes that are not node axes (the positions of a convolution kernel) are summed over first, in
    $H$ and in $W^2$. Arrays without two node axes (scales, and biases by their name) have one noise
    level per entry, which gives $2 \sum_i |w_i| \sqrt{H_i}$. Rows and columns without curvature or
    without weights contribute nothing. Negative entries, which only the diagonal of an indefinite
    matrix or a noisy estimate of one has, count as zero: take the Gauss-Newton matrix, or enough
    samples.

    Invariances: exact under $W_{ij} \to c_i W_{ij} d_j$ with the inverse squares on $H$, so under
    every rescaling of nodes of a ReLU network and of normalised layers, of weights of any size; and
    under permutations of nodes.

    Cost: no gradient beyond the diagonal ([`flatjax.diagonal`][]); two passes over the params
    per alternation, and tens of alternations as a rule.

    Args:
      params: a pytree of floating arrays.
      diagonal: the diagonal of the Gauss-Newton matrix or Hessian, a pytree like ``params``.
      axes: the two node axes of arrays of at least two dimensions, inputs before outputs:
        ``(-2, -1)`` for weights ``(..., in, out)``, ``(1, 0)`` for ``(out, in, ...)``. ``None``
        reads them off the names of the leaves, ``kernel`` (flax) and ``weight`` (equinox, PyTorch);
        the two axes of a matrix need no name with ``form="matrix"``.
      form: ``"matrix"``, or ``"row"`` for $b = 1$, the closed form
        $2 \sum_i (\sum_j H_{ij} \sum_j W_{ij}^2)^{1/2}$ with one noise level per node of the *last*
        of the two axes, which is invariant to scales of those nodes only.
      tol: the imbalance at which a layer's alternation stops; ``None`` for the square root of the
        machine precision, at which the value is exact to rounding.
      max_iters: the most alternations.

    Returns:
      A [`NormalizedSharpness`][].

    Raises:
      TypeError: for another tree or dtypes that are not floating.
      ValueError: for other shapes, an unknown ``form``, axes that are not two different ones, or a
        leaf whose name does not tell its axes where they are needed and not given.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> W, H = jnp.ones((2, 3)), 4 * jnp.ones((2, 3))  # a b = 1/2: 6 * (4 / 2 + 2)
      >>> round(float(flatjax.normalized_sharpness(W, H).value), 3)
      24.0
      >>> scale = jnp.array([[10.0], [0.1]])
      >>> round(float(flatjax.normalized_sharpness(scale * W, H / scale**2).value), 3)
      24.0

    References:
      Tsuzuku, Sato and Sugiyama, "Normalized flat minima: exploring scale invariant definition of
      flat minima for neural networks using PAC-Bayesian analysis", ICML 2020, arXiv:1901.04653.
    """
    checks.check_choice("form", form, ("matrix", "row"))
    checks.check_count("max_iters", max_iters)
    trees.check(diagonal, trees.structure_of(params), "diagonal")
    return _layers(params, diagonal, _node_axes(params, axes, form), form, tol, max_iters)


def _node_axes(params, axes, form):
    """Of every leaf the axes of its inputs and outputs; ``None`` where entries stand alone."""
    each = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        found, layout = axes, layouts.layout_of(path)
        if layouts.is_bias(path, leaf):
            found = None
        elif axes is None and layout is not None:
            found = (layout.inputs, layout.outputs)
        elif axes is None:
            if leaf.ndim > 2 or form == "row":
                raise layouts.unknown(path, leaf, "axes", "(-2, -1)", "(1, 0)")
            found = (-2, -1)
        elif len({axis % leaf.ndim for axis in axes if -leaf.ndim <= axis < leaf.ndim}) != 2:
            raise ValueError(
                f"axes must name two different axes, got {axes} for params"
                f"{jax.tree_util.keystr(path)} of shape {leaf.shape}."
            )
        each.append(found)
    return tuple(each)


@partial(jax.jit, static_argnums=(2, 3, 4, 5))
def _layers(params, diagonal, node_axes, form, tol, max_iters):
    leaves, treedef = jax.tree.flatten(params)
    each = [
        _layer(w, h, axes, form, tol, max_iters)
        for w, h, axes in zip(leaves, jax.tree.leaves(diagonal), node_axes, strict=True)
    ]
    layers = jax.tree.unflatten(treedef, [a.value for a in each])
    dtype = trees.dtype(params)
    return NormalizedSharpness(
        value=jnp.stack([a.value.astype(dtype) for a in each]).sum(),
        layers=layers,
        imbalance=jnp.stack([a.imbalance.astype(dtype) for a in each]).max(),
        num_iters=jnp.stack([a.num_iters for a in each]).max(),
        converged=jnp.stack([a.converged for a in each]).all(),
    )


def _layer(w, h, axes, form, tol, max_iters):
    dtype = trees.compute_dtype(w.dtype)
    squares = jnp.square(w.astype(dtype))
    h = jnp.maximum(h.astype(dtype), jnp.zeros((), dtype))
    if axes is not None:
        rest = tuple(set(range(w.ndim)) - {axis % w.ndim for axis in axes})
        squares, h = squares.sum(axis=rest), h.sum(axis=rest)
        if axes[0] % w.ndim > axes[1] % w.ndim:
            squares, h = squares.T, h.T
        if form == "row":
            squares, h = squares.sum(axis=0), h.sum(axis=0)
    if axes is None or form == "row":  # one noise level per entry
        value, zero = 2 * jnp.sqrt(squares * h).sum(), jnp.zeros((), dtype)
        return NormalizedSharpness(value, value, zero, jnp.zeros((), int), jnp.asarray(True))
    tol = float(jnp.finfo(dtype).eps) ** 0.5 if tol is None else tol
    return _balance(squares, h, jnp.asarray(tol, dtype), jnp.asarray(max_iters))


class _Balance(NamedTuple):
    log_a: jax.Array
    log_b: jax.Array
    imbalance: jax.Array
    step: jax.Array


def _alive(has_weight, has_curvature):
    """The entries of rows and columns that have both terms left once the others are dropped.

    The best noise level of a row without one term is zero or infinite, and its other term vanishes.
    """

    def prune(state):
        alive, _ = state
        rows, columns = (
            (has_weight & alive).any(axis=axis, keepdims=True)
            & (has_curvature & alive).any(axis=axis, keepdims=True)
            for axis in (1, 0)
        )
        pruned = alive & rows & columns
        return pruned, (pruned != alive).any()

    start = (jnp.ones_like(has_weight), jnp.asarray(True))
    return lax.while_loop(lambda state: state[1], prune, start)[0]


def _balance(squares, h, tol, max_iters):
    # In logarithms: rescaled networks have weights 1e-20 beside 1e+20, whose squares and curvatures
    # overflow in float32. An empty row has the logarithm -inf, and its noise level stays at 1.
    log_w, log_h = jnp.log(squares), jnp.log(h)
    alive = _alive(squares > 0, h > 0)
    log_w = jnp.where(alive, log_w, -jnp.inf)
    log_h = jnp.where(alive, log_h, -jnp.inf)

    def terms(log_a, log_b, axis):
        noise = log_a[:, None] + log_b[None, :]
        rise = jax.nn.logsumexp(log_h + noise, axis=axis)
        size = jax.nn.logsumexp(log_w - noise, axis=axis)
        return rise, size

    def shift(rise, size):
        both = jnp.isfinite(rise) & jnp.isfinite(size)
        return jnp.where(both, (size - rise) / 2, jnp.zeros_like(rise))

    def body(state):
        log_a = state.log_a + shift(*terms(state.log_a, state.log_b, 1))
        change = shift(*terms(log_a, state.log_b, 0))
        # Balanced in the rows by construction: what is left is the columns'.
        imbalance = jnp.abs(jnp.tanh(change)).max()
        return _Balance(log_a, state.log_b + change, imbalance, state.step + 1)

    def unfinished(state):
        return (state.imbalance > tol) & (state.step < max_iters)

    start = _Balance(
        jnp.zeros_like(log_w[:, 0]), jnp.zeros_like(log_w[0]), jnp.asarray(jnp.inf, log_w.dtype),
        jnp.zeros_like(max_iters),
    )  # fmt: skip
    # No user model inside, so a device loop is fast on every backend.
    state = lax.while_loop(unfinished, body, start)
    rise, size = terms(state.log_a, state.log_b, 1)
    value = (jnp.exp(rise) + jnp.exp(size)).sum()
    return NormalizedSharpness(value, value, state.imbalance, state.step, state.imbalance <= tol)
