"""Convolutions in the layout and the form that XLA's CPU backend is fast with."""

import math
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import primitives
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import flatjax
from flatjax import _collectives as collectives
from flatjax import _convolutions as convolutions
from flatjax import _shifted_products as shifted
from flatjax import loops
from flatjax._convolutions import canonical

FAST = re.compile(r"dim_labels=b([\d]+)f_\1io->b\1f")


def convolutions_of(fn, *args):
    """All convolutions of a traced function, those of inner programs included."""
    found = []

    def visit(value):
        if hasattr(value, "jaxpr") and value.jaxpr is not value:
            visit(value.jaxpr)
        elif hasattr(value, "eqns"):
            for equation in value.eqns:
                if equation.primitive is primitives.conv_general_dilated_p:
                    found.append(equation)
                for inner in equation.params.values():
                    visit(inner)
        elif isinstance(value, tuple | list):
            for item in value:
                visit(item)

    visit(jax.make_jaxpr(fn)(*args))
    return found


def all_fast(fn, *args):
    found = [e.params["dimension_numbers"] for e in convolutions_of(fn, *args)]
    assert found  # a test that finds no convolution tests nothing
    return all(one == convolutions._fast(len(one.lhs_spec)) for one in found)


def compiled_layouts(fn, *args):
    """For each convolution of the compiled program, whether its layout is the fast one."""
    text = jax.jit(fn).lower(*args).compile().as_text()
    lines = [line for line in text.splitlines() if "convolution(" in line and "dim_labels" in line]
    return [FAST.search(line) is not None for line in lines]


def numbers(layout):
    """``dimension_numbers`` of one, two or three dimensions, channels last or first."""
    space = "WHD"[: layout[1]]
    if layout[0] == "last":
        return ("N" + space + "C", space + "IO", "N" + space + "C")
    return ("NC" + space, "OI" + space, "NC" + space)


def problem(layout):
    """A convolution with stride, padding and dilation, its inputs and its kernel."""
    where, rank = layout
    size, window, channels, outputs = (9,) * rank, (3,) * rank, 5, 6
    k1, k2 = jax.random.split(jax.random.key(rank))
    if where == "last":
        shapes = (3, *size, channels), (*window, channels, outputs)
    else:
        shapes = (3, channels, *size), (outputs, channels, *window)
    inputs, kernel = (jax.random.normal(k, s) for k, s in zip((k1, k2), shapes, strict=True))

    def convolve(inputs, kernel):
        return jax.lax.conv_general_dilated(
            inputs, kernel, (2,) * rank, [(1, 2)] * rank, rhs_dilation=(2,) * rank,
            dimension_numbers=numbers(layout),
        )  # fmt: skip

    return convolve, inputs, kernel


@pytest.mark.parametrize("layout", [("last", 2), ("first", 3)])
def test_the_same_values_and_derivatives(x64, layout):
    convolve, inputs, kernel = problem(layout)

    def everything(inputs, kernel):
        def loss(inputs, kernel):
            return jnp.sin(convolve(inputs, kernel)).mean()

        gradient = jax.grad(loss, argnums=(0, 1))
        return convolve(inputs, kernel), jax.jvp(gradient, (inputs, kernel), (inputs, kernel))

    assert all_fast(canonical(everything), inputs, kernel)
    assert not all_fast(everything, inputs, kernel)
    expected, found = (jax.jit(f)(inputs, kernel) for f in (everything, canonical(everything)))
    # The sums of a convolution in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13), expected,
                 found)  # fmt: skip


def case(inputs, kernel, strides, padding="SAME", dims=("NHWC", "HWIO", "NHWC"), **options):
    """A convolution with the shapes of its operands."""

    def convolve(inputs, kernel):
        return jax.lax.conv_general_dilated(
            inputs, kernel, strides, padding, dimension_numbers=dims, **options
        )

    return convolve, inputs, kernel


