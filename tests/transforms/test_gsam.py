"""GSAM against NumPy in float64, and its radius."""

import optax
import pytest

import flatjax.transforms as ft
from flatjax import losses
from tests.transforms.zoo import RHO, assert_close, one_update, unit

XENT = losses.softmax_cross_entropy


def test_gsam(net, dense):
    params, batch = net
    perturbed = dense.sam()
    along = unit(perturbed)
    expected = perturbed - 0.4 * (dense.g - (dense.g @ along) * along)
    assert_close(one_update(ft.gsam(RHO, alpha=0.4), params, batch)[0], expected)


def test_rho_follows_the_learning_rate():
    lr = optax.cosine_decay_schedule(0.2, 10)
    rho = ft.proportional_schedule(
        lr, rho_max=0.6, rho_min=0.1, learning_rate_max=0.2, learning_rate_min=0.0
    )
    for t in (0, 5, 10):
        assert float(rho(t)) == pytest.approx(0.1 + 0.5 * float(lr(t)) / 0.2, rel=1e-6)
