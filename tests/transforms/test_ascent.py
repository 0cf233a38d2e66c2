"""The perturbation is the point of the p-ball where the linearised loss is largest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax import _balls as balls
from flatjax.transforms import Ascent

P = [1.0, 1.1, 1.5, 2.0, 3.0, np.inf]
SCALES = [1e-20, 1.0, 1e20]


def dual_exponent(p):
    return np.inf if p == 1 else 1.0 if np.isinf(p) else p / (p - 1)


def gradient(scale, dtype):
    g = np.random.default_rng(0).normal(size=7) * scale
    return {"a": jnp.asarray(g[:3], dtype), "b": jnp.asarray(g[3:].reshape(2, 2), dtype)}


def entries(tree):
    return np.concatenate([np.asarray(a, np.float64).ravel() for a in jax.tree.leaves(tree)])


@jax.jit
def traced(g, p, rho):
    return Ascent(p).perturbation(g, g, rho)


@pytest.mark.parametrize("p", P)
@pytest.mark.parametrize("scale", SCALES)
def test_perturbation_attains_the_dual_norm(p, scale):
    g = gradient(scale, jnp.float32)
    epsilon = entries(Ascent(p).perturbation(g, g, 0.05))
    v = entries(g) / scale
    # Powers up to |g|^11 in float32: some 20 ulp.
    assert np.linalg.norm(epsilon, p) == pytest.approx(0.05, rel=3e-6)
    dual = np.linalg.norm(v, dual_exponent(p))
    assert v @ epsilon == pytest.approx(0.05 * dual, rel=3e-6)


@pytest.mark.parametrize("p", P)
def test_duality_to_rounding_in_float64(p, x64):
    g = gradient(1.0, jnp.float64)
    epsilon, v = entries(Ascent(p).perturbation(g, g, 0.05)), entries(g)
    assert np.linalg.norm(epsilon, p) == pytest.approx(0.05, rel=1e-12)
    assert v @ epsilon == pytest.approx(0.05 * np.linalg.norm(v, dual_exponent(p)), rel=1e-12)


@pytest.mark.parametrize("p", P)
def test_traced_p_agrees_with_static_p(p):
    g = gradient(1.0, jnp.float32)
    expected = entries(Ascent(p).perturbation(g, g, 0.05))
    # The general power where the static path has a closed form: rounding of pow.
    np.testing.assert_allclose(entries(traced(g, p, 0.05)), expected, rtol=5e-6, atol=1e-8)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("p", P)
def test_zero_gradient_gives_zero_perturbation(p, normalize):
    zero = {"a": jnp.zeros(3), "b": jnp.zeros(())}
    assert not entries(Ascent(p, normalize=normalize).perturbation(zero, zero, 0.05)).any()
    assert not entries(traced(zero, p, 0.05)).any()


def test_ties_of_p1_share_the_mass():
    g = jnp.array([2.0, -2.0, 1.0])
    assert balls.dual_direction(g, 1.0).tolist() == [0.5, -0.5, 0.0]


def test_unnormalised_multiplies_by_the_dual_norm(x64):
    g = jnp.array([3.0, -4.0])
    np.testing.assert_allclose(Ascent(normalize=False).perturbation(g, g, 0.1), 0.1 * g, rtol=1e-14)
    for p in (1.0, 1.5, np.inf):
        unit = balls.dual_direction(g, p)
        scaled = balls.dual_direction(g, p, normalize=False)
        dual = np.linalg.norm(np.asarray(g), dual_exponent(p))
        np.testing.assert_allclose(scaled, dual * unit, rtol=1e-13)


@pytest.mark.parametrize("p", [1.5, 2.0, np.inf])
def test_adaptive_ball_scales_with_the_weights(p, x64):
    g, w = gradient(1.0, jnp.float64), gradient(3.0, jnp.float64)
    epsilon = entries(Ascent(p, adaptive=True, offset=0.01).perturbation(g, w, 0.5))
    scale = np.abs(entries(w)) + 0.01
    assert np.linalg.norm(epsilon / scale, p) == pytest.approx(0.5, rel=1e-12)
    dual = np.linalg.norm(scale * entries(g), dual_exponent(p))
    assert entries(g) @ epsilon == pytest.approx(0.5 * dual, rel=1e-12)


def test_adaptive_may_be_a_mask_of_leaves(x64):
    g, w = gradient(1.0, jnp.float64), gradient(3.0, jnp.float64)
    epsilon = Ascent(adaptive={"a": True, "b": False}, offset=0.0).perturbation(g, w, 0.5)
    scale = np.concatenate([np.abs(entries(w)[:3]), np.ones(4)])
    assert np.linalg.norm(entries(epsilon) / scale) == pytest.approx(0.5, rel=1e-12)


def test_half_precision_gradient_has_a_float32_norm():
    # Squares of 1e-5 vanish in float16: optax.tree.norm gives 0 and then NaN.
    g = jnp.full(4, 1e-5, jnp.float16)
    epsilon = Ascent().perturbation(g, g, 1.0)
    assert epsilon.dtype == jnp.float32
    np.testing.assert_allclose(epsilon, 0.5, rtol=1e-6)


@pytest.mark.parametrize(("p", "normalize"), [(2.0, True), (1.5, True), (3.0, False)])
def test_derivative_of_the_perturbation(p, normalize, x64):
    ball = Ascent(p, normalize=normalize).perturbation
    g, v = jnp.array([1.0, -2.0, 0.5]), jnp.array([0.3, 0.1, -1.0])
    _, tangent = jax.jvp(lambda u: ball(u, u, 0.3), (g,), (v,))
    h = 1e-6
    difference = (ball(g + h * v, g, 0.3) - ball(g - h * v, g, 0.3)) / (2 * h)
    # Central differences of step 1e-6 in float64: 1e-10 of round-off.
    np.testing.assert_allclose(tangent, difference, rtol=1e-8, atol=1e-9)


def test_elementwise_masks(x64):
    g = jnp.array([3.0, 4.0, 12.0])
    ball = Ascent(mask=jnp.array([True, True, False])).perturbation
    np.testing.assert_allclose(ball(g, g, 1.0), [0.6, 0.8, 0.0], rtol=1e-14)
