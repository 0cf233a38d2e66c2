r"""Error bars over probes and over data, apart.

An estimate from random probes on a data set has two errors: the probes', with which it misses the
trace of this data set's matrix, and the data's, with which this data set's matrix misses that of
the population. More probes mend the first only. The quadratic forms $q_{pb} = z_p^\top A_b
z_p$ of every probe with every batch tell them apart: a two-way layout without replication.
"""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _checks as checks
from flatjax import _loops as loops
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.probing import _probe_products as probe_products
from flatjax.linalg.probing._estimate import student
from flatjax.linalg.vectors import _probes as probes
from flatjax.operators._base import Operator, as_operator


@reading.readable
class SplitEstimate(NamedTuple):
    """A mean over batches and random probes, and where its error comes from.

    Attributes:
      value: the estimate.
      probe_error: its standard error about the value of these data, from the probes. Zero where
        none were drawn.
      data_error: its standard error from these data being a sample of the population.
      standard_error: of both, about the value of the population.
      interval: a 95 % confidence interval for the value of the population, ``(2, ...)``.
      num_products: the products with batches spent.
    """

    value: jax.Array
    probe_error: jax.Array
    data_error: jax.Array
    standard_error: jax.Array
    interval: jax.Array
    num_products: int

    __float__ = reading.as_float


@jax.jit
def _form(z, w):
    return trees.vdot(z, w)


def _first(ops: Iterable[Any], structure: Tree):
    """The batches' operators, one structure all of them."""
    expected = None
    for i, op in enumerate(ops):
        op = as_operator(op, structure)
        if expected is None:
            expected = op.structure
        else:
            trees.check(op.structure, expected, f"operator {i}")
        yield op


def _check_count(count: int) -> None:
    if count < 2:
        raise ValueError(
            f"ops has {count} batches: an error over data needs at least 2, better 10 or more. "
            "Split the data into more batches."
        )


def trace_over_batches(
    ops: Iterable[Any], *, key: jax.Array, num_probes: int = 10, structure: Tree = None
) -> SplitEstimate:
    r"""The trace of a population's matrix from batches, its error split into probes and data.

    Every probe is multiplied with the operator of every batch. With $s_P^2$ the variance of
    the P means over batches, $s_B^2$ that of the B means over probes and $s_E^2$ the
    mean square of the interaction,

    $$\mathrm{probe}^2 = \frac{s_P^2}{P}, \qquad
    \mathrm{data}^2 = \Big(\frac{s_B^2}{B} - \frac{s_E^2}{PB}\Big)_+, \qquad
    \mathrm{total}^2 = \mathrm{probe}^2 + \mathrm{data}^2 .$$

    The batches are taken to be independent draws of equal size from the population. Two estimates
    on the same data (of two checkpoints, say) share their data error; for their difference it is
    not the one given here.

    Costs ``num_probes`` products per batch, and three vectors of memory.

    Args:
      ops: the operators, one per batch, in one pass: a list, or a generator such as
        ``(flatjax.hessian(losses_fn, params, batch) for batch in data)``.
      key: a PRNG key.
      num_probes: the number of Rademacher probes P, at least 2.
      structure: for callables, a tree of arrays or ``jax.ShapeDtypeStruct`` like their vectors.

    Returns:
      A [`SplitEstimate`][], its interval Student's, with Satterthwaite's degrees of freedom.

    Raises:
      TypeError: if an operator has another tree structure than the first.
      ValueError: on fewer than 2 batches or probes.

    Example:
      >>> import jax, jax.numpy as jnp, flatjax
      >>> batches = [jnp.full(50, 1.0 + 0.1 * i) for i in range(8)]
      >>> ops = (
      ...     flatjax.hessian(lambda w, x: x @ w**2 / 2, jnp.zeros(50), b[None]) for b in batches
      ... )
      >>> found = flatjax.trace_over_batches(ops, key=jax.random.key(0))
      >>> round(float(found.value), 2), float(found.probe_error), float(found.data_error) > 4
      (67.5, 0.0, True)

    References:
      Searle, Casella and McCulloch, *Variance Components*, 1992, section 4.3; Satterthwaite, "An
      approximate distribution of estimates of variance components", Biometrics 1946.
    """
    key = checks.check_key(key)
    checks.check_count("num_probes", num_probes, 2)
    columns: list = []
    dtype: Any = None
    for op in _first(ops, structure):
        product = loops.product(op)
        forms = []
        for i in range(num_probes):
            z = probes.probe(key, op.structure, number=i)  # the same for all batches
            forms.append(_form(z, product(z)))
        columns.append(forms)
        dtype = trees.dtype(op.structure)
    _check_count(len(columns))
    table = np.asarray(jax.device_get(columns), np.float64).T
    return _split(table, dtype)


