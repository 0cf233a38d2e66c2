"""Bases that are stored in 16 bits, against dense matrices in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import flatjax
from flatjax import _trees as trees
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _blocks as blocks
from flatjax.linalg.vectors import _rotations as rotations
from flatjax.operators._base import as_operator
from tests.linalg import test_lanczos as runs
from tests.problems import zoo

N = 120


def dense(values):
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((len(values), len(values))))
    return (q * values) @ q.T


OUTLIERS = np.concatenate([[10.0, 9, 7, 5, 4], np.linspace(-0.1, 1, N - 5)])


def product(matrix):
    held = jnp.asarray(matrix, jnp.float32)
    return lambda v: jnp.dot(held, v, precision="highest")


def pairs_of(matrix, k, **options):
    return flatjax.eigsh(
        product(matrix), k, key=jax.random.key(0), structure=jnp.zeros(len(matrix)), **options
    )


@pytest.mark.parametrize(
    ("dtype", "options", "unit"),
    [
        ("bfloat16", {}, 2**-8),
        ("float16", {"which": "BE"}, 2**-11),
        (jnp.bfloat16, {"which": "SA", "max_basis": 16, "max_products": 80}, 2**-8),
    ],
)
def test_residuals_are_those_of_the_vectors(dtype, options, unit):
    matrix, k = dense(OUTLIERS), 4
    pairs = pairs_of(matrix, k, basis_dtype=dtype, **options)
    values, vectors = (np.asarray(a, np.float64) for a in (pairs.values, pairs.vectors))
    true = np.linalg.norm(vectors @ matrix - values[:, None] * vectors, axis=1)
    # Rounding of the products, in units of the norm.
    np.testing.assert_allclose(pairs.residual_norms, true, atol=1e-5)
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(k), atol=1e-5)
    # By Rayleigh's quotient the values are far better than a vector of 16 bits, which shows in the
    # residuals: an eigenvalue of each lies within.
    distance = np.abs(values[:, None] - OUTLIERS).min(axis=1)
    assert (distance <= true + 1e-5).all()
    if options.get("which") is None:
        assert distance.max() < 1e-5 < 0.01 * true.max()
    assert true.max() < 4 * unit * OUTLIERS.max() / 5
    converged = true <= np.maximum(1e-3 * np.abs(values), float(pairs.noise_floor))
    np.testing.assert_array_equal(pairs.converged, converged)
    assert pairs.complete is None
    assert pairs.num_products <= options.get("max_products", 200)
    assert float(pairs.noise_floor) < 2e-5  # that of float32 products, not of the roundings


def test_a_value_that_storage_blurs_does_not_count_as_converged():
    # The bulk lies at 1e-3 of the norm: vectors of 8 bits do not resolve it to 1e-3 of itself.
    values = np.concatenate([[1000.0], np.linspace(0.5, 1, N - 1)])
    pairs = pairs_of(dense(values), 2, basis_dtype="bfloat16", tol=1e-3, max_products=60)
    assert float(pairs.residual_norms[1]) > 1e-3
    assert pairs.converged.tolist() == [True, False]


def rows_after(steps):
    values = np.concatenate([[1000.0, 900], np.linspace(-0.1, 1, 998)])
    d = jnp.asarray(values, jnp.float32)
    v0, _ = trees.normalized(jax.random.normal(jax.random.key(1), (1000,)))
    op = as_operator(jax.tree_util.Partial(jnp.multiply, d), d)
    start = krylov.start(v0, steps, jax.random.key(0), "bfloat16")
    basis = krylov.run(op, start, steps).basis
    return np.asarray(bases.combine(basis, jnp.eye(steps)), np.float64)


def most_overlap(q):
    return np.abs(q @ q.T - np.diag(np.square(q).sum(axis=1))).max()


def test_one_pass_would_lose_orthogonality(monkeypatch):
    # Rows of 8 bits are orthonormal to 2**-8, and one pass leaves that much of what it removes.
    assert most_overlap(rows_after(80)) < 2**-7
    monkeypatch.setattr(krylov, "_DGKS", -1.0)
    jax.clear_caches()
    assert most_overlap(rows_after(80)) > 2**-4
    jax.clear_caches()


def test_what_is_multiplied_is_the_row_itself():
    state = krylov.start(jnp.ones(3) / 3**0.5, 2, jax.random.key(0), "bfloat16")
    for _ in range(2):
        row = bases.row(state.basis, state.step)
        if int(state.step) < 2:
            np.testing.assert_array_equal(state.vector, row)
        state = krylov._compiled_step(state, jnp.array([1.0, 2.0, 4.0]) * state.vector)


@pytest.mark.parametrize("shape", [(7,), (3, 5)])
@pytest.mark.parametrize(("block", "dtype"), [(4, "bfloat16"), (1 << 14, "float16")])
def test_the_algebra_of_rows_of_16_bits(monkeypatch, shape, block, dtype):
    monkeypatch.setattr(blocks, "BLOCK", block)
    monkeypatch.setattr(blocks, "MOST_BLOCKS", 10)
    rng = np.random.default_rng(0)
    rows = jnp.asarray(rng.standard_normal((4, *shape)), dtype)
    matrix = np.asarray(rows.astype(jnp.float32), np.float64).reshape(4, -1)
    basis = jnp.zeros(rows.shape, blocks.stored_in(dtype))
    for i in range(4):
        basis = bases.set_row(basis, i, rows[i].astype(jnp.float32))
        np.testing.assert_array_equal(bases.row(basis, i), rows[i].astype(jnp.float32))
    w, c = (rng.standard_normal(s).astype(np.float32) for s in (shape, (4, 2)))
    h, square = bases.coefficients(basis, jnp.asarray(w))
    np.testing.assert_allclose(h, matrix @ w.ravel(), atol=1e-5)
    np.testing.assert_allclose(square, w.ravel() @ w.ravel(), rtol=1e-5)
    one = bases.combine(basis, jnp.asarray(c[:, 0]))
    assert one.dtype == jnp.float32
    np.testing.assert_allclose(one.ravel(), c[:, 0] @ matrix, atol=1e-5)
    many = bases.combine(basis, jnp.asarray(c))
    np.testing.assert_allclose(many.reshape(2, -1), c.T @ matrix, atol=1e-5)
    block = jnp.asarray(rng.standard_normal((2, *shape)), jnp.float32)
    expected = matrix @ np.asarray(block).reshape(2, -1).T
    np.testing.assert_allclose(bases.gram(basis, block), expected, atol=1e-5)
    turned = rotations.rotated(basis, jnp.asarray(c), jnp.int32(1))
    assert turned.dtype == basis.dtype
    np.testing.assert_array_equal(bases.row(turned, 0), bases.row(basis, 0))
    rows = np.asarray(bases.combine(turned, jnp.eye(4))).reshape(4, -1)
    np.testing.assert_allclose(rows[1:3], c.T @ matrix, rtol=2**-8, atol=1e-5)
    assert not rows[3].any()


@pytest.mark.parametrize("dtype", ["int8", "float32", "float64", "float8_e4m3fn", "half a byte", 3])
def test_other_dtypes_are_refused(dtype):
    with pytest.raises(ValueError, match=r'"bfloat16", "float16" or None'):
        pairs_of(np.eye(3), 1, basis_dtype=dtype)


def test_what_needs_the_relation_is_refused():
    for options in ({"keep_state": True}, {"block_size": 2}):
        with pytest.raises(ValueError, match="leave block_size at 1 and resume and keep_state out"):
            pairs_of(np.eye(9), 1, basis_dtype="bfloat16", **options)
    with pytest.raises(ValueError, match="3 products and 3 for their certificate, 6 in all"):
        pairs_of(np.eye(9), 2, basis_dtype="bfloat16", max_products=5)
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda: pairs_of(np.eye(9), 1, basis_dtype="bfloat16"))()


@pytest.mark.parametrize(
    ("which", "dtype"), [("LA", None), ("SA", None), ("BE", "bfloat16"), ("LA", "bfloat16")]
)
def test_products_in_bfloat16_do_not_overclaim(which, dtype):
    # The operator is symmetric in truth, and its products are rounded on the way in and out.
    matrix = dense(np.concatenate([[10.0, 9, 7, 5, 4], np.linspace(-0.01, 0.1, N - 5)]))
    held = jnp.asarray(matrix, jnp.float32)

    def rounded(v):
        image = jnp.dot(held, v.astype(jnp.bfloat16).astype(jnp.float32), precision="highest")
        return image.astype(jnp.bfloat16).astype(jnp.float32)

    true = np.linalg.eigvalsh(matrix)
    wanted = true[::-1][
        {"LA": [0, 1, 2, 3, 4], "SA": [-5, -4, -3, -2, -1]}.get(which, [0, 1, 2, -2, -1])
    ]
    options = {"which": which, "basis_dtype": dtype, "max_products": 60, "structure": jnp.zeros(N)}
    for seed in range(3):
        pairs = flatjax.eigsh(rounded, 5, key=jax.random.key(seed), **options)
        values, vectors = (np.asarray(a, np.float64) for a in (pairs.values, pairs.vectors))
        floor, bounds = float(pairs.noise_floor), np.asarray(pairs.residual_norms, np.float64)
        # Of some roundings to half of 2**-8, and far above those of float32.
        assert 1e-4 < floor < 4 * 2**-8 * 10
        residuals = np.linalg.norm(vectors @ matrix - values[:, None] * vectors, axis=1)
        assert (residuals < 1.1 * bounds).all()
        assert (np.abs(values - wanted)[np.asarray(pairs.converged)] < floor).all()
        resolved = np.asarray(pairs.resolved)
        assert (np.sign(values) == np.sign(wanted))[resolved].all()


@pytest.mark.parametrize(("dtype", "unit"), [("bfloat16", 2**-9), ("float16", 2**-12)])
@pytest.mark.parametrize("name", ["pairs", "rank 3"])
def test_a_lanczos_run_of_16_bits(name, dtype, unit):
    p, steps = zoo(name), 24
    run = flatjax.lanczos(
        p.op, runs.start(p.structure), steps, basis_dtype=dtype, structure=p.structure
    )
    assert {a.dtype.name for a in jax.tree.leaves(run.basis)} == {dtype}
    q, t = runs.rows(run.basis), runs.tridiagonal(run)
    # A unit vector moves by a unit of rounding at most: its square by two, and an inner product
    # with an earlier one, to which it was orthogonal, by one.
    gram = q @ q.T - np.eye(steps)
    assert np.abs(np.diag(gram)).max() <= 2.1 * unit
    assert unit / 8 < np.abs(gram - np.diag(np.diag(gram))).max() <= 1.1 * unit
    # A column departs by the rounding of its next vector times beta <= |A|. Of what all columns do
    # to Ritz values a third of one was seen.
    last = float(run.betas[-1]) * runs.rows(jax.tree.map(lambda a: a[None], run.residual))[0]
    residual = q @ p.matrix() - t @ q
    residual[-1] -= last
    assert unit / 8 < np.linalg.norm(residual, axis=1).max() / p.norm <= unit
    ritz = np.linalg.eigvalsh(t)[::-1]
    np.testing.assert_allclose(ritz[0], p.spectrum[0], atol=unit * p.norm)
    np.testing.assert_allclose(ritz[-1], p.spectrum[-1], atol=unit * p.norm)
    if name == "rank 3":  # a double one and a single one, and no copy of either
        np.testing.assert_allclose(ritz[:4], p.spectrum[:4], atol=unit * p.norm)


def test_rows_come_back_in_the_memory_they_were_held_in(monkeypatch):
    numbers = np.array([[1.5, -2.0, 3.0], [0.25, 0, 7]], np.float32)  # of 8 bits
    bits = np.asarray(blocks.held(jnp.asarray(numbers), jnp.uint16))
    for device in (None, jax.devices()[1]):
        held = jax.device_put(bits, device)
        place = held.unsafe_buffer_pointer()
        rows = blocks.in_own_dtype(held)
        assert (rows.dtype, rows.unsafe_buffer_pointer()) == (jnp.bfloat16, place)
        assert (rows.devices(), rows.committed) == (held.devices(), device is not None)
        np.testing.assert_array_equal(rows.astype(jnp.float32), numbers)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    held = jnp.asarray(bits)
    np.testing.assert_array_equal(blocks.in_own_dtype(held).astype(jnp.float32), numbers)
    assert held.is_deleted()


def test_a_lanczos_run_of_16_bits_is_refused_where_it_cannot_be():
    v = jnp.arange(1.0, 10)

    def run(v0, **options):
        return flatjax.lanczos(lambda x: v * x, v0, 2, structure=v, **options)

    with pytest.raises(ValueError, match=r'"bfloat16", "float16" or None'):
        run(v, basis_dtype="float32")
    with pytest.raises(TypeError, match="call lanczos outside jit"):
        jax.jit(lambda: run(v, basis_dtype="bfloat16"))()
    short = run(v, basis_dtype="bfloat16")
    for earlier, options in (
        (short, {}),
        (short._asdict(), {}),
        (run(v, basis_dtype="float16"), {}),
        (run(v), {"basis_dtype": "float16"}),
    ):
        with pytest.raises(ValueError, match="from its beginning to its end: leave resume out"):
            run(None, resume=earlier, **options)
    mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put(jnp.ones(8), NamedSharding(mesh, PartitionSpec("model")))
    with pytest.raises(ValueError, match="sharded over several"):
        flatjax.lanczos(lambda x: x, sharded, 2, structure=sharded, basis_dtype="bfloat16")
