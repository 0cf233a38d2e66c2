"""Low-precision params and models, and the precision of matrix products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import flatjax
from flatjax.operators._differences import equations
from tests.models import NETWORKS, cnn, mlp
from tests.operators import references

BFLOAT16 = 2.0**-8  # the unit roundoff of bfloat16


@pytest.mark.parametrize("kind", ["hessian", "ggn", "fisher_sampled", "covariance"])
def test_bfloat16_params_have_float32_vectors(kind):
    params, (x, y) = NETWORKS["mlp"].cast(jnp.bfloat16)
    op = references.make(kind, mlp, params, (x, y))
    v = jax.tree.map(lambda a: jnp.ones(a.shape, jnp.float32), op.structure)
    for operator in (op, op.linearize()):
        product = operator @ v
        assert {a.dtype for a in jax.tree.leaves(product)} == {jnp.dtype(jnp.float32)}
        assert operator.structure["hidden"]["kernel"].dtype == jnp.float32
        flat = np.asarray(ravel_pytree(product)[0])
        assert np.isfinite(flat).all()
        if kind == "fisher_sampled":
            continue  # other draws
        matrix = references.dense(kind, references.reference("mlp"))
        # Each of some ten rounded steps errs by one unit of the largest terms that it adds up,
        # which are bounded by the absolute row sums.
        scale = np.abs(matrix).sum(axis=1).max()
        assert np.abs(flat - matrix.sum(axis=1)).max() < 10 * BFLOAT16 * scale


def test_bfloat16_losses_are_weighted():
    x = jnp.ones((257, 1), jnp.bfloat16)
    w = jnp.ones(1, jnp.bfloat16)
    losses_fn = lambda w, x: 0.5 * (x @ w) ** 2  # noqa: E731
    mean_loss = lambda w, x: losses_fn(w, x).mean()  # noqa: E731
    v = jnp.ones(1)
    for options in ({}, {"weights": jnp.ones(257)}):
        H = flatjax.hessian(losses_fn, w, x, **options)
        assert abs(float((H @ v)[0]) - 1.0) < 2 * BFLOAT16  # a sum of 257 rounds to 256
    assert abs(float((flatjax.hessian(mean_loss, w, x) @ v)[0]) - 1.0) < 2 * BFLOAT16


def test_bfloat16_slopes_are_centred_in_float32():
    # All gradients are equal, so that the covariance is zero; a count of 300 in bfloat16 is not.
    x, w = jnp.ones((301, 1), jnp.bfloat16), jnp.ones(1, jnp.bfloat16)
    K = flatjax.gradient_covariance(lambda w, x: x @ w, w, x)
    assert float((K @ jnp.ones(1))[0]) == 0.0


def test_a_float32_model_of_bfloat16_params():
    params, batch = NETWORKS["mlp"].cast(jnp.bfloat16)
    batch = batch[0].astype(jnp.float32), batch[1]

    def apply(params, x):
        return mlp(jax.tree.map(lambda a: a.astype(jnp.float32), params), x)

    op = references.make("covariance", apply, params, batch, weights=jnp.ones(8))
    flat = ravel_pytree(op @ jax.tree.map(lambda a: a.astype(jnp.float32), params))[0]
    assert flat.dtype == jnp.float32
    assert jnp.isfinite(flat).all()


def test_params_of_two_dtypes():
    params = {"a": jnp.ones(2, jnp.bfloat16), "b": jnp.ones(2, jnp.float32)}

    def losses_fn(p, x):
        return 0.5 * (x @ p["a"].astype(jnp.float32) + x @ p["b"]) ** 2

    op = flatjax.hessian(losses_fn, params, jnp.eye(2))
    assert op.to_dense().dtype == jnp.float32
    wanted = np.tile(np.eye(2), (2, 2)) / 2  # powers of two: exact in bfloat16 too
    np.testing.assert_array_equal(op.to_dense(), wanted)
    np.testing.assert_array_equal(op.linearize().to_dense(), wanted)


def test_float32_params_and_float64_data(x64, standard_promotion):
    params, _ = NETWORKS["mlp"].cast(jnp.float32)
    _, batch = NETWORKS["mlp"].cast(jnp.float64)
    for kind in ("hessian", "covariance", "ggn"):
        op = references.make(kind, mlp, params, batch, weights=jnp.ones(8))
        assert (op @ params)["out"]["bias"].dtype == jnp.float32
        wanted = references.dense(kind, references.reference("mlp"))
        references.assert_product(op, wanted, references.FLOAT32, linearized=False)


def precisions(f, *args):
    """The precision of every matrix product and convolution that ``f`` traces."""
    products = ("dot_general", "conv_general_dilated")
    all_equations = equations(jax.make_jaxpr(f)(*args).jaxpr)
    return [e.params["precision"] for e in all_equations if e.primitive.name in products]


HIGHEST = (jax.lax.Precision.HIGHEST,) * 2


@pytest.mark.parametrize("kind", references.OPERATORS)
def test_products_are_at_the_highest_precision(kind):
    # Neither the model, its derivative nor the transpose may fall back to TF32 on a GPU.
    params, batch = NETWORKS["cnn"].cast(jnp.float32)
    op = references.make(kind, cnn, params, batch)
    for operator in (op, op.linearize()):
        found = precisions(lambda op, v: op.mv(v), operator, params)
        assert found
        assert all(p in (HIGHEST, jax.lax.Precision.HIGHEST) for p in found)


def test_the_caller_may_opt_out():
    params, batch = NETWORKS["cnn"].cast(jnp.float32)
    op = references.make("ggn", cnn, params, batch, precision=None)
    for operator in (op, op.linearize()):
        assert set(precisions(lambda op, v: op.mv(v), operator, params)) == {None}
    op = references.make("ggn", cnn, params, batch, precision="bfloat16")
    assert HIGHEST not in precisions(lambda op, v: op.mv(v), op, params)


def test_per_example_gradients_are_at_the_highest_precision():
    params, batch = NETWORKS["cnn"].cast(jnp.float32)
    losses_fn = references.losses_fn(cnn)
    found = precisions(lambda p: flatjax.per_example_gradients(losses_fn, p, batch), params)
    assert found
    assert all(p == HIGHEST for p in found)
    found = precisions(
        lambda p: flatjax.per_example_gradients(losses_fn, p, batch, precision=None), params
    )
    assert set(found) == {None}


# Backward passes in float16, whose largest number is 65,504: a sum over the batch overflows where
# its mean has no trouble.
def half(w, x):
    return x.astype(jnp.float16) @ w.astype(jnp.float16)


def half_losses(model, w, batch):
    return (20 * (model(w, batch[0]).astype(jnp.float32) - 1) ** 2).mean(axis=1)


def of_large_batch(kind, model, w, batch, **options):
    match kind:
        case "mean":
            mean_loss = lambda w, b: half_losses(model, w, b).mean()  # noqa: E731
            return flatjax.hessian(mean_loss, w, batch, **options)
        case "losses":
            return flatjax.hessian(lambda w, b: half_losses(model, w, b), w, batch, **options)
        case "Mean":
            loss = lambda w, b: flatjax.Mean(  # noqa: E731
                half_losses(model, w, b).sum(), jnp.float32(b[0].shape[0])
            )
            return flatjax.hessian(loss, w, batch, **options)
        case "covariance":
            losses_fn = lambda w, b: half_losses(model, w, b)  # noqa: E731
            return flatjax.gradient_covariance(losses_fn, w, batch, **options)
        case "function":
            loss = lambda z, t: (20 * (z.astype(jnp.float32) - 1) ** 2).mean(axis=1)  # noqa: E731
            return flatjax.ggn(model, loss, w, batch, **options)
        case "ggn":
            return flatjax.ggn(model, flatjax.softmax_cross_entropy, w, batch, **options)
    return flatjax.fisher(
        model, flatjax.softmax_cross_entropy, w, batch, kind="empirical", **options
    )


KINDS = [
    "mean",
    pytest.param("losses", marks=pytest.mark.slow),
    pytest.param("Mean", marks=pytest.mark.slow),
    "covariance",
    pytest.param("function", marks=pytest.mark.slow),
    "ggn",
    "empirical",
]


@pytest.mark.parametrize("n", [8192, pytest.param(70_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", KINDS)
def test_no_sum_over_a_batch_in_float16(kind, n):
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(n, 5)), jnp.float32), jnp.arange(n) % 3
    w, v = (jnp.asarray(a, jnp.float32) for a in rng.normal(size=(2, 5, 3)))
    wanted = np.asarray(of_large_batch(kind, lambda w, x: x @ w, w, (x, y)) @ v)
    op = of_large_batch(kind, half, w, (x, y))
    halves = [(x[: n // 2], y[: n // 2]), (x[n // 2 :], y[n // 2 :])]
    ways = {
        "plain": op,
        "linearized": op.linearize(),
        "chunks": flatjax.operators._chunks.chunked(op, n // 4),
        "stream": flatjax.over_batches(lambda b: of_large_batch(kind, half, w, b), halves),
    }
    if kind in ("covariance", "ggn"):
        heavy = jnp.full(n, 1e4)
        ways["heavy weights"] = of_large_batch(kind, half, w, (x, y), weights=heavy)
    for name, way in ways.items():
        # An example's term is rounded some four times by 2^-11, independently of the others', and
        # a sum in float16 is rounded once more.
        gap = np.abs(np.asarray(way @ v) - wanted).max() / np.abs(wanted).max()
        assert gap < 2e-3, name


def test_measures_of_a_large_batch_in_float16():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(8192, 5)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    found, wanted = (
        flatjax.sam_sharpness(lambda w, b, m=m: half_losses(m, w, b), w, (x, None), rho=0.1)
        for m in (half, lambda w, x: x @ w)
    )
    assert float(found.value) == pytest.approx(float(wanted.value), rel=2e-2)
