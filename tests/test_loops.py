"""Who drives an iteration: the host, or the device under tracing and on demand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax import loops
from tests.compilations import count_compilations


class Counted:
    """A function that counts how often Python calls it."""

    def __init__(self, fn):
        self.fn, self.calls = fn, 0

    def __call__(self, *args):
        self.calls += 1
        return self.fn(*args)


class TestWhoDrives:
    def test_concrete_values_are_not_traced(self):
        assert not loops.is_traced({"a": jnp.ones(2), "b": [1.0, np.ones(2), None]})
        assert not loops.on_device(jnp.ones(2))

    @pytest.mark.parametrize(
        "transform",
        [
            pytest.param(lambda f: jax.jit(f)(1.0), id="jit"),
            pytest.param(lambda f: jax.vmap(f)(jnp.ones(2)), id="vmap"),
            pytest.param(lambda f: jax.grad(f)(1.0), id="grad"),
            pytest.param(lambda f: jax.make_jaxpr(f)(1.0), id="make_jaxpr"),
        ],
    )
    def test_tracers_are(self, transform):
        seen = []

        def f(x):
            seen.append((loops.is_traced({"a": 1.0}, [x]), loops.on_device(x)))
            return 2.0 * x

        transform(f)
        assert seen == [(True, True)]

    def test_on_demand(self):
        with loops.device():
            assert loops.on_device(1.0)
            with loops.device(enable=False):
                assert not loops.on_device(1.0)
            assert loops.on_device(1.0)
        assert not loops.on_device(1.0)

    def test_an_error_leaves_the_context(self):
        with pytest.raises(RuntimeError, match="inside"), loops.device():
            raise RuntimeError("inside")
        assert not loops.on_device(1.0)


class TestFori:
    @staticmethod
    def body(i, carry):
        x, total = carry
        return x * 0.5 + i, total + x

    def check(self, carry, num_steps):
        x, total = 8.0, 0.0
        for i in range(num_steps):
            x, total = x * 0.5 + i, total + x
        assert (float(carry[0]), float(carry[1])) == (x, total)

    start = (jnp.float32(8.0), jnp.float32(0.0))

    @pytest.mark.parametrize("num_steps", [0, 1, 5])
    def test_host_device_and_traced_agree(self, num_steps):
        counted = Counted(self.body)
        self.check(loops.fori(num_steps, counted, self.start), num_steps)
        assert counted.calls == num_steps
        with loops.device():
            self.check(loops.fori(num_steps, self.body, self.start), num_steps)
        traced = jax.jit(lambda carry: loops.fori(num_steps, self.body, carry))
        self.check(traced(self.start), num_steps)

    def test_traced_loops_do_not_unroll(self):
        counted = Counted(self.body)
        jaxpr = jax.make_jaxpr(lambda c: loops.fori(1000, counted, c))(self.start)
        assert counted.calls < 5
        assert len(jaxpr.eqns) < 20

    def test_a_body_that_closes_over_a_traced_value(self):
        # The carry is concrete at first, so that only the first output tells.
        def total(scale):
            counted = Counted(lambda i, x: x * scale + i)
            result = loops.fori(50, counted, jnp.float32(1.0))
            assert counted.calls < 5
            return result

        wanted = 1.0
        for i in range(50):
            wanted = wanted * 0.9 + i
        assert float(jax.jit(total)(0.9)) == pytest.approx(wanted, rel=1e-5)
        assert float(total_on_host(0.9)) == pytest.approx(wanted, rel=1e-5)

    def test_an_output_of_the_body_may_decide(self):
        def f(x):
            counted = Counted(lambda i, c: c + 1.0)
            loops.fori(50, counted, jnp.float32(0.0), like=x)
            return counted.calls + 0.0 * x

        assert jax.jit(f)(1.0) < 5


def total_on_host(scale):
    return loops.fori(50, lambda i, x: x * jnp.float32(scale) + i, jnp.float32(1.0))


class TestUntil:
    def test_host_device_and_traced_agree(self):
        done, body = (lambda x: x > 100), (lambda x: 3 * x)
        assert int(loops.until(done, body, jnp.int32(1))) == 243
        assert int(jax.jit(lambda x: loops.until(done, body, x))(1)) == 243
        with loops.device():
            assert int(loops.until(done, body, jnp.int32(1))) == 243

    def test_done_at_once(self):
        counted = Counted(lambda x: x)
        assert loops.until(lambda x: True, counted, 1) == 1
        assert counted.calls == 0

    def test_looks_once_in_a_while(self):
        done = Counted(lambda x: x >= 10)
        assert loops.until(done, lambda x: min(x + 1, 10), 0, check_every=4) == 10
        assert done.calls == 4  # at 0, 4, 8 and 10


class TestMapChunks:
    @property
    def tree(self):
        return {"a": jnp.arange(14.0).reshape(7, 2), "b": jnp.arange(7)}

    @staticmethod
    def fn(tree):
        # Of its chunk alone: the sum over the features, and the ids.
        return {"sum": tree["a"].sum(axis=1), "id": tree["b"]}

    def check(self, out):
        np.testing.assert_array_equal(out["sum"], np.arange(14.0).reshape(7, 2).sum(axis=1))
        np.testing.assert_array_equal(out["id"], np.arange(7))

    @pytest.mark.parametrize(("chunk_size", "calls"), [(None, 1), (7, 1), (100, 1), (3, 3), (1, 7)])
    def test_host_device_and_traced_agree(self, chunk_size, calls):
        counted = Counted(self.fn)
        self.check(loops.map_chunks(counted, self.tree, chunk_size))
        assert counted.calls == calls
        with loops.device():
            self.check(loops.map_chunks(self.fn, self.tree, chunk_size))
        counted = Counted(self.fn)
        self.check(jax.jit(lambda t: loops.map_chunks(counted, t, chunk_size))(self.tree))
        assert counted.calls <= 2  # the whole chunks once, the rest once

    def test_a_function_that_closes_over_a_traced_value(self):
        def f(scale):
            counted = Counted(lambda x: scale * x)
            out = loops.map_chunks(counted, jnp.arange(20.0), 2)
            assert counted.calls < 5
            return out

        np.testing.assert_array_equal(jax.jit(f)(2.0), 2 * np.arange(20.0))

    def test_chunks_of_one_shape_share_a_program(self):
        fn = jax.jit(lambda x: jnp.sin(x) + 17.25)
        x = jnp.arange(9.0)
        loops.map_chunks(lambda c: c, x, 3)  # slices and the concatenation
        with count_compilations() as count:
            loops.map_chunks(fn, x, 3)
        assert count.value == 1

    def test_small_outputs_are_put_together_on_the_host(self):
        fn = jax.jit(lambda x: {"y": jnp.cos(x) + 3.75})
        rows = np.arange(40, dtype=np.float32)
        with count_compilations() as count:
            out = loops.map_chunks(fn, rows, 1, on_host=True)
        assert count.value == 1  # nothing beside the function itself
        assert isinstance(out["y"], np.ndarray)
        np.testing.assert_allclose(out["y"], np.cos(rows) + 3.75, rtol=1e-6)
        traced = jax.jit(lambda x: loops.map_chunks(fn, x, 1, on_host=True))(rows)
        np.testing.assert_allclose(traced["y"], out["y"], rtol=1e-6)

    @pytest.mark.parametrize("chunk_size", [0, -1, 2.5, "3"])
    def test_bad_sizes(self, chunk_size):
        with pytest.raises((TypeError, ValueError), match="chunk_size must be"):
            loops.map_chunks(self.fn, self.tree, chunk_size)

    def test_integers_of_numpy(self):
        self.check(loops.map_chunks(self.fn, self.tree, np.int64(3)))


class TestProduct:
    def test_fresh_callables_of_one_program_compile_once(self):
        v = jnp.ones(3)
        counts = []
        for factor in (jnp.float32(2.0), jnp.float32(3.0)):
            with count_compilations() as count:
                op = flatjax.operators.as_operator(lambda v, f=factor: f * v + 0.75, structure=v)
                np.testing.assert_array_equal(loops.product(op)(v), (factor + 0.75) * np.ones(3))
            counts.append(count.value)
        assert counts[0] >= 1
        assert counts[1] <= counts[0] - 1  # the product; the arithmetic of the test may compile

    def test_what_is_driven_from_the_host_is_called_as_it_is(self):
        class Host:
            host_driven = True

            def mv(self, v):
                assert not loops.is_traced(v)
                return v

        v = jnp.ones(2)
        assert loops.product(Host())(v) is v

    def test_an_operator_that_is_no_pytree(self):
        class Own(flatjax.Operator):
            structure = jnp.ones(2)

            def mv(self, v):
                return v

        with pytest.raises(TypeError, match="Own is no pytree, so that its product cannot"):
            flatjax.eigsh(Own(), 1, key=jax.random.key(0))


def test_a_product_of_shared_cpu_devices_waits(monkeypatch):
    # Several programs with reductions at once may wait for one another for ever.
    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    d, waited = jnp.arange(4.0), []
    op = flatjax.operators.as_operator(jax.tree_util.Partial(jnp.multiply, d), d)
    wait = jax.block_until_ready
    monkeypatch.setattr(jax, "block_until_ready", lambda x: waited.append(1) or wait(x))
    loops.product(op)(d)
    assert not waited
    np.testing.assert_array_equal(loops.product(op)(jax.device_put(d, spread)), d * d)
    assert len(waited) == 2
    jax.jit(loops.product(op))(jax.device_put(d, spread))
    assert len(waited) == 2
