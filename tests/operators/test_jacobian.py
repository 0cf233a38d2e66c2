"""The Jacobian, its transpose and the neural tangent kernel."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import flatjax
from flatjax.operators._jacobian import jacobian, ntk
from tests.models import NETWORKS
from tests.operators import references
from tests.operators.test_derivatives import MODELS

NETWORK = NETWORKS["mlp"]


def dense():
    return references.reference("mlp").jacobians.reshape(24, 31)


@pytest.mark.parametrize("model", [NETWORK.apply, MODELS["reverse_only"]], ids=["jvp", "vjp"])
@pytest.mark.parametrize("linearize", [False, True])
def test_products_with_it_and_with_its_transpose(model, linearize, x64):
    params, (x, _) = NETWORK.cast(jnp.float64)
    op = jacobian(model, params, x)
    op = op.linearize() if linearize else op
    flat, unravel = ravel_pytree(params)
    v = jnp.cos(jnp.arange(float(flat.size)))
    u = jnp.sin(jnp.arange(24.0)).reshape(8, 3)
    references.assert_close(op @ unravel(v), (dense() @ v).reshape(8, 3), references.FLOAT64)
    product = ravel_pytree(op.T @ u)[0]
    references.assert_close(product, dense().T @ u.reshape(-1), references.FLOAT64)


def test_dense_and_shapes():
    params, (x, _) = NETWORK.cast(jnp.float32)
    op = jacobian(NETWORK.apply, params, x)
    assert op.shape == (24, 31)
    assert op.T.shape == (31, 24)
    assert op.T.T is op
    assert op.method == "jvp"
    references.assert_close(op.to_dense(), dense(), references.FLOAT32)
    references.assert_close(op.T.to_dense(), dense().T, references.FLOAT32)


def test_outputs_may_be_a_tree():
    op = jacobian(lambda w, x: {"a": x @ w, "b": jnp.sum(w)}, jnp.zeros(2), jnp.ones((3, 2)))
    product = op @ jnp.ones(2)
    assert product["a"].tolist() == [2.0, 2.0, 2.0]
    assert float(product["b"]) == 2.0
    assert (op.T @ {"a": jnp.ones(3), "b": jnp.float32(1.0)}).tolist() == [4.0, 4.0]


def test_new_inputs_compile_nothing():
    from flatjax.operators._jacobian import _product

    params, (x, _) = NETWORK.cast(jnp.float32)
    jacobian(NETWORK.apply, params, x) @ params
    before = _product._cache_size()
    jacobian(NETWORK.apply, params, 2 * x) @ params
    assert _product._cache_size() == before


@pytest.mark.parametrize("linearize", [False, True])
def test_tangent_kernel(linearize):
    params, (x, _) = NETWORK.cast(jnp.float32)
    op = ntk(NETWORK.apply, params, x)
    op = op.linearize() if linearize else op
    references.assert_close(op.to_dense(), dense() @ dense().T, references.FLOAT32)


def test_tangent_kernel_has_the_spectrum_of_the_gauss_newton_matrix(x64):
    params, (x, _) = NETWORK.cast(jnp.float64)
    kernel = ntk(NETWORK.apply, params, x).to_dense()
    targets = jnp.zeros((8, 3))
    gauss = flatjax.ggn(NETWORK.apply, flatjax.squared_error, params, (x, targets)).to_dense()
    top = np.linalg.eigvalsh(gauss)[::-1][:24]
    # float64 eigenvalues of matrices of norm 30 by different orders of summation.
    np.testing.assert_allclose(np.linalg.eigvalsh(kernel)[::-1] / 8, top, atol=1e-12)


def test_bad_arguments_are_refused():
    with pytest.raises(TypeError, match="model_fn must be a function"):
        jacobian(None, jnp.ones(2), jnp.ones(2))
    with pytest.raises(TypeError, match="must be a real floating array"):
        jacobian(lambda w, x: w > x, jnp.ones(2), jnp.ones(2))
    with pytest.raises(TypeError, match="params must be a real floating array"):
        jacobian(lambda w, x: w, jnp.ones(2, int), jnp.ones(2))
    op = jacobian(lambda w, x: x @ w, jnp.ones(2), jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="v has shape"):
        op.mv(jnp.ones(3))
    with pytest.raises(ValueError, match="u has shape"):
        op.T.mv(jnp.ones(2))
    big = jacobian(lambda w, x: jnp.broadcast_to(w, (30_000, 1)), jnp.ones(1), None)
    with pytest.raises(ValueError, match="is refused beyond"):
        big.to_dense()
