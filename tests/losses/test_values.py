"""Values and Hessian products of the losses, against formulas and automatic derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from tests.losses.zoo import cases

CASES, SEQUENCES = cases(), cases((5, 3))


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def arrays(case, dtype=jnp.float64):
    targets = jnp.asarray(case.targets)
    if jnp.issubdtype(targets.dtype, jnp.floating):
        targets = targets.astype(dtype)
    return jnp.asarray(case.outputs, dtype), targets


@functools.partial(jax.jit, static_argnums=0)
def differentiated(loss, z, t, u):
    """The Hessian product by automatic differentiation of the values."""
    return jax.jvp(jax.grad(lambda z: loss(z, t).sum()), (z,), (u,))[1]


@pytest.mark.parametrize("name", CASES)
def test_values(name, dtype):
    case = CASES[name]
    found = case.loss(*arrays(case, dtype))
    assert found.dtype == dtype
    # A sum of four terms of order one, each good to a few roundings.
    tolerance = 1e-13 if dtype == jnp.float64 else 2e-6
    np.testing.assert_allclose(found, case.values, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", SEQUENCES)
def test_the_loss_of_a_sequence_is_the_mean_over_its_tokens(name, x64):
    case = SEQUENCES[name]
    z, t = arrays(case)
    np.testing.assert_allclose(case.loss(z, t), case.values.mean(axis=1), rtol=1e-13)
    by_token = case.values.reshape(-1)
    np.testing.assert_allclose(case.loss(z, t, per="token"), by_token, rtol=1e-13)
    np.testing.assert_allclose(case.loss(per="token")(z, t), by_token, rtol=1e-13)


@pytest.mark.parametrize("per", ["example", "token"])
@pytest.mark.parametrize("name", CASES)
def test_hessian_product_is_the_derivative(name, per, x64):
    case = SEQUENCES[name]
    loss, (z, t) = case.loss(per=per), arrays(case)
    u = jnp.asarray(np.random.default_rng(2).normal(size=z.shape))
    found = loss.hessian_product(z, t, u)
    np.testing.assert_allclose(found, differentiated(loss, z, t, u), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("name", CASES)
def test_score_products_are_outer_products_of_gradients(name, x64):
    case = SEQUENCES[name]
    z, t = arrays(case)
    u = jnp.asarray(np.random.default_rng(2).normal(size=z.shape))
    r = np.asarray(jax.grad(lambda z: case.loss(z, t, per="token").sum())(z))
    inner = (r * u).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(case.loss.score_product(z, t, u), r * inner / 3, rtol=1e-12)
    whole = r / 3 * (r / 3 * u).sum(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(case.loss.gradient_product(z, t, u), whole, rtol=1e-12)


def test_a_binary_target_that_is_no_probability_is_no_number():
    loss, z = flatjax.sigmoid_binary_cross_entropy, jnp.zeros((4, 1))
    targets = jnp.array([[-1.0], [0.0], [1.0], [1.5]])  # labels of -1 and 1, or of 0 and 255
    np.testing.assert_array_equal(np.isnan(loss(z, targets)), [True, False, False, True])
    product = loss.hessian_product(z, targets, jnp.ones((4, 1)))
    np.testing.assert_array_equal(np.isnan(product[:, 0]), [True, False, False, True])


@pytest.mark.parametrize("loss", [flatjax.squared_error, flatjax.sigmoid_binary_cross_entropy])
def test_outputs_without_features(loss, x64):
    z, t = jnp.array([-1.0, 0.0, 2.0]), jnp.array([0.0, 1.0, 1.0])
    np.testing.assert_array_equal(loss(z, t), loss(z[:, None], t[:, None]))
    u = jnp.ones(3)
    for product in (loss.hessian_product, loss.score_product, loss.gradient_product):
        narrow, wide = product(z, t, u), product(z[:, None], t[:, None], u[:, None])
        np.testing.assert_allclose(narrow, wide[:, 0], rtol=1e-15)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_outputs_are_evaluated_in_float32(name):
    dtype = jnp.bfloat16
    case = CASES[name]
    z, t = arrays(case, dtype)
    wide_t = t.astype(jnp.float32) if jnp.issubdtype(t.dtype, jnp.floating) else t
    wide = z.astype(jnp.float32), wide_t
    assert case.loss(z, t).dtype == jnp.float32
    np.testing.assert_array_equal(case.loss(z, t), case.loss(*wide))
    u = jnp.ones_like(z)
    product = case.loss.hessian_product(z, t, u)
    assert product.dtype == dtype
    exact = case.loss.hessian_product(*wide, u.astype(jnp.float32))
    np.testing.assert_array_equal(product, exact.astype(dtype))


@pytest.mark.parametrize("name", CASES)
def test_extreme_outputs_stay_finite(name):
    case = CASES[name]
    z, t = arrays(case, jnp.float32)
    for scale in (1e4, -1e4):
        assert np.isfinite(case.loss(scale * z, t)).all()
        assert np.isfinite(jax.grad(lambda z: case.loss(z, t).sum())(scale * z)).all()
        product = case.loss.hessian_product(scale * z, t, jnp.ones_like(z))
        assert np.isfinite(product).all()


def test_integer_and_boolean_labels_of_the_sigmoid():
    loss, z = flatjax.sigmoid_binary_cross_entropy, jnp.ones((2, 3))
    wanted = loss(z, jnp.eye(2, 3))
    np.testing.assert_array_equal(loss(z, jnp.eye(2, 3, dtype=jnp.int32)), wanted)
    np.testing.assert_array_equal(loss(z, jnp.eye(2, 3) > 0), wanted)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int32, jnp.uint32])
def test_class_ids_of_every_integer_type(dtype):
    z, ids = jnp.eye(3), np.array([0, 2, 1])
    wanted = flatjax.softmax_cross_entropy(z, jnp.asarray(ids))
    np.testing.assert_array_equal(flatjax.softmax_cross_entropy(z, jnp.asarray(ids, dtype)), wanted)


def test_probabilities_that_do_not_add_up_to_one_scale_the_hessian(x64):
    loss, (z, t) = flatjax.softmax_cross_entropy, arrays(CASES["softmax_probabilities"])
    u = jnp.ones_like(z) * jnp.arange(4.0)[None]
    np.testing.assert_allclose(
        loss.hessian_product(z, 3 * t, u), differentiated(loss, z, 3 * t, u), rtol=1e-11
    )
