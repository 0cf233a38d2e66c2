"""The methods of the family meet where the literature says they do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatjax.transforms as ft
from tests.transforms.zoo import assert_close, descend, loss_fn, one_update


@pytest.fixture(scope="module")
def sam(net):
    return one_update(ft.sam(0.3), *net)[0]


def equal_to_sam():
    step = optax.sgd(1.0)
    return {
        "GNP(1)": ft.gradient_norm_penalty(0.3, alpha=1.0),
        "GSAM(0)": ft.gsam(0.3, alpha=0.0),
        "LookSAM(1)": ft.looksam(0.3, every=1),
        "WSAM(1/2)": ft.wsam(0.3, gamma=0.5),
        "decoupled WSAM(1/2)": optax.chain(
            ft.wsam(0.3, gamma=0.5, optimizer=step, learning_rate=1.0), optax.scale(-1.0)
        ),
        "F-SAM(0)": ft.friendly_sam(0.3, sigma=0.0),
        "SAM(T=1)": ft.sam(0.3, ascent=ft.Ascent(adaptive={"first": False, "last": False})),
        "SAM(1 group)": ft.sam(0.3, groups=1),
        "SAM(every 1)": ft.sam(0.3, every=1),
    }


@pytest.mark.parametrize("name", equal_to_sam())
def test_special_cases_of_sam(name, net, sam):
    # Two updates: the second sees whatever state there is.
    assert_close(one_update(equal_to_sam()[name], *net, steps=2)[0], sam)


def test_asam_with_equal_weights_is_sam(x64):
    # T = |w| + eta is constant where all |w| agree: ASAM(rho) = SAM(rho T).
    loss = lambda w: jnp.sum(jnp.array([1.0, 2.0, 5.0]) * (w - 3.0) ** 2)  # noqa: E731
    w = jnp.array([1.0, -1.0, 1.0])
    g = jax.grad(loss)(w)
    asam, sam = ft.sam(0.2, ascent=ft.Ascent(adaptive=True, offset=0.5)), ft.sam(0.2 * 1.5)
    a, _ = asam.update(g, asam.init(w), w, grad_fn=jax.grad(loss))
    b, _ = sam.update(g, sam.init(w), w, grad_fn=jax.grad(loss))
    assert_close(a, b)


def test_gradient_penalties_meet(net):
    igr = one_update(ft.implicit_gradient_regularization(0.4), *net)[0]
    gp = one_update(ft.gradient_penalty(0.1), *net)[0]
    isgr = ft.stochastic_implicit_gradient_regularization
    stochastic = one_update(isgr(0.4, loss_fn=loss_fn, micro_batches=1), *net)[0]
    assert_close(gp, igr)
    assert_close(stochastic, igr)


RADII = np.array([1e-2, 5e-3, 2.5e-3])


def order(difference):
    """The order in rho of a difference of two trees, from three radii and one program."""
    norm = jax.jit(lambda rho: optax.tree.norm(difference(rho)))
    return np.polyfit(np.log(RADII), np.log([float(norm(rho)) for rho in RADII]), 1)[0]


def outgoing(tx, params, batch):
    grad_fn = lambda p: jax.grad(loss_fn)(p, batch)  # noqa: E731
    return tx.update(grad_fn(params), tx.init(params), params, grad_fn=grad_fn)[0]


def test_sam_is_a_gradient_norm_penalty_to_first_order(net):
    params, batch = net

    def difference(rho):
        def penalised(w):
            return loss_fn(w, batch) + rho * optax.tree.norm(jax.grad(loss_fn)(w, batch))

        sam = outgoing(ft.sam(rho), params, batch)
        return jax.tree.map(jnp.subtract, sam, jax.grad(penalised)(params))

    # grad(L + rho |g|) = g + rho H g / |g|: SAM differs by O(rho^2).
    assert order(difference) == pytest.approx(2.0, abs=0.1)


def test_unnormalised_sam_is_implicit_regularisation_to_first_order(net):
    def difference(rho):
        usam = outgoing(ft.sam(rho, ascent=ft.Ascent(normalize=False)), *net)
        igr = outgoing(ft.implicit_gradient_regularization(2 * rho), *net)
        return jax.tree.map(jnp.subtract, usam, igr)

    assert order(difference) == pytest.approx(2.0, abs=0.1)


def test_forward_difference_penalty_is_unnormalised_sam(net):
    # 2 coef |g| / r (grad(w + r g/|g|) - g) with r = rho |g| and 2 coef = rho is USAM(rho).
    params, batch = net
    norm = float(optax.tree.norm(jax.grad(loss_fn)(params, batch)))
    rho = 0.3
    usam = one_update(ft.sam(rho, ascent=ft.Ascent(normalize=False)), params, batch)[0]
    fd = ft.gradient_penalty(rho / 2, mode="forward", step=rho * norm)
    assert_close(one_update(fd, params, batch)[0], usam)


def test_entropy_sgd_with_one_inner_step_is_sgd(net):
    params, batch = net
    tx = ft.entropy_sgd(1.0, inner_steps=1, inner_learning_rate=0.1, averaging=0.0, noise=0.0)
    sgd = optax.sgd(0.1)
    assert_close(descend(tx, params, batch, 3)[0], descend(sgd, params, batch, 3)[0])


def test_momentum_sam_without_radius_is_sgd_with_momentum(net):
    params, batch = net
    tx, sgd = ft.momentum_sam(0.1, rho=0.0, momentum=0.9), optax.sgd(0.1, momentum=0.9)
    assert_close(one_update(tx, params, batch, 3)[0], one_update(sgd, params, batch, 3)[0])


def test_langevin_special_cases(net):
    params, batch = net
    full = one_update(ft.langevin(0.1, num_data=3), params, batch, 2)[0]
    friction = one_update(ft.langevin(0.1, num_data=3, friction=1.0), params, batch, 2)[0]
    assert_close(friction, full)
    cold = one_update(ft.langevin(0.1, num_data=3, temperature=0.0), params, batch)[0]
    assert_close(cold, one_update(optax.sgd(0.3), params, batch)[0])


def test_oracle_and_transform_agree(net, sam):
    params, batch = net
    _, grads = jax.jit(ft.sam_value_and_grad(loss_fn, rho=0.3))(params, batch)
    assert_close(grads, sam)
    _, grads = jax.jit(ft.penalty_value_and_grad(loss_fn, coef=0.1))(params, batch)
    assert_close(grads, one_update(ft.gradient_penalty(0.1), params, batch)[0])


def test_alpha_of_the_oracle_is_the_gradient_norm_penalty(net):
    params, batch = net
    _, grads = jax.jit(ft.sam_value_and_grad(loss_fn, rho=0.3, alpha=0.6))(params, batch)
    assert_close(grads, one_update(ft.gradient_norm_penalty(0.3, alpha=0.6), params, batch)[0])
