"""`eigsh` in blocks: the same answers as with single vectors, and several copies at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.linalg import eigsh
from tests.linalg.test_eigsh import check, solve
from tests.problems import problem, spectra, zoo

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("name", "scale"), [(name, 1.0) for name in spectra()] + [("network", 1e-12), ("network", 1e12)]
)
def test_both_ends_of_every_spectrum(name, scale):
    p = zoo(name, scale)
    found = solve(p, 4, "BE", block_size=3)
    check(p, found, 4, "BE")
    assert np.asarray(found.converged).all()


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
def test_every_end(which):
    p = zoo("network")
    found = solve(p, 5, which, block_size=4)
    check(p, found, 5, which)
    assert np.asarray(found.converged).all()


def test_restarts_keep_to_their_memory_and_converge():
    p = problem(np.linspace(-1, 1, 100))
    # 18 rows of 100, and some 50 products for pairs at relative gaps of 1 %: several restarts.
    found = solve(p, 4, "LA", block_size=2, max_basis=18, max_products=2000)
    check(p, found, 4, "LA")
    assert np.asarray(found.converged).all()
    assert found.num_products > 3 * 18


def test_as_many_copies_as_the_block_has_vectors():
    p = problem(np.concatenate([[5.0, 5.0, 5.0], np.linspace(-1, 1, 97)]))
    found = solve(p, 3, "LA", block_size=3, max_products=25)
    np.testing.assert_allclose(found.values, [5, 5, 5], rtol=1e-5)  # a few units of rounding
    assert found.num_products <= 25


@pytest.mark.parametrize("max_products", [20, 21, 22])
def test_a_budget_that_is_no_multiple_of_the_block_is_kept(max_products):
    p = problem(np.linspace(-1, 1, 100))
    found = solve(p, 2, "LA", block_size=3, max_products=max_products, tol=1e-9)
    assert max_products - 3 < found.num_products <= max_products


def test_an_exhausted_space_goes_on_from_random_vectors():
    # Rank 2, and each Krylov space of a block has at most 2 x 2 directions.
    p = problem(np.concatenate([[3.0, 3.0, 3.0, 3.0, 3.0], np.ones(95)]))
    found = solve(p, 5, "LA", block_size=2)
    np.testing.assert_allclose(found.values, np.full(5, 3.0), rtol=1e-5)
    zero = problem(np.zeros(100))
    found = solve(zero, 3, "LA", block_size=2)
    np.testing.assert_array_equal(found.values, np.zeros(3))


def test_the_whole_space():
    d = jnp.arange(1.0, 8.0)
    found = eigsh(lambda v: d * v, 7, key=KEY, structure=d, block_size=3)
    np.testing.assert_allclose(found.values, np.arange(7.0, 0.0, -1), rtol=1e-5)


def test_inside_jit_it_says_what_to_do():
    d = jnp.arange(9.0)
    with pytest.raises(TypeError, match=r"block_size=2 .* call it outside jit"):
        jax.jit(lambda: eigsh(lambda v: d * v, 2, key=KEY, structure=d, block_size=2).values)()


def test_the_certificate_sees_the_noise_of_the_products():
    # The 10 bits that a TF32 product keeps of its input: an error of 2^-11 of 20, and of 10.
    d = jnp.concatenate([jnp.array([20.0, 10.0]), jnp.linspace(-1.0, 1.0, 98)])
    u = jnp.sqrt(jnp.full(100, 1 / 100))

    def rounded(v):
        v = v - 2 * u * jnp.vdot(u, v, precision="highest")
        v = d * jax.lax.reduce_precision(v, 8, 10)
        return v - 2 * u * jnp.vdot(u, v, precision="highest")

    found = eigsh(rounded, 2, key=KEY, structure=d, block_size=2, tol=1e-6)
    vectors, values = np.asarray(found.vectors), np.asarray(found.values)
    true = [np.linalg.norm(rounded(v) - x * v) for v, x in zip(vectors, values, strict=True)]
    assert (np.asarray(found.residual_norms) >= 0.7 * np.asarray(true)).all()
    assert 1e-3 < float(found.noise_floor) < 0.1


def test_bad_arguments_say_what_to_do():
    d = jnp.arange(9.0)
    with pytest.raises(ValueError, match="block_size must be"):
        eigsh(lambda v: d * v, 2, key=KEY, structure=d, block_size=0)
    with pytest.raises(ValueError, match="need at least 8"):
        eigsh(lambda v: d * v, 2, key=KEY, structure=d, block_size=2, max_basis=7)
