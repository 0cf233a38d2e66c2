"""What every transform checks at its door, and states that are looked for."""

import jax
import jax.numpy as jnp
import optax
import pytest

import flatjax.transforms as ft
from flatjax import losses
from tests.transforms.zoo import loss_fn, model, per_example, update

XENT = losses.softmax_cross_entropy

NEEDS_BATCH = [
    ft.fisher_penalty(model, XENT, coef=0.1),
    ft.random_label_gradient_penalty(model, XENT, coef=0.1),
    ft.input_gradient_penalty(model, XENT, coef=0.1),
    ft.stochastic_implicit_gradient_regularization(0.1, loss_fn=loss_fn, micro_batches=2),
    ft.implicit_gradient_regularization(0.1, loss_fn=loss_fn, estimator="halves"),
    ft.gradient_noise(0.1, covariance="gradient", loss_fn=per_example),
    ft.label_noise(model, XENT, flip_probability=0.1),
    ft.sam(groups=2, loss_fn=loss_fn),
]


@pytest.mark.parametrize("tx", NEEDS_BATCH)
def test_no_batch(tx, net):
    with pytest.raises(ValueError, match="batch="):
        update(tx, net)


@pytest.mark.parametrize(
    "tx", [ft.sam(), ft.gradient_penalty(0.1), ft.momentum_sam(0.1), ft.swa(), ft.ema_params()]
)
def test_no_params(tx):
    w = jnp.ones(2)
    with pytest.raises(ValueError, match=r"needs the params"):
        tx.update(w, tx.init(w), grad_fn=lambda p: p)


def test_ragged_batch(net):
    tx = ft.fisher_penalty(model, XENT, coef=0.1)
    with pytest.raises(ValueError, match="share their leading axis"):
        update(tx, net, batch=(net[1][0], net[1][1][:4]))


@pytest.mark.parametrize("wrap", ["masked", "partition"])
def test_inside_masked(wrap):
    w = {"a": jnp.ones(2), "b": jnp.ones(2)}
    labels = {"a": "sam", "b": "none"}
    tx = (
        optax.masked(ft.sam(), {"a": True, "b": False})
        if wrap == "masked"
        else optax.partition({"sam": ft.sam(), "none": optax.identity()}, labels)
    )
    with pytest.raises(ValueError, match=r"Ascent\(mask=\)"):
        tx.update(w, tx.init(w), w, grad_fn=lambda p: p)


def test_structural_integers_cannot_be_injected(net):
    tx = optax.inject_hyperparams(ft.sam)(rho=0.1, groups=2)
    with pytest.raises(TypeError, match=r'static_args=\("groups",\)'):
        update(tx, net, grad_fn=lambda p: p)


def test_states_that_are_not_there():
    state = optax.sgd(0.1).init(jnp.ones(2))
    for read in (ft.averaged_params, ft.momentum_sam_eval_params, ft.entropy_sgd_eval_params):
        with pytest.raises(ValueError, match="in the optimiser state, found 0"):
            read(state, jnp.ones(2))
    with pytest.raises(ValueError, match="found 0"):
        ft.swag_sample(state, jnp.ones(2), key=jax.random.key(0))
