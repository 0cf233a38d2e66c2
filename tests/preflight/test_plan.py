"""The memory planner: its numbers are the compiler's, and its proposals fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax.operators import _chunks as chunks
from flatjax.operators import over_batches
from flatjax.operators._chunks import Chunked, chunked
from flatjax.operators._data import Linearized
from flatjax.operators._precondition import preconditioned
from flatjax.preflight._plan import free_bytes, plan

N, WIDTH = 256, 32
PARAMS = {"a": jnp.full((WIDTH, WIDTH), 0.1), "b": jnp.full((WIDTH, 1), 0.1)}
X = jnp.ones((N, WIDTH))


def model(params, x):
    return jnp.tanh(jnp.tanh(x @ params["a"]) @ params["a"]) @ params["b"]


def loss_fn(params, x):
    return jnp.square(model(params, x)).sum(axis=1)


HESSIAN = flatjax.hessian(loss_fn, PARAMS, X)
VECTOR = 4 * (WIDTH * WIDTH + WIDTH)


def used(fn, *args):
    memory = jax.jit(fn).lower(*args).compile().memory_analysis()
    return memory.temp_size_in_bytes + memory.output_size_in_bytes


@pytest.fixture(scope="module")
def ample():
    return plan(HESSIAN, budget_bytes=10**9, max_probes=4)


def test_the_numbers_are_the_compilers(ample):
    assert ample.product_bytes == used(lambda op, v: op.mv(v), HESSIAN, PARAMS)
    linear = HESSIAN.linearize()
    assert ample.linear_product_bytes == used(lambda op, v: op.mv(v), linear, PARAMS)
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(linear))
    # Scalars and small leaves are padded by the compiler.
    assert ample.residual_bytes == pytest.approx(kept, abs=1024)
    assert ample.vector_bytes == VECTOR
    assert ample.resident_bytes == VECTOR + X.nbytes


def test_an_ample_budget_keeps_the_residuals(ample):
    assert ample.linearize
    assert ample.fits
    assert ample.chunk_size is None
    assert ample.probe_block == 4
    assert isinstance(ample.prepare(HESSIAN), Linearized)


def test_without_room_for_the_residuals_they_are_recomputed(ample):
    # The residuals alone are almost as large as a product, so this fits one and not the other.
    budget = max(ample.product_bytes, ample.residual_bytes) + 1024
    assert budget < ample.residual_bytes + ample.linear_product_bytes
    tight = plan(HESSIAN, budget_bytes=budget, max_probes=1)
    assert not tight.linearize
    assert tight.chunk_size is None
    assert tight.fits
    assert tight.prepare(HESSIAN) is HESSIAN


def test_a_small_budget_chunks_and_the_chunk_fits(ample):
    budget = ample.product_bytes // 4
    small = plan(HESSIAN, budget_bytes=budget, max_probes=1)
    assert small.fits
    assert not small.linearize
    # Not needlessly small either: memory is about affine in the size of a chunk.
    assert N // 16 <= small.chunk_size <= N // 4
    memory = chunks.local_sum.lower(
        HESSIAN.for_chunks(small.chunk_size), 0, PARAMS, size=small.chunk_size
    ).compile().memory_analysis()  # fmt: skip
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes <= budget
    assert small.chunk_bytes <= budget
    prepared = small.prepare(HESSIAN)
    assert isinstance(prepared, Chunked)
    expected = HESSIAN @ PARAMS
    # Sums of 256 float32 terms in another order.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), prepared @ PARAMS, expected
    )


def test_nothing_fits():
    nothing = plan(HESSIAN, budget_bytes=100)
    assert not nothing.fits
    assert nothing.chunk_size == 1
    assert nothing.probe_block == 1
    assert nothing.peak_bytes > 100


def test_the_block_of_vectors_fits_and_one_more_would_not(ample):
    budget = ample.residual_bytes + 8 * ample.linear_product_bytes
    some = plan(HESSIAN, budget_bytes=budget)
    assert some.linearize
    assert some.fits
    assert 1 < some.probe_block < 64
    linear = HESSIAN.linearize()

    def block(op, vs):
        return jax.vmap(op.mv)(vs)

    def need(count):
        vs = jax.tree.map(lambda a: jnp.stack([a] * count), PARAMS)
        return used(block, linear, vs)

    assert some.residual_bytes + need(some.probe_block) == some.peak_bytes <= budget
    assert some.residual_bytes + need(2 * some.probe_block) > budget


def test_vectors_are_reserved(ample):
    budget = ample.residual_bytes + ample.linear_product_bytes + 10 * VECTOR
    assert plan(HESSIAN, budget_bytes=budget, max_probes=1).linearize
    with_basis = plan(HESSIAN, budget_bytes=budget, max_probes=1, reserve_vectors=40)
    assert with_basis.reserve_bytes == 40 * VECTOR
    assert not with_basis.linearize


def test_shapes_are_enough():
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), HESSIAN)
    shapes = plan(abstract, budget_bytes=10**9, max_probes=1)
    assert shapes.product_bytes == plan(HESSIAN, budget_bytes=10**9, max_probes=1).product_bytes


def test_other_operators():
    identity = plan(
        flatjax.operators.as_operator(lambda v: v, structure=PARAMS), budget_bytes=10**6
    )
    assert identity.residual_bytes is None
    assert identity.fits
    ones = jax.tree.map(jnp.ones_like, PARAMS)
    composed = plan(preconditioned(HESSIAN, ones), budget_bytes=10**9, max_probes=1)
    assert composed.linearize
    cut = plan(preconditioned(HESSIAN, ones), budget_bytes=100, max_probes=1)
    assert cut.chunk_size is None  # algebra cannot be chunked, and it says that it does not fit
    assert not cut.fits
    mean = flatjax.hessian(lambda p, x: jnp.mean(loss_fn(p, x)), PARAMS, X[:96])
    divisor = plan(mean, budget_bytes=40_000, max_probes=1).chunk_size
    assert 96 % divisor == 0
    again = plan(chunked(HESSIAN, 4), budget_bytes=10**9, max_probes=1)
    assert again.linearize


def test_the_default_budget_is_what_is_free():
    assert plan(HESSIAN, max_probes=1).budget_bytes > 10**6
    assert free_bytes() > 10**6


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="budget_bytes must be above 0"):
        plan(HESSIAN, budget_bytes=0)
    with pytest.raises(ValueError, match="max_probes must be at least 1"):
        plan(HESSIAN, max_probes=0)
    stream = over_batches(lambda x: flatjax.hessian(loss_fn, PARAMS, x), [X])
    with pytest.raises(TypeError, match="plan the operator of one of its batches"):
        plan(stream)
