"""What the probes of a spectrum collect, on top of its Lanczos run."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax.linalg.krylov import _extremes as lanczos_state
from flatjax.linalg.krylov._certificates import underflow
from flatjax.linalg.krylov._ritz import masses
from flatjax.linalg.probing import _complement as complement
from flatjax.linalg.probing import _missing as missing
from flatjax.linalg.probing import _probe_products as sampling
from flatjax.linalg.probing._estimate import (
    DEFAULT_TOL,
    Estimate,
    cast,
    from_samples,
    resolved,
)
from flatjax.linalg.probing._gauss import run_probe, solved
from flatjax.linalg.probing._quadrature import SpectralDensity, density_from_quadrature
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _probes as probes
from flatjax.operators._base import Operator


class LayerSpectrum(NamedTuple):
    """The share of one group of params in the spectrum of the whole.

    Attributes:
      size: the number of params of the group.
      trace: the trace of its diagonal block.
      density: the local density ``tr(P f(A) P) / size`` for the projector P on the group: how much
        of the eigenvectors lies in the group. Not the spectrum of the diagonal block. Quadrature
        weights may be negative by chance.
    """

    size: int
    trace: Estimate
    density: SpectralDensity


class Collected:
    """What the probes have said so far."""

    def __init__(self, op: Operator, state, ritz, key, groups, diagonal):
        self.op, self.ritz, self.groups = op, ritz, groups
        self.key, self.run_key = jax.random.split(key)  # of the probes, and of their runs
        # The basis stays where it is: as an output of a program it would be copied.
        run, sums = _known(state._replace(basis=None))
        self.run = run._replace(basis=state.basis)
        self.known_trace, self.known_square, self.unit = (float(a) for a in jax.device_get(sums))
        self.product = loops.product(op)
        self.deflated = complement.Deflated(op, ritz.deflating(state))
        self.relation = ritz.relation
        self.count = 0
        self.numbers: list = []  # of blocks of probes
        self.fetched: list = []  # the same on the host, probe by probe
        self.quadratures: list = []
        self.candidates: list = []  # for what the run may have missed
        self.blocks: list = []
        self.sum_diagonal = trees.zeros(op.structure) if diagonal else None

    def probe(self, num_density: int, steps: int, tol: float | None, most: int) -> int:
        """Draw probes and collect what they say.

        Args:
          num_density: how many of them, the first, start a quadrature.
          steps: the Lanczos steps of each of these.
          tol: go on with one product a probe until the trace is known to this relative standard
            error; ``None``: do not.
          most: the most probes that go on.

        Returns:
          The products spent.
        """
        limit = num_density + (0 if tol is None else most)
        # One size of block for all probes: one set of programs.
        together = min(sampling.together(self.op.size), limit)
        spent = 0
        while self.count < limit:
            enough = self.count >= max(num_density, sampling.LEAST)
            if enough and bool(self.trace(0, tol).converged):
                break
            first, count = self.count, min(together, limit - self.count)
            for i, (z, y, image, rest) in enumerate(self._block(together, count), first):
                basis, products = None, 1
                if i < num_density:
                    basis, products = self._quadrature(i, steps, y, image)
                self._add_block(basis, z, rest)
                spent += products
        return spent

    def _block(self, size, count):
        """``count`` probes z, z projected, its product, and the part of that in the complement.

        Drawing, projections and moments pass over the bases once for all of them.
        """
        indices = np.arange(self.count, self.count + size, dtype=np.int32)
        z = probes.block(sampling.keys(self.key, indices), self.op.structure)
        within = self.deflated.vectors
        y = sampling.unstack(z if within is None else sampling.project_block(within, z))
        images = sampling.products(self.product, y, count)
        numbers, rest = _numbers(self.run, y, images, self.ritz.vectors, self.relation)
        self.numbers.append((numbers, count))
        self.count += count
        if self.groups is None and self.sum_diagonal is None:
            return [(None, *pair, None) for pair in zip(y, images, strict=True)][:count]
        z, rest = sampling.unstack(z), sampling.unstack(complement.rest(self.run, rest))
        if self.sum_diagonal is not None:
            for pair in list(zip(z, rest, strict=True))[:count]:
                self.sum_diagonal = _add_product(self.sum_diagonal, *pair)
        return list(zip(z, y, images, rest, strict=True))[:count]

    def _quadrature(self, i, steps, y, image):
        """The run of a probe: its basis, if anything is left to run in, and its products."""
        basis, spent = None, 1
        if (room := self.op.size - self.ritz.num_deflated) > 0:
            steps = min(steps, room)
            length, (unit, first) = lanczos_state.normalized((y, image))
            first = complement.project(self.deflated.vectors, first)
            if steps == 1 and self.groups is None:  # its product is known, and no basis is needed
                self.quadratures.append((*_one_step(unit, first), length, steps))
                self.candidates.append(_single(unit, first))
                return None, 1
            key = jax.random.fold_in(self.run_key, i)
            start, spent = run_probe(self.deflated, unit, steps, key, first)
            basis = start.basis
            self.candidates.append(missing.extremes(start, steps, self.ritz.num_bottom > 0))
            self.quadratures.append((start.alphas, start.betas, start.scale, length, steps))
        return basis, spent

    def fill(self, tol: float, budget: int) -> tuple[tuple, int]:
        """Complete the wanted pairs by what the probes have seen; see `missing.filled`."""
        floor, _ = self.noise()
        found = self.candidates
        steps = self.quadratures[0][-1] if self.quadratures else 0

        def another():
            number = missing.FIRST_KEY + len(found)
            z = probes.probe(jax.random.fold_in(self.key, number), self.op.structure)
            y = complement.project(self.deflated.vectors, z)
            _, (unit,) = lanczos_state.normalized((y,))
            key = jax.random.fold_in(self.run_key, number)
            start, spent = run_probe(self.deflated, unit, steps, key)
            found.append(missing.extremes(start, steps, self.ritz.num_bottom > 0))
            return found[-1], spent

        return missing.filled(self.op, self.run, self.ritz, found, tol, floor, budget, another)

    def _add_block(self, basis, z, rest):
        if self.groups is not None:
            basis = jax.tree.map(lambda a: a[None], z) if basis is None else basis
            self.blocks.append(complement.block_moments(self.op, basis, z, rest, self.groups))

    def _fetched(self):
        """Traces, squares and gaps of all probes, in float64 on the host."""
        for block, count in jax.device_get(self.numbers):
            self.fetched += list(zip(*block, strict=True))[:count]
        self.numbers = []
        return (np.stack([np.asarray(r[j], np.float64) for r in self.fetched]) for j in range(3))

    def trace(self, spent, tol):
        """The trace, deflated by the whole run."""
        traces, _, _ = self._fetched()
        found = self._estimate(traces, self.known_trace, spent, tol)
        return resolved(found, found.value, self.op.size)

    def _estimate(self, samples, exact, spent, tol):
        exact = float(exact)
        size = abs(exact) + np.abs(samples).mean()
        return from_samples(samples, exact, size, spent, tol, self.run.alphas.dtype)

    def frobenius_norm(self, spent):
        """The Frobenius norm by the delta method from the estimate of its square."""
        _, squares, _ = self._fetched()
        square = self._estimate(squares, self.known_square, spent, None)
        dtype, unit = square.value.dtype, self.unit
        numbers = (square.value, square.standard_error, square.interval)
        value, error, ends = (np.asarray(a, np.float64) for a in numbers)
        value = np.sqrt(np.maximum(value, 0))
        error = error / (2 * value) if value > 0 else error
        ends = np.sqrt(np.maximum(ends, 0))
        found = Estimate(
            value=cast(unit * value, dtype),
            standard_error=cast(unit * error, dtype),
            interval=cast(unit * ends, dtype),
            num_products=spent,
            converged=jnp.asarray(error <= DEFAULT_TOL * value),
        )
        return resolved(found, self.op.size**0.5 * found.value, self.op.size)

    def noise(self):
        """The noise floor, and the noise of the product with every Ritz vector."""
        _, _, gaps = self._fetched()
        rounding = 8 * float(jnp.finfo(self.run.alphas.dtype).eps) * self.ritz.norm
        noise = np.sqrt(np.square(gaps).mean(axis=0))
        floor = max(2 * float(np.sqrt(np.square(gaps).mean())), rounding)
        # Of so small products underflow has left nothing that is known.
        lost = 0 < self.ritz.norm < underflow(self.op.size, self.run.alphas.dtype)
        return np.nan if lost else floor, noise

    def density(self, scale, num_points):
        """The density of the whole."""
        n, count = self.op.size, self.ritz.num_deflated
        nodes, s, _ = solved(self.quadratures)
        weights = masses(s, self.run.alphas.dtype)
        rows = lanczos_state.with_start(self.ritz.start, nodes, weights, (n - count) / n)
        return self._density(np.full(count, 1 / n), *rows, scale, num_points)

    def _density(self, exact_weights, nodes, weights, scale, num_points):
        return density_from_quadrature(
            self.ritz.deflated_values,
            exact_weights,
            nodes,
            weights,
            scale=scale,
            num_points=num_points,
        )

    def diagonal(self):
        """The diagonal: what the run knows, and the mean over the probes of the rest."""
        if self.sum_diagonal is None:
            return None
        return _diagonal(self.run, self.sum_diagonal, jnp.float32(1 / self.count))

    def layers(self, spent, tol, scale, num_points):
        """Trace and local density of every group."""
        if self.groups is None:
            return None
        known = jax.device_get(complement.block_known(self.op, self.run, self.groups))
        shares = jax.device_get(self.ritz.shares(self.op, self.groups))
        found = jax.device_get(self.blocks)
        sizes: dict = {}
        for name, leaf in zip(
            self.groups, jax.tree.leaves(getattr(self.op, "op", self.op).structure), strict=True
        ):
            sizes[name] = sizes.get(name, 0) + leaf.size
        nodes, s, lengths = solved(self.quadratures)
        out, (floor, _) = {}, self.noise()
        for name, size in sizes.items():
            samples = np.asarray([quad[name] for quad, _ in found], np.float64)
            trace = self._estimate(samples, known[name], spent, tol)
            trace = trace._replace(converged=trace.converged & ~jnp.isnan(floor))
            steps = s.shape[-1]
            inner = [np.asarray(rows[name], np.float64)[:steps] for _, rows in found[: len(s)]]
            products = np.einsum("pj,pjk->pk", np.stack(inner), s)
            weights = lengths[:, None] * s[:, 0] * products / size
            exact = np.asarray(shares[name], np.float64) / size
            density = self._density(exact, nodes, weights, scale, num_points)
            out[name] = LayerSpectrum(size, trace, density)
        return out


@jax.jit
def _known(state):
    run = complement.known(state)
    return run, (run.trace, run.within(run.unit).squares, run.unit)


@jax.jit
def _numbers(run, y, images, vectors, relation):
    """The moments of probes, and ``v . A y - y . A v`` for every Ritz vector v.

    The products ``A v`` are those of the Lanczos relation, a multiple of v and one of the residual.
    """
    y, images = bases.stack(y), bases.stack(images)
    found = complement.moments(run, y, images, run.unit)
    values, last = relation
    along = bases.gram(y, jax.tree.map(lambda a: a[None], run.residual))
    known = values[None, :] * bases.gram(y, vectors) + last[None, :] * along
    return (found.trace, found.square, bases.gram(images, vectors) - known), found.image


_single = jax.jit(lambda *vectors: tuple(jax.tree.map(lambda a: a[None], v) for v in vectors))


@jax.jit
def _one_step(unit, image):
    """Diagonal, off-diagonal and scale of a run of one step, from its product."""
    alpha = trees.vdot(unit, image)
    return alpha[None], jnp.zeros_like(alpha)[None], jnp.ones_like(alpha)


@jax.jit
def _add_product(total, z, rest):
    return jax.tree.map(lambda t, a, b: t + a * b, total, z, rest)


@jax.jit
def _diagonal(run, total, factor):
    return trees.axpy(factor, total, complement.known_diagonal(run))
