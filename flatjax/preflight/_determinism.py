"""Whether an operator is one matrix: the same at every product, and whose fault it is if not."""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _fingerprints as fingerprints
from flatjax import _loops as loops
from flatjax import _reading as reading
from flatjax import _trees as trees
from flatjax.linalg.vectors import _probes as probes
from flatjax.losses import Mean
from flatjax.operators._base import Operator, as_operator
from flatjax.operators._data import DataOperator, Linearized, sliced
from flatjax.operators._ggn import GaussNewton
from flatjax.operators._stream import Stream
from flatjax.operators._terms import SCALARS

_CAUSES = {
    "shuffled data": "the batches hold the same examples in another order at every pass: fix the "
    "order, or the seed of the shuffle (harmless only for a whole pass without batch statistics).",
    "changing data": "the batches hold other examples at every pass (augmentation, sampling, a "
    "shuffle that drops the remainder): augment once and keep the batches, or fix the seeds.",
    "changing arguments": "params, model state or keys in *args differ between two constructions: "
    "make them once, outside of the function that makes the operator.",
    "not finite": "a product has NaN or infinite entries.",
    "run-to-run noise": "the compiled product differs from run to run: a host callback, or atomic "
    "additions on a GPU (try XLA_FLAGS=--xla_gpu_deterministic_ops=true).",
    "asymmetric product": "u.Av and v.Au differ: this is not a symmetric matrix, or its products "
    "are noisy.",
    "unkeyed randomness": "two traces of the same function give two answers, so it draws random "
    "numbers when it is traced (dropout without a key, numpy.random, a stateful generator): pass a "
    "key through *args.",
    "batch statistics": "the loss of an example depends on the others of its batch (batch "
    "normalisation in training mode, a mean over unmasked examples): chunks, streams and devices "
    "change the answer. Evaluate with frozen statistics, or use one batch.",
    "keyed randomness": "with its key fixed this is one matrix, but the draws of an example depend "
    "on its place in the batch, so chunks, streams and devices change the answer.",
}


@reading.readable
class Determinism(NamedTuple):
    """What [`check_deterministic`][] found.

    Attributes:
      ok: whether no cause was found.
      causes: one sentence each, beginning with a name: ``"shuffled data"``, ``"changing data"``,
        ``"changing arguments"``, ``"unkeyed randomness"``, ``"run-to-run noise"``,
        ``"batch statistics"``, ``"asymmetric product"`` or ``"not finite"``.
      notes: what is no fault but good to know: ``"keyed randomness"``, whose answer depends on the
        chunks.
      repeat_error: the relative difference of two products with one vector.
      symmetry_error: ``|u.Av - v.Au|`` over ``|u| |Av|``.
      trace_error: the relative difference of the values of two traces of the user's function; NaN
        where there is none to look at.
      batch_error: the relative difference of the values of examples in the whole batch and in its
        halves; NaN where there is no batch.
    """

    ok: bool
    causes: tuple[str, ...]
    notes: tuple[str, ...]
    repeat_error: float
    symmetry_error: float
    trace_error: float
    batch_error: float


def check_deterministic(
    op: Operator | Callable[..., Any],
    *,
    structure: Any = None,
    key: jax.Array | None = None,
    rtol: float = 5e-5,
) -> Determinism:
    """Look for what makes an operator another matrix at every product, and name it.

    Estimators multiply by one fixed matrix. Shuffled or augmented data, dropout without a key and
    batch statistics break that silently. The check makes the data twice and compares them, takes
    two products with one vector and the symmetry test, and evaluates the user's function twice
    traced, on the halves of the batch and on the batch in another order.

    Costs three products, five forward passes on the (first) batch and two passes over a stream;
    compiles the product and three forward programs. Eager use only.

    Args:
      op: an operator, a stream, a function without arguments that makes one (called twice), or,
        with ``structure``, a callable ``v -> A v``.
      structure: for a callable ``v -> A v``, a tree of arrays or ``ShapeDtypeStruct``.
      key: PRNG key of the two test vectors.
      rtol: the largest relative difference that counts as rounding.

    Returns:
      The findings; nothing is raised for them.

    Raises:
      TypeError: if ``op`` is none of these, or under tracing.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> import flatjax
      >>> def loss_fn(w, x):  # drawn when it is traced, and never again
      ...     return (x @ w) ** 2 * np.random.rand()
      >>> H = flatjax.hessian(loss_fn, jnp.ones(2), jnp.ones((4, 2)))
      >>> report = flatjax.check_deterministic(H)
      >>> report.ok, report.causes[0][:18]
      (False, 'unkeyed randomness')
    """
    op, found = _made(op, structure)
    if loops.is_traced(op):
        raise TypeError("check_deterministic compares numbers: call it outside jit, vmap and grad.")
    data = _data_operators(op)
    repeat, symmetry = _products(op, jax.random.key(0) if key is None else key)
    if not np.isfinite([repeat, symmetry]).all():
        found.append("not finite")
    if repeat > rtol:  # two runs of one program: finite differences do not excuse it
        found.append("run-to-run noise")
    if symmetry > max(rtol, 10 * max((part.relative_noise for part in data), default=0.0)):
        found.append("asymmetric product")
    trace_error = batch_error = float("nan")
    notes = []
    for part in data:
        trace_error, batch_error, placed = _function_errors(part, rtol)
        if trace_error > rtol:
            found.append("unkeyed randomness")
        elif batch_error > rtol:
            notes.append("keyed randomness") if placed else found.append("batch statistics")
    causes, notes = (
        tuple(f"{name}: {_CAUSES[name]}" for name in dict.fromkeys(names))
        for names in (found, notes)
    )
    return Determinism(not causes, causes, notes, repeat, symmetry, trace_error, batch_error)


