"""Products with random probes, one at a time or in blocks, on the host or in a traced loop."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.vectors import _arguments as arguments
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _probes as probes
from flatjax.operators._base import Operator

CHECK_EVERY = 8  # probes between two looks of an adaptive estimate at its spread
LEAST = 16  # a stopping rule that looks at a standard error from fewer samples stops by luck
# Probes that share the passes over a basis, and the numbers up to which they are that many. Their
# products stay one at a time: each has intermediate values of the model's size, and a CPU gains
# nothing by several at once.
_TOGETHER, _SMALL = 8, 1 << 24


_project = jax.jit(bases.project_out)
unstack = jax.jit(bases.unstack)
keys = jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))
quadratic_form = jax.jit(lambda z, w: (trees.vdot(z, w), trees.vdot(z, z)))


@jax.jit
def project_block(basis: Tree, block: Tree) -> Tree:
    """Vectors stacked along a leading axis less their parts along orthonormal or zero vectors."""
    return bases.subtract(block, bases.combine(basis, bases.gram(basis, block)))


def together(size: int) -> int:
    """How many probes of a dimension share the passes over a basis."""
    return _TOGETHER if _TOGETHER * size <= _SMALL else 2


def products(product: Callable[[Tree], Tree], vectors: Sequence[Tree], count: int) -> list[Tree]:
    """The products with the first ``count`` vectors, one after the other.

    Those of the others repeat the last one: blocks of one size need one program.
    """
    images = [product(v) for v in vectors[:count]]
    return images + (len(vectors) - count) * images[-1:]


@functools.lru_cache(maxsize=64)
def _over_vectors(measure):
    return jax.jit(lambda z, w: jax.vmap(measure)(bases.stack(z), bases.stack(w)))


@functools.lru_cache(maxsize=64)
def _over_block(measure):
    return jax.jit(jax.vmap(measure))


def sample(
    op: Operator,
    key: jax.Array,
    first: int,
    count: int,
    measure: Callable[[Tree, Tree], Any],
    *,
    kind: str = "rademacher",
    basis: Tree = None,
    block: int = 1,
) -> Any:
    """Measure ``count`` probes and their products.

    Args:
      op: the operator.
      key: the key; probe i is drawn from ``fold_in(key, i)`` whatever the blocks.
      first: the index of the first probe.
      count: the number of probes.
      measure: a compiled function at module level, ``(z, A z) -> small arrays``. ``z`` is the probe
        less its components along ``basis``.
      kind: the kind of probes.
      basis: orthonormal or zero vectors to project out of every probe.
      block: probes multiplied at once, each with its own intermediate values in memory. With 1 the
        host still draws, projects and measures `together` of them at once.

    Returns:
      The measurements with a leading axis ``count``: NumPy, floating ones in float64, or traced.
    """
    # A stream over batches drives itself from the host and takes one vector at a time.
    block = 1 if op.host_driven else min(block, count)
    product = loops.product(op)
    # Alone, probes need the least memory, which decides where they are large and meet no basis.
    if block == 1 and (basis is not None or together(op.size) > 2) and not loops.on_device(op):
        found = by_rows(op, key, first, count, _over_vectors(measure), kind, basis)
        if found is not None:
            return found

    def some(start, size):
        if block == 1:
            z = probes.probe(jax.random.fold_in(key, start), op.structure, kind)
            z = z if basis is None else _project(basis, z)
            return jax.tree.map(lambda a: a[None], measure(z, product(z)))
        z = probes.block(keys(key, start + jnp.arange(size, dtype=jnp.int32)), op.structure, kind)
        z = z if basis is None else project_block(basis, z)
        return _over_block(measure)(z, arguments.block_product(op, z))

    whole, rest = divmod(count, block)
    begin = some(jnp.int32(first), block)
    if not loops.is_traced(begin):
        starts = range(first + block, first + whole * block, block)
        rows = [begin] + [some(jnp.int32(i), block) for i in starts]
        if rest:
            rows.append(some(jnp.int32(first + whole * block), rest))
        return jax.tree.map(_concatenate, *rows)
    # The block above served to ask whether we are traced; unused, the compiler drops it.
    out = jax.tree.map(lambda a: jnp.zeros((count, *a.shape[1:]), a.dtype), begin)

    def body(i, out):
        at = jnp.asarray(i, jnp.int32) * block
        return _put(out, some(jnp.int32(first) + at, block), at)

    out = loops.fori(whole, body, bases.vary_like(out, begin), like=begin)
    if rest:
        at = jnp.int32(whole * block)
        out = _put(out, some(jnp.int32(first) + at, rest), at)
    return out


def by_rows(
    op: Operator,
    key: jax.Array,
    first: int,
    count: int,
    measure: Callable[[list[Tree], list[Tree]], Any],
    kind: str = "rademacher",
    basis: Tree = None,
) -> Any:
    """Measure probes that are drawn and projected in blocks, and multiplied one by one.

    Args:
      op: the operator.
      key: the key; probe i is drawn from ``fold_in(key, i)``.
      first: the index of the first probe.
      count: the number of probes.
      measure: ``(probes, products) -> small arrays`` with a leading axis, compiled.
      kind: the kind of probes.
      basis: orthonormal or zero vectors to project out of every probe.

    Returns:
      NumPy measurements as of `sample`, or ``None`` where the products are traced.
    """
    product, size, rows = loops.product(op), together(op.size), []
    for start in range(first, first + count, size):
        real = min(size, first + count - start)
        numbers = np.arange(start, start + size, dtype=np.int32)
        z = probes.block(keys(key, numbers), op.structure, kind)
        z = unstack(z if basis is None else project_block(basis, z))
        found = measure(z, products(product, z, real))
        if loops.is_traced(found):
            return None
        rows.append(jax.tree.map(lambda a, real=real: a[:real], found))
    return jax.tree.map(_concatenate, *rows)


def _put(out, rows, at):
    return jax.tree.map(lambda a, x: jax.lax.dynamic_update_slice_in_dim(a, x, at, 0), out, rows)


def _concatenate(*rows):
    host = np.concatenate(jax.device_get(rows))
    return host.astype(np.float64) if host.dtype.kind == "f" else host


def less_length(forms: Any, lengths: Any, expected: Any) -> Any:
    r"""Quadratic forms less what the lengths of their probes make them vary by.

    :math:`q_i - c_i(\|z_i\|^2 - E\|z\|^2)` with :math:`c_i` the ratio of forms to lengths over all
    other probes: independent of probe i, so that nothing is biased. A multiple of the identity then
    has no variance, as it has none under plain Rademacher probes, whose length is fixed.

    Args:
      forms: ``(n,)``, n >= 2.
      lengths: ``(n,)``, the squared norms of the probes.
      expected: their expectation.

    Returns:
      ``(n,)``.
    """
    xp = np if isinstance(forms, np.ndarray) else jnp
    others = lengths.sum() - lengths
    some = others > 0
    ratio = xp.where(some, (forms.sum() - forms) / xp.where(some, others, 1), 0)
    return forms - ratio * (lengths - xp.asarray(expected, lengths.dtype))
