"""SciPy's operators, there and back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
import scipy.sparse.linalg

import flatjax
from flatjax.operators import as_operator
from tests.models import NETWORKS, mlp
from tests.operators import references

MATRIX = np.diag([4.0, 3.0, 2.0, 1.0, -1.0]) + np.diag(np.ones(4), 1) + np.diag(np.ones(4), -1)


@pytest.fixture
def curvature(x64):
    params, batch = NETWORKS["mlp"].cast()
    op = references.make("hessian", mlp, params, batch)
    return op, np.asarray(op.to_dense())


class TestToScipy:
    def test_eigsh_agrees(self, curvature):
        op, matrix = curvature
        linear = op.to_scipy()
        assert linear.dtype == np.float64
        values = scipy.sparse.linalg.eigsh(linear, k=2, which="BE", return_eigenvectors=False)
        # ARPACK's own tolerance is machine precision.
        np.testing.assert_allclose(np.sort(values), np.linalg.eigvalsh(matrix)[[0, -1]], rtol=1e-9)

    def test_vectors_and_matrices(self, curvature):
        op, matrix = curvature
        linear, block = op.to_scipy(), np.random.default_rng(1).normal(size=(31, 3))
        references.assert_close(linear @ block, matrix @ block, 1e-12)
        references.assert_close(linear.rmatvec(block[:, 0]), matrix @ block[:, 0], 1e-12)

    def test_float32(self):
        params, batch = NETWORKS["mlp"].cast(jnp.float32)
        linear = references.make("ggn", mlp, params, batch).to_scipy()
        assert linear.dtype == np.float32
        assert (linear @ np.ones(31)).dtype == np.float32

    def test_a_jacobian_and_its_transpose(self):
        x = jnp.arange(6.0).reshape(3, 2)
        J = flatjax.jacobian(
            lambda p, x: x @ p["w"] + p["b"], {"b": jnp.ones(()), "w": jnp.ones(2)}, x
        )
        wanted = np.column_stack([np.ones(3), x])  # in the order of the leaves
        linear = J.to_scipy()
        np.testing.assert_array_equal(linear @ np.eye(3), wanted)
        np.testing.assert_array_equal(linear.T @ np.eye(3), wanted.T)
        np.testing.assert_array_equal(J.T.to_scipy() @ np.eye(3), wanted.T)


KINDS = {
    "csr": scipy.sparse.csr_array,
    "dia": scipy.sparse.dia_array,
    "matrix": scipy.sparse.csc_matrix,
    "operator": scipy.sparse.linalg.aslinearoperator,
}


class TestFromScipy:
    @pytest.mark.parametrize("kind", KINDS)
    def test_products_and_the_dense_matrix(self, kind):
        op = as_operator(KINDS[kind](MATRIX))
        v = np.arange(5, dtype=np.float32)
        product = op @ jnp.asarray(v)
        assert product.dtype == jnp.float32
        np.testing.assert_array_equal(product, MATRIX @ v)
        np.testing.assert_array_equal(op.to_dense(), MATRIX)

    def test_in_float64(self, x64):
        op = as_operator(scipy.sparse.csr_array(MATRIX))
        assert op.dtype == np.float64
        np.testing.assert_array_equal(op @ (jnp.ones(5) / 3), MATRIX @ (np.ones(5) / 3))

    def test_vectors_in_low_precision(self):
        product = as_operator(scipy.sparse.csr_array(MATRIX)) @ jnp.full(5, 1 / 3, jnp.bfloat16)
        assert product.dtype == jnp.float32
        third = float(jnp.bfloat16(1 / 3))
        np.testing.assert_allclose(product, MATRIX @ np.full(5, third), rtol=1e-6, atol=1e-7)

    def test_whole_numbers(self):
        op = as_operator(scipy.sparse.csr_array(MATRIX.astype(int)))
        np.testing.assert_array_equal(op @ jnp.full(5, 0.5), MATRIX @ np.full(5, 0.5))

    def test_estimators_take_it(self):
        matrix = scipy.sparse.csr_array(np.diag(np.arange(40.0)))
        pairs = flatjax.eigsh(matrix, 2, key=jax.random.key(0))
        np.testing.assert_allclose(pairs.values, [39, 38], rtol=1e-4)
        assert bool(pairs.converged.all())

    def test_trees_there_and_back(self, curvature):
        op, matrix = curvature
        back = as_operator(op.to_scipy(), op.structure)
        assert jax.tree.structure(back.structure) == jax.tree.structure(op.structure)
        np.testing.assert_allclose(back.to_dense(), matrix, rtol=1e-12, atol=1e-14)

    def test_sums_with_other_operators(self):
        op = as_operator(scipy.sparse.csr_array(MATRIX))
        both = flatjax.damped(2.0 * op, 1.0)
        np.testing.assert_array_equal(both.to_dense(), 2 * MATRIX + np.eye(5))

    def test_is_not_traced(self):
        op = as_operator(scipy.sparse.csr_array(MATRIX))
        with pytest.raises(TypeError, match="HostOperator is driven from the host and cannot be"):
            jax.jit(op.mv)(jnp.ones(5))
        with pytest.raises(TypeError, match=r"HostOperator.*to the function at path op"):
            jax.jit(lambda op: op.mv(jnp.ones(5)))(op)

    @pytest.mark.parametrize(
        ("matrix", "structure", "error", "match"),
        [
            (np.triu(MATRIX), None, ValueError, r"is not symmetric.*\(a \+ a\.T\) / 2"),
            (MATRIX[:3], None, ValueError, r"of shape \(3, 5\).*a\.T @ a"),
            (MATRIX * 1j, None, TypeError, "complex numbers"),
            (MATRIX, jnp.ones(4), ValueError, r"structure has 4 entries.*\(5, 5\)"),
        ],
    )
    def test_what_is_no_operator(self, matrix, structure, error, match):
        with pytest.raises(error, match=match):
            as_operator(scipy.sparse.csr_array(matrix), structure)

    def test_rounding_is_no_asymmetry(self):
        noisy = MATRIX + 1e-7 * np.triu(MATRIX, 1)
        assert as_operator(scipy.sparse.csr_array(noisy)).size == 5
