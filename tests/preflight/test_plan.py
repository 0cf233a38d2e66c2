"""The memory planner: its numbers are the compiler's, and its proposals fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax.linalg.vectors import _flat as flat
from flatjax.operators import _chunks as chunks
from flatjax.operators import over_batches
from flatjax.operators._chunks import Chunked, chunked
from flatjax.operators._data import Linearized
from flatjax.operators._precondition import preconditioned
from flatjax.preflight import _plan as planning
from flatjax.preflight._plan import plan
from tests.compilations import count_compilations

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
def sizes():
    """A product, the residuals that linearisation keeps, and a product beside them, in bytes."""
    product = used(lambda op, v: op.mv(v), HESSIAN, PARAMS)
    made = jax.jit(lambda op: op.linearize()).lower(HESSIAN).compile().memory_analysis()
    linear = used(lambda op, v: op.mv(v), HESSIAN.linearize(), PARAMS)
    return product, made.output_size_in_bytes, linear


def test_an_ample_budget_keeps_the_residuals(sizes):
    ample = plan(HESSIAN, budget_bytes=10**9, max_probes=4)
    assert ample.linearize
    assert ample.fits
    assert ample.chunk_size is None
    assert ample.probe_block == 4
    assert ample.budget_bytes == 10**9
    assert ample.peak_bytes > sizes[1] + sizes[2]
    assert isinstance(ample.prepare(HESSIAN), Linearized)


def test_without_room_for_the_residuals_they_are_recomputed(sizes):
    product, residuals, linear = sizes
    # The residuals alone are almost as large as a product, so this fits one and not the other.
    budget = max(product, residuals) + 1024
    assert budget < residuals + linear
    tight = plan(HESSIAN, budget_bytes=budget, max_probes=1)
    assert tight[:5] == (False, None, 1, True, product)
    assert tight.prepare(HESSIAN) is HESSIAN


def test_a_small_budget_chunks_and_the_chunk_fits(sizes):
    budget = sizes[0] // 4
    small = plan(HESSIAN, budget_bytes=budget, max_probes=1)
    assert small.fits
    assert not small.linearize
    # Not needlessly small either: memory is about affine in the size of a chunk.
    assert N // 16 <= small.chunk_size <= N // 4
    part = HESSIAN.for_chunks(small.chunk_size)
    one = lambda op, v: chunks.local_sum(op, 0, v, small.chunk_size)  # noqa: E731
    assert used(one, part, PARAMS) == small.peak_bytes <= budget
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


def test_the_block_of_vectors_fits_and_one_more_would_not(sizes):
    _, residuals, linear = sizes
    budget = residuals + 8 * linear
    some = plan(HESSIAN, budget_bytes=float(budget))  # 2e9 and the like are floats
    assert some.linearize
    assert some.fits
    assert 1 < some.probe_block < 64

    def need(count):
        vs = jax.tree.map(lambda a: jnp.stack([a] * count), PARAMS)
        return used(lambda op, vs: jax.vmap(op.mv)(vs), HESSIAN.linearize(), vs)

    assert residuals + need(some.probe_block) == some.peak_bytes <= budget
    assert residuals + need(2 * some.probe_block) > budget


def test_vectors_are_reserved(sizes):
    budget = sizes[1] + sizes[2] + 10 * VECTOR
    assert plan(HESSIAN, budget_bytes=budget, max_probes=1).linearize
    with_basis = plan(HESSIAN, budget_bytes=budget, max_probes=1, reserve_vectors=40)
    assert not with_basis.linearize
    assert with_basis.budget_bytes == budget


def test_shapes_are_enough(sizes):
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), HESSIAN)
    assert plan(abstract, budget_bytes=sizes[0] + 1024, max_probes=1).peak_bytes == sizes[0]


def test_other_operators():
    identity = plan(
        flatjax.operators.as_operator(lambda v: v, structure=PARAMS), budget_bytes=10**6
    )
    assert not identity.linearize
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


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="budget_bytes must be above 0"):
        plan(HESSIAN, budget_bytes=0)
    with pytest.raises(ValueError, match="max_probes must be at least 1"):
        plan(HESSIAN, max_probes=0)
    stream = over_batches(lambda x: flatjax.hessian(loss_fn, PARAMS, x), [X])
    with pytest.raises(TypeError, match="plan the operator of one of its batches"):
        plan(stream)


@pytest.fixture
def clock(monkeypatch):
    """A clock that a call of moves on; products take a second by it, and what comes before ten."""
    now = [0.0]

    def tick(seconds):
        now[0] += seconds

    real = planning.loops.product

    def product(op):
        tick(9.0)  # the compilation

        def timed(v):
            tick(1.0)
            return real(op)(v)

        return timed

    monkeypatch.setattr(planning, "perf_counter", lambda: now[0])
    monkeypatch.setattr(planning.loops, "product", product)
    return tick


def test_seconds_of_a_product_apart_from_those_before(clock):
    timed = plan(HESSIAN, budget_bytes=10**9, max_probes=1, time=True)
    assert (timed.product_seconds, timed.compile_seconds) == (1.0, 9.0)
    assert timed.calls["trace(op)"].seconds == 40.0
    assert timed.calls["spectral_density(op)"].max_seconds == 240.0
    told = str(timed)
    assert "a product takes 1 s, before the first one 9 s" in told
    eigsh = "eigsh(op, 1)          usually 12 products, at most 321   12 s, at most 5.3 min"
    assert eigsh in told.splitlines()
    assert "trace(op)             40 products                        40 s" in told.splitlines()


def test_short_products_are_timed_several_times(clock, monkeypatch):
    spent = []

    def product(op):
        def short(v):
            spent.append(0.01 if spent else 5.0)
            clock(spent[-1])
            return v

        return short

    monkeypatch.setattr(planning.loops, "product", product)
    timed = plan(HESSIAN, budget_bytes=10**9, max_probes=1, time=True)
    assert len(spent) == 1 + 5
    np.testing.assert_allclose((timed.product_seconds, timed.compile_seconds), (0.01, 4.99))


def test_nothing_is_run_unless_asked(monkeypatch):
    monkeypatch.setattr(planning, "_timed", None)
    found = plan(HESSIAN, budget_bytes=10**9, max_probes=1)
    assert found.product_seconds is found.compile_seconds is None
    assert found.calls["trace(op)"].num_products == 40
    lines = str(found).splitlines()
    assert lines[0].startswith("residuals kept (linearize); one vector at once; ")
    assert lines[0].endswith(" of 1,000,000,000 bytes")
    assert "trace(op)             40 products" in lines
    assert len(lines) == 1 + len(found.calls)


def test_the_timed_program_is_the_one_that_calls_use():
    op = flatjax.hessian(loss_fn, PARAMS, X[: N - 3])
    proposal = plan(op, budget_bytes=10**9, max_probes=1, time=True)
    ready = flat.packed(proposal.prepare(op))
    v = trees.zeros(ready.structure)
    jax.block_until_ready(v)
    with count_compilations() as count:
        loops.product(ready)(v)
    assert count.value == 0


def test_what_cannot_be_timed_is_refused():
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), HESSIAN)
    with pytest.raises(TypeError, match="there must be arrays, not their shapes"):
        plan(shapes, budget_bytes=10**9, max_probes=1, time=True)
    with pytest.raises(TypeError, match="call plan outside jit"):
        jax.jit(lambda: plan(HESSIAN, budget_bytes=10**9, max_probes=1, time=True))()


def test_what_a_product_leaves_for_a_basis(sizes):
    product, residuals, linear = sizes
    ample = plan(HESSIAN, budget_bytes=10**7, max_probes=1)
    assert ample.basis_bytes == 10**7 - residuals - linear
    assert ample.max_basis == min(HESSIAN.size, ample.basis_bytes // VECTOR - 4)
    reserved = plan(HESSIAN, budget_bytes=10**7, max_probes=1, reserve_vectors=3)
    assert reserved.basis_bytes == ample.basis_bytes - 3 * VECTOR
    none = plan(HESSIAN, budget_bytes=product // 100, max_probes=1)
    assert (none.basis_bytes, none.max_basis) == (0, 0)
