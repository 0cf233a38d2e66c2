"""Start vectors and first products, checked at the door of every estimator."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _checks as checks
from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.vectors import _probes as probes
from flatjax.operators._base import Operator


def check_outside_jit(what: str, *trees_: Any) -> None:
    """Raise where the caller is being traced: inside ``jit`` even a constant is."""
    if loops.is_traced(trees_, jnp.zeros(())):
        raise TypeError(
            f"{what} is driven from the host and cannot be traced: call it outside jit, or use "
            "flatjax.eigsh, flatjax.lanczos, or flatjax.trace and flatjax.diagonal with "
            'method="hutchinson" inside.'
        )


def start(
    op: Operator, key: jax.Array | None, v0: Tree, *, hint: str = ""
) -> tuple[Tree, jax.Array]:
    """The start vector, given or drawn, and the key for everything else that is random.

    Where there is neither, ``hint`` ends the error.
    """
    if (key is None) == (v0 is None):
        given = "both." if key is not None else f"neither.{hint}"
        raise ValueError(
            f"give exactly one of key= (a random start) and v0= (a start vector), got {given}"
        )
    if v0 is None:
        key = checks.check_key(key)
        return probes.probe(key, op.structure, "normal", number=0), key
    return start_vector(op, v0), jax.random.key(0)


_norm = jax.jit(trees.norm)


def start_vector(op: Operator, v0: Tree) -> Tree:
    """``v0`` checked and cast to the dtypes in which vectors are held."""
    trees.check(v0, op.structure, "v0")
    v0 = trees.cast(v0, op.structure)
    norm = _norm(v0)
    if not loops.is_traced(norm):  # inside jit even the norm of a constant is
        norm = float(norm)
        if not (norm > 0 and np.isfinite(norm)):
            raise ValueError(f"v0 must have a finite non-zero norm, got {norm}.")
    return v0


def first_product(op: Operator, v: Tree) -> Tree:
    """The product with ``v``, with a clear error where it lacks the operator's structure."""
    w = loops.product(op)(v)
    trees.check(w, op.structure, "op(v)")
    return w


LOW = ("bfloat16", "float16")


def basis_dtype(given: Any, structure: Tree) -> Any:
    """The dtype in which a basis is stored, or ``None`` for that of the vectors, checked."""
    if given is None:
        return None
    try:
        name = jnp.dtype(given).name
    except TypeError:
        name = repr(given)
    if name not in LOW:
        raise ValueError(
            f'basis_dtype must be "bfloat16", "float16" or None (that of the vectors), got {name}.'
        )
    if any(trees.sharding_of(a) is not None for a in jax.tree.leaves(structure)):
        raise ValueError(
            f"basis_dtype={name} is for vectors on one device, and these are sharded over several, "
            "each of which holds a part of the basis only: leave basis_dtype out."
        )
    return jnp.dtype(name)


def check_basis_dtype(what: str, dtype: Any, made: Tree) -> None:
    """Raise where what is made with a `basis_dtype` is traced."""
    if dtype is not None and loops.is_traced(made):
        raise TypeError(
            "basis_dtype is for runs that are driven from the host and cannot be traced: call "
            f"{what} outside jit, or leave it out."
        )


def block_product(op: Operator, block: Tree) -> Tree:
    """The products with vectors stacked along a leading axis."""
    return _block_product(op, block, type(op))


@functools.partial(jax.jit, static_argnames="kind")
def _block_product(op, block, kind):
    del kind  # told apart from operators of other classes, see flatjax._nodes
    # vmap over tangents only: the primals are shared.
    return jax.vmap(op.mv)(block)
