"""``sam`` against its formulas, in float64 on a small network with a dense Hessian."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax.transforms as ft
from flatjax.transforms import _groups as groups
from tests.transforms.zoo import (
    Dense,
    assert_close,
    flat,
    loss_fn,
    network,
    one_update,
    per_example,
    sequences,
    token_mean,
)


@pytest.fixture(scope="module")
def net():
    with jax.enable_x64(True):
        params, batch = network(jnp.float64)
        dense = Dense(params, batch)
        yield params, batch, dense, dense.grad(dense.w)


def unit(v):
    return v / np.linalg.norm(v)


def test_sam(net):
    params, batch, dense, g = net
    out, _ = one_update(ft.sam(0.3), params, batch)
    assert_close(out, dense.grad(dense.w + 0.3 * unit(g)))


@pytest.mark.parametrize("p", [1.0, 1.5, 3.0, np.inf])
def test_sam_in_other_norms(net, p):
    params, batch, dense, g = net
    if p == 1.0:
        epsilon = np.where(np.abs(g) == np.abs(g).max(), np.sign(g), 0.0)
    elif np.isinf(p):
        epsilon = np.sign(g)
    else:
        q = p / (p - 1)
        epsilon = np.sign(g) * np.abs(g) ** (q - 1) / (np.abs(g) ** q).sum() ** (1 / p)
    out, _ = one_update(ft.sam(0.05, ascent=ft.Ascent(p=p)), params, batch)
    assert_close(out, dense.grad(dense.w + 0.05 * epsilon))


def test_asam(net):
    params, batch, dense, g = net
    scale = np.abs(dense.w) + 0.01
    epsilon = 0.3 * scale**2 * g / np.linalg.norm(scale * g)
    out, _ = one_update(ft.sam(0.3, ascent=ft.Ascent(adaptive=True, offset=0.01)), params, batch)
    assert_close(out, dense.grad(dense.w + epsilon))


def test_unnormalised(net):
    params, batch, dense, g = net
    out, _ = one_update(ft.sam(0.3, ascent=ft.Ascent(normalize=False)), params, batch)
    assert_close(out, dense.grad(dense.w + 0.3 * g))


def test_several_ascent_steps(net):
    params, batch, dense, _ = net
    epsilon = np.zeros_like(dense.w)
    for _ in range(3):
        epsilon = epsilon + 0.1 * unit(dense.grad(dense.w + epsilon))
        # Every step is a third of the radius: the ball is never left, nothing to project.
        assert np.linalg.norm(epsilon) <= 0.3
    out, _ = one_update(ft.sam(0.3, ascent_steps=3), params, batch)
    assert_close(out, dense.grad(dense.w + epsilon))


SECOND_ORDER = [
    {},
    {"normalize": False},
    {"ascent_steps": 2, "adaptive": True, "p": 3.0},
    pytest.param({"p": 1.5}, marks=pytest.mark.slow),
    pytest.param({"adaptive": True}, marks=pytest.mark.slow),
    pytest.param({"ascent_steps": 2}, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("options", SECOND_ORDER, ids=str)
def test_second_order_is_the_gradient_of_the_perturbed_loss(net, options):
    params, batch, dense, _ = net
    value = lambda w: dense._value(w, batch)  # noqa: E731
    p, steps = options.get("p", 2.0), options.get("ascent_steps", 1)
    q = p / (p - 1)

    def perturbed_loss(w):
        epsilon, scale = 0.0, jnp.abs(w) + 0.01 if options.get("adaptive") else 1.0
        for _ in range(steps):
            g = scale * jax.grad(value)(w + epsilon)
            direction = jnp.sign(g) * jnp.abs(g) ** (q - 1)
            if options.get("normalize", True):
                direction = direction / (jnp.abs(g) ** q).sum() ** (1 / p)
            epsilon = epsilon + 0.2 / steps * scale * direction
        return value(w + epsilon)

    expected = jax.jit(jax.grad(perturbed_loss))(jnp.asarray(dense.w))
    ball = {name: value for name, value in options.items() if name != "ascent_steps"}
    tx = ft.sam(0.2, ascent=ft.Ascent(**ball), ascent_steps=steps, second_order=True)
    out, _ = one_update(tx, params, batch)
    assert_close(out, expected, rtol=1e-9, atol=1e-11)


def test_mask_perturbs_some_leaves(net):
    params, batch, dense, g = net
    chosen = np.concatenate([np.zeros(4), np.ones(12), np.zeros(12)])
    out, _ = one_update(
        ft.sam(
            0.3,
            ascent=ft.Ascent(mask=lambda p: {"first": {"w": True, "b": False}, "last": False}),
        ),
        params,
        batch,
    )
    assert_close(out, dense.grad(dense.w + 0.3 * unit(chosen * g)))


def test_value_fn_serves_as_well(net):
    params, batch, dense, g = net
    tx = ft.sam(0.3)
    gradients = jax.grad(loss_fn)(params, batch)
    out, _ = jax.jit(
        lambda: tx.update(gradients, tx.init(params), params, value_fn=lambda w: loss_fn(w, batch))
    )()
    assert_close(out, dense.grad(dense.w + 0.3 * unit(g)))


def test_every_k_passes_the_gradient_between(net):
    params, batch, dense, g = net
    tx = ft.sam(0.3, every=3)
    sam = dense.grad(dense.w + 0.3 * unit(g))
    for steps, expected in ((1, sam), (2, g), (3, g), (4, sam)):
        assert_close(one_update(tx, params, batch, steps)[0], expected)


def test_schedule_follows_the_transforms_own_count(net):
    params, batch, dense, g = net
    tx = ft.sam(lambda count: 0.1 * (count + 1))
    for steps in (1, 3):
        out, state = one_update(tx, params, batch, steps)
        assert_close(out, dense.grad(dense.w + 0.1 * steps * unit(g)))
        assert int(state.count) == steps


def test_diagnostics(net):
    params, batch, dense, g = net
    point = dense.w + 0.3 * unit(g)
    tx = ft.sam(0.3, diagnostics=True)
    _, state = one_update(tx, params, batch, value_fn=lambda w: loss_fn(w, batch))
    metrics = state.metrics
    assert float(metrics.grad_norm) == pytest.approx(np.linalg.norm(g), rel=1e-12)
    assert float(metrics.perturbation_norm) == pytest.approx(0.3, rel=1e-12)
    gap = dense.value(point) - dense.value(dense.w)
    assert float(metrics.sharpness_gap) == pytest.approx(float(gap), rel=1e-9)
    cosine = unit(g) @ unit(dense.grad(point))
    assert float(metrics.cosine) == pytest.approx(cosine, rel=1e-12)


@pytest.mark.parametrize("loss", [loss_fn, per_example])
@pytest.mark.parametrize("mode", ["vmap", "loop"])
def test_groups_have_perturbations_of_their_own(net, loss, mode):
    params, batch, dense, _ = net
    parts = [tuple(a[2 * i : 2 * i + 2] for a in batch) for i in range(4)]
    expected = np.mean(
        [dense.grad(dense.w + 0.3 * unit(dense.grad(dense.w, b)), b) for b in parts], axis=0
    )
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


def test_zero_gradient_gives_a_zero_update():
    tx = ft.sam(0.1, diagnostics=True)
    w = jnp.zeros(3)
    out, state = tx.update(w, tx.init(w), w, value_fn=lambda v: jnp.sum(v**2))
    assert not flat(out).any()
    assert not flat(state.metrics).any()


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_extreme_gradients(scale):
    # The loss is linear, so the perturbed gradient is the gradient itself.
    g = jnp.array([3.0, -4.0]) * scale
    for p in (1.0, 1.1, 2.0, np.inf):
        tx = ft.sam(0.1, ascent=ft.Ascent(p=p))
        out, _ = tx.update(g, tx.init(g), jnp.ones(2), grad_fn=lambda w: g)
        np.testing.assert_array_equal(out, g)
