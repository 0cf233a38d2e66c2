"""GNP against NumPy in float64."""

import flatjax.transforms as ft
from flatjax import losses
from tests.transforms.zoo import RHO, assert_close, one_update

XENT = losses.softmax_cross_entropy


def test_gradient_norm_penalty(net, dense):
    params, batch = net
    expected = 0.2 * dense.g + 0.8 * dense.sam()
    out, _ = one_update(ft.gradient_norm_penalty(RHO, alpha=0.8), params, batch)
    assert_close(out, expected)
