"""Sums, multiples, dense forms, and what every curvature matrix has in common."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import flatjax
from tests.models import NETWORKS, mlp
from tests.operators import references

SEMI_DEFINITE = [kind for kind in references.OPERATORS if kind != "hessian"]


@pytest.fixture(scope="module")
def operators():
    """Every operator of the MLP in float64, by name."""
    with jax.enable_x64(True):
        params, batch = NETWORKS["mlp"].cast()
        yield {kind: references.make(kind, mlp, params, batch) for kind in references.OPERATORS}


@pytest.fixture(scope="module")
def matrices(operators):
    with jax.enable_x64(True):
        return {kind: np.asarray(op.to_dense()) for kind, op in operators.items()}


def random_vectors(op, num, seed=0):
    flat, unravel = ravel_pytree(jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), op.structure))
    rows = np.random.default_rng(seed).normal(size=(num, flat.size))
    return [unravel(jnp.asarray(row)) for row in rows]


def dot(a, b):
    return float(flatjax._trees.vdot(a, b))


@pytest.mark.parametrize("kind", references.OPERATORS)
def test_symmetric(kind, operators, x64):
    op = operators[kind]
    u, v = random_vectors(op, 2)
    assert dot(u, op @ v) == pytest.approx(dot(v, op @ u), rel=1e-12)


@pytest.mark.parametrize("kind", references.OPERATORS)
def test_linear(kind, operators, x64):
    op = operators[kind]
    u, v = random_vectors(op, 2)
    combined = op @ jax.tree.map(lambda a, b: 2 * a - 3 * b, u, v)
    separate = jax.tree.map(lambda a, b: 2 * a - 3 * b, op @ u, op @ v)
    flat = [np.asarray(ravel_pytree(a)[0]) for a in (combined, separate)]
    references.assert_close(*flat, 1e-12)
    zero = op @ jax.tree.map(jnp.zeros_like, u)
    assert not np.any(ravel_pytree(zero)[0])


@pytest.mark.parametrize("kind", SEMI_DEFINITE)
def test_positive_semi_definite(kind, matrices):
    values = np.linalg.eigvalsh(matrices[kind])
    assert values[0] > -1e-13 * values[-1]


def test_the_hessian_of_this_network_is_indefinite(matrices):
    # So that nothing above or below holds for want of a negative edge.
    assert np.linalg.eigvalsh(matrices["hessian"])[0] < -1e-3


class TestCombinations:
    def test_sums_differences_and_multiples(self, operators, matrices, x64):
        H, G, K = (operators[kind] for kind in ("hessian", "ggn", "covariance"))
        h, g, k = (matrices[kind] for kind in ("hessian", "ggn", "covariance"))
        combined = 0.5 * H + G * 2.0 - K + -H
        wanted = 0.5 * h + 2.0 * g - k - h
        references.assert_product(combined, wanted, references.FLOAT64)
        assert combined.size == H.size

    @pytest.mark.parametrize(
        "factor",
        [2, 2.0, np.float64(2), np.float32(2), np.asarray(2.0), jnp.float32(2)],
        ids=["int", "float", "np.float64", "np.float32", "np.array", "float32"],
    )
    def test_factors(self, factor):
        op = flatjax.operators.as_operator(lambda v: jnp.arange(3.0) * v, structure=jnp.ones(3))
        for scaled in (factor * op, op * factor):
            assert isinstance(scaled, flatjax.Operator)
            np.testing.assert_array_equal(scaled @ jnp.ones(3), [0.0, 2.0, 4.0])

    def test_sums_and_means_of_several(self, operators, matrices, x64):
        H, G = operators["hessian"], operators["ggn"]
        wanted = (2 * matrices["hessian"] + matrices["ggn"]) / 3
        references.assert_product(sum([H, G, H]) / 3, wanted, references.FLOAT64, linearized=False)
        assert 0 + H is H
        assert H + 0 is H
        one = flatjax.over_batches(
            lambda x: flatjax.hessian(lambda w, x: (x @ w) ** 2, jnp.ones(2), x), [jnp.eye(2)] * 2
        )
        np.testing.assert_array_equal((sum([one, one]) / 2) @ jnp.ones(2), [1.0, 1.0])

    def test_what_is_no_divisor_and_no_term(self):
        op = flatjax.operators.as_operator(lambda v: v, structure=jnp.ones(3))
        with pytest.raises(TypeError, match="operators multiply vectors and scalars only"):
            op * op
        for wrong in (op, np.ones(3)):
            with pytest.raises(TypeError, match=r"divided by scalars only; see flatjax\.inverse"):
                op / wrong
        for wrong in (1, False + 2, 1.5, jnp.zeros(3)):
            with pytest.raises(TypeError):
                op + wrong

    def test_a_traced_factor(self):
        op = flatjax.operators.as_operator(lambda v: jnp.arange(3.0) * v, structure=jnp.ones(3))
        assert float(jax.grad(lambda c: (c * op).mv(jnp.ones(3)).sum())(3.0)) == 3.0

    def test_a_plain_callable_joins_in(self, operators, matrices, x64):
        H = operators["hessian"]
        damping = flatjax.operators.as_operator(
            lambda v: jax.tree.map(lambda a: 0.5 * a, v), H.structure
        )
        wanted = matrices["hessian"] + 0.5 * np.eye(H.size)
        references.assert_product(H + damping, wanted, references.FLOAT64, linearized=False)

    @pytest.mark.parametrize("other", [3.0, "text", jnp.ones(3)])
    def test_what_is_no_operator_and_no_scalar(self, other, operators):
        H = operators["hessian"]
        for combine in (operator.add, operator.sub):
            with pytest.raises(TypeError, match="unsupported operand"):
                combine(H, other)
        with pytest.raises(TypeError, match=r"unsupported operand|multiply"):
            H * jnp.ones(3)

    def test_no_sum_of_other_structures(self, operators):
        other = flatjax.hessian(lambda w, x: (x @ w) ** 2, jnp.ones(3), jnp.ones((2, 3)))
        with pytest.raises(TypeError, match="the other operator must have the tree structure"):
            operators["hessian"] + other
        longer = flatjax.hessian(lambda w, x: (x @ w) ** 2, jnp.ones(4), jnp.ones((2, 4)))
        with pytest.raises(ValueError, match=r"the other operator has shape \(4,\)"):
            other + longer


class TestDense:
    def test_order_is_that_of_ravel_pytree(self, operators, matrices, x64):
        op, (v,) = operators["hessian"], random_vectors(operators["hessian"], 1)
        product = matrices["hessian"] @ np.asarray(ravel_pytree(v)[0])
        references.assert_close(ravel_pytree(op @ v)[0], product, 1e-12)

    def test_more_columns_than_a_block(self):
        # 64 columns are evaluated at once; 70 need a second, shorter block.
        diagonal = jnp.arange(70.0)
        op = flatjax.operators.as_operator(lambda v: diagonal * v, structure=diagonal)
        np.testing.assert_array_equal(op.to_dense(), np.diag(np.arange(70.0)))

    def test_is_refused_for_large_operators(self):
        shape = jax.ShapeDtypeStruct((20_001,), jnp.float32)
        op = flatjax.operators.as_operator(lambda v: v, structure=shape)
        with pytest.raises(ValueError, match="20,001 x 20,001 numbers is refused beyond 20,000"):
            op.to_dense()


class TestAsOperator:
    def test_an_operator_is_itself(self, operators):
        op = operators["hessian"]
        assert flatjax.operators.as_operator(op) is op
        assert flatjax.operators.as_operator(op, op.structure) is op
        with pytest.raises(TypeError, match="structure must have the tree structure"):
            flatjax.operators.as_operator(op, jnp.ones(3))

    def test_a_partial_keeps_its_arrays_as_leaves(self):
        diagonal = jnp.arange(3.0)
        op = flatjax.operators.as_operator(
            jax.tree_util.Partial(jnp.multiply, diagonal), jnp.ones(3)
        )
        assert len(jax.tree.leaves(op)) == 1
        np.testing.assert_array_equal(op @ jnp.ones(3), diagonal)

    def test_errors(self):
        with pytest.raises(TypeError, match=r"op must be an operator or a callable.*got Array"):
            flatjax.operators.as_operator(np.eye(3).view(type("Array", (np.ndarray,), {})))
        with pytest.raises(ValueError, match="a callable needs structure="):
            flatjax.operators.as_operator(lambda v: v)


class TestVectors:
    """What a product takes."""

    H = flatjax.hessian(lambda w, x: (x @ w["a"]) ** 2, {"a": jnp.ones(3)}, jnp.ones((2, 3)))

    @pytest.mark.parametrize(
        ("v", "error", "text"),
        [
            (jnp.ones(3), TypeError, "v must have the tree structure of the operator"),
            ({"a": jnp.ones(4)}, ValueError, r"v\['a'\] has shape \(4,\) where.*expects \(3,\)"),
            ({"a": jnp.ones(3, int)}, TypeError, r"v\['a'\] has dtype int32; the operator expects"),
            ({"a": jnp.ones(())}, ValueError, r"v\['a'\] has shape \(\) where"),
            ({"a": 1.0}, TypeError, r"v\['a'\] must be an array, got float"),
        ],
    )
    def test_what_does_not_fit(self, v, error, text):
        for op in (self.H, self.H.linearize()):
            with pytest.raises(error, match=text):
                op.mv(v)

    def test_numpy_vectors(self):
        product = self.H @ {"a": np.ones(3)}
        np.testing.assert_array_equal(product["a"], np.full(3, 6.0))


def test_no_complex_factors():
    op = flatjax.operators.as_operator(lambda v: v, jnp.ones(2))
    with pytest.raises(TypeError, match="operators are real"):
        _ = 1j * op
