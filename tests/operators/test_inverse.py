"""Inverse products by conjugate gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax import loops
from flatjax.operators import as_operator, hessian, over_batches
from flatjax.operators._damping import identity
from flatjax.operators._inverse import inverse
from tests.models import NETWORKS


def matrix_product(matrix, v):
    return jnp.dot(matrix, v, precision="highest")


def from_matrix(matrix):
    matrix = jnp.asarray(matrix)
    product = jax.tree_util.Partial(matrix_product, matrix)
    return as_operator(product, structure=matrix[0])


def spectrum(values, seed=0):
    """A symmetric matrix with these eigenvalues, float64 NumPy."""
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    return (q * values) @ q.T


DEFINITE = spectrum(np.geomspace(1.0, 100.0, 40))
RIGHT = np.cos(np.arange(40.0))


@pytest.mark.parametrize(("dtype", "tol"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("damping", [0.0, 10.0])
def test_solves_to_the_tolerance(dtype, tol, damping):
    with jax.enable_x64(dtype == "float64"):
        op = from_matrix(jnp.asarray(DEFINITE, dtype))
        solution = inverse(op, damping=damping, tol=tol).solve(jnp.asarray(RIGHT, dtype))
        assert bool(solution.converged)
        assert not bool(solution.indefinite)
        residual = RIGHT - (DEFINITE + damping * np.eye(40)) @ np.asarray(solution.x, np.float64)
        # The residual in the result is the true one, up to its own rounding of eps * norm(v).
        rounding = 100 * np.finfo(dtype).eps * np.linalg.norm(RIGHT)
        assert np.linalg.norm(residual) <= tol * np.linalg.norm(RIGHT) + rounding
        assert float(solution.residual_norm) == pytest.approx(
            np.linalg.norm(residual), abs=rounding
        )
        assert solution.x.dtype == dtype


def test_iterations_obey_the_bound():
    """sqrt(kappa)/2 log(2/tol) steps in the A-norm; kappa = 100 more in the residual's."""
    op = from_matrix(np.float32(DEFINITE))
    solution = inverse(op, tol=1e-4).solve(jnp.float32(RIGHT))
    bound = 10 / 2 * np.log(2 * 10 / 0.5e-4)
    assert 10 <= int(solution.iterations) <= bound


def test_a_diagonal_preconditioner_helps():
    diagonal = np.geomspace(1e-2, 1e4, 40)
    matrix = np.sqrt(np.outer(diagonal, diagonal)) * spectrum(np.linspace(0.5, 1.5, 40))
    op, v = from_matrix(np.float32(matrix)), jnp.float32(RIGHT)
    plain = inverse(op, tol=1e-3).solve(v)
    tree = inverse(op, tol=1e-3, preconditioner=jnp.float32(np.diag(matrix))).solve(v)
    operator = as_operator(lambda r: r / jnp.float32(np.diag(matrix)), structure=v)
    same = inverse(op, tol=1e-3, preconditioner=operator).solve(v)
    assert bool(tree.converged)
    assert int(tree.iterations) < 0.3 * int(plain.iterations)
    assert int(same.iterations) == int(tree.iterations)


def test_an_indefinite_matrix_is_reported():
    op = from_matrix(np.float32(spectrum(np.r_[-1.0, np.linspace(1.0, 3.0, 39)])))
    solution = inverse(op).solve(jnp.float32(RIGHT))
    assert bool(solution.indefinite)
    assert not bool(solution.converged)
    assert np.isfinite(np.asarray(solution.x)).all()
    # A product has no place to say so: it is no number, and what estimates by it does not converge.
    assert np.isnan(np.asarray(inverse(op) @ jnp.float32(RIGHT))).all()
    found = flatjax.eigsh(inverse(op), 1, key=jax.random.key(0), max_products=20)
    assert not found.converged.any()
    few = inverse(op, damping=2.0, max_iters=2)  # an iteration cut short is what it is
    assert np.isfinite(np.asarray(few @ jnp.float32(RIGHT))).all()
    damped_solution = inverse(op, damping=2.0).solve(jnp.float32(RIGHT))
    assert bool(damped_solution.converged)
    assert not bool(damped_solution.indefinite)


