"""The Lanczos runs of the probes of a spectrum, in the complement of its converged pairs."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax._watching import SILENT, Watch
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.krylov._extremes import Extremes
from flatjax.linalg.krylov._relations import Relation
from flatjax.linalg.probing import _complement as complement
from flatjax.linalg.probing import _missing as missing
from flatjax.linalg.probing._estimate import so_far
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _span as spans
from flatjax.operators._base import Operator


class Setting(NamedTuple):
    """What the probes meet.

    Attributes:
      op: the operator.
      run: the Lanczos relation.
      found: the pairs at both ends.
      coupled: numbers a and b of each of these, of the relation ``A v = a v + b q`` with the next
        vector q of the run.
      known: what the run knows of the trace, of the squared Frobenius norm in squared units, and
        the unit, on the host.
      key: that of the probes.
      groups: the name of the group of every leaf, or ``None``.
      lean: whether vectors are dear: one probe at a time, in no more rows than it has steps.
    """

    op: Operator
    run: Relation
    found: Extremes
    coupled: tuple
    known: tuple[float, float, float]
    key: jax.Array
    groups: tuple | None
    lean: bool = False


class Told(NamedTuple):
    """What a watch is told of: the wanted pairs, and how well the trace is known.

    Attributes:
      watch: the watch.
      given: what the probes meet.
      traces: what those of earlier blocks have said.
      spent: the products before this block.
      block: the probes of this block.
    """

    watch: Watch
    given: Setting
    traces: np.ndarray
    spent: int
    block: int

    def report(self, more: int) -> None:
        """Tell it, after ``more`` products."""
        found, text = self.given.found, None
        if len(self.traces) > 1:
            value, error = so_far(self.traces, self.given.known[0])
            text = f"trace {value:.6g} +- {error:.1g}"
        ready = len(self.traces) + min(more, self.block) > 1  # two probes
        step = self.spent + more
        self.watch.report(step, found.values, found.residuals, ready=ready, text=text)


class Run(NamedTuple):
    """A probe's run in the complement of the exact vectors: none where they are all.

    Attributes:
      num_products: the products spent, the first one included.
      quadrature: the numbers that `solved` takes.
      candidates: what `missing.outside` leaves of those of `missing.seen`; of no run ``None``.
      basis: that of the run, where there are groups, which need it.
    """

    num_products: int
    quadrature: tuple | None = None
    candidates: missing.Candidates | None = None
    basis: Tree | None = None


def runs(given: Setting, steps: int, y: list, images: list, told: Told, before: bool) -> list[Run]:
    """The runs of probes; after a stop those that are finished, or the first as far as it came.

    Args:
      given: what they meet.
      steps: the Lanczos steps of each.
      y: the probes.
      images: their products.
      told: whom to tell.
      before: whether there have been runs before.

    Returns:
      A run for each.
    """
    found, spent, watch = [], len(images), told.watch
    room = given.op.size - len(given.found.exact_values)
    for start, image in zip(y, images, strict=True):
        if watch.stopped is None:
            run = one(given, steps, start, image, told, spent)
            if before and run.num_products < min(steps, room):
                run = Run(run.num_products)
        else:
            run = Run(1) if before else one(given, 1, start, image, told, spent)
        spent += run.num_products - 1
        found.append(run)
        before = True
    return found


def one(given: Setting, steps: int, y: Tree, image: Tree, told: Told, spent: int) -> Run:
    """The run of a probe, of which the first product is known, after ``spent`` other ones."""
    found, op = given.found, given.op
    steps = min(steps, op.size - len(found.exact_values))
    if steps == 0:
        return Run(1)
    if steps == 1 and given.groups is None:  # no basis is needed
        numbers, seen = _one_step(y, image, found.exact_vectors)
        return Run(1, (*numbers, 1), missing.outside(given.run, *seen))
    # In as many rows as the first run has begun with: one program for the steps of both.
    same = bases.size(bases.parts_of(given.run.basis)[0])
    rows = steps if given.lean else max(steps, same)
    state, first, length = krylov.begin(y, image, rows, given.key)
    deflated = complement.Deflated(op, found.exact_vectors, found.middle)
    first = spans.project(deflated.vectors, first)
    # What a stop has left to do, nobody watches.
    watch = told.watch if told.watch.stopped is None else SILENT

    def report(_, done):
        if done > 1:  # the first step has cost nothing
            told.report(spent + done - 1)

    state, steps = krylov.watched(deflated, state, steps, watch, report, first)
    seen = missing.seen(state, steps, len(found.values) > found.num_top)
    numbers = (state.alphas, state.betas, state.scale, length, steps)
    basis = None if given.groups is None else state.basis
    del state
    return Run(steps, numbers, missing.outside(given.run, *seen), basis)


@jax.jit
def _one_step(y, image, vectors):
    """The numbers of a run of one step, without its depth, and its candidates."""
    unit, length = trees.normalized(y)
    image = jax.tree.map(lambda a: a / length.astype(a.dtype), image)
    image = spans.project(vectors, image)
    alpha = trees.vdot(unit, image)
    numbers = (alpha[None], jnp.zeros_like(alpha)[None], jnp.ones_like(alpha), length)
    return numbers, jax.tree.map(lambda a: a[None], (unit, image))
