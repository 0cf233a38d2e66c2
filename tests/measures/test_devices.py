"""The measures over four devices are those of one, padding included."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax import measures
from tests.parallel.problems import (
    RUNNERS,
    assert_close,
    loss_fn,
    mlp,
    model_fn,
    one_device,
    over_devices,
    vector,
)

pytestmark = pytest.mark.usefixtures("x64")


def everything(params, batch, weights, axis_name):
    options = {"weights": weights, "axis_name": axis_name}
    key = jax.random.key(0)
    over = (loss_fn, params, batch)
    noise = measures.gradient_noise_scale(*over, **options)
    sam = measures.sam_sharpness(*over, rho=0.1, ascent_steps=2, **options)
    return {
        "sam": (sam.value, sam.perturbation),
        "eps": measures.eps_sharpness(*over, ascent_steps=2, **options).value,
        "average": measures.average_sharpness(
            *over, sigma=0.1, key=key, num_samples=3, **options
        ).samples,
        "critical": measures.critical_sharpness(
            *over, update=vector(params), factor=1.5, tol=0.1, max_trials=6, **options
        ).step,
        "noise": (noise.value, noise.standard_error, noise.count),
        "fisher_rao": measures.fisher_rao_norm(
            model_fn, flatjax.softmax_cross_entropy, params, batch, **options
        ).squared,
    }


def noise_that_is_borne(params, batch, weights, axis_name):
    found = measures.pac_bayes_flatness(
        loss_fn, params, batch, key=jax.random.key(0), num_samples=2, num_examples=10,
        max_trials=8, weights=weights, axis_name=axis_name,
    )  # fmt: skip
    return {"sigma": found.sigma, "bound": found.bound}


def third_derivative(params, batch, weights, axis_name):
    options = {"weights": weights, "axis_name": axis_name}
    u, v = vector(params), vector(params, 1)
    return {"vector": measures.curvature_gradient(loss_fn, params, u, v, batch, **options)}


def pairs(params, batch, weights, axis_name):
    """What compares examples of one device with those of another."""
    inputs, labels = batch
    options = {"weights": weights, "axis_name": axis_name}
    over = (loss_fn, params, batch)
    within = measures.stiffness(*over, labels=labels, num_classes=3, chunk_size=2, **options)
    across = measures.stiffness(
        *over, labels=labels, num_classes=3, other=(1 - inputs, labels), other_labels=labels,
        other_weights=weights, **options,
    )  # fmt: skip
    confusion = measures.gradient_confusion(*over, **options)
    return {
        "stiffness": tuple(within.cosine) + tuple(within.sign),
        "of two batches": tuple(across.cosine) + tuple(across.sign),
        "confusion": tuple(confusion),
    }


def variance(params, batch, weights, axis_name):
    options = {"weights": weights, "axis_name": axis_name}
    over = (loss_fn, params, batch)
    return {"product": measures.hessian_variance(*over, chunk_size=1, **options).mv(vector(params))}


def stability(params, batch, weights, axis_name):
    found = measures.linear_stability(
        loss_fn, params, batch, learning_rate=0.5, batch_size=3, key=jax.random.key(0),
        max_products=24, weights=weights, axis_name=axis_name,
    )  # fmt: skip
    return {"value": found.value, "bound": found.bound, "spread": found.non_uniformity}


def of_operators(params, batch, weights, axis_name):
    """The measures that are given operators, which know the devices."""
    options = {"weights": weights, "axis_name": axis_name}
    key = jax.random.key(0)
    H = flatjax.hessian(loss_fn, params, batch, **options)
    K = flatjax.gradient_covariance(loss_fn, params, batch, **options)
    scale = jax.tree.map(lambda a: 1 + jnp.abs(a), params)
    diagonal = flatjax.diagonal(H, key=key, num_products=4).value
    top = measures.sharpness(H, key=key, max_products=24)
    preconditioned = measures.sharpness(flatjax.preconditioned(H, scale), key=key, max_products=24)
    invariant = measures.scale_invariant_sharpness(H, params, key=key, by="layer", max_products=16)
    return {
        "sharpness": top.value,
        "preconditioned": preconditioned.value,
        "normalised": measures.normalized_sharpness(params, diagonal).value,
        "alignment": measures.alignment(H, K, key=key, num_probes=3).cosine,
        "scale invariant": invariant.values,
        "directional": measures.directional_sharpness(H, vector(params)),
        "generalized": measures.generalized_sharpness(
            H, params, norm="max", key=key, num_starts=1, max_products=4
        ).value,
    }


# 1e-9: float64 sums in another order, of differences of losses; 1e-10 where none is taken, with
# the few Krylov steps of eigenvalues that have converged.
CHAINS = {
    "everything": (everything, 1e-9),
    "noise_that_is_borne": (noise_that_is_borne, 1e-9),
    "pairs": (pairs, 1e-10),
    "variance": (variance, 1e-10),
    "stability": (stability, 1e-10),
    "of_operators": (of_operators, 1e-9),
    "third_derivative": (third_derivative, 1e-10),
}
FAST = [("everything", "shard_map"), ("pairs", "shard_map"), ("variance", "pmap")]
ALL = [(name, runner) for name in CHAINS for runner in RUNNERS]


@pytest.fixture(scope="module")
def references():
    """What one device gives, computed when it is asked for."""
    found = {}

    def reference(name):
        if name not in found:
            found[name] = one_device(CHAINS[name][0], *mlp())
        return found[name]

    return reference


@pytest.mark.parametrize(
    ("name", "runner"),
    FAST + [pytest.param(*case, marks=pytest.mark.slow) for case in ALL if case not in FAST],
)
def test_over_devices(name, runner, references):
    chain, tolerance = CHAINS[name]
    if runner == "eager" and name in ("stability", "of_operators"):  # stop by themselves
        expected = chain(*mlp(), None, None)
    else:
        expected = references(name)
    actual = over_devices(runner, chain, *mlp())
    assert_close(actual, expected, tolerance)
    if name == "everything":
        assert float(np.asarray(actual["noise"][2])) == 10


def test_every_measure_of_a_batch_runs_on_several_devices():
    """Those without a batch are given operators, vectors or params."""
    functions = [f for _, f in inspect.getmembers(measures, inspect.isfunction)]
    parameters = {f.__name__: set(inspect.signature(f).parameters) for f in functions}
    of_batches = {name for name, has in parameters.items() if "batch" in has}
    assert of_batches == {
        "average_sharpness", "critical_sharpness", "curvature_gradient", "eps_sharpness",
        "fisher_rao_norm", "gradient_confusion", "gradient_noise_scale", "hessian_variance",
        "linear_stability", "pac_bayes_flatness", "sam_sharpness", "stiffness",
    }  # fmt: skip
    for name in of_batches:
        assert {"weights", "axis_name"} <= parameters[name], name
