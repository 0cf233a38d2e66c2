"""The diagonal, entry by entry within its standard error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax import linalg

N = 60
BASIS = np.linalg.qr(np.random.default_rng(3).normal(size=(N, N)))[0]
OUTLIERS = np.concatenate([[30.0, 20.0, 10.0, -8.0], np.linspace(0.0, 0.5, N - 4)])
STRUCTURE = {"a": jnp.zeros((4, 5)), "b": jnp.zeros(N - 20)}


def matvec(matrix, v):
    image = jnp.matmul(matrix, jnp.concatenate([v["a"].ravel(), v["b"]]), precision="highest")
    return {"a": image[:20].reshape(4, 5), "b": image[20:]}


def dense(values):
    return (BASIS * values) @ BASIS.T


def operator(values):
    return jax.tree_util.Partial(matvec, jnp.asarray(dense(values), jnp.float32))


def flat(tree):
    return np.concatenate([np.asarray(leaf, float).ravel() for leaf in jax.tree.leaves(tree)])


@pytest.mark.parametrize("method", ["hutchinson", "deflated", "xdiag"])
def test_unbiased_within_its_standard_errors(method):
    op, truth = operator(OUTLIERS), np.diag(dense(OUTLIERS))
    errors, scores = [], []
    for seed in range(12):
        found = linalg.diagonal(
            op, key=jax.random.key(seed), method=method, num_products=40, structure=STRUCTURE
        )
        error = flat(found.value) - truth
        errors.append(error)
        scores.append(error / flat(found.standard_error))
        assert found.num_products <= 40
        low, high = (jax.tree.map(lambda a, i=i: a[i], found.interval) for i in (0, 1))
        assert np.all(flat(low) <= flat(found.value))
        assert np.all(flat(found.value) <= flat(high))
    # 720 scores of a Student's t: mean square 1.1; those of one seed are dependent, hence the
    # room. A leave-one-out error bar is conservative by up to sqrt(2).
    assert 0.3 < np.mean(np.square(scores)) < 1.8
    # The mean over seeds errs by 1/sqrt(12) of one seed.
    assert np.linalg.norm(np.mean(errors, axis=0)) < 0.6 * np.mean(
        [np.linalg.norm(e) for e in errors]
    )


def test_deflation_and_leaving_one_out_pay_with_outliers():
    op, truth = operator(OUTLIERS), np.diag(dense(OUTLIERS))

    def rmse(method):
        found = [
            linalg.diagonal(
                op, key=jax.random.key(s), method=method, num_products=40, structure=STRUCTURE
            )
            for s in range(4)
        ]
        return np.sqrt(np.mean([np.sum((flat(f.value) - truth) ** 2) for f in found]))

    plain = rmse("hutchinson")
    # |A|_F = 38 with the outliers, 2.2 without: half the probes on a rest 17 times smaller.
    assert rmse("deflated") < plain / 5
    assert rmse("xdiag") < plain / 5


@pytest.mark.parametrize("method", ["hutchinson", "deflated", "xdiag"])
@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e12])
def test_zero_rank_deficient_and_scaled(method, scale):
    values = np.zeros(N)
    values[:3] = np.array([3.0, 2.0, 1.0]) * scale
    found = linalg.diagonal(
        operator(values), key=jax.random.key(0), method=method, structure=STRUCTURE
    )
    truth = np.diag(dense(values))
    assert np.all(np.isfinite(flat(found.value)))
    assert np.all(np.isfinite(flat(found.standard_error)))
    if method != "hutchinson":  # rank 3 is known exactly; float32 rounds at eps * |A|
        np.testing.assert_allclose(flat(found.value), truth, atol=1e-5 * scale)


def test_traced_equals_eager():
    matrix = jnp.asarray(dense(OUTLIERS), jnp.float32)

    def run(m, method):
        given = {"key": jax.random.key(0), "num_products": 12, "structure": STRUCTURE}
        return linalg.diagonal(jax.tree_util.Partial(matvec, m), method=method, **given).value

    traced = jax.jit(run, static_argnums=1)
    # Sums in another order: eps * |A| for every one of some products.
    found, expected = (flat(f(matrix, "hutchinson")) for f in (traced, run))
    np.testing.assert_allclose(found, expected, atol=30 * 1e-5)
    for method in ("deflated", "xdiag"):
        with pytest.raises(TypeError, match="outside jit"):
            traced(matrix, method)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "exact"}, "method must be one of"),
        ({"num_products": 1}, "num_products must be at least 2"),
        ({"method": "xdiag", "num_products": 3}, "num_products must be at least 4"),
        ({"rtol": -0.1}, "rtol must not be negative"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        linalg.diagonal(operator(OUTLIERS), key=jax.random.key(0), structure=STRUCTURE, **options)
