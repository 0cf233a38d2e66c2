"""What the compiled programs move between devices, and what they hold on each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from benchmarks import scaling
from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax import parallel
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _probes as probes
from tests.parallel.hlo import collectives, memory
from tests.parallel.problems import loss_fn, mlp, model_fn, vector

P = jax.P
OPERATORS = {
    "hessian": lambda *a, **k: flatjax.hessian(loss_fn, *a, **k),
    "ggn": lambda *a, **k: flatjax.ggn(model_fn, flatjax.softmax_cross_entropy, *a, **k),
    "covariance": lambda *a, **k: flatjax.gradient_covariance(loss_fn, *a, **k),
}


def product(op, v):
    return op.mv(v)


def check_product(name, compiled, params, halves=1):
    """One all-reduce of P numbers; centring needs the mean slope first, two numbers more."""
    found = collectives(compiled)
    assert {c.kind for c in found} == {"all-reduce"}
    *before, last = sorted(found, key=lambda c: c.numbers)
    size = trees.size(params)
    assert size <= last.numbers <= halves * size + 1  # the total weight goes with it
    assert [c.numbers for c in before] == ([2] if name == "covariance" else [])


@pytest.mark.parametrize("name", OPERATORS)
def test_a_product_is_one_all_reduce_of_P_numbers(name):
    mesh = parallel.make_mesh(4)
    params, batch = mlp(jnp.float32)
    batch, weights = parallel.shard_batch(batch, mesh)
    params, v = parallel.replicate((params, vector(params)), mesh)
    op = OPERATORS[name](params, batch, weights=weights)
    # The derivative of a layer's gradient is a sum of two products. XLA adds them before it reduces
    # on GPUs and TPUs (its pass AllReduceReassociate), on CPUs after.
    halves = 2 if name == "hessian" else 1
    check_product(name, jax.jit(product).lower(op, v).compile(), params, halves)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("name", OPERATORS)
def test_so_it_is_inside_shard_map(name, check_vma):
    mesh = parallel.make_mesh(4)
    params, batch = mlp(jnp.float32)
    placed = parallel.shard_batch(batch, mesh)
    params, v = parallel.replicate((params, vector(params)), mesh)

    def local(params, batch, weights, v):
        return OPERATORS[name](params, batch, weights=weights, axis_name="data").mv(v)

    specs = (P(), P("data"), P("data"), P())
    mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=check_vma)
    check_product(name, jax.jit(mapped).lower(params, *placed, v).compile(), params)


# Fully sharded params: three square layers of WIDTH and a head, no array alone above a third.

WIDTH, LAYERS, BATCH = 128, 3, 1024


def deep_loss(params, batch):
    x, targets = batch
    for kernel in params["layers"]:
        x = jnp.tanh(x @ kernel)
    return flatjax.softmax_cross_entropy(x @ params["head"], targets)


def deep(devices):
    """The Hessian of a deep net over so many devices, everything sharded, and a vector."""
    mesh = parallel.make_mesh(devices)
    rng = np.random.default_rng(0)
    normal = lambda *shape: (rng.normal(size=shape) / np.sqrt(shape[0])).astype(np.float32)  # noqa: E731
    params = {"layers": [normal(WIDTH, WIDTH) for _ in range(LAYERS)], "head": normal(WIDTH, 8)}
    batch = (normal(BATCH, WIDTH), rng.integers(0, 8, BATCH))
    batch, weights = parallel.shard_batch(batch, mesh)
    params, v = parallel.shard_params((params, vector(params)), mesh)
    return flatjax.hessian(deep_loss, params, batch, weights=weights), v


def product_program(op, v):
    return loops._product.lower(op, v, loops._shardings(v), type(op)).compile()


def spec_of(tree):
    return jax.tree.map(lambda a: a.sharding.spec, tree)


def test_a_product_of_sharded_params_gathers_one_layer_at_a_time():
    op, v = deep(4)
    compiled = product_program(op, v)
    gathered = [c.numbers for c in collectives(compiled) if c.kind == "all-gather"]
    # Of the layer, of its tangent, or of both at once; never all layers together.
    assert 0 < max(gathered) <= 2 * WIDTH * WIDTH < trees.size(op.structure)
    # All in all what the cost model of the documentation has.
    assert sum(gathered) <= scaling.GATHERS * trees.size(op.structure)
    assert spec_of(loops.product(op)(v)) == spec_of(v)


def test_vectors_of_sharded_params_are_sharded():
    op, v = deep(4)
    assert spec_of(trees.zeros(op.structure)) == spec_of(v)
    assert spec_of(probes.probe(jax.random.key(0), op.structure)) == spec_of(v)
    run = flatjax.linalg.lanczos(op, v, 2)
    assert spec_of(run.residual) == spec_of(v)
    assert spec_of(run.basis) == jax.tree.map(
        lambda a: P(None, *a.sharding.spec), v, is_leaf=lambda a: isinstance(a, jax.Array)
    )


def orthogonalisation(devices, steps=12):
    _, v = deep(devices)
    state = krylov.start(v, steps, jax.random.key(0))
    return krylov._compiled_step.lower(state, v).compile()


def test_a_lanczos_step_moves_scalars_and_one_row_of_coefficients():
    """Two norms and a diagonal before, one row a pass of Gram-Schmidt: never a vector."""
    found = collectives(orthogonalisation(4))
    assert {c.kind for c in found} == {"all-reduce"}
    leaves, steps = LAYERS + 1, 12
    rows = [c.numbers for c in found if c.numbers > leaves]
    assert len(rows) == 1
    # Each leaf's part, added up after the reduction; the next vector's row and norm among them.
    assert rows[0] <= leaves * (steps + 2)


def test_a_pass_of_gram_schmidt_is_one_all_reduce():
    _, v = deep(4)
    basis = jax.tree.map(lambda a: jnp.stack([a, 2 * a, 3 * a]), v)
    found = collectives(jax.jit(bases.project_out).lower(basis, v).compile())
    assert [c.kind for c in found] == ["all-reduce"]


def test_a_probe_is_drawn_without_communication():
    op, _ = deep(4)
    draw = jax.jit(lambda key: probes.probe(key, op.structure))
    assert collectives(draw.lower(jax.random.key(0)).compile()) == []


@pytest.mark.parametrize(
    "program",
    [orthogonalisation, lambda n: product_program(*deep(n))],
    ids=["orthogonalisation", "product"],
)
def test_memory_falls_with_the_number_of_devices(program):
    """To within a quarter of ideal: a gathered layer and the scalars stay whole."""
    one, two, four = (memory(program(n)) for n in (1, 2, 4))
    assert two <= 1.25 * one / 2
    assert four <= 1.25 * one / 4 + 3 * 4 * WIDTH * WIDTH
