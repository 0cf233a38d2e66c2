"""Pytree vector-space algebra that ``optax.tree`` lacks.

Structures, accumulation in at least float32, and dot products at the highest matmul precision. A
*structure* is a pytree of arrays or ``jax.ShapeDtypeStruct``.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from flatjax import _checks as checks

Tree = Any


def compute_dtype(dtype: Any) -> Any:
    """The dtype in which vectors of a leaf are held: at least float32."""
    return _promoted(dtype, jnp.float32)


def structure_of(tree: Tree) -> Tree:
    """The ``ShapeDtypeStruct`` tree of vectors like ``tree``, in at least float32.

    Of arrays or structures; their sharding over devices is kept.

    Raises:
      TypeError: for params with a function, text or another library's array among their leaves.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax import _trees as trees
      >>> trees.structure_of({"w": jnp.ones(3, jnp.bfloat16)})
      {'w': ShapeDtypeStruct(shape=(3,), dtype=float32)}
    """

    def leaf(a):
        return jax.ShapeDtypeStruct(a.shape, compute_dtype(a.dtype), sharding=sharding_of(a))

    try:
        return jax.tree.map(leaf, tree)
    except (AttributeError, TypeError):
        # Most often params that come in before they have been looked at.
        for path, a in jax.tree_util.tree_leaves_with_path(tree):
            where = f"params{jax.tree_util.keystr(path)}"
            checks.check_array(where, a)
            if not hasattr(a, "shape"):
                raise TypeError(f"{where} must be an array, got {type(a).__name__}.") from None
        raise


def sharding_of(a: Any) -> NamedSharding | None:
    """How an array lies on a mesh of several devices; ``None`` for any other, and for a tracer."""
    sharding = getattr(a, "sharding", None)
    if isinstance(a, jax.core.Tracer) or not isinstance(sharding, NamedSharding):
        return None
    mesh = sharding.mesh
    auto = all(kind == AxisType.Auto for kind in mesh.axis_types)
    return sharding if auto and isinstance(mesh, Mesh) and mesh.size > 1 else None


def placed(tree: Tree, structure: Tree) -> Tree:
    """Lay vectors, with or without leading axes, out over the devices as ``structure`` says.

    A vector that is drawn or multiplied under ``jit`` is then made in its parts, one on each
    device, and never whole. Inside ``shard_map`` and ``pmap`` the tree itself.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax import _trees as trees
      >>> trees.placed(jnp.ones(2), jax.ShapeDtypeStruct((2,), jnp.float32)).tolist()
      [1.0, 1.0]
    """
    if jax.sharding.get_abstract_mesh().manual_axes:
        return tree

    def leaf(a, like):
        sharding = sharding_of(like)
        if sharding is None:
            return a
        leading = (None,) * (a.ndim - len(like.shape))
        spec = PartitionSpec(*leading, *sharding.spec)
        return lax.with_sharding_constraint(a, NamedSharding(sharding.mesh, spec))

    return jax.tree.map(leaf, tree, structure)


def size(tree: Tree) -> int:
    """The number of entries, as a Python integer (no overflow beyond ``2**31``).

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax import _trees as trees
      >>> trees.size({"w": jnp.ones((2, 3)), "b": jnp.ones(3)})
      9
    """
    return sum(math.prod(a.shape) for a in jax.tree.leaves(tree))


def dtype(tree: Tree) -> Any:
    """The dtype of scalars (dots, norms, eigenvalues) over ``tree``: at least float32."""
    return _promoted(jnp.float32, *(a.dtype for a in jax.tree.leaves(tree)))


def _promoted(*dtypes: Any) -> Any:
    # A widening asked for by name, so that it is not the implicit one strict promotion forbids.
    with jax.numpy_dtype_promotion("standard"):
        return jnp.result_type(*(jnp.dtype(d) for d in dtypes))


def cast(tree: Tree, like: Tree) -> Tree:
    """Cast every leaf to the dtype of the matching leaf of ``like``."""
    return jax.tree.map(lambda a, b: a.astype(b.dtype), tree, like)


def check(tree: Tree, structure: Tree, name: str = "v") -> None:
    """Raise a clear error unless ``tree`` has this structure.

    Args:
      tree: the pytree given by the caller.
      structure: the pytree expected.
      name: what to call it in the message.

    Raises:
      TypeError: on another tree structure or a non-floating dtype.
      ValueError: on another leaf shape.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax import _trees as trees
      >>> trees.check(jnp.ones(2), jnp.ones(3))
      Traceback (most recent call last):
      ...
      ValueError: v has shape (2,) where the operator expects (3,).
    """
    got, want = jax.tree.structure(tree), jax.tree.structure(structure)
    if got != want:
        raise TypeError(
            f"{name} must have the tree structure of the operator (that of params).\n"
            f"  expected: {want}\n  got:      {got}"
        )
    named = jax.tree_util.tree_leaves_with_path(tree)
    for (path, leaf), ref in zip(named, jax.tree.leaves(structure), strict=True):
        where = f"{name}{jax.tree_util.keystr(path)}"
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise TypeError(f"{where} must be an array, got {type(leaf).__name__}.")
        if not isinstance(leaf, jax.Array):
            checks.check_array(where, leaf)
        if leaf.shape != ref.shape:
            raise ValueError(
                f"{where} has shape {leaf.shape} where the operator expects {ref.shape}."
            )
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"{where} has dtype {leaf.dtype}; the operator expects {ref.dtype}. "
                "Cast it to a floating dtype."
            )


def vdot(a: Tree, b: Tree) -> jax.Array:
    """The inner product of two trees, a scalar of at least float32 at the highest precision.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax import _trees as trees
      >>> float(trees.vdot({"w": jnp.ones(3)}, {"w": 2 * jnp.ones(3)}))
      6.0
    """
    scalar = dtype((a, b))

    def leaf(x, y):
        axes = tuple(range(x.ndim))
        return lax.dot_general(
            x.astype(scalar), y.astype(scalar), ((axes, axes), ((), ())), precision="highest"
        )

    # A starting value of the leaves' own dtype keeps strict promotion happy on an empty tree.
    return sum(jax.tree.leaves(jax.tree.map(leaf, a, b)), jnp.zeros((), scalar))


def norm(a: Tree) -> jax.Array:
    """The Euclidean norm of a tree, a scalar of at least float32.

    Scaled by the largest entry, so that entries of 1e-30 or 1e+30 neither vanish nor overflow.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax import _trees as trees
      >>> f"{float(trees.norm({'w': jnp.array([3.0, 4.0]) * 1e30})):.3e}"
      '5.000e+30'
    """
    scalar = dtype(a)
    largest = jnp.zeros((), scalar)
    for leaf in jax.tree.leaves(a):
        if leaf.size:
            largest = jnp.maximum(largest, jnp.max(jnp.abs(leaf)).astype(scalar))
    safe = jnp.where(largest > 0, largest, jnp.ones((), scalar))
    scaled = jax.tree.map(lambda x: x.astype(scalar) / safe, a)
    return largest * jnp.sqrt(vdot(scaled, scaled))


@jax.jit
def normalized(a: Tree) -> tuple[Tree, jax.Array]:
    """The tree divided by its norm, every leaf in its dtype, and the norm; zeros stay zeros.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax import _trees as trees
      >>> [x.tolist() for x in trees.normalized(jnp.array([3.0, 4.0]))]
      [[0.6000000238418579, 0.800000011920929], 5.0]
    """
    length = norm(a)
    # Not multiplied by the inverse: that of 1e38 is flushed to zero.
    safe = jnp.where(length > 0, length, jnp.ones_like(length))
    return jax.tree.map(lambda x: x / safe.astype(x.dtype), a), length


def scale(factor: ArrayLike, a: Tree) -> Tree:
    """``factor * a``, every leaf keeping its dtype."""
    return jax.tree.map(lambda x: jnp.asarray(factor, x.dtype) * x, a)


def axpy(factor: ArrayLike, a: Tree, b: Tree) -> Tree:
    """``factor * a + b``, every leaf keeping the dtype of ``b``."""
    return jax.tree.map(lambda x, y: jnp.asarray(factor, y.dtype) * x.astype(y.dtype) + y, a, b)


def zeros(structure: Tree, leading: tuple[int, ...] = ()) -> Tree:
    """A tree of zeros of this structure and sharding, with optional leading axes."""
    empty = jax.tree.map(lambda a: jnp.zeros((*leading, *a.shape), a.dtype), structure)
    return placed(empty, structure)


def per_row(factors: Any, a: jax.Array) -> jax.Array:
    """One factor per row of ``a``, in the shape and dtype in which it multiplies ``a``."""
    return factors.reshape(-1, *(1,) * (a.ndim - 1)).astype(a.dtype)
