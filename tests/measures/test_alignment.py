"""Alignment of operators: exact traces, honest errors, and the pairs of H, F and C."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax.measures import alignment, gradient_alignment
from tests.measures import networks

pytestmark = pytest.mark.usefixtures("x64")

DIM = 6
A, B = networks.spd(DIM, seed=1), networks.spd(DIM, seed=2, condition=100.0)


def dense(matrix):
    m = jnp.asarray(matrix)
    return flatjax.operators.as_operator(lambda v: m @ v, jnp.zeros(DIM))


def by_hand(a, b):
    cosine = np.trace(a @ b) / np.linalg.norm(a) / np.linalg.norm(b)
    return np.trace(a) / np.trace(b), cosine


@pytest.fixture(scope="module")
def matrices():
    """The three matrices of a small network: operators and dense."""
    with jax.enable_x64(True):
        params, batch = networks.relu_params(), networks.data()
        ops = {
            "H": flatjax.hessian(networks.relu_loss, params, batch),
            "F": flatjax.fisher(networks.relu_net, flatjax.softmax_cross_entropy, params, batch),
            "C": flatjax.gradient_covariance(networks.relu_loss, params, batch),
        }
        return ops, {name: np.asarray(op.to_dense()) for name, op in ops.items()}


@pytest.mark.parametrize("pair", ["HF", "HC", "CF"])
def test_pairs_of_a_network(matrices, pair):
    ops, dense_ops = matrices
    first, second = pair
    ratio, cosine = by_hand(dense_ops[first], dense_ops[second])
    exact = alignment(ops[first], ops[second], method="exact")
    np.testing.assert_allclose(exact.ratio, ratio, rtol=1e-11)
    np.testing.assert_allclose(exact.cosine, cosine, rtol=1e-11)
    assert exact.num_products == 2 * ops["H"].size
    estimate = alignment(ops[first], ops[second], key=jax.random.key(0), num_probes=200)
    # Four standard errors, of a ratio from 200 probes.
    assert abs(float(estimate.ratio) - ratio) < 4 * float(estimate.ratio_standard_error)
    assert abs(float(estimate.cosine) - cosine) < 4 * float(estimate.cosine_standard_error)
    assert float(estimate.cosine_standard_error) < 0.1


def test_standard_errors_are_honest_over_seeds():
    def one(key):
        result = alignment(dense(A), dense(B), key=key, num_probes=64)
        return (
            result.ratio, result.ratio_standard_error, result.cosine, result.cosine_standard_error
        )  # fmt: skip

    ratios, ratio_errors, cosines, cosine_errors = jax.jit(jax.vmap(one))(
        jax.random.split(jax.random.key(0), 300)
    )
    for values, errors, exact in zip(
        (ratios, cosines), (ratio_errors, cosine_errors), by_hand(A, B), strict=True
    ):
        z = (np.asarray(values) - exact) / np.asarray(errors)
        # About 5 % beyond 2, binomial s.e. 1.3 %; a jackknife of 64 skewed samples errs a little.
        assert (np.abs(z) > 2).mean() < 0.12
        assert abs(z.mean()) < 0.5  # the bias of a ratio: a fraction of the standard error


def test_an_operator_is_aligned_with_itself():
    result = alignment(dense(A), dense(A), key=jax.random.key(0), num_probes=3)
    # Exact whatever the probes.
    np.testing.assert_allclose([result.ratio, result.cosine], 1.0, rtol=1e-14)
    np.testing.assert_allclose(
        [result.ratio_standard_error, result.cosine_standard_error], 0.0, atol=1e-14
    )


def test_scales_and_rotations():
    q = np.linalg.qr(np.random.default_rng(3).normal(size=(DIM, DIM)))[0]
    plain = alignment(dense(A), dense(B), method="exact")
    rotated = alignment(dense(q.T @ A @ q), 2.0 * dense(q.T @ B @ q), method="exact")
    np.testing.assert_allclose(rotated.cosine, plain.cosine, rtol=1e-13)
    np.testing.assert_allclose(2 * rotated.ratio, plain.ratio, rtol=1e-13)


def test_factors_give_the_covariance_and_the_fisher_matrix():
    params, (x, y) = networks.relu_params(), networks.data()
    drawn = flatjax.softmax_cross_entropy.sample(jax.random.key(1), networks.relu_net(params, x))
    gradients = [
        flatjax.per_example_gradients(networks.relu_loss, params, (x, targets))
        for targets in (y, drawn)
    ]
    result = gradient_alignment(*gradients)
    C, F = (
        flatjax.gradient_covariance(networks.relu_loss, params, (x, targets), centered=False)
        for targets in (y, drawn)
    )
    reference = alignment(C, F, method="exact")
    for field in ("ratio", "cosine", "traces", "squared_norms", "inner_product"):
        np.testing.assert_allclose(getattr(result, field), getattr(reference, field), rtol=1e-11)
    assert result.num_products == 0


def test_streams_of_batches():
    params, (x, y) = networks.relu_params(), networks.data()
    batches = [(x[:8], y[:8]), (x[8:], y[8:])]
    stream = flatjax.over_batches(lambda b: flatjax.hessian(networks.relu_loss, params, b), batches)
    whole = flatjax.hessian(networks.relu_loss, params, (x, y))
    results = [alignment(op, whole, key=jax.random.key(0), num_probes=2) for op in (stream, whole)]
    np.testing.assert_allclose(results[0].ratio, 1.0, rtol=1e-11)
    np.testing.assert_allclose(results[0].cosine, 1.0, rtol=1e-11)


def test_bad_arguments():
    a = dense(A)
    with pytest.raises(ValueError, match="needs key="):
        alignment(a, a)
    with pytest.raises(ValueError, match='"exact" takes none'):
        alignment(a, a, method="exact", key=jax.random.key(0))
    with pytest.raises(ValueError, match="method must be one of"):
        alignment(a, a, method="gram")
    other = flatjax.operators.as_operator(lambda v: v, jnp.zeros(3))
    with pytest.raises(ValueError, match="vectors of b has shape"):
        alignment(a, other, key=jax.random.key(0))
    with pytest.raises(ValueError, match="every leaf needs a leading axis"):
        gradient_alignment(jnp.zeros(()), jnp.zeros(()))
