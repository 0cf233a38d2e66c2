"""The drop-in replacements for ``jax.value_and_grad``."""

import jax
import pytest

import flatjax.transforms as ft
from tests.transforms.zoo import RHO, assert_close, loss_fn, model, one_update, per_example


@pytest.mark.parametrize("loss", [loss_fn, per_example])
def test_is_a_drop_in_for_value_and_grad(net, dense, loss):
    params, batch = net
    value, grads = jax.jit(ft.sam_value_and_grad(loss, rho=RHO))(params, batch)
    assert_close(value, dense.value(dense.w))
    assert_close(grads, dense.sam())
    assert jax.tree.structure(grads) == jax.tree.structure(params)


def test_value_and_aux_are_those_of_the_clean_pass(net, dense):
    params, batch = net

    def with_aux(params, batch):
        return loss_fn(params, batch), {"logits": model(params, batch[0])}

    oracle = ft.sam_value_and_grad(with_aux, rho=RHO, has_aux=True)
    (value, aux), grads = jax.jit(oracle)(params, batch)
    assert_close(value, dense.value(dense.w))
    assert_close(aux["logits"], model(params, batch[0]))
    assert_close(grads, dense.sam())


def test_keyword_arguments_reach_the_loss(net, dense):
    params, batch = net
    scaled = lambda p, b, *, scale: scale * loss_fn(p, b)  # noqa: E731
    value, _ = ft.sam_value_and_grad(scaled, rho=0.0)(params, batch, scale=2.0)
    assert_close(value, 2 * dense.value(dense.w))


def test_radius_may_be_traced(net, dense):
    params, batch = net

    @jax.jit
    def step(params, rho):
        return ft.sam_value_and_grad(loss_fn, rho=rho)(params, batch)[1]

    assert_close(step(params, RHO), dense.sam())
    assert_close(step(params, 0.0), dense.g)


def masked_loss(params, batch, key):
    """A stochastic loss: dropout on the inputs, and the mask as auxiliary output."""
    mask = jax.random.bernoulli(key, 0.5, batch[0].shape).astype(batch[0].dtype)
    return loss_fn(params, (batch[0] * mask, batch[1])), mask


def test_dropout_is_the_same_in_both_passes(net):
    params, batch = net
    key = jax.random.key(0)
    fixed = lambda p, b: masked_loss(p, b, key)  # noqa: E731
    found = jax.jit(ft.sam_value_and_grad(masked_loss, has_aux=True))(params, batch, key)
    expected = jax.jit(ft.sam_value_and_grad(fixed, has_aux=True))(params, batch)
    assert_close(found, expected)


def test_groups_and_micro_batches_have_dropout_of_their_own(net):
    params, batch = net
    for cut in ({"groups": 2}, {"accumulate": 2}):
        oracle = ft.sam_value_and_grad(masked_loss, has_aux=True, **cut)
        (_, mask), _ = jax.jit(oracle)(params, batch, jax.random.key(0))
        assert bool((mask == 0.5).any())  # the mean of two masks that differ


def test_second_order_through_the_oracle(net):
    params, batch = net
    oracle = ft.sam_value_and_grad(loss_fn, rho=RHO, second_order=True)
    expected, _ = one_update(ft.sam(RHO, second_order=True), params, batch)
    assert_close(jax.jit(oracle)(params, batch)[1], expected)


# The truncation of a finite difference of step 1e-4: of first and of second order.
@pytest.mark.parametrize(
    ("mode", "atol"), [("linearize", 1e-12), ("forward", 1e-3), ("central", 1e-6)]
)
def test_penalty_oracle(net, dense, mode, atol):
    params, batch = net
    oracle = ft.penalty_value_and_grad(loss_fn, coef=0.2, mode=mode, step=1e-4)
    value, grads = jax.jit(oracle)(params, batch)
    assert_close(grads, dense.g + 0.4 * dense.h @ dense.g, atol=atol)
    assert_close(value, dense.value(dense.w))


def test_penalty_on_another_loss(net, dense):
    params, batch = net
    other = (batch[0], (batch[1] + 1) % 3)
    relabelled = lambda p, b: loss_fn(p, (b[0], (b[1] + 1) % 3))  # noqa: E731
    oracle = ft.penalty_value_and_grad(loss_fn, coef=0.2, penalty_fn=relabelled)
    product = dense.hessian(dense.w, other) @ dense.grad(dense.w, other)
    assert_close(jax.jit(oracle)(params, batch)[1], dense.g + 0.4 * product)


def test_in_a_flax_train_state(net, dense):
    # TrainState.apply_gradients does not forward extra arguments: the oracle needs none.
    import optax
    from flax.training import train_state

    params, batch = net
    state = train_state.TrainState.create(apply_fn=model, params=params, tx=optax.sgd(0.5))

    @jax.jit
    def step(state):
        _, grads = ft.sam_value_and_grad(loss_fn, rho=RHO)(state.params, batch)
        return state.apply_gradients(grads=grads)

    assert_close(step(state).params, dense.w - 0.5 * dense.sam())
