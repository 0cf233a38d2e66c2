"""Friendly SAM over several steps, against NumPy in float64."""

import numpy as np
import optax

import flatjax.transforms as ft
from flatjax import losses
from tests.transforms.zoo import RHO, assert_close, descend, unit

XENT = losses.softmax_cross_entropy


def test_friendly_sam(net, dense):
    params, batch = net
    w, expected, average = dense.w, [], None
    for t in range(4):
        g = dense.grad(w)
        d = g if t == 0 else g - 0.8 * average
        average = g if t == 0 else 0.6 * average + 0.4 * g
        w = w - 0.5 * dense.grad(w + RHO * unit(d))
        expected.append(w)
    path, state = descend(
        optax.chain(ft.friendly_sam(RHO, sigma=0.8, decay=0.6), optax.sgd(0.5)), params, batch, 4
    )
    assert_close(path, np.concatenate(expected))
    # The average is that of the raw gradients, not of the ones already subtracted.
    assert_close(state[0].average, average)
