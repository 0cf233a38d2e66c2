"""What the probes of a spectrum add up, on top of its Lanczos run."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax._watching import SILENT, Watch
from flatjax.linalg.krylov import _extremes as extremes
from flatjax.linalg.krylov import _relations as relations
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.krylov._certificates import underflow
from flatjax.linalg.krylov._extremes import Extremes
from flatjax.linalg.krylov._ritz import masses
from flatjax.linalg.probing import _complement as complement
from flatjax.linalg.probing import _layers as layers
from flatjax.linalg.probing import _missing as missing
from flatjax.linalg.probing import _probe_products as probe_products
from flatjax.linalg.probing import _probe_runs as probe_runs
from flatjax.linalg.probing._estimate import Estimate, from_samples, resolved, rooted
from flatjax.linalg.probing._gauss import solved
from flatjax.linalg.probing._probe_runs import Setting
from flatjax.linalg.probing._quadrature import SpectralDensity, density_from_quadrature
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _flat as flat
from flatjax.linalg.vectors import _probes as probes
from flatjax.linalg.vectors import _span as spans
from flatjax.operators._base import Operator


class Sums(NamedTuple):
    """What p probes have said; arrays are NumPy float64 unless they are of vectors.

    Attributes:
      traces: ``(p,)``, of the complement, as of `complement.Moments`.
      squares: ``(p,)``, alike.
      gaps: ``(p, k)``, ``v . A y - y . A v`` for every wanted vector v.
      quadratures: of the runs of the first probes, as `solved` takes them.
      candidates: what is outside the basis of the extreme Ritz vectors of these, for
        `missing.filled`, which empties the list.
      by_group: what `layers.moments` gives for every probe, if there are groups.
      diagonal: the sum over the probes of the diagonal's rest, a vector, or ``None``.
    """

    traces: np.ndarray
    squares: np.ndarray
    gaps: np.ndarray
    quadratures: tuple
    candidates: list
    by_group: tuple
    diagonal: Tree | None


def setting(
    op: Operator,
    state: krylov.Krylov,
    found: Extremes,
    key: jax.Array,
    groups: tuple | None,
    lean: bool,
) -> Setting:
    """What a finished run leaves to its probes."""
    steps, dtype = len(found.matrix), state.alphas.dtype
    run = relations.of_state(state)
    last = float(run.betas[steps - 1])
    entries = np.append(found.matrix, last)
    unit = _unit(np.max(np.abs(entries)), dtype)
    # |A Q|^2 is that of T and of the residual.
    known = (np.trace(found.matrix), np.square(entries / unit).sum(), unit)
    coupled = (found.values.astype(dtype), (last * found.coefficients[-1]).astype(dtype))
    return Setting(op, run, found, coupled, known, key, groups, lean)


def _unit(largest, dtype):
    """`krylov.power_of_two` on the host."""
    if not 0 < largest < np.inf:
        return 1.0
    limit = -int(jnp.finfo(dtype).minexp)
    return 2.0 ** int(np.clip(np.frexp(largest)[1] - 1, -limit, limit))


def probe(
    given: Setting,
    num_runs: int,
    steps: int,
    rtol: float | None,
    most: int,
    diagonal: bool,
    watch: Watch = SILENT,
    before: int = 0,
) -> tuple[Sums, int]:
    """Draw probes and add up what they say.

    Args:
      given: what they meet.
      num_runs: how many of them, the first, start a quadrature.
      steps: the Lanczos steps of each of these.
      rtol: go on with one product per probe until the trace is known to this relative standard
        error; ``None``: do not.
      most: the most probes that go on.
      diagonal: whether to add up the diagonal.
      watch: what may stop it, after two probes at least: their first products say something of the
        trace, and what has been finished of their runs, something of the density.
      before: the products spent before.

    Returns:
      The sums, and the products spent.
    """
    op, nothing = given.op, np.zeros(0)
    limit = num_runs + (0 if rtol is None else most)
    if watch.stopped is not None:  # the least that there must be
        num_runs, steps, limit, watch = 2, 1, 2, SILENT
    # One size of block for all probes: one set of programs.
    together = 1 if given.lean else min(probe_products.probe_block(op.size), limit)
    total = trees.zeros(op.structure) if diagonal else None
    sums = Sums(nothing, nothing, np.zeros((0, len(given.found.values))), (), [], (), total)
    spent = 0
    while (done := len(sums.traces)) < limit and watch.stopped is None:
        # Looks as far apart as elsewhere, whatever the blocks.
        looks = done >= max(num_runs, probe_products.LEAST)
        looks = looks and done % probe_products.CHECK_EVERY == 0
        if looks and bool(trace(given, sums, 0, rtol).converged):
            break
        count = min(together, limit - done)
        numbers = np.arange(done, done + together, dtype=np.int32)
        runs = num_runs - done
        told = probe_runs.Told(watch, given, sums.traces, before + spent, count)
        sums, products = _with_block(given, sums, numbers, count, runs, steps, told)
        spent += products
    return sums, spent


def _with_block(given, sums, numbers, count, num_runs, steps, told):
    """The sums with ``count`` probes more, of which the first ``num_runs`` start a run.

    Drawing, projections and moments pass over the bases once for all of them. After a stop there
    are fewer, two at least, and of the runs those that were finished.
    """
    watch = told.watch
    vectors = given.found.exact_vectors
    whole = sums.diagonal is not None or given.groups is not None
    y, z = _drawn(given.key, numbers, probes.static(given.op.structure), vectors, whole)
    product, images = loops.product(given.op), []
    for begin, after in watch.chunks(count):
        images += probe_products.products(product, y[begin:after], after - begin)
        if watch.wants():
            jax.block_until_ready(images)
            told.report(after)
    count = len(images)
    images += (len(y) - count) * images[-1:]
    unit = np.asarray(given.known[2], given.run.alphas.dtype)
    moments, rest = _moments(given.run, y, images, given.found.vectors, given.coupled, unit)
    rest = rest if whole else None  # a vector a probe, that would be held during the runs
    first = max(0, min(count, num_runs))
    runs = probe_runs.runs(given, steps, y[:first], images[:first], told, bool(sums.quadratures))
    total, parts = sums.diagonal, []
    if whole:
        rest = probe_products.unstack(complement.rest(given.run, rest))
        rows = [run.basis for run in runs] + [None] * (count - len(runs))
        for basis, x, r in zip(rows, probe_products.unstack(z), rest, strict=False):
            if total is not None:
                total = _add_product(total, x, r)
            if given.groups is not None:
                layout = flat.layout(given.op)
                parts.append(layers.moments(layout, basis, x, r, given.groups))
    traces, squares, gaps = (np.asarray(a, np.float64)[:count] for a in jax.device_get(moments))
    ran = [run for run in runs if run.quadrature is not None]
    found = Sums(
        traces=np.append(sums.traces, traces),
        squares=np.append(sums.squares, squares),
        gaps=np.concatenate([sums.gaps, gaps]),
        quadratures=(*sums.quadratures, *(run.quadrature for run in ran)),
        candidates=[*sums.candidates, *(run.candidates for run in ran)],
        by_group=(*sums.by_group, *parts),
        diagonal=total,
    )
    return found, count + sum(run.num_products - 1 for run in runs)


@functools.partial(jax.jit, static_argnums=(2, 4))
def _drawn(key, numbers, static, vectors, keep):
    """Probes less their parts along some vectors, in a list; and as they were, stacked, to keep."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    z = probes.block(keys, jax.tree.unflatten(static[1], static[0]))
    return bases.unstack(spans.project_block(vectors, z)), z if keep else None


