"""Products with random probes, one at a time or in blocks."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax._watching import SILENT, Watch
from flatjax.linalg.vectors import _arguments as arguments
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _probes as probes
from flatjax.linalg.vectors import _span as spans
from flatjax.linalg.vectors._span import Span
from flatjax.operators._base import Operator

CHECK_EVERY = 8  # probes between two looks of an adaptive estimate at its spread
LEAST = 16  # a stopping rule that looks at a standard error from fewer samples stops by luck
# From so many on it stops where the standard error is half of what was asked: of 8 normal samples
# one that is too large shows as so small in 1 of 100 cases (chi square of 7 degrees of freedom).
EARLY = 8
# Probes that share the passes over a basis, and the numbers up to which they are that many. Their
# products stay one at a time: each has intermediate values of the model's size, and a CPU gains
# nothing by several at once.
_BLOCK, _SMALL = 8, 1 << 24

row = jax.jit(bases.row)
unstack = jax.jit(bases.unstack)
keys = jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))


def probe_block(size: int) -> int:
    """How many probes of a dimension share the passes over a basis."""
    return _BLOCK if _BLOCK * size <= _SMALL else 2


def drawn(
    key: jax.Array,
    structure: Tree,
    first: int,
    count: int,
    kind: str = "rademacher",
    basis: Tree = None,
) -> Tree:
    """The probes from number ``first`` on, stacked; number i is drawn from ``fold_in(key, i)``.

    They have no components along the orthonormal or zero vectors of ``basis``.
    """
    z = probes.block(keys(key, np.arange(first, first + count, dtype=np.int32)), structure, kind)
    return z if basis is None else spans.project_block(Span(basis), z)


def products(product: Callable[[Tree], Tree], vectors: Sequence[Tree], count: int) -> list[Tree]:
    """The products with the first ``count`` vectors, one after the other.

    Those of the others repeat the last one: blocks of one size need one program.
    """
    images = [product(v) for v in vectors[:count]]
    return images + (len(vectors) - count) * images[-1:]


@jax.jit
def _forms(z, w):
    return jax.vmap(lambda z, w: (trees.vdot(z, w), trees.vdot(z, z)))(z, w)


@jax.jit
def _forms_of_lists(z, w):
    return _forms(bases.stack(z), bases.stack(w))


# ``report(rows)``: the measurements so far, each a list entry with a leading axis of probes.
Report = Callable[[list], None]


def quadratic_forms(
    op: Operator,
    key: jax.Array,
    first: int,
    count: int,
    *,
    basis: Tree = None,
    block: int = 1,
    watch: Watch = SILENT,
    report: Report = lambda rows: None,
) -> tuple[Any, Any]:
    r"""The quadratic forms $z^\top A z$ of ``count`` Rademacher probes, and $z^\top z$.

    Args:
      op: the operator.
      key: the key; probe i is drawn from ``fold_in(key, i)`` whatever the blocks.
      first: the index of the first probe.
      count: the number of probes.
      basis: orthonormal or zero vectors to project out of every probe, or ``None``.
      block: probes multiplied at once, each with its own intermediate values in memory.
      watch: what may stop it.
      report: what to tell a watch.

    Returns:
      Two arrays ``(count,)``, shorter after a stop: NumPy in float64, or traced.
    """
    # A stream over batches drives itself from the host and takes one vector at a time.
    block = 1 if op.host_driven else min(block, count)
    if loops.is_traced(op, key, jnp.zeros(())):
        return _traced_forms(op, key, first, count, block)
    if block == 1:
        return sample(op, key, first, count, _forms_of_lists, basis, watch, report)

    rows, end = [], first + count
    starts = range(first, end, block)
    for begin, after in watch.chunks(len(starts)):
        for start in starts[begin:after]:
            z = drawn(key, op.structure, start, min(block, end - start), basis=basis)
            rows.append(_forms(z, arguments.block_product(op, z)))
        if watch.wants():
            rows = jax.device_get(rows)
            report(rows)
    return jax.tree.map(_concatenate, *rows)


def _traced_forms(op, key, first, count, block):
    def some(start, size):
        z = probes.block(keys(key, start + jnp.arange(size, dtype=jnp.int32)), op.structure)
        product = loops.product(op)
        w = product(bases.row(z, 0)) if block == 1 else arguments.block_product(op, z)
        return _forms(z, bases.stack([w]) if block == 1 else w)

    like = some(jnp.int32(first), block)
    out = jax.tree.map(lambda a: jnp.zeros((count,), a.dtype), like)

    def put(out, start, size):
        found = some(jnp.int32(first) + start, size)
        update = jax.lax.dynamic_update_slice_in_dim
        return jax.tree.map(lambda a, x: update(a, x, start, 0), out, found)

    whole, rest = divmod(count, block)
    out = loops.fori(
        whole,
        lambda i, out: put(out, jnp.asarray(i, jnp.int32) * block, block),
        bases.vary_like(out, like),
        like=like,
    )
    return put(out, jnp.int32(whole * block), rest) if rest else out


def sample(
    op: Operator,
    key: jax.Array,
    first: int,
    count: int,
    measure: Callable[[list[Tree], list[Tree]], Any],
    basis: Tree = None,
    watch: Watch = SILENT,
    report: Report = lambda rows: None,
) -> Any:
    """Measure probes that are drawn and projected in blocks, and multiplied one by one.

    Args:
      op: the operator, not traced.
      key: the key; probe i is drawn from ``fold_in(key, i)``.
      first: the index of the first probe.
      count: the number of probes.
      measure: ``(probes, products) -> small arrays`` with a leading axis, compiled.
      basis: orthonormal or zero vectors to project out of every probe.
      watch: what may stop it.
      report: what to tell a watch.

    Returns:
      The measurements with a leading axis ``count``, shorter after a stop: NumPy, floating ones in
      float64.
    """
    size = probe_block(op.size)
    if basis is None and size < _BLOCK:
        size = 1  # alone, probes need the least memory, which decides where they are large
    product, rows = loops.product(op), []
    for start in range(first, first + count, size):
        if watch.stopped is not None:
            break
        z = unstack(drawn(key, op.structure, start, size, basis=basis))
        images, found = [], None
        for begin, after in watch.chunks(min(size, first + count - start)):
            images += products(product, z[begin:after], after - begin)
            # Blocks of one size need one program: the last product stands for those to come.
            found = measure(z, images + (size - after) * images[-1:])
            found = jax.tree.map(lambda a, after=after: a[:after], found)
            if watch.wants():
                found = jax.device_get(found)
                report([*rows, found])
        rows.append(found)
    return jax.tree.map(_concatenate, *rows)


def _concatenate(*rows):
    host = np.concatenate(jax.device_get(rows))
    return host.astype(np.float64) if host.dtype.kind == "f" else host


def less_norms(forms: np.ndarray, norms: np.ndarray, expected: float) -> np.ndarray:
    r"""Quadratic forms less what the norms of their probes make them vary by.

    $q_i - c_i(\|z_i\|^2 - E\|z\|^2)$ with $c_i$ the ratio of forms to squared norms over all
    other probes: independent of probe i, so that nothing is biased. A multiple of the identity then
    has no variance, as it has none under plain Rademacher probes, whose norm is fixed.

    Args:
      forms: ``(n,)``, n >= 2.
      norms: ``(n,)``, the squared norms of the probes.
      expected: their expectation.

    Returns:
      ``(n,)``.
    """
    others = norms.sum() - norms
    some = others > 0
    ratio = np.where(some, (forms.sum() - forms) / np.where(some, others, 1), 0)
    return forms - ratio * (norms - expected)
