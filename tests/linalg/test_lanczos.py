"""Lanczos: the recurrence holds, nothing repeats, and no spectrum breaks it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from flatjax.linalg import lanczos
from tests.compilations import count_compilations
from tests.problems import SIZE, problem, spectra, structure_of, zoo

EPS = float(jnp.finfo(jnp.float32).eps)
STEPS = 24


def start(structure, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape), a.dtype), structure)


def rows(basis):
    return np.asarray(jax.vmap(lambda v: ravel_pytree(v)[0])(basis), np.float64)


def tridiagonal(run):
    a, b = np.asarray(run.alphas, np.float64), np.asarray(run.betas, np.float64)[:-1]
    return np.diag(a) + np.diag(b, 1) + np.diag(b, -1)


def run_of(p, steps=STEPS):
    return lanczos(p.op, start(p.structure), steps, structure=p.structure)


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
@pytest.mark.parametrize("name", list(spectra()))
def test_the_recurrence_holds_on_every_spectrum(name, scale):
    p = zoo(name, scale)
    run = run_of(p)
    q, t = rows(run.basis), tridiagonal(run)
    assert np.isfinite(t).all()
    # Full reorthogonalisation keeps this at a few units of rounding.
    np.testing.assert_allclose(q @ q.T, np.eye(STEPS), atol=20 * EPS)
    residual = np.zeros((STEPS, SIZE))
    residual[-1] = float(run.betas[-1]) * np.asarray(ravel_pytree(run.residual)[0])
    # Products in float32 of vectors of norm one, each of them wrong by a few eps |A|.
    np.testing.assert_allclose(q @ p.matrix(), t @ q + residual, atol=20 * EPS * p.norm)
    # So every Ritz value is an eigenvalue of a matrix that near, whatever its units.
    ritz = np.linalg.eigvalsh(t)
    slack = 20 * EPS * p.norm
    assert ritz.min() >= p.spectrum[-1] - slack
    assert ritz.max() <= p.spectrum[0] + slack


def test_all_steps_give_the_whole_spectrum():
    p = zoo("multiple")
    run = run_of(p, SIZE)
    np.testing.assert_allclose(
        np.linalg.eigvalsh(tridiagonal(run))[::-1], p.spectrum, atol=20 * EPS * p.norm
    )
    assert float(run.betas[-1]) == 0
    np.testing.assert_array_equal(ravel_pytree(run.residual)[0], 0)


def test_multiplicities_where_the_krylov_space_is_exhausted():
    run = run_of(zoo("rank 3"))
    assert run.breakdown.any()
    ritz = np.linalg.eigvalsh(tridiagonal(run))[::-1]
    np.testing.assert_allclose(ritz[:3], [10, 10, 9], rtol=20 * EPS)
    # All others are noise: no ghost of the three.
    np.testing.assert_allclose(ritz[3:], 0, atol=10 * 20 * EPS)


def test_an_invariant_start_vector_is_no_division_by_zero():
    p = zoo("clustered")
    top = jax.tree.unflatten(
        jax.tree.structure(p.structure), jax.tree.leaves(ravel_pytree(p.structure)[1](_top(p)))
    )
    run = lanczos(p.op, top, 4, structure=p.structure)
    assert bool(run.breakdown[0])
    np.testing.assert_allclose(run.alphas[0], 10, rtol=4 * EPS)
    assert all(np.isfinite(a).all() for a in jax.tree.leaves((run.alphas, run.basis)))


def _top(p):
    return jnp.asarray(np.linalg.eigh(p.matrix())[1][:, -1], jnp.float32)


def test_no_ghosts_after_100_steps_in_float32():
    # Without reorthogonalisation: 14 copies of the top eigenvalue, 4 after 30 steps.
    size = 50_000
    p = problem(spectra(size)["network"])
    run = run_of(p, 100)
    ritz = np.linalg.eigvalsh(tridiagonal(run))[::-1]
    np.testing.assert_allclose(ritz[:10], p.spectrum[:10], rtol=2e-6)
    assert (ritz[10:] < 0.31).all()
    q = rows(run.basis)
    np.testing.assert_allclose(q @ q.T, np.eye(100), atol=2e-6)


def test_going_on_is_one_longer_run():
    p = zoo("network")
    short = lanczos(p.op, start(p.structure), STEPS - 9, structure=p.structure)
    run, longer = run_of(p), lanczos(p.op, None, STEPS, resume=short, structure=p.structure)
    assert longer.num_products == run.num_products == STEPS
    for a, b in zip(jax.tree.leaves(run), jax.tree.leaves(longer), strict=True):
        if not jnp.issubdtype(jnp.asarray(a).dtype, jax.dtypes.prng_key):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["network", "rank 3"])
def test_traced_is_eager(name):
    p = zoo(name)

    @jax.jit
    def traced(op, v0):
        return lanczos(op, v0, STEPS, structure=p.structure)

    run = traced(p.op, start(p.structure))
    ritz, eager = (np.linalg.eigvalsh(tridiagonal(r)) for r in (run, run_of(p)))
    np.testing.assert_allclose(ritz[-3:], eager[-3:], rtol=20 * EPS)
    np.testing.assert_allclose(rows(run.basis) @ rows(run.basis).T, np.eye(STEPS), atol=20 * EPS)


def test_float64_is_computed_in_float64():
    with jax.enable_x64(True):
        p = zoo("network", dtype=jnp.float64)
        run = lanczos(p.op, start(p.structure), 10, structure=p.structure)
        assert run.alphas.dtype == jnp.float64
        q = rows(run.basis)
        np.testing.assert_allclose(q @ q.T, np.eye(10), atol=1e-14)


def test_the_start_vector_remains_the_callers():
    p = zoo("network")
    v0 = start(p.structure)
    before = ravel_pytree(v0)[0].copy()
    lanczos(p.op, v0, 2, structure=p.structure)
    np.testing.assert_array_equal(ravel_pytree(v0)[0], before)


def test_one_program_of_each_kind_whatever_the_operator_and_the_steps_done():
    p = zoo("network")
    run_of(p)
    with count_compilations() as count:
        run_of(zoo("clustered", 3.0))
    assert count.value == 0
    with count_compilations() as count:
        run_of(p, STEPS + 1)
    # Another length is another basis: its start, its step, and the units of its results.
    assert count.value <= 6


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"num_steps": 0}, ValueError, "num_steps must be at least 1, got 0"),
        ({"num_steps": 2.5}, TypeError, "num_steps must be an integer"),
        ({"num_steps": SIZE + 1}, ValueError, f"exceeds the dimension {SIZE}"),
        ({"structure": None}, ValueError, "a callable needs structure="),
        ({"op": 3}, TypeError, "op must be an operator or a callable"),
        ({"v0": jax.tree.map(jnp.zeros_like, structure_of(SIZE))}, ValueError, "non-zero norm"),
        ({"v0": jnp.ones(3)}, TypeError, "v0 must have the tree structure"),
        ({"op": lambda v: v["rest"]}, TypeError, r"op\(v\) must have the tree structure"),
    ],
)
def test_bad_input(arguments, error, text):
    p = zoo("network")
    given = {"op": p.op, "v0": start(p.structure), "num_steps": 3, "structure": p.structure}
    given |= arguments
    with pytest.raises(error, match=text):
        lanczos(given["op"], given["v0"], given["num_steps"], structure=given["structure"])
