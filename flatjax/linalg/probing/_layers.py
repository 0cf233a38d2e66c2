"""The shares of groups of params in a trace and a density, from the products for the whole."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.krylov import _relations as relations
from flatjax.linalg.krylov._relations import Relation
from flatjax.linalg.probing._estimate import Estimate
from flatjax.linalg.probing._quadrature import SpectralDensity
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _flat as flat


@reading.readable
class LayerSpectrum(NamedTuple):
    """The share of one group of params in the spectrum of the whole.

    Attributes:
      size: the number of params of the group.
      trace: the trace of its diagonal block.
      density: the local density ``tr(P f(A) P) / size`` for the projector P on the group: how much
        of the eigenvectors lies in the group. Not the spectrum of the diagonal block. Quadrature
        weights may be negative by chance.
    """

    size: int
    trace: Estimate
    density: SpectralDensity


def by_group(groups: tuple, numbers: Any) -> dict:
    """Sums by group of a sequence of numbers or arrays, one for each leaf."""
    total: dict = {}
    for name, number in zip(groups, numbers, strict=True):
        total[name] = total[name] + number if name in total else number
    return total


@functools.partial(jax.jit, static_argnums=4)
def moments(
    layout: Any, basis: Tree | None, z: Tree, rest: Tree, groups: tuple
) -> tuple[dict, dict]:
    """Per group of leaves: ``z^T rest``, and ``<z, v_j>`` for every vector of a basis.

    Args:
      layout: how the vectors are packed, of `flat.layout`; so below.
      basis: the basis of a quadrature run, leading axis p; ``None``: no run.
      z: the probe.
      rest: the part of the probe's image in the complement, of `complement.rest`.
      groups: the name of the group of every leaf, in the order of the leaves.

    Returns:
      Two dictionaries by group: scalars, and arrays ``(p,)``, empty without a basis.
    """
    xs, rs = (jax.tree.leaves(flat.unpack(layout, t)) for t in (z, rest))
    forms = by_group(groups, [trees.vdot(x, r) for x, r in zip(xs, rs, strict=True)])
    if basis is None:
        return forms, {}
    bs = jax.tree.leaves(flat.unpack(layout, basis))
    inner = [bases.coefficients(b, x)[0] for b, x in zip(bs, xs, strict=True)]
    return forms, by_group(groups, inner)


@functools.partial(jax.jit, static_argnums=2)
def known_traces(layout: Any, run: Relation, groups: tuple) -> dict:
    """Per group of leaves: the trace that a Lanczos run knows without any probe."""
    diagonal = jax.tree.leaves(flat.unpack(layout, relations.diagonal(run)))
    return by_group(groups, [leaf.sum() for leaf in diagonal])


@functools.partial(jax.jit, static_argnums=2)
def squared_norms(layout: Any, vectors: Tree, groups: tuple) -> dict:
    """Per group of leaves: the squared norm there of every vector, ``(p,)``."""

    def leaf(a):
        rows = a.reshape(a.shape[0], -1).astype(trees.compute_dtype(a.dtype))
        return jnp.square(rows).sum(axis=1)

    return by_group(groups, map(leaf, jax.tree.leaves(flat.unpack(layout, vectors))))


def local_weights(rows: list, s: np.ndarray, lengths: np.ndarray, size: int) -> np.ndarray:
    """The weights of a group's local density at the nodes of the probes' quadratures.

    Args:
      rows: for every probe the inner products of its part in the group with the vectors of its run.
      s: ``(p, steps, steps)``, the eigenvectors of the tridiagonal matrices.
      lengths: ``(p,)``, the norms of the probes.
      size: that of the group.

    Returns:
      ``(p, steps)``.
    """
    inner = np.stack([np.asarray(row, np.float64)[: s.shape[-1]] for row in rows])
    return lengths[:, None] * s[:, 0] * np.einsum("pj,pjk->pk", inner, s) / size
