"""Gauss quadratures of the spectral measures of probes, and of the start vector of a deflation."""

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import linalg
from flatjax.linalg.probing._gauss import quadratures
from flatjax.linalg.vectors import _probes as probes
from flatjax.operators import as_operator
from tests.problems import dense, times

N = 300
BULK = np.random.default_rng(0).uniform(0.1, 1.0, N - 5)
VALUES = np.sort(np.concatenate([[20.0, 9.0, 5.0, 3.0], BULK, [-2.0]]))


def test_moments_of_a_gauss_quadrature_are_those_of_its_probe(x64):
    size, steps, key = 40, 5, jax.random.key(0)
    a, _ = dense(np.linspace(-0.4, 1.0, size), dtype=jnp.float64)
    op = as_operator(jax.tree_util.Partial(times, a), a[0])
    found = quadratures("a test", op, key, 3, steps, 0, 1e-3)
    assert found.num_products == 3 * steps
    for i, (nodes, weights) in enumerate(zip(found.nodes, found.weights, strict=True)):
        probe_key, _ = jax.random.split(jax.random.fold_in(key, i + 1))
        z = np.asarray(probes.probe(probe_key, op.structure))
        powers = range(2 * steps)  # a quadrature of s nodes is exact up to degree 2s - 1
        moments = [z @ np.linalg.matrix_power(np.asarray(a), p) @ z / size for p in powers]
        np.testing.assert_allclose([weights @ nodes**p for p in powers], moments, atol=1e-12)


class TestStartVectorOfTheDeflation:
    """Its run is a quadrature too, of the law of a probe's, where no eigenvalue is multiple."""

    def density(self, values, seed=0, **options):
        a, _ = dense(values)
        op, key = jax.tree_util.Partial(times, a), jax.random.key(seed)
        return linalg.spectral_density(op, key=key, structure=a[0], **options)

    def test_is_one_more_row(self):
        found = self.density(VALUES, num_probes=2, num_steps=16, deflation_steps=48)
        assert found.nodes.shape == (3, 48 - found.num_exact)
        left = 1 - found.num_exact / N
        np.testing.assert_allclose(found.node_weights.sum(axis=1), left, rtol=1e-6)

    def test_weighs_as_the_square_of_its_nodes(self):
        found = self.density(VALUES, num_probes=2, num_steps=24, deflation_steps=16)
        squares = np.square([24.0, 24.0, 16.0 - found.num_exact])
        np.testing.assert_allclose(found.row_weights, squares / squares.sum())
        rest = found.weights[found.num_exact :]
        ends = np.cumsum([24, 24, 16 - found.num_exact])
        sums = [part.sum() for part in np.split(rest, ends[:-1])]
        np.testing.assert_allclose(sums, found.row_weights * (1 - found.num_exact / N), rtol=1e-6)

    def test_of_a_multiple_eigenvalue_is_left_out(self):
        # The one copy that the run sees has the weight of all sixty, a chi square of 60 degrees:
        # four deviations above the bound for some ten single ones.
        values = np.concatenate([np.full(60, 20.0), VALUES[:240]])
        found = self.density(values, num_probes=2, num_steps=16, deflation_steps=48)
        assert found.nodes.shape[0] == 2
        near = np.abs(found.atoms - 20) < 0.01
        # Of 300 eigenvalues 60, by two probes: each sees the share to sqrt(2 * 0.2 * 0.8 / 300).
        assert abs(found.weights[near].sum() - 0.2) < 4 * np.sqrt(0.32 / 300 / 2)

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
