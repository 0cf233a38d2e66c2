"""Padding: negative ids, all-zero rows, and masks of sequences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from tests.losses.zoo import log_softmax

LOSS = flatjax.softmax_cross_entropy
Z = np.random.default_rng(3).normal(size=(3, 4, 5))
IDS = np.array([[0, 1, 2, 3], [4, 0, -1, -1], [-100, -1, -1, -1]])  # lengths 4, 2, 0
ONE_HOT = np.eye(5)[np.maximum(IDS, 0)] * (IDS >= 0)[..., None]


def values():
    picked = np.take_along_axis(log_softmax(Z), np.maximum(IDS, 0)[..., None], axis=-1)[..., 0]
    return -picked * (IDS >= 0)


@pytest.mark.parametrize("targets", [IDS, ONE_HOT], ids=["ids", "rows"])
def test_mean_over_the_unmasked_tokens(targets, x64):
    z, t = jnp.asarray(Z), jnp.asarray(targets)
    wanted = values().sum(axis=1) / np.array([4, 2, 1])  # an empty sequence has loss zero
    np.testing.assert_allclose(LOSS(z, t), wanted, rtol=1e-13)
    np.testing.assert_allclose(LOSS(z, t, per="token"), values().reshape(-1), rtol=1e-13)


@pytest.mark.parametrize("targets", [IDS, ONE_HOT], ids=["ids", "rows"])
@pytest.mark.parametrize("per", ["example", "token"])
def test_derivatives_at_padding_are_zero(targets, per, x64):
    z, t, loss = jnp.asarray(Z), jnp.asarray(targets), LOSS(per=per)
    u = jnp.asarray(np.random.default_rng(4).normal(size=Z.shape))
    gradient = jax.grad(lambda z: loss(z, t).sum())
    product = loss.hessian_product(z, t, u)
    np.testing.assert_allclose(product, jax.jvp(gradient, (z,), (u,))[1], rtol=1e-11, atol=1e-14)
    for derivative in (gradient(z), product, loss.score_product(z, t, u)):
        np.testing.assert_array_equal(np.any(derivative, axis=-1), IDS >= 0)


@pytest.mark.parametrize("per", ["example", "token"])
@pytest.mark.parametrize("product", ["hessian_product", "score_product", "gradient_product"])
def test_whatever_the_logits_and_tangents_are_there(product, per, x64):
    z, ids, loss = jnp.asarray(Z), jnp.asarray(IDS), LOSS(per=per)
    if per == "token":
        z, ids, loss = z.reshape(12, 5), ids.reshape(12), LOSS
    u = jnp.asarray(np.random.default_rng(4).normal(size=z.shape))
    bad = jnp.where((ids < 0)[..., None], jnp.nan, 0.0)
    wanted = getattr(loss, product)(z, ids, u)
    np.testing.assert_array_equal(getattr(loss, product)(z + bad, ids, u + bad), wanted)
    np.testing.assert_array_equal(loss(z + bad, ids), loss(z, ids))


def test_masked_examples_without_positions(x64):
    z, t = jnp.asarray(Z[:, 0]), jnp.array([1, -1, 2])
    found = LOSS(z, t)
    assert float(found[1]) == 0.0
    np.testing.assert_allclose(found[::2], LOSS(z[::2], t[::2]), rtol=1e-15)


def test_resampled_targets_keep_the_padding(key):
    drawn = LOSS.resample(key, jnp.asarray(Z), jnp.asarray(IDS))
    np.testing.assert_array_equal(drawn >= 0, IDS >= 0)
    rows = LOSS.resample(key, jnp.asarray(Z), jnp.asarray(ONE_HOT))
    np.testing.assert_array_equal(rows, drawn)


def test_positions_over_several_axes(x64):
    # Images: the class of every pixel, 2 x 2 of them.
    z, ids = jnp.asarray(Z).reshape(3, 2, 2, 5), jnp.asarray(IDS).reshape(3, 2, 2)
    np.testing.assert_allclose(LOSS(z, ids), LOSS(jnp.asarray(Z), jnp.asarray(IDS)), rtol=1e-14)
    assert LOSS(z, ids, per="token").shape == (12,)
    u = jnp.ones_like(z)
    np.testing.assert_array_equal(
        LOSS.hessian_product(z, ids, u).reshape(Z.shape),
        LOSS.hessian_product(jnp.asarray(Z), jnp.asarray(IDS), u.reshape(Z.shape)),
    )
