"""How an ``Ascent`` makes a perturbation of a gradient: scales, masks, precision."""

import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.transforms import Ascent

G = {"a": np.array([0.3, -1.2, 0.5]), "b": np.array([[2.0, -0.1]])}
W = {"a": np.array([1.0, -0.2, 3.0]), "b": np.array([[-0.5, 0.4]])}
RAVELED_G, RAVELED_W = (np.concatenate([t["a"], t["b"][0]]) for t in (G, W))


def perturbation(**options):
    epsilon = Ascent(**options).perturbation(
        *({k: jnp.asarray(a) for k, a in t.items()} for t in (G, W)), 0.5
    )
    return np.concatenate([epsilon["a"], epsilon["b"][0]])


@pytest.mark.parametrize(("p", "dual"), [(1.5, 3.0), (2.0, 2.0), (np.inf, 1.0)])
def test_adaptive_ball_scales_with_the_weights(p, dual, x64):
    epsilon, scale = perturbation(p=p, adaptive=True, offset=0.01), np.abs(RAVELED_W) + 0.01
    # Rounding of a few powers in float64.
    assert np.linalg.norm(epsilon / scale, p) == pytest.approx(0.5, rel=1e-12)
    most = 0.5 * np.linalg.norm(scale * RAVELED_G, dual)
    assert RAVELED_G @ epsilon == pytest.approx(most, rel=1e-12)


def test_adaptive_may_be_a_mask_of_leaves(x64):
    epsilon = perturbation(adaptive={"a": True, "b": False}, offset=0.0)
    scale = np.concatenate([np.abs(W["a"]), np.ones(2)])
    assert np.linalg.norm(epsilon / scale) == pytest.approx(0.5, rel=1e-12)


def test_half_precision_gradient_has_a_float32_norm():
    # Squares of 1e-5 vanish in float16: optax.tree.norm gives 0 and then NaN.
    g = jnp.full(4, 1e-5, jnp.float16)
    epsilon = Ascent().perturbation(g, g, 1.0)
    assert epsilon.dtype == jnp.float32
    np.testing.assert_allclose(epsilon, 0.5, rtol=1e-6)


def test_elementwise_masks(x64):
    mask = {"a": jnp.array([True, True, False]), "b": False}
    expected = 0.5 * np.array([0.3, -1.2, 0, 0, 0]) / np.hypot(0.3, 1.2)
    np.testing.assert_allclose(perturbation(mask=mask), expected, rtol=1e-14)
