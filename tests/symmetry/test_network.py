"""What the check asks of a model: tolerances in closed form, points that hide nothing."""

import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax.symmetry import _network
from flatjax.symmetry._spec import factors_by_leaf

EPS = 2.0**-23


def made(params, rules, seed, model_fn=lambda params, x: params):
    rng = np.random.default_rng(seed)
    network = _network.Network(model_fn, params, np.ones(1, np.float32), (), rng)
    return network, factors_by_leaf(params, flatjax.spec_of(params, rules)), rng


@pytest.mark.parametrize(
    ("shape", "rule", "terms"),
    [
        ((512,), ("h",), 512),  # a norm over 512 units
        ((300, 7), ("h", None), 300),  # the sum of a dense layer, inputs first
        ((7, 300), (None, "h"), 300),  # and last
        ((3, 3, 20, 50), (None, None, "h", None), 180),  # a convolution
        ((5, 4), None, 1),  # no sum is in another order
    ],
)
def test_the_tolerance_is_that_of_the_terms_of_a_sum(shape, rule, terms, seed):
    """Outputs that are the params change by as much as these: a rounding for each term."""
    params = {"w": np.random.default_rng(1).normal(size=shape).astype(np.float32)}
    network, factors, rng = made(params, {"w": rule}, seed)
    # Half a rounding of the changed params themselves is more or less, on average much less.
    np.testing.assert_allclose(network.tolerance(factors, rng), terms * EPS, rtol=0.3 / terms)


def test_the_change_by_a_permutation(seed):
    params = {"w": np.array([3.0, 4.0], np.float32)}
    network, factors, _ = made(params, {"w": ("h",)}, seed)
    a, b = network._leaves["w"].astype(np.float64)
    expected = np.sqrt(2) * abs(a - b) / np.hypot(a, b)
    # Float32 params, taken as they are.
    change = network.change(factors, {"h": np.array([1, 0])})
    np.testing.assert_allclose(change, expected, rtol=1e-6)
    assert network.change(factors, {"h": np.array([0, 1])}) == 0


def test_the_point_is_near_and_nowhere_constant(seed):
    rng = np.random.default_rng(seed)
    ones, zeros = np.ones(50, np.float32), np.zeros(50, np.float32)
    for sign in (1, -1):
        near = _network._nearby(sign * ones, rng) * sign
        assert near.min() >= 1
        assert near.max() <= 1.5
        assert np.unique(near).size > 40
    drawn = _network._nearby(zeros, rng)
    assert abs(drawn).max() <= 0.5
    assert np.unique(drawn).size > 40
    np.testing.assert_array_equal(_network._nearby(np.arange(3), rng), np.arange(3))
    assert _network._nearby(jnp.ones(2, jnp.bfloat16), rng).dtype == np.float32


def test_cycles_move_every_unit(seed):
    p = _network.cycles((4, 7), np.random.default_rng(seed))
    for row in p:
        assert sorted(row) == list(range(7))
        where, seen = 0, []
        for _ in range(7):
            where = row[where]
            seen.append(where)
        assert sorted(seen) == list(range(7))  # one cycle
    assert len({tuple(row) for row in p}) > 1
