"""The point of the p-ball where a linear function is largest."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax import _balls as balls

P = [1.0, 1.1, 1.5, 2.0, 3.0, np.inf]
SCALES = [1e-20, 1.0, 1e20]


def dual_exponent(p):
    return np.inf if p == 1 else 1.0 if np.isinf(p) else p / (p - 1)


def gradient(scale, dtype):
    g = np.random.default_rng(0).normal(size=7) * scale
    return {"a": jnp.asarray(g[:3], dtype), "b": jnp.asarray(g[3:].reshape(2, 2), dtype)}


def entries(tree):
    return np.concatenate([np.asarray(a, np.float64).ravel() for a in jax.tree.leaves(tree)])


traced = jax.jit(balls.dual_direction)


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("scale", SCALES)
def test_direction_attains_the_dual_norm(p, scale):
    g = gradient(scale, jnp.float32)
    direction = entries(balls.dual_direction(g, p))
    v = entries(g) / scale
    # Powers up to |g|^11 in float32: some 20 ulp.
    assert np.linalg.norm(direction, p) == pytest.approx(1.0, rel=3e-6)
    dual = np.linalg.norm(v, dual_exponent(p))
    assert v @ direction == pytest.approx(dual, rel=3e-6)


@pytest.mark.parametrize("p", P)
def test_duality_to_rounding_in_float64(p, x64):
    g = gradient(1.0, jnp.float64)
    direction, v = entries(balls.dual_direction(g, p)), entries(g)
    assert np.linalg.norm(direction, p) == pytest.approx(1.0, rel=1e-12)
    assert v @ direction == pytest.approx(np.linalg.norm(v, dual_exponent(p)), rel=1e-12)


@pytest.mark.parametrize("p", P)
def test_traced_p_agrees_with_static_p(p):
    g = gradient(1.0, jnp.float32)
    expected = entries(balls.dual_direction(g, p))
    # The general power where the static path has a closed form: rounding of pow.
    np.testing.assert_allclose(entries(traced(g, p)), expected, rtol=5e-6, atol=1e-8)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("p", P)
def test_zero_gradient_gives_zero_direction(p, normalize):
    zero = {"a": jnp.zeros(3), "b": jnp.zeros(())}
    assert not entries(balls.dual_direction(zero, p, normalize=normalize)).any()
    assert not entries(traced(zero, p)).any()


def test_ties_of_p1_share_the_mass():
    g = jnp.array([2.0, -2.0, 1.0])
    assert balls.dual_direction(g, 1.0).tolist() == [0.5, -0.5, 0.0]


def test_unnormalised_multiplies_by_the_dual_norm(x64):
    g = jnp.array([3.0, -4.0])
    np.testing.assert_allclose(balls.dual_direction(g, normalize=False), g, rtol=1e-14)
    for p in (1.0, 1.5, np.inf):
        unit = balls.dual_direction(g, p)
        scaled = balls.dual_direction(g, p, normalize=False)
        dual = np.linalg.norm(np.asarray(g), dual_exponent(p))
        np.testing.assert_allclose(scaled, dual * unit, rtol=1e-13)


@pytest.mark.parametrize(("p", "normalize"), [(2.0, True), (1.5, True), (3.0, False)])
def test_derivative_of_the_direction(p, normalize, x64):
    ball = functools.partial(balls.dual_direction, p=p, normalize=normalize)
    g, v = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, 0.1, -1.0])
    _, tangent = jax.jvp(ball, (g,), (v,))
    h = 1e-6
    difference = (ball(g + h * v) - ball(g - h * v)) / (2 * h)
    # Central differences of step 1e-6 in float64: 1e-10 of round-off.
    np.testing.assert_allclose(tangent, difference, rtol=1e-8, atol=1e-9)
