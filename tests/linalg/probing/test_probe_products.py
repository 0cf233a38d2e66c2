"""Products with probes: the same probes in blocks of any size, projected, measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flatjax.linalg.probing import _probe_products as probe_products
from flatjax.linalg.vectors import _probes as probes
from flatjax.operators import as_operator
from tests.problems import dense, times

KEY, COUNT, FIRST = jax.random.key(0), 11, 3
A, _ = dense(np.linspace(-1.0, 2.0, 40))
OP = as_operator(jax.tree_util.Partial(times, A), A[0])
BASIS = np.linalg.qr(np.random.default_rng(0).standard_normal((40, 4)))[0].T.astype(np.float32)


@pytest.mark.parametrize("basis", [None, BASIS], ids=["whole", "projected"])
@pytest.mark.parametrize("block", [1, 3, 16])
def test_quadratic_forms_of_the_same_probes_whatever_the_blocks(block, basis):
    forms, norms = probe_products.quadratic_forms(
        OP, KEY, FIRST, COUNT, basis=None if basis is None else jnp.asarray(basis), block=block
    )
    keys = [jax.random.fold_in(KEY, i) for i in range(FIRST, FIRST + COUNT)]
    z = np.stack([np.asarray(probes.probe(k, OP.structure), np.float64) for k in keys])
    if basis is not None:
        z = z - z @ basis.T.astype(float) @ basis
    # Sums of 40 products of float32 numbers of the size of 1.
    np.testing.assert_allclose(forms, np.einsum("pi,ij,pj->p", z, A, z), atol=1e-4)
    np.testing.assert_allclose(norms, np.einsum("pi,pi->p", z, z), rtol=1e-5)
    assert forms.dtype == norms.dtype == np.float64


def test_few_share_a_pass_where_they_are_large():
    assert probe_products.probe_block(1000) == 8
    assert probe_products.probe_block(10**9) == 2


def test_a_multiple_of_the_identity_does_not_vary_with_the_norms():
    norms = np.array([3.0, 4.0, 7.0])
    np.testing.assert_allclose(probe_products.less_norms(2 * norms, norms, 5.0), 10.0)
    # Sample i by the ratio of all others.
    forms = np.array([1.0, 2.0, 9.0])
    expected = forms - np.array([11 / 11, 10 / 10, 3 / 7]) * (norms - 5.0)
    np.testing.assert_allclose(probe_products.less_norms(forms, norms, 5.0), expected)