# Convolutions that are replaced, forwards or in one of their derivatives.
REPLACED = {
    "depthwise, stride 2, lhs dilation": case(
        (2, 6, 5, 3), (3, 2, 1, 3), (2, 1), [(1, 0), (2, 1)], feature_group_count=3,
        lhs_dilation=(1, 2),
    ),
    "two outputs each, even kernel, asymmetric": case(
        (2, 6, 5, 3), (2, 3, 1, 6), (1, 1), [(0, 2), (3, 1)], feature_group_count=3
    ),
    "groups, dilated kernel": case(
        (2, 7, 6, 4), (2, 2, 2, 6), (1, 2), feature_group_count=2, rhs_dilation=(2, 3)
    ),
    "rows and pixels left over": case(
        (2, 7, 6, 4), (2, 2, 2, 4), (2, 3), [(0, -1), (-1, 0)], feature_group_count=2
    ),
    "one axis, channels first": case(
        (2, 4, 9), (2, 2, 3), (2,), dims=("NCH", "OIH", "NCH"), feature_group_count=2
    ),
    "three axes": case(
        (2, 3, 4, 5, 4), (2, 1, 2, 2, 4), (1, 2, 1), dims=("NDHWC", "DHWIO", "NHCWD"),
        feature_group_count=2,
    ),
    "grouped examples": case(
        (4, 5, 4, 3), (3, 2, 3, 6), (2, 1), "VALID", batch_group_count=2
    ),
    "few channels and outputs": case((2, 5, 4, 3), (3, 4, 3, 5), (1, 2), rhs_dilation=(2, 1)),
    "1 x 1": case((2, 4, 4, 5), (1, 1, 5, 6), (2, 2)),
    "larger than the image": case((3, 2, 2, 3), (6, 5, 3, 4), (1, 1), [(5, 4), (3, 4)]),
    "larger, dilated": case(
        (3, 3, 1, 3), (7, 3, 3, 4), (1, 1), [(4, 5), (5, 2)], rhs_dilation=(1, 2),
    ),
}  # fmt: skip


def of_every_kind(convolve, inputs, kernel):
    """Values, a gradient, and second derivatives forward and reverse over reverse."""

    def loss(operands):
        return jnp.sin(convolve(*operands)).sum()

    def penalty(operands):
        return sum((g**2).sum() for g in jax.grad(loss)(operands))

    operands = inputs, kernel
    hessian = jax.jvp(jax.grad(loss), (operands,), (operands,))
    return convolve(*operands), hessian, jax.grad(penalty)(operands)


def slow(found):
    """Those of some convolutions that are to be replaced."""
    return [
        e for e in found
        if shifted.form_of(e.params, *(v.aval for v in e.invars), e.outvars[0].aval)
    ]  # fmt: skip


