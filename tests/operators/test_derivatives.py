"""Models without a forward-mode rule: which derivative is taken instead, and how good it is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import flatjax
from flatjax.operators import _derivatives as derivatives
from tests.compilations import count_compilations
from tests.models import NETWORKS, affine
from tests.operators import references


@jax.custom_vjp
def reverse_only(x):
    """tanh with a backward pass of ordinary operations: the gradient can be differentiated."""
    return jnp.tanh(x)


reverse_only.defvjp(lambda x: (jnp.tanh(x), x), lambda x, g: (g * (1 - jnp.square(jnp.tanh(x))),))


@jax.custom_vjp
def twice_reverse(x):
    """tanh whose backward pass is itself reverse-only, as of a fused kernel's."""
    return jnp.tanh(x)


twice_reverse.defvjp(
    lambda x: (jnp.tanh(x), x), lambda x, g: (g * (1 - jnp.square(reverse_only(x))),)
)


@jax.custom_vjp
def first_order(x):
    """tanh whose backward pass runs on the host: no second derivative of any kind."""
    return jnp.tanh(x)


def _host(x, g):
    return (g * (1 - np.tanh(x) ** 2)).astype(x.dtype)


def _first_order_bwd(x, g):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return (jax.pure_callback(_host, shape, x, g, vmap_method="sequential"),)


first_order.defvjp(lambda x: (jnp.tanh(x), x), _first_order_bwd)


@jax.custom_jvp
def both_rules(x):
    """tanh with a forward and a reverse rule, as a kernel has them: each is opaque itself."""
    return jnp.tanh(x)


@both_rules.defjvp
def _both_rules_jvp(primals, tangents):
    slope = lambda x, t: t * (1 - jnp.square(jnp.tanh(x)))  # noqa: E731
    rule = jax.custom_derivatives.linear_call(slope, slope, *primals, *tangents)
    return both_rules(*primals), rule


def model(activation):
    def apply(params, x):
        return affine(params["out"], activation(affine(params["hidden"], x)))

    return apply


MODELS = {f.__name__: model(f) for f in (reverse_only, twice_reverse, first_order, both_rules)}
EXPECTED = {
    "reverse_only": ("forward-over-reverse", "double-vjp"),
    "twice_reverse": ("reverse-over-reverse", "double-vjp"),
    "first_order": ("central-difference", None),
    "both_rules": ("central-difference", "jvp"),
}


def operator(kind, name, dtype=jnp.float32, **options):
    network = NETWORKS["mlp"]
    return references.make(kind, MODELS[name], *network.cast(dtype), **options)


@pytest.mark.parametrize("kind", ["hessian", "ggn", "covariance"])
@pytest.mark.parametrize("name", ["reverse_only", "twice_reverse"])
def test_fallbacks_are_exact(kind, name, x64):
    op = operator(kind, name, jnp.float64)
    v = vector(op.params)
    flat = np.asarray(ravel_pytree(v)[0])
    expected = references.dense(kind, references.reference("mlp")) @ flat
    references.assert_close(ravel_pytree(op @ v)[0], expected, references.FLOAT64)
    references.assert_close(ravel_pytree(op.linearize() @ v)[0], expected, references.FLOAT64)


def vector(params):
    flat, unravel = ravel_pytree(params)
    return unravel(jnp.cos(jnp.arange(flat.size, dtype=flat.dtype)))


@pytest.mark.parametrize("name", EXPECTED)
def test_the_operator_says_which_was_used(name):
    hessian, jacobian = EXPECTED[name]
    assert operator("hessian", name).method == hessian
    if jacobian is not None:
        for kind in ["ggn", "covariance"]:
            assert operator(kind, name).method == jacobian
        assert operator("ggn", name).linearize().method == jacobian


