"""Spectral densities, traces of functions and Frobenius norms against known spectra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from flatjax import linalg

N = 300
BULK = np.random.default_rng(0).uniform(0.1, 1.0, N - 5)
VALUES = np.sort(np.concatenate([[20.0, 9.0, 5.0, 3.0], BULK, [-2.0]]))


def rotated(values, seed=0):
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    return (basis * values) @ basis.T


def matvec(matrix, v):
    flat = jnp.concatenate([v["a"].ravel(), v["b"]])
    image = jnp.matmul(matrix, flat, precision="highest")
    return {"a": image[:100].reshape(10, 10), "b": image[100:]}


STRUCTURE = {"a": jnp.zeros((10, 10)), "b": jnp.zeros(N - 100)}
OP = jax.tree_util.Partial(matvec, jnp.asarray(rotated(VALUES), jnp.float32))
OPTIONS = {"key": jax.random.key(1), "structure": STRUCTURE}


@pytest.fixture(scope="module")
def density():
    return linalg.spectral_density(OP, num_steps=16, **OPTIONS)


def test_outliers_are_exact_atoms_of_weight_one_over_n(density):
    exact = np.sort(density.atoms[: density.num_exact])
    for value in (20.0, 9.0, 5.0, 3.0, -2.0):
        assert np.min(np.abs(exact - value)) < 1e-4  # float32: some eps * |lambda|_max
    np.testing.assert_allclose(density.weights[: density.num_exact], 1 / N)


def test_distribution_and_distance(density):
    np.testing.assert_allclose(density.weights.sum(), 1, rtol=1e-6)
    # Four probes know the mean of the bulk to 0.26 / sqrt(4 * 300) = 7e-3.
    assert wasserstein_distance(VALUES, density.atoms, None, density.weights) < 0.015
    assert density.cdf[0] == 0
    np.testing.assert_allclose(density.cdf[-1], 1, rtol=1e-6)
    assert np.all(np.diff(density.cdf) >= -1e-12)
    low, high = density.cdf_band
    truth = np.searchsorted(VALUES, density.grid) / N
    between = (density.grid > 1.2) & (density.grid < 2.5)  # beyond the bulk only exact atoms count
    np.testing.assert_allclose(density.cdf[between], truth[between], atol=1e-6)
    assert np.all(low <= density.cdf)
    assert np.all(density.cdf <= high)


def test_a_ritz_value_that_may_stand_for_many_is_no_exact_atom():
    values = 10.0 / np.arange(1, N + 1) ** 0.7  # few of which 40 steps can tell apart
    op = jax.tree_util.Partial(matvec, jnp.asarray(rotated(values), jnp.float32))
    options = {"num_probes": 2, "num_steps": 8, "deflation_steps": 40, "structure": STRUCTURE}
    loose, percent, tight = (
        linalg.spectral_density(op, key=jax.random.key(1), tol=tol, **options)
        for tol in (0.3, 1e-2, 1e-3)
    )
    np.testing.assert_array_equal(loose.atoms, percent.atoms)
    assert tight.num_exact < loose.num_exact < 30
    exact = loose.atoms[: loose.num_exact]
    nearest = np.abs(exact[:, None] - values[None, :]).min(axis=1)
    assert (nearest <= 0.01 * np.abs(exact)).all()


def test_smoothed_density_has_mass_one_on_both_axes(density):
    step = density.grid[1] - density.grid[0]
    # What the Gaussians of the outermost atoms put beyond the grid's margin is lost.
    np.testing.assert_allclose(density.density.sum() * step, 1, atol=1e-2)
    log = linalg.spectral_density(OP, num_steps=16, scale="log", linear_width=0.1, **OPTIONS)
    axis = np.arcsinh(log.grid / 0.1)
    np.testing.assert_allclose(log.density.sum() * (axis[1] - axis[0]), 1, atol=1e-2)
    # Two roundings of the axis, to float32, in every difference.
    rounding = 2 * float(jnp.finfo(jnp.float32).eps) * np.abs(axis).max()
    np.testing.assert_allclose(np.diff(axis), axis[1] - axis[0], atol=2 * rounding)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("spectral_density", {}),
        ("trace_of_function", {"f": jnp.exp}),
        ("logdet", {}),
        ("frobenius_norm", {}),
    ],
)
def test_not_for_jit(name, options):
    call = jax.jit(
        lambda a: getattr(linalg, name)(
            lambda v: jax.tree.map(lambda x: a * x, v), **options, **OPTIONS
        )
    )
    with pytest.raises(TypeError, match="outside jit"):
        call(jnp.float32(2.0))


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e12])
def test_zero_rank_deficient_and_scaled(scale):
    values = np.zeros(30)
    values[:3] = np.array([3.0, 2.0, 1.0]) * scale
    op = jax.tree_util.Partial(jnp.matmul, jnp.asarray(rotated(values), jnp.float32))
    d = linalg.spectral_density(op, key=jax.random.key(0), num_steps=8, structure=jnp.zeros(30))
    for array in (d.atoms, d.weights, d.density, d.cdf):
        assert np.all(np.isfinite(array))
    np.testing.assert_allclose(d.weights.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose((d.weights * d.atoms).sum() * 30, 6 * scale, rtol=1e-4)
    norm = linalg.frobenius_norm(op, key=jax.random.key(0), structure=jnp.zeros(30))
    np.testing.assert_allclose(norm.value, np.sqrt(14) * scale, rtol=1e-4)


def test_trace_of_function_and_logdet():
    f = lambda x: jnp.exp(-jnp.square(x))  # noqa: E731
    found = linalg.trace_of_function(OP, f, num_steps=16, **OPTIONS)
    low, high = found.interval
    assert low < np.exp(-(VALUES**2)).sum() < high
    assert found.converged
    positive = np.abs(VALUES)
    op = jax.tree_util.Partial(matvec, jnp.asarray(rotated(positive), jnp.float32))
    found = linalg.logdet(op, num_steps=16, **OPTIONS)
    low, high = found.interval
    assert low < np.log(positive).sum() < high
    negative = linalg.logdet(OP, num_steps=16, **OPTIONS)
    assert np.isnan(float(negative.value))
    assert not negative.converged


def test_too_few_steps_show_in_the_standard_error():
    # A step function cannot be integrated by two nodes, however much the probes agree.
    found = linalg.trace_of_function(
        OP, lambda x: jnp.where(x > 0.5, 1.0, 0.0), num_steps=3, deflation_steps=0, **OPTIONS
    )
    truth = np.sum(VALUES > 0.5)
    assert abs(float(found.value) - truth) < 3 * float(found.standard_error)


def test_everything_known_leaves_nothing_to_sample():
    d = jnp.linspace(1.0, 2.0, 20)
    op = jax.tree_util.Partial(jnp.multiply, d)
    found = linalg.trace_of_function(op, jnp.log, key=jax.random.key(0), structure=d)
    np.testing.assert_allclose(found.value, np.log(np.asarray(d)).sum(), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["frobenius_norm", "trace_of_function"])
def test_intervals_cover_the_truth(estimator):
    count, covered = 300, 0
    truth = np.linalg.norm(VALUES)
    for seed in range(count):
        key = jax.random.key(seed)
        if estimator == "frobenius_norm":
            found = linalg.frobenius_norm(OP, key=key, num_products=40, structure=STRUCTURE)
        else:
            found = linalg.trace_of_function(
                OP, jnp.square, key=key, num_probes=20, num_steps=4, structure=STRUCTURE
            )
            truth = np.sum(VALUES**2)
        low, high = found.interval
        covered += bool(low < truth < high)
    # 95 % nominal; 92 to 99 % is three standard deviations of 300 trials.
    assert 0.92 * count <= covered <= 0.99 * count


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linalg.spectral_density(OP, num_probes=0, **OPTIONS), "num_probes must be"),
        (lambda: linalg.spectral_density(OP, num_steps=0, **OPTIONS), "num_steps must be"),
        (lambda: linalg.spectral_density(OP, tol=-1.0, **OPTIONS), "tol must not be negative"),
        (lambda: linalg.spectral_density(OP, key=OPTIONS["key"]), "needs structure="),
        (
            lambda: linalg.trace_of_function(OP, jnp.exp, num_probes=1, **OPTIONS),
            "num_probes must be at least 2",
        ),
        (lambda: linalg.frobenius_norm(OP, num_products=5, **OPTIONS), "num_products must be"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def without_a_basis(seed, **options):
    return linalg.spectral_density(
        OP, key=jax.random.key(seed), structure=STRUCTURE, reorthogonalize="none", **options
    )


def test_copies_share_the_weight_of_their_eigenvalue():
    options = {"num_probes": 2, "num_steps": 60, "deflation_steps": 0}
    full = linalg.spectral_density(OP, **options, **OPTIONS)
    none = without_a_basis(1, num_probes=2, num_steps=60)
    assert none.num_exact == 0
    for found, several in ((full, False), (none, True)):
        near = np.abs(np.asarray(found.nodes) - 20.0) < 1e-3
        assert (near.sum(axis=1) > 1).all() == several
        np.testing.assert_allclose(found.weights.sum(), 1, rtol=1e-5)
    mass = [
        np.where(np.abs(d.nodes - 20) < 1e-3, d.node_weights, 0).sum(axis=1) for d in (full, none)
    ]
    np.testing.assert_allclose(*mass, atol=1e-4)


@pytest.mark.parametrize("options", [{}, {"deflation_steps": 12}])
def test_bands_without_a_basis_cover_the_truth(options):
    inside, distances = [], []
    for seed in range(8):
        found = without_a_basis(seed, num_probes=4, num_steps=20, **options)
        truth = np.searchsorted(VALUES, found.grid) / N
        low, high = np.asarray(found.cdf_band, np.float64)
        inside.append((truth >= low - 1e-6) & (truth <= high + 1e-6))
        assert low[-1] > 0.99  # beyond all nodes only the law of probes is left
        distances.append(wasserstein_distance(VALUES, found.atoms, None, found.weights))
    # Nearly all of the grid lies between some five outliers: some forty trials.
    assert np.mean(inside) > 0.95
    assert np.mean(distances) < 0.15


def test_a_function_without_a_basis():
    f = lambda x: jnp.exp(-jnp.square(x))  # noqa: E731
    options = {"num_steps": 16, "reorthogonalize": "none", **OPTIONS}
    found = linalg.trace_of_function(OP, f, **options)
    assert int(found.num_products) == 8 * 16
    low, high = found.interval
    assert low < np.exp(-(VALUES**2)).sum() < high
    op = jax.tree_util.Partial(matvec, jnp.asarray(rotated(np.abs(VALUES)), jnp.float32))
    low, high = linalg.logdet(op, **options).interval
    assert low < np.log(np.abs(VALUES)).sum() < high
    with pytest.raises(ValueError, match="reorthogonalize"):
        linalg.logdet(op, **{**options, "reorthogonalize": "twice"})
