"""Normalised sharpness: exact invariance, and the minimum that a general optimiser finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import flatjax
from flatjax.measures import normalized_sharpness
from tests.measures import networks

pytestmark = pytest.mark.usefixtures("x64")


def ggn_diagonal(params, batch):
    """The exact diagonal, as a tree like the params."""
    G = flatjax.ggn(networks.relu_net, flatjax.softmax_cross_entropy, params, batch)
    _, unravel = jax.flatten_util.ravel_pytree(params)
    return unravel(jnp.diagonal(G.to_dense())), float(jnp.trace(G.to_dense()))


def test_ignores_the_rescaling_of_nodes_to_1e_12():
    params, batch = networks.relu_params(), networks.data()
    other = networks.rescaled(params, log_scale=4.0)  # by up to 55 a node
    outputs = [networks.relu_net(w, batch[0]) for w in (params, other)]
    np.testing.assert_allclose(*outputs, rtol=1e-12)
    (diagonal, trace), (other_diagonal, other_trace) = (
        ggn_diagonal(w, batch) for w in (params, other)
    )
    assert other_trace > 10 * trace  # plain flatness is anything
    a, b = normalized_sharpness(params, diagonal), normalized_sharpness(other, other_diagonal)
    assert bool(a.converged & b.converged)
    # The value is of second order in the residual of 1e-8; the rest is rounding of the diagonal.
    np.testing.assert_allclose(a.value, b.value, rtol=1e-12)
    np.testing.assert_allclose(a.layers, b.layers, rtol=1e-12)


def test_is_the_minimum_over_the_noise_levels():
    rng = np.random.default_rng(0)
    w, h = rng.normal(size=(3, 4)), rng.exponential(size=(3, 4))

    def objective(logs):
        noise = np.exp(logs[:3, None] + logs[None, 3:])
        return (h * noise + w**2 / noise).sum()

    found = scipy.optimize.minimize(objective, np.zeros(7), tol=1e-14)
    result = normalized_sharpness(jnp.asarray(w), jnp.asarray(h))
    # Finite differences leave the optimiser 1e-7 from the minimum, and so 1e-13 above it.
    np.testing.assert_allclose(result.value, found.fun, rtol=1e-10)
    assert float(result.value) <= found.fun * (1 + 1e-13)
    assert int(result.num_iters) < 100


def test_rank_one_needs_no_iteration():
    # h = u v' and w^2 = h: a b = 1 everywhere, sum of 2 h.
    u, v = jnp.asarray([1.0, 1e10]), jnp.asarray([1e-8, 3.0, 1e6])
    h = u[:, None] @ v[None, :]
    np.testing.assert_allclose(normalized_sharpness(jnp.sqrt(h), h).value, 2 * h.sum(), rtol=1e-14)


def test_dead_nodes_contribute_nothing():
    rng = np.random.default_rng(1)
    w, h = rng.normal(size=(4, 5)), rng.exponential(size=(4, 5))
    alone = normalized_sharpness(jnp.asarray(w[:3, :3]), jnp.asarray(h[:3, :3])).value
    w[3], h[:, 4] = 0.0, 0.0  # no weights into a node; no curvature out of one
    w[:3, 3] = 0.0  # weights only where there is no ... after the dead row is dropped
    result = normalized_sharpness(jnp.asarray(w), jnp.asarray(h))
    assert bool(result.converged)
    np.testing.assert_allclose(result.value, alone, rtol=1e-13)
    assert float(normalized_sharpness(jnp.zeros((2, 2)), jnp.ones((2, 2))).value) == 0.0


def test_float32_survives_extreme_scales():
    with jax.enable_x64(False):
        rng = np.random.default_rng(2)
        w = rng.normal(size=(6, 7)).astype(np.float32)
        h = rng.exponential(size=(6, 7)).astype(np.float32)
        c = np.float32(10.0) ** np.linspace(-9, 9, 6, dtype=np.float32)[:, None]
        values = [
            float(normalized_sharpness(jnp.asarray(a), jnp.asarray(b)).value)
            for a, b in ((w, h), (w * c, h / c**2))
        ]
    # float32 logarithms of 1e18 keep 5e-6.
    np.testing.assert_allclose(*values, rtol=1e-4)


def test_convolutions_biases_and_layouts():
    rng = np.random.default_rng(3)
    kernel, h = rng.normal(size=(3, 3, 2, 4)), rng.exponential(size=(3, 3, 2, 4))
    summed = normalized_sharpness(
        jnp.sqrt(jnp.asarray(kernel**2).sum((0, 1))), jnp.asarray(h).sum((0, 1))
    )
    flax = [{"kernel": jnp.asarray(a)} for a in (kernel, h)]
    conv = normalized_sharpness(*flax)
    np.testing.assert_allclose(conv.value, summed.value, rtol=1e-13)
    equinox = [{"weight": jnp.moveaxis(jnp.asarray(a), (3, 2), (0, 1))} for a in (kernel, h)]
    np.testing.assert_allclose(normalized_sharpness(*equinox).value, conv.value, rtol=1e-13)
    given = normalized_sharpness(*(a["weight"] for a in equinox), axes=(1, 0))
    np.testing.assert_allclose(given.value, conv.value, rtol=1e-13)
    rows = [normalized_sharpness(*both, form="row").value for both in (flax, equinox)]
    np.testing.assert_allclose(*rows, rtol=1e-13)  # of the outputs in both
    # A bias of several axes has nodes no more than one of a single axis.
    bias, curvature = jnp.asarray(kernel[0, 0]), jnp.asarray(h[0, 0])
    expected = 2 * (abs(kernel[0, 0]) * h[0, 0] ** 0.5).sum()
    for w, d in ((bias.ravel(), curvature.ravel()), ({"bias": bias}, {"bias": curvature})):
        np.testing.assert_allclose(normalized_sharpness(w, d).value, expected, rtol=1e-13)


def test_row_form_and_negative_curvature():
    rng = np.random.default_rng(4)
    w, h = rng.normal(size=(3, 4)), rng.normal(size=(3, 4))
    result = normalized_sharpness(jnp.asarray(w), jnp.asarray(h), form="row", axes=(-2, -1))
    expected = 2 * np.sqrt(np.maximum(h, 0).sum(0) * (w**2).sum(0)).sum()
    np.testing.assert_allclose(result.value, expected, rtol=1e-13)
    full = normalized_sharpness(jnp.asarray(w), jnp.asarray(h))
    assert float(full.value) <= expected


def test_bad_arguments():
    w = jnp.ones((2, 2))
    with pytest.raises(ValueError, match="form must be one of"):
        normalized_sharpness(w, w, form="column")
    with pytest.raises(ValueError, match="axes must name two different axes"):
        normalized_sharpness(w, w, axes=(-1, 1))
    with pytest.raises(ValueError, match="axes must name two different axes"):
        normalized_sharpness(w, w, axes=(0, 2))
    for shape, form in (((2, 2), "row"), ((3, 3, 2, 2), "matrix")):
        with pytest.raises(
            ValueError, match=r"pass axes=\(-2, -1\) for weights .* or axes=\(1, 0\)"
        ):
            normalized_sharpness(jnp.ones(shape), jnp.ones(shape), form=form)
    with pytest.raises(ValueError, match="diagonal has shape"):
        normalized_sharpness(w, jnp.ones((2, 3)))
    with pytest.raises(TypeError, match="diagonal must have the tree structure"):
        normalized_sharpness(w, {"w": w})
