"""Examples with two views, one to generalise from and one to memorise, of random vectors.

    directions = make_directions(jax.random.key(0), 100)
    train = draw_views(jax.random.key(1), directions, 300)
    clean = draw_views(jax.random.key(2), directions, 1000, shares=(1, 0, 0))

The distribution in the theory of Li, Wei and Ma, "Towards Explaining the Regularization Effect of
Initial Large Learning Rate in Training Neural Networks", 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Which views an example has.
FIRST, SECOND, BOTH = 0, 1, 2


class Views(NamedTuple):
    """Examples and which views they have.

    Attributes:
      inputs: (n, ...) float32.
      targets: (n,) int32.
      views: (n,) int32: `FIRST`, `SECOND` or `BOTH`.
    """

    inputs: np.ndarray
    targets: np.ndarray
    views: np.ndarray


class Directions(NamedTuple):
    """The fixed part of `draw_views`: (d,) each, the first of unit length, the others orthogonal.

    Attributes:
      separating: w, normal of the hyperplane between the classes in the first view.
      centre: z, the second view of class 0.
      offset: zeta, by which that of class 1 differs, with a random sign.
    """

    separating: jax.Array
    centre: jax.Array
    offset: jax.Array


def make_directions(
    key: jax.Array, dimension: int = 100, *, centre: float = 6.0, offset: float = 4.0
) -> Directions:
    """Draws random directions; z and zeta are orthogonal and have these lengths."""
    if dimension < 2:
        raise ValueError(f"dimension must be at least 2, got {dimension}")
    w, z, zeta = jax.random.normal(key, (3, dimension))
    zeta -= z * (z @ zeta) / (z @ z)
    w, z, zeta = (v / jnp.linalg.norm(v) for v in (w, z, zeta))
    return Directions(w, centre * z, offset * zeta)


def draw_views(
    key: jax.Array,
    directions: Directions,
    count: int,
    *,
    shares: Sequence[float] = (0.2, 0.2, 0.6),
    scale: float = 0.5,
    margin: float = 0.3,
) -> Views:
    r"""Draws examples $(x_1, x_2)$ of two classes, equally likely.

    $x_1$ is `scale` times a standard normal vector, conditioned on lying at least `margin` on the
    class's side of the hyperplane $w^\top x = 0$: easy to generalise from, but noisy. $x_2$ is $z$
    for class 0 and $z \pm \zeta$ for class 1: not linearly separable, but without any noise. A view
    that an example has not is zero.

    Args:
      key: a PRNG key.
      directions: of `make_directions`.
      count: n.
      shares: of the examples with only the first, only the second, and both views; counts are
        rounded. `(1, 0, 0)` makes the clean test set.
      scale: of $x_1$.
      margin: in units of `scale`.

    Returns:
      `inputs` (n, 2 d), `targets` in {0, 1}, `views`.
    """
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"shares are three fractions that add up to 1, got {tuple(shares)}")
    keys = jax.random.split(key, 5)
    ones = jax.random.bernoulli(keys[0], shape=(count,)).astype(jnp.float32)
    noise = jax.random.normal(keys[1], (count, len(directions.separating)))
    along = jax.random.truncated_normal(keys[2], margin, jnp.inf, (count,)) * (2 * ones - 1)
    w = directions.separating
    first = scale * (noise + (along - noise @ w)[:, None] * w)
    sign = jax.random.rademacher(keys[3], (count,), jnp.float32) * ones
    second = directions.centre + sign[:, None] * directions.offset
    views = share_out(keys[4], count, shares)
    inputs = jnp.concatenate(
        [first * (views != SECOND)[:, None], second * (views != FIRST)[:, None]], 1
    )
    return Views(np.asarray(inputs, np.float32), np.asarray(ones, np.int32), views)


def share_out(key: jax.Array, count: int, shares: Sequence[float]) -> np.ndarray:
    """(count,) int32, of each view its share, in random order; what rounding leaves has both."""
    first, second = (round(share * count) for share in shares[:2])
    views = np.full(count, BOTH, np.int32)
    views[:first], views[first : first + second] = FIRST, SECOND
    return views[np.asarray(jax.random.permutation(key, count))]
