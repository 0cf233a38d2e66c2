"""`eigsh`: right values and multiplicities on every known spectrum, with honest certificates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from flatjax.linalg import eigsh
from tests.compilations import count_compilations
from tests.problems import SIZE, problem, spectra, structure_of, zoo

EPS = float(jnp.finfo(jnp.float32).eps)
KEY = jax.random.key(0)


def solve(p, k, which, **options):
    return eigsh(p.op, k, which=which, key=KEY, structure=p.structure, **options)


def rows(vectors):
    return np.asarray(jax.vmap(lambda v: ravel_pytree(v)[0])(vectors), np.float64)


def check(p, found, k, which, tol=1e-3):
    """Everything that an answer promises."""
    expected = p.wanted(k, which)
    values, vectors = np.asarray(found.values, np.float64), rows(found.vectors)
    residuals = np.asarray(found.residual_norms, np.float64)
    slack = 20 * EPS * p.norm  # rounding of the products
    assert np.isfinite(values).all()
    assert np.isfinite(vectors).all()
    assert (np.diff(values) <= 0).all()
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(k), atol=30 * EPS)
    # The residuals are those of the true matrix.
    true = np.linalg.norm(vectors @ p.matrix() - values[:, None] * vectors, axis=1)
    np.testing.assert_allclose(residuals, true, atol=slack, rtol=1e-3)
    # An eigenvalue lies within each residual; converged ones are the wanted ones.
    nearest = np.abs(values[:, None] - p.spectrum[None, :]).min(axis=1)
    assert (nearest <= residuals + slack).all()
    bound = np.maximum(tol * np.abs(values), float(found.noise_floor))
    np.testing.assert_array_equal(found.converged, np.asarray(found.residual_norms) <= bound)
    if np.asarray(found.converged).all():
        np.testing.assert_allclose(values, expected, atol=slack + tol * np.abs(expected).max())
    # Nothing but rounding below the floor, and nothing of it above.
    floor = float(found.noise_floor)
    assert floor <= 100 * EPS * p.norm
    apart = np.abs(np.abs(expected) - floor) > slack
    np.testing.assert_array_equal(
        np.asarray(found.resolved)[apart], (np.abs(expected) > floor)[apart]
    )


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
@pytest.mark.parametrize("name", list(spectra()))
def test_both_ends_of_every_spectrum_at_every_scale(name, scale):
    p = zoo(name, scale)
    found = solve(p, 4, "BE")
    check(p, found, 4, "BE")
    assert np.asarray(found.converged).all()


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
@pytest.mark.parametrize("name", ["network", "clustered", "pairs", "rank 3", "zero", "negative"])
def test_every_choice(name, which):
    p = zoo(name)
    found = solve(p, 4, which)
    check(p, found, 4, which)
    assert np.asarray(found.converged).all()


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
@pytest.mark.parametrize("seed", range(3))
def test_multiplicities(scale, seed):
    # Three copies of 10, two of 9, one of 8; a single start vector sees one of each.
    p = zoo("multiple", scale)
    found = eigsh(p.op, 6, key=jax.random.key(seed), structure=p.structure)
    check(p, found, 6, "LA")
    expected = np.array([10, 10, 10, 9, 9, 8])
    np.testing.assert_allclose(np.asarray(found.values, float) / scale, expected, rtol=1e-5)


def test_without_the_sweep_a_copy_is_missed():
    # In float64: float32 brings copies back by rounding, after twice the steps.
    with jax.enable_x64(True):
        p = zoo("multiple", dtype=jnp.float64)
        swift, full = (solve(p, 3, "LA", verify=verify) for verify in (False, True))
        np.testing.assert_allclose(swift.values, [10, 9, 8], rtol=1e-6)
        np.testing.assert_allclose(full.values, [10, 10, 10], rtol=1e-6)
        assert swift.num_products < full.num_products


def test_multiple_of_the_identity():
    p = zoo("one")
    np.testing.assert_allclose(solve(p, 3, "LA").values, 2, rtol=4 * EPS)


def test_values_are_far_better_than_the_residual_bound():
    # The error is the square of the residual over the gap.
    p = zoo("network")
    found = solve(p, 3, "LA", tol=1e-2, verify=False)
    np.testing.assert_allclose(found.values, p.spectrum[:3], rtol=1e-4)


def test_a_tight_tolerance_is_met():
    p = zoo("network")
    found = solve(p, 3, "LA", tol=1e-5)
    check(p, found, 3, "LA", tol=1e-5)
    assert np.asarray(found.converged).all()


@pytest.mark.parametrize("max_basis", [7, 12])
def test_thick_restarts_under_a_memory_bound(max_basis):
    p = zoo("network")
    found = solve(p, 5, "LA", max_basis=max_basis, max_products=400)
    check(p, found, 5, "LA")
    assert np.asarray(found.converged).all()
    assert found.num_products > max_basis


def test_all_pairs():
    with jax.enable_x64(True):
        p = problem(np.linspace(-1, 2, 20), dtype=jnp.float64)
        found = eigsh(p.op, 20, key=jax.random.key(1), structure=p.structure)
        np.testing.assert_allclose(found.values, p.spectrum, atol=1e-13)


def test_dimension_one():
    found = eigsh(lambda v: -3 * v, 1, which="SA", key=KEY, structure=jnp.ones(()))
    np.testing.assert_allclose(found.values, [-3.0])
    assert bool(found.converged[0])


def test_float64_to_float64_accuracy():
    with jax.enable_x64(True):
        p = zoo("network", dtype=jnp.float64)
        found = eigsh(p.op, 4, which="BE", key=KEY, structure=p.structure, tol=1e-10)
        assert found.values.dtype == jnp.float64
        np.testing.assert_allclose(found.values, p.wanted(4, "BE"), atol=1e-12)
        assert float(found.noise_floor) < 1e-13


def test_a_start_vector_in_place_of_a_key():
    p = zoo("network")
    v0 = jax.tree.map(jnp.ones_like, p.structure)
    found = eigsh(p.op, 2, v0=v0, structure=p.structure)
    check(p, found, 2, "LA")
    again = eigsh(p.op, 2, v0=jax.tree.map(lambda x: 1e20 * x, v0), structure=p.structure)
    np.testing.assert_allclose(again.values, found.values, rtol=4 * EPS)


def test_the_same_key_gives_the_same_answer():
    p = zoo("network")
    one, two = (solve(p, 2, "LA") for _ in range(2))
    np.testing.assert_array_equal(one.values, two.values)


def test_a_budget_is_kept_and_what_has_not_converged_says_so():
    # The edge of a dense bulk takes hundreds of products.
    p = problem(np.linspace(0, 1, 1000))
    found = solve(p, 3, "LA", max_products=20, tol=1e-6)
    check(p, found, 3, "LA", tol=1e-6)
    assert found.num_products <= 20
    assert not np.asarray(found.converged).any()


def rounded(d, v):
    # The 10 bits that a TF32 product keeps of its input.
    return jax.tree.map(lambda a, x: a * jax.lax.reduce_precision(x, 8, 10), d, v)


def test_the_floor_rises_with_the_noise_of_the_products():
    d = np.concatenate([[20.0, 10.0], np.linspace(-1e-3, 1e-3, 398)])
    d = jnp.asarray(d, jnp.float32)
    for function, low, high in ((rounded, 1e-3, 1e-1), (jnp.multiply, 0, 1e-4)):
        op = jax.tree_util.Partial(function, d)
        found = eigsh(op, 3, which="LA", key=KEY, structure=d, max_products=60)
        assert low < float(found.noise_floor) < high
        assert np.asarray(found.resolved)[:2].all()
        # A bulk of 1e-3 is noise to a product that is wrong by 5e-4 of 20, and not to float32.
        assert bool(found.resolved[2]) == (function is not rounded)


def test_new_values_and_another_number_of_steps_compile_nothing():
    p = zoo("network")
    solve(p, 4, "BE")
    with count_compilations() as count:
        solve(zoo("network", 2.0), 4, "BE")
        solve(p, 4, "BE", max_products=30)
    assert count.value == 0


def count_models(k):
    """How often the model is traced by a first answer."""
    traces = []
    d = jnp.asarray(spectra()["network"], jnp.float32)

    def op(v):
        traces.append(1)
        return d * v

    eigsh(op, k, key=KEY, structure=d)
    return len(traces)


def test_the_model_is_compiled_once():
    assert count_models(2) == count_models(6) == 1


@pytest.mark.parametrize("block_size", [1, 2])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_products_that_are_not_finite_show_in_the_result(bad, block_size):
    found = eigsh(lambda v: v * bad, 2, key=KEY, structure=jnp.ones(99), block_size=block_size)
    assert np.isnan(found.values).all()
    assert not np.asarray(found.converged).any()
    assert not np.asarray(found.resolved).any()
    # It does not go on: one look after k + 1 products, or two blocks and the certificate.
    assert found.num_products <= 2 * 2 + 2


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"k": SIZE + 1}, ValueError, f"k={SIZE + 1} exceeds the dimension {SIZE}"),
        ({"k": 1.0}, TypeError, "k must be an integer"),
        ({"which": "LX"}, ValueError, "which must be one of 'LA', 'SA', 'LM', 'BE', got 'LX'"),
        ({"tol": -1e-3}, ValueError, "tol must not be negative"),
        ({"tol": float("nan")}, ValueError, "tol must not be negative"),
        ({"key": None}, ValueError, "exactly one of key= .* got neither.*keep_state"),
        ({"v0": structure_of(SIZE)}, ValueError, "exactly one of key= .* got both"),
        ({"key": 0}, TypeError, "key must be one PRNG key"),
        ({"key": None, "v0": structure_of(SIZE)}, ValueError, "finite non-zero norm, got 0.0"),
        ({"max_products": 4}, ValueError, "max_products=4 is too small: 3 pairs need at least 4"),
        ({"max_products": 0}, ValueError, "max_products must be at least 1"),
        ({"max_basis": 4}, ValueError, "max_basis=4 is too small: 3 pairs need at least 5"),
        ({"structure": None}, ValueError, "a callable needs structure="),
    ],
)
def test_bad_input(arguments, error, text):
    given = {"k": 3, "key": KEY, "structure": structure_of(SIZE)} | arguments
    with pytest.raises(error, match=text):
        eigsh(zoo("network").op, given.pop("k"), **given)


@pytest.mark.parametrize("a", [np.eye(3), jnp.eye(3)], ids=["numpy", "jax"])
def test_a_matrix_in_the_place_of_an_operator_names_the_fix(a):
    with pytest.raises(TypeError, match=r"pass lambda v: a @ v and structure=a\[0\]"):
        eigsh(a, 1, key=KEY)
