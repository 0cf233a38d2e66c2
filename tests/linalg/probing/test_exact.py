"""Dimensions so small that all products cost no more than an estimate are answered exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax.linalg._trace import METHODS

KEY = jax.random.key(0)


def matrix(n):
    a = np.random.default_rng(n).standard_normal((n, n))
    return jnp.asarray(a @ a.T + np.eye(n), jnp.float32)  # positive definite, for every method


def estimators(a, known):
    """Name, estimate and truth, of a matrix that may be traced and one that is known."""
    n, exact = len(a), np.asarray(known, np.float64)
    values = np.linalg.eigvalsh(exact)

    def op(v):
        return {"w": jnp.matmul(a, v["w"], precision="highest")}

    few = {"key": KEY, "structure": {"w": jnp.zeros(n)}}
    for method in METHODS:
        yield f"trace {method}", lambda m=method: flatjax.trace(op, method=m, **few), values.sum()
    yield "trace to a tolerance", lambda: flatjax.trace(op, rtol=0.1, **few), values.sum()
    for method in ("hutchinson", "deflated", "xdiag"):
        yield (
            f"diagonal {method}",
            lambda m=method: flatjax.diagonal(op, method=m, **few),
            exact.diagonal(),
        )
    norm = np.linalg.norm(exact)
    yield "frobenius_norm", lambda: flatjax.frobenius_norm(op, **few), norm
    yield "logdet", lambda: flatjax.logdet(op, **few), np.log(values).sum()
    yield (
        "trace_of_function",
        lambda: flatjax.trace_of_function(op, jnp.sqrt, **few),
        np.sqrt(values).sum(),
    )
    ends = {"k": 1, "num_bottom": min(1, n - 1)} | few

    def everything():
        return flatjax.spectrum(op, diagonal=True, by="leaf", **ends)

    yield "spectrum", lambda: everything().trace, values.sum()
    yield "spectrum's norm", lambda: everything().frobenius_norm, norm
    yield "spectrum's layer", lambda: everything().layers["w"].trace, values.sum()
    yield (
        "spectrum's function",
        lambda: everything().trace_of_function(jnp.log),
        np.log(values).sum(),
    )


def names(n):
    return [name for name, _, _ in estimators(matrix(n), matrix(n))]


def check(found, truth, n):
    value = np.concatenate([np.ravel(x) for x in jax.tree.leaves(found.value)]).astype(float)
    error = np.concatenate([np.ravel(x) for x in jax.tree.leaves(found.standard_error)])
    # Sums of n float32 products of n terms each.
    np.testing.assert_allclose(value, np.ravel(truth), rtol=1e-5)
    np.testing.assert_array_equal(error, 0)
    assert bool(found.converged)
    assert found.num_products == n


@pytest.mark.parametrize("name", names(3))
@pytest.mark.parametrize("n", [1, 2, 3])
def test_every_estimator_answers_exactly(name, n):
    _, solve, truth = next(e for e in estimators(matrix(n), matrix(n)) if e[0] == name)
    check(solve(), truth, n)


@pytest.mark.parametrize(
    "name", ["trace hutchinson", "trace to a tolerance", "diagonal hutchinson"]
)
def test_inside_jit_too(name):
    known = matrix(3)

    def one(a):
        return next(e for e in estimators(a, known) if e[0] == name)

    check(jax.jit(lambda a: one(a)[1]())(known), one(known)[2], 3)


def test_the_rule_is_the_number_of_products():
    few = {"key": KEY}
    for n in (12, 13):
        a = matrix(n)
        op, structure = (lambda v, a=a: jnp.matmul(a, v, precision="highest")), a[0]
        found = flatjax.trace(op, num_products=12, structure=structure, **few)
        assert found.num_products == 12  # never more than asked for
        assert (float(found.standard_error) == 0) == (n == 12)
        found = flatjax.frobenius_norm(op, num_products=12, structure=structure, **few)
        assert found.num_products == 12
        assert (float(found.standard_error) == 0) == (n == 12)
        found = flatjax.diagonal(op, num_products=12, structure=structure, **few)
        assert found.num_products == 12
        assert bool((found.standard_error == 0).all()) == (n == 12)
        counts = {"num_probes": 2, "num_steps": 4, "deflation_steps": 4}
        density = flatjax.spectral_density(op, structure=structure, **counts, **few)
        assert (density.num_exact == n) == (n == 12)


def test_the_density_of_few_dimensions_is_that_of_its_eigenvalues():
    a = matrix(30)
    found = flatjax.spectral_density(lambda v: a @ v, key=KEY, structure=a[0])
    values = np.linalg.eigvalsh(np.asarray(a, np.float64))
    np.testing.assert_allclose(found.atoms[:30], values, rtol=1e-6)
    np.testing.assert_allclose(found.weights[:30], 1 / 30)
    np.testing.assert_allclose(found.mean_of(np.log), np.log(values).mean(), rtol=1e-6)


def test_a_small_spectrum_goes_on_as_a_larger_one():
    a = matrix(20)
    few = {"key": KEY, "k": 2, "num_bottom": 1, "structure": {"w": a[0]}}
    found = flatjax.spectrum(lambda v: {"w": a @ v["w"]}, **few)
    true = np.linalg.eigvalsh(np.asarray(a, np.float64))
    np.testing.assert_allclose(found.top.values, true[:-3:-1], rtol=1e-5)
    assert found.num_products == int(found.state.num_products) == 20
    again = flatjax.spectrum(lambda v: {"w": a @ v["w"]}, resume=found.state, **few)
    np.testing.assert_allclose(again.top.values, found.top.values, rtol=1e-5)


def test_products_that_are_not_finite():
    for bad in (jnp.nan, jnp.inf):
        a = matrix(5).at[2, 2].set(bad)
        op, few = (lambda v, a=a: a @ v), {"key": KEY, "structure": a[0]}
        for f in (flatjax.trace, flatjax.diagonal, flatjax.frobenius_norm, flatjax.logdet):
            assert not bool(f(op, **few).converged)
        found = flatjax.spectrum(op, k=1, num_bottom=1, **few)
        assert not bool(found.trace.converged)
        assert not np.asarray(found.top.converged).any()


class Drawing(flatjax.Operator):
    """A matrix of whose entries every product sees another error, as of a loader that draws."""

    host_driven = True

    def __init__(self, a, error):
        self.a, self.error, self.rng = np.asarray(a, np.float64), error, np.random.default_rng(0)
        self.count = 0

    @property
    def structure(self):
        return jax.ShapeDtypeStruct(self.a.shape[:1], jnp.float32)

    def mv(self, v):
        self.count += 1
        drawn = self.a + self.error * self.rng.standard_normal(self.a.shape)
        return jnp.asarray(drawn @ np.asarray(v, np.float64), jnp.float32)


def test_products_that_differ_have_an_error():
    """As many standard deviations off as an error says; 30 dimensions, 100 draws."""
    a, error = np.asarray(matrix(30)), 0.5
    op, scores = Drawing(a, error), {"trace": [], "norm": [], "diagonal": []}
    for _ in range(100):
        trace = flatjax.trace(op, num_products=30, key=KEY)
        norm = flatjax.frobenius_norm(op, num_products=30, key=KEY)
        diagonal = flatjax.diagonal(op, num_products=30, key=KEY)
        assert trace.num_products == norm.num_products == diagonal.num_products == 30
        scores["trace"].append((trace.value - a.trace()) / trace.standard_error)
        scores["norm"].append((norm.value - np.linalg.norm(a)) / norm.standard_error)
        scores["diagonal"].append((diagonal.value - a.diagonal()) / diagonal.standard_error)
        half = trace.interval[1] - trace.value
        np.testing.assert_allclose(half, 2 * trace.standard_error, rtol=1e-3)  # float32
    # The spread of 100 standard scores is 1 +- 0.07; of the norm the error is at least that, for
    # the squares of the errors add up.
    for name in ("trace", "diagonal"):
        assert 0.75 < np.std(scores[name]) < 1.3, name
    assert np.std(scores["norm"]) < 1.3
    assert np.abs(scores["norm"]).mean() < 1.5


def test_eigenvalues_of_products_that_differ_are_not_exact():
    a = np.asarray(matrix(30)) / 30
    op = Drawing(a, 0.05)
    found = flatjax.spectrum(op, k=1, num_bottom=1, key=KEY)
    assert found.num_products == op.count > 30
    off = np.abs(np.linalg.eigvalsh(a)[-1] - float(found.top.values[0]))
    assert off < float(found.top.residual_norms[0])
    assert float(found.noise_floor) > 0.01
    assert float(found.trace.standard_error) > 0
    assert flatjax.spectral_density(op, key=KEY).num_exact == 0
    op.count = 0
    assert flatjax.trace_of_function(op, jnp.square, key=KEY).num_products == op.count


@pytest.mark.parametrize("leaves", [1, 2])
def test_the_residuals_of_what_is_not_symmetric_are_true(leaves):
    n = 40
    a = np.diag(np.linspace(1, 10, n))
    a[0, 1:] = 3.0  # of norm 19.8
    dense = jnp.asarray(a, jnp.float32)
    structure = jnp.zeros(n) if leaves == 1 else [jnp.zeros(n - 3), jnp.zeros((3, 1))]
    _, unravel = jax.flatten_util.ravel_pytree(structure)
    op = lambda v: unravel(dense @ jax.flatten_util.ravel_pytree(v)[0])  # noqa: E731
    for seed in (0, 6):  # with these Ritz values of 178 and 120
        found = flatjax.spectrum(op, k=2, num_bottom=2, key=jax.random.key(seed),
                                 structure=structure)  # fmt: skip
        for pairs in (found.top, found.bottom):
            for i in range(2):
                vector = jax.tree.map(lambda x, i=i: x[i], pairs.vectors)
                u = np.asarray(jax.flatten_util.ravel_pytree(vector)[0], np.float64)
                true = np.linalg.norm(a @ u - float(pairs.values[i]) * u)
                # A sum in float32 of what it measures in float64.
                assert true <= float(pairs.residual_norms[i]) * (1 + 1e-5)
                if abs(float(pairs.values[i])) > 20:
                    assert not bool(pairs.converged[i])


def test_what_is_not_symmetric_is_said():
    a = jnp.triu(jnp.ones((20, 20)))
    few = {"key": KEY, "structure": a[0]}
    found = flatjax.spectrum(lambda v: a @ v, k=1, num_bottom=1, **few)
    assert not bool(found.top.converged[0])
    trace = flatjax.trace(lambda v: a @ v, **few)
    # |A - A'| is sqrt(20 * 19), of 20 errors of an entry it makes sqrt(19 / 2).
    assert float(trace.value) == 20
    np.testing.assert_allclose(trace.standard_error, 9.5**0.5, rtol=1e-6)
    assert not bool(trace.converged)
    assert not bool(jax.jit(lambda a: flatjax.trace(lambda v: a @ v, **few))(a).converged)