def _made(op: Any, structure: Any) -> tuple[Operator, list[str]]:
    """The operator, and what differs between two passes or two constructions of it."""
    if isinstance(op, Stream):
        return op, _changes(op._operators(), op._operators())
    if isinstance(op, Operator) or structure is not None:
        return as_operator(op, structure), []
    if not callable(op):
        raise TypeError(f"op must be an operator or make one, got {type(op).__name__}.")
    made, again = op(), op()
    if not isinstance(made, Operator):
        raise TypeError(
            "op must be an operator, or a function without arguments that returns one; for "
            "a callable v -> A v pass structure=."
        )
    return made, _changes(_data_operators(made), _data_operators(again))


def _data_operators(op: Operator) -> list[Any]:
    """The operators over a batch inside of an operator, linearised ones left out."""
    parts = jax.tree.leaves(op, is_leaf=lambda a: isinstance(a, DataOperator))
    parts = [next(iter(a._operators())) if isinstance(a, Stream) else a for a in parts]
    return [a for a in parts if isinstance(a, DataOperator) and not isinstance(a, Linearized)]


def _changes(*passes: Any) -> list[str]:
    """What differs between two passes over the operators of the batches."""
    before, after = ([_fingerprint(op) for op in ops] for ops in passes)
    (data, arguments), (new_data, new_arguments) = (zip(*p, strict=True) for p in (before, after))
    found = []
    if data != new_data:
        examples = [Counter(e for batch in batches for e in batch) for batches in (data, new_data)]
        found.append("shuffled data" if examples[0] == examples[1] else "changing data")
    if arguments != new_arguments:
        found.append("changing arguments")
    return found


def _fingerprint(op: Any) -> tuple[list, Any]:
    """A key for every example, and one for all other leaves."""
    data = (op.inputs, op.targets) if isinstance(op, GaussNewton) else op.batch
    leaves = [np.asarray(a) for a in jax.tree.leaves(data)]
    count = op.examples if leaves and op.examples else 0
    examples = [fingerprints.of_state([a[i] for a in leaves]) for i in range(count)]
    others = jax.tree.leaves((op.params, op.args, getattr(op, "draws", None)))
    return examples, fingerprints.of_state(others)


def _products(op, key):
    """The relative difference of two products, and the asymmetry."""
    u, v = (probes.probe(k, op.structure, "normal") for k in jax.random.split(key))
    apply = loops.product(op)
    first, second, other = apply(v), apply(v), apply(u)
    gap = abs(float(trees.vdot(u, first)) - float(trees.vdot(v, other)))
    size = float(trees.norm(u)) * max(float(trees.norm(first)), float(trees.norm(other)))
    return _relative(second, first), gap / size if size > 0 else gap


def _relative(actual, desired) -> float:
    gap = float(trees.norm(jax.tree.map(jnp.subtract, actual, desired)))
    size = float(trees.norm(desired))
    return gap / size if size > 0 else gap


def _function_errors(op, rtol):
    """The errors of a second trace and of halves, and whether values are tied to a place."""
    gauss_newton = isinstance(op, GaussNewton)
    followed, data = (op.model_fn, op.inputs) if gauss_newton else (op.loss_fn, op.batch)
    fn, n = followed.original, op.examples
    if fn is None:
        return float("nan"), float("nan"), False

    def values(data):
        # A new function object, so that it is traced anew.
        out = jax.jit(lambda data, op: fn(op.params, data, *op.args))(data, op)
        if isinstance(out, Mean):  # its two parts on a last axis
            out = jnp.stack([out.total.astype(jnp.float32), out.weight.astype(jnp.float32)], -1)
        return out.astype(jnp.float32)

    whole = values(data)
    trace_error = _relative(values(data), whole)
    if not n or n < 2:
        return trace_error, float("nan"), False
    half, moved = n // 2, whole
    first, second = values(sliced(data, 0, half)), values(sliced(data, half, n - half))
    if whole.ndim == 0:
        halves = (half * first + (n - half) * second) / n
    elif getattr(op, "form", None) == SCALARS:
        halves = first + second
    else:
        halves, moved = jnp.concatenate([first, second]), jnp.roll(whole, 1, axis=0)
    rolled = values(jax.tree.map(lambda a: jnp.roll(a, 1, axis=0), data))
    return trace_error, _relative(halves, whole), _relative(rolled, moved) > rtol
