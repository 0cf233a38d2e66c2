"""Pytree algebra: dtypes, accuracy, structures and their errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from flatjax import _trees as trees


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


MIXED = {
    "a": jnp.arange(3, dtype=jnp.bfloat16),
    "b": [jnp.ones((2, 2)), jnp.float32(2.0), jnp.zeros((0, 4))],
}


class TestStructures:
    def test_vectors_are_at_least_float32(self):
        structure = trees.structure_of(MIXED)
        assert jax.tree.structure(structure) == jax.tree.structure(MIXED)
        assert [a.dtype for a in jax.tree.leaves(structure)] == [jnp.float32] * 4
        assert structure["a"].shape == (3,)
        assert trees.structure_of(structure) == structure

    @pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
    def test_compute_dtype(self, dtype):
        assert trees.compute_dtype(dtype) == jnp.float32
        assert trees.dtype(jnp.ones(2, dtype)) == jnp.float32

    def test_float64(self, x64):
        assert trees.compute_dtype(jnp.float64) == jnp.float64
        assert trees.dtype([jnp.ones(1), jnp.ones(1, jnp.bfloat16)]) == jnp.float64
        assert trees.dtype([jnp.ones(1, jnp.float32)]) == jnp.float32

    def test_size(self):
        assert trees.size(MIXED) == 8
        assert trees.size({}) == 0
        huge = [jax.ShapeDtypeStruct((70_000, 70_000), jnp.float32)]
        assert trees.size(huge) == 4_900_000_000  # beyond 32 bits

    def test_zeros_and_casts(self):
        zeros = trees.zeros(trees.structure_of(MIXED), leading=(5,))
        assert jax.tree.map(jnp.shape, zeros) == {"a": (5, 3), "b": [(5, 2, 2), (5,), (5, 0, 4)]}
        assert not any(np.any(a) for a in jax.tree.leaves(zeros))
        back = trees.cast(trees.zeros(trees.structure_of(MIXED)), MIXED)
        assert [a.dtype for a in jax.tree.leaves(back)] == [a.dtype for a in jax.tree.leaves(MIXED)]

    def test_sharding_is_kept(self):
        mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
        split = NamedSharding(mesh, P("data"))
        structure = trees.structure_of({"w": jax.device_put(jnp.ones((8, 2)), split)})
        assert structure["w"].sharding == split
        zeros = trees.zeros(structure, leading=(3,))["w"]
        assert zeros.sharding.is_equivalent_to(NamedSharding(mesh, P(None, "data")), 3)
        assert trees.sharding_of(jnp.ones(2)) is None


class TestCheck:
    def test_what_fits(self):
        trees.check(MIXED, trees.structure_of(MIXED))
        trees.check({"w": np.ones(2)}, {"w": jnp.ones(2)})

    def test_structure(self):
        with pytest.raises(TypeError, match=r"x must have the tree structure of the operator"):
            trees.check([jnp.ones(2)], (jnp.ones(2),), "x")
        with pytest.raises(TypeError, match=r"(?s)expected: PyTreeDef.*got:      PyTreeDef"):
            trees.check({"a": jnp.ones(2)}, {"b": jnp.ones(2)})

    def test_leaves(self):
        with pytest.raises(TypeError, match=r"v\['a'\] must be an array, got int"):
            trees.check({"a": 3}, {"a": jnp.ones(())})
        with pytest.raises(ValueError, match=r"v\['a'\] has shape \(3,\) where.*expects \(2,\)"):
            trees.check({"a": jnp.ones(3)}, {"a": jnp.ones(2)})
        with pytest.raises(TypeError, match=r"v\['a'\] has dtype int32; the operator expects flo"):
            trees.check({"a": jnp.ones(2, jnp.int32)}, {"a": jnp.ones(2)})
        with pytest.raises(TypeError, match=r"v has dtype complex64"):
            trees.check(jnp.ones(2, jnp.complex64), jnp.ones(2))


class TestDots:
    def test_value(self):
        assert float(trees.vdot(MIXED, MIXED)) == 5 + 4 + 4
        assert trees.vdot(MIXED, MIXED).dtype == jnp.float32
        assert float(trees.vdot({}, {})) == 0.0

    def test_operands_of_two_dtypes(self):
        low = jnp.full(3, 0.5, jnp.bfloat16)
        assert float(trees.vdot(low, jnp.ones(3))) == 1.5

    def test_low_precision_is_accumulated_in_float32(self):
        # 4096 terms of 1/4096: a bfloat16 accumulator would stop at 1/16.
        x = jnp.full(4096, 2.0**-12, jnp.bfloat16)
        assert float(trees.vdot(x, jnp.ones(4096, jnp.bfloat16))) == 1.0

    def test_float64(self, x64):
        x = np.random.default_rng(0).normal(size=(3, 4))
        y = np.random.default_rng(1).normal(size=(3, 4))
        found = trees.vdot({"a": jnp.asarray(x)}, {"a": jnp.asarray(y)})
        assert float(found) == pytest.approx((x * y).sum(), rel=1e-14)

    def test_the_highest_matmul_precision(self):
        jaxpr = jax.make_jaxpr(trees.vdot)(jnp.ones(3), jnp.ones(3))
        (dot,) = (e for e in jaxpr.eqns if e.primitive.name == "dot_general")
        assert dot.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2


class TestNorm:
    @pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
    def test_neither_vanishes_nor_overflows(self, scale):
        # The squares, 1e-60 and 1e+60, are not float32 numbers; four roundings of 6e-8.
        tree = {"a": jnp.array([3.0, 0.0]) * scale, "b": jnp.array(4.0) * scale}
        assert float(trees.norm(tree)) == pytest.approx(5 * scale, rel=3e-7)

    def test_edge_cases(self):
        assert float(trees.norm({})) == 0.0
        assert float(trees.norm({"a": jnp.zeros(3), "b": jnp.zeros((0,))})) == 0.0
        assert np.isnan(trees.norm(jnp.array([1.0, jnp.nan])))
        assert not np.isfinite(trees.norm(jnp.array([1.0, jnp.inf])))
        assert trees.norm(jnp.ones(4, jnp.bfloat16)).dtype == jnp.float32

    @pytest.mark.parametrize("size", [1e-30, 1.0, 1e38])
    def test_a_normalized_tree_has_norm_one(self, size):
        a = {"w": size * jnp.array([2.0, 0.0]), "b": size * jnp.full((1, 1), 1.5, jnp.bfloat16)}
        unit, length = trees.normalized(a)
        np.testing.assert_allclose(length, 2.5 * size, rtol=1e-2)  # bfloat16 has 3 digits
        np.testing.assert_allclose(unit["w"], [0.8, 0], rtol=1e-2)
        assert unit["b"].dtype == jnp.bfloat16
        zero, length = trees.normalized(jnp.zeros(3))
        assert float(length) == 0
        np.testing.assert_array_equal(zero, 0)


class TestLinearCombinations:
    def test_leaves_keep_their_dtypes(self):
        for factor in (2, 2.0, np.float64(2.0), jnp.float32(2.0)):
            doubled = trees.scale(factor, MIXED)
            added = trees.axpy(factor, MIXED, MIXED)
            for tree, times in ((doubled, 2), (added, 3)):
                for found, leaf in zip(*map(jax.tree.leaves, (tree, MIXED)), strict=True):
                    assert found.dtype == leaf.dtype
                    np.testing.assert_array_equal(found, times * np.asarray(leaf, np.float32))

    def test_axpy_takes_the_dtype_of_the_second(self):
        low, high = jnp.ones(2, jnp.bfloat16), jnp.ones(2)
        assert trees.axpy(1.0, low, high).dtype == jnp.float32
        assert trees.axpy(1.0, high, low).dtype == jnp.bfloat16

    def test_a_traced_factor(self):
        found = jax.jit(lambda c: trees.axpy(c, jnp.ones(2), trees.scale(c, jnp.ones(2))))(3.0)
        np.testing.assert_array_equal(found, [6.0, 6.0])

    def test_one_factor_per_row(self):
        found = trees.per_row(jnp.arange(2), jnp.ones((2, 3, 4), jnp.bfloat16))
        assert found.shape == (2, 1, 1)
        assert found.dtype == jnp.bfloat16
