"""The loss over a plane: values in closed form, tracing, what is not finite, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.landscape import loss_surface


def test_a_quadratic_over_two_directions(dtype):
    rng = np.random.default_rng(0)
    root, w, first, second = (
        jnp.asarray(rng.normal(size=s), dtype) for s in ((4, 4), (4,), (4,), (4,))
    )
    s, t = np.array([-1.0, 0.5, 2.0]), np.array([0.0, 3.0])
    surface = loss_surface(
        lambda w, root: 0.5 * jnp.square(root @ w).sum(), w, root, first=first, second=second,
        positions=s, other_positions=t,
    )  # fmt: skip
    w, first, second, root = (np.asarray(a, np.float64) for a in (w, first, second, root))
    wanted = [[0.5 * np.square(root @ (w + a * first + b * second)).sum() for b in t] for a in s]
    assert surface.losses.dtype == surface.positions.dtype == dtype
    # Sums of four numbers of order ten: a few roundings.
    np.testing.assert_allclose(surface.losses, wanted, rtol=50 * float(jnp.finfo(dtype).eps))
    np.testing.assert_allclose(surface.other_positions, t)


def test_both_axes_are_alike_by_default_and_nan_and_inf_stay():
    e = jnp.eye(2)
    loss = lambda w, _: jnp.where(w[0] < 0, jnp.nan, 1 / w[1])  # noqa: E731
    surface = loss_surface(loss, jnp.zeros(2), None, first=e[0], second=e[1], positions=[-1, 0, 2])
    np.testing.assert_array_equal(
        surface.losses, [[np.nan] * 3, [-1, np.inf, 0.5], [-1, np.inf, 0.5]]
    )


def test_inside_jit_and_grad(key):
    w, first, second = jax.random.normal(key, (3, 5))
    loss = lambda w, scale: jnp.cos(scale * w).sum()  # noqa: E731
    run = lambda s: loss_surface(  # noqa: E731
        lambda w, _, scale: loss(w, scale), w, None, s, first=first, second=second,
        positions=[0.0, 1.0],
    ).losses  # fmt: skip
    np.testing.assert_allclose(jax.jit(run)(2.0), run(2.0), rtol=1e-5, atol=1e-6)
    slope = jax.jacobian(run)(2.0)[1, 0]
    # Float32 sums of five numbers of order one.
    np.testing.assert_allclose(slope, jax.grad(lambda s: loss(w + first, s))(2.0), rtol=1e-5)


def test_bad_input():
    w = jnp.ones(3)
    options = {"first": w, "second": w, "positions": [0.0]}
    with pytest.raises(ValueError, match="second has shape"):
        loss_surface(jnp.sum, w, None, **options | {"second": jnp.ones(2)})
    with pytest.raises(TypeError, match="first must have the tree structure"):
        loss_surface(jnp.sum, w, None, **options | {"first": [w]})
    for name in ("positions", "other_positions"):
        with pytest.raises(ValueError, match=rf"{name} must have shape \(m,\)"):
            loss_surface(lambda w, _: w.sum(), w, None, **options | {name: []})
