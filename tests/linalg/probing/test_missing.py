"""A list of eigenpairs says whether it is complete; what the probes have seen completes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax import _trees as trees
from flatjax.linalg.krylov import _extremes as extremes
from flatjax.linalg.krylov import _relations as relations
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.probing import _missing as missing
from flatjax.linalg.vectors import _span as spans
from flatjax.operators._base import as_operator
from tests.problems import dense, times

K = 10


def case(low, seed):
    """Distinct numbers in (0, 1), ten of them wanted, and a cluster that costs the run steps."""
    rng = np.random.default_rng(seed)
    return dense(np.concatenate([rng.uniform(0, 1, 150 - len(low)), low]), seed)[0]


def spectrum(a, seed=0, **options):
    op, structure = jax.tree_util.Partial(times, a), jnp.zeros(len(a))
    return flatjax.spectrum(op, key=jax.random.key(seed), structure=structure, **options)


LOWS = {"ten": -5 * np.ones(10), "close": -5 + 1e-6 * np.arange(10), "fifty": -5 * np.ones(50)}


def check(name, seeds):
    filled = 0
    for seed in seeds:
        a = case(LOWS[name], seed)
        true = np.linalg.eigvalsh(np.asarray(a, np.float64))[::-1]
        found = spectrum(a, seed)
        values = np.asarray(found.top.values, np.float64)
        assert found.complete == (found.top.complete and found.bottom.complete)
        if not found.top.complete:
            assert not np.asarray(found.top.converged).any()
        elif found.top.converged.all():
            # Values err by the tolerance, 1e-3 of themselves, at most.
            np.testing.assert_allclose(values, true[:K], rtol=1e-3)
            filled += 1
    return filled


@pytest.mark.parametrize(("name", "seeds"), [("ten", [5, 8]), ("close", [4]), ("fifty", [16])])
def test_no_converged_list_skips_an_eigenvalue(name, seeds):
    # Seeds of which the run alone skips one.
    assert check(name, seeds) == len(seeds)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LOWS))
def test_no_converged_list_skips_an_eigenvalue_of_many(name):
    assert check(name, range(40)) >= 38


@pytest.mark.parametrize("end", ["top", "bottom"])
def test_copies_at_either_end(x64, end):
    # In float64: rounding brings copies back to a run in float32, after twice the steps.
    sign = 1.0 if end == "top" else -1.0
    d = np.concatenate([np.random.default_rng(0).uniform(0, 1, 150), [5.0, 5, 5, -4]])
    d = jnp.asarray(sign * d)
    op = jax.tree_util.Partial(jnp.multiply, d)
    k, num_bottom = (3, 1) if end == "top" else (1, 3)  # nothing is missing at the other end
    few = {"k": k, "num_bottom": num_bottom, "key": jax.random.key(0), "structure": d}
    # Too few steps for rounding to bring copies back, and no product to fill in: the probes' own.
    found = flatjax.spectrum(op, num_steps=26, **few)
    pairs = getattr(found, end)
    assert pairs.complete is True
    # Converged residuals of 1e-3 of 5 beside a gap of 4: their square.
    np.testing.assert_allclose(pairs.values, [sign * 5] * 3, atol=1e-4)
    assert np.asarray(pairs.converged).all()
    v = np.asarray(pairs.vectors)
    np.testing.assert_allclose(v @ v.T, np.eye(3), atol=1e-10)
    true = np.linalg.norm(v * np.asarray(d) - np.asarray(pairs.values)[:, None] * v, axis=1)
    assert (true <= 1.1 * np.asarray(pairs.residual_norms) + 1e-12).all()


def test_a_list_known_to_be_incomplete_has_not_converged(x64):
    # As many copies as each of the two probes brings one of, and no product left to look on.
    d = jnp.asarray(np.concatenate([np.random.default_rng(0).uniform(0, 1, 150), 5 * np.ones(20)]))
    op = jax.tree_util.Partial(jnp.multiply, d)
    options = {"k": 6, "num_bottom": 1, "num_probes": 2, "key": jax.random.key(0), "structure": d}
    found = flatjax.spectrum(op, num_steps=40, **options)
    assert found.top.complete is False
    assert found.complete is False
    assert found.bottom.complete is True
    assert not np.asarray(found.top.converged).any()


def test_no_products_where_nothing_is_missing():
    d = np.append(np.linspace(-0.1, 1, 296), [5.0, 6.0, 7.0, 9.0])
    a, _ = dense(d)
    found = spectrum(a, k=4, num_bottom=1, num_steps=40, trace_rtol=None)
    again = spectrum(a, k=4, num_bottom=1, trace_rtol=None)
    assert found.complete is again.complete is True
    assert found.num_products == 40 + 4 * 10
    assert again.num_products == int(again.state.run.step) + 4 * (
        10 if int(again.state.run.step) - again.density.num_exact >= 30 else 30
    )


def test_within_bytes_no_product_completes_the_lists():
    # The run alone skips one of these, and two products fill it in.
    a = case(LOWS["close"], 4)
    found, free = (spectrum(a, 4, trace_rtol=None, basis_bytes=b) for b in (10**9, None))
    assert found.num_products == int(found.state.run.step) + 4 * 10 < free.num_products
    assert not found.complete
    assert free.complete


def test_what_is_searched_is_held_once(space):
    found, _, _ = space
    candidates = [found.found, found.found]
    joint = missing._joint(candidates)
    assert candidates == []
    assert joint.vectors.shape == joint.images.shape == (4, 40)


@pytest.fixture
def space(dtype):
    """A run of 8 steps of a dense matrix of 40, two other vectors joined to it, and the truth."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((40, 40))
    a = jnp.asarray(a + a.T, dtype)
    op = as_operator(jax.tree_util.Partial(times, a), a[0])
    v0 = trees.normalized(jnp.asarray(rng.standard_normal(40), dtype))[0]
    state = krylov.run(op, krylov.start(v0, 12, jax.random.key(0)), 8)
    pairs = extremes.found(state, 2, 1, 1e-3, 40)
    run = relations.of_state(state)
    y = jnp.asarray(rng.standard_normal((2, 40)), dtype)
    found = missing.outside(run, jnp.copy(y), y @ a)
    exact = np.asarray(a, np.float64)
    basis = np.concatenate([np.asarray(state.basis, np.float64)[:8], np.asarray(y, np.float64)])
    return missing.Space(run, pairs, found), exact, np.linalg.qr(basis.T)[0]