@jax.jit
def _moments(run, y, images, vectors, coupled, unit):
    """Traces, squares and gaps of probes, and the images of their parts in the complement.

    The products with the wanted vectors are those of the Lanczos relation, a multiple of each and
    one of the run's next vector.
    """
    y, images = bases.stack(y), bases.stack(images)
    found = complement.moments(run, y, images, unit)
    values, last = coupled
    along = bases.gram(y, jax.tree.map(lambda a: a[None], run.residual))
    known = values[None, :] * spans.gram(vectors, y).T + last[None, :] * along
    return (found.trace, found.square, spans.gram(vectors, images).T - known), found.image


@jax.jit
def _add_product(total, z, rest):
    return jax.tree.map(lambda t, a, b: t + a * b, total, z, rest)


def completed(
    given: Setting,
    sums: Sums,
    steps: int,
    tol: float,
    budget: int,
    watch: Watch = SILENT,
    before: int = 0,
) -> tuple[Extremes, tuple[bool | None, bool | None], int]:
    """The wanted pairs with those that the probes show to be missing; see `missing.filled`."""
    floor, _ = noise(given, sums)
    seen = len(sums.candidates)

    def another(number):
        numbers = np.asarray([missing.FIRST_KEY + seen + number], np.int32)
        static = probes.static(given.op.structure)
        (y,), _ = _drawn(given.key, numbers, static, given.found.exact_vectors, False)
        silent = probe_runs.Told(SILENT, given, sums.traces, before, 1)
        found = probe_runs.one(given, steps, y, loops.product(given.op)(y), silent, 0)
        return found.candidates, found.num_products

    def report(spent, values, residuals):
        watch.report(before + spent, values, residuals, left=float(budget - spent))

    budget = budget if watch.stopped is None else 0
    pairs, complete, spent = missing.filled(
        given.op, given.run, given.found, sums.candidates, tol, floor, budget, another,
        watch, report,
    )  # fmt: skip
    if watch.stopped is not None:  # nobody has looked to the end
        complete = (complete[0] and None, complete[1] and None)
    return pairs, complete, spent


