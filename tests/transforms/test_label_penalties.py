"""Penalties at labels that are drawn."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax.transforms as ft
from flatjax import losses
from tests.transforms.zoo import (
    CLASSES,
    Dense,
    Rigged,
    assert_close,
    flat,
    model,
    network,
    one_update,
    per_example,
)

XENT = losses.softmax_cross_entropy


@pytest.mark.parametrize("mode", ["linearize", "forward"])
def test_fisher_penalty_on_known_labels(net, dense, mode):
    params, batch = net
    labels = jnp.argmin(model(params, batch[0]), axis=-1)
    other = (batch[0], labels)
    g_f, h_f = dense.grad(dense.w, other), dense.hessian(dense.w, other)
    if mode == "forward":
        norm = np.linalg.norm(g_f)
        product = (dense.grad(dense.w + 0.01 * g_f / norm, other) - g_f) * norm / 0.01
    else:
        product = h_f @ g_f
    tx = ft.fisher_penalty(model, Rigged(), coef=0.3, every=1, mode=mode, diagnostics=True)
    out, state = one_update(tx, params, batch)
    assert_close(out, dense.g + 0.6 * product, rtol=1e-9, atol=1e-11)
    assert float(state.penalty) == pytest.approx(g_f @ g_f, rel=1e-12)


LABELLED = {"fisher": ft.fisher_penalty, "random": ft.random_label_gradient_penalty}


@pytest.mark.parametrize("name", LABELLED)
def test_labels_are_drawn_from_the_right_distribution(name):
    # Two examples: the update is one of the 9 that the 9 labellings give. Their frequencies over
    # 600 seeds are compared with the probabilities, by Pearson's chi-square.
    with jax.enable_x64(True):
        params, batch = network(jnp.float64, n=2)
        params = jax.tree.map(lambda a: a / 2, params)
        dense = Dense(params, batch)
        labellings = list(itertools.product(range(CLASSES), repeat=2))
        batches = [(batch[0], jnp.array(y, jnp.int32)) for y in labellings]
        options = [2 * dense.hessian(dense.w, b) @ dense.grad(dense.w, b) for b in batches]
        zero = jax.tree.map(jnp.zeros_like, params)

        @jax.jit
        @jax.vmap
        def draw(seed):
            tx = LABELLED[name](model, losses.softmax_cross_entropy, coef=1.0, every=1, seed=seed)
            return tx.update(zero, tx.init(params), params, batch=batch)[0]

        seeds = 600
        drawn = np.asarray(
            jax.vmap(lambda t: jax.flatten_util.ravel_pytree(t)[0])(draw(jnp.arange(seeds)))
        )
        p = np.asarray(jax.nn.softmax(model(params, batch[0])))
    distance = np.abs(drawn[:, None] - np.array(options)[None]).max(axis=2)
    which = distance.argmin(axis=1)
    assert distance.min(axis=1).max() < 1e-10
    if name == "random":
        p = np.full((2, CLASSES), 1 / CLASSES)
    expected = seeds * np.array([p[0, a] * p[1, b] for a, b in labellings])
    counts = np.bincount(which, minlength=9)
    # 26.1 is the 0.1 % quantile of chi-square with 8 degrees of freedom; the seeds are fixed.
    assert ((counts - expected) ** 2 / expected).sum() < 26.1


def test_labels_change_from_step_to_step(net):
    params, batch = net
    tx = ft.fisher_penalty(model, losses.softmax_cross_entropy, coef=0.3, every=1)
    first, second = (flat(one_update(tx, params, batch, k)[0]) for k in (1, 2))
    assert np.abs(first - second).max() > 1e-6


@pytest.mark.slow
def test_expected_penalty_is_the_trace_of_the_fisher():
    # E |g_F|^2 = tr(F) / B' with F the mean over examples, because E grad l(x, y_hat) = 0.
    with jax.enable_x64(True):
        params, batch = network(jnp.float64)
        p = jax.nn.softmax(model(params, batch[0]))

        def squared(x, y):
            g = jax.grad(lambda w: per_example(w, (x[None], y[None]))[0])(params)
            return sum(jnp.sum(a**2) for a in jax.tree.leaves(g))

        each = jax.vmap(lambda x: jax.vmap(lambda y: squared(x, y))(jnp.arange(CLASSES)))(batch[0])
        trace = float((p * each).sum(axis=1).mean())

        @jax.jit
        @jax.vmap
        def draw(seed):
            tx = ft.fisher_penalty(
                model, losses.softmax_cross_entropy, coef=1.0, every=1, seed=seed,
                diagnostics=True,
            )  # fmt: skip
            zero = jax.tree.map(jnp.zeros_like, params)
            return tx.update(zero, tx.init(params), params, batch=batch)[1].penalty

        values = np.asarray(draw(jnp.arange(4000)))
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - trace / len(batch[1])) < 4 * error
