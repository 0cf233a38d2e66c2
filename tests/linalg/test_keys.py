"""No PRNG key is used twice, by any estimator; JAX's own checker says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax import linalg
from tests.problems import times

N = 96
D = np.append(np.linspace(0.1, 1, N - 3), [5.0, 6.0, 9.0]).astype(np.float32)
OP, ONES = jax.tree_util.Partial(jnp.multiply, D), np.ones(N, np.float32)


def options(key, **given):
    return {"key": key, "structure": jnp.asarray(ONES)} | given


def estimators():
    few = {"num_probes": 2, "num_steps": 5}
    for method in ("hutchinson", "hutch++", "xtrace", "xnystrace", "deflated"):
        yield (
            f"trace {method}",
            lambda key, m=method: flatjax.trace(OP, **options(key, method=m, num_products=12)),
        )
    for method in ("hutchinson", "deflated", "xdiag"):
        yield (
            f"diagonal {method}",
            lambda key, m=method: flatjax.diagonal(OP, **options(key, method=m, num_products=8)),
        )
    yield "frobenius_norm", lambda key: flatjax.frobenius_norm(OP, **options(key, num_products=8))
    yield "logdet", lambda key: flatjax.logdet(OP, **options(key), **few)
    yield (
        "trace_of_function",
        lambda key: flatjax.trace_of_function(OP, jnp.exp, **options(key), **few),
    )
    yield "spectral_density", lambda key: flatjax.spectral_density(OP, **options(key), **few)
    yield "eigsh", lambda key: flatjax.eigsh(OP, 3, **options(key))
    yield "eigsh in blocks", lambda key: flatjax.eigsh(OP, 3, **options(key, block_size=2))
    yield "power_iteration", lambda key: flatjax.power_iteration(OP, **options(key))


HOST = {
    "trace to a tolerance": lambda key: flatjax.trace(OP, **options(key, rtol=0.1)),
    "spectrum": lambda key: flatjax.spectrum(
        OP, **options(key, k=3, num_steps=12, num_probes=2, max_trace_products=20, by="leaf")
    ),
    # An exhausted Krylov space draws once more.
    "spectrum of zero": lambda key: flatjax.spectrum(
        lambda v: 0 * v, **options(key, k=3, num_steps=12, num_probes=2, probe_steps=5)
    ),
    "trace_over_batches": lambda key: linalg.trace_over_batches(
        [OP, OP], **options(key, num_probes=2)
    ),
}
ALL = dict(estimators())


@pytest.mark.parametrize("name", [*ALL, *HOST])
def test_no_key_is_used_twice(name):
    with jax.debug_key_reuse(True):
        (ALL | HOST)[name](jax.random.key(0))


TRACED = ["trace hutchinson", "diagonal hutchinson", "eigsh", "power_iteration"]


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACED)
def test_no_key_is_used_twice_inside_jit(name):
    with jax.debug_key_reuse(True):
        jax.jit(ALL[name])(jax.random.key(0))


def test_every_estimator_that_takes_a_key_is_here():
    import inspect

    taking = {
        name
        for name in dir(linalg)
        if inspect.isfunction(f := getattr(linalg, name))
        and "key" in inspect.signature(f).parameters
    }
    assert taking <= {name.split()[0] for name in (*ALL, *HOST)}


def test_raw_keys_are_taken_too():
    found = [
        float(flatjax.trace(jax.tree_util.Partial(times, jnp.diag(D)), **options(key)).value)
        for key in (jax.random.key(3), jax.random.PRNGKey(3))
    ]
    assert found[0] == found[1]
