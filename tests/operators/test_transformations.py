"""Operators under jit, vmap, grad and scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import flatjax
from tests.models import NETWORKS, mlp
from tests.operators import references


def problem():
    params, batch = NETWORKS["mlp"].cast()
    return params, batch, np.asarray(ravel_pytree(params)[0])


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


@pytest.mark.parametrize("kind", ["hessian", "fisher_sampled", "covariance"])
def test_made_inside_jit(kind, x64):
    params, batch, v = problem()

    @jax.jit
    def product(params, batch):
        op = references.make(kind, mlp, params, batch, weights=jnp.ones(8))
        return op @ params, op.linearize() @ params, op.draws if kind == "fisher_sampled" else ()

    plain, kept, draws = product(params, batch)
    wanted = references.dense(kind, references.reference("mlp"), draws=draws) @ v
    references.assert_close(flat(plain), wanted, references.FLOAT64)
    references.assert_close(flat(kept), wanted, references.FLOAT64)


def test_returned_from_jit(x64):
    params, batch, v = problem()
    op = jax.jit(lambda p, b: references.make("ggn", mlp, p, b))(params, batch)
    assert isinstance(op, flatjax.Operator)
    wanted = references.dense("ggn", references.reference("mlp")) @ v
    references.assert_close(flat(op @ params), wanted, references.FLOAT64)


@pytest.mark.parametrize("kind", ["hessian", "covariance"])
def test_vmap_over_vectors(kind, x64):
    params, batch, _ = problem()
    unravel = ravel_pytree(params)[1]
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(3, 31)))
    op = references.make(kind, mlp, params, batch)
    wanted = np.asarray(rows) @ references.dense(kind, references.reference("mlp"))
    for operator in (op, op.linearize()):
        block = jax.jit(jax.vmap(operator.mv))(jax.vmap(unravel)(rows))
        found = np.asarray(jax.vmap(lambda t: ravel_pytree(t)[0])(block))
        references.assert_close(found, wanted, references.FLOAT64)


def test_vmap_over_params_of_an_ensemble(x64):
    params, batch, v = problem()
    ensemble = jax.tree.map(lambda a: jnp.stack([a, 0.5 * a]), params)

    def product(member):
        return references.make("hessian", mlp, member, batch).mv(params)

    found = jax.jit(jax.vmap(product))(ensemble)
    wanted = references.dense("hessian", references.reference("mlp")) @ v
    references.assert_close(flat(jax.tree.map(lambda a: a[0], found)), wanted, references.FLOAT64)
    half = jax.tree.map(lambda a: 0.5 * a, params)
    references.assert_close(
        flat(jax.tree.map(lambda a: a[1], found)), flat(product(half)), references.FLOAT64
    )


def test_gradient_of_a_curvature(x64):
    # d/dw of v^T H(w) v, against central differences of the dense matrices' quadratic forms.
    params, batch, _ = problem()

    def curvature(params, kind):
        op = references.make(kind, mlp, params, batch)
        v = jax.tree.map(jnp.ones_like, params)
        return flatjax._trees.vdot(v, op.mv(v))

    for kind in ("hessian", "covariance"):
        f = jax.jit(lambda p, kind=kind: curvature(p, kind))
        slope = jax.grad(f)(params)
        direction = jax.tree.map(jnp.cos, params)
        step = 1e-5  # truncation some 1e-10, rounding some 1e-11
        ahead, behind = (
            f(jax.tree.map(lambda a, d, s=s: a + s * d, params, direction)) for s in (step, -step)
        )
        difference = float((ahead - behind) / (2 * step))
        assert float(flatjax._trees.vdot(slope, direction)) == pytest.approx(difference, rel=1e-6)


def test_inside_scan(x64):
    params, batch, v = problem()
    op = references.make("ggn", mlp, params, batch).linearize()

    @jax.jit
    def power(op, v):
        return jax.lax.scan(lambda u, _: (op.mv(u), None), v, length=3)[0]

    matrix = references.dense("ggn", references.reference("mlp"))
    references.assert_close(flat(power(op, params)), matrix @ matrix @ matrix @ v, 1e-9)
