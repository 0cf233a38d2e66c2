"""Curves through parameter space: every point is a linear combination of some control points.

A curve is a pytree whose leaves are all its control points, those that move (``free``) apart from
those that stay (``fixed``): an optimiser is given ``curve.free``, and the gradient of a loss at a
point of the curve with respect to a control point is its coefficient there times the gradient.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from flatjax import _nodes as nodes
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.vectors import _basis as bases

_PANELS, _NODES = 8, 12  # of the quadrature of a curve's length


@reading.readable
@dataclasses.dataclass(frozen=True, eq=False)
class Curve:
    """A curve from its first control point, at t = 0, to its last, at t = 1.

    Made by [`bezier`][] and [`chain`][]; ``curve(t)`` is the point at ``t``, in at least float32.

    Attributes:
      free: the control points that move, a pytree like the params whose leaves have a leading axis
        of as many; ``None`` if none does.
      fixed: the others.
      moves: for every control point in order, whether it moves.
    """

    free: Tree
    fixed: Tree
    moves: tuple[bool, ...] = dataclasses.field(metadata={"static": True})

    @property
    def controls(self) -> Tree:
        """All control points in order, a pytree whose leaves have a leading axis of as many."""
        order = np.argsort([*np.flatnonzero(self.moves), *np.flatnonzero(~np.array(self.moves))])
        parts = [part for part in (self.free, self.fixed) if part is not None]
        return jax.tree.map(lambda *a: jnp.concatenate(a)[order], *parts)

    def with_free(self, free: Tree) -> "Curve":
        """The curve with other control points in place of those that move."""
        return dataclasses.replace(self, free=free)

    def __call__(self, t: ArrayLike) -> Tree:
        """The point at ``t``, a pytree like the params."""
        return _point(self, self._position(t))

    def velocity(self, t: ArrayLike) -> Tree:
        """The derivative of the point with respect to ``t``."""
        return _velocity(self, self._position(t))

    def length(self, stop: ArrayLike = 1.0) -> jax.Array:
        """The length of the curve up to ``t = stop``, by Gauss-Legendre quadrature."""
        return self.lengths(self._position(stop)[None])[0]

    def lengths(self, stops: jax.Array) -> jax.Array:
        """The lengths up to every ``t`` of ``stops``, shape ``(m,)``.

        Cost: the inner products of the control points' differences, whatever ``m``.
        """
        return _lengths(self, stops)

    def coefficients(self, t: jax.Array) -> jax.Array:
        """Of each control point its part in the point at ``t``."""
        raise NotImplementedError

    def slopes(self, t: jax.Array) -> jax.Array:
        """Of the difference of each two neighbouring control points its part in the velocity."""
        raise NotImplementedError

    def sample(self, key: jax.Array, num: int, stratified: bool) -> jax.Array:
        """Random positions, uniform in [0, 1]; stratified: one in each of ``num`` equal parts."""
        drawn = jax.random.uniform(key, (num,), self._dtype)
        if not stratified:
            return drawn
        return (jnp.arange(num, dtype=drawn.dtype) + drawn) / num

    def free_coefficients(self, t: jax.Array) -> jax.Array:
        """The coefficients of the control points that move."""
        return self.coefficients(t)[np.flatnonzero(self.moves)]

    @property
    def _dtype(self):
        return trees.dtype((self.free, self.fixed))

    def _position(self, t):
        return jnp.asarray(t, self._dtype)


def _combined(curve, c):
    which = np.flatnonzero(curve.moves), np.flatnonzero(~np.array(curve.moves))
    parts = [
        bases.combine(part, c[chosen])
        for part, chosen in zip((curve.free, curve.fixed), which, strict=True)
        if part is not None
    ]
    return jax.tree.map(lambda *a: sum(a[1:], a[0]), *parts)


@jax.jit
def _point(curve, t):
    return _combined(curve, curve.coefficients(t))


@jax.jit
def _velocity(curve, t):
    slopes = curve.slopes(t)
    # A slope s of p_1 - p_0 is one of s for p_1 and of -s for p_0.
    zero = jnp.zeros((1,), slopes.dtype)
    return _combined(curve, jnp.concatenate([zero, slopes]) - jnp.concatenate([slopes, zero]))


def _products(curve):
    """The inner products of the differences of neighbouring control points."""
    differences = jax.tree.map(lambda a: a[1:] - a[:-1], curve.controls)
    return bases.gram(differences, differences)


@jax.jit
def _lengths(curve, stops):
    products = _products(curve)
    nodes, weights = (jnp.asarray(a, products.dtype) for a in _quadrature())

    def speed(t):
        slopes = curve.slopes(t)
        return jnp.sqrt(jnp.maximum(_dot(slopes, _dot(products, slopes)), 0))

    def one(stop):
        return stop * _dot(weights, jax.vmap(speed)(stop * nodes))

    return jax.vmap(one)(stops)


@nodes.register
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Bezier(Curve):
    """A Bezier curve; made by [`bezier`][]."""

    def coefficients(self, t):
        return _bernstein(len(self.moves) - 1, t)

    def slopes(self, t):
        degree = len(self.moves) - 1
        return degree * _bernstein(degree - 1, t)


def _bernstein(n, t):
    return jnp.stack([math.comb(n, j) * t**j * (1 - t) ** (n - j) for j in range(n + 1)])


@nodes.register
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Chain(Curve):
    """A polygonal chain; made by [`chain`][]."""

    def coefficients(self, t):
        corners = jnp.arange(len(self.moves), dtype=t.dtype)
        return jnp.maximum(1 - jnp.abs((len(self.moves) - 1) * t - corners), 0)

    def slopes(self, t):
        pieces = len(self.moves) - 1
        piece = jnp.clip(jnp.floor(pieces * t), 0, pieces - 1).astype(jnp.int32)
        return pieces * jax.nn.one_hot(piece, pieces, dtype=t.dtype)

    def lengths(self, stops):
        return _chain_lengths(self, stops)


@jax.jit
def _chain_lengths(curve, stops):
    sides = jnp.sqrt(jnp.diagonal(_products(curve)))
    pieces = len(sides)
    share = jnp.clip(pieces * stops[:, None] - jnp.arange(pieces, dtype=stops.dtype), 0, 1)
    return _dot(share, sides)


@nodes.register
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Simplex(Curve):
    """All points between some vertices; made by [`simplex`][].

    ``simplex(weights)`` is the point with these barycentric weights, one for each vertex.
    """

    def coefficients(self, t):
        if t.shape != (len(self.moves),):
            raise ValueError(
                f"a point of a simplex has {len(self.moves)} weights, got shape {t.shape}."
            )
        return t

    def slopes(self, t):
        raise TypeError("a simplex is no path: it has neither velocity nor length.")

    def lengths(self, stops):
        return self.slopes(stops)

    def log_volume(self) -> jax.Array:
        r"""The logarithm of its volume, $\frac{1}{2} \log \det G - \log k!$ of $k + 1$ vertices.

        Differentiable: less a multiple of it a fit grows the simplex (Benton et al. 2021).
        """
        corner = jax.tree.map(lambda a: a[1:] - a[:1], self.controls)
        return jnp.linalg.slogdet(bases.gram(corner, corner))[1] / 2 - math.lgamma(len(self.moves))

    def sample(self, key, num, stratified):
        del stratified  # in one dimension only
        drawn = jax.random.exponential(key, (num, len(self.moves)), self._dtype)
        return drawn / drawn.sum(axis=1, keepdims=True)


def _dot(a, b):
    return jnp.matmul(a, b, precision="highest")


def _quadrature():
    """Nodes and weights on [0, 1]: some panels of Gauss and Legendre's."""
    nodes, weights = np.polynomial.legendre.leggauss(_NODES)
    nodes = (np.arange(_PANELS)[:, None] + (nodes + 1) / 2) / _PANELS
    return nodes.reshape(-1), np.tile(weights / 2 / _PANELS, _PANELS)
