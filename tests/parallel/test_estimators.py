"""Estimators, trackers and landscapes over four devices are those of one, padding included.

Estimators take an operator, and test_operators.py has those; here are the whole chains. The
measures are in tests/measures, the transforms in tests/transforms.
"""

from functools import partial

import jax
import numpy as np
import pytest

import flatjax
from flatjax import parallel
from tests.parallel.problems import (
    assert_close,
    loss_fn,
    mlp,
    model_fn,
    one_device,
    over_devices,
    vector,
)

LOSS = flatjax.softmax_cross_entropy
KEY = jax.random.key(0)


def tracked(params, batch, weights, axis_name):
    H = flatjax.hessian(loss_fn, params, batch, weights=weights, axis_name=axis_name)
    tracker = flatjax.track(k=2)
    state = tracker.init(params, key=KEY)
    for _ in range(2):
        state = tracker.update(H, state)
    return {"values": state.values}


def landscape(params, batch, weights, axis_name):
    options = {"weights": weights, "axis_name": axis_name}
    other = vector(params)
    surface = flatjax.loss_surface(
        loss_fn, params, batch, first=other, second=params, positions=[-0.5, 1.0], **options
    )
    path = flatjax.bezier([params, vector(params, 1), other])
    on_path = flatjax.loss_on_curve(loss_fn, path, batch, positions=[0.1, 0.6], **options)
    oracle = flatjax.curve_value_and_grad(loss_fn, axis_name=axis_name)
    (value, _), gradient = oracle(path, batch, key=KEY, weights=weights)
    return {"surface": surface.losses, "path": on_path.losses, "value": value, "gradient": gradient}


def eigenvalues(params, batch, weights, axis_name):
    H = flatjax.hessian(loss_fn, params, batch, weights=weights, axis_name=axis_name)
    return {"values": flatjax.eigsh(H, 2, key=KEY, max_products=16).values}


def traces(params, batch, weights, axis_name):
    H = flatjax.hessian(loss_fn, params, batch, weights=weights, axis_name=axis_name)
    found = flatjax.trace(H, key=KEY, num_products=8)
    diagonal = flatjax.diagonal(H, key=KEY, num_products=8).value
    return {"trace": found.value, "error": found.standard_error, "diagonal": diagonal}


def other_estimates(params, batch, weights, axis_name):
    del axis_name  # decides on the host, so not inside shard_map
    options = {"weights": weights}
    H = flatjax.hessian(loss_fn, params, batch, **options)
    G = flatjax.damped(flatjax.ggn(model_fn, LOSS, params, batch, **options), 0.1)
    return {
        "deflated": flatjax.trace(H, key=KEY, method="deflated", num_products=12).value,
        "diagonal": flatjax.diagonal(H, key=KEY, method="deflated", num_products=8).value,
        "frobenius": flatjax.frobenius_norm(H, key=KEY, num_products=8).value,
        "logdet": flatjax.logdet(G, key=KEY, num_probes=2, num_steps=8, deflation_steps=0).value,
        "density": flatjax.spectral_density(
            H, key=KEY, num_probes=2, num_steps=8, deflation_steps=0, num_points=16
        ).weights,
    }


def whole_spectrum(params, batch, weights, axis_name):
    del axis_name  # decides on the host, so not inside shard_map
    H = flatjax.hessian(loss_fn, params, batch, weights=weights)
    found = flatjax.spectrum(H, key=KEY, k=2, num_bottom=1, num_probes=2, trace_rtol=None)
    return {"top": found.top.values, "bottom": found.bottom.values, "trace": found.trace.value}


# 1e-9, of Krylov methods 1e-7: float64 sums in another order, which iterations amplify.
CHAINS = {
    "tracked": (tracked, 1e-9),
    "landscape": (landscape, 1e-10),
    "eigenvalues": (eigenvalues, 1e-7),
    "traces": (traces, 1e-10),
}
HOST = {"other_estimates": other_estimates, "spectrum": whole_spectrum}
slow = partial(pytest.param, marks=pytest.mark.slow)
FAST = [("landscape", "shard_map"), ("traces", "shard_map")]
ALL = [
    (name, runner)
    for name in CHAINS
    for runner in ("auto", "shard_map", "shard_map_unchecked", "pmap")
]


@pytest.mark.parametrize(
    ("name", "runner"), FAST + [slow(*pair) for pair in ALL if pair not in FAST]
)
def test_over_devices(name, runner, x64):
    chain, tolerance = CHAINS[name]
    params, batch = mlp()
    expected = one_device(chain, params, batch)
    assert_close(over_devices(runner, chain, params, batch), expected, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tracked", "eigenvalues", "other_estimates", "spectrum"])
def test_eager_over_devices(name, x64):
    """Not compiled as a whole: the estimators stop by themselves, here as on one device."""
    chain, tolerance = CHAINS[name] if name in CHAINS else (HOST[name], 1e-7)
    params, batch = mlp()
    expected = chain(params, batch, None, None)
    assert_close(over_devices("eager", chain, params, batch), expected, tolerance)


def test_a_tracker_lies_as_the_params_do():
    spans = []
    for devices in (4, 2):
        mesh = parallel.make_mesh(devices)
        params = parallel.shard_params({"w": np.ones((8, 3), np.float32)}, mesh, min_size=0)
        vectors = flatjax.track(k=2).init(params, key=KEY).vectors["w"]
        assert vectors.sharding.spec == jax.P(None, "data")
        rows = np.asarray(vectors).reshape(2, -1)
        spans.append(rows.T @ rows)
    # The same span; its basis is any. 1e-6: float32 sums in another order.
    np.testing.assert_allclose(*spans, rtol=0, atol=1e-6)
