"""The gradient covariance: centred, weighted, in chunks and over batches."""

import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from tests.models import NETWORKS, mlp
from tests.operators import references


def test_equal_gradients_have_none(x64):
    x = jnp.ones((5, 3))
    K = flatjax.gradient_covariance(lambda w, x: x @ w, jnp.zeros(3), x)
    np.testing.assert_array_equal(K.to_dense(), np.zeros((3, 3)))


def test_one_example_has_none(x64):
    params, (x, y) = NETWORKS["mlp"].cast()
    K = references.make("covariance", mlp, params, (x[:1], y[:1]))
    # The mean is one division of the slope by 1: exact.
    assert not np.any(K.to_dense())


def test_a_large_mean_does_not_cancel():
    """float32: gradients of 1e4 with a variance of 2, which uncentred sums would lose."""
    x = 1e4 + jnp.array([[1.0], [2.0], [3.0], [4.0], [5.0]])
    make = lambda x, **options: flatjax.gradient_covariance(  # noqa: E731
        lambda w, x: x @ w, jnp.zeros(1), x, **options
    )
    stream = flatjax.over_batches(make, [x[:1], x[1:3], x[3:]])
    for op in (make(x), make(x, chunk_size=2), stream):
        # The gradients are exact to 1e-3.
        assert float((op @ jnp.ones(1))[0]) == pytest.approx(2.0, abs=2e-3)


@pytest.mark.parametrize("centered", [True, False])
def test_weights_centre_and_weigh(centered, x64):
    """By hand: the gradients 0, 2 and 5 with the weights 1, 2 and 1."""
    x, weights = jnp.array([[0.0], [2.0], [5.0]]), np.array([1.0, 2.0, 1.0])
    make = lambda x, weights, **options: flatjax.gradient_covariance(  # noqa: E731
        lambda w, x: x @ w, jnp.zeros(1), x, centered=centered, weights=weights, **options
    )
    # (0 + 2 * 4 + 25) / 4 = 8.25, less the square of (2 * 2 + 5) / 4 = 2.25.
    wanted = 8.25 - centered * 2.25**2
    parts = [(x[:2], weights[:2]), (x[2:], weights[2:])]
    ways = (
        make(x, weights),
        make(x, weights).linearize(),
        make(x, weights, chunk_size=2),
        flatjax.over_batches(lambda part: make(*part), parts),
        flatjax.over_batches(lambda part: make(*part).linearize(), parts),
    )
    for op in ways:
        np.testing.assert_allclose(op @ jnp.ones(1), [wanted], rtol=1e-14)


def test_a_batch_without_leaves():
    with pytest.raises(ValueError, match="gradient_covariance needs a batch of examples"):
        flatjax.gradient_covariance(lambda w, _: w, jnp.ones(2), None)


def test_a_mean_loss():
    with pytest.raises(ValueError, match=r"needs per-example losses.*Do not take the mean"):
        flatjax.gradient_covariance(lambda w, x: (x @ w).mean(), jnp.ones(2), jnp.ones((3, 2)))
