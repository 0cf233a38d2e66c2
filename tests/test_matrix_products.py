"""Products of stacked matrices as products of two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.extend.core import primitives
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from flatjax import _convolutions as convolutions
from flatjax import _matrix_products as matrices

# Shapes, axes that are summed over, and the form.
FORMS = {
    "dense layer": ((2, 3, 5), (5, 7), ((2,), (0,)), (1, 0)),
    "its kernel gradient": ((2, 3, 7), (2, 3, 5), ((0, 1), (0, 1)), (0, 0)),
    "its input gradient": ((2, 3, 7), (5, 7), ((2,), (1,)), (1, 1)),
    "heads put together": ((2, 3, 4, 5), (4, 5, 7), ((2, 3), (0, 1)), (1, 0)),
    "no rows": ((0, 3, 5), (5, 7), ((2,), (0,)), (1, 0)),
    "no sum": ((2, 3, 0), (0, 7), ((2,), (0,)), (1, 0)),
    "two matrices": ((3, 5), (5, 7), ((1,), (0,)), None),
    "a vector": ((2, 3, 5), (5,), ((2,), (0,)), None),
    "between others": ((2, 5, 3), (5, 7), ((1,), (0,)), None),
    "in another order": ((2, 3, 7), (3, 2, 5), ((0, 1), (1, 0)), None),
    "nothing summed over": ((2, 3, 5), (4,), ((), ()), None),
}


@pytest.mark.parametrize("name", FORMS)
def test_the_form_and_the_same_product(x64, name):
    left, right, summed, form = FORMS[name]
    keys = jax.random.split(jax.random.key(0))
    operands = [jax.random.normal(k, s) for k, s in zip(keys, (left, right), strict=True)]

    def product(left, right):
        return lax.dot_general(left, right, (summed, ((), ())))

    (equation,) = jax.make_jaxpr(product)(*operands).eqns
    assert matrices.form_of(equation.params, *(v.aval for v in equation.invars)) == form
    if form is not None:
        found = matrices.product(equation.params, form)(*operands)
        # Float64, at most 20 terms of a sum in another order.
        np.testing.assert_allclose(found, product(*operands), rtol=1e-13, atol=1e-13)


def test_batches_and_what_is_placed_stay_as_they_are():
    x, y, dense = (jax.typeof(jnp.ones(s)) for s in ((2, 3, 5), (2, 7, 5), (5, 7)))
    batches = {"dimension_numbers": (((2,), (2,)), ((0,), (0,)))}
    assert matrices.form_of(batches, x, y) is None
    params = {"dimension_numbers": (((2,), (0,)), ((), ())), "out_sharding": None}
    assert matrices.form_of(params, x, dense) == (1, 0)
    assert matrices.form_of(params | {"out_sharding": P()}, x, dense) is None
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Explicit,))
    placed = jax.device_put(jnp.ones((2, 3, 5)), NamedSharding(mesh, P()))
    assert matrices.form_of(params, jax.typeof(placed), dense) == (1, 0)
    placed = jax.device_put(jnp.ones((2, 3, 5)), NamedSharding(mesh, P("data")))
    assert matrices.form_of(params, jax.typeof(placed), dense) is None


def loss(kernel, inputs):
    return jnp.tanh(inputs @ kernel).mean()


INPUTS, KERNEL = jnp.linspace(-1, 1, 8 * 6 * 5).reshape(8, 6, 5), jnp.eye(5, 7)


def test_precision_and_dtype_are_kept():
    def product(kernel):
        return lax.dot_general(
            INPUTS.astype(jnp.bfloat16), kernel, (((2,), (0,)), ((), ())),
            precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32,
        )  # fmt: skip

    kernel = KERNEL.astype(jnp.bfloat16)
    text = jax.jit(convolutions.canonical(product)).lower(kernel).as_text()
    assert "tensor<48x7xf32>" in text
    assert "precision = [HIGHEST, HIGHEST]" in text
    np.testing.assert_array_equal(convolutions.canonical(product)(kernel), product(kernel))


def test_a_gradient_has_products_of_two_matrices_alone():
    def ranks(fn):
        found = []

        def visit(program):
            for equation in program.eqns:
                if equation.primitive is primitives.dot_general_p:
                    found.append({v.aval.ndim for v in equation.invars})
                elif "jaxpr" in equation.params:
                    visit(equation.params["jaxpr"].jaxpr)

        visit(jax.make_jaxpr(fn)(KERNEL, INPUTS).jaxpr)
        return found

    gradient = jax.grad(loss, argnums=(0, 1))
    assert ranks(gradient) == [{2, 3}, {3}, {2, 3}]
    assert ranks(convolutions.canonical(gradient)) == 3 * [{2}]


# From outside the types of the body are not known: it is left alone.
@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_in_and_around_a_shard_map(outside, kind):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))

    def gradient(kernel, inputs):
        return jax.grad(lambda k: lax.pmean(loss(k, inputs), "data"))(kernel)

    inner = gradient if outside else convolutions.canonical(gradient)
    spread = jax.shard_map(inner, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
    spread = convolutions.compiled(spread) if outside else jax.jit(spread)
    inputs = jax.device_put(INPUTS, NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh):
        found = spread(jax.device_put(KERNEL, NamedSharding(mesh, P())), inputs)
    # Float32, sums of 48 terms in another order.
    np.testing.assert_allclose(found, jax.grad(loss)(KERNEL, INPUTS), rtol=1e-5, atol=1e-7)
