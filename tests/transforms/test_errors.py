"""Every bad input has an error that says what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatjax.transforms as ft
from flatjax import losses
from tests.transforms.zoo import loss_fn, model, update

XENT = losses.softmax_cross_entropy
NAN, INF = float("nan"), float("inf")


IGR, ISGR = ft.implicit_gradient_regularization, ft.stochastic_implicit_gradient_regularization
BAD_ARGUMENTS = [
    (lambda: ft.sam(-0.1), "rho must be at least 0"),
    (lambda: ft.sam(NAN), "rho must be finite"),
    (lambda: ft.sam("0.1"), "rho must be a number or a schedule"),
    (lambda: ft.Ascent(p=0.5), "p must be at least 1"),
    (lambda: ft.Ascent(p=NAN), "p must be finite"),
    (lambda: ft.sam(every=0), "every must be an integer of at least 1"),
    (lambda: ft.sam(ascent_steps=0), "ascent_steps must be an integer of at least 1"),
    (lambda: ft.sam(groups=1.5), "groups must be an integer"),
    (lambda: ft.sam(group_mode="scan"), "group_mode must be one of 'auto', 'vmap', 'loop'"),
    (lambda: ft.Ascent(offset=-1.0), "offset must be at least 0"),
    (lambda: ft.Ascent(normalize="no"), "normalize must be True or False"),
    (lambda: ft.Ascent(adaptive="yes"), "adaptive must hold booleans"),
    (lambda: ft.Ascent(mask={"w": 1.0}), "mask must hold booleans"),
    (lambda: ft.sam(ascent={"p": 1.0}), "ascent must be a flatjax.Ascent, got dict"),
    (lambda: ft.gsam(ascent=2.0), "ascent must be"),
    (lambda: ft.looksam(ascent=2.0), "ascent must be"),
    (lambda: ft.friendly_sam(ascent=2.0), "ascent must be"),
    (lambda: ft.sam_value_and_grad(loss_fn, ascent=2.0), "ascent must be"),
    (lambda: ft.penalty_value_and_grad(loss_fn, coef=NAN), "coef must be finite"),
    (lambda: ft.gsam(alpha=INF), "alpha must be finite"),
    (lambda: ft.gradient_norm_penalty(alpha=NAN), "alpha must be finite"),
    (lambda: ft.wsam(gamma=1.0), "gamma must be at least 0.0 and below 1.0"),
    (lambda: ft.wsam(optimizer=optax.sgd(0.1)), "both `optimizer` and `learning_rate`"),
    (lambda: ft.looksam(every=0), "every must be"),
    (lambda: ft.friendly_sam(decay=1.0), "decay must be"),
    (lambda: ft.momentum_sam(-0.1), "learning_rate must be at least 0"),
    (lambda: ft.momentum_sam(0.1, momentum=1.0), "momentum must be"),
    (lambda: ft.gradient_penalty(INF), "coef must be finite"),
    (lambda: ft.gradient_penalty(0.1, mode="exact"), "mode must be"),
    (lambda: ft.gradient_penalty(0.1, step=0.0), "step must be above 0"),
    (lambda: IGR(-1.0), "learning_rate must be at least 0"),
    (lambda: IGR(0.1, estimator="thirds"), "estimator must be one of 'batch', 'halves'"),
    (lambda: IGR(0.1, estimator="halves"), "needs loss_fn="),
    (
        lambda: ISGR(0.1, loss_fn=loss_fn, micro_batches=0),
        "micro_batches must be an integer of at least 1",
    ),
    (lambda: ft.fisher_penalty(model, XENT, coef=0.1, sub_batch=0), "sub_batch must be"),
    (lambda: ft.fisher_penalty(model, lambda z, t: z[:, 0], coef=0.1), "cannot sample"),
    (lambda: ft.gradient_noise(-1.0), "scale must be at least 0"),
    (lambda: ft.gradient_noise(1.0, covariance="full"), "covariance must be"),
    (lambda: ft.gradient_noise(1.0, covariance="gradient"), "needs loss_fn="),
    (lambda: ft.label_noise(model, XENT), "needs one of scale="),
    (lambda: ft.label_noise(model, XENT, flip_probability=1.5), "flip_probability must be"),
    (lambda: ft.langevin(0.1, num_data=0), "num_data must be above 0"),
    (lambda: ft.langevin(0.1, num_data=1, temperature=-1), "temperature must be"),
    (lambda: ft.langevin(0.1, num_data=1, friction=2.0), "friction must be"),
    (lambda: ft.langevin(0.1, num_data=1, preconditioner="adam"), "preconditioner must be"),
    (
        lambda: ft.langevin(0.1, num_data=1, preconditioner="rms", friction=0.1),
        "friction or a preconditioner",
    ),
    (lambda: ft.entropy_sgd(inner_steps=0), "inner_steps must be"),
    (lambda: ft.ema_params(1.5), "decay must be"),
    (lambda: ft.swa(every=0), "every must be"),
    (lambda: ft.swag(rank=1), "rank must be 0"),
    (
        lambda: ft.proportional_schedule(
            optax.constant_schedule(0.1), rho_max=1.0, rho_min=0.1, learning_rate_max=0.0
        ),
        "must exceed",
    ),
    (lambda: ft.sam_value_and_grad(loss_fn, rho=-1.0), "rho must be"),
]


@pytest.mark.parametrize(("make", "message"), BAD_ARGUMENTS, ids=[m for _, m in BAD_ARGUMENTS])
def test_bad_arguments(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_groups_without_a_loss(net):
    with pytest.raises(ValueError, match="pass loss_fn= to sam"):
        update(ft.sam(groups=4), net, grad_fn=lambda p: p, batch=net[1])


def test_batch_not_divisible_into_groups(net):
    message = r"a batch of 8 examples is not divisible into groups=3"
    with pytest.raises(ValueError, match=message):
        update(ft.sam(groups=3, loss_fn=loss_fn), net, batch=net[1])
    with pytest.raises(ValueError, match=message):
        ft.sam_value_and_grad(loss_fn, groups=3)(*net)
    with pytest.raises(ValueError, match="not divisible into accumulate=3"):
        ft.sam_value_and_grad(loss_fn, accumulate=3)(*net)
    odd = tuple(a[:7] for a in net[1])
    halves = ft.implicit_gradient_regularization(0.1, loss_fn=loss_fn, estimator="halves")
    with pytest.raises(ValueError, match="not divisible into halves=2"):
        update(halves, net, batch=odd)


@pytest.mark.parametrize("factory", [ft.fisher_penalty, ft.input_gradient_penalty])
def test_batch_smaller_than_the_sub_batch(factory, net):
    tx = factory(model, XENT, coef=0.1, sub_batch=16)
    with pytest.raises(ValueError, match="8 examples is smaller than sub_batch=16"):
        update(tx, net, batch=net[1])


@pytest.mark.parametrize("name", ["sam", "gsam", "looksam", "wsam", "friendly_sam"])
@pytest.mark.parametrize("optimizer", [optax.sgd(0.1), optax.adam(0.1)], ids=["sgd", "adam"])
def test_placed_after_the_optimiser(name, optimizer):
    tx = optax.chain(optimizer, getattr(ft, name)())
    loss = lambda w: jnp.sum(w**2)  # noqa: E731
    w = jnp.array([1.0, 2.0])
    with pytest.raises(ValueError, match="put it at the head of the chain"):
        tx.update(jax.grad(loss)(w), tx.init(w), w, grad_fn=jax.grad(loss))


def test_bad_masks(net):
    with pytest.raises(ValueError, match="mask must be a pytree prefix"):
        update(ft.sam(ascent=ft.Ascent(mask={"frist": True})), net, grad_fn=lambda p: p)
    with pytest.raises(TypeError, match="mask must hold booleans"):
        update(ft.sam(ascent=ft.Ascent(mask={"first": 1.0, "last": 0.0})), net, grad_fn=lambda p: p)


def test_loss_of_the_wrong_shape(net):
    wrong = lambda p, b: model(p, b[0])  # noqa: E731
    with pytest.raises(ValueError, match="a scalar or one loss per example"):
        ft.sam_value_and_grad(wrong)(*net)


def test_integer_inputs_have_no_gradient(net):
    params, (x, y) = net
    tx = ft.input_gradient_penalty(model, XENT, coef=0.1)
    with pytest.raises(TypeError, match="needs floating inputs"):
        update(tx, (params, (x, y)), batch=(x.astype(jnp.int32), y))


def test_label_noise_of_the_wrong_kind(net):
    with pytest.raises(TypeError, match="need flip_probability="):
        update(ft.label_noise(model, XENT, scale=0.1), net, batch=net[1])
    targets = jax.nn.one_hot(net[1][1], 3)
    tx = ft.label_noise(model, XENT, flip_probability=0.1)
    with pytest.raises(TypeError, match="need scale="):
        update(tx, net, batch=(net[1][0], targets))


def test_oracle_arguments(net):
    for cut in ({"groups": 2}, {"accumulate": 2}):
        with pytest.raises(TypeError, match="pass it by position"):
            ft.sam_value_and_grad(loss_fn, **cut)(net[0], batch=net[1])


def test_batch_statistics():
    with pytest.raises(ValueError, match="at least one batch"):
        ft.reestimate_batch_statistics(lambda p, s, b: s, 1.0, jnp.zeros(()), [])
    with pytest.raises(ValueError, match="no running average"):
        ft.reestimate_batch_statistics(
            lambda p, s, b: s, 1.0, jnp.zeros(()), [jnp.asarray(np.ones(2))]
        )