class TestReplaced:
    @pytest.mark.parametrize("name", REPLACED)
    def test_the_same_numbers(self, x64, name):
        convolve, *shapes = REPLACED[name]
        keys = jax.random.split(jax.random.key(0), 2)
        operands = [jax.random.normal(k, s) for k, s in zip(keys, shapes, strict=True)]
        own = partial(of_every_kind, convolve)
        assert slow(convolutions_of(own, *operands))
        assert not slow(convolutions_of(canonical(own), *operands))
        expected, found = (jax.jit(f)(*operands) for f in (own, canonical(own)))
        # The sums of a convolution in another order, of some hundred numbers around one.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), expected, found
        )

    def test_vmapped(self):
        # A batch of kernels makes more groups, and a batch of images of one kernel examples.
        convolve, *shapes = REPLACED["groups, dilated kernel"]
        keys = jax.random.split(jax.random.key(1), 2)
        inputs, kernel = (jax.random.normal(k, (3, *s)) for k, s in zip(keys, shapes, strict=True))

        def gradients(inputs, kernel):
            of_one = jax.grad(lambda k, x: jnp.sin(convolve(x, k)).sum())
            return (
                jax.vmap(of_one)(kernel, inputs),
                jax.vmap(of_one, (None, 0))(kernel[0], inputs),
                jax.vmap(of_one, (0, None))(kernel, inputs[0]),
            )

        found = jax.jit(canonical(gradients))(inputs, kernel)
        assert not convolutions_of(canonical(gradients), inputs, kernel)
        outside = jax.jit(jax.vmap(canonical(jax.grad(lambda k, x: jnp.sin(convolve(x, k)).sum()))))
        expected = jax.jit(gradients)(inputs, kernel)
        # Float32, sums of some tens of numbers around one.
        for a, b in ((expected, found), (expected[0], outside(kernel, inputs))):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), a, b)

    @pytest.mark.parametrize("preferred", [None, "float32"])
    def test_half_precision_is_summed_in_float32(self, preferred):
        convolve, *shapes = case(
            (8, 9, 9, 4), (3, 3, 2, 4), (1, 1), feature_group_count=2,
            preferred_element_type=preferred,
        )  # fmt: skip
        keys = jax.random.split(jax.random.key(2), 2)
        inputs, kernel = (
            jax.random.normal(k, s, jnp.bfloat16) for k, s in zip(keys, shapes, strict=True)
        )
        found = canonical(convolve)(inputs, kernel)
        exact = convolve(inputs.astype(jnp.float32), kernel.astype(jnp.float32))
        assert found.dtype == (preferred or jnp.bfloat16)
        # One rounding of the sum: half an ulp of bfloat16, or some of float32.
        rtol = 2.0**-8 if preferred is None else 1e-5
        np.testing.assert_allclose(found.astype(jnp.float32), exact, rtol=rtol, atol=1e-5)

    def test_the_product_of_an_operator(self):
        convolve, inputs, kernel = REPLACED["groups, dilated kernel"]
        images = jax.random.normal(jax.random.key(3), inputs)

        def loss_fn(params, batch):
            return jnp.sin(convolve(batch, params)).mean(axis=(1, 2, 3))

        op = flatjax.operators.hessian(loss_fn, jnp.ones(kernel), images)
        assert convolutions_of(op.mv, jnp.ones(kernel))
        assert not convolutions_of(loops.product(op), jnp.ones(kernel))


@pytest.fixture
def mesh():
    return jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))


