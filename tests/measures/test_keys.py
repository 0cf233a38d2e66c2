"""No measure draws twice with one key: JAX's checker of key reuse watches."""

import inspect

import jax
import jax.numpy as jnp
import pytest

import flatjax
from flatjax import landscape, measures
from tests.measures import networks

PARAMS = [jnp.asarray(a, jnp.float32) for a in networks.relu_params()]
DATA = tuple(jnp.asarray(a, d) for a, d in zip(networks.data(), ("float32", "int32"), strict=True))
OVER = (networks.relu_loss, PARAMS, DATA)
SHORT = {"num_starts": 3, "ascent_steps": 1}


def operator():
    return flatjax.hessian(*OVER)


TAKES_A_KEY = {
    "alignment": lambda key: measures.alignment(operator(), operator(), key=key, num_probes=2),
    "average_sharpness": lambda key: measures.average_sharpness(
        *OVER, sigma=0.1, key=key, num_samples=2
    ),
    "eps_sharpness": lambda key: measures.eps_sharpness(*OVER, subspace=2, key=key, **SHORT),
    "generalized_sharpness": lambda key: measures.generalized_sharpness(
        operator(), PARAMS, key=key, num_starts=2, max_products=4
    ),
    "local_learning_coefficient": lambda key: measures.local_learning_coefficient(
        networks.relu_loss,
        PARAMS,
        [DATA],
        key=key,
        num_data=100,
        localization=1.0,
        step_size=1e-4,
        num_chains=2,
        num_steps=4,
        num_burnin=2,
    ),
    "linear_stability": lambda key: measures.linear_stability(
        *OVER, learning_rate=0.1, batch_size=2, key=key, max_products=8
    ),
    "pac_bayes_flatness": lambda key: measures.pac_bayes_flatness(
        *OVER, key=key, num_samples=2, max_trials=2
    ),
    "sam_sharpness": lambda key: measures.sam_sharpness(*OVER, key=key, **SHORT),
    "scale_invariant_sharpness": lambda key: measures.scale_invariant_sharpness(
        operator(), PARAMS, key=key, statistic="trace", num_products=2
    ),
    "scale_invariant_sharpness eigenvalue": lambda key: measures.scale_invariant_sharpness(
        operator(), PARAMS, key=key, max_products=8
    ),
    "sharpness": lambda key: measures.sharpness(operator(), key=key, max_products=8),
    "log_volume": lambda key: landscape.log_volume(
        *OVER, key=key, threshold=5.0, num_directions=2, tol=0.1
    ),
    "random_directions": lambda key: landscape.random_directions(PARAMS, 2, key=key, axis=-1),
    "filter_normalized_direction": lambda key: landscape.filter_normalized_direction(
        PARAMS, key=key, axis=-1
    ),
    "track": lambda key: flatjax.track(2).init(operator(), key=key, max_products=8),
    "track from a structure": lambda key: flatjax.track(2).init(PARAMS, key=key),
}


@pytest.mark.parametrize("name", TAKES_A_KEY)
def test_no_key_is_used_twice(name):
    with jax.debug_key_reuse(True):
        TAKES_A_KEY[name](jax.random.key(3))  # raises where one is


def test_the_checker_sees_reuse():
    key = jax.random.key(0)
    with jax.debug_key_reuse(True), pytest.raises(jax.errors.KeyReuseError):
        jax.random.normal(key, (2,)) + jax.random.normal(key, (2,))


def test_every_function_that_takes_a_key_is_watched():
    functions = [
        (name, f)
        for room in (measures, landscape)
        for name, f in inspect.getmembers(room, inspect.isfunction)
    ]
    takes = {name for name, f in functions if "key" in inspect.signature(f).parameters}
    assert takes <= {name.split()[0] for name in TAKES_A_KEY}
