"""The gradient of a curvature against closed forms and reverse mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.measures import curvature_gradient
from tests.measures import networks

pytestmark = pytest.mark.usefixtures("x64")


def test_a_cubic_form():
    # L = sum T_ijk w_i w_j w_k / 6 with a symmetric T: the answer is T u v everywhere.
    rng = np.random.default_rng(0)
    a = rng.normal(size=(5, 3))
    u, v, w = rng.normal(size=(3, 3))
    found = curvature_gradient(
        lambda w, x: (x @ w) ** 3 / 6, jnp.asarray(w), jnp.asarray(u), jnp.asarray(v), a
    )
    expected = np.einsum("n,ni->i", (a @ u) * (a @ v), a) / 5
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_network_with_weights_against_reverse_mode():
    x, y = networks.data()
    weights = jnp.asarray(np.arange(networks.N) % 3 / 2.0)
    params = {"a": jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)))}
    u, v = ({"a": jnp.asarray(np.random.default_rng(seed).normal(size=(4, 3)))} for seed in (2, 3))

    def loss_fn(params, batch):
        inputs, labels = batch
        return networks.cross_entropy(jnp.tanh(inputs @ params["a"]), labels)

    def form(params):
        mean = lambda p: (weights * loss_fn(p, (x, y))).sum() / weights.sum()  # noqa: E731
        return (u["a"] * jax.jvp(jax.grad(mean), (params,), (v,))[1]["a"]).sum()

    found = curvature_gradient(loss_fn, params, u, v, (x, y), weights=weights)
    np.testing.assert_allclose(found["a"], jax.grad(form)(params)["a"], rtol=1e-10, atol=1e-14)


def test_bad_arguments():
    w = jnp.ones(3)
    with pytest.raises(ValueError, match="u has shape"):
        curvature_gradient(lambda w, _: w.sum(), w, jnp.ones(2), w, None)
    with pytest.raises(TypeError, match="v must have the tree structure"):
        curvature_gradient(lambda w, _: w.sum(), w, w, [w], None)
