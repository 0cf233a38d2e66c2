"""The gradient covariance and the materialised per-example gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import flatjax
from tests.models import CONTAINERS, NETWORKS, mlp, permutation
from tests.operators import references


def rows(gradients):
    """Stacked gradients as a matrix ``(n, P)``."""
    return np.asarray(jax.vmap(lambda g: ravel_pytree(g)[0])(gradients))


class TestGradientCovariance:
    def test_equal_gradients_have_none(self, x64):
        x = jnp.ones((5, 3))
        K = flatjax.gradient_covariance(lambda w, x: x @ w, jnp.zeros(3), x)
        np.testing.assert_array_equal(K.to_dense(), np.zeros((3, 3)))

    def test_one_example_has_none(self, x64):
        params, (x, y) = NETWORKS["mlp"].cast()
        K = references.make("covariance", mlp, params, (x[:1], y[:1]))
        # The mean is one division of the slope by 1: exact.
        assert not np.any(K.to_dense())

    def test_rank_is_below_the_number_of_examples(self, x64):
        params, (x, y) = NETWORKS["mlp"].cast()
        K = references.make("covariance", mlp, params, (x[:4], y[:4]))
        values = np.linalg.eigvalsh(K.to_dense())
        assert (values > 1e-12 * values[-1]).sum() == 3

    def test_a_large_mean_does_not_cancel(self):
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
    def test_weights_centre_and_weigh(self, centered, x64):
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

    def test_a_batch_without_leaves(self):
        with pytest.raises(ValueError, match="gradient_covariance needs a batch of examples"):
            flatjax.gradient_covariance(lambda w, _: w, jnp.ones(2), None)

    def test_a_mean_loss(self):
        with pytest.raises(ValueError, match=r"needs per-example losses.*Do not take the mean"):
            flatjax.gradient_covariance(lambda w, x: (x @ w).mean(), jnp.ones(2), jnp.ones((3, 2)))


class TestPerExampleGradients:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_stacked_gradients(self, name, x64):
        network = NETWORKS[name]
        params, batch = network.cast()
        losses_fn = references.losses_fn(network.apply)
        found = rows(flatjax.per_example_gradients(losses_fn, params, batch))
        assert found.dtype == jnp.float64
        references.assert_close(found, references.reference(name).gradients, references.FLOAT64)

    @pytest.mark.parametrize("name", ["named_tuple", "nnx", "equinox"])
    def test_containers(self, name):
        params, batch = NETWORKS["mlp"].cast(jnp.float32)
        params, apply = CONTAINERS[name](params)
        gradients = flatjax.per_example_gradients(references.losses_fn(apply), params, batch)
        assert jax.tree.structure(gradients) == jax.tree.structure(params)
        wanted = references.reference("mlp").gradients[:, permutation(CONTAINERS[name])]
        references.assert_close(rows(gradients), wanted, references.FLOAT32)

    @pytest.mark.parametrize("chunk_size", [3, 8, 100])
    def test_chunks(self, chunk_size):
        params, batch = NETWORKS["mlp"].cast(jnp.float32)
        found = flatjax.per_example_gradients(
            references.losses_fn(mlp), params, batch, chunk_size=chunk_size
        )
        references.assert_close(
            rows(found), references.reference("mlp").gradients, references.FLOAT32
        )

    @pytest.mark.parametrize("chunk_size", [None, 3])
    def test_under_jit(self, chunk_size):
        params, batch = NETWORKS["mlp"].cast(jnp.float32)
        losses_fn = references.losses_fn(mlp)

        @jax.jit
        def traced(params):
            return flatjax.per_example_gradients(losses_fn, params, batch, chunk_size=chunk_size)

        references.assert_close(
            rows(traced(params)), references.reference("mlp").gradients, references.FLOAT32
        )

    def test_a_mean_loss_and_arguments(self):
        x, w = jnp.arange(6.0).reshape(3, 2), jnp.zeros(2)
        found = flatjax.per_example_gradients(
            lambda w, x, s: s * (x @ w).mean(), w, x, jnp.float32(2.0)
        )
        np.testing.assert_array_equal(found, 2 * x)

    def test_errors(self):
        losses_fn, w, x = (lambda w, x: x @ w), jnp.ones(2), jnp.ones((3, 2))
        with pytest.raises(ValueError, match="per_example_gradients needs a batch of examples"):
            flatjax.per_example_gradients(losses_fn, w, ())
        with pytest.raises(ValueError, match="batch is empty: it needs at least one example"):
            flatjax.per_example_gradients(losses_fn, w, x[:0])
        with pytest.raises(ValueError, match="chunk_size must be at least 1"):
            flatjax.per_example_gradients(losses_fn, w, x, chunk_size=0)
        with pytest.raises(TypeError, match="loss_fn must be a function, got int"):
            flatjax.per_example_gradients(3, w, x)
        with pytest.raises(TypeError, match="params must be a real floating array"):
            flatjax.per_example_gradients(losses_fn, jnp.ones(2, jnp.int32), x)
        with pytest.raises(ValueError, match=r"scalar or one value an example.*got \(3, 1\)"):
            flatjax.per_example_gradients(lambda w, x: (x @ w)[:, None], w, x)
