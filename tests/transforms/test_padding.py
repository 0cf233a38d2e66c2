"""Padding does not count in the transforms that take a model and an output loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import flatjax.transforms as ft
from flatjax import losses
from flatjax.transforms import _means as means
from tests.transforms.zoo import Rigged, flat, model, network, one_update

XENT = losses.softmax_cross_entropy
REAL = 5  # of 8 examples


def fisher(**options):
    return ft.fisher_penalty(model, Rigged(), coef=0.5, every=1, **options)  # draws no chance


def inputs(**options):
    return ft.input_gradient_penalty(model, XENT, coef=0.5, **options)


def noise(**options):
    return ft.label_noise(model, XENT, flip_probability=1.0, **options)


def padded(batch, rows=slice(REAL, None)):
    return batch[0], batch[1].at[rows].set(-1)


@pytest.mark.parametrize("make", [fisher, inputs])
def test_padded_rows_are_as_if_they_were_not_there(x64, make):
    params, batch = network(jnp.float64)
    cut = tuple(a[:REAL] for a in batch)
    (found, state), (expected, alone) = (
        one_update(make(diagnostics=True), params, b) for b in (padded(batch), cut)
    )
    # `one_update` begins with the gradient of the plain mean, which counts all rows.
    g, h = (flat(jax.grad(plain)(params, b)) for b in (padded(batch), cut))
    np.testing.assert_allclose(flat(found) - g, flat(expected) - h, rtol=1e-10, atol=1e-12)
    assert float(state.penalty) == pytest.approx(float(alone.penalty), rel=1e-12)


def plain(params, batch):
    return XENT(model(params, batch[0]), batch[1]).mean()


def alone(tx, params, batch):
    return flat(tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params,
                          batch=batch)[0])  # fmt: skip


def test_the_noise_of_a_whole_is_the_mean_of_its_parts(x64):
    params, batch = network(jnp.float64)
    front, back = padded(batch), padded(batch, slice(REAL))
    whole, first, last = (alone(noise(seed=3), params, b) for b in (batch, front, back))
    np.testing.assert_allclose(8 * whole, REAL * first + (8 - REAL) * last, atol=1e-12)
    assert np.abs(first).max() > 1e-3


@pytest.mark.parametrize("make", [fisher, inputs, noise])
def test_nothing_but_padding_is_nothing(x64, make):
    params, batch = network(jnp.float64)
    np.testing.assert_array_equal(alone(make(), params, padded(batch, slice(None))), 0)
    value, shares = means.of_outputs(XENT, model(params, batch[0]), batch[1] * 0 - 1, None)
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_array_equal(shares, np.zeros(8))


def test_every_token_counts_alike(x64):
    outputs, targets = jnp.ones((3, 4, 2)), jnp.zeros((3, 4, 2))
    token = losses.squared_error(per="token")  # without a mask
    value, shares = means.of_outputs(token, outputs, targets, None)
    assert float(value) == pytest.approx(float(token(outputs, targets).mean()), rel=1e-12)
    np.testing.assert_allclose(shares, np.full(3, 1 / 3), rtol=1e-12)


@pytest.mark.parametrize("make", [fisher, inputs, noise])
@pytest.mark.parametrize("check_vma", [False, True])
def test_padding_need_not_be_shared_out_evenly(x64, make, check_vma):
    params, batch = network(jnp.float64)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))  # the last device has none

    options = {} if make is noise else {"diagnostics": True}

    def update(params, batch, **more):
        tx = make(**options, **more)
        zero = jax.tree.map(jnp.zeros_like, params)
        found, state = tx.update(zero, tx.init(params), params, batch=batch)
        return found, state.penalty if options else ()

    def local(params, batch):
        return update(params, batch, axis_name="data")

    spread = jax.shard_map(
        local, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(), check_vma=check_vma
    )
    found, expected = jax.jit(spread)(params, padded(batch)), update(params, padded(batch))
    np.testing.assert_allclose(flat(found), flat(expected), atol=1e-12)


def test_the_inputs_of_sequences_of_several_lengths(x64):
    lengths, width, classes = np.array([4, 1, 0, 2]), 3, 5
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=(width, classes)))
    x, y = jnp.asarray(rng.normal(size=(4, 4, width))), rng.integers(0, classes, (4, 4))
    y = jnp.asarray(np.where(np.arange(4) < lengths[:, None], y, -1), jnp.int32)
    token = losses.softmax_cross_entropy(per="token")

    def penalty(w):
        def own(x, y, n):  # the mean over the tokens of one sequence
            return token(x[None] @ w, y[None]).sum() / n

        gradients = [jax.grad(own)(x[i], y[i], n) for i, n in enumerate(lengths) if n]
        weights = [n for n in lengths if n]
        return sum(n * (g**2).sum() for n, g in zip(weights, gradients, strict=True)) / sum(weights)

    tx = ft.input_gradient_penalty(lambda w, x: x @ w, token, coef=0.5, diagnostics=True)
    update, state = tx.update(jnp.zeros_like(w), tx.init(w), w, batch=(x, y))
    np.testing.assert_allclose(update, 0.5 * jax.grad(penalty)(w), rtol=1e-10, atol=1e-12)
    assert float(state.penalty) == pytest.approx(float(penalty(w)), rel=1e-12)


def test_labels_at_random_count_alike(x64):
    # Of two examples alike but for their labels, drawn anew, one is padding or neither.
    params, batch = network(jnp.float64)
    one = tuple(jnp.repeat(a[:1], 2, axis=0) for a in batch)

    def drawn(seed, b):
        tx = ft.random_label_gradient_penalty(model, XENT, coef=1.0, every=1, seed=seed,
                                              diagnostics=True)  # fmt: skip
        return float(one_update(tx, params, b)[1].penalty)

    w, unravel = ravel_pytree(params)

    def square(label):
        batch = one[0][:1], jnp.array([label])
        return float(jnp.sum(jax.grad(lambda w: plain(unravel(w), batch))(w) ** 2))

    squares = [square(label) for label in range(3)]
    found = {drawn(seed, padded(one, slice(1, None))) for seed in range(12)}
    # The penalty of one label of three, not a quarter of it.
    assert len(found) >= 2
    assert all(min(abs(a / b - 1) for b in squares) < 1e-10 for a in found)
