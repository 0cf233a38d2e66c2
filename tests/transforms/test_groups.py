"""Groups of a batch, each with a perturbation of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax.transforms as ft
from flatjax import losses
from flatjax.transforms import _groups as groups
from tests.transforms.zoo import (
    Dense,
    assert_close,
    loss_fn,
    one_update,
    per_example,
    sequences,
    token_mean,
    unit,
)

XENT = losses.softmax_cross_entropy


@pytest.mark.parametrize("loss", [loss_fn, per_example])
@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_groups_have_perturbations_of_their_own(net, dense, loss, mode):
    params, batch = net
    parts = [tuple(a[2 * i : 2 * i + 2] for a in batch) for i in range(4)]
    expected = np.mean([dense.sam(b) for b in parts], axis=0)
    tx = ft.sam(0.3, groups=4, loss_fn=loss, group_mode=mode, diagnostics=True)
    out, state = one_update(tx, params, batch)
    assert_close(out, expected)
    # The mean rise over the groups, each of its own loss at its own perturbation.
    points = [dense.w + 0.3 * unit(dense.grad(dense.w, b)) for b in parts]
    gaps = [dense.value(p, b) - dense.value(dense.w, b) for p, b in zip(points, parts, strict=True)]
    assert float(state.metrics.sharpness_gap) == pytest.approx(np.mean(gaps), rel=1e-9)


def test_groups_count_by_the_weights_of_their_means(x64):
    params, batch = sequences(jnp.float64)
    dense = Dense(params, batch, lambda p, b: token_mean(p, b).value)
    parts = [(tuple(a[k : k + 2] for a in batch), w / 14) for k, w in ((0, 4), (4, 6), (6, 4))]
    tx = ft.sam(0.3, groups=4, loss_fn=token_mean, diagnostics=True, check=False)
    zero = jax.tree.map(jnp.zeros_like, params)
    out, state = jax.jit(lambda: tx.update(zero, tx.init(params), params, batch=batch))()
    points = [dense.w + 0.3 * unit(dense.grad(dense.w, b)) for b, _ in parts]
    assert_close(out, sum(w * dense.grad(p, b) for p, (b, w) in zip(points, parts, strict=True)))
    gaps = [dense.value(p, b) - dense.value(dense.w, b) for p, (b, _) in zip(points, parts)]  # noqa: B905
    assert_close(state.metrics.sharpness_gap, sum(w * a for a, (_, w) in zip(gaps, parts)))  # noqa: B905


@pytest.mark.parametrize(("devices", "calls"), [(1, 4), (2, 1)])
def test_auto_goes_one_by_one_on_a_single_cpu_device(monkeypatch, devices, calls):
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    seen = []

    def double(index, part):
        seen.append(index)
        return 2 * part

    found = groups.map_groups(double, jnp.arange(8).reshape(4, 2), 4, "auto")
    np.testing.assert_array_equal(found, 2 * np.arange(8).reshape(4, 2))
    assert len(seen) == calls  # vmap calls once, with all groups
