"""``flatjax.Mean``: a loss with another normaliser, however the data are cut."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import flatjax
from flatjax.operators import _terms as terms
from tests.operators import references

# Sequences of 4, 4, 4, 2, 1 and 1 tokens: the halves are nothing alike.
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(6, 4, 5)), RNG.integers(0, 3, (6, 4))
MASK = (np.arange(4) < np.array([4, 4, 4, 2, 1, 1])[:, None]).astype(float)
PARAMS, V = RNG.normal(size=(2, 5, 3))
WEIGHTS = np.array([1.0, 2.0, 0.0, 0.5, 3.0, 1.0])


def tokens(w, batch):
    """The masked losses of all tokens, ``(n, 4)``."""
    x, y, mask = batch
    log_p = jax.nn.log_softmax(jnp.tanh(x @ w))
    return -jnp.take_along_axis(log_p, y[..., None], -1)[..., 0] * mask


def token_mean(w, batch):
    return tokens(w, batch).sum() / batch[2].sum()


def scalars(w, batch):
    return flatjax.Mean(tokens(w, batch).sum(), batch[2].sum())


def rows(w, batch):
    return flatjax.Mean(tokens(w, batch).sum(axis=1), batch[2].sum(axis=1))


def data():
    return jnp.asarray(PARAMS), tuple(jnp.asarray(a) for a in (X, Y, MASK))


@functools.cache
def reference(weighted):
    """The weights, and the gradients and Hessians of the loss of every example, in float64."""
    with jax.enable_x64(True), jax.numpy_rank_promotion("allow"):
        w, batch = data()
        totals = lambda w: tokens(w.reshape(5, 3), batch).sum(axis=1)  # noqa: E731
        m = MASK.sum(axis=1) * (WEIGHTS if weighted else 1.0)
        gradients = np.asarray(jax.jacrev(totals)(w.ravel())) / MASK.sum(axis=1)[:, None]
        hessians = np.asarray(jax.hessian(totals)(w.ravel())) / MASK.sum(axis=1)[:, None, None]
        return m, gradients, hessians


def wanted(kind, weighted=False):
    m, gradients, hessians = reference(weighted)
    if kind == "hessian":
        return references.mean(hessians, m)
    return references.covariance(gradients, m, centered=kind == "covariance")


def make(kind, loss, batch, weights=None, **options):
    if kind == "hessian":
        return flatjax.hessian(loss, jnp.asarray(PARAMS), batch, weights=weights, **options)
    return flatjax.gradient_covariance(
        loss, jnp.asarray(PARAMS), batch, weights=weights, centered=kind == "covariance", **options
    )


def cut(tree, *sizes):
    ends = np.cumsum(sizes)
    pairs = zip(sizes, ends, strict=True)
    return [jax.tree.map(lambda a, s=s, e=e: a[e - s : e], tree) for s, e in pairs]


CASES = [
    ("hessian", scalars, False),
    pytest.param("hessian", rows, False, marks=pytest.mark.slow),
    ("hessian", rows, True),
    ("covariance", rows, True),
    pytest.param("second_moment", rows, False, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("kind", "loss", "weighted"), CASES)
def test_chunks_streams_and_one_batch_are_one_matrix(kind, loss, weighted, x64):
    _, batch = data()
    weights = jnp.asarray(WEIGHTS) if weighted else None
    whole = make(kind, loss, batch, weights)
    matrix = wanted(kind, weighted)
    assert float(whole.weight) == pytest.approx(reference(weighted)[0].sum())
    references.assert_product(whole, matrix, references.FLOAT64)
    chunked = make(kind, loss, batch, weights, chunk_size=3)
    references.assert_product(chunked, matrix, references.FLOAT64, linearized=False)
    stream = flatjax.over_batches(
        lambda part: make(kind, loss, *part) if weighted else make(kind, loss, part[0]),
        cut((batch, WEIGHTS), 4, 2),
    )
    references.assert_product(stream, matrix, references.FLOAT64, linearized=False)
    assert float(stream.weight) == pytest.approx(float(whole.weight))


def test_a_scalar_mean_is_the_plain_loss_of_one_batch(x64):
    w, batch = data()
    plain = flatjax.hessian(token_mean, w, batch)
    references.assert_product(plain, wanted("hessian"), references.FLOAT64, linearized=False)


@pytest.mark.parametrize(
    ("kind", "loss", "check_vma"),
    [
        ("hessian", scalars, True),
        ("covariance", rows, False),
        pytest.param("hessian", scalars, False, marks=pytest.mark.slow),
        pytest.param("covariance", rows, True, marks=pytest.mark.slow),
    ],
)
def test_over_devices(kind, loss, check_vma, x64):
    _, batch = data()
    mesh = jax.make_mesh((3,), ("data",), (AxisType.Auto,), devices=jax.devices()[:3])
    run = jax.shard_map(
        lambda part: make(kind, loss, part, axis_name="data").mv(jnp.asarray(V)),
        mesh=mesh,
        in_specs=P("data"),
        out_specs=P(),
        check_vma=check_vma,
    )
    expected = wanted(kind) @ V.ravel()
    references.assert_close(jax.jit(run)(batch).ravel(), expected, references.FLOAT64)


class TestExamples:
    """What has one gradient an example: that of its total over its weight."""

    def test_gradients(self, x64):
        w, batch = data()
        for loss in (rows, scalars):
            found = flatjax.per_example_gradients(loss, w, batch, chunk_size=4)
            references.assert_close(found.reshape(6, -1), reference(False)[1], references.FLOAT64)

    @pytest.mark.parametrize("chunk_size", [None, 4])
    def test_the_gram_matrix_has_the_spectrum_of_the_covariance(self, chunk_size, x64):
        w, batch = data()
        matrix = flatjax.gradient_gram(rows, w, batch, weights=WEIGHTS, chunk_size=chunk_size)
        values = np.linalg.eigvalsh(matrix)[-5:]
        expected = np.linalg.eigvalsh(wanted("covariance", True))[-5:]
        np.testing.assert_allclose(values, expected, rtol=0, atol=1e-12 * expected[-1])

    def test_the_noise_scale(self, x64):
        w, batch = data()
        m, gradients, _ = reference(True)
        mean = references.mean(gradients, m)
        found = flatjax.gradient_noise_scale(rows, w, batch, weights=WEIGHTS)
        trace = np.trace(wanted("covariance", True))
        np.testing.assert_allclose(found.value, trace / (mean @ mean), rtol=1e-10)

    def test_the_variance_of_the_hessians(self, x64):
        w, batch = data()
        m, _, hessians = reference(True)
        centred = hessians - references.mean(hessians, m)
        op = flatjax.measures.hessian_variance(rows, w, batch, weights=WEIGHTS, chunk_size=3)
        matrix = references.mean(centred @ centred, m)
        references.assert_product(op, matrix, references.FLOAT64, linearized=False)


@pytest.mark.parametrize("loss", [scalars, rows])
def test_measures_and_lines_take_it(loss, x64):
    w, batch = data()
    options = {"rho": 0.1, "ascent_steps": 2}
    plain = flatjax.sam_sharpness(token_mean, w, batch, **options)
    found = flatjax.sam_sharpness(loss, w, batch, **options)
    np.testing.assert_allclose(found.value, plain.value, rtol=1e-10)
    lines = [
        flatjax.loss_along(f, w, batch, direction=jnp.asarray(V), positions=[0.0, 0.3]).losses
        for f in (token_mean, loss)
    ]
    np.testing.assert_allclose(lines[1], lines[0], rtol=1e-12)
    np.testing.assert_allclose(lines[0][0], loss(w, batch).value, rtol=1e-12)


def test_a_line_with_weights(x64):
    w, batch = data()
    options = {"direction": jnp.asarray(V), "positions": [0.0], "weights": WEIGHTS}
    line = flatjax.loss_along(rows, w, batch, **options)
    m = MASK.sum(axis=1) * WEIGHTS
    losses = np.asarray(tokens(w, batch).sum(axis=1)) / MASK.sum(axis=1)
    np.testing.assert_allclose(line.losses[0], np.average(losses, weights=m), rtol=1e-12)
    with pytest.raises(ValueError, match="weights need per-example losses"):
        flatjax.loss_along(scalars, w, batch, **options)


def test_the_weight_is_a_constant(x64):
    # The weight of params and batch, by mistake: only the total is differentiated.
    loss = lambda w, x: flatjax.Mean((w**2 * x).sum(), (w * x).sum())  # noqa: E731
    x = jnp.array([1.0, 2.0])
    # 2 sum(x) / (w sum(x)), where the Hessian of w itself would be zero.
    assert float(flatjax.hessian(loss, jnp.array(4.0), x) @ jnp.array(1.0)) == 0.5


def test_parts_of_weight_zero(x64):
    """A sequence of padding, a chunk of padding, a batch of padding; and nothing but padding."""
    _, batch = data()
    more = np.full((3, 4, 5), np.nan), Y[:3], np.zeros((3, 4))
    empty = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), batch, more)
    matrix = wanted("hessian")
    for options in ({}, {"chunk_size": 3}):
        references.assert_product(
            make("hessian", rows, empty, **options), matrix, references.FLOAT64, linearized=False
        )
    stream = flatjax.over_batches(lambda b: make("hessian", scalars, b), cut(empty, 6, 3))
    references.assert_product(stream, matrix, references.FLOAT64, linearized=False)
    nothing = flatjax.over_batches(lambda b: make("hessian", scalars, b), cut(empty, 6, 3)[1:])
    with pytest.raises(ValueError, match="total weight is zero"):
        nothing @ jnp.asarray(V)
    assert np.isnan(make("hessian", rows, cut(empty, 6, 3)[1]) @ jnp.asarray(V)).all()


class TestBadMeans:
    @pytest.mark.parametrize(
        ("mean", "error", "text"),
        [
            (lambda t: flatjax.Mean(t, t.sum()), ValueError, r"both scalars, or both.*\(6,\)"),
            (lambda t: flatjax.Mean(t[:2], t[:2]), ValueError, r"got \(2,\) and \(2,\)"),
            (lambda t: flatjax.Mean(t.sum(), t), ValueError, r"got \(\) and \(6,\)"),
            (lambda t: flatjax.Mean(t.astype(int), t), TypeError, "total of a flatjax.Mean must"),
            (lambda t: flatjax.Mean(t, t + 1j), TypeError, "weight of a flatjax.Mean must be real"),
            (lambda t: flatjax.Mean(t, None), TypeError, "needs an array as its weight, got None"),
            (lambda t: flatjax.Mean(t, (t, t)), TypeError, "needs an array as its weight, got"),
        ],
    )
    def test_at_the_door(self, mean, error, text, standard_promotion):
        w, batch = data()
        with pytest.raises(error, match=text):
            flatjax.hessian(lambda w, b: mean(tokens(w, b).sum(axis=1)), w, batch)

    def test_scalars_where_rows_are_needed(self):
        w, batch = data()
        with pytest.raises(ValueError, match="needs per-example losses"):
            flatjax.gradient_covariance(scalars, w, batch)
        with pytest.raises(ValueError, match="weights need per-example losses"):
            flatjax.hessian(scalars, w, batch, weights=WEIGHTS)

    def test_integer_weights_count(self):
        out = flatjax.Mean(jnp.array([1.0, 6.0]), jnp.array([1, 3]))
        losses, weights = terms.as_terms(out)
        assert losses.tolist() == [1.0, 2.0]
        assert weights.tolist() == [1.0, 3.0]
        assert float(out.value) == 1.75

    def test_weights_that_are_nan_give_nan(self):
        loss = lambda w, x: flatjax.Mean((w * x) ** 2, x / 0)  # noqa: E731
        H = flatjax.hessian(loss, jnp.float32(1.0), jnp.zeros(2))
        assert np.isnan(H @ jnp.float32(1.0))


def test_check_deterministic_understands_it():
    w, batch = data()
    report = flatjax.check_deterministic(flatjax.hessian(rows, w, batch))
    assert report.ok, report.causes
    assert report.batch_error < 1e-5

    def tied(w, batch):  # the weight of a batch is not that of its halves
        mean = scalars(w, batch)
        return flatjax.Mean(mean.total / mean.weight, mean.weight)

    broken = flatjax.check_deterministic(flatjax.hessian(tied, w, batch))
    assert [cause[:16] for cause in broken.causes] == ["batch statistics"]
