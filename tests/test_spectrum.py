"""One Lanczos run gives pairs, trace, norm, density and layers, each with its certificate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import wasserstein_distance

import flatjax
from flatjax.linalg.krylov import _step as krylov

N = 400
BULK = np.random.default_rng(1).uniform(0.0, 1.0, N - 9) ** 3
VALUES = np.concatenate([[50.0, 30.0, 20.0, 10.0, 8.0, 6.0], BULK, [-0.8, -1.0, -2.0]])
STRUCTURE = {"a": jnp.zeros((15, 20)), "b": {"c": jnp.zeros(100)}}


def matvec(matrix, tree):
    v = jnp.concatenate([tree["a"].ravel(), tree["b"]["c"]])
    w = jnp.matmul(matrix, v, precision="highest")
    return {"a": w[:300].reshape(15, 20), "b": {"c": w[300:]}}


def rotated(values, seed=0):
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    return (basis * values) @ basis.T


DENSE = rotated(VALUES)


def operator(dense):
    return jax.tree_util.Partial(matvec, jnp.asarray(dense, jnp.float32))


def flat(tree):
    return np.concatenate([np.asarray(leaf, float).ravel() for leaf in jax.tree.leaves(tree)])


@pytest.fixture(scope="module")
def result():
    return flatjax.spectrum(
        operator(DENSE),
        key=jax.random.key(0),
        k=6,
        num_bottom=3,
        by="leaf",
        diagonal=True,
        structure=STRUCTURE,
    )


def test_pairs_at_both_ends_with_their_certificates(result):
    # float32: a converged value errs by some eps * |lambda|_max = 6e-6.
    np.testing.assert_allclose(result.top.values, VALUES[:6], atol=5e-5)
    np.testing.assert_allclose(result.bottom.values, VALUES[-3:], atol=5e-4)
    assert result.top.converged.all()
    assert result.bottom.converged.all()
    assert result.top.resolved.all()
    assert result.bottom.resolved.all()
    for pairs in (result.top, result.bottom):
        for i, value in enumerate(np.asarray(pairs.values, float)):
            v = flat(jax.tree.map(lambda a, i=i: a[i], pairs.vectors))
            true = np.linalg.norm(DENSE @ v - value * v)
            # The certificate is an estimate with the noise of the products in it.
            assert true < 3 * float(pairs.residual_norms[i]) + float(result.noise_floor)
    # Between the rounding of one product and what would spoil the smallest of these values.
    assert 1e-7 * 50 < float(result.noise_floor) < 1e-3


def test_trace_and_norm_lie_in_their_intervals(result):
    low, high = result.trace.interval
    assert low < VALUES.sum() < high
    assert float(result.trace.standard_error) <= 0.01 * float(result.trace.value)
    assert result.trace.converged
    low, high = result.frobenius_norm.interval
    assert low < np.linalg.norm(VALUES) < high


def test_density_has_the_outliers_as_exact_atoms(result):
    density = result.density
    weights, atoms = np.asarray(density.weights, float), np.asarray(density.atoms, float)
    assert density.num_exact >= 9
    np.testing.assert_allclose(weights[: density.num_exact], 1 / N, rtol=1e-6)
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-5)
    # 4 probes see the mean of the bulk to std(bulk) / sqrt(4 n) = 7e-3; W1 is of that size.
    assert wasserstein_distance(VALUES, atoms, None, weights) < 0.02
    step = float(density.grid[1] - density.grid[0])
    np.testing.assert_allclose(np.sum(density.density) * step, 1, atol=0.02)  # 5 % margin, sigma
    truth = np.searchsorted(np.sort(VALUES), np.asarray(density.grid)) / N
    # Gauss quadrature smears a jump over a node's spacing: compare where the bulk has ended.
    far = np.asarray(density.grid) > 1.5
    np.testing.assert_allclose(np.asarray(density.cdf)[far], truth[far], atol=2e-3)
    assert np.all(density.band[0] <= density.density)
    assert np.all(density.density <= density.band[1])


def test_layers_add_up_to_the_whole(result):
    assert set(result.layers) == {"a", "b/c"}
    blocks = {"a": slice(0, 300), "b/c": slice(300, N)}
    for name, layer in result.layers.items():
        low, high = layer.trace.interval
        assert low < np.trace(DENSE[blocks[name], blocks[name]]) < high
        # The mass of a local density is 1 up to the chance of its probes.
        np.testing.assert_allclose(np.sum(layer.density.weights), 1, atol=0.05)
    total = sum(float(layer.trace.value) for layer in result.layers.values())
    np.testing.assert_allclose(total, float(result.trace.value), rtol=1e-3)
    # Local densities are exact where the eigenvector is known: compare its share of the layer.
    vector = np.linalg.eigh(DENSE)[1][:, -1]
    layer = result.layers["a"].density
    top = int(np.argmax(np.asarray(layer.atoms)[: layer.num_exact]))
    share = np.sum(vector[:300] ** 2) / 300
    np.testing.assert_allclose(float(layer.weights[top]), share, rtol=1e-3)


def test_diagonal_is_unbiased_within_its_noise(result):
    # A Hutchinson probe errs by the off-diagonal part of what is not deflated: here the bulk.
    rest = DENSE - sum_of_outliers()
    noise = np.sqrt(np.sum(rest**2) - np.sum(np.diag(rest) ** 2))
    probes = result.num_products - int(result.state.run.step)
    error = np.linalg.norm(flat(result.diagonal) - np.diag(DENSE))
    assert error < noise  # one probe alone; there are several
    assert error > noise / (3 * np.sqrt(probes))  # and it is no accident: it is of that size


def sum_of_outliers():
    values, vectors = np.linalg.eigh(DENSE)
    far = (values > 1.5) | (values < -0.5)
    return (vectors[:, far] * values[far]) @ vectors[:, far].T


def test_functions_of_the_operator(result):
    estimate = result.trace_of_function(lambda x: jnp.exp(-jnp.square(x)))
    truth = np.exp(-(VALUES**2)).sum()
    assert abs(float(estimate.value) - truth) < 4 * float(estimate.standard_error)


def test_all_products_are_counted():
    calls = 0
    matrix = jnp.asarray(DENSE, jnp.float32)

    class Counted(flatjax.Operator):
        host_driven = True
        structure = STRUCTURE

        def mv(self, v):
            nonlocal calls
            calls += 1
            return matvec(matrix, v)

    found = flatjax.spectrum(Counted(), key=jax.random.key(3), k=3, num_bottom=1)
    assert found.num_products == calls


@pytest.mark.parametrize(
    ("dense", "options", "steps"),
    [
        (DENSE, {"num_steps": 60}, 10),
        (DENSE, {"num_steps": 24}, 30),  # the start vector's own quadrature is no deeper
        (DENSE, {"num_steps": 60, "by": "leaf"}, 30),
        # One copy of forty stands for all in it.
        (rotated(np.append(np.full(40, 50.0), BULK[:360])), {"num_steps": 40}, 30),
    ],
)
def test_probes_are_short_beside_a_deep_quadrature(dense, options, steps):
    options = options | {"k": 3, "num_bottom": 1, "trace_rtol": None, "structure": STRUCTURE}
    op, key = operator(dense), jax.random.key(4)
    found = flatjax.spectrum(op, key=key, **options)
    same = flatjax.spectrum(op, key=key, probe_steps=steps, **options)
    assert found.num_products == same.num_products == options["num_steps"] + 4 * steps
    np.testing.assert_array_equal(found.density.atoms, same.density.atoms)


def test_probes_of_one_step_are_those_that_start_longer_runs():
    """Alone they need no basis; with layers they have one."""
    options = {"k": 3, "num_bottom": 1, "num_steps": 40, "probe_steps": 1, "structure": STRUCTURE}
    op, key = operator(DENSE), jax.random.key(4)
    alone, based = (flatjax.spectrum(op, key=key, by=by, **options) for by in (None, "leaf"))
    assert alone.num_products == based.num_products
    # Rayleigh quotients of order one, in float32; packed vectors are summed in another order.
    np.testing.assert_allclose(alone.density.nodes, based.density.nodes, atol=1e-4)
    np.testing.assert_allclose(alone.density.weights, based.density.weights, atol=1e-5)


def test_products_that_are_not_finite_are_known_to_be_nothing():
    found = flatjax.spectrum(
        lambda v: v * jnp.nan, key=jax.random.key(0), k=1, structure=jnp.zeros(12)
    )
    assert found.complete is None
    assert found.top.complete is None
    assert not found.top.converged.any()
    text = repr(found.top)
    assert "nan" in text.splitlines()[2].split()[0]


def test_goes_on_from_an_earlier_run(result):
    options = {"k": 6, "num_bottom": 3, "structure": STRUCTURE}
    op, key = operator(DENSE), jax.random.key(5)
    short = flatjax.spectrum(op, key=key, num_steps=16, **options)
    longer = flatjax.spectrum(op, key=key, num_steps=40, resume=short.state, **options)
    whole = flatjax.spectrum(op, key=key, num_steps=40, **options)
    assert not short.bottom.converged.all()
    # The very same steps, but in buffers of another size: sums in another order.
    np.testing.assert_allclose(longer.bottom.values, whole.bottom.values, atol=1e-5)
    np.testing.assert_allclose(longer.trace.value, whole.trace.value, rtol=1e-4)
    # One product more has shown that the operator is the same.
    assert int(longer.state.num_products) == int(whole.state.num_products) + 1
    with pytest.raises(ValueError, match="resume has 40 Lanczos steps already"):
        flatjax.spectrum(op, key=key, num_steps=20, resume=longer.state, **options)
    assert int(longer.state.run.step) == 40  # an error leaves the state usable
    flatjax.spectrum(op, key=key, num_steps=41, resume=longer.state, **options)


def test_a_run_in_several_parts_is_the_same_run(monkeypatch):
    options = {"k": 4, "num_bottom": 1, "structure": STRUCTURE}
    op, key = operator(DENSE), jax.random.key(5)
    found = []
    for small in (0, krylov.SMALL):  # numbers up to which a run begins with all its rows
        monkeypatch.setattr(krylov, "SMALL", small)
        first = flatjax.spectrum(op, key=key, num_steps=8, **options)
        again = flatjax.spectrum(op, key=key, num_steps=30, resume=first.state, **options)
        layers = flatjax.spectrum(
            op, key=key, num_steps=31, resume=again.state, by="leaf", diagonal=True, **options
        )
        found.append((again, layers))
    for one, other in zip(*found, strict=True):
        # The same steps, their sums in another order: rounding, grown over 30 steps.
        np.testing.assert_allclose(one.top.values, other.top.values, rtol=1e-5)
        np.testing.assert_allclose(one.bottom.values, other.bottom.values, atol=1e-4)
        np.testing.assert_allclose(one.trace.value, other.trace.value, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
        found[0][1].diagonal, found[1][1].diagonal,
    )  # fmt: skip


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1.0, 1e12])
@pytest.mark.parametrize("rank", [3, 12])
def test_rank_deficient_zero_and_scaled(scale, rank):
    values = np.zeros(24)
    values[:rank] = np.arange(rank, 0, -1) * scale
    dense = jnp.asarray(rotated(values), jnp.float32)
    op = jax.tree_util.Partial(jnp.matmul, dense)
    found = flatjax.spectrum(op, key=jax.random.key(0), k=3, num_bottom=1, structure=jnp.zeros(24))
    size = rank * scale
    assert all(
        np.all(np.isfinite(leaf))
        for leaf in jax.tree.leaves((found.top, found.bottom, found.trace.value, found.density.cdf))
    )
    np.testing.assert_allclose(found.top.values, values[:3], atol=1e-5 * size)
    np.testing.assert_allclose(found.bottom.values, [values.min()], atol=1e-5 * size)
    np.testing.assert_allclose(found.trace.value, values.sum(), rtol=1e-4, atol=1e-6 * size)
    np.testing.assert_allclose(np.sum(found.density.weights), 1, rtol=1e-4)


def quadratic(w, x):
    return 0.5 * (x @ w) ** 2


def test_streams_and_few_programs_with_the_model(key):
    x = jax.random.normal(key, (60, 30))
    traced = 0

    def counted(w, x):
        nonlocal traced
        traced += 1
        return quadratic(w, x)

    options = {"key": key, "k": 3, "num_bottom": 1, "num_steps": 20, "trace_rtol": None}
    whole = flatjax.spectrum(flatjax.hessian(counted, jnp.zeros(30), x), **options)
    again = flatjax.spectrum(flatjax.hessian(counted, jnp.ones(30), x + 1), **options)
    assert traced == 2  # once where an operator is made
    assert not np.allclose(again.top.values, whole.top.values)
    stream = flatjax.over_batches(
        lambda b: flatjax.hessian(quadratic, jnp.zeros(30), b), [x[:25], x[25:]]
    )
    streamed = flatjax.spectrum(stream, **options)
    np.testing.assert_allclose(streamed.top.values, whole.top.values, rtol=1e-4)


@pytest.mark.slow
def test_intervals_cover_the_truth():
    covered = {"trace": 0, "norm": 0, "layer": 0}
    runs = 300
    op = operator(DENSE)
    for seed in range(runs):
        found = flatjax.spectrum(
            op,
            key=jax.random.key(seed),
            k=3,
            num_bottom=1,
            num_steps=16,
            num_probes=2,
            probe_steps=2,
            trace_rtol=1e-6,
            max_trace_products=20,
            by="leaf",
            structure=STRUCTURE,
        )
        low, high = found.trace.interval
        covered["trace"] += bool(low < VALUES.sum() < high)
        low, high = found.frobenius_norm.interval
        covered["norm"] += bool(low < np.linalg.norm(VALUES) < high)
        low, high = found.layers["a"].trace.interval
        covered["layer"] += bool(low < np.trace(DENSE[:300, :300]) < high)
    # 95 % nominal; 92 to 99 % is three standard deviations of 300 trials.
    assert all(0.92 * runs <= count <= 0.99 * runs for count in covered.values()), covered


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"k": 0}, ValueError, "k must be at least 1"),
        ({"k": 500}, ValueError, "exceed the dimension 400"),
        ({"num_steps": 5}, ValueError, "raise num_steps or max_steps"),
        ({"probe_steps": 0}, ValueError, "probe_steps must be at least 1"),
        ({"num_probes": 1}, ValueError, "num_probes must be at least 2"),
        ({"tol": -1.0}, ValueError, "tol must not be negative"),
        ({"by": "module"}, ValueError, 'by must be "layer", "leaf"'),
        ({"scale": "cubic", "num_steps": 16}, ValueError, "scale must be"),
        ({"structure": None}, ValueError, "a callable needs structure="),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        flatjax.spectrum(
            operator(DENSE), key=jax.random.key(0), **({"structure": STRUCTURE} | arguments)
        )


def test_inside_jit_is_an_error():
    with pytest.raises(TypeError, match="driven from the host"):
        jax.jit(
            lambda m: flatjax.spectrum(
                lambda v: m @ v, key=jax.random.key(0), k=1, structure=jnp.zeros(20)
            )
        )(jnp.eye(20))


def test_within_bytes_it_is_the_same(result):
    # The vectors stay combinations of the run's: up to rounding everything is the same.
    named = {"key": jax.random.key(0), "k": 6, "num_bottom": 3, "structure": STRUCTURE}
    room = 4 * N * (result.state.run.alphas.shape[0] + 64)
    found = flatjax.spectrum(operator(DENSE), by="leaf", diagonal=True, basis_bytes=room, **named)
    assert found.num_products == result.num_products
    for name in ("top", "bottom"):
        new, old = getattr(found, name), getattr(result, name)
        np.testing.assert_allclose(new.values, old.values, atol=5e-5)  # eps * 50, some times
        np.testing.assert_array_equal(new.converged, old.converged)
        overlaps = np.sum(flat_rows(new.vectors) * flat_rows(old.vectors), axis=1)
        np.testing.assert_allclose(np.abs(overlaps), 1, atol=1e-4)  # relative residuals of 1e-3
    np.testing.assert_allclose(found.trace.value, result.trace.value, rtol=1e-5)
    np.testing.assert_allclose(found.trace.standard_error, result.trace.standard_error, rtol=1e-3)
    np.testing.assert_allclose(found.density.atoms, result.density.atoms, atol=1e-3)
    np.testing.assert_allclose(flat(found.diagonal), flat(result.diagonal), atol=1e-3)
    with pytest.raises(ValueError, match=r"9 pairs need a run of at least 9 vectors and 50"):
        flatjax.spectrum(operator(DENSE), basis_bytes=4 * N * 58, **named)
    with pytest.raises(ValueError, match="leave num_steps out"):
        flatjax.spectrum(operator(DENSE), basis_bytes=room, num_steps=20, **named)


def flat_rows(tree):
    leaves = jax.tree.leaves(tree)
    return np.concatenate([np.asarray(a, float).reshape(len(a), -1) for a in leaves], axis=1)
