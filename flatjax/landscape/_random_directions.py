"""Several random directions: normalised filter by filter or layer by layer, and orthogonal."""

import functools
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from flatjax import _checks as checks
from flatjax import _layouts as layouts
from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.landscape._directions import Biases, filter_axes
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _probes as probes
from flatjax.measures import _objective as objective
from flatjax.transforms._ascent import Mask, expand_mask


def random_directions(
    params: Tree,
    num: int,
    *,
    key: jax.Array,
    normalize: Literal["filter", "layer", "none"] = "filter",
    orthogonal: bool = True,
    mask: Mask | None = None,
    axis: int | None = None,
    biases: Biases = "zero",
) -> Tree:
    r"""Random Gaussian directions, normalised like the params and orthogonal to each other.

    With ``normalize="filter"`` every filter of a direction has the norm of the params' filter
    (Li et al. 2018), see [`filter_normalize`][]; with ``"layer"`` every leaf has that of the
    params' leaf; with ``"none"`` a direction keeps the norm of its Gaussian numbers.

    Orthogonal directions are so exactly, with exactly these norms: they are made orthogonal within
    every filter (every leaf). Filters of fewer entries than directions cannot be; the angles within
    the others make up for them.

    Cost: that of drawing ``num`` vectors, and ``num**2`` passes over one; no gradient.

    Args:
      params: the point from which the directions lead.
      num: how many.
      key: a PRNG key.
      normalize: ``"filter"``, ``"layer"`` or ``"none"``.
      orthogonal: ``False`` for independent directions, orthogonal up to about one over the square
        root of the number of params.
      mask: the leaves that move: a pytree prefix of booleans, or a function of the params that
        returns one; ``None`` for all.
      axis: the axis that counts the filters: -1 for weights ``(..., in, out)``, 0 for
        ``(out, in, ...)``, ``None`` to read it off the names, as for [`filter_normalize`][].
      biases: with ``"filter"`` and ``"layer"``, whether leaves of fewer than two axes, and any leaf
        called ``bias``, stay where they are, ``"zero"``, or get the norm of the params' leaf,
        ``"scale"``.

    Returns:
      A pytree like ``params``, in at least float32, whose leaves have a leading axis ``num``.

    Raises:
      TypeError: if ``params`` holds anything but real floating arrays, or the mask no booleans.
      ValueError: for an unknown option, a mask that leaves nothing, more directions than can be
        orthogonal (NaN when traced), or a leaf whose name does not tell its filters where ``axis``
        is not given.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flatjax
      >>> params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 2.0]]), "bias": jnp.ones(2)}
      >>> d = flatjax.random_directions(params, 2, key=jax.random.key(0))
      >>> d["kernel"].shape, jnp.linalg.norm(d["kernel"], axis=1).round(3).tolist()
      ((2, 2, 2), [[5.0, 2.0], [5.0, 2.0]])
      >>> abs(float(jnp.vdot(d["kernel"][0], d["kernel"][1]))) < 1e-5
      True

    References:
      Li, Xu, Taylor, Studer and Goldstein, "Visualizing the loss landscape of neural nets", NeurIPS
      2018, arXiv:1712.09913.
    """
    checks.check_count("num", num)
    checks.check_choice("normalize", normalize, ("filter", "layer", "none"))
    checks.check_choice("biases", biases, ("zero", "scale"))
    key = checks.check_key(key)
    params = objective.widened(params)
    units = _units(params, normalize, axis, biases, mask)
    if all(unit is None for unit in units):
        raise ValueError("no leaf moves: the mask leaves nothing, or biases only (biases='scale').")
    drawn = probes.block(jax.random.split(key, num), params, "normal")
    directions, possible = _arranged(drawn, params, units, normalize == "none", orthogonal)
    if not loops.is_traced(possible) and not bool(possible):
        raise ValueError(
            f"{num} directions cannot be orthogonal: too many filters have fewer entries than "
            "that. Ask for fewer, or pass orthogonal=False."
        )
    return directions


