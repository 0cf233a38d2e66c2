"""What operators and Jacobians have in common: a shape, a dtype, a transpose, a call, a text."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse

import flatjax
from flatjax.operators._base import HostOperator, Modified, OnHost, Operator
from flatjax.operators._data import DataOperator
from flatjax.operators._maps import LinearMap
from flatjax.operators._terms import LossOperator

PARAMS = {"w": jnp.ones(3), "b": jnp.ones(1)}
X, Y = jnp.ones((6, 3)), jnp.zeros((6, 1))
BASES = (Operator, Modified, OnHost, DataOperator, LossOperator)  # which nobody makes
INSIDE = {"Dense", "Deflated", "Packed", "_Division"}  # of an estimator or an operator
TOLD = "loss=cross_entropy, examples=6, precision=highest"


def model(params, x):
    return x @ params["w"][:, None] + params["b"][None]


def cross_entropy(params, batch):
    return jnp.square(model(params, batch)[:, 0])


@pytest.fixture(scope="module")
def operators():
    """Every kind of operator, with the text of it."""
    H = flatjax.hessian(cross_entropy, PARAMS, X)
    J = flatjax.jacobian(model, PARAMS, X)
    J2 = flatjax.jacobian(lambda p, x: 2 * model(p, x), PARAMS, X, precision=None)
    diagonal, batch = jnp.ones(3), (X, Y)
    values = jnp.ones(1), jnp.ones((1, 3)) / 3**0.5
    low = flatjax.low_rank(flatjax.Eigenpairs(*values, *[None] * 5), damping=0.5)
    squared, half = flatjax.squared_error, flatjax.squared_error(per="token")
    found = {
        "Hessian(size=4, T)": H,
        "Linearized(size=4, rule=HessianProduct, method=forward-over-reverse, precision=highest)":
            H.linearize(),
        "SumOperator(size=4, of=Hessian(T) + ScaledOperator(factor=0.5, of=Hessian(T)))":
            H + 0.5 * H,
        "SumOperator(size=4, of=Hessian(T) + ScaledOperator(factor=0.1, of=Identity))":
            flatjax.damped(H, 0.1),
        "Inverse(size=4, damping=0.5, tol=1e-05, of=Hessian(T))":
            flatjax.inverse(H, damping=jnp.float32(0.5)),
        "Preconditioned(size=4, of=Hessian(T))":
            flatjax.preconditioned(H, PARAMS),
        "Restricted(size=3, leaves=1 of 2, of=Inverse(damping=0, tol=1e-05, of=Hessian(T)))":
            flatjax.restrict(flatjax.inverse(H), "w"),
        "Hessian(size=3, T)": flatjax.restrict(H, "w"),
        "BlockDiagonal(size=4, blocks=2, of=Hessian(T))": flatjax.block_diagonal(H),
        "Chunked(size=4, chunk_size=2, of=Hessian(T))":
            flatjax.hessian(cross_entropy, PARAMS, X, chunk_size=2),
        "Stream(size=4, batches=2, first=Hessian(T))":
            flatjax.over_batches(lambda x: flatjax.hessian(cross_entropy, PARAMS, x), [X, X]),
        "GaussNewton(size=4, model=model, loss=squared_error, examples=6, precision=highest)":
            flatjax.ggn(model, squared, PARAMS, batch),
        "GaussNewton(size=4, model=model, loss=squared_error(per='token'), examples=6, "
        "precision=highest, kind=empirical)":
            flatjax.fisher(model, half, PARAMS, batch, kind="empirical"),
        "GaussNewton(size=4, model=model, loss=squared_error, examples=6, precision=highest, "
        "kind=sampled)":
            flatjax.fisher(model, squared, PARAMS, batch, kind="sampled", key=jax.random.key(0)),
        "GaussNewton(size=4, model=model, loss=own, examples=6, precision=None)":
            flatjax.ggn(model, own, PARAMS, batch, precision=None),
        "GradientCovariance(size=4, T, centered=True)":
            flatjax.gradient_covariance(cross_entropy, PARAMS, X),
        "HessianVariance(size=4, of=Hessian(T))":
            flatjax.measures.hessian_variance(cross_entropy, PARAMS, X),
        "Jacobian(shape=(6, 4), model=model, precision=highest)": J,
        "JacobianTranspose(shape=(4, 6), model=model, precision=highest)": J.T,
        "TangentKernel(size=6, model=<lambda>, precision=None)":
            flatjax.operators._jacobian.TangentKernel(J2),
        "Identity(size=3)": flatjax.operators.identity(diagonal),
        "CallableOperator(size=3, of=twice)":
            flatjax.operators.as_operator(twice, diagonal),
        "HostOperator(size=3, of=dia_array)":
            flatjax.operators.as_operator(scipy.sparse.eye_array(3)),
        "LowRank(size=3, rank=1, damping=0.5)": low,
    }  # fmt: skip
    return {
        text.replace("T)", f"{TOLD})").replace("T,", f"{TOLD},"): op for text, op in found.items()
    }


def own(z, t):
    return jnp.square(z - t).sum(axis=1)


def twice(v):
    return 2 * v


def kinds(cls=LinearMap):
    for kind in cls.__subclasses__():
        # Not of an example, which has the name of a module without being in it.
        own = vars(sys.modules.get(kind.__module__)).get(kind.__name__) is kind
        if kind.__module__.startswith("flatjax.") and own and kind not in BASES:
            yield kind
        yield from kinds(kind)


def test_the_text_of_every_operator(operators):
    for text, op in operators.items():
        assert repr(op) == text
    missing = {kind.__name__ for kind in kinds()} - {type(op).__name__ for op in operators.values()}
    assert missing == INSIDE | {"ScaledOperator"}  # which is in the sums


def test_long_texts_are_cut(operators):
    H = next(iter(operators.values()))
    many = repr(sum([H] * 50))
    assert many.endswith("46 more)")
    assert many.count("Hessian(") == 4
    nested = H
    for _ in range(30):
        nested = 2.0 * nested
    assert len(repr(nested)) <= 300


def test_texts_of_trees_of_other_things(operators):
    H = 0.5 * next(iter(operators.values()))
    told = f"factor=0, of=Hessian({TOLD}))"
    assert repr(jax.tree.map(jnp.ndim, H)) == f"ScaledOperator(size=?, {told}"
    texts = []
    jax.eval_shape(lambda op: texts.append(repr(op)), H)
    assert texts == [f"ScaledOperator(size=4, factor=float32[], of=Hessian({TOLD}))"]


def test_shapes_and_dtypes(operators):
    for op in operators.values():
        rows, columns = op.shape
        assert columns == sum(a.size for a in jax.tree.leaves(op.structure))
        assert rows == sum(a.size for a in jax.tree.leaves(op.output_structure))
        assert op.dtype == np.float32
        assert op.T.shape == (columns, rows)
        if isinstance(op, Operator):
            assert op.T is op
            assert op.shape == (op.size, op.size)


def test_a_dtype_is_at_least_float32(x64):
    low = flatjax.operators.identity(jnp.zeros(2, jnp.bfloat16))
    mixed = flatjax.operators.identity((jnp.zeros(2, jnp.float64), jnp.zeros(2, jnp.float32)))
    wide = flatjax.jacobian(lambda w, _: w.astype("float64"), jnp.zeros(2, jnp.float32), None)
    assert (low.dtype, mixed.dtype) == (np.float32, np.float64)
    assert (wide.dtype, wide.T.dtype) == (np.float64, np.float64)


@pytest.mark.parametrize("kind", [flatjax.operators._jacobian.Jacobian, HostOperator])
def test_a_call_is_a_product(kind, operators):
    (op,) = [op for op in operators.values() if type(op) is kind]
    v = jax.tree.map(lambda a: jnp.arange(a.size, dtype=a.dtype).reshape(a.shape), op.structure)
    np.testing.assert_array_equal(op(v), op @ v)


def test_a_jacobian_is_no_operator(operators):
    (J,) = [op for op in operators.values() if type(op).__name__ == "Jacobian"]
    with pytest.raises(TypeError, match=r"operators are symmetric, got Jacobian\(shape=\(6, 4\)"):
        flatjax.eigsh(J, 1, key=jax.random.key(0))