def test_the_joint_space_is_solved_without_a_product(space, dtype):
    found, a, q = space
    slack = 50 * float(jnp.finfo(dtype).eps) * np.linalg.norm(a, 2)
    values, vectors = np.linalg.eigh(q.T @ a @ q)
    wanted = [9, 8, 0]
    np.testing.assert_allclose(found.values, values[wanted], atol=slack)
    u = np.asarray(spans.formed(found.vectors()), np.float64)
    overlap = np.abs(np.sum(u * (q @ vectors[:, wanted]).T, axis=1))
    np.testing.assert_allclose(overlap, 1, atol=slack)
    residuals = np.linalg.norm(u @ a - found.values[:, None] * u, axis=1)
    np.testing.assert_allclose(found.residuals(), residuals, atol=10 * slack)


def test_extremes_of_a_probe(dtype):
    rng = np.random.default_rng(1)
    a = rng.standard_normal((40, 40))
    a = jnp.asarray(a + a.T, dtype)
    op = as_operator(jax.tree_util.Partial(times, a), a[0])
    v0 = trees.normalized(jnp.asarray(rng.standard_normal(40), dtype))[0]
    state = krylov.run(op, krylov.start(v0, 12, jax.random.key(0)), 6)
    y, images = (np.asarray(x, np.float64) for x in missing.seen(state, 6, bottom=True))
    exact = np.asarray(a, np.float64)
    slack = 50 * float(jnp.finfo(dtype).eps) * np.linalg.norm(exact, 2)
    np.testing.assert_allclose(images, y @ exact, atol=slack)
    q = np.asarray(state.basis, np.float64)[:6]
    ritz = np.linalg.eigvalsh(q @ exact @ q.T)
    np.testing.assert_allclose(np.sum(y * images, axis=1), ritz[[-1, 0]], atol=slack)
    top, _ = missing.seen(state, 6, bottom=False)
    np.testing.assert_allclose(np.asarray(top, np.float64), y[:1], atol=slack)
