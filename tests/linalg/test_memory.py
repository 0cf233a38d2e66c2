"""Memory beside the basis, by the compiler's own analysis, and reductions by its program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import flatjax
from flatjax import _trees as trees
from flatjax.linalg import eigsh, lanczos
from flatjax.linalg.krylov import _relations as relations
from flatjax.linalg.krylov import _restarts as restarts
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.probing import _complement as complement
from flatjax.linalg.probing import _missing as missing
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _blocks as blocks
from flatjax.linalg.vectors import _budget as budget
from flatjax.linalg.vectors import _rotations as rotations
from flatjax.linalg.vectors import _span as spans
from flatjax.linalg.vectors._span import Span

M = 80
STRUCTURE = {
    "kernel": jnp.zeros((3, 3, 32, 32)),
    "dense": jnp.zeros((128, 64)),
    "bias": jnp.ones(64),
}
SIZE = 3 * 3 * 32 * 32 + 128 * 64 + 64


def state_of(structure, m):
    return krylov.start(structure, m, jax.random.key(0))


def vectors_beside(compiled):
    """What a program needs beside its arguments, in vectors: temporaries and unaliased outputs."""
    memory = compiled.memory_analysis()
    fresh = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return (memory.temp_size_in_bytes + fresh) / (4 * SIZE)


def test_a_step_needs_a_few_vectors_beside_the_basis():
    compiled = krylov._compiled_step.lower(state_of(STRUCTURE, M), STRUCTURE).compile()
    # A naive contraction makes XLA copy the basis: 80 vectors more.
    assert vectors_beside(compiled) <= 0.15 * M


@pytest.mark.parametrize("m", [16, M])
def test_a_traced_run_holds_its_basis_once(m):
    def run(v):
        return lanczos(lambda x: jax.tree.map(lambda a: 2 * a, x), v, m, structure=STRUCTURE).basis

    compiled = jax.jit(run).lower(STRUCTURE).compile()
    # The output is the basis; beside it some vectors, and at most 0.3 of the basis in all.
    assert vectors_beside(compiled) <= m + max(0.3 * m, 8)


LONG = 64 * blocks.BLOCK + 5


def shapes(*rows):
    return tuple(jax.ShapeDtypeStruct((m, LONG), jnp.float32) for m in rows)


def long_state(*rows):
    """The shapes of a run on one flat vector, its basis of one part or several."""
    state = jax.eval_shape(lambda: state_of(jnp.zeros(LONG), sum(rows)))
    return state if len(rows) == 1 else state._replace(basis=bases.Basis(shapes(*rows)))


@pytest.mark.parametrize("rows", [(48,), (16, 16, 32)])
def test_a_step_needs_two_vectors_beside_basis_vector_and_product(rows):
    # So a run holds four beside its basis.
    compiled = krylov._compiled_step.lower(long_state(*rows), shapes(1)[0].update(shape=(LONG,)))
    assert vectors_beside(compiled.compile()) * SIZE / LONG < 2.1


@pytest.mark.parametrize("rows", [(48,), (16, 32)])
def test_a_restart_is_in_place(rows):
    numbers = jnp.zeros((48, 12)), np.int32(3), np.int32(15), np.bool_(True)
    compiled = restarts._rotate.lower(long_state(*rows), *numbers).compile()
    # The row that the next vector takes the place of, a vector; and blocks.
    assert vectors_beside(compiled) * SIZE / LONG < 3


def test_combinations_of_parts_need_blocks_beside_themselves():
    basis, c = bases.Basis(shapes(16, 16, 32)), jnp.zeros((64, 10))
    combined = jax.jit(lambda basis, c: rotations.combine_in_parts(basis, c, (4, 6)))
    assert vectors_beside(combined.lower(basis, c).compile()) * SIZE / LONG < 10 + 3


def test_a_run_holds_a_vector_and_a_product_beside_its_basis(monkeypatch):
    n, held, step = 4099, [], krylov._compiled_step

    def counted(state, w):
        found = [a.size // n for a in jax.live_arrays() if a.ndim and a.shape[-1] == n]
        held.append(sum(found))
        return step(state, w)

    def unpacked(op, vectors):
        held.append(sum(a.size // n for a in jax.live_arrays() if a.ndim and a.shape[-1] == n))
        return vectors

    monkeypatch.setattr(krylov, "_compiled_step", counted)
    monkeypatch.setattr("flatjax.linalg._eigsh.flat.unpack", unpacked)
    like = jax.ShapeDtypeStruct((n,), jnp.float32)

    def run(**options):
        held.clear()
        op = jax.tree_util.Partial(lambda v: jnp.linspace(0.0, 1.0, n) * v)
        given = {"key": jax.random.key(0), "max_basis": 8, "structure": like, "max_products": 30}
        return eigsh(op, 2, **given | options)

    run()
    assert len(held) > 20
    assert max(held[1:]) == 8 + 2
    assert held[-1] == 2  # the pairs alone, when they are made into the caller's trees
    # Of long vectors there are as many rows as it needs, but for what is kept, or half as dear.
    monkeypatch.setattr(krylov, "_DEAR", n - 1)
    monkeypatch.setattr(krylov, "_FEW", 4)
    run()
    assert [max(held[1:4]), max(held[1:])] == [4 + 2, 8 + 2]
    assert jax.tree.leaves(run(keep_state=True).state.run.basis)[0].shape == (8, n)
    run(basis_dtype="bfloat16")
    assert max(held[1:4]) == 8 + 2
    monkeypatch.setattr(krylov, "_DEAR", n)
    run()
    assert max(held[1:4]) == 8 + 2


def test_a_random_vector_is_injected_in_place():
    # Its other program is that of a step, which is above.
    state = state_of(STRUCTURE, M)
    arguments = state.basis, state.vector, state.betas, np.int32(3)
    compiled = krylov._before_injection.lower(*arguments).compile()
    assert vectors_beside(compiled) <= 0.15 * M


def test_growing_holds_no_second_copy():
    state = state_of(STRUCTURE, 32)._replace(step=jnp.int32(32))
    grown = krylov.with_room(state, M)
    assert bases.size(grown.basis) == 64
    old = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(state.basis)]
    kept = jax.tree.leaves(grown.basis.parts[0])
    assert [leaf.unsafe_buffer_pointer() for leaf in kept] == old
    compiled = krylov._compiled_step.lower(grown, STRUCTURE).compile()
    assert vectors_beside(compiled) <= 0.15 * M


def test_the_basis_is_sharded_as_the_params_and_a_pass_is_one_reduction():
    mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec(None, "model"))
    one = NamedSharding(mesh, PartitionSpec())
    v = {
        "dense": jax.device_put(jnp.ones((8, 64)), sharding),
        "other": jax.device_put(jnp.ones((16, 64)), sharding),
        "bias": jax.device_put(jnp.ones(7), one),
    }
    state = krylov.start(trees.normalized(v)[0], 16, jax.random.key(0))
    assert state.basis["dense"].sharding.spec == PartitionSpec(None, None, "model")
    text = jax.jit(bases.project_out).lower(state.basis, v).compile().as_text()
    lines = [line.split("metadata")[0] for line in text.splitlines()]
    started = [line for line in lines if " all-reduce(" in line or " all-reduce-start(" in line]
    assert len(started) == 1
    assert not any(" all-gather(" in line or " all-to-all(" in line for line in lines)


def test_a_basis_of_half_the_bytes_is_never_there_in_float32():
    state = jax.eval_shape(lambda: krylov.start(jnp.zeros(LONG), 48, jax.random.key(0), "bfloat16"))
    assert state.basis.dtype.itemsize == 2
    compiled = krylov._compiled_step.lower(state, shapes(1)[0].update(shape=(LONG,))).compile()
    assert vectors_beside(compiled) * SIZE / LONG < 2 + 2
    numbers = jnp.zeros((48, 12)), np.int32(3), np.int32(15), np.bool_(True)
    compiled = restarts._rotate.lower(state, *numbers).compile()
    assert vectors_beside(compiled) * SIZE / LONG < 4


PARTS = bases.Basis(shapes(16, 16, 32))
NUMBER = jax.ShapeDtypeStruct((), jnp.float32)
ROW, TWO = (shapes(*rows)[0] for rows in ((1,), (2,)))
ONE = jax.ShapeDtypeStruct((LONG,), jnp.float32)
SPAN = Span(PARTS, jnp.zeros((64, 16)))
RELATION = relations.Relation(PARTS, jnp.zeros(64), jnp.zeros(64), ONE, np.int32(64))


@pytest.mark.parametrize(
    ("program", "arguments", "most"),
    [
        # Sums and differences of vectors; what is asked for, an output, is counted.
        (spans.project, (SPAN, ONE), 2),
        (complement._moved, (SPAN, NUMBER, ONE, ONE), 3),
        (complement.moments, (RELATION, ROW, ROW), 5),
        (missing.outside, (RELATION, TWO, TWO), 6),
        (missing._residual, (RELATION, missing.Candidates(*shapes(8, 8)), NUMBER, jnp.zeros(8)), 2),
    ],
    ids=["project", "moved", "moments", "outside", "residual"],
)
def test_a_probe_needs_a_few_vectors_beside_the_basis(program, arguments, most):
    compiled = program.lower(*arguments).compile()
    assert vectors_beside(compiled) * SIZE / LONG < most + 0.5


def test_candidates_are_rotated_in_place():
    found = missing.Candidates(*shapes(8, 8))
    compiled = missing._transformed.lower(found, jnp.zeros((8, 8)), whole=False).compile()
    assert vectors_beside(compiled) * SIZE / LONG < 1


@pytest.mark.parametrize(
    "options", [{}, {"num_bottom": 0, "k": 6}, {"diagonal": True, "by": "leaf"}]
)
def test_a_lean_spectrum_holds_no_more_than_it_says(monkeypatch, options):
    n, held = 4099, []
    d = jnp.concatenate([jnp.array([9.0, 7.0, 5.0]), jnp.linspace(-1.0, 1.0, n - 3)])

    def count():
        return sum(a.size // n for a in jax.live_arrays() if a.ndim and a.shape[-1] == n)

    before, step, outside = count(), krylov._compiled_step, missing.outside

    def noted(name, program):
        def run(*args):
            held.append((name, count() - before))
            return program(*args)

        return run

    asked = {"k": 3, "num_bottom": 1, "num_probes": 3, "probe_steps": 12, "tol": 1e-6} | options
    needs = {"step": 2, "outside": 6 if asked["num_bottom"] else 3}
    monkeypatch.setattr(krylov, "_compiled_step", noted("step", step))
    monkeypatch.setattr(missing, "outside", noted("outside", outside))
    beside = budget.beside_spectrum(asked["k"], asked["num_bottom"], 3, 12, "by" in options)
    room = (20 + beside) * 4 * n
    found = flatjax.spectrum(
        lambda v: d * v, key=jax.random.key(0), structure=d, basis_bytes=room, **asked
    )
    assert int(found.state.run.step) == 20
    # And what a program needs beside what it is given, by the compiler's account above.
    most = max(count + needs[name] for name, count in held)
    assert 20 + beside - 5 <= most <= 20 + beside
