"""WSAM against NumPy in float64."""

import optax

import flatjax.transforms as ft
from flatjax import losses
from tests.transforms.zoo import RHO, assert_close, flat, one_update

XENT = losses.softmax_cross_entropy


def test_wsam(net, dense):
    params, batch = net
    expected = dense.g + 9.0 * (dense.sam() - dense.g)
    assert_close(one_update(ft.wsam(RHO, gamma=0.9), params, batch)[0], expected, rtol=1e-9)


def test_decoupled_wsam_bypasses_the_optimiser(net, dense):
    params, batch = net
    sharpness = dense.sam() - dense.g
    adam = optax.adam(0.01)
    tx = ft.wsam(RHO, gamma=0.75, optimizer=adam, learning_rate=lambda t: 0.1 / (t + 1))
    out, _ = one_update(tx, params, batch, 2)
    plain, _ = one_update(adam, params, batch, 2)
    assert_close(out, flat(plain) - 0.05 * 3.0 * sharpness)