def _split(table: np.ndarray, dtype: Any) -> SplitEstimate:
    """The analysis of variance of a table of probes by batches."""
    p, b = table.shape
    by_probe, by_batch, mean = table.mean(axis=1), table.mean(axis=0), table.mean()
    rest = table - by_probe[:, None] - by_batch[None, :] + mean
    interaction = (rest**2).sum() / ((p - 1) * (b - 1)) / (p * b)
    probe, data = by_probe.var(ddof=1) / p, by_batch.var(ddof=1) / b
    only_data = max(data - interaction, 0.0)
    total = probe + only_data
    # Satterthwaite: the degrees of freedom of a sum of mean squares.
    parts = probe**2 / (p - 1) + data**2 / (b - 1)
    some = parts > 0 and math.isfinite(total**2 / parts)
    degrees = max(1, int(total**2 / parts)) if some else p + b - 2
    half = student(min(degrees, p + b - 2)) * math.sqrt(total)
    numbers = (mean, math.sqrt(probe), math.sqrt(only_data), math.sqrt(total))
    value, probe, data, error = (jnp.asarray(a, dtype) for a in numbers)
    interval = jnp.asarray(np.array([mean - half, mean + half]), dtype)
    return SplitEstimate(value, probe, data, error, interval, p * b)


def forms_over_batches(
    ops: Iterable[Any], vectors: Tree, *, structure: Tree = None
) -> SplitEstimate:
    r"""The quadratic forms $v_i^\top A v_i$ of a population from batches.

    For unit eigenvectors of the mean of the same batches these are its eigenvalues, and the errors
    say how far the population's may be: to first order an eigenvalue moves with its form. The
    largest eigenvalues of a sample lie too high on average, by up to the order of these errors;
    vectors from other data avoid that.

    Costs k products per batch, and two vectors of memory.

    Args:
      ops: the operators, one per batch, in one pass; see `trace_over_batches`.
      vectors: a tree with a leading axis k, such as ``Eigenpairs.vectors``.
      structure: for callables, a tree of arrays or ``jax.ShapeDtypeStruct`` like their vectors.

    Returns:
      A [`SplitEstimate`][] of arrays ``(k,)``, without an error of probes.

    Raises:
      TypeError: if an operator has another tree structure than the first.
      ValueError: on fewer than 2 batches, or vectors of another shape.

    Example:
      >>> import jax.numpy as jnp, flatjax
      >>> ops = [lambda v, s=s: s * v for s in (1.0, 2.0, 3.0)]
      >>> found = flatjax.forms_over_batches(ops, jnp.eye(4)[:2], structure=jnp.zeros(4))
      >>> found.value.tolist(), round(float(found.data_error[0]), 3)
      ([2.0, 2.0], 0.577)
    """
    columns: list = []
    k, dtype = 0, None
    for op in _first(ops, structure):
        if not columns:
            k = _check_vectors(op, vectors)
        product = loops.product(op)
        rows = (probe_products.row(vectors, jnp.int32(i)) for i in range(k))
        columns.append([_form(v, product(v)) for v in rows])
        dtype = trees.dtype(op.structure)
    _check_count(len(columns))
    table = np.asarray(jax.device_get(columns), np.float64)
    count = len(table)
    mean, error = table.mean(axis=0), table.std(axis=0, ddof=1) / math.sqrt(count)
    half = student(count - 1) * error
    return SplitEstimate(
        value=jnp.asarray(mean, dtype),
        probe_error=jnp.zeros(k, dtype),
        data_error=jnp.asarray(error, dtype),
        standard_error=jnp.asarray(error, dtype),
        interval=jnp.asarray(np.stack([mean - half, mean + half]), dtype),
        num_products=table.size,
    )


def _check_vectors(op: Operator, vectors: Tree) -> int:
    leaves = jax.tree.leaves(vectors)
    k = leaves[0].shape[0] if leaves and leaves[0].ndim else 0
    if not k:
        raise ValueError("vectors must have a leading axis, one entry for each vector.")
    stacked = jax.tree.map(lambda a: jax.ShapeDtypeStruct((k, *a.shape), a.dtype), op.structure)
    trees.check(vectors, stacked, "vectors")
    return k
