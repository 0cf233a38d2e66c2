"""LookSAM over several steps, against NumPy in float64."""

import numpy as np
import optax

import flatjax.transforms as ft
from flatjax import losses
from tests.transforms.zoo import RHO, assert_close, descend, unit

XENT = losses.softmax_cross_entropy


def test_looksam(net, dense):
    params, batch = net
    w, expected = dense.w, []
    for t in range(5):
        g = dense.grad(w)
        if t % 2 == 0:
            out = dense.grad(w + RHO * unit(g))
            direction = out - (out @ unit(g)) * unit(g)
        else:
            out = g + 0.7 * np.linalg.norm(g) * unit(direction)
        w = w - 0.5 * out
        expected.append(w)
    path, _ = descend(
        optax.chain(ft.looksam(RHO, every=2, alpha=0.7), optax.sgd(0.5)), params, batch, 5
    )
    assert_close(path, np.concatenate(expected))