def test_a_singular_matrix_is_solved_in_its_range():
    values = np.r_[np.zeros(10), np.linspace(1.0, 3.0, 30)]
    matrix = spectrum(values)
    op, v = from_matrix(np.float32(matrix)), matrix @ RIGHT
    solution = inverse(op, tol=1e-4).solve(jnp.float32(v))
    assert bool(solution.converged)
    outside = inverse(op, tol=1e-4).solve(jnp.float32(RIGHT))
    assert not bool(outside.converged)  # no solution exists, and none is claimed


def test_a_zero_right_hand_side():
    solution = inverse(from_matrix(np.float32(DEFINITE))).solve(jnp.zeros(40))
    assert not np.asarray(solution.x).any()
    assert bool(solution.converged)
    assert int(solution.iterations) == 0
    assert float(solution.relative_residual) == 0.0


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_scaled_operators(scale):
    op = from_matrix(np.float32(scale * DEFINITE))
    solution = inverse(op, tol=1e-4).solve(jnp.float32(RIGHT))
    expected = np.linalg.solve(scale * DEFINITE, RIGHT)
    assert bool(solution.converged)
    # The error is the residual times the condition number, 100.
    assert np.linalg.norm(solution.x - expected) <= 1e-2 * np.linalg.norm(expected)


def test_too_few_iterations_are_reported():
    op = from_matrix(np.float32(DEFINITE))
    solution = inverse(op, max_iters=3).solve(jnp.float32(RIGHT))
    assert int(solution.iterations) == 3
    assert not bool(solution.converged)
    assert float(solution.relative_residual) > 1e-5


def test_traced_equals_eager_and_compiles_once():
    op = from_matrix(np.float32(DEFINITE))
    solve = jax.jit(lambda inv, v: inv.solve(v))
    eager, traced = (f(inverse(op), jnp.float32(RIGHT)) for f in (_solve, solve))
    np.testing.assert_allclose(eager.x, traced.x, rtol=1e-4)  # both within tol, other roundings
    assert bool(traced.converged)
    solve(inverse(op, damping=2.0, tol=1e-3), jnp.float32(RIGHT))
    assert solve._cache_size() == 1
    rows = jax.vmap(inverse(op).mv)(jnp.float32(np.eye(40)[:3]))
    np.testing.assert_allclose(rows, np.linalg.inv(DEFINITE)[:3], atol=1e-5)
    with loops.device():
        device = inverse(op).solve(jnp.float32(RIGHT))
    assert abs(int(device.iterations) - int(eager.iterations)) <= 1  # other roundings


def _solve(inv, v):
    return inv.solve(v)


def test_a_network_and_a_stream():
    network = NETWORKS["mlp"]
    params, batch = network.cast(jnp.float32)
    loss = flatjax.softmax_cross_entropy
    whole = flatjax.ggn(network.apply, loss, params, batch)
    x, y = batch
    batches = [(x[:5], y[:5]), (x[5:], y[5:])]
    stream = over_batches(lambda b: flatjax.ggn(network.apply, loss, params, b), batches)
    v = jax.tree.map(jnp.ones_like, params)
    one = inverse(whole, damping=0.1).solve(v)
    with loops.device():  # a stream stays on the host
        two = inverse(stream, damping=0.1).solve(v)
    assert bool(one.converged)
    assert bool(two.converged)
    # Two solutions with residuals of 1e-5 and a condition number below 100.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-2), one.x, two.x)
    linearised = inverse(whole, damping=0.1).linearize() @ v
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-2), one.x, linearised)


def test_bad_arguments_are_refused():
    op = hessian(lambda w, _: jnp.sum(w**2), jnp.ones(2), None)
    with pytest.raises(ValueError, match="tol must be above 0"):
        inverse(op, tol=0.0)
    with pytest.raises(ValueError, match="max_iters"):
        inverse(op, max_iters=0)
    with pytest.raises(ValueError, match="preconditioner must be positive"):
        inverse(op, preconditioner=jnp.array([1.0, 0.0]))
    with pytest.raises(ValueError, match="preconditioner has shape"):
        inverse(op, preconditioner=jnp.ones(3))
    with pytest.raises(ValueError, match="the preconditioner's structure has shape"):
        inverse(op, preconditioner=identity(jnp.ones(3)))
    with pytest.raises(ValueError, match="v has shape"):
        inverse(op).solve(jnp.ones(3))
