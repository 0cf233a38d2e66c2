"""A whole data set, batch by batch: the same as one big batch, however it is cut."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import flatjax
from tests.models import NETWORKS, attention, mlp
from tests.operators import references

KINDS = [kind for kind in references.OPERATORS if kind != "fisher_sampled"]


def cut(batch, sizes, order=slice(None)):
    x, y = (np.asarray(a)[order] for a in batch)
    ends = np.cumsum(sizes)
    return [(x[e - s : e], y[e - s : e]) for s, e in zip(sizes, ends, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_unequal_batches_are_one_big_batch(kind, x64):
    # Sorted by label: the means of the batches differ as much as they can, and a weighted mean of
    # the covariances of the batches would miss the covariance between them.
    network = NETWORKS["mlp"]
    params, batch = network.cast()
    wanted = references.dense(kind, references.reference("mlp"))
    order = np.argsort(network.targets, kind="stable")
    batches = cut(batch, (5, 3), order)
    stream = flatjax.over_batches(lambda b: references.make(kind, mlp, params, b), batches)
    assert float(stream.weight) == 8
    references.assert_close(stream.to_dense(), wanted, references.FLOAT64)


@pytest.mark.parametrize("kind", ["covariance", "ggn"])
def test_padded_last_batch(kind, x64):
    # Batches of four of six real examples, the last one filled up with two rows of padding.
    params, (x, y) = NETWORKS["mlp"].cast()
    batches = [((x[:4], y[:4]), jnp.ones(4)), ((x[4:], y[4:]), jnp.array([1.0, 1.0, 0.0, 0.0]))]
    stream = flatjax.over_batches(
        lambda b: references.make(kind, mlp, params, b[0], weights=b[1]), batches
    )
    ref = references.reference("mlp")
    wanted = references.dense(kind, ref, np.array([1.0] * 6 + [0.0] * 2))
    references.assert_product(stream, wanted, references.FLOAT64)
    assert float(stream.weight) == 6


def test_sequences_of_unequal_lengths_by_token(x64):
    # The batches hold 8 and 13 unmasked tokens: each counts by its tokens.
    params, batch = NETWORKS["attention"].cast()
    loss = flatjax.softmax_cross_entropy(per="token")
    make = lambda b: flatjax.ggn(attention, loss, params, b)  # noqa: E731
    stream = flatjax.over_batches(make, cut(batch, (3, 5)))
    wanted = np.asarray(make(batch).to_dense())
    references.assert_product(stream, wanted, references.FLOAT64)
    assert float(stream.weight) == 21


def test_sampled_fisher_takes_its_key_from_the_batch(x64):
    params, batch = NETWORKS["mlp"].cast()
    loss = flatjax.softmax_cross_entropy
    parts = list(zip(jax.random.split(jax.random.key(1), 2), cut(batch, (5, 3)), strict=True))

    def make(part):
        return flatjax.fisher(mlp, loss, params, part[1], kind="sampled", key=part[0])

    products = [ravel_pytree(make(part) @ params)[0] for part in parts]
    wanted = np.average(products, axis=0, weights=(5, 3))
    found = ravel_pytree(flatjax.over_batches(make, parts) @ params)[0]
    references.assert_close(found, wanted, references.FLOAT64)


def test_the_batches_are_read_at_every_product():
    class Source:
        passes = 0

        def __iter__(self):
            self.passes += 1
            return iter([jnp.ones((2, 3)), jnp.ones((1, 3))])

    source = Source()
    w = jnp.ones(3)
    losses_fn = lambda w, x: x @ w  # noqa: E731
    K = flatjax.over_batches(lambda x: flatjax.gradient_covariance(losses_fn, w, x), source)
    before = source.passes
    K @ w
    assert source.passes == before + 1  # the mean gradient is that of the same pass


class TestNothingIsKept:
    """A product is that of the params, batches and weights that it meets."""

    batches = (np.array([[1.0, 0.0], [3.0, 1.0]]), np.array([[0.0, 2.0], [4.0, 4.0], [1.0, 1.0]]))

    @staticmethod
    def losses_fn(w, x):
        return 0.5 * (x @ w) ** 2

    def whole(self, w, batches, weights=None):
        data = jnp.asarray(np.concatenate(batches))
        return flatjax.gradient_covariance(self.losses_fn, w, data, weights=weights)

    def test_params_that_are_bound_anew(self, x64):
        w, v = jnp.ones(2), jnp.array([1.0, -2.0])
        stream = flatjax.over_batches(
            lambda x: flatjax.gradient_covariance(self.losses_fn, w, x), list(self.batches)
        )
        for w in (jnp.ones(2), jnp.array([3.0, -1.0])):  # read by the lambda
            wanted = self.whole(w, self.batches) @ v
            np.testing.assert_allclose(stream @ v, wanted, rtol=1e-12)

    def test_a_batch_that_is_added(self, x64):
        w, v, batches = jnp.ones(2), jnp.array([1.0, -2.0]), [self.batches[0]]
        stream = flatjax.over_batches(
            lambda x: flatjax.gradient_covariance(self.losses_fn, w, x), batches
        )
        for count in (2, 5):
            np.testing.assert_allclose(stream @ v, self.whole(w, batches) @ v, rtol=1e-12)
            assert float(stream.weight) == count
            batches.append(self.batches[1])

    def test_leaves_of_a_chunked_covariance(self, x64):
        data, v = jnp.asarray(np.concatenate(self.batches)), jnp.array([1.0, -2.0])
        old, new = jnp.ones(2), jnp.array([3.0, -1.0])
        parts = flatjax.gradient_covariance(self.losses_fn, old, data, chunk_size=2)
        replaced = dataclasses.replace(parts, op=dataclasses.replace(parts.op, params=new))
        mapped = jax.tree.map(lambda a: new if a is parts.op.params else a, parts)
        wanted = self.whole(new, self.batches) @ v
        for op in (replaced, mapped):
            np.testing.assert_allclose(op @ v, wanted, rtol=1e-12)


def test_in_sums_and_products_by_scalars(x64):
    params, batch = NETWORKS["mlp"].cast()
    stream = flatjax.over_batches(
        lambda b: references.make("hessian", mlp, params, b), cut(batch, (5, 3))
    )
    G = references.make("ggn", mlp, params, batch)
    mixed = 2.0 * stream - G
    assert mixed.host_driven
    ref = references.reference("mlp")
    wanted = 2 * references.dense("hessian", ref) - references.dense("ggn", ref)
    references.assert_product(mixed, wanted, references.FLOAT64)
    assert mixed.linearize().host_driven


def test_float32_params_under_64_bit_types(x64):
    w = jnp.arange(3, dtype=jnp.float32)
    batches = [jnp.ones((2, 3), jnp.float32), jnp.eye(3, dtype=jnp.float32)]
    loss_fn = lambda w, x: 0.5 * (x @ w) ** 2  # noqa: E731
    H = flatjax.over_batches(lambda x: flatjax.hessian(loss_fn, w, x), batches)
    matrix = H.to_dense()
    assert matrix.dtype == jnp.float32
    # float32 sums of five small integers are exact up to the division by 5.
    references.assert_close(matrix, (2 * np.ones((3, 3)) + np.eye(3)) / 5, 2e-7)


def quadratic(w, x):
    return 0.5 * (x @ w) ** 2


def small_stream():
    w = jnp.ones(3)
    return flatjax.over_batches(lambda x: flatjax.hessian(quadratic, w, x), [jnp.eye(3)])


@pytest.mark.parametrize(
    "trace",
    [
        pytest.param(lambda op, v: jax.jit(op.mv)(v), id="jit"),
        pytest.param(lambda op, v: jax.vmap(op.mv)(v[None]), id="vmap"),
        pytest.param(lambda op, v: jax.grad(lambda v: op.mv(v).sum())(v), id="grad"),
    ],
)
def test_tracing_a_product_is_an_error(trace):
    with pytest.raises(TypeError, match="driven from the host and cannot be traced: call the"):
        trace(small_stream(), jnp.ones(3))


def test_tracing_over_the_params_is_an_error():
    def product(w):
        make = lambda x: flatjax.hessian(quadratic, w, x)  # noqa: E731
        return flatjax.over_batches(make, [jnp.eye(3)]).mv(jnp.ones(3))

    with pytest.raises(TypeError, match="driven from the host and cannot be traced"):
        jax.jit(product)(jnp.ones(3))


def test_a_stream_is_no_argument_of_jit():
    with pytest.raises(TypeError, match="Stream"):
        jax.jit(lambda op, v: op.mv(v))(small_stream(), jnp.ones(3))


class TestErrors:
    @pytest.mark.parametrize(
        ("make", "batches", "error", "text"),
        [
            (None, iter([0]), TypeError, "one-shot iterator, but every product needs a pass"),
            (None, (x for x in [0]), TypeError, "pass a list or another object that can be iter"),
            (None, 3, TypeError, "batches must be a re-iterable of batches, got int"),
            (None, [], ValueError, "batches is empty: over_batches needs at least one"),
            (None, range(2**62), ValueError, "as what repeats without end does: leave .repeat"),
            (np.eye(3), [0], TypeError, "make_operator must be a function of one batch"),
            (lambda x: 3, [0], TypeError, "must return an operator over one batch.*got int"),
            (
                lambda x: 2.0 * flatjax.hessian(quadratic, jnp.ones(3), jnp.eye(3)),
                [0],
                TypeError,
                "scale or add the streams, not the operators",
            ),
        ],
    )
    def test_at_the_door(self, make, batches, error, text):
        with pytest.raises(error, match=text):
            flatjax.over_batches((lambda x: x) if make is None else make, batches)

    def test_exhausted_at_the_second_pass(self):
        class Once:
            def __init__(self):
                self.batches = [jnp.eye(3)]

            def __iter__(self):
                while self.batches:
                    yield self.batches.pop()

        op = flatjax.over_batches(lambda x: flatjax.hessian(quadratic, jnp.ones(3), x), Once())
        with pytest.raises(ValueError, match="batches gave nothing on a second pass"):
            op @ jnp.ones(3)

    def test_vector_of_another_shape(self):
        with pytest.raises(ValueError, match=r"v has shape \(4,\) where the operator expects"):
            small_stream() @ jnp.ones(4)
