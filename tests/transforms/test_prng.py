"""Keys in states and among arguments: none is used twice, but for the passes of one step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax.transforms as ft
from flatjax import losses
from flatjax.transforms import _prng as prng
from tests.transforms.zoo import flat, model, network

XENT = losses.softmax_cross_entropy
PARAMS, BATCH = network()


def dropout_model(params, x, key):
    return model(params, x * jax.random.bernoulli(key, 0.5, x.shape))


def each(params, batch, key):
    return XENT(dropout_model(params, batch[0], key), batch[1])


def mean(params, batch, key):
    return each(params, batch, key).mean()


def test_the_checker_sees_a_key_used_twice():
    def twice(data):
        key = prng.of_step(data, 0)
        return jax.random.normal(key), jax.random.normal(key)

    with jax.debug_key_reuse(True), pytest.raises(jax.errors.KeyReuseError):
        jax.jit(twice)(prng.initial(0))


def test_the_key_of_a_step_is_that_of_the_seed():
    data = prng.initial(3)
    assert data.dtype == jnp.uint32
    expected = jax.random.fold_in(jax.random.key(3), 5)
    assert prng.of_step(data, 5) == expected
    assert prng.of_step(data, 6) != expected


# With a dropout key among the arguments: both passes of a step see the same one, on purpose.
slow = pytest.mark.slow
TRANSFORMS = {
    "sam": ft.sam(groups=2, loss_fn=mean),
    "isgr": ft.stochastic_implicit_gradient_regularization(
        0.1, loss_fn=mean, micro_batches=2, mode="forward"
    ),
    "halves": ft.implicit_gradient_regularization(
        0.1, loss_fn=mean, estimator="halves", mode="forward"
    ),
    "fisher": ft.fisher_penalty(dropout_model, XENT, coef=0.1, mode="forward"),
    "inputs": ft.input_gradient_penalty(dropout_model, XENT, coef=0.1, mode="central"),
    "noise": ft.gradient_noise(0.1, covariance="gradient", loss_fn=each),
    "diagonal": ft.gradient_noise(0.1, covariance="diagonal", loss_fn=mean),
    "labels": ft.label_noise(dropout_model, XENT, flip_probability=0.1),
}
ORACLES = {
    "sam": ft.sam_value_and_grad(mean),
    "groups": ft.sam_value_and_grad(mean, groups=2),
    "accumulated": ft.sam_value_and_grad(mean, accumulate=2),
    "penalty": ft.penalty_value_and_grad(mean, coef=0.1, mode="forward"),
}
FAST = {"sam", "halves", "fisher"}
TRANSFORM_NAMES = [n if n in FAST else pytest.param(n, marks=slow) for n in TRANSFORMS]
ORACLE_NAMES = [n if n in FAST else pytest.param(n, marks=slow) for n in ORACLES]


@pytest.mark.parametrize("name", TRANSFORM_NAMES)
def test_transforms_with_a_key_among_the_arguments(name):
    tx = TRANSFORMS[name]
    g = jax.tree.map(jnp.ones_like, PARAMS)
    update = lambda key: tx.update(g, tx.init(PARAMS), PARAMS, batch=BATCH, args=(key,))[0]  # noqa: E731
    with jax.debug_key_reuse(True):
        out = jax.jit(update)(jax.random.key(0))
    assert bool(jnp.isfinite(flat(out)).all())


@pytest.mark.parametrize("name", ORACLE_NAMES)
def test_oracles_with_a_key_among_the_arguments(name):
    with jax.debug_key_reuse(True):
        out = jax.jit(ORACLES[name])(PARAMS, BATCH, jax.random.key(0))
    assert bool(jnp.isfinite(flat(out)).all())


def test_a_draw_from_swag():
    tx = ft.swag(rank=2)
    draw = jax.jit(lambda key: ft.swag_sample(tx.init(PARAMS), PARAMS, key=key))
    with jax.debug_key_reuse(True):
        np.testing.assert_array_equal(flat(draw(jax.random.key(0))), 0.0)  # nothing collected


@pytest.mark.parametrize("kind", ["sam", "isgr", "halves"])
def test_groups_have_dropout_of_their_own_in_both_passes(kind):
    # A loss that is its draw times the sum of the params: the gradient tells which draws were seen.
    def linear(w, batch, key):
        draw = jax.random.normal(key)
        return draw * w.sum() + draw**2 * (w**2).sum() / 2 + 0.0 * batch.sum()

    w, key = jnp.zeros(1), jax.random.key(0)
    a, b = (jax.random.normal(jax.random.fold_in(key, i)) for i in range(2))
    batch = jnp.ones(4)
    if kind == "sam":
        tx = ft.sam(0.5, groups=2, loss_fn=linear, group_mode="loop", check=False)
        # g = a, at w + 0.5 sign(a): a + 0.5 a^2 sign(a).
        expected = np.mean([d + 0.5 * d * abs(d) for d in (a, b)])
    elif kind == "isgr":
        tx = ft.stochastic_implicit_gradient_regularization(
            2.0, loss_fn=linear, micro_batches=2, group_mode="loop"
        )
        expected = np.mean([d**3 for d in (a, b)])  # h/2 H g
    else:
        tx = ft.implicit_gradient_regularization(2.0, loss_fn=linear, estimator="halves")
        expected = (a**2 * b + b**2 * a) / 2  # h/4 (H_A g_B + H_B g_A)
    out, _ = tx.update(jnp.zeros(1), tx.init(w), w, batch=batch, args=(key,))
    # Four products in float32.
    np.testing.assert_allclose(out[0], expected, rtol=1e-5)


def test_clones_are_for_typed_keys_alone():
    seen = []
    batch = {"x": jnp.ones(2), "key": jax.random.split(jax.random.key(0))}
    prng.cloning(lambda *a, **k: seen.append((a, k)))(batch, None, flag=jnp.zeros(2, jnp.uint32))
    assert seen[0][0][0]["key"].shape == (2,)
    np.testing.assert_array_equal(seen[0][1]["flag"], 0)
