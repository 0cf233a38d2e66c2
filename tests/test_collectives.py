"""Axis names: the same sums in vmap, pmap and both modes of shard_map."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from flatjax import _collectives as collectives


def mesh(*shape, names=("data",)):
    return jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(names))


def in_shard_map(f, x, *, check_vma):
    split = jax.shard_map(
        f, mesh=mesh(4), in_specs=P("data"), out_specs=P("data"), check_vma=check_vma
    )
    return jax.jit(split)(x)


def in_pmap(f, x):
    return jax.pmap(f, axis_name="data")(x.reshape(4, -1)).reshape(-1)


def in_vmap(f, x):
    return jax.vmap(f, axis_name="data")(x.reshape(4, -1)).reshape(-1)


RUNS = [
    pytest.param(functools.partial(in_shard_map, check_vma=True), id="shard_map"),
    pytest.param(functools.partial(in_shard_map, check_vma=False), id="shard_map_unchecked"),
    pytest.param(in_pmap, id="pmap"),
    pytest.param(in_vmap, id="vmap"),
]
X = jnp.arange(8.0)


def test_names():
    assert collectives.names(None) == ()
    assert collectives.names("a") == ("a",)
    assert collectives.names(("a", "b")) == ("a", "b")


def test_without_an_axis():
    tree = {"a": X, "n": 3}
    assert collectives.varying(tree, None) is tree
    assert collectives.total(tree, None) is tree
    assert float(collectives.weighted_mean(jnp.float32(6.0), jnp.float32(4.0), None)) == 1.5
    assert collectives.example_index(3, None).tolist() == [0, 1, 2]
    assert collectives.axis_size(None) == 1
    assert collectives.gathered(X, None) is X
    assert collectives.rows_to_columns(X, None) is X


@pytest.mark.parametrize("run", RUNS)
def test_gathered_rows_are_the_same_everywhere(run):
    def f(x):
        assert collectives.axis_size("data") == 4
        places = jnp.arange(8, dtype=x.dtype)
        # Right for an output that JAX takes for replicated, too.
        return jnp.full_like(x, (places * collectives.gathered(x, "data")).sum())

    np.testing.assert_array_equal(run(f, X), np.full(8, (np.arange(8.0) ** 2).sum()))


@pytest.mark.parametrize("run", RUNS)
def test_rows_to_columns(run):
    matrix = np.random.default_rng(0).integers(-3, 4, size=(8, 5))  # 5 columns over 4 devices

    def f(x):
        rows = jnp.asarray(matrix)[collectives.example_index(2, "data")]
        columns = collectives.rows_to_columns(rows, "data")
        assert columns.shape == (8, 2)
        gram = collectives.total(columns @ columns.T, "data")
        return x + jnp.abs(gram - matrix @ matrix.T).sum().astype(x.dtype)

    np.testing.assert_array_equal(run(f, X), X)


@pytest.mark.parametrize("run", RUNS)
def test_total(run):
    found = run(lambda x: jnp.full_like(x, collectives.total(x.sum(), "data")), X)
    np.testing.assert_array_equal(found, np.full(8, 28.0))


@pytest.mark.parametrize("run", RUNS)
def test_a_total_of_equal_values_counts_every_device(run):
    # A constant is the same everywhere, and still one summand a device.
    found = run(lambda x: jnp.full_like(x, collectives.total(jnp.float32(2.0), "data")), X)
    np.testing.assert_array_equal(found, np.full(8, 8.0))


@pytest.mark.parametrize("run", RUNS)
def test_weighted_mean_with_padding(run):
    weights = jnp.array([1.0, 0.5, 0.0, 0.0, 2.0, 1.0, 0.0, 1.0])

    def f(x):
        w = weights[x.astype(jnp.int32)]
        mean = collectives.weighted_mean({"x": (w * x).sum()}, w.sum(), "data")
        return jnp.full_like(x, mean["x"])

    wanted = np.average(np.arange(8.0), weights=weights)
    np.testing.assert_allclose(run(f, X), np.full(8, wanted), rtol=1e-6)


@pytest.mark.parametrize("run", RUNS)
def test_gradients_of_varying_params_are_local(run):
    # Without the cast, check_vma=True sums the gradient over devices by itself.
    def f(x):
        w = collectives.varying(jnp.float32(1.0), "data")
        return jnp.full_like(x, jax.grad(lambda w: (w * x).sum())(w))

    np.testing.assert_array_equal(run(f, X), [1, 1, 5, 5, 9, 9, 13, 13])


@pytest.mark.parametrize("run", RUNS)
def test_casting_twice_is_harmless(run):
    def f(x):
        w = collectives.varying(collectives.varying(jnp.float32(1.0), "data"), "data")
        return collectives.varying(x, "data") * w

    np.testing.assert_array_equal(run(f, X), X)


def test_varying_axes_by_type():
    seen = []

    def f(x, w):
        seen.append((collectives.varying_axes(x), collectives.varying_axes(w)))
        return x * w

    jax.shard_map(f, mesh=mesh(4), in_specs=(P("data"), P()), out_specs=P("data"))(X, 1.0)
    assert seen == [(frozenset({"data"}), frozenset())]


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("wide", [False, True], ids=["x32", "x64"])
def test_example_index_is_global(run, wide):
    with jax.enable_x64(wide), jax.numpy_dtype_promotion("strict"):
        found = run(lambda x: collectives.example_index(2, "data").astype(x.dtype), X)
    np.testing.assert_array_equal(found, np.arange(8))


def test_two_axes():
    grid = mesh(2, 2, names=("rows", "columns"))
    both = ("rows", "columns")

    def f(x):
        index = collectives.example_index(2, both).astype(x.dtype)
        half = collectives.varying(jnp.float32(1.0), "rows")
        return index + 0 * collectives.varying(half, both), jnp.full_like(
            x, collectives.total(x.sum(), both)
        )

    spec = P(both)
    index, total = jax.shard_map(f, mesh=grid, in_specs=spec, out_specs=(spec, spec))(X)
    np.testing.assert_array_equal(index, np.arange(8))
    np.testing.assert_array_equal(total, np.full(8, 28.0))


class TestExplicitAxes:
    grid = staticmethod(lambda kinds: jax.make_mesh((2, 2), ("rows", "columns"), axis_types=kinds))

    def put(self, kinds, spec):
        return jax.device_put(jnp.ones((4, 4)), NamedSharding(self.grid(kinds), spec))

    def test_by_the_axes_an_array_is_split_over(self):
        explicit = (AxisType.Explicit,) * 2
        one, both = self.put(explicit, P("columns")), self.put(explicit, P(("rows", "columns")))
        assert collectives.explicit_axes({"a": one, "b": "text"}) == ("columns",)
        assert collectives.explicit_axes([one, both, 1.0]) == ("columns", "rows")
        assert collectives.explicit_axes(self.put(explicit, P())) == ()
        assert collectives.explicit_axes(self.put((AxisType.Auto,) * 2, P("rows"))) == ()

    def test_of_tracers(self):
        seen = []
        array = self.put((AxisType.Explicit,) * 2, P("rows"))
        jax.jit(lambda x: seen.append(collectives.explicit_axes(x)))(array)
        assert seen == [("rows",)]

    def test_none_inside_shard_map(self):
        seen = []

        def f(x):
            seen.append(collectives.explicit_axes(x))
            return x

        array = self.put((AxisType.Explicit,) * 2, P("rows"))
        jax.shard_map(f, mesh=self.grid((AxisType.Explicit,) * 2), out_specs=P("rows"))(array)
        assert seen[0] == ()
