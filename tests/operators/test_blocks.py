"""Blocks of operators: one layer, groups of params, all layers at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from flatjax import _loops as loops
from flatjax.operators import gradient_covariance, over_batches
from flatjax.operators._blocks import block_diagonal, blocks, restrict
from flatjax.operators._precondition import preconditioned
from flatjax.operators._selection import embed, select
from tests.models import CONTAINERS, NETWORKS
from tests.operators import references

KINDS = ["hessian", "ggn", "fisher_sampled", "covariance"]
# The MLP's leaves in order: hidden/bias (4), hidden/kernel (12), out/bias (3), out/kernel (12).
HIDDEN, OUT = slice(0, 16), slice(16, 31)


def operator(kind, **options):
    network = NETWORKS["mlp"]
    return references.make(kind, network.apply, *network.cast(jnp.float32), **options)


@pytest.fixture(scope="module")
def dense():
    return {kind: np.asarray(operator(kind).to_dense()) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_the_block_of_the_dense_matrix(kind, dense):
    part = restrict(operator(kind), "out")
    assert part.size == 15
    references.assert_close(part.to_dense(), dense[kind][OUT, OUT], references.FLOAT32)


@pytest.mark.parametrize(
    ("where", "size"),
    [
        ("hidden/kernel", 12),
        (["hidden/bias", "out"], 19),
        (lambda path, leaf: path.endswith("bias"), 7),
        (lambda path, leaf: leaf.ndim == 2, 24),
        ({"hidden": True, "out": {"bias": True, "kernel": False}}, 19),
    ],
)
def test_every_kind_of_where(where, size, dense):
    part = restrict(operator("covariance"), where)
    assert part.size == size
    kept = np.asarray(ravel_pytree(embed(ones(part), operator("ggn").structure))[0])
    index = np.flatnonzero(kept)
    expected = dense["covariance"][np.ix_(index, index)]
    references.assert_close(part.to_dense(), expected, references.FLOAT32)


def ones(op):
    return jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), op.structure)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda op: op.linearize(),
        lambda op: 2.0 * op + op,
        lambda op: preconditioned(op, jax.tree.map(lambda a: 2 * a, ones(op))),
        lambda op: block_diagonal(op, "layer"),
    ],
    ids=["linearised", "algebra", "preconditioned", "block-diagonal"],
)
def test_blocks_of_composed_operators(wrap):
    whole = wrap(operator("hessian"))
    expected = np.asarray(whole.to_dense())[OUT, OUT]
    references.assert_close(restrict(whole, "out").to_dense(), expected, references.FLOAT32)


def test_blocks_of_a_stream_are_centred_over_all_batches(dense):
    network = NETWORKS["mlp"]
    params, (x, y) = network.cast(jnp.float32)
    loss = references.losses_fn(network.apply)
    batches = [(x[:5], y[:5]), (x[5:], y[5:])]
    stream = over_batches(lambda batch: gradient_covariance(loss, params, batch), batches)
    blocks = [dense["covariance"][part, part] for part in (HIDDEN, OUT)]
    references.assert_close(restrict(stream, "out").to_dense(), blocks[1], references.FLOAT32)
    v = jax.tree.map(lambda a: jnp.arange(a.size, dtype=a.dtype).reshape(a.shape), params)
    flat = np.asarray(ravel_pytree(v)[0])
    expected = np.concatenate([blocks[0] @ flat[HIDDEN], blocks[1] @ flat[OUT]])
    product = ravel_pytree(block_diagonal(stream) @ v)[0]
    references.assert_close(product, expected, references.FLOAT32)


def test_blocks_are_named_by_layer():
    parts = blocks(operator("hessian"))
    assert {name: part.size for name, part in parts.items()} == {"hidden": 16, "out": 15}
    leaves = blocks(operator("hessian"), by="leaf")
    assert list(leaves) == ["hidden/bias", "hidden/kernel", "out/bias", "out/kernel"]
    kinds = blocks(operator("hessian"), by=lambda path: path.rpartition("/")[2])
    assert {name: part.size for name, part in kinds.items()} == {"bias": 7, "kernel": 24}


LAYERS = {
    "list": ["0", "1"],
    "named_tuple": ["hidden", "out"],
    "linen": ["params/hidden", "params/out"],
    "nnx": ["hidden", "out"],
    "equinox": ["hidden", "out"],
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_container_of_params(name, standard_promotion):
    params, batch = NETWORKS["mlp"].cast(jnp.float32)
    held, apply = CONTAINERS[name](params)
    parts = blocks(references.make("covariance", apply, held, batch))
    assert list(parts) == LAYERS[name]
    assert [part.size for part in parts.values()] == [16, 15]
    last = parts[LAYERS[name][1]]
    v = jax.tree.map(lambda a: jnp.ones(a.shape, a.dtype), last.structure)
    expected = references.dense("covariance", references.reference("mlp"))[OUT, OUT].sum()
    # The sum of all entries: the same whatever the order of the leaves.
    total = sum(float(leaf.sum()) for leaf in jax.tree.leaves(last @ v))
    assert total == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("kind", "block_size"), [("hessian", 1), ("covariance", 3), ("hessian", 8)]
)
def test_block_diagonal(kind, block_size, dense):
    diagonal = block_diagonal(operator(kind), "leaf", block_size=block_size)
    expected = np.zeros((31, 31))
    for block in [slice(0, 4), slice(4, 16), slice(16, 19), slice(19, 31)]:
        expected[block, block] = dense[kind][block, block]
    references.assert_close(diagonal.to_dense(), expected, references.FLOAT32)


def test_a_block_is_cheaper_than_the_whole():
    """The passes leave out the other layers: fewer flops than a product with zeros embedded."""

    def flops(op):
        return (
            jax.jit(lambda op, v: op.mv(v)).lower(op, ones(op)).compile().cost_analysis()["flops"]
        )

    whole = operator("hessian")
    assert flops(restrict(whole, "out")) < 0.7 * flops(whole)


def test_equal_blocks_share_one_program():
    v = ones(restrict(operator("hessian"), "out"))
    restrict(operator("hessian"), "out") @ v
    before = loops._product._cache_size()
    restrict(operator("hessian"), "out") @ v
    assert loops._product._cache_size() == before


def test_select_and_embed_are_inverse():
    tree = {"a": jnp.ones(2), "b": [jnp.ones(1), jnp.ones((2, 2))]}
    part = select(tree, "b/1")
    assert part["a"] is None
    assert part["b"][0] is None
    back = embed(part, tree)
    assert float(sum(leaf.sum() for leaf in jax.tree.leaves(back))) == 4.0
    assert jax.tree.structure(back) == jax.tree.structure(tree)


@pytest.mark.parametrize(
    ("where", "error", "message"),
    [
        ("nowhere", ValueError, "chooses nothing; the paths are hidden/bias"),
        ("hid", ValueError, "chooses nothing"),  # no prefix of a component
        (lambda path, leaf: False, ValueError, "chooses nothing"),
        (3, TypeError, "where must be a path"),
        ({"hidden": True}, ValueError, "must be a prefix of the params"),
    ],
)
def test_a_bad_where_is_refused(where, error, message):
    with pytest.raises(error, match=message):
        restrict(operator("hessian"), where)


def test_other_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="op must be an operator"):
        restrict(lambda v: v, "out")
    with pytest.raises(TypeError, match="op must be an operator"):
        blocks(lambda v: v)
    with pytest.raises(ValueError, match='by must be "layer"'):
        blocks(operator("hessian"), by="module")
    with pytest.raises(ValueError, match="block_size must be at least 1"):
        block_diagonal(operator("hessian"), block_size=0)
