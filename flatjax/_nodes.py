"""Dataclasses as nodes of pytrees, of which the class counts.

Two tree structures are equal for JAX whatever the classes are that
``jax.tree_util.register_dataclass`` has made nodes of: only the number of fields and the values of
the static ones are compared. The hashes differ, so that it shows by chance: a function under
``jit`` that has been compiled for one class runs that program for some other classes of as many
fields (JAX 0.10.2). Here the class is compared, too.
"""

import dataclasses
from typing import Any, TypeVar

import jax

Class = TypeVar("Class")


def register(cls: type[Class], told: type | tuple[type, ...] = ()) -> type[Class]:
    """Class decorator: a dataclass is a pytree of its fields, those with ``static`` metadata apart.

    Args:
      cls: the dataclass.
      told: values of such a class, in the fields or in tuples there, are told apart by their own
        class, too: for nodes of somebody else, which JAX may have registered.

    Returns:
      The class.

    Example:
      >>> import dataclasses, jax
      >>> from flatjax import _nodes as nodes
      >>> @nodes.register
      ... @dataclasses.dataclass
      ... class Degrees:
      ...     value: float
      >>> @nodes.register
      ... @dataclasses.dataclass
      ... class Radians:
      ...     value: float
      >>> jax.tree.structure(Degrees(1.0)) == jax.tree.structure(Radians(1.0))
      False
    """
    fields = dataclasses.fields(cls)  # type: ignore[arg-type]
    static = [f.name for f in fields if f.metadata.get("static")]
    data = [f.name for f in fields if not f.metadata.get("static")]
    keys = [jax.tree_util.GetAttrKey(name) for name in data]

    def flatten(node: Any):
        children = [getattr(node, name) for name in data]
        return children, (_kinds(children, told), tuple(getattr(node, name) for name in static))

    def flatten_with_keys(node: Any):
        children, apart = flatten(node)
        return list(zip(keys, children, strict=True)), apart

    def unflatten(apart: Any, children: Any):
        return cls(**dict(zip([*data, *static], [*children, *apart[1]], strict=True)))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls


def _kinds(value, told):
    if isinstance(value, (tuple, list)):
        return tuple(_kinds(item, told) for item in value)
    return type(value) if isinstance(value, told) else None