def network():
    """A small network of two convolutions, its params and a batch."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "a": 0.3 * jax.random.normal(keys[0], (3, 3, 5, 6)),
        "b": 0.2 * jax.random.normal(keys[1], (3, 3, 6, 6)),
    }
    images = jax.random.normal(keys[2], (8, 6, 6, 5))

    def loss(params, images):
        for kernel in (params["a"], params["b"]):
            images = jax.lax.conv_general_dilated(
                images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            images = jax.nn.gelu(images)
        return (images**2).mean()

    return loss, params, images


LOOPS = {
    "fori": lambda step, p: jax.jit(lambda p: loops.fori(3, lambda i, p: step(p), p))(p),
    "until": lambda step, p: jax.jit(
        lambda p: loops.until(lambda c: c[0] > 2, lambda c: (c[0] + 1, step(c[1])), (0, p))[1]
    )(p),
    "scan": lambda step, p: loops.scan(lambda p, _: (step(p), None), p, length=3)[0],
    "cond": lambda step, p: jax.jit(
        lambda p, due: loops.cond(due, lambda: step(step(step(p))), lambda: p)
    )(p, True),
}


class TestLoops:
    @pytest.mark.parametrize("loop", LOOPS)
    def test_every_compiled_convolution_is_fast(self, loop):
        loss, params, images = network()

        def step(params):
            gradient = jax.grad(loss)(params, images)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)

        def run(params):
            return LOOPS[loop](step, params)

        found = compiled_layouts(run, params)
        assert found
        assert all(found)
        expected = step(step(step(params)))
        # Float32, three steps: some tens of ulps of numbers below one.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            run(params), expected,
        )  # fmt: skip

    def test_without_it_they_are_not(self):
        # If this fails, XLA has learnt it, and the module can go.
        loss, params, images = network()
        gradient = jax.grad(loss)

        def run(params):
            return jax.lax.fori_loop(0, 3, lambda i, p: gradient(p, images), params)

        assert not all(compiled_layouts(run, params))

    def test_chunks(self):
        loss, params, images = network()

        def of_one(params, image):
            return jax.grad(loss)(params, image[None])

        def run(params, images):
            each = jax.vmap(of_one, (None, 0))
            return loops.map_chunks(lambda part: each(params, part), images, 4)

        assert all(compiled_layouts(run, params, images))

    @pytest.mark.parametrize("check_vma", [True, False])
    def test_collectives_inside(self, check_vma, mesh):
        loss, params, images = network()

        def descend(params, images, average):
            gradient = average(jax.grad(loss)(collectives.varying(params, "data"), images))
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)

        @partial(jax.shard_map, mesh=mesh, in_specs=(P(), P("data")), out_specs=P(),
                 check_vma=check_vma)  # fmt: skip
        def spread(params, images):
            average = lambda g: jax.lax.pmean(g, "data")  # noqa: E731
            return loops.fori(2, lambda i, p: descend(p, images, average), params)

        assert all(compiled_layouts(spread, params, images))
        expected = params
        for _ in range(2):
            gradient = jax.grad(loss)(expected, images)
            expected = jax.tree.map(lambda p, g: p - 0.1 * g, expected, gradient)
        # Float32, two steps: some tens of ulps of numbers below one.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
            jax.jit(spread)(params, images), expected,
        )  # fmt: skip


class TestWhatIsLeftAlone:
    def test_a_shard_map_inside_of_a_program(self):
        convolve, shape, window = REPLACED["groups, dilated kernel"]
        mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
        inputs = jnp.linspace(-1, 1, math.prod(shape)).reshape(shape)
        kernel = jnp.linspace(-1, 1, math.prod(window)).reshape(window)

        def gradient(kernel, inputs):
            loss = lambda k: jax.lax.pmean(jnp.tanh(convolve(inputs, k)).mean(), "data")  # noqa: E731
            return jax.grad(loss)(kernel)

        spread = jax.shard_map(gradient, mesh=mesh, in_specs=(P(), P("data")), out_specs=P())
        found = convolutions.compiled(spread)(kernel, inputs)
        expected = jax.grad(lambda k: jnp.tanh(convolve(inputs, k)).mean())(kernel)
        # Float32, sums of 42 terms in another order.
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)

    def test_no_convolution_no_change(self):
        calls = []

        def f(x):
            calls.append(type(x))
            return {"twice": 2 * x, "same": 3}

        out = canonical(f)(jnp.ones(2))
        assert out["same"] == 3  # not even an array of it
        assert len(calls) == 2

    def test_a_fast_convolution_is_not_touched(self):
        loss, params, images = network()
        found = jax.make_jaxpr(canonical(lambda p: loss(p, images)))(params)
        expected = jax.make_jaxpr(lambda p: loss(p, images))(params)
        assert str(found) == str(expected)

    def test_other_backends(self, monkeypatch):
        loss, params, images = network()
        gradient = lambda p: jax.grad(loss)(p, images)  # noqa: E731
        monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
        assert str(jax.make_jaxpr(canonical(gradient))(params)) == str(
            jax.make_jaxpr(gradient)(params)
        )

    def test_custom_derivatives_keep_their_rule(self):
        @jax.custom_vjp
        def f(x, kernel):
            return jax.lax.conv_general_dilated(x, kernel, (1,), "SAME").sum()

        f.defvjp(lambda x, kernel: (f(x, kernel), x), lambda x, c: (7 * c * x, None))
        x, kernel = jnp.ones((1, 2, 5)), jnp.ones((2, 2, 3))
        gradient = jax.grad(lambda x: canonical(f)(x, kernel))(x)
        np.testing.assert_array_equal(gradient, 7 * x)
