"""The split of a memory budget against all splits that fit."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.ensembles import PowerLaw, memory_split

pytestmark = pytest.mark.usefixtures("x64")


def law(offset, scale, exponent):
    numbers = (offset, scale, exponent, (-1.0, 0.0), np.zeros(3), True)
    return PowerLaw(*map(jnp.asarray, numbers))


def test_against_all_splits_that_fit():
    rng = np.random.default_rng(0)
    chosen = set()
    for _ in range(30):
        sizes = np.sort(rng.choice(np.arange(1, 30), 4, replace=False)).tolist()
        # Some laws rise with the number of members.
        laws = {s: law(rng.normal(), rng.normal(), rng.uniform(-2, -0.2)) for s in sizes}
        budget = int(rng.integers(sizes[0], 60))
        fitting = {
            (n, s): float(laws[s](n))
            for n, s in itertools.product(range(1, budget + 1), sizes)
            if n * s <= budget
        }
        best = min(fitting, key=fitting.get)
        split = memory_split(laws, budget)
        assert (split.members, split.size) == best
        np.testing.assert_allclose(split.value, fitting[best], rtol=1e-12)
        alone = min(value for (n, _), value in fitting.items() if n == 1)
        np.testing.assert_allclose(split.gain, alone - fitting[best], atol=1e-12)
        chosen.add(split.members == 1)
    assert chosen == {True, False}


def test_a_budget_that_is_met_exactly_fits():
    assert memory_split({5: law(0.0, 1.0, -1.0)}, 15).members == 3


def test_a_law_that_is_no_number_shows():
    laws = {1: law(0.0, 1.0, -1.0), 2: law(np.nan, 1.0, -1.0)}
    assert np.isnan(memory_split(laws, 4).value)


def test_bad_arguments():
    one = {2: law(0.0, 1.0, -1.0)}
    with pytest.raises(TypeError, match="must map sizes to power laws"):
        memory_split([one[2]], 4)
    with pytest.raises(TypeError, match="must map sizes to power laws"):
        memory_split({2: 1.0}, 4)
    with pytest.raises(ValueError, match="no network fits into a budget of 1"):
        memory_split(one, 1)
    with pytest.raises(ValueError, match="budget must be above"):
        memory_split(one, -1)
    with pytest.raises(ValueError, match="a size must be above"):
        memory_split({0: one[2]}, 4)
