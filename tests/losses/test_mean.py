"""``loss.mean``: a loss function whose mean has the normaliser of the Gauss-Newton matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import flatjax
from tests.losses.zoo import cases

SOFTMAX = flatjax.softmax_cross_entropy
LENGTHS = np.array([6, 4, 2, 0])
REAL = np.arange(6) < LENGTHS[:, None]
RNG = np.random.default_rng(7)
X, W, V = RNG.normal(size=(4, 6, 5)), RNG.normal(size=(5, 4)), RNG.normal(size=(5, 4))
ZOO = cases((4, 6))
IDS = ZOO["softmax_ids"].targets
TARGETS = {
    "ids": (SOFTMAX, np.where(REAL, IDS, -100)),
    "ignored": (SOFTMAX(ignore_index=7), np.where(REAL, IDS, 7)),
    "rows": (SOFTMAX, ZOO["softmax_probabilities"].targets * REAL[..., None]),
    "squared_error": (flatjax.squared_error, ZOO["squared_error"].targets),
    "sigmoid": (flatjax.sigmoid_binary_cross_entropy, ZOO["sigmoid"].targets),
}


def model(w, x):
    return x @ w


def problem(name, per):
    """The loss, a loss function made of its mean, and the batch: padding may hold anything."""
    loss, targets = TARGETS[name]
    loss = loss(per=per)
    x = np.where(LENGTHS[:, None, None] > 0, X, np.nan) if loss.masks else X
    batch = jnp.asarray(x), jnp.asarray(targets)
    return loss, lambda w, batch: loss.mean(model(w, batch[0]), batch[1]), batch


@pytest.mark.parametrize("per", ["example", "token"])
@pytest.mark.parametrize("name", ["ids", "rows", "squared_error", "sigmoid"])
def test_the_mean_over_what_is_no_padding(name, per, x64):
    loss, targets = TARGETS[name]
    case = ZOO[{"ids": "softmax_ids", "rows": "softmax_probabilities"}.get(name, name)]
    real = REAL if loss.masks else np.ones_like(REAL)
    found = loss(per=per).mean(jnp.asarray(case.outputs), jnp.asarray(targets))
    if per == "token":
        wanted, weights = case.values[real].mean(), real.sum(axis=1)
    else:
        examples = [v[r].mean() for v, r in zip(case.values, real, strict=True) if r.any()]
        wanted, weights = np.mean(examples), real.any(axis=1)
    np.testing.assert_array_equal(found.weight, weights)
    np.testing.assert_allclose(found.value, wanted, rtol=1e-13)


def test_examples_without_positions(x64):
    z, ids = jnp.asarray(RNG.normal(size=(3, 4))), jnp.array([1, -1, 2])
    for per in ("example", "token"):
        found = SOFTMAX(per=per).mean(z, ids)
        np.testing.assert_allclose(found.value, SOFTMAX(z[::2], ids[::2]).mean(), rtol=1e-14)
    errors = jnp.arange(3.0)
    assert float(flatjax.squared_error.mean(errors, 0 * errors).value) == pytest.approx(5 / 6)


@pytest.mark.parametrize("per", ["example", "token"])
@pytest.mark.parametrize("name", TARGETS)
def test_the_hessian_of_a_linear_model_is_its_gauss_newton_matrix(name, per, x64):
    loss, loss_fn, batch = problem(name, per)
    w, v = jnp.asarray(W), jnp.asarray(V)
    G = flatjax.ggn(model, loss, w, batch)
    H = flatjax.hessian(loss_fn, w, batch, chunk_size=3)  # 12 tokens, and 0
    np.testing.assert_allclose(H @ v, G @ v, rtol=1e-11)


@pytest.mark.parametrize("per", ["example", "token"])
def test_however_the_data_are_cut(per, x64):
    loss, loss_fn, batch = problem("ids", per)
    w, v = jnp.asarray(W), jnp.asarray(V)
    weights = jnp.array([1.0, 3.0, 0.5, 2.0])
    wanted = flatjax.ggn(model, loss, w, batch, weights=weights) @ v
    H = flatjax.hessian(loss_fn, w, batch, weights=weights)
    np.testing.assert_allclose(H @ v, wanted, rtol=1e-11)
    parts = [jax.tree.map(lambda a, s=s: a[s], (batch, weights)) for s in (slice(3), slice(3, 4))]

    def of_part(part):
        return flatjax.hessian(loss_fn, w, part[0], weights=part[1])

    stream = flatjax.over_batches(of_part, parts)
    np.testing.assert_allclose(stream @ v, wanted, rtol=1e-11)
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])
    on_devices = jax.shard_map(
        lambda b, c: flatjax.hessian(loss_fn, w, b, weights=c, axis_name="data") @ v,
        mesh=mesh, in_specs=P("data"), out_specs=P(),
    )  # fmt: skip
    np.testing.assert_allclose(jax.jit(on_devices)(batch, weights), wanted, rtol=1e-11)


@pytest.mark.parametrize("per", ["example", "token"])
def test_sam(per, x64):
    _, loss_fn, batch = problem("ids", per)

    def by_hand(w, batch):  # the first three sequences: the last is all padding
        log_p = jax.nn.log_softmax(batch[0][:3] @ w)
        losses = -jnp.take_along_axis(log_p, IDS[:3, :, None], -1)[..., 0] * REAL[:3]
        if per == "token":
            return losses.sum() / 12
        return (losses.sum(axis=1) / LENGTHS[:3]).sum() / 3

    w = jnp.asarray(W)
    wanted = flatjax.sam_value_and_grad(by_hand, rho=0.5)(w, batch)
    for accumulate in (1, 2):
        step = flatjax.sam_value_and_grad(loss_fn, rho=0.5, accumulate=accumulate)
        for found, value in zip(jax.jit(step)(w, batch), wanted, strict=True):
            np.testing.assert_allclose(found, value, rtol=1e-11)


def test_the_values_of_tokens_are_no_loss_function():
    loss = SOFTMAX(per="token")
    with pytest.raises(ValueError, match=r"got \(24,\)\. For the mean over tokens.*loss\.mean\("):
        flatjax.hessian(
            lambda w, b: loss(model(w, b[0]), b[1]),
            jnp.ones((5, 4)),
            (jnp.ones((4, 6, 5)), jnp.zeros((4, 6), int)),
        )
