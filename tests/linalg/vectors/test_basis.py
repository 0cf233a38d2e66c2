"""Bases are trees with a leading axis, and their algebra is that of the stacked matrix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _blocks as blocks
from flatjax.linalg.vectors import _rotations as rotations
from tests.problems import structure_of

M = 5


@pytest.fixture(scope="module")
def tree():
    """A basis of 5 vectors of 40 entries, and its matrix in float64."""
    rng = np.random.default_rng(0)

    def leaf(a):
        return jnp.asarray(rng.standard_normal((M, *a.shape)), jnp.float32)

    basis = jax.tree.map(leaf, structure_of(40))
    return basis, np.asarray(jax.vmap(lambda v: ravel_pytree(v)[0])(basis), np.float64)


def flat(v):
    return np.asarray(ravel_pytree(v)[0], np.float64)


def test_coefficients_are_all_inner_products_and_the_square(tree):
    basis, matrix = tree
    w = bases.row(basis, 2)
    h, square = bases.coefficients(basis, w)
    # 40 products of order one in float32.
    np.testing.assert_allclose(h, matrix @ flat(w), atol=1e-5)
    np.testing.assert_allclose(square, flat(w) @ flat(w), rtol=1e-6)


@pytest.mark.parametrize("filled", [1, 2, 3, 5])
def test_parts_that_are_not_begun_are_not_read(tree, filled):
    basis, matrix = tree
    rows = -(-filled // 2) * 2  # a part has two of them, the last one
    unread = jax.tree.map(lambda a: a.at[rows:].set(jnp.nan), basis)
    parts = [jax.tree.map(lambda a, i=i: a[i : i + 2], unread) for i in (0, 2, 4)]
    w = bases.row(basis, 4)
    h, square = bases.coefficients(bases.LocalBasis(tuple(parts)), w, jnp.int32(filled))
    expected = np.where(np.arange(M) < rows, matrix @ flat(w), 0)
    # 40 products of order one in float32.
    np.testing.assert_allclose(h, expected, atol=1e-5)
    np.testing.assert_allclose(square, flat(w) @ flat(w), rtol=1e-6)
    whole, _ = bases.coefficients(bases.Basis(tuple(parts)), w, jnp.int32(filled))
    assert np.isnan(whole).sum() == max(M - rows, 0)  # the devices of a mesh go through all


def test_an_empty_basis_and_one_that_grows(tree):
    v = bases.row(tree[0], 0)
    found = bases.empty(v, 5, each=2)
    assert bases._sizes(found) == [2, 2, 1]
    assert not any(np.any(a) for a in jax.tree.leaves(found))
    assert type(bases.grown(found, 3, v)) is bases.LocalBasis
    assert type(bases.grown(bases.empty(v, 2), 3, v)) is bases.Basis
    assert all(a.dtype == np.float16 for a in jax.tree.leaves(bases.empty(v, 2, jnp.float16)))


def test_combine_one_and_several(tree):
    basis, matrix = tree
    c = np.random.default_rng(1).standard_normal((M, 3)).astype(np.float32)
    one = bases.combine(basis, jnp.asarray(c[:, 0]))
    np.testing.assert_allclose(flat(one), c[:, 0] @ matrix, atol=1e-5)
    many = bases.combine(basis, jnp.asarray(c))
    got = jax.vmap(lambda v: ravel_pytree(v)[0])(many)
    np.testing.assert_allclose(got, c.T @ matrix, atol=1e-5)


def test_gram(tree):
    basis, matrix = tree
    np.testing.assert_allclose(bases.gram(basis, basis), matrix @ matrix.T, atol=1e-4)


@pytest.mark.parametrize("index", [0, 3, M - 1])
def test_set_row_changes_that_row_only(tree, index):
    basis, matrix = tree
    v = jax.tree.map(jnp.ones_like, bases.row(basis, 0))
    got = jax.vmap(lambda v: ravel_pytree(v)[0])(bases.set_row(basis, jnp.int32(index), v))
    expected = matrix.copy()
    expected[index] = 1
    np.testing.assert_array_equal(got, expected)


def test_set_row_beyond_the_end_changes_nothing(tree):
    basis, matrix = tree
    v = jax.tree.map(jnp.ones_like, bases.row(basis, 0))
    got = bases.set_row(basis, jnp.int32(M), v)
    np.testing.assert_array_equal(jax.vmap(lambda v: ravel_pytree(v)[0])(got), matrix)


def test_project_out_removes_the_span(tree):
    basis, matrix = tree
    q = np.linalg.qr(matrix.T)[0].T
    unravel = ravel_pytree(bases.row(basis, 0))[1]
    orthonormal = jax.vmap(unravel)(jnp.asarray(q, jnp.float32))
    w = jax.tree.map(jnp.ones_like, bases.row(basis, 0))
    expected = np.ones(40) - q.T @ (q @ np.ones(40))
    np.testing.assert_allclose(flat(bases.project_out(orthonormal, w)), expected, atol=2e-6)
    h, squared = bases.coefficients(orthonormal, w)
    np.testing.assert_allclose(h, q @ np.ones(40), atol=2e-6)
    assert float(squared) == 40


def test_zero_rows_take_no_part(tree):
    basis, _ = tree
    zero = jax.tree.map(jnp.zeros_like, basis)
    w = bases.row(basis, 1)
    np.testing.assert_array_equal(flat(bases.project_out(zero, w)), flat(w))
    np.testing.assert_array_equal(bases.coefficients(zero, w)[0], 0)


def test_a_reduction_is_one_for_all_leaves(tree):
    # Leaves of several dtypes are added up in the widest.
    with jax.enable_x64(True):
        basis = {"a": jnp.ones((2, 3), jnp.float32), "b": jnp.ones((2, 4), jnp.float64)}
        h, square = bases.coefficients(basis, bases.row(basis, 0))
        assert h.dtype == square.dtype == jnp.float64
        np.testing.assert_array_equal(h, 7)


@pytest.fixture(scope="module")
def parts(tree):
    """The same basis in three parts."""
    basis, _ = tree
    parts = [jax.tree.map(lambda a, s=s: a[s], basis) for s in (slice(2), slice(2, 4), slice(4, 5))]
    return bases.Basis(tuple(parts))


def joined(basis):
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *bases.parts_of(basis))


class TestParts:
    """A basis in several parts is the basis."""

    def test_all_that_is_read(self, tree, parts):
        basis, _ = tree
        w = bases.row(basis, 3)
        c = jnp.arange(2.0 * M).reshape(M, 2)

        def all_of(b):
            return (
                bases.coefficients(b, w),
                bases.combine(b, c),
                bases.combine(b, c[:, 1]),
                bases.gram(b, bases.stack([w, w])),
                bases.project_out(b, w),
                [bases.row(b, i) for i in (0, 1, 2, 4)],
                bases.cut(b, c)[0][:2],
            )

        assert bases.size(parts) == M
        assert [len(own) for own in bases.cut(parts, c)] == [2, 2, 1]
        # The same sums of some 40 or 5 terms of order ten in another order, in float32.
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5),
            jax.jit(all_of)(basis),
            jax.jit(all_of)(parts),
        )

    @pytest.mark.parametrize("index", [0, 1, 2, 4, 5, 9])
    def test_a_row_is_set_where_it_belongs(self, tree, parts, index):
        basis, _ = tree
        v = jax.tree.map(jnp.ones_like, bases.row(basis, 0))
        expected = bases.set_row(basis, index, v)
        found = jax.jit(bases.set_row)(parts, index, v)
        assert isinstance(found, bases.Basis)
        jax.tree.map(np.testing.assert_array_equal, joined(found), expected)

    def test_what_is_grown_begins_with_the_vector(self, tree):
        basis, matrix = tree
        v = bases.row(basis, 1)
        found = bases.grown(bases.grown(basis, 2, v), 1, v)
        assert [bases.size(part) for part in found.parts] == [M, 2, 1]
        rows = np.stack([flat(bases.row(found, i)) for i in range(M + 3)])
        expected = np.concatenate([matrix, matrix[1:2], 0 * matrix[:1], matrix[1:2]])
        np.testing.assert_array_equal(rows, expected.astype(rows.dtype))


def test_random_vectors_are_those_of_their_seed():
    structure = {"a": jnp.zeros((100, 30)), "b": jnp.zeros(7000)}
    seeds = [bases.seed_of(jax.random.key(k)) for k in (0, 1)]
    seeds += [seed + bases.NEXT_SEED for seed in seeds]
    drawn = [flat(bases.random_vector(seed, structure)) for seed in seeds]
    drawn += [drawn[0][:3000], drawn[0][3000:6000]]
    for x in drawn:
        # Uniform on [-1, 1): mean 0 and variance 1/3, to 4 standard errors of so many numbers.
        assert abs(x.mean()) < 4 * (1 / 3 / len(x)) ** 0.5
        assert abs(np.square(x).mean() - 1 / 3) < 4 * (4 / 45 / len(x)) ** 0.5
        # Neighbours, whose places differ in a bit, are independent.
        assert abs(np.mean(x[1:] * x[:-1])) < 4 / 3 / len(x) ** 0.5
    for group in (drawn[:4], drawn[4:]):
        overlaps = np.abs(np.corrcoef(group) - np.eye(len(group)))
        assert overlaps.max() < 4 / len(group[0]) ** 0.5


def test_rows_scaled_measured_and_joined(tree):
    basis, matrix = tree
    factors = np.arange(1.0, M + 1)
    scaled = bases.scale_rows(jnp.asarray(factors, jnp.float32), basis)
    both = bases.join(scaled, basis)
    rows = np.stack([flat(v) for v in bases.unstack(both)])
    expected = np.concatenate([factors[:, None] * matrix, matrix])
    np.testing.assert_allclose(rows, expected, rtol=1e-7)  # one rounding in float32
    np.testing.assert_allclose(bases.row_norms(both), np.linalg.norm(rows, axis=1), rtol=1e-6)


def in_parts(basis, at):
    """The same rows as a basis that has grown."""
    parts = (slice(0, at), slice(at, None))
    return bases.Basis(tuple(jax.tree.map(lambda a, s=s: a[s], basis) for s in parts))


@pytest.mark.parametrize("whole", [False, True])
def test_a_rotation_in_blocks_of_entries(tree, monkeypatch, whole):
    monkeypatch.setattr(blocks, "BLOCK", 4)  # of leaves with more entries, with and without a rest
    basis, matrix = tree
    c = np.random.default_rng(2).standard_normal((M, 2)).astype(np.float32)
    got = rotations.rotated(basis, jnp.asarray(c), jnp.int32(1), whole=whole)
    expected = np.concatenate([matrix[:1], c.T @ matrix, np.zeros_like(matrix[:2])])
    rows = jax.vmap(lambda v: ravel_pytree(v)[0])(got)
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, basis)


@pytest.mark.parametrize("block", [4, 1 << 14])
def test_combinations_in_several_trees(tree, monkeypatch, block):
    monkeypatch.setattr(blocks, "BLOCK", block)
    basis, matrix = tree
    c = np.random.default_rng(2).standard_normal((M, 3)).astype(np.float32)
    c[2:, 1] = 0  # the second part has nothing of one, the first nothing of another
    c[:2, 2] = 0
    found = rotations.combine_in_parts(in_parts(basis, 2), jnp.asarray(c), (1, 2))
    for got, columns in zip(found, (c[:, :1], c[:, 1:]), strict=True):
        rows = jax.vmap(lambda v: ravel_pytree(v)[0])(got)
        np.testing.assert_allclose(rows, columns.T @ matrix, atol=1e-5)


def test_a_basis_in_parts_is_combined_taken_from_and_written_like_one(tree):
    basis, matrix = tree
    parts, w = in_parts(basis, 2), bases.row(basis, 0)
    some = ([1.0, -2.0, 3.0, 0.0, 1.0], [1.0, 2.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, -2.0, -1.0])
    for c in some:
        combination = np.asarray(c) @ matrix
        np.testing.assert_allclose(flat(bases.combine(parts, jnp.asarray(c))), combination, 1e-5)
        left = bases.less(parts, w, jnp.asarray(c))
        np.testing.assert_allclose(flat(left), flat(w) - combination, atol=1e-5)
    for index in range(M + 1):
        v = jax.tree.map(jnp.ones_like, w)
        written = bases.set_row(parts, jnp.int32(index), v)
        for i in range(M):
            expected = np.ones_like(matrix[0]) if i == index else matrix[i]
            np.testing.assert_array_equal(flat(bases.row(written, i)), expected)
