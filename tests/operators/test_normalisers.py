"""A plain scalar is taken for the mean over the examples, and looked at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from tests.operators.test_mean import V, cut, data, token_mean, tokens

TEXT = r"not the mean over the examples.*flatjax\.Mean\(total, weight\).*check=False"


def batches(loss, **options):
    w, batch = data()
    return flatjax.over_batches(lambda b: flatjax.hessian(loss, w, b), cut(batch, 3, 3), **options)


def test_a_mean_over_tokens_is_refused():
    w, batch = data()
    with pytest.raises(ValueError, match=TEXT):
        flatjax.hessian(token_mean, w, batch, chunk_size=3)
    with pytest.raises(ValueError, match=TEXT):
        flatjax.operators._chunks.chunked(flatjax.hessian(token_mean, w, batch), 2)
    # The three sequences of the first batch are of one length: seen by the last batch.
    stream = batches(token_mean)
    with pytest.raises(ValueError, match=TEXT):
        stream @ jnp.asarray(V)


def test_a_sum_is_refused():
    with pytest.raises(ValueError, match=TEXT):
        flatjax.hessian(lambda w, x: ((x @ w) ** 2).sum(), jnp.ones(3), jnp.ones((4, 3)),
                        chunk_size=2)  # fmt: skip


def test_a_part_in_a_thousand_is_refused():
    """A sum over n + 0.01 is off by 6e-4 in the halves of 16, rounding by some 1e-7."""
    loss = lambda w, x: ((x @ w) ** 2).sum() / (x.shape[0] + 0.01)  # noqa: E731
    with pytest.raises(ValueError, match=TEXT):
        flatjax.hessian(loss, jnp.ones(3), jnp.ones((16, 3)), chunk_size=4)


def test_unless_told_so():
    w, batch = data()
    chunked = flatjax.hessian(token_mean, w, batch, chunk_size=3, check=False)
    stream = batches(token_mean, check=False)
    halves = [flatjax.hessian(token_mean, w, part) @ jnp.asarray(V) for part in cut(batch, 3, 3)]
    for op in (chunked, stream):
        np.testing.assert_allclose(op @ jnp.asarray(V), sum(halves) / 2, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("reduce_low", [False, True], ids=["wide", "low"])
def test_rounding_is_not_refused(dtype, reduce_low):
    """Means in any precision, over seeds."""
    rng = np.random.default_rng(3)

    def loss(w, batch):
        z = jnp.tanh(batch.astype(dtype) @ w.astype(dtype))
        z = z if reduce_low else z.astype(jnp.float32)
        return (z * z).mean()

    for seed in range(8):
        x = jnp.asarray(np.random.default_rng(seed).normal(size=(96, 33)), jnp.float32)
        w = jnp.asarray(rng.normal(size=(33, 7)), jnp.float32)
        flatjax.operators._chunks.chunked(flatjax.hessian(loss, w, x), 8)


def test_traced_it_is_not_looked_at():
    w, batch = data()
    run = jax.jit(lambda b: flatjax.hessian(token_mean, w, b, chunk_size=3).mv(jnp.asarray(V)))
    assert np.isfinite(run(batch)).all()


def test_what_cannot_be_split():
    w, batch = data()
    one = [jax.tree.map(lambda a: a[:1], batch)]
    stream = flatjax.over_batches(lambda b: flatjax.hessian(token_mean, w, b), one)
    assert np.isfinite(stream @ jnp.asarray(V)).all()
    # A loss of batches of three alone.
    pairs = lambda w, b: (tokens(w, b).reshape(3, -1)).mean()  # noqa: E731
    stream = flatjax.over_batches(lambda b: flatjax.hessian(pairs, w, b), cut(batch, 3, 3))
    assert np.isfinite(stream @ jnp.asarray(V)).all()


def test_batches_of_other_shapes():
    """Padded to other lengths, so that they cannot be put together: the first is split."""
    w, (x, y, mask) = data()
    short = (x[:, :2], y[:, :2], mask[:, :2])
    make = lambda b: flatjax.hessian(token_mean, w, b)  # noqa: E731
    with pytest.raises(ValueError, match=TEXT):
        flatjax.over_batches(make, [(x, y, mask), short]) @ jnp.asarray(V)


def test_it_is_looked_at_once():
    calls = []

    def loss(w, x):
        calls.append(isinstance(w, jax.core.Tracer))
        return jnp.mean((x @ w) ** 2)

    stream = flatjax.over_batches(
        lambda x: flatjax.hessian(loss, jnp.ones(3), x), [jnp.ones((4, 3))] * 2
    )
    assert calls.count(False) == 0  # not before the first product
    stream @ jnp.ones(3)
    assert calls.count(False) == 6  # the batch, two halves, two others; once for its dtypes
    stream @ jnp.ones(3)
    assert calls.count(False) == 6
