"""Chunks of a batch: the same answer in the memory of one chunk, with one program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import flatjax
from flatjax import loops
from flatjax.operators import _chunks as chunks
from flatjax.operators import over_batches
from flatjax.operators._blocks import restrict
from flatjax.operators._chunks import Chunked, chunked
from tests.models import NETWORKS
from tests.operators import references

MLP = NETWORKS["mlp"]
WEIGHTS = np.array([1.0, 0.0, 2.0, 1.0, 0.5, 3.0, 0.0, 1.0])


def operator(kind, name="mlp", dtype=jnp.float32, **options):
    network = NETWORKS[name]
    return references.make(kind, network.apply, *network.cast(dtype), **options)


def product(op, i=1):
    flat, unravel = ravel_pytree(jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), op.structure))
    v = unravel(jnp.cos(i * jnp.arange(flat.size, dtype=flat.dtype)))
    return np.asarray(ravel_pytree(op @ v)[0])


@pytest.mark.parametrize(
    ("kind", "chunk_size"),
    [
        ("hessian", 3),
        ("hessian", 4),
        ("ggn", 1),
        ("fisher_sampled", 3),
        ("fisher_empirical", 7),
        ("covariance", 3),
        ("covariance", 1),  # the mean of the chunks' own covariances would be zero
    ],
)
def test_equals_the_whole_batch(kind, chunk_size):
    whole = operator(kind)
    parts = operator(kind, chunk_size=chunk_size)
    assert isinstance(parts, Chunked)
    references.assert_close(product(parts), product(whole), references.FLOAT32)


@pytest.mark.parametrize(("kind", "chunk_size"), [("ggn", 3), ("covariance", 3), ("covariance", 4)])
def test_weights_and_padding(kind, chunk_size, x64):
    parts = operator(kind, dtype=jnp.float64, weights=WEIGHTS, chunk_size=chunk_size)
    expected = references.dense(kind, references.reference("mlp"), WEIGHTS)
    v = jax.tree.map(jnp.ones_like, parts.op.params)
    flat = ravel_pytree(parts @ v)[0]
    references.assert_close(flat, expected.sum(axis=1), references.FLOAT64)


def test_tokens_as_examples():
    network, loss = NETWORKS["attention"], flatjax.softmax_cross_entropy(per="token")
    params, batch = network.cast(jnp.float32)
    weights = np.linspace(0.0, 2.0, 24).reshape(8, 3)

    def make(**options):
        return flatjax.ggn(network.apply, loss, params, batch, weights=weights, **options)

    references.assert_close(product(make(chunk_size=3)), product(make()), references.FLOAT32)


def test_draws_do_not_depend_on_the_chunks():
    network, loss = NETWORKS["attention"], flatjax.softmax_cross_entropy(per="token")
    params, batch = network.cast(jnp.float32)
    options = {"kind": "sampled", "key": jax.random.key(0), "num_samples": 2}
    whole = flatjax.fisher(network.apply, loss, params, batch, **options)
    parts = flatjax.fisher(network.apply, loss, params, batch, chunk_size=3, **options)
    np.testing.assert_array_equal(whole.draws, parts.op.draws)


def test_the_mean_loss_as_a_scalar():
    x = jnp.arange(12.0).reshape(6, 2)
    loss = lambda w, x: jnp.mean(jnp.square(x @ w))  # noqa: E731
    whole = flatjax.hessian(loss, jnp.ones(2), x)
    parts = flatjax.hessian(loss, jnp.ones(2), x, chunk_size=2)
    np.testing.assert_allclose(parts.to_dense(), whole.to_dense(), rtol=1e-6)
    with pytest.raises(ValueError, match="chunk_size=4 does not divide the 6 examples"):
        flatjax.hessian(loss, jnp.ones(2), x, chunk_size=4)


def test_traced_under_jit_and_vmap():
    parts = operator("covariance", chunk_size=3)
    expected = np.asarray(operator("covariance").to_dense())
    traced = jax.jit(lambda op, v: op.mv(v))
    v = jax.tree.map(jnp.ones_like, parts.op.params)
    flat = ravel_pytree(traced(parts, v))[0]
    references.assert_close(flat, expected.sum(axis=1), references.FLOAT32)
    # One loop, however many chunks.
    assert str(jax.make_jaxpr(parts.mv)(v)).count(" scan[") == 1
    unravel = ravel_pytree(v)[1]
    rows = jax.vmap(lambda row: ravel_pytree(parts.mv(unravel(row)))[0])(jnp.eye(31)[:4])
    references.assert_close(rows, expected[:4], references.FLOAT32)
    with loops.device():
        references.assert_close(product(parts), product(operator("covariance")), 6e-6)


def test_construction_may_be_traced():
    params, batch = MLP.cast(jnp.float32)
    loss = references.losses_fn(MLP.apply)

    @jax.jit
    def run(params, batch, v):
        return flatjax.gradient_covariance(loss, params, batch, chunk_size=3).mv(v)

    v = jax.tree.map(jnp.ones_like, params)
    flat = ravel_pytree(run(params, batch, v))[0]
    expected = np.asarray(operator("covariance").to_dense()).sum(axis=1)
    references.assert_close(flat, expected, references.FLOAT32)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("covariance", "check_vma"), ("covariance", "no_check_vma"), ("hessian", "pmap")],
)
def test_chunks_on_every_device(kind, mode):
    params, batch = MLP.cast(jnp.float32)
    v = jax.tree.map(jnp.ones_like, params)
    make = lambda batch: references.make(  # noqa: E731
        kind, MLP.apply, params, batch, axis_name="data", chunk_size=3
    )
    if mode == "pmap":
        split = jax.tree.map(lambda a: a.reshape(2, 4, *a.shape[1:]), batch)
        run = jax.pmap(lambda b: make(b).mv(v), axis_name="data", devices=jax.devices()[:2])
        result = jax.tree.map(lambda a: a[0], run(split))
    else:
        mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])
        body = jax.shard_map(
            lambda b: make(b).mv(v),
            mesh=mesh,
            in_specs=(P("data"),),
            out_specs=P(),
            check_vma=mode == "check_vma",
        )
        result = jax.jit(body)(batch)
    expected = references.dense(kind, references.reference("mlp")).sum(axis=1)
    references.assert_close(ravel_pytree(result)[0], expected, references.FLOAT32)


def test_one_program_whatever_the_number_of_chunks():
    for op in (operator("hessian", chunk_size=2), operator("hessian", chunk_size=2)):
        product(op)
    before = chunks._add_chunk._cache_size(), chunks.local_sum._cache_size()
    product(operator("hessian", chunk_size=2), i=2)
    assert (chunks._add_chunk._cache_size(), chunks.local_sum._cache_size()) == before


def test_temporary_memory_is_that_of_a_chunk():
    x = jnp.ones((512, 8))

    def model(params, x):
        return jnp.tanh(jnp.tanh(x @ params[0]) @ params[1])

    params = [jnp.ones((8, 64)), jnp.ones((64, 4))]
    op = flatjax.ggn(model, flatjax.squared_error, params, (x, jnp.ones((512, 4))))

    def temporary(fn, *args, **kwargs):
        compiled = fn.lower(*args, **kwargs).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole = temporary(jax.jit(lambda op, v: op.mv(v)), op, params)
    part = temporary(chunks.local_sum, op.for_chunks(32), 0, params, size=32)
    assert part < whole / 8  # 16 chunks, and a constant


def test_blocks_of_a_chunked_covariance():
    parts = restrict(operator("covariance", chunk_size=3), "out")
    expected = np.asarray(operator("covariance").to_dense())[16:, 16:]
    references.assert_close(parts.to_dense(), expected, references.FLOAT32)


def test_nothing_to_chunk():
    op = operator("hessian")
    assert chunked(op, None) is op
    assert chunked(op, 8) is op
    parts = chunked(op, 4)
    assert parts.linearize() is parts
    assert parts.method == "forward-over-reverse"
    assert parts.relative_noise == op.relative_noise


def test_bad_arguments_are_refused():
    op = operator("hessian")
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        chunked(op, 0)
    without_batch = flatjax.hessian(lambda w, _: w @ w, jnp.ones(2), None)
    for wrong in (op.linearize(), 2.0 * op, without_batch):
        with pytest.raises(TypeError, match="only an operator over a batch can be chunked"):
            chunked(wrong, 2)
    params, batch = MLP.cast(jnp.float32)
    loss = references.losses_fn(MLP.apply)
    with pytest.raises(TypeError, match="make the batches smaller"):
        over_batches(lambda b: flatjax.hessian(loss, params, b, chunk_size=2), [batch])
    with pytest.raises(ValueError, match="has shape"):
        chunked(op, 2).mv(jax.tree.map(lambda a: a[None], params))
