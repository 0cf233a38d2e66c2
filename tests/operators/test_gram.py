"""Gram matrices of per-example gradients, and exact spectra through them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import flatjax
from flatjax.linalg import gram_eigh
from flatjax.operators._gram import gradient_gram
from tests.models import NETWORKS
from tests.operators import references

MLP = NETWORKS["mlp"]
LOSS = references.losses_fn(MLP.apply)
WEIGHTS = np.array([1.0, 0.0, 2.0, 1.0, 0.5, 3.0, 0.0, 1.0])


def rows(weights=None, *, centered=True):
    """A, with K = A'A: the weighted and centred gradients."""
    gradients = references.reference("mlp").gradients
    weights = np.ones(8) if weights is None else weights
    if centered:
        gradients = gradients - references.mean(gradients, weights)
    return np.sqrt(weights / weights.sum())[:, None] * gradients


@pytest.mark.parametrize(
    ("centered", "chunk_size", "weights"),
    [(True, None, None), (True, 3, WEIGHTS), (False, 3, None), (False, None, WEIGHTS)],
)
def test_the_matrix(centered, chunk_size, weights, x64):
    params, batch = MLP.cast(jnp.float64)
    matrix = gradient_gram(
        LOSS, params, batch, centered=centered, weights=weights, chunk_size=chunk_size
    )
    a = rows(weights, centered=centered)
    references.assert_close(matrix, a @ a.T, references.FLOAT64)


@pytest.mark.parametrize(("kind", "chunk_size"), [("covariance", 3), ("fisher_empirical", None)])
def test_eigenpairs_are_those_of_the_operator(kind, chunk_size, x64):
    params, batch = MLP.cast(jnp.float64)
    pairs = gram_eigh(LOSS, params, batch, centered=kind == "covariance", chunk_size=chunk_size)
    dense = references.dense(kind, references.reference("mlp"))
    rank = 7 if kind == "covariance" else 8  # centring takes one
    assert int(pairs.rank) == rank
    # float64 rounding of two eigensolvers, relative to the largest eigenvalue.
    top = np.linalg.eigvalsh(dense)[::-1][:8]
    np.testing.assert_allclose(pairs.values, top, atol=1e-13 * top[0])
    assert float(pairs.trace) == pytest.approx(np.trace(dense), rel=1e-12)
    vectors = np.stack([ravel_pytree(jax.tree.map(lambda a, i=i: a[i], pairs.vectors))[0]
                        for i in range(rank)])  # fmt: skip
    np.testing.assert_allclose(vectors @ vectors.T, np.eye(rank), atol=1e-9)
    residual = dense @ vectors.T - vectors.T * np.asarray(pairs.values[:rank])
    assert np.abs(residual).max() < 1e-12 * top[0]


def test_float32_resolves_what_it_says():
    """Eigenvalues over four decades; the floor is 8 eps of the largest, about 1e-6."""
    scales = np.sqrt(np.array([1.0, 1e-2, 1e-4, 1e-12]))
    q = np.linalg.qr(np.random.default_rng(0).normal(size=(20, 4)))[0]
    x = jnp.asarray(np.sqrt(20) * q * scales, jnp.float32)
    pairs = gram_eigh(lambda w, x: x @ w, jnp.zeros(4), x, centered=False)
    assert int(pairs.rank) == 3
    np.testing.assert_allclose(pairs.values[:3], [1.0, 1e-2, 1e-4], atol=float(pairs.noise_floor))
    assert abs(float(pairs.values[3])) < float(pairs.noise_floor)
    assert not np.asarray(pairs.vectors[3]).any()
    assert float(jnp.abs(pairs.vectors[0])[0]) == pytest.approx(1.0, abs=1e-5)


def test_a_large_mean_does_not_cancel():
    x = 1e4 + jnp.array([[1.0], [2.0], [3.0], [4.0], [5.0]])
    for chunk_size in (None, 2):
        pairs = gram_eigh(lambda w, x: x @ w, jnp.zeros(1), x, chunk_size=chunk_size)
        # The variance of 1 ... 5; entries of 1e4 are exact to 1e-3 in float32.
        assert float(pairs.values[0]) == pytest.approx(2.0, abs=2e-3)


def test_no_gradient_at_all():
    pairs = gram_eigh(lambda w, x: 0.0 * (x @ w), jnp.zeros(2), jnp.ones((3, 2)))
    assert int(pairs.rank) == 0
    assert not np.asarray(pairs.values).any()
    assert np.isfinite(np.asarray(pairs.vectors)).all()