def noise(given: Setting, sums: Sums) -> tuple[float, np.ndarray]:
    """The noise floor, and the noise of the product with every wanted vector."""
    dtype, norm = given.run.alphas.dtype, given.found.norm
    squares = np.square(sums.gaps)
    floor = max(2 * float(np.sqrt(squares.mean())), 8 * float(jnp.finfo(dtype).eps) * norm)
    # Of so small products underflow has left nothing that is known.
    lost = 0 < norm < underflow(given.op.size, dtype)
    return np.nan if lost else floor, np.sqrt(squares.mean(axis=0))


def _estimate(given, samples, exact, spent, rtol):
    size = abs(exact) + np.abs(samples).mean()
    return from_samples(samples, exact, size, spent, rtol, given.run.alphas.dtype)


def trace(given: Setting, sums: Sums, spent: int, rtol: float | None) -> Estimate:
    """The trace, deflated by the whole run."""
    found = _estimate(given, sums.traces, given.known[0], spent, rtol)
    return resolved(found, found.value, given.op.size)


def frobenius_norm(given: Setting, sums: Sums, spent: int) -> Estimate:
    """The Frobenius norm, from the estimate of its square."""
    _, known, unit = given.known
    square = _estimate(given, sums.squares, known, spent, None)
    return rooted(square, unit, None, given.op.size)


def density(given: Setting, sums: Sums, scale: str, num_points: int) -> SpectralDensity:
    """The density of the whole."""
    n, count = given.op.size, len(given.found.exact_values)
    nodes, s, _ = solved(list(sums.quadratures))
    weights = masses(s, given.run.alphas.dtype)
    rows = extremes.with_start(given.found.start, nodes, weights, (n - count) / n)
    return _density(given, np.full(count, 1 / n), *rows, scale, num_points)


def _density(given, exact_weights, nodes, weights, scale, num_points):
    exact, dtype = given.found.exact_values, given.run.alphas.dtype
    return density_from_quadrature(
        exact, exact_weights, nodes, weights, dtype=dtype, scale=scale, num_points=num_points
    )


def diagonal(given: Setting, sums: Sums) -> Tree | None:
    """The diagonal: what the run knows, and the mean over the probes of the rest."""
    if sums.diagonal is None:
        return None
    return flat.unpack(given.op, _diagonal(given.run, sums.diagonal, len(sums.traces)))


@jax.jit
def _diagonal(run, total, count):
    return jax.tree.map(lambda a, b: a + b / count, relations.diagonal(run), total)


def by_group(
    given: Setting, sums: Sums, spent: int, rtol: float | None, scale: str, num_points: int
) -> dict[Any, layers.LayerSpectrum] | None:
    """Trace and local density of every group."""
    groups, layout = given.groups, flat.layout(given.op)
    if groups is None:
        return None
    exact = given.found.exact_vectors
    norms = {} if exact is None else layers.squared_norms(layout, spans.formed(exact), groups)
    known, norms, found = jax.device_get(
        (layers.known_traces(layout, given.run, groups), norms, sums.by_group)
    )
    leaves = jax.tree.leaves(given.op.structure if layout is None else layout.op.structure)
    sizes = layers.by_group(groups, [leaf.size for leaf in leaves])
    nodes, s, lengths = solved(list(sums.quadratures))
    count, (floor, _) = len(given.found.exact_values), noise(given, sums)
    out = {}
    for name, size in sizes.items():
        samples = np.asarray([forms[name] for forms, _ in found], np.float64)
        trace = _estimate(given, samples, float(known[name]), spent, rtol)
        trace = trace._replace(converged=trace.converged & ~jnp.isnan(floor))
        rows = [inner[name] for _, inner in found if inner]
        weights = layers.local_weights(rows, s, lengths, size) if rows else np.zeros((1, 1))
        shares = np.asarray(norms[name], np.float64)[:count] if norms else np.zeros(0)
        density = _density(given, shares / size, nodes, weights, scale, num_points)
        out[name] = layers.LayerSpectrum(size, trace, density)
    return out
