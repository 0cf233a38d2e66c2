"""Directions in parameter space whose lengths mean the same in every network."""

import functools
from typing import Literal

import jax
import jax.numpy as jnp

from flatjax import _checks as checks
from flatjax import _layouts as layouts
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.vectors import _probes as probes

Biases = Literal["zero", "scale"]


def filter_normalize(
    direction: Tree, params: Tree, *, axis: int | None = None, biases: Biases = "zero"
) -> Tree:
    r"""Give every filter of a direction the norm of the matching filter of the params.

    $$d_{l,j} \leftarrow \lVert \theta_{l,j} \rVert \, \frac{d_{l,j}}{\lVert d_{l,j} \rVert},$$

    with $\theta_{l,j}$ the weights into output $j$ of layer $l$ (Li et al. 2018, section 4).
    Without it a step of length one is a large change of small weights and a small change of large
    ones, and two networks that differ by a rescaling of their layers show curves of different
    width. A filter that is zero in the params or in the direction is zero in the result.

    **Which axis counts the filters depends on the library**, and the wrong one gives a curve that
    looks like any other. It is read off the names of the leaves: the last axis of a ``kernel``
    (flax: ``(..., in, out)``), the first of a ``weight`` (equinox, PyTorch: ``(out, in, ...)``) and
    of an ``embedding`` (one vector per token). Under other names (haiku's ``w``, bare arrays) give
    ``axis``.

    Cost: two passes over the params; no gradient.

    Args:
      direction: a pytree of floating arrays like ``params``.
      params: the point from which the direction leads.
      axis: the axis that counts the filters in all leaves: -1 for weights ``(..., in, out)``, 0 for
        ``(out, in, ...)``; ``None`` to read it off their names.
      biases: how leaves of fewer than two axes (biases, the parameters of normalisation layers) and
        any leaf called ``bias`` are treated: ``"zero"`` sets them to zero, as in the paper's
        figures, ``"scale"`` gives the whole leaf the norm of the params' leaf.

    Returns:
      A pytree like ``params``, in at least float32.

    Raises:
      TypeError: if the direction has another tree structure than the params.
      ValueError: if a leaf has another shape, for an unknown ``biases``, or for a leaf of two axes
        and more whose name does not tell its filters where ``axis`` is not given.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> params = {"kernel": jnp.array([[5.0, 0.0], [0.0, 2.0]])}  # two filters, of norms 5 and 2
      >>> direction = {"kernel": jnp.array([[6.0, 0.0], [8.0, 1.0]])}
      >>> flatjax.filter_normalize(direction, params)["kernel"].tolist()
      [[3.0, 0.0], [4.0, 2.0]]

    References:
      Li, Xu, Taylor, Studer and Goldstein, "Visualizing the loss landscape of neural nets", NeurIPS
      2018, arXiv:1712.09913.
    """
    checks.check_choice("biases", biases, ("zero", "scale"))
    trees.check(direction, trees.structure_of(params), "direction")
    return _normalize(direction, params, filter_axes(params, axis), biases)


def filter_axes(params: Tree, axis: int | None) -> tuple[int | None, ...]:
    """Of every leaf the axis that counts its filters; ``None`` for a bias."""
    axes = []
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        kept = axis
        if layouts.is_bias(path, leaf):
            kept = None
        elif axis is None:
            layout = layouts.layout_of(path)
            if layout is not None:
                kept = layout.outputs
            elif layouts.name_of(path) == "embedding":
                kept = 0
            else:
                raise layouts.unknown(path, leaf, "axis", "-1", "0")
        elif not -leaf.ndim <= axis < leaf.ndim:
            raise ValueError(
                f"axis={axis} is none of params{jax.tree_util.keystr(path)} of shape {leaf.shape}."
            )
        axes.append(kept)
    return tuple(axes)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _normalize(direction, params, filter_axes, biases):
    def leaf(d, p, axis):
        wide = trees.compute_dtype(p.dtype)
        if axis is None and biases == "zero":
            return jnp.zeros(p.shape, wide)
        d, kept = d.astype(wide), None if axis is None else axis % p.ndim
        axes = tuple(i for i in range(p.ndim) if i != kept)
        old = jnp.sqrt(jnp.sum(d**2, axes, keepdims=True))
        new = jnp.sqrt(jnp.sum(p.astype(wide) ** 2, axes, keepdims=True))
        factor = jnp.where(old > 0, new / jnp.where(old > 0, old, jnp.ones_like(old)), 0 * old)
        return factor * d

    leaves, treedef = jax.tree.flatten(direction)
    each = zip(leaves, jax.tree.leaves(params), filter_axes, strict=True)
    return jax.tree.unflatten(treedef, [leaf(d, p, axis) for d, p, axis in each])


def filter_normalized_direction(
    params: Tree, *, key: jax.Array, axis: int | None = None, biases: Biases = "zero"
) -> Tree:
    """A Gaussian direction, filter-normalised.

    The random direction of Li et al. 2018.

    Cost: that of drawing numbers like the params; no gradient.

    Which axis counts the filters is read off the names of the leaves, the last of a ``kernel``
    (flax) and the first of a ``weight`` (equinox, PyTorch); under other names give ``axis``. See
    [`filter_normalize`][].

    Args:
      params: the point from which the direction leads.
      key: a PRNG key.
      axis: the axis that counts the filters: -1 for weights ``(..., in, out)``, 0 for
        ``(out, in, ...)``, ``None`` to read it off the names.
      biases: ``"zero"`` or ``"scale"``, see [`filter_normalize`][].

    Returns:
      A pytree like ``params``, in at least float32; its global norm is that of the params' filters.

    Raises:
      ValueError: for an unknown ``biases``, or a leaf whose name does not tell its filters where
        ``axis`` is not given.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import flatjax
      >>> params = {"kernel": jnp.array([[3.0, 0.0], [4.0, 2.0]]), "bias": jnp.ones(2)}
      >>> d = flatjax.filter_normalized_direction(params, key=jax.random.key(0))
      >>> jnp.linalg.norm(d["kernel"], axis=0).round(3).tolist(), d["bias"].tolist()
      ([5.0, 2.0], [0.0, 0.0])

    References:
      Li, Xu, Taylor, Studer and Goldstein, "Visualizing the loss landscape of neural nets", NeurIPS
      2018, arXiv:1712.09913.
    """
    direction = probes.probe(key, params, "normal")
    return filter_normalize(direction, params, axis=axis, biases=biases)
