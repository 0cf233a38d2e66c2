"""Noised labels, against the distribution of their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import flatjax.transforms as ft
from flatjax import losses
from tests.transforms.draws import SEEDS, assert_covariance, draws
from tests.transforms.zoo import CLASSES, N, flat, loss_fn, model

XENT = losses.softmax_cross_entropy


def test_label_noise_of_a_squared_error(net):
    params, batch = net
    targets = jnp.zeros((N, CLASSES))
    make = lambda s: ft.label_noise(model, losses.squared_error, scale=0.5, seed=s)  # noqa: E731
    samples = draws(make, params, (batch[0], targets))
    w, unravel = ravel_pytree(params)
    jac = np.asarray(jax.jacrev(lambda w: model(unravel(w), batch[0]))(w)).reshape(-1, len(w))
    # Noise -s/n J^T xi: proportional to the Gauss-Newton matrix.
    assert_covariance(samples, 0.25 / N**2 * jac.T @ jac)


def test_flipped_labels(net):
    params, batch = net

    def make(p):
        def at(seed):
            xent = losses.softmax_cross_entropy
            return ft.label_noise(model, xent, flip_probability=p, seed=seed)

        return at

    # Nothing but the rounding of two gradients of the same labels.
    rounding = np.finfo(float).eps * np.abs(flat(jax.grad(loss_fn)(params, batch))).max()
    assert np.abs(draws(make(0.0), params, batch)).max() < rounding
    samples = draws(make(0.5), params, batch)
    uniform = (batch[0], jnp.full((N, CLASSES), 1 / CLASSES))
    noisy, clean = (flat(jax.grad(loss_fn)(params, b)) for b in (uniform, batch))
    expected = 0.5 * (noisy - clean)
    error = samples.std(axis=0) / np.sqrt(SEEDS)
    assert (np.abs(samples.mean(axis=0) - expected) < 4.5 * error).all()