def test_traced_equals_eager():
    params, batch = MLP.cast(jnp.float32)
    run = jax.jit(lambda p, b: gram_eigh(LOSS, p, b, k=2, chunk_size=3))
    traced, eager = run(params, batch), gram_eigh(LOSS, params, batch, k=2, chunk_size=3)
    references.assert_close(traced.values, np.asarray(eager.values), references.FLOAT32)
    assert jax.tree.leaves(traced.vectors)[0].shape[0] == 2
    assert int(traced.rank) == int(eager.rank) == 7


def test_chunks_bound_the_memory():
    from flatjax.operators import _gram as gram

    x = jnp.ones((256, 64))
    op = flatjax.gradient_covariance(lambda w, x: jnp.tanh(x @ w).sum(1), jnp.ones((64, 64)), x)
    op = op.for_chunks(1)
    mean = op.params

    def temporary(size, fn, *args):
        return fn.lower(*args, size=size).compile().memory_analysis().temp_size_in_bytes

    whole = temporary(256, gram._own_block, op, mean, 0)
    part = temporary(8, gram._put_block, jnp.zeros((256, 256)), op, mean, 0, 0)
    assert whole >= 256 * 64 * 64 * 4  # all the gradients
    assert part < 8 * 8 * 64 * 64 * 4  # a few times 2 x 8 of them, 3 % of that


def test_bad_arguments_are_refused():
    params, batch = MLP.cast(jnp.float32)
    with pytest.raises(ValueError, match="k must lie between 1 and"):
        gram_eigh(LOSS, params, batch, k=9)
    with pytest.raises(ValueError, match="needs per-example losses"):
        gradient_gram(lambda w, x: jnp.mean(x @ w), jnp.zeros(2), jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="chunk_size must be at least 1, got 0"):
        gradient_gram(LOSS, params, batch, chunk_size=0)
    with pytest.raises(ValueError, match="is refused beyond 20,000"):
        gradient_gram(lambda w, x: x @ w, jnp.zeros(1), jnp.ones((20_001, 1)))


@pytest.mark.parametrize(
    ("run", "centered"),
    [
        ("shard_map", True),
        pytest.param("shard_map_unchecked", False, marks=pytest.mark.slow),
        pytest.param("pmap", True, marks=pytest.mark.slow),
    ],
)
def test_over_devices(run, centered, x64):
    """All pairs of examples of four devices, one of which has padding alone."""
    params, batch = MLP.cast(jnp.float64)
    weights = jnp.asarray(np.where(np.arange(8) // 2 == 1, 0.0, WEIGHTS))

    def measured(params, batch, weights, axis_name):
        options = {"centered": centered, "weights": weights, "axis_name": axis_name}
        pairs = gram_eigh(LOSS, params, batch, k=3, **options)
        vectors = jax.vmap(lambda v: ravel_pytree(v)[0])(pairs.vectors)
        # The signs of eigenvectors are any.
        outer = vectors[:, :, None] * vectors[:, None, :]
        return gradient_gram(LOSS, params, batch, **options), pairs[0], pairs[2:], outer

    mapped = functools.partial(measured, axis_name="data")
    if run == "pmap":
        split = lambda a: a.reshape(4, 2, *a.shape[1:])  # noqa: E731
        parts = jax.tree.map(split, (batch, weights))
        mapped = jax.pmap(mapped, axis_name="data", in_axes=(None, 0, 0))
        found = jax.tree.map(lambda a: a[0], mapped(params, *parts))
    else:
        mapped = jax.shard_map(
            mapped,
            mesh=jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,)),
            in_specs=(P(), P("data"), P("data")),
            out_specs=P(),
            check_vma=run == "shard_map",
        )
        found = jax.jit(mapped)(params, batch, weights)
    expected = jax.jit(functools.partial(measured, axis_name=None))(params, batch, weights)
    for got, want in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        # 1e-10: float64 sums in another order.
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-10 * np.abs(want).max())


def test_chunks_are_for_one_device(x64):
    params, batch = MLP.cast(jnp.float64)
    mapped = jax.vmap(
        lambda x, y: gradient_gram(LOSS, params, (x, y), chunk_size=2, axis_name="data"),
        axis_name="data",
    )
    with pytest.raises(ValueError, match="chunk_size=2 is for one device"):
        mapped(*(a.reshape(2, 4, *a.shape[1:]) for a in batch))
