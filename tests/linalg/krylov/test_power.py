"""Power iteration: the eigenvalue largest in magnitude, or the truth that it was not found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.linalg import power_iteration
from tests.problems import problem, zoo

KEY = jax.random.key(0)
EPS = float(jnp.finfo(jnp.float32).eps)


def iterate(p, **options):
    return power_iteration(p.op, key=KEY, structure=p.structure, **options)


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
@pytest.mark.parametrize("name", ["network", "negative", "rank 3", "one"])
def test_the_dominant_value(name, scale):
    p = zoo(name, scale)
    found = iterate(p)
    dominant = p.spectrum[np.abs(p.spectrum).argmax()]
    assert bool(found.converged[0])
    # Within the residual, 1e-3 of the value; far better where there is a gap.
    np.testing.assert_allclose(found.values, [dominant], rtol=1e-3)


def test_plus_minus_pairs_are_found_by_the_plane_of_two_iterates():
    # The plain iteration wanders between +10 and -10 and reports 8.17 with success.
    found = iterate(zoo("pairs"))
    assert bool(found.converged[0])
    np.testing.assert_allclose(np.abs(found.values), [10], rtol=1e-3)


def test_zero():
    found = iterate(zoo("zero"))
    assert float(found.values[0]) == 0
    assert bool(found.converged[0])
    assert not bool(found.resolved[0])


def test_a_budget_that_does_not_suffice_is_said():
    p = problem(np.linspace(0, 1, 100))
    found = iterate(p, max_products=8, tol=1e-6)
    assert found.num_products == 8
    assert not bool(found.converged[0])
    # The residual is the true one: an eigenvalue lies within it.
    value = float(found.values[0])
    assert np.abs(p.spectrum - value).min() <= float(found.residual_norms[0]) + 20 * EPS


def test_traced():
    p = zoo("network")
    found = jax.jit(lambda op: power_iteration(op, key=KEY, structure=p.structure))(p.op)
    np.testing.assert_allclose(found.values, [20], rtol=1e-3)
    assert bool(found.converged[0])


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"max_products": 3}, "max_products=3 is too small"),
        ({"key": None}, "exactly one of key="),
        ({"tol": -1.0}, "tol must not be negative"),
    ],
)
def test_bad_input(arguments, text):
    p = zoo("network")
    with pytest.raises(ValueError, match=text):
        power_iteration(p.op, **({"key": KEY, "structure": p.structure} | arguments))
