"""What a function captures is followed: the answer is that of the values at this moment."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from flatjax import _functions as functions
from tests.captures import CONTAINERS
from tests.compilations import count_compilations

PARAMS = jnp.arange(12.0).reshape(4, 3) / 12
X = jnp.arange(8.0).reshape(2, 4) - 3
FIRST, SECOND = jnp.array([1.0, 2.0, 3.0]), jnp.array([5.0, 7.0, -1.0])


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_captured_array_is_a_leaf_of_its_value_now(container):
    fn, change = CONTAINERS[container](FIRST)
    jax.jit(lambda p: fn(p, X))(PARAMS)  # whatever JAX keeps of it, it has by now
    before = functions.follow(fn, (PARAMS, X))
    change(SECOND)
    after = functions.follow(fn, (PARAMS, X))
    expected = (X @ PARAMS) * FIRST, (X @ PARAMS) * SECOND
    # Rounding of a product of four, of numbers up to 20.
    np.testing.assert_allclose(before(PARAMS, X), expected[0], atol=1e-5)
    np.testing.assert_allclose(after(PARAMS, X), expected[1], atol=1e-5)
    assert before.programs == after.programs
    assert jax.tree.leaves(after)  # and so a new value compiles nothing


@pytest.mark.parametrize("container", ["closure", "namespace", "jitted_inside", "loop_inside"])
def test_a_captured_number_is_part_of_the_program(container):
    fn, change = CONTAINERS[container](2.0)
    before = functions.follow(fn, (PARAMS, X))
    change(3.0)
    after = functions.follow(fn, (PARAMS, X))
    np.testing.assert_allclose(before(PARAMS, X), 2 * X @ PARAMS, rtol=1e-6)
    np.testing.assert_allclose(after(PARAMS, X), 3 * X @ PARAMS, rtol=1e-6)
    assert before.programs != after.programs


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x)))
        x = nn.MultiHeadDotProductAttention(2)(nn.gelu(x)[:, None])[:, 0]
        return nn.softmax(nn.Dense(3)(x))


def test_fresh_lambdas_over_a_network_compile_once():
    net = Net()
    variables = net.init(jax.random.key(0), X)
    params = variables["params"]
    counts = []
    product = jax.jit(lambda f, p: jax.grad(lambda q: f(q, X).sum())(p))
    for step in range(3):
        statistics = jax.tree.map(lambda a, s=step: a + s, variables["batch_stats"])
        args = {"params": params, "batch_stats": statistics}
        with count_compilations() as count:
            fn = functions.follow(
                lambda p, x, a=args: net.apply({**a, "params": p}, x), (params, X)
            )
            product(fn, params)
        counts.append(count.value)
    assert counts[0] > 0
    assert counts[1:] == [0, 0]


def test_captured_arrays_are_not_kept():
    # Neither the program nor JAX's caches hold what a function captured: 12 times 20 MB.
    product = jax.jit(lambda f, p: f(p))
    sizes = []
    for step in range(12):
        big = jnp.full(5_000_000, float(step))
        product(functions.follow(lambda p, a=big: p.sum() * a.mean(), (PARAMS,)), PARAMS)
        del big
        sizes.append(sum(a.nbytes for a in jax.live_arrays()))
    assert sizes[-1] <= sizes[0]
    assert product._cache_size() == 1


def test_captured_values_may_be_traced_and_differentiated():
    def loss(held):
        return functions.follow(lambda p: (p.sum(0) * held).sum(), (PARAMS,))(PARAMS)

    np.testing.assert_allclose(jax.grad(loss)(FIRST), PARAMS.sum(0), rtol=1e-6)
    batched = jax.vmap(loss)(jnp.stack([FIRST, SECOND]))
    np.testing.assert_allclose(batched, [loss(FIRST), loss(SECOND)], rtol=1e-6)
    np.testing.assert_allclose(jax.jit(loss)(FIRST), loss(FIRST), rtol=1e-6)


@pytest.mark.parametrize("check_vma", [True, False])
def test_inside_shard_map(check_vma):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    inner = jax.jit(lambda p, x: jnp.tanh(x @ p))

    def body(p, x):
        p = jax.lax.pcast(p, "data", to="varying")
        fn = functions.follow(lambda p, x: (inner(p, x) * FIRST).sum(), (p, x))
        return jax.lax.psum(jax.grad(fn)(p, x), "data")

    specs = PartitionSpec(), PartitionSpec("data")
    sharded = jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(),
                            check_vma=check_vma)  # fmt: skip
    expected = jax.grad(lambda p: (jnp.tanh(X @ p) * FIRST).sum())(PARAMS)
    np.testing.assert_allclose(jax.jit(sharded)(PARAMS, X), expected, rtol=1e-5)


def test_one_signature_for_each_shape():
    fn = functions.follow(lambda p, x: x @ p, (PARAMS, X), (PARAMS, X[:1]))
    np.testing.assert_allclose(fn(PARAMS, X[1:]), X[1:] @ PARAMS, rtol=1e-6)
    np.testing.assert_allclose(fn(PARAMS, X), X @ PARAMS, rtol=1e-6)
    with pytest.raises(TypeError, match="other shapes or dtypes"):
        fn(PARAMS, jnp.ones((3, 4)))
    with pytest.raises(TypeError, match="other shapes or dtypes"):
        fn(PARAMS.astype(jnp.float16), X)


def test_a_rule_is_that_of_the_moment():
    factor = 2.0

    @jax.custom_jvp
    def double(x):
        return 2 * x

    @double.defjvp
    def _(primals, tangents):
        return double(primals[0]), factor * tangents[0]

    before = functions.follow(lambda p: double(p).sum(), (PARAMS,))
    factor = 5.0
    after = functions.follow(lambda p: double(p).sum(), (PARAMS,))
    assert jax.grad(before)(PARAMS)[0, 0] == 2.0
    assert jax.grad(after)(PARAMS)[0, 0] == 5.0


def test_names_of_modules_survive_for_profiles():
    fn = functions.follow(lambda p: jax.named_scope("attention")(jnp.sin)(p).sum(), (PARAMS,))
    assert "attention" in jax.jit(fn).lower(PARAMS).as_text(debug_info=True)


def test_an_error_of_the_function_is_its_own():
    def fn(p):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        functions.follow(fn, (PARAMS,))


def test_arrays_of_inner_functions_go_where_they_were():
    inner = jax.jit(lambda y: y * FIRST)
    middle = jax.jit(lambda y: inner(y) + SECOND)
    fn = functions.follow(lambda p, x: middle(x @ p) - 2.0 * jnp.cos(SECOND), (PARAMS, X))
    expected = (X @ PARAMS) * FIRST + SECOND - 2 * jnp.cos(SECOND)
    np.testing.assert_allclose(fn(PARAMS, X), expected, atol=1e-5)


def test_arrays_of_inner_functions_are_not_kept_by_the_program():
    product = jax.jit(lambda f, p: f(p))
    kept = []
    for step in range(4):
        big = jnp.full(1_000_000, float(step))
        inner = jax.jit(lambda p, a=big: p.sum() * a.mean())
        fn = functions.follow(lambda p, inner=inner: inner(p), (PARAMS,))
        product(fn, PARAMS)
        kept.append(fn.programs[0])
        del big, inner, fn
    assert len(set(kept)) == 1
    assert not any(a.nbytes == 4_000_000 for a in jax.live_arrays())


def test_the_structure_of_the_output_is_part_of_the_program():
    fns = [functions.follow(make, (PARAMS,)) for make in (lambda p: (p, p), lambda p: [p, p])]
    assert [type(fn(PARAMS)) for fn in fns] == [tuple, list]


def test_params_that_are_the_same_on_all_devices_may_be_handed_over():
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))

    def body(p, x):
        varying = jax.lax.pcast(p, "data", to="varying")
        fn = functions.follow(lambda p, x: jax.lax.dot(x, p).sum(), (varying, x))
        return jax.lax.psum(fn(p, x), "data")

    specs = PartitionSpec(), PartitionSpec("data")
    sharded = jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    np.testing.assert_allclose(jax.jit(sharded)(PARAMS, X), (X @ PARAMS).sum(), rtol=1e-5)


def test_one_moment_traces_a_function_once():
    memory, traces = {}, []

    def fn(p):
        traces.append(p)
        return p * FIRST[0]

    for _ in range(3):
        with functions.one_moment(memory):
            functions.follow(fn, (PARAMS,))
            functions.follow(fn, (X,))
    assert len(traces) == 2
    functions.follow(fn, (PARAMS,))
    assert len(traces) == 3


def test_more_shapes_later_see_the_values_of_later():
    scale = 2.0
    fn = functions.follow(lambda p: scale * p, (PARAMS,))
    scale = 3.0
    more = fn.at(X)
    assert fn.takes(PARAMS)
    assert not fn.takes(X)
    assert more(PARAMS)[0, 0] == 2.0 * PARAMS[0, 0]
    assert more(X)[0, 0] == 3.0 * X[0, 0]
    lost = jax.jit(lambda f: f)(fn)
    assert lost.original is None
    with pytest.raises(TypeError, match="chunk_size="):
        lost.at(X)


def test_what_a_partial_of_a_function_of_jax_holds():
    held = functools.partial(jnp.clip, max=FIRST)
    inner = jax.jit(held)
    assert inner(5 * jnp.ones(3)).tolist() == FIRST.tolist()  # JAX keeps its trace from here on
    held.keywords.update(max=SECOND)
    fn = functions.follow(lambda p: inner(p), (PARAMS,))
    np.testing.assert_array_equal(fn(9 + PARAMS), jnp.broadcast_to(SECOND, (4, 3)))
