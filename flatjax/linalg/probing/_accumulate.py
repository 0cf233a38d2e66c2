"""What the probes of a spectrum add up, on top of its Lanczos run."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.linalg.krylov import _extremes as extremes
from flatjax.linalg.krylov import _relations as relations
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.krylov._certificates import underflow
from flatjax.linalg.krylov._extremes import Extremes
from flatjax.linalg.krylov._relations import Relation
from flatjax.linalg.krylov._ritz import masses
from flatjax.linalg.probing import _complement as complement
from flatjax.linalg.probing import _layers as layers
from flatjax.linalg.probing import _missing as missing
from flatjax.linalg.probing import _probe_products as probe_products
from flatjax.linalg.probing._estimate import Estimate, from_samples, resolved, rooted
from flatjax.linalg.probing._gauss import solved
from flatjax.linalg.probing._quadrature import SpectralDensity, density_from_quadrature
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _flat as flat
from flatjax.linalg.vectors import _probes as probes
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
    """

    op: Operator
    run: Relation
    found: Extremes
    coupled: tuple
    known: tuple[float, float, float]
    key: jax.Array
    groups: tuple | None


class Sums(NamedTuple):
    """What p probes have said; arrays are NumPy float64 unless they are of vectors.

    Attributes:
      traces: ``(p,)``, of the complement, as of `complement.Moments`.
      squares: ``(p,)``, alike.
      gaps: ``(p, k)``, ``v . A y - y . A v`` for every wanted vector v.
      quadratures: of the runs of the first probes, as `solved` takes them.
      candidates: the extreme Ritz vectors of these and their products, for `missing.filled`.
      by_group: what `layers.moments` gives for every probe, if there are groups.
      diagonal: the sum over the probes of the diagonal's rest, a vector, or ``None``.
    """

    traces: np.ndarray
    squares: np.ndarray
    gaps: np.ndarray
    quadratures: tuple
    candidates: tuple
    by_group: tuple
    diagonal: Tree | None


def setting(
    op: Operator, state: krylov.Krylov, found: Extremes, key: jax.Array, groups: tuple | None
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
    return Setting(op, run, found, coupled, known, key, groups)


def _unit(largest, dtype):
    """`krylov.power_of_two` on the host."""
    if not 0 < largest < np.inf:
        return 1.0
    limit = -int(jnp.finfo(dtype).minexp)
    return 2.0 ** int(np.clip(np.frexp(largest)[1] - 1, -limit, limit))


def probe(
    given: Setting, num_runs: int, steps: int, rtol: float | None, most: int, diagonal: bool
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

    Returns:
      The sums, and the products spent.
    """
    op, nothing = given.op, np.zeros(0)
    limit = num_runs + (0 if rtol is None else most)
    # One size of block for all probes: one set of programs.
    together = min(probe_products.probe_block(op.size), limit)
    total = trees.zeros(op.structure) if diagonal else None
    sums = Sums(nothing, nothing, np.zeros((0, len(given.found.values))), (), (), (), total)
    spent = 0
    while (done := len(sums.traces)) < limit:
        enough = done >= max(num_runs, probe_products.LEAST)
        if enough and bool(trace(given, sums, 0, rtol).converged):
            break
        count = min(together, limit - done)
        numbers = np.arange(done, done + together, dtype=np.int32)
        sums, products = _with_block(given, sums, numbers, count, num_runs - done, steps)
        spent += products
    return sums, spent


def _with_block(given, sums, numbers, count, num_runs, steps):
    """The sums with ``count`` probes more, of which the first ``num_runs`` start a run.

    Drawing, projections and moments pass over the bases once for all of them.
    """
    vectors = given.found.exact_vectors
    whole = sums.diagonal is not None or given.groups is not None
    y, z = _drawn(given.key, numbers, probes.static(given.op.structure), vectors, whole)
    images = probe_products.products(loops.product(given.op), y, count)
    unit = np.asarray(given.known[2], given.run.alphas.dtype)
    moments, rest = _moments(given.run, y, images, given.found.vectors, given.coupled, unit)
    first = max(0, min(count, num_runs))
    runs = [_run(given, steps, *pair) for pair in zip(y[:first], images[:first], strict=True)]
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
        candidates=(*sums.candidates, *(run.candidates for run in ran)),
        by_group=(*sums.by_group, *parts),
        diagonal=total,
    )
    return found, count + sum(run.num_products - 1 for run in runs)


class _Run(NamedTuple):
    """A probe's run in the complement of the exact vectors: none where they are all."""

    num_products: int
    quadrature: tuple | None = None
    candidates: Any = None
    basis: Tree | None = None


def _run(given, steps, y, image) -> _Run:
    """The run of a probe, of which the first product is known."""
    found, op = given.found, given.op
    steps = min(steps, op.size - len(found.exact_values))
    if steps == 0:
        return _Run(1)
    if steps == 1 and given.groups is None:  # no basis is needed
        numbers, candidates = _one_step(y, image, found.exact_vectors)
        return _Run(1, (*numbers, 1), candidates)
    # In as many rows as the first run has begun with: one program for the steps of both.
    rows = max(steps, bases.size(bases.parts_of(given.run.basis)[0]))
    state, first, length = krylov.begin(y, image, rows, given.key)
    deflated = complement.Deflated(op, found.exact_vectors, found.middle)
    state = krylov.run(deflated, state, steps, complement.project(deflated.vectors, first))
    candidates = missing.seen(state, steps, len(found.values) > found.num_top)
    numbers = (state.alphas, state.betas, state.scale, length, steps)
    return _Run(steps, numbers, candidates, state.basis)


@jax.jit
def _one_step(y, image, vectors):
    """The numbers of a run of one step, without its depth, and its candidates."""
    unit, length = trees.normalized(y)
    image = jax.tree.map(lambda a: a / length.astype(a.dtype), image)
    image = complement.project(vectors, image)
    alpha = trees.vdot(unit, image)
    numbers = (alpha[None], jnp.zeros_like(alpha)[None], jnp.ones_like(alpha), length)
    return numbers, jax.tree.map(lambda a: a[None], (unit, image))


@functools.partial(jax.jit, static_argnums=(2, 4))
def _drawn(key, numbers, static, vectors, keep):
    """Probes less their parts along some vectors, in a list; and as they were, stacked, to keep."""
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    z = probes.block(keys, jax.tree.unflatten(static[1], static[0]))
    y = z if vectors is None else probe_products.project_block(vectors, z)
    return bases.unstack(y), z if keep else None


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
    known = values[None, :] * bases.gram(y, vectors) + last[None, :] * along
    return (found.trace, found.square, bases.gram(images, vectors) - known), found.image


@jax.jit
def _add_product(total, z, rest):
    return jax.tree.map(lambda t, a, b: t + a * b, total, z, rest)


def completed(
    given: Setting, sums: Sums, steps: int, tol: float, budget: int
) -> tuple[Extremes, tuple[bool | None, bool | None], int]:
    """The wanted pairs with those that the probes show to be missing; see `missing.filled`."""
    floor, _ = noise(given, sums)
    seen = len(sums.candidates)

    def another(number):
        numbers = np.asarray([missing.FIRST_KEY + seen + number], np.int32)
        static = probes.static(given.op.structure)
        (y,), _ = _drawn(given.key, numbers, static, given.found.exact_vectors, False)
        found = _run(given, steps, y, loops.product(given.op)(y))
        return found.candidates, found.num_products

    return missing.filled(
        given.op, given.run, given.found, list(sums.candidates), tol, floor, budget, another
    )


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
    norms = {} if exact is None else layers.squared_norms(layout, exact, groups)
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
