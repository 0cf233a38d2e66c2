"""Linear stability of SGD: the variance of Hessians, the bound, and a chain that obeys it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import flatjax
from flatjax.measures import hessian_variance, linear_stability
from tests.measures import networks

pytestmark = pytest.mark.usefixtures("x64")

CURVATURES = np.array([0.2, 3.8, 1.0, 3.0])


def parabola(w, curvature):
    return 0.5 * curvature * (w**2).sum()


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_product_is_the_variance_of_dense_hessians(chunk_size):
    params, batch = networks.relu_params(), networks.data()
    flat, unravel = ravel_pytree(params)
    losses = lambda w: networks.relu_loss(unravel(w), batch)  # noqa: E731
    each = np.asarray(jax.jit(jax.jacfwd(jax.jacrev(losses)))(flat))
    dense = np.einsum("nij,njk->ik", each, each) / networks.N - each.mean(0) @ each.mean(0)
    op = hessian_variance(networks.relu_loss, params, batch, chunk_size=chunk_size)
    v = np.random.default_rng(0).normal(size=flat.size)
    np.testing.assert_allclose(ravel_pytree(op @ unravel(jnp.asarray(v)))[0], dense @ v, rtol=1e-9)


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_value_and_bound(batch_size):
    eta, n = 0.4, len(CURVATURES)
    result = linear_stability(
        parabola, jnp.zeros(1), jnp.asarray(CURVATURES), learning_rate=eta, batch_size=batch_size,
        key=jax.random.key(0),
    )  # fmt: skip
    a, s = CURVATURES.mean(), CURVATURES.std()
    share = (n - batch_size) / (batch_size * (n - 1))
    np.testing.assert_allclose([result.sharpness, result.non_uniformity], [a, s], rtol=1e-12)
    np.testing.assert_allclose(result.value, (1 - eta * a) ** 2 + eta**2 * share * s**2)
    assert bool(result.stable) == bool(result.non_uniformity <= result.bound)
    assert result.residual_norms.shape == result.converged.shape == (2,)
    assert result.converged.all()
    if share:
        at_bound = (1 - eta * a) ** 2 + eta**2 * share * float(result.bound) ** 2
        np.testing.assert_allclose(at_bound, 1.0, rtol=1e-12)
    else:
        assert np.isinf(result.bound)


def test_second_moment_of_sgd_grows_by_the_value():
    # E w'^2 / w^2 over all batches of two of four examples, exactly.
    eta = 0.7
    pairs = [(i, j) for i in range(4) for j in range(i)]
    factors = [(1 - eta * CURVATURES[list(p)].mean()) ** 2 for p in pairs]
    result = linear_stability(
        parabola, jnp.zeros(1), jnp.asarray(CURVATURES), learning_rate=eta, batch_size=2,
        key=jax.random.key(0),
    )  # fmt: skip
    np.testing.assert_allclose(result.value, np.mean(factors), rtol=1e-12)


def test_uniform_minimum_has_no_variance():
    result = linear_stability(
        parabola, jnp.zeros(2), 2.0 * jnp.ones(4), learning_rate=1.1, batch_size=1,
        key=jax.random.key(0),
    )  # fmt: skip
    assert float(result.non_uniformity) == 0.0
    assert not bool(result.stable)  # 2.2 > 2 / eta is unstable all the same
    assert float(result.bound) == 0.0


def test_bad_arguments():
    c = jnp.asarray(CURVATURES)
    with pytest.raises(ValueError, match="chunk_size must divide the 4 examples"):
        flatjax.measures.hessian_variance(parabola, jnp.zeros(1), c, chunk_size=3)
    with pytest.raises(ValueError, match="batch_size=5 exceeds"):
        linear_stability(
            parabola, jnp.zeros(1), c, learning_rate=0.1, batch_size=5, key=jax.random.key(0)
        )
    with pytest.raises(ValueError, match="learning_rate must be above 0"):
        linear_stability(
            parabola, jnp.zeros(1), c, learning_rate=0.0, batch_size=1, key=jax.random.key(0)
        )


def test_padding_is_no_example():
    """Neither in the means nor in the n of the batches."""
    padded = jnp.asarray([*CURVATURES, 50.0, 50.0])
    weights = np.array([1.0] * 4 + [0.0] * 2)
    options = {"learning_rate": 0.4, "batch_size": 2, "key": jax.random.key(0)}
    results = [
        linear_stability(parabola, jnp.zeros(1), data, weights=w, **options)
        for data, w in ((padded, weights), (jnp.asarray(CURVATURES), np.ones(4)))
    ]
    np.testing.assert_allclose(results[0].value, results[1].value, rtol=1e-12)
    np.testing.assert_allclose(results[0].bound, results[1].bound, rtol=1e-12)


def test_says_how_well_both_eigenvalues_are_known(key):
    scales, curvatures = jnp.linspace(1.0, 2.0, 40), jnp.asarray(CURVATURES)
    over = (lambda w, c: 0.5 * c * (scales * w**2).sum(), jnp.ones(40), curvatures)
    options = {"max_products": 8}
    found = linear_stability(*over, learning_rate=0.1, batch_size=2, key=key, **options)
    operators = flatjax.hessian(*over), hessian_variance(*over)
    alone = [
        flatjax.eigsh(op, 1, key=k, verify=False, **options)
        for op, k in zip(operators, jax.random.split(key), strict=True)
    ]
    residuals = [pairs.residual_norms[0] for pairs in alone]
    np.testing.assert_allclose(found.residual_norms, residuals, rtol=1e-9)
    assert found.num_products == sum(pairs.num_products for pairs in alone)
