"""Kernels whose backward pass has no derivative: central differences forward, the vjp backward."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec

import flatjax
from flatjax.operators import _derivatives as derivatives
from flatjax.operators._differences import central_difference
from tests.models import NETWORKS, affine, attention
from tests.operators import references

EPS = 2.0**-23  # of float32
NOISE = EPS ** (2 / 3)
# Truncation and rounding are both about the noise times the largest products of the matrix, with
# derivatives of the model, of order one, before them.
MOST = 4 * NOISE
NETWORK = NETWORKS["attention"]


def sealed(fn):
    """``fn`` as a kernel without a derivative: neither forward nor reverse mode exists."""

    def refuse(*args):
        raise NotImplementedError("this kernel has no derivative")

    kernel = jax.custom_vjp(fn)
    kernel.defvjp(refuse, refuse)
    return kernel


def softmax_attention(q, k, v):
    return jnp.einsum("nij,njd->nid", jax.nn.softmax(jnp.einsum("nid,njd->nij", q, k)), v)


def kernel_of(fn):
    """``fn`` with a gradient and nothing beyond it."""
    kernel = jax.custom_vjp(fn)
    backward = sealed(lambda inputs, g: jax.vjp(fn, *inputs)[1](g))
    kernel.defvjp(lambda *inputs: (fn(*inputs), inputs), backward)
    return kernel


KERNEL = kernel_of(softmax_attention)


def model(params, x):
    """The attention network of the tests, on the kernel."""
    q, k, v = (x @ params[name] for name in ("query", "key", "value"))
    return affine(params["out"], x + KERNEL(q, k, v))


def make(kind, apply=model, **options):
    return references.make(kind, apply, *NETWORK.cast(jnp.float32), **options)


def dense(kind, **options):
    return references.dense(kind, references.reference("attention"), **options)


def vector(params):
    return jax.tree.map(lambda a: jnp.cos(1.5 * jnp.arange(float(a.size))).reshape(a.shape), params)


def flat(tree):
    return np.asarray(ravel_pytree(tree)[0], np.float64)


def error(actual, desired):
    """The relative error of two trees."""
    return np.linalg.norm(flat(actual) - flat(desired)) / np.linalg.norm(flat(desired))


def product_error(actual, matrix, v):
    """The error of a product with ``v``, relative to the norm of the matrix times that of ``v``."""
    gap = np.linalg.norm(flat(actual) - matrix @ flat(v))
    return gap / np.linalg.norm(matrix, 2) / np.linalg.norm(flat(v))


@pytest.mark.parametrize("kind", references.OPERATORS)
def test_operators_are_their_dense_matrices_within_the_noise_they_report(kind):
    op = make(kind)
    draws = op.draws if kind == "fisher_sampled" else None
    matrix = dense(kind, draws=draws)
    for operator in (op, op.linearize()):
        assert operator.method == "central-difference"
        assert operator.relative_noise == pytest.approx(NOISE)
        gap = np.linalg.norm(np.asarray(operator.to_dense(), np.float64) - matrix, 2)
        # A Hessian has one more derivative of the softmax, at weights of norm 6.
        most = 6 * MOST if kind == "hessian" else MOST
        assert gap < most * np.linalg.norm(matrix, 2)


def test_the_exact_fisher_is_the_gauss_newton_matrix():
    params, batch = NETWORK.cast(jnp.float32)
    F = flatjax.fisher(model, flatjax.softmax_cross_entropy, params, batch)
    assert F.method == "central-difference"
    assert error(F @ vector(params), make("ggn") @ vector(params)) == 0.0


@pytest.mark.parametrize("linearize", [False, True])
def test_jacobian_and_tangent_kernel(linearize):
    params, (x, _) = NETWORK.cast(jnp.float32)
    wanted, J = flatjax.jacobian(attention, params, x), flatjax.jacobian(model, params, x)
    K = flatjax.ntk(model, params, x)
    J, K = (J.linearize(), K.linearize()) if linearize else (J, K)
    assert J.method == "central-difference"
    assert J.relative_noise == pytest.approx(NOISE)
    v, matrix = vector(params), flat(wanted.to_dense()).reshape(wanted.shape)
    u = wanted @ v
    assert product_error(J @ v, matrix, v) < MOST
    assert product_error(J.mv(v), matrix, v) < MOST  # eager
    # The transpose is the vjp, exact; a float32 sum of some hundred terms.
    assert error(J.T @ u, wanted.T @ u) < 20 * EPS
    assert error(J.to_dense(), matrix) < 20 * EPS
    for product in (J.gram(u), K @ u):
        assert product_error(product, matrix @ matrix.T, u) < MOST


def test_linearize_of_a_jacobian_reports_the_way_of_the_jacobian():
    params, (x, _) = NETWORK.cast(jnp.float32)
    for apply in (attention, model):
        J = flatjax.jacobian(apply, params, x)
        assert J.linearize().method == J.method
        assert J.linearize().relative_noise == J.relative_noise


def test_eigenvalues_say_truly_which_are_resolved():
    op = make("ggn")
    pairs = flatjax.eigsh(op, k=20, key=jax.random.key(0))
    exact = np.linalg.eigvalsh(dense("ggn"))[::-1][:20]
    # Ten of the twenty are larger than the noise; the floor is that of differences, not rounding.
    floor = float(pairs.noise_floor)
    assert 0.1 * NOISE * exact[0] < floor < 20 * NOISE * exact[0]
    assert np.abs(np.asarray(pairs.values) - exact).max() < floor
    assert pairs.resolved.tolist() == (np.abs(pairs.values) > floor).tolist()
    assert set(pairs.resolved.tolist()) == {True, False}


@pytest.mark.parametrize("kind", ["ggn", "covariance"])
def test_weights_chunks_streams_and_parts(kind):
    params, (x, y) = NETWORK.cast(jnp.float32)
    weights = jnp.asarray([1.0, 0.0, 2.0, 1.0, 0.5, 1.0, 1.0, 3.0])
    matrix, v = dense(kind, weights=weights), vector(params)

    def of_batch(batch):
        return references.make(kind, model, params, batch[0], weights=batch[1])

    batches = [((x[a:b], y[a:b]), weights[a:b]) for a, b in ((0, 3), (3, 8))]
    whole = of_batch(((x, y), weights))
    scale = jax.tree.map(lambda a: 2.0 + jnp.square(a), params)
    root = jax.tree.map(jnp.sqrt, scale)
    cut = flatjax.operators._chunks.chunked(whole, 3)
    for op in (cut, flatjax.over_batches(of_batch, batches)):
        assert product_error(op @ v, matrix, v) < MOST
    assert cut.method == "central-difference"
    assert cut.relative_noise == pytest.approx(NOISE)
    P = flatjax.preconditioned(whole.linearize(), scale)
    scaled = jax.tree.map(jnp.multiply, P @ jax.tree.map(jnp.multiply, v, root), root)
    # The vector is scaled down and the error up again, at most by the largest entry.
    assert product_error(scaled, matrix, v) < MOST * flat(root).max()
    part = flatjax.restrict(whole, "query")
    assert part.method == "central-difference"
    v = flatjax.operators.select(v, "query")
    rows = slice(13, 17)  # after the 4 entries of the key and the 9 of the output layer
    # Relative to a block that is far smaller than the matrix.
    whole_norm, norm = (np.linalg.norm(m, 2) for m in (matrix, matrix[rows, rows]))
    assert product_error(part @ v, matrix[rows, rows], v) < MOST * whole_norm / norm


@pytest.mark.parametrize("kind", ["ggn", "covariance"])
def test_devices(kind):
    params, (x, y) = NETWORK.cast(jnp.float32)
    mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    split = PartitionSpec("d")

    @jax.jit
    @functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(PartitionSpec(), split, PartitionSpec()),
        out_specs=PartitionSpec(),
    )  # fmt: skip
    def product(params, batch, v):
        op = references.make(kind, model, params, batch, axis_name="d")
        plain, linearized = op.mv(v), op.linearize().mv(v)
        return plain, linearized

    v = vector(params)
    for found in product(params, (x, y), v):
        assert product_error(found, dense(kind), v) < MOST


# The step.


def cubic(weights):
    """A cubic at zero: its difference is the third power of the step over the step."""
    return weights[0] ** 3


@pytest.mark.parametrize(
    ("params", "v", "step"),
    [
        ([0.0, 0.0], [1.0, 0.0], 1.0),
        ([0.0, 0.1], [1.0, 0.0], 1.0),  # never below one
        ([0.0, 8.0], [1.0, 0.0], 8 / 2**0.5),  # the root mean square of the params
        ([0.0, 8.0], [0.6, 0.8], 8 / 2**0.5 / 0.8),  # every entry moves by that at most
        ([0.0, 8.0], [-3.0, 4.0], 8 / 2**0.5 / 0.8),
    ],
)
def test_the_step(params, v, step):
    params, v = jnp.asarray(params), jnp.asarray(v)
    product = central_difference(cubic, params)(v)
    length = jnp.linalg.norm(v)
    step = EPS ** (1 / 3) * step
    # (h u)^3 / h |v|, a few float32 roundings
    wanted = step**2 * (v[0] / length) ** 3 * length
    assert float(product) == pytest.approx(float(wanted), rel=1e-5)


def test_products_do_not_depend_on_the_length_of_the_vector():
    difference = central_difference(lambda w: w**3 + w, jnp.ones(3))
    v = jnp.asarray([1.0, -2.0, 0.5])
    for power in (-125, -60, 60, 120):  # the smallest and largest lengths of float32
        found = difference(2.0**power * v) * 2.0**-power
        # Powers of two change no digit of the direction.
        assert found.tolist() == difference(v).tolist()
    assert difference(0 * v).tolist() == [0.0, 0.0, 0.0]
    assert jnp.isnan(difference(v.at[0].set(jnp.nan))).any()


# Low precision: the step and the noise follow the coarsest dtype on the way.

HALF = {"bfloat16": 2.0**-7, "float16": 2.0**-10}


def noise_of(fn, params):
    return derivatives.linear_map(fn, params)[1].way.noise


@pytest.mark.parametrize("name", HALF)
def test_the_coarsest_dtype_on_the_way_counts(name):
    low, eps = jnp.dtype(name), HALF[name]
    kernel = kernel_of(jnp.sin)
    w, x = jnp.ones(3), jnp.ones(3, low)

    def half(w):
        return kernel(w.astype(low)).astype(jnp.float32)

    coarse = {
        "inside": half,
        "outputs": lambda w: kernel(w).astype(low),
        "compiled": jax.jit(half),
        "loop": lambda w: jax.lax.fori_loop(0, 2, lambda i, c: half(c), w),
        "branch": lambda w: jax.lax.cond(w[0] > 0, half, kernel, w),
    }
    for where, fn in coarse.items():
        assert noise_of(fn, w) == pytest.approx(eps ** (2 / 3)), where
    # Data in half precision are exact numbers like any others.
    data = lambda w, x: kernel(w * (x + x).astype(jnp.float32))  # noqa: E731
    for fn in (data, jax.jit(data)):
        assert noise_of(lambda w, fn=fn: fn(w, x), w) == pytest.approx(NOISE)
    # Params in half precision are moved in float32, but the vjp is at their own dtype.
    wide = lambda w: kernel(w.astype(jnp.float32))  # noqa: E731
    assert noise_of(wide, x) == pytest.approx(max(eps, NOISE))


def test_the_coarsest_of_params_of_two_dtypes(x64):
    params = {"a": jnp.ones(2), "b": jnp.ones(2, jnp.float32)}
    kernel = kernel_of(jnp.sin)
    fn = lambda p: kernel(p["a"] + p["b"].astype(p["a"].dtype))  # noqa: E731
    assert noise_of(fn, params) == pytest.approx(NOISE)


@pytest.mark.parametrize("name", HALF)
@pytest.mark.parametrize("strict", [False, True], ids=["upcasting", "strict"])
def test_params_in_half_precision(name, strict, standard_promotion):
    """Moved in float32 where the model takes that; rounded for a kernel of half precision only."""
    low, eps = jnp.dtype(name), HALF[name]
    params, batch = NETWORK.cast(jnp.float32)
    params = jax.tree.map(lambda a: (a / 4).astype(low), params)
    exact = jax.tree.map(lambda a: a.astype(jnp.float32), params)
    inputs = batch[0].astype(low) if strict else batch[0]

    def apply(params, x):
        if strict and params["out"]["kernel"].dtype != low:
            raise TypeError("half precision only")
        return model(params, x)

    op = references.make("ggn", apply, params, (inputs, batch[1]))
    exact_inputs = inputs.astype(jnp.float32)
    wanted = references.make("ggn", attention, exact, (exact_inputs, batch[1]))
    noise = eps ** (2 / 3) if strict else eps
    v = jax.tree.map(lambda a: a.astype(low).astype(jnp.float32), vector(exact))
    for operator in (op, op.linearize()):
        assert operator.method == "central-difference"
        assert operator.relative_noise == pytest.approx(noise)
        assert error(operator @ v, wanted @ v) < 2 * noise


# A map and its transpose have to be one matrix.


def test_leaves_without_a_gradient_are_not_moved():
    kernel = kernel_of(lambda a, b: jnp.sin(a) * b)

    def stopped(p, x):
        return kernel(p["w"] * x, jax.lax.stop_gradient(p["frozen"]) * x)

    params, x = {"frozen": jnp.asarray(2.0), "w": jnp.asarray(0.5)}, jnp.ones(2)
    for op in (flatjax.jacobian(stopped, params, x), flatjax.jacobian(jax.jit(stopped), params, x)):
        assert (op @ {"frozen": jnp.asarray(1.0), "w": jnp.asarray(0.0)}).tolist() == [0.0, 0.0]
        assert op.to_dense()[:, 0].tolist() == [0.0, 0.0]
        assert (
            error(op @ {"frozen": jnp.asarray(1.0), "w": jnp.asarray(1.0)}, op.to_dense()[:, 1])
            < NOISE
        )


def test_a_backward_pass_that_stops_its_own_derivative_is_not_differentiated():
    """The second vjp would be zero without a word."""
    fn = jax.custom_vjp(jnp.sin)
    fn.defvjp(lambda x: (jnp.sin(x), x), lambda x, g: (jax.lax.stop_gradient(g * jnp.cos(x)),))
    op = flatjax.jacobian(lambda w, x: fn(w * x), jnp.asarray(0.5), jnp.ones(2))
    assert op.method == "central-difference"
    assert error(op @ jnp.asarray(1.0), np.full(2, np.cos(0.5))) < 2 * NOISE


# Which models have no derivative.


def callback(x):
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return jax.pure_callback(lambda a: np.sin(np.asarray(a)), shape, x, vmap_method="sequential")


def in_custom_gradient(fn):
    return jax.custom_gradient(lambda x: (fn(x), lambda g: g * jnp.cos(x)))


def on_the_host(fn):
    """A kernel whose backward pass is a callback, as a call of a foreign library is."""
    kernel = jax.custom_vjp(fn)

    def backward(x, g):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        run = lambda x, g: np.asarray(g) * np.cos(np.asarray(x))  # noqa: E731
        return (jax.pure_callback(run, shape, x, g, vmap_method="sequential"),)

    kernel.defvjp(lambda x: (fn(x), x), backward)
    return kernel


def in_pallas(fn):
    def call(body, *inputs):
        shape = jax.ShapeDtypeStruct(inputs[0].shape, inputs[0].dtype)
        return pallas.pallas_call(body, out_shape=shape, interpret=True)(*inputs)

    def forward(x_ref, out_ref):
        out_ref[...] = fn(x_ref[...])

    def backward(x_ref, g_ref, out_ref):
        out_ref[...] = g_ref[...] * jnp.cos(x_ref[...])

    kernel = jax.custom_vjp(lambda x: call(forward, x))
    kernel.defvjp(lambda x: (call(forward, x), x), lambda x, g: (call(backward, x, g),))
    return kernel


KERNELS = {
    "jvp": (jnp.sin, "jvp"),
    "custom_gradient": (in_custom_gradient(jnp.sin), "double-vjp"),
    "custom_gradient of a callback": (in_custom_gradient(callback), "double-vjp"),
    "callback backward": (on_the_host(jnp.sin), "central-difference"),
    "callbacks both ways": (on_the_host(callback), "central-difference"),
    "pallas": (in_pallas(jnp.sin), "central-difference"),
    "sealed": (kernel_of(jnp.sin), "central-difference"),
}
CONTEXTS = {
    "plain": lambda fn: fn,
    "jit": jax.jit,
    "vmap": jax.vmap,
    "remat": jax.checkpoint,
    "scan": lambda fn: lambda x: jax.lax.scan(lambda c, _: (fn(c), None), x, None, length=1)[0],
    "cond": lambda fn: lambda x: jax.lax.cond(x[0] > -9, fn, jnp.cos, x),
}


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_in_every_context(name):
    kernel, method = KERNELS[name]
    x, v = jnp.linspace(0.1, 1.0, 4), jnp.asarray([1.0, -1.0, 0.5, 2.0])

    def both(fn, x):
        _, linear = derivatives.linear_map(fn, x)
        assert linear.way.method == method
        return linear(v), linear.transpose(v, v)

    for context, wrap in CONTEXTS.items():
        fn = wrap(kernel)
        jax.eval_shape(functools.partial(both, fn), x)  # traced
        if context in ("plain", "vmap"):
            forward, backward = both(fn, x)  # eager
            assert error(forward, v * jnp.cos(x)) < MOST, context
            assert error(backward, v * jnp.cos(x)) < 4 * EPS, context


def test_a_model_with_a_jvp_is_traced_no_more_often():
    traces = []

    def counted(params, x):
        traces.append(1)
        return attention(params, x)

    params, batch = NETWORK.cast(jnp.float32)
    op = references.make("ggn", counted, params, batch)
    assert len(traces) == 1
    op.mv(params)
    assert len(traces) == 1  # of the program that the operator holds
