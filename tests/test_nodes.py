"""Tree structures of different classes differ, and so do the programs compiled for them."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax import _nodes as nodes
from flatjax import losses
from flatjax.losses import _blockwise as blockwise
from flatjax.losses import _own as own
from flatjax.operators import _base as base
from flatjax.paths import _curves as curves


def all_operators(cls=base.LinearMap):
    for below in cls.__subclasses__():
        yield from all_operators(below)
        if below.__module__.startswith("flatjax.") and dataclasses.is_dataclass(below):
            yield below


def test_no_two_classes_of_the_library_have_one_structure():
    others = [curves.Bezier, curves.Chain, curves.Simplex, blockwise._Layer, own.FunctionLoss]
    classes = {*all_operators(), *others, losses.Mean, losses.LinearHead}
    assert len(classes) > 20
    made = []
    for cls in classes:
        node = object.__new__(cls)
        for field in dataclasses.fields(cls):
            value = None if field.metadata.get("static") else 0.0
            object.__setattr__(node, field.name, value)
        made.append(jax.tree.structure(node))
    for one, other in itertools.combinations(made, 2):
        assert one != other, (one, other)


def test_a_node_is_taken_apart_and_put_together():
    @nodes.register
    @dataclasses.dataclass
    class Node:
        name: str = dataclasses.field(metadata={"static": True})
        x: jax.Array
        y: jax.Array

    node = Node("n", jnp.ones(2), jnp.zeros(()))
    paths, structure = jax.tree_util.tree_flatten_with_path(node)
    assert [jax.tree_util.keystr(path) for path, _ in paths] == [".x", ".y"]
    assert structure == jax.tree.structure(dataclasses.replace(node, x=0, y=0))
    assert structure != jax.tree.structure(dataclasses.replace(node, name="m"))
    found = jax.jit(lambda n: jax.tree.map(lambda a: a + 1, n))(node)
    assert found.name == "n"
    np.testing.assert_array_equal(found.x, 2)
    np.testing.assert_array_equal(found.y, 1)


def user_class(factor):
    """An operator as a user writes it: JAX finds all of these of one structure."""

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Scaled(flatjax.Operator):
        entries: jax.Array

        @property
        def structure(self):
            return jax.ShapeDtypeStruct(self.entries.shape, self.entries.dtype)

        def mv(self, v):
            return factor * self.entries * v

    return Scaled(jnp.ones(2))


def test_combinations_of_a_users_operators_are_told_apart():
    one, other = user_class(1.0), user_class(2.0)
    for combine in (lambda op: -op, lambda op: op + op, lambda op: flatjax.damped(op, 1.0)):
        assert jax.tree.structure(combine(one)) != jax.tree.structure(combine(other))
    assert jax.tree.structure(2 * one) == jax.tree.structure(3 * one)


@pytest.mark.parametrize("product", ["mv", "dense", "block"])
def test_the_program_of_another_class_is_not_used(product):
    # Where only the hashes differ 9 of 100 classes meet another one's program (JAX 0.10.2).
    for factor in range(1, 61):
        op = user_class(float(factor))
        if product == "mv":
            found = op @ jnp.ones(2)
        elif product == "dense":
            found = op.to_dense().sum(axis=0)
        else:
            found = flatjax.linalg.vectors._arguments.block_product(op, jnp.ones((1, 2)))[0]
        np.testing.assert_array_equal(found, factor)