def _units(params, normalize, axis, biases, mask):
    """Of every leaf the axes that a unit of one norm extends over; ``None`` if it stays."""
    axes = filter_axes(params, axis) if normalize == "filter" else None
    units = []
    leaves = jax.tree_util.tree_leaves_with_path(params)
    flags = jax.tree.leaves(expand_mask(mask, params))
    for i, ((path, leaf), moves) in enumerate(zip(leaves, flags, strict=True)):
        if not isinstance(moves, bool):
            raise TypeError("mask must hold one boolean for a leaf: directions move whole leaves.")
        kept = None if axes is None or axes[i] is None else axes[i] % leaf.ndim
        zero = normalize != "none" and biases == "zero" and layouts.is_bias(path, leaf)
        over = tuple(j for j in range(leaf.ndim) if j != kept)
        units.append(over if moves and not zero and leaf.size else None)
    return tuple(units)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def _arranged(drawn, params, units, whole, orthogonal):
    """The directions, and whether they could be made orthogonal."""
    leaves, treedef = jax.tree.flatten(drawn)
    pairs = zip(leaves, jax.tree.leaves(params), units, strict=True)
    moving = [(d, p, unit) for d, p, unit in pairs if unit is not None]
    possible: Any = jnp.asarray(True)
    if whole:
        rows = [d for d, _, _ in moving]
        made = _orthogonal_vectors(rows) if orthogonal else rows
        possible = jnp.asarray(not orthogonal or len(leaves[0]) <= sum(d[0].size for d in rows))
    elif orthogonal:
        made, possible = _orthogonal_units(moving)
    else:
        made = [_scaled(_unit(d, unit), p, unit) for d, p, unit in moving]
    rest = iter(made)
    out = [
        jnp.zeros_like(d) if unit is None else next(rest)
        for d, unit in zip(leaves, units, strict=True)
    ]
    return jax.tree.unflatten(treedef, out), possible


def _over(unit):
    return tuple(i + 1 for i in unit)  # beside the leading axis of directions


def _inner(a, b, unit):
    return jnp.sum(a * b, _over(unit), keepdims=True)


def _unit(d, unit):
    length = jnp.sqrt(_inner(d, d, unit))
    safe = jnp.where(length > 0, length, jnp.ones_like(length))
    return d / safe


def _scaled(d, p, unit):
    return d * jnp.sqrt(_inner(p[None], p[None], unit))


def _orthogonal_vectors(rows):
    """Gram-Schmidt of whole vectors, each with the norm that it had."""
    norms, done = bases.row_norms(rows), []
    for vector in bases.unstack(rows):
        for _ in range(2 if done else 0):
            vector = bases.project_out(bases.stack(done), vector)
        done.append(trees.normalized(vector)[0])
    return bases.scale_rows(norms, bases.stack(done))


def _orthogonal_units(moving):
    """Orthogonal within every unit that is large enough, and tilted to make up for the others."""
    num = moving[0][0].shape[0]
    dtype = trees.dtype([d for d, _, _ in moving])
    small, weight, made = jnp.zeros((num, num), dtype), jnp.zeros((), dtype), []
    for d, p, unit in moving:
        large = math.prod(p.shape[i] for i in unit) >= num
        rows = _scaled(_orthonormal(d, unit) if large else _unit(d, unit), p, unit)
        made.append((large, rows))
        if large:
            weight += jnp.sum(jnp.square(p)).astype(dtype)
        else:
            small += bases.gram([rows], [rows]).astype(dtype)
    if all(large for large, _ in made):
        return [rows for _, rows in made], jnp.asarray(True)
    # Cosines between the directions, in all large units alike, that cancel the small ones' share.
    cosines = jnp.eye(num, dtype=dtype) - (small - jnp.diag(jnp.diag(small))) / weight
    tilt = jnp.linalg.cholesky(cosines)

    def tilted(rows):
        return jnp.tensordot(tilt.astype(rows.dtype), rows, 1, precision="highest")

    possible = jnp.isfinite(tilt).all()
    return [tilted(rows) if large else rows for large, rows in made], possible


def _orthonormal(d, unit):
    """Gram-Schmidt within every unit, twice."""
    done = []
    for row in d:
        row = _unit(row[None], unit)
        for _ in range(2):
            for q in done:
                row = _unit(row - _inner(q, row, unit) * q, unit)
        done.append(row)
    return jnp.concatenate(done)
