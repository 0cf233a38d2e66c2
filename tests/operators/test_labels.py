"""A label beyond the classes is NaN in every operator, never counted and never zero."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax

RNG = np.random.default_rng(0)
X, V = jnp.asarray(RNG.normal(size=(6, 5))), jnp.asarray(RNG.normal(size=(5, 3)))
PARAMS = jnp.asarray(RNG.normal(size=(5, 3)))
LABELS = jnp.array([0, 255, 2, 255, 1, 1], jnp.uint8)
LOSS = flatjax.softmax_cross_entropy


def model(w, x):
    return x @ w


def make(kind, loss, batch, **options):
    losses_fn = lambda w, b: loss(model(w, b[0]), b[1])  # noqa: E731
    match kind:
        case "hessian":
            return flatjax.hessian(losses_fn, PARAMS, batch, **options)
        case "covariance":
            return flatjax.gradient_covariance(losses_fn, PARAMS, batch, **options)
        case "ggn":
            return flatjax.ggn(model, loss, PARAMS, batch, **options)
    key = jax.random.key(0) if kind == "sampled" else None
    return flatjax.fisher(model, loss, PARAMS, batch, kind=kind, key=key, **options)


KINDS = ["hessian", "covariance", "ggn", "exact", "sampled", "empirical"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{}, {"chunk_size": 4}], ids=["whole", "chunks"])
def test_products_are_nan(kind, options):
    assert np.isnan(make(kind, LOSS, (X, LABELS), **options) @ V).any()


@pytest.mark.parametrize("kind", ["ggn", "exact", "sampled", "empirical"])
def test_ignored_they_do_not_count(kind):
    op = make(kind, LOSS(ignore_index=255), (X, LABELS))
    assert float(op.weight) == 4
    negative = jnp.where(LABELS == 255, -1, LABELS.astype(jnp.int32))
    wanted = make(kind, LOSS, (X, negative)) @ V
    np.testing.assert_array_equal(op @ V, wanted)
    assert np.isfinite(wanted).all()
    if kind != "sampled":  # whose draws depend on the place in the batch
        kept = np.array([0, 2, 4, 5])
        alone = make(kind, LOSS, (X[kept], LABELS[kept])) @ V
        np.testing.assert_allclose(wanted, alone, rtol=0, atol=1e-6)


@pytest.mark.parametrize("per", ["example", "token"])
@pytest.mark.parametrize("kind", ["exact", "sampled", "empirical"])
def test_pixels(per, kind):
    """Void pixels within an image that counts."""
    x, labels = X.reshape(2, 3, 5), LABELS.reshape(2, 3)
    fisher = functools.partial(make, kind)
    assert np.isnan(fisher(LOSS(per=per), (x, labels)) @ V).any()
    found = fisher(LOSS(per=per, ignore_index=255), (x, labels)) @ V
    negative = jnp.where(labels == 255, -1, labels.astype(jnp.int32))
    np.testing.assert_array_equal(found, fisher(LOSS(per=per), (x, negative)) @ V)
    assert np.isfinite(found).all()
