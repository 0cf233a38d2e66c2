"""The volume of parameter space around a point in which the loss stays below a threshold."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _loops as loops
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.landscape import _points as points_at
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _probes as probes
from flatjax.measures._search import Crossing
from flatjax.operators._precondition import preconditioned


@reading.readable
class LogVolume(NamedTuple):
    r"""An estimate of a log-volume, with what it rests on.

    Attributes:
      value: the logarithm of the mean volume over the directions. In many dimensions it is biased
        low, and next to nothing but the largest radius enters it.
      lower_bound: the mean of the logarithms, below the log-volume in expectation (Jensen). Its
        spread is small, which makes it the number to compare networks by.
      standard_error: of ``value``: the relative error of the mean volume, and the width of the
        brackets around the radii times the dimension. Infinite where one direction dominates or a
        radius is truncated: then the error is not known.
      effective_samples: how many directions the mean volume rests on, between 1 and their number.
      radii: the radius of every direction, in units of the preconditioned space, shape
        ``(num_directions,)``.
      truncated: in how many directions the loss does not cross the threshold as far as was looked;
        their radii are then too small.
    """

    value: jax.Array
    lower_bound: jax.Array
    standard_error: jax.Array
    effective_samples: jax.Array
    radii: jax.Array
    truncated: jax.Array

    __float__ = reading.as_float

    @property
    def dominated(self) -> jax.Array:
        """Whether ``value`` rests on fewer than two directions: then trust the bound alone."""
        return self.effective_samples < 2


def log_volume(
    loss_fn: Callable[..., Any],
    params: Tree,
    batch: Any,
    *args: Any,
    key: jax.Array,
    threshold: ArrayLike,
    num_directions: int,
    preconditioner: Tree | None = None,
    tol: float = 1e-3,
    max_trials: int = 48,
    args_fn: Callable[[Tree], Any] | None = None,
    weights: Any = None,
    axis_name: collectives.AxisName = None,
) -> LogVolume:
    r"""The log-volume of the star-shaped region around the params where the loss is below a level.

    Along a random direction $u$ the loss first exceeds ``threshold`` at the radius $r(u)$. In $d$
    dimensions the region seen from the params has the volume

    $$V = V_d \, |D|^{-1/2} \, \mathbb{E}_u \, r(u)^d, \qquad
    \log V \ge \log V_d - \tfrac{1}{2} \log |D| + d \, \mathbb{E}_u \log r(u),$$

    with $V_d$ the volume of the unit ball and $\theta + r D^{-1/2} u$ the points, $u$ uniform on
    the unit sphere (Huang et al. 2020, section 4; Scherlis and Belrose 2025). Every $D$ gives the
    same volume and another variance: with the Hessian's diagonal, or better the Hessian itself were
    it diagonal, the radii of a quadratic are all alike. Without a preconditioner the estimate is
    almost always ruled by its largest radius, ``dominated``, and far too low.

    Radii are found from a pilot direction: from a quarter of its radius outwards by doubling until
    the loss is above the threshold, then by bisection. Where the loss rises and falls again between
    two trials, the first crossing is passed over.

    Cost: one forward pass per trial, about 13 per direction at the default tolerance. Memory of a
    forward pass and two vectors. On the devices of a mesh as [`loss_along`][], each in directions
    of its own; the answer is that of one device.

    Args:
      loss_fn: ``loss_fn(params, batch, *args)``, the mean loss (a scalar), the per-example losses,
        shape ``(n,)``, or a [`Mean`][].
      params: a pytree of floating arrays.
      batch: what the loss is evaluated on.
      *args: model state, anything else the loss takes.
      key: a PRNG key.
      threshold: the level, an absolute loss, above that of the params.
      num_directions: how many radii are found.
      preconditioner: D, a tree like the params with positive entries, the curvature of each: the
        Hessian's diagonal ([`diagonal`][], made positive) or the one of [`preconditioner`][].
        ``inf`` freezes an entry; the volume is then that of the others. ``None`` for 1.
      tol: the width of the bracket of a radius, relative to it, at which its search stops. The
        log-volume is uncertain by ``d * tol / 2`` from this alone.
      max_trials: the most trials for a direction.
      args_fn: makes the further arguments anew at every point, as for [`loss_along`][].
      weights: per-example weights or a padding mask, shape ``(n,)``.
      axis_name: inside ``shard_map`` or ``pmap``, the mesh axis over which the batch is split.

    Returns:
      A [`LogVolume`][].

    Raises:
      TypeError: if ``params`` holds anything but real floating arrays, or ``preconditioner`` is
        another tree.
      ValueError: for a threshold that is not above the loss of the params (not looked at when
        traced), a preconditioner that is not positive, or data that do not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flatjax
      >>> h = jnp.array([1.0, 4.0, 16.0])  # an ellipsoid of half axes sqrt(2 / h): 4/3 pi / 2.83
      >>> found = flatjax.log_volume(
      ...     lambda w, _: 0.5 * jnp.sum(h * w**2),
      ...     jnp.zeros(3),
      ...     None,
      ...     key=jax.random.key(0),
      ...     threshold=1.0,
      ...     num_directions=8,
      ...     preconditioner=h,
      ...     tol=1e-5,
      ... )
      >>> round(float(found.value), 2), round(float(found.effective_samples))
      (0.39, 8)

    References:
      Huang, Emam, Goldblum, Fowl, Terry, Huang and Goldstein, "Understanding generalization through
      visualizations", 2020, arXiv:1906.03291; Scherlis and Belrose, "Estimating the probability of
      sampling a trained neural network at random", 2025, arXiv:2501.18812.
    """
    key = checks.check_key(key)
    checks.check_scalar("threshold", threshold)
    checks.check_count("num_directions", num_directions)
    checks.check_scalar("tol", tol, above=0.0)
    checks.check_count("max_trials", max_trials)
    points = points_at.points_of(
        loss_fn, params, batch, args, args_fn=args_fn, weights=weights, axis_name=axis_name
    )
    points_at.only_loss("log_volume", points)
    structure, dtype = points.op.structure, trees.dtype(points.op.params)
    inverse_root = jax.tree.map(lambda a: jnp.ones_like(a), points.op.params)
    if preconditioner is not None:
        inverse_root = preconditioned(points.op, preconditioner).inverse_root
    mesh = None if loops.is_traced(points) else points_at.mesh_to_share(points, inverse_root)
    points, inverse_root = points_at.on_all((points, inverse_root), mesh)
    devices = 1 if mesh is None else mesh.size
    if mesh is not None:  # every device draws its own directions
        structure = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), structure)
    shapes = probes.static(structure)
    level: Any = threshold if loops.is_traced(threshold) else np.asarray(threshold)
    level = level.astype(dtype)

    def radii(part, initial):
        directions = _directions(key, part, inverse_root, shapes, mesh)
        nothing: Any = np.zeros(devices, dtype)  # on the host, where it compiles nothing
        count: Any = np.zeros((), np.int32)
        state = Crossing(nothing, nothing + np.inf, count)

        def step(state):
            return _trial(points, inverse_root, directions, initial, level, state, tol, mesh=mesh)

        state = loops.until(lambda s: _done(s, tol, max_trials), step, step(state))
        return state.lower, state.upper

    numbers = points_at.padded(np.arange(num_directions, dtype=np.int32), devices)
    pilot = numbers[:devices]
    still = _directions(key, pilot, inverse_root, shapes, mesh), np.zeros(devices, dtype)
    at_params = points_at.metrics_at(points, inverse_root, still, place=_out, mesh=mesh)[0]
    if not loops.is_traced((at_params, level)) and not float(at_params) < float(level):
        raise ValueError(
            f"threshold={float(level)} is an absolute loss and must be above that of the params, "
            f"{float(at_params)}."
        )
    initial = _quarter(radii(pilot, np.asarray(1e-2, dtype))[0])
    lower, upper = loops.map_chunks(
        lambda part: radii(part, initial), numbers, devices, on_host=True
    )
    return _summary(lower[:num_directions], upper[:num_directions], inverse_root, dtype)


def _out(params, inverse_root, row):
    direction, radius = row
    return jax.tree.map(
        lambda p, s, u: p + radius.astype(p.dtype) * s * u, params, inverse_root, direction
    )


@functools.partial(jax.jit, static_argnums=(3, 4))
def _directions(key, numbers, inverse_root, shapes, mesh):
    """Unit vectors, the same for a number on any number of devices; frozen entries stay zero."""
    leaves, treedef = shapes
    structure = jax.tree.unflatten(treedef, leaves)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers)
    drawn = probes.block(keys, structure, "normal")
    drawn = jax.tree.map(
        lambda a, s: jnp.where(s[None] > 0, a, jnp.zeros_like(a)), drawn, inverse_root
    )
    unit = bases.scale_rows(1 / bases.row_norms(drawn), drawn)
    if mesh is None:
        return unit
    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    return jax.lax.with_sharding_constraint(unit, jax.tree.map(lambda _: split, unit))


@functools.partial(jax.jit, static_argnames="mesh")
def _trial(points, inverse_root, directions, initial, level, state, tol, mesh):
    radius = state.trial(initial)
    loss = points_at.metrics_at(points, inverse_root, (directions, radius), place=_out, mesh=mesh)
    # A loss that is no number counts as above.
    new = state.updated(radius, ~(loss <= level))
    # A direction waits for those of the other devices.
    lower, upper = (
        jnp.where(state.converged(tol), a, b) for a, b in zip(state[:2], new[:2], strict=True)
    )
    return Crossing(lower, upper, new.num_evaluations)


@jax.jit
def _quarter(below):
    return jnp.maximum(below[0] / 4, jnp.finfo(below.dtype).tiny)


@jax.jit
def _done(state, tol, max_trials):
    return state.converged(tol).all() | (state.num_evaluations >= max_trials)


@jax.jit
def _extent(inverse_root):
    """How many entries move, and the logarithm of the product of their scales."""
    leaves = jax.tree.leaves(inverse_root)
    logs = (jnp.log(jnp.where(a > 0, a, jnp.ones_like(a))).sum() for a in leaves)
    return sum((a > 0).sum() for a in leaves), sum(logs)


def _summary(lower, upper, inverse_root, dtype):
    """The result of the brackets; on the host in float64 unless they are traced."""
    traced = loops.is_traced((lower, upper, inverse_root))
    xp = jnp if traced else np
    if not traced:
        lower, upper = np.asarray(lower, np.float64), np.asarray(upper, np.float64)
    truncated = xp.isinf(upper)
    radii = xp.where(truncated, lower, (lower + upper) / 2)
    dims, log_scale = _extent(inverse_root)
    if not traced:
        dims, log_scale = float(dims), float(log_scale)
    log_gamma = jax.scipy.special.gammaln(dims / 2 + 1) if traced else math.lgamma(dims / 2 + 1)
    constant = dims / 2 * math.log(math.pi) - log_gamma + log_scale
    with np.errstate(divide="ignore", invalid="ignore"):
        logs, low = dims * xp.log(radii), dims * xp.log(lower)
        top = logs.max()
        shares = xp.exp(logs - top)
        mean, n = shares.mean(), len(shares)
        effective = shares.sum() ** 2 / (shares**2).sum()
        sampling = xp.sqrt(((shares - mean) ** 2).sum() / (n * max(n - 1, 1))) / mean
        bracket = dims * ((upper - lower) / (upper + lower) * shares).sum() / shares.sum()
        known = (effective >= 2) & ~truncated.any()
        error = xp.where(known, xp.hypot(sampling, bracket), xp.inf)
        numbers = constant + top + xp.log(mean), constant + low.mean(), error, effective, radii
    value, bound, error, effective, radii = (jnp.asarray(a, dtype) for a in numbers)
    return LogVolume(value, bound, error, effective, radii, jnp.asarray(truncated.sum()))
