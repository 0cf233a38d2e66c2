"""Weights, padding masks and padded targets: always the mean over the real examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import flatjax
from tests.models import NETWORKS, attention, mlp
from tests.operators import references

WEIGHTS = np.array([1.0, 0.5, 0.0, 2.0, 1.0, 0.0, 3.0, 0.25])


def draws_of(op):
    return getattr(op, "draws", None)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("mlp", kind) for kind in references.OPERATORS]
    + [("attention", "ggn"), ("attention", "fisher_empirical")],
)
def test_weighted_mean(name, kind, x64):
    network = NETWORKS[name]
    params, batch = network.cast()
    op = references.make(kind, network.apply, params, batch, weights=WEIGHTS)
    wanted = references.dense(kind, references.reference(name), WEIGHTS, draws_of(op))
    references.assert_product(op, wanted, references.FLOAT64)
    assert float(op.weight) == WEIGHTS.sum()


@pytest.mark.parametrize(("name", "kind"), [("attention", "ggn"), ("mlp", "fisher_sampled")])
def test_examples_of_padded_targets_do_not_count(name, kind, x64):
    network = NETWORKS[name]
    params, (x, y) = network.cast()
    draws = draws_of(references.make(kind, network.apply, params, (x, y)))
    op = references.make(kind, network.apply, params, (x, y.at[5:].set(-1)))
    wanted = references.dense(kind, references.reference(name), np.arange(8) < 5, draws)
    references.assert_product(op, wanted, references.FLOAT64, linearized=False)
    assert float(op.weight) == 5


def test_weights_scale_out(x64):
    params, batch = NETWORKS["mlp"].cast()
    op = references.make("covariance", mlp, params, batch, weights=1e-6 * WEIGHTS)
    wanted = references.dense("covariance", references.reference("mlp"), WEIGHTS)
    references.assert_product(op, wanted, references.FLOAT64, linearized=False)


class TestTokens:
    """``per="token"``: every unmasked position of a sequence is an example."""

    loss = flatjax.softmax_cross_entropy(per="token")

    def blocks(self, ref):
        """The GGN of every position: ``(n, positions, P, P)``."""
        p = ref.probabilities
        h = np.einsum("nti,ij->ntij", p, np.eye(3)) - np.einsum("nti,ntj->ntij", p, p)
        return np.einsum("ntip,ntij,ntjq->ntpq", ref.jacobians, h, ref.jacobians)

    @pytest.mark.parametrize("weights", [None, WEIGHTS, np.arange(24.0).reshape(8, 3)])
    def test_ggn(self, weights, x64):
        params, batch = NETWORKS["attention"].cast()
        ref = references.reference("attention")
        factors = np.ones((8, 1)) if weights is None else weights.reshape(8, -1)
        factors = np.broadcast_to(factors * ref.mask, (8, 3))
        wanted = np.tensordot(factors, self.blocks(ref), 2) / factors.sum()
        op = flatjax.ggn(attention, self.loss, params, batch, weights=weights)
        references.assert_product(op, wanted, references.FLOAT64, linearized=False)

    def test_empirical_fisher(self, x64):
        params, batch = NETWORKS["attention"].cast()
        ref = references.reference("attention")
        r = ref.probabilities - np.eye(3)[np.maximum(np.asarray(batch[1]), 0)]
        gradients = np.einsum("ntip,nti->ntp", ref.jacobians, r)[ref.mask]
        op = flatjax.fisher(attention, self.loss, params, batch, kind="empirical")
        wanted = references.covariance(gradients, centered=False)
        references.assert_product(op, wanted, references.FLOAT64, linearized=False)

    def test_sampled_fisher_has_the_same_draws_as_the_mean_over_tokens(self, x64, key):
        # Sequences of one length and no padding: every token counts 1 / (n T) either way.
        params, (x, y) = NETWORKS["attention"].cast()
        batch = x, jnp.maximum(y, 0)
        token, example = (
            flatjax.fisher(attention, loss, params, batch, kind="sampled", key=key, num_samples=2)
            for loss in (self.loss, flatjax.softmax_cross_entropy)
        )
        np.testing.assert_array_equal(token.draws.reshape(2, 8, 3), example.draws)
        products = [np.asarray(ravel_pytree(op @ params)[0]) for op in (token, example)]
        references.assert_close(*products, references.FLOAT64)


def test_weights_that_a_compiled_function_captures():
    """Inside jit, arithmetic of known weights is traced: they are looked at without it."""
    x = jnp.arange(6.0).reshape(3, 2)
    loss_fn = lambda w, b: jnp.square(b @ w)  # noqa: E731
    weights = jnp.array([1.0, 0.0, 2.0])
    run = jax.jit(lambda v: flatjax.hessian(loss_fn, jnp.zeros(2), x, weights=weights).mv(v))
    wanted = 2 / 3 * (x.T @ (weights[:, None] * x)) @ jnp.ones(2)
    np.testing.assert_allclose(run(jnp.ones(2)), wanted, rtol=1e-6)
    nothing = jnp.zeros(3)
    with pytest.raises(ValueError, match="the total weight is zero"):
        jax.jit(lambda v: flatjax.hessian(loss_fn, v, x, weights=nothing).mv(v))(jnp.ones(2))
