"""Spectral densities, traces of functions and Frobenius norms against known spectra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from flatjax import linalg
from flatjax.linalg.probing._estimate import student
from flatjax.linalg.probing._quadrature import density_from_quadrature, weighted

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


def test_band_is_the_jackknife_over_probes():
    nodes = np.array([[0.0, 1.0], [0.2, 1.1], [0.1, 0.9]])
    weights = np.array([[0.5, 0.5], [0.4, 0.6], [0.6, 0.4]])
    options = {"sigma": 0.1, "num_points": 64}
    none = np.zeros(0)
    d = density_from_quadrature(none, none, nodes, weights, **options)
    grid = d.grid

    def smooth(i):
        peak = np.exp(-(((grid[:, None] - nodes[i]) / 0.1) ** 2) / 2) / (0.1 * np.sqrt(2 * np.pi))
        return (peak * weights[i]).sum(axis=1)

    left_out = [np.mean([smooth(j) for j in range(3) if j != i], axis=0) for i in range(3)]
    error = np.sqrt(2 / 3 * np.sum((left_out - np.mean(left_out, axis=0)) ** 2, axis=0))
    t = 4.302653  # Student's t, 2 degrees of freedom, 95 %
    np.testing.assert_allclose(d.band[1], d.density + t * error, rtol=1e-5, atol=1e-12)
    single = density_from_quadrature(none, none, nodes[:1], weights[:1], **options)
    assert np.all(np.isinf(single.band[1]))


@pytest.mark.parametrize("shares", [[0.25] * 4, [0.7, 0.1, 0.1, 0.1]])
def test_the_error_of_a_weighted_mean_is_its_own_deviation(shares):
    shares = np.asarray(shares)
    samples = np.random.default_rng(0).normal(2.0, 3.0, size=(4, 20000))
    mean, error, degrees = weighted(samples, shares)
    # 20,000 draws know a variance to 1 %, and a mean of such variances better.
    np.testing.assert_allclose(np.mean(error**2), np.var(mean), rtol=0.05)
    # Six standard errors of 3 sqrt(0.52 / 20,000), the larger of the two.
    np.testing.assert_allclose(np.mean(mean), 2.0, atol=0.1)
    assert degrees == {0.25: 3, 0.7: 1}[shares[0]]
    # The interval covers: exactly so for equal weights, and no less with the fewer degrees.
    inside = np.abs(mean - 2.0) <= student(degrees) * error
    assert inside.mean() > 0.94
    assert shares[0] > 0.25 or inside.mean() < 0.96


def test_rows_of_other_lengths_are_the_same_atoms():
    exact, own = np.array([4.0]), np.array([0.2])
    nodes, weights = np.array([[0.0, 1.0], [0.3, 0.9]]), np.array([[0.5, 0.3], [0.4, 0.4]])
    more = np.array([0.1, 0.5, 1.2]), np.array([0.3, 0.3, 0.2])
    d = density_from_quadrature(exact, own, [*nodes, more[0]], [*weights, more[1]])
    np.testing.assert_allclose(d.weights.sum(), 1)
    assert len(d.atoms) == len(d.sigma) == 8
    # The shorter rows repeat their last node, with no weight.
    np.testing.assert_array_equal(d.nodes[:2, 2], nodes[:, 1])
    np.testing.assert_array_equal(d.node_weights[:2, 2], 0)
    np.testing.assert_allclose(d.node_weights.sum(axis=1), 0.8)
    equal = density_from_quadrature(exact, own, list(nodes), list(weights))
    whole = density_from_quadrature(exact, own, nodes, weights)
    jax.tree.map(np.testing.assert_array_equal, equal, whole)


class TestStartVectorOfTheDeflation:
    """Its run is a quadrature too, of the law of a probe's, where no eigenvalue is multiple."""

    def density(self, values, seed=0, **options):
        op = jax.tree_util.Partial(jnp.matmul, jnp.asarray(rotated(values), jnp.float32))
        key, structure = jax.random.key(seed), jnp.zeros(len(values))
        return linalg.spectral_density(op, key=key, structure=structure, **options)

    def test_is_one_more_row(self):
        found = self.density(VALUES, num_probes=2, num_steps=16, deflation_steps=48)
        assert found.nodes.shape == (3, 48 - found.num_exact)
        left = 1 - found.num_exact / N
        np.testing.assert_allclose(found.node_weights.sum(axis=1), left, rtol=1e-6)

    def test_weighs_as_the_square_of_its_nodes(self):
        found = self.density(VALUES, num_probes=2, num_steps=24, deflation_steps=16)
        squares = np.square([24.0, 24.0, 16.0 - found.num_exact])
        np.testing.assert_allclose(found.shares, squares / squares.sum())
        rest = found.weights[found.num_exact :]
        ends = np.cumsum([24, 24, 16 - found.num_exact])
        sums = [part.sum() for part in np.split(rest, ends[:-1])]
        np.testing.assert_allclose(sums, found.shares * (1 - found.num_exact / N), rtol=1e-6)

    def test_of_a_multiple_eigenvalue_is_left_out(self):
        # The one copy that the run sees has the weight of all thirty.
        values = np.concatenate([np.full(30, 20.0), VALUES[:270]])
        found = self.density(values, num_probes=2, num_steps=16, deflation_steps=48)
        assert found.nodes.shape[0] == 2
        near = np.abs(found.atoms - 20) < 0.01
        # Of 300 eigenvalues 30, by two probes: each sees the share to sqrt(2 * 0.1 * 0.9 / 300).
        assert abs(found.weights[near].sum() - 0.1) < 4 * np.sqrt(0.18 / 300 / 2)

    def test_is_unbiased(self):
        means, truths = [], []
        for seed in range(30):
            found = self.density(VALUES, seed, num_probes=1, num_steps=8, deflation_steps=32)
            weights, nodes = found.node_weights[1], found.nodes[1]
            means.append(weights @ nodes)
            truths.append((VALUES.sum() - found.atoms[: found.num_exact].sum()) / N)
        error = np.subtract(means, truths)
        # The mean of 30 differs from zero by its standard error, 3.7 of which Student's law with 29
        # degrees of freedom exceeds once in a thousand times.
        assert abs(error.mean()) < 3.7 * error.std(ddof=1) / np.sqrt(30)
        # And it is as far off as a probe: the bulk's deviation over sqrt(n / 2) and weights of it.
        assert 0.3 < error.std() / (np.std(BULK) * np.sqrt(2 / N)) < 3


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": "cubic"}, "scale must be"),
        ({"num_points": 1}, "num_points must be"),
        ({"sigma": 0.0}, "sigma must be positive"),
        ({"linear_width": -1.0}, "linear_width must be positive"),
    ],
)
def test_bad_axes(options, message):
    one = np.ones((1, 1))
    with pytest.raises(ValueError, match=message):
        density_from_quadrature(np.zeros(0), np.zeros(0), one, one, **options)
