"""The perturbation of sharpness-aware minimisation: the worst point of a ball."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _balls as balls
from flatjax import _checks as checks
from flatjax import _trees as trees
from flatjax._trees import Tree

Mask = Any | Callable[[Tree], Any]


def expand_mask(mask: Mask | None, params: Tree) -> Tree:
    """The mask as a tree like ``params``, of booleans or boolean arrays.

    ``None`` selects all; else it is a pytree of booleans (a prefix of ``params``; arrays select
    entries), or a function of the params that returns one.
    """
    if mask is None:
        return jax.tree.map(lambda _: True, params)
    tree = mask(params) if callable(mask) else mask
    _check_booleans("mask", tree)
    try:
        return jax.tree.map(lambda m, sub: jax.tree.map(lambda _: m, sub), tree, params)
    except ValueError as error:
        raise ValueError(
            "mask must be a pytree prefix of the params.\n"
            f"  mask:   {jax.tree.structure(tree)}\n  params: {jax.tree.structure(params)}"
        ) from error


def _check_booleans(name: str, tree: Tree) -> None:
    for leaf in jax.tree.leaves(tree):
        if not isinstance(leaf, bool) and getattr(leaf, "dtype", None) != jnp.bool_:
            raise TypeError(f"{name} must hold booleans, got {leaf!r}.")


def select(mask: Tree, tree: Tree) -> Tree:
    """Zero outside an expanded mask."""

    def leaf(m, a):
        if isinstance(m, bool):
            return a if m else jnp.zeros_like(a)
        return jnp.where(m, a, jnp.zeros_like(a))

    return jax.tree.map(leaf, mask, tree)


@dataclasses.dataclass(frozen=True)
class Ascent:
    r"""How a gradient becomes a perturbation: the ball and what of the params moves in it.

    With $T = |w| + o$ for the ``offset`` $o$ where ``adaptive``, $T = 1$ elsewhere, the ball is
    $\lVert T^{-1} \epsilon \rVert_p \le \rho$, and $\epsilon$ the point where
    $\langle g, \epsilon \rangle$ is largest; for $p = 2$, $\rho\, T^2 g / \lVert T g \rVert_2$.

    Attributes:
      p: the norm of the ball, in [1, inf].
      adaptive: scale the ball by the weights (ASAM): ``True``, or a mask of the leaves to scale.
      offset: what is added to the weights' magnitudes.
      normalize: ``False`` multiplies by the dual norm of the gradient (USAM: ``rho * g``).
      mask: the leaves to perturb: a pytree prefix of booleans, a function of the params, or
        ``None`` for all. The gradient that SAM hands on is still that of all leaves.

    Raises:
      TypeError: if ``normalize`` is no boolean, or ``adaptive`` or ``mask`` hold anything else.
      ValueError: for ``p`` < 1 or a negative ``offset``.

    Example:
      >>> import flatjax
      >>> asam = flatjax.sam(rho=0.5, ascent=flatjax.Ascent(adaptive=True))
      >>> flatjax.Ascent(p=1.0).p
      1.0

    References:
      Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR
      2021; Kwon et al., "ASAM: Adaptive Sharpness-Aware Minimization", ICML 2021; Andriushchenko
      and Flammarion, "Towards Understanding Sharpness-Aware Minimization", ICML 2022 (USAM).
    """

    p: Any = 2.0
    adaptive: Any = False
    offset: Any = 0.01
    normalize: bool = True
    mask: Mask | None = None

    def __post_init__(self):
        checks.check_scalar("p", self.p, minimum=1.0, infinite=True)
        checks.check_scalar("offset", self.offset, minimum=0.0)
        if not isinstance(self.normalize, bool):
            raise TypeError(f"normalize must be True or False, got {self.normalize!r}.")
        for name, mask in (("adaptive", self.adaptive), ("mask", self.mask)):
            if not callable(mask):
                _check_booleans(name, mask)

    def scales(self, params: Tree) -> Tree | None:
        """``T``, or ``None`` where nothing is scaled."""
        if self.adaptive is False:
            return None
        which = expand_mask(None if self.adaptive is True else self.adaptive, params)

        def leaf(m, w):
            w = w.astype(trees.compute_dtype(w.dtype))
            scaled = jnp.abs(w) + jnp.asarray(self.offset).astype(w.dtype)
            return jnp.where(jnp.asarray(m), scaled, jnp.ones_like(w))

        return jax.tree.map(leaf, which, params)

    def perturbation(self, gradient: Tree, params: Tree, rho: Any) -> Tree:
        """The perturbation, in at least float32; exactly zero for a zero gradient.

        Args:
          gradient: the gradient.
          params: the params, for ``adaptive`` and ``mask``.
          rho: the radius, a scalar.

        Returns:
          A tree like ``gradient``.
        """
        g = select(
            expand_mask(self.mask, params), trees.cast(gradient, trees.structure_of(gradient))
        )
        scales = self.scales(params)
        if scales is not None:
            g = jax.tree.map(jnp.multiply, scales, g)
        direction = balls.dual_direction(g, self.p, normalize=self.normalize)
        if scales is not None:
            direction = jax.tree.map(jnp.multiply, scales, direction)
        return jax.tree.map(lambda d: jnp.asarray(rho).astype(d.dtype) * d, direction)


EUCLIDEAN = Ascent()


def check_ascent(ascent: Any) -> None:
    """Raise unless this is an [`Ascent`][]."""
    if not isinstance(ascent, Ascent):
        raise TypeError(f"ascent must be a flatjax.Ascent, got {type(ascent).__name__}.")
