"""Permutations: what p means, drawn uniformly, applied on the host and traced, dtypes kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from tests.symmetry import networks


def test_new_i_is_old_p_i():
    tree = {"k": np.arange(6.0).reshape(2, 3), "b": np.array([10.0, 11.0, 12.0])}
    spec = flatjax.spec_of(tree, {"k": (None, "h"), "b": ("h",)})
    moved = flatjax.apply_permutation(tree, {"h": [2, 0, 1]}, spec)
    np.testing.assert_array_equal(moved["b"], [12, 10, 11])
    np.testing.assert_array_equal(moved["k"], [[2, 0, 1], [5, 3, 4]])


def test_blocks_move_before_the_units_in_them():
    # (units, blocks): an inner axis before that of its blocks.
    tree = {"flat": np.arange(6), "apart": np.arange(6).reshape(2, 3).T.copy()}
    spec = flatjax.spec_of(tree, {"flat": (("g", "g/u"),), "apart": ("g/u", "g")})
    p = {"g": np.array([1, 0]), "g/u": np.array([[2, 1, 0], [1, 2, 0]])}
    moved = flatjax.apply_permutation(tree, p, spec)
    expected = [5, 4, 3, 1, 2, 0]  # new[b, i] = old[P[b], p[b, i]]
    np.testing.assert_array_equal(moved["flat"], expected)
    np.testing.assert_array_equal(moved["apart"].T.ravel(), expected)


def test_flattened_images():
    tree = np.arange(6)
    spec = flatjax.spec_of({"w": tree, "b": np.ones(2)}, {"w": ((None, "c"),), "b": ("c",)})
    moved = flatjax.apply_permutation({"w": tree, "b": np.ones(2)}, {"c": [1, 0]}, spec)
    np.testing.assert_array_equal(moved["w"], [1, 0, 3, 2, 5, 4])


@pytest.mark.parametrize("name", networks.CASES)
def test_outputs_stay(name, key):
    case = networks.CASES[name]()
    p = flatjax.random_permutations(case.spec, key=key)
    moved = flatjax.apply_permutation(case.params, p, case.spec)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), case.params, moved)
    assert sum(jax.tree.leaves(changed)) >= len(case.spec.sizes)
    fn = jax.jit(case.model_fn)
    before, after = (np.asarray(fn(q, case.inputs)) for q in (case.params, moved))
    # Float32 sums of some ten terms in another order, through a few layers.
    np.testing.assert_allclose(after, before, atol=1e-5 * np.abs(before).max())


@pytest.mark.parametrize("name", ["attention", "grouped"])
def test_traced_as_on_the_host(name, key):
    case = networks.CASES[name]()
    spec = case.spec
    p = flatjax.random_permutations(spec, key=key)
    on_host = flatjax.apply_permutation(case.params, p, spec)
    traced = jax.jit(lambda q, p: flatjax.apply_permutation(q, p, spec))(case.params, p)
    jax.tree.map(np.testing.assert_array_equal, on_host, traced)
    # Permutations that are known, params that are not.
    half = jax.jit(lambda q: flatjax.apply_permutation(q, p, spec))(case.params)
    jax.tree.map(np.testing.assert_array_equal, on_host, half)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int32"])
def test_dtypes_are_kept(dtype):
    w = jnp.arange(3, dtype=dtype)
    spec = flatjax.spec_of(w, {"": ("h",)})
    moved = flatjax.apply_permutation(w, {"h": [2, 0, 1]}, spec)
    assert moved.dtype == dtype
    assert moved.astype(float).tolist() == [2, 0, 1]


def test_where_it_lies_is_kept():
    """A leaf that is split over devices, and one that was put on a certain one."""
    mesh = jax.sharding.Mesh(jax.devices(), ("d",))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    last = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    for sharding in (split, last):
        w = jax.device_put(np.arange(4.0, dtype=np.float32), sharding)
        spec = flatjax.spec_of(w, {"": ("h",)})
        moved = flatjax.apply_permutation(w, {"h": [3, 2, 1, 0]}, spec)
        assert moved.sharding == sharding
        np.testing.assert_array_equal(moved, [3, 2, 1, 0])


def test_groups_that_are_not_named_stay():
    case = networks.mlp()
    moved = flatjax.apply_permutation(case.params, {}, case.spec)
    jax.tree.map(np.testing.assert_array_equal, moved, case.params)


def test_drawn_uniformly():
    spec = flatjax.spec_of({"a": np.ones((2, 3))}, {"a": ("g", "g/u")})
    draws = [flatjax.random_permutations(spec, key=jax.random.key(i)) for i in range(300)]
    assert draws[0]["g"].shape == (2,)
    assert draws[0]["g/u"].shape == (2, 3)
    for rows in (np.stack([d["g/u"][b] for d in draws]) for b in (0, 1)):
        orders, counts = np.unique(rows, axis=0, return_counts=True)
        assert len(orders) == 6
        # 50 each on average, with a standard deviation of 6.5.
        assert (abs(counts - 50) < 4.5 * 6.5).all()
    # The two blocks have orders of their own: alike in one case of six.
    alike = np.mean([(d["g/u"][0] == d["g/u"][1]).all() for d in draws])
    assert alike < 1 / 6 + 4.5 * np.sqrt(5 / 36 / 300)
    again = flatjax.random_permutations(spec, key=jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, draws[0], again)


def test_bad_input_stops_at_the_door(key):
    case = networks.grouped()
    spec = case.spec
    apply = lambda p, params=case.params: flatjax.apply_permutation(params, p, spec)  # noqa: E731
    with pytest.raises(ValueError, match="'h', which is no group; there are 'g'"):
        apply({"h": [0, 1]})
    with pytest.raises(ValueError, match=r"'g/in' must have shape \(2, 3\), got \(3,\)"):
        apply({"g/in": [0, 1, 2]})
    with pytest.raises(ValueError, match="every index from 0 to 1 once"):
        apply({"g": [0, 0]})
    with pytest.raises(ValueError, match=r"differ in the leaves .*'params/Conv_0/bias'"):
        apply({}, {"params": {}})
    with pytest.raises(TypeError, match="outside jit"):
        jax.jit(lambda k: flatjax.random_permutations(spec, key=k))(key)
    with pytest.raises(ValueError, match="key is missing"):
        flatjax.random_permutations(spec, key=None)