def test_a_plain_model_uses_forward_mode():
    network = NETWORKS["mlp"]
    op = references.make("hessian", network.apply, *network.cast(jnp.float32))
    assert op.method == "forward-over-reverse"
    # float32 rounding is 1.2e-7 between neighbours.
    assert op.relative_noise == pytest.approx(1.2e-7, rel=0.01)
    assert references.make("ggn", network.apply, *network.cast(jnp.float32)).method == "jvp"


@pytest.mark.parametrize(("dtype", "noise"), [("float32", 2.4e-5), ("float64", 3.7e-11)])
def test_central_differences_are_as_good_as_they_say(dtype, noise):
    with jax.enable_x64(dtype == "float64"):
        # One product of each dtype: the callback makes them slow to compile.
        op = operator("hessian", "first_order", jnp.dtype(dtype))
        assert op.relative_noise == pytest.approx(noise, rel=0.01)
        assert op.linearize() is op
        v = vector(op.params)
        expected = operator("hessian", "reverse_only", jnp.dtype(dtype)) @ v
        error = flatjax._trees.norm(jax.tree.map(jnp.subtract, op @ v, expected))
        # The two balanced errors with the derivatives of this model, of order one, before them.
        assert error < 10 * op.relative_noise * flatjax._trees.norm(expected)
        # Rounding makes it worse than autodiff: the noise it states is no slander.
        assert error > 0.01 * op.relative_noise * flatjax._trees.norm(expected)


def test_bfloat16_params_are_perturbed_in_float32():
    """In bfloat16 the step of 5e-3 would leave most params of order one where they are."""
    network = NETWORKS["mlp"]
    params, batch = network.cast(jnp.float32)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), params)
    exact = jax.tree.map(lambda a: a.astype(jnp.float32), half)
    with jax.numpy_dtype_promotion("standard"):
        low = references.make("hessian", MODELS["first_order"], half, batch)
        high = references.make("hessian", MODELS["first_order"], exact, batch)
        v = jax.tree.map(jnp.ones_like, exact)  # exact in bfloat16, as vectors are rounded too
        gap = flatjax._trees.norm(jax.tree.map(jnp.subtract, low @ v, high @ v))
        assert gap < 10 * high.relative_noise * flatjax._trees.norm(high @ v)


def test_a_model_with_no_derivative_at_all_raises_its_own_error():
    def loss_fn(params, batch):
        shape = jax.ShapeDtypeStruct((2,), jnp.float32)
        return jax.pure_callback(np.asarray, shape, params * batch, vmap_method="sequential")

    op = flatjax.hessian(loss_fn, jnp.ones(2), jnp.ones(2))
    with pytest.raises(ValueError, match="Pure callbacks do not support"):
        op @ jnp.ones(2)


def test_new_values_are_not_evaluated_again():
    network = NETWORKS["mlp"]
    params, batch = network.cast(jnp.float32)
    first = references.make("hessian", network.apply, params, batch)
    method = first.method
    before = derivatives._way_taken.cache_info().misses
    moved = references.make("hessian", network.apply, jax.tree.map(jnp.cos, params), batch)
    assert derivatives.way_taken(moved).method == method
    assert derivatives._way_taken.cache_info().misses == before


@pytest.mark.parametrize("name", ["reverse_only", "twice_reverse"])
def test_eager_products_and_traced_batches(name):
    """Not compiled, or traced by the batch alone, the fallback is found all the same."""
    network = NETWORKS["mlp"]
    params, (x, y) = network.cast(jnp.float32)
    expected = ravel_pytree(references.make("hessian", network.apply, params, (x, y)) @ params)[0]

    def product(x):
        return references.make("hessian", MODELS[name], params, (x, y)).mv(params)

    for run in (product, jax.jit(product)):
        references.assert_close(ravel_pytree(run(x))[0], expected, references.FLOAT32)


def test_an_eager_product_compiles_nothing_the_second_time():
    network = NETWORKS["mlp"]
    op = references.make("hessian", network.apply, *network.cast(jnp.float32))
    op.mv(op.params)
    with count_compilations() as count:
        op.mv(op.params)
    assert count.value == 0
