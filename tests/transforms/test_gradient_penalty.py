"""The gradient penalty against dense Hessians in float64."""

import numpy as np
import pytest

import flatjax.transforms as ft
from flatjax import losses
from tests.transforms.zoo import assert_close, one_update

XENT = losses.softmax_cross_entropy


def test_gradient_penalty(net, dense):
    params, batch = net
    out, state = one_update(ft.gradient_penalty(0.3, diagnostics=True), params, batch)
    assert_close(out, dense.g + 0.6 * dense.h @ dense.g)
    assert float(state.penalty) == pytest.approx(dense.g @ dense.g, rel=1e-12)


def test_mask_restricts_the_norm(net, dense):
    params, batch = net
    chosen = np.concatenate([np.zeros(4), np.ones(12), np.zeros(12)])
    mask = {"first": {"w": True, "b": False}, "last": False}
    out, state = one_update(ft.gradient_penalty(0.3, mask=mask, diagnostics=True), params, batch)
    assert_close(out, dense.g + 0.6 * dense.h @ (chosen * dense.g))
    assert float(state.penalty) == pytest.approx((chosen * dense.g) @ dense.g, rel=1e-12)
