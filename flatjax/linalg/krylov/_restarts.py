"""A Lanczos run with thick restarts, as the host sees it: frozen rows, and active ones behind.

The basis holds, from row 0 on, the frozen rows, then the active ones: Ritz vectors kept at the last
restart (their projected matrix is diagonal with an arrow) followed by Lanczos vectors. The
projected matrix is solved in float64.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _loops as loops
from flatjax._trees import Tree
from flatjax.linalg.krylov import _certificates as certificates
from flatjax.linalg.krylov import _ritz as ritz
from flatjax.linalg.krylov import _saved as saved
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.krylov._search import Search
from flatjax.linalg.vectors import _arguments as arguments
from flatjax.linalg.vectors import _basis as bases
from flatjax.linalg.vectors import _rotations as rotations
from flatjax.operators._base import Operator


@functools.partial(jax.jit, donate_argnums=0, static_argnames="whole")
def _rotate(
    state: krylov.Krylov,
    coefficients: jax.Array,
    first: jax.Array,
    filled: jax.Array,
    goes_on: jax.Array,
    *,
    whole: bool = False,
) -> krylov.Krylov:
    """Replace the rows from ``first`` on by combinations of all, followed by ``state.vector``.

    Where the run does not go on from that vector, it is zero. The vector is put at row ``filled``;
    columns of coefficients that reach beyond are zero: one compiled program serves every restart.
    Rows beyond are zero too, or they would enter the next Gram-Schmidt pass.
    """
    basis = rotations.rotated(state.basis, coefficients, first, whole=whole)
    vector = jax.tree.map(lambda x: jnp.where(goes_on, x, jnp.zeros_like(x)), state.vector)
    return state._replace(
        basis=bases.set_row(basis, filled, vector),
        vector=vector,
        alphas=jnp.zeros_like(state.alphas),
        betas=jnp.zeros_like(state.betas),
        breakdown=jnp.zeros_like(state.breakdown),
        step=filled,
    )


class Pairs(NamedTuple):
    """Ritz pairs.

    Attributes:
      values: their values.
      residuals: the estimates of their residual norms.
      columns: their coefficients over the rows of the basis.
      swept: which of them a sweep has found.
    """

    values: np.ndarray
    residuals: np.ndarray
    columns: np.ndarray
    swept: np.ndarray

    def at(self, index: np.ndarray) -> "Pairs":
        return Pairs(*(a[..., index] for a in self))

    def and_then(self, others: "Pairs") -> "Pairs":
        return Pairs(*(np.concatenate(both, axis=-1) for both in zip(self, others, strict=True)))


class Run:
    """The host's view of a run: the projected matrix, and the pairs of the frozen rows."""

    def __init__(self, op: Operator, state: krylov.Krylov, w: Tree, k: int, capacity: int):
        self.op, self.state, self.w = op, state, w
        self.product = loops.product(op)
        self.on_device = loops.on_device() and not op.host_driven
        self.capacity = capacity
        # What is kept is also what the rotation needs beside the basis: k + 0.15 m vectors.
        self.spare = max(2, int(0.15 * self.capacity))
        self.most_kept = min(self.capacity, k + self.spare)
        self.matrix = np.zeros((self.capacity, self.capacity))
        self.beta, self.norm = 0.0, 0.0
        self.filled = self.frozen = self.products = 0
        none = np.zeros(0)
        self.frozen_pairs = Pairs(none, none, np.zeros((self.capacity, 0)), np.zeros(0, bool))
        self.search: Search | None = None
        # The start vector over the rows. What a restart drops of it is lost, and is little.
        self.start = np.eye(self.capacity)[0]

    @property
    def rows(self) -> int:
        """The rows that there are by now, of the capacity."""
        return self.state.alphas.shape[0]

    @property
    def active(self) -> np.ndarray:
        """The projected matrix of the active rows."""
        return self.matrix[self.frozen : self.filled, self.frozen : self.filled]

    def kept(self, setting: dict[str, float], *, goes_on: bool) -> saved.EigshState:
        """The run to be kept, a copy of it if this one goes on, with what the host knows of it."""
        host = saved.Host(
            self.matrix, self.start, self.beta, self.norm, products=self.products, **setting
        )
        return saved.eigsh_state(krylov.copied(self.state) if goes_on else self.state, host)

    def resume(self, host: saved.Host) -> None:
        """Take up what the host knew of a run that was kept."""
        self.matrix, self.start, self.beta, self.norm = host[:4]
        self.products, self.filled = int(host.products), int(self.state.step)
        self.product = functools.partial(arguments.first_product, self.op)

    def advance(self, steps: int) -> None:
        first = self.filled
        # Without the first product `run` checks its structure: as long as a short product.
        if self.w is None and not self.on_device:
            self.w = self.product(self.state.vector)
        while self.filled < first + steps:
            if self.filled == self.rows:  # and there may be more
                self.state = krylov.with_room(self.state, self.capacity)
            some = min(first + steps, self.rows) - self.filled
            self.state = krylov.run(self.op, self.state, some, self._taken())
            self.filled += some
        self.products += steps
        alphas, betas, scale = ritz.to_host((self.state.alphas, self.state.betas, self.state.scale))
        for i in range(first, self.filled):
            self.matrix[i, i] = alphas[i] * scale
            if i + 1 < self.capacity:
                self.matrix[i, i + 1] = self.matrix[i + 1, i] = betas[i] * scale
        self.beta = betas[self.filled - 1] * scale

    def combined(self, columns: np.ndarray) -> Tree:
        """Combinations of the rows, one for each column."""
        c = columns[: self.rows].astype(self.state.alphas.dtype)
        whole = rotations.is_shared(self.state.basis)
        # Of a basis in parts the sum over them would be held beside that of the next part.
        (found,) = rotations.compiled_combine_in_parts(
            self.state.basis, c, (c.shape[1],), whole=whole
        )
        return found

    def forget(self) -> None:
        """Hold no vector any more."""
        self.state = self.state._replace(basis=None, vector=None)

    def _taken(self) -> Tree:
        """The product of the next step, which is not held here any more."""
        w, self.w = self.w, None
        return w

    def solve(self) -> Pairs:
        """All pairs, the frozen ones first."""
        values, inner = ritz.eigh(self.active)
        self.norm = np.maximum(self.norm, np.abs(values).max())  # NaN stays
        columns = np.zeros((self.capacity, len(values)))
        columns[self.frozen : self.filled] = inner
        swept = np.full(len(values), self.search is not None)
        active = Pairs(values, np.abs(self.beta * inner[-1]), columns, swept)
        self.pairs = self.frozen_pairs.and_then(active)
        return self.pairs

    def departure(self, index: np.ndarray) -> float:
        """What a product makes of these pairs of the first run, less what the run says of it."""
        values, _, columns, _ = self.pairs.at(index)
        scale = float(self.state.scale)
        weights = certificates.mixture(len(index))
        self.products += 1
        found = certificates.departure(
            self.op,
            self.state.basis,
            (columns @ weights)[: self.rows],
            (columns @ (weights * values) / scale)[: self.rows],
            self.beta * (columns[self.filled - 1] @ weights) / scale,
            self.state.vector,
            scale,
        )
        return float(found)

    def _rotate(self, columns: np.ndarray, first: int, *, goes_on: bool) -> None:
        """Put these combinations of rows into the rows from ``first`` on."""
        self.filled = first + columns.shape[1]
        most = min(self.most_kept, self.rows)
        padded = np.pad(columns, ((0, 0), (0, most - columns.shape[1])))
        self.state = _rotate(
            self.state,
            padded[: self.rows].astype(self.state.alphas.dtype),
            np.int32(first),
            np.int32(self.filled),
            np.bool_(goes_on),
            whole=rotations.is_shared(self.state.basis),
        )
        self.matrix[:] = 0
        self.start = np.eye(self.capacity, self.filled)[:, first:] @ (columns.T @ self.start)

    def restart(self, keep: np.ndarray) -> None:
        """Keep the frozen rows, these active pairs, and the residual vector."""
        kept = self.pairs.at(keep)
        if self.search is not None:
            inner = kept.columns[self.frozen : self.filled]
            self.search.restarted(self.active, self.beta, inner)
        # Written in one slice, which must end inside of the buffer: with rows before, if need be.
        first = min(self.frozen, self.capacity - self.most_kept)
        same = np.eye(self.capacity)[:, first : self.frozen]
        arrow = self.beta * kept.columns[self.filled - 1]
        self._rotate(np.concatenate([same, kept.columns], axis=1), first, goes_on=True)
        i = np.arange(self.frozen, self.filled)
        self.matrix[i, i] = kept.values
        if self.filled < self.capacity:
            self.matrix[self.filled, i] = self.matrix[i, self.filled] = arrow

    def sweep(self, search: Search, index: np.ndarray | None) -> None:
        """Freeze all rows, or these pairs alone, and go on from a random vector."""
        self.frozen_pairs = self.pairs
        if index is not None:
            self._rotate(self.pairs.columns[:, index], 0, goes_on=False)
            alone = np.eye(self.capacity, len(index))
            self.frozen_pairs = self.pairs.at(index)._replace(columns=alone)
        self.frozen, self.search = self.filled, search
        # The next vector of the run may stand where the random one is to be, and is projected out
        # of it: nothing that was missed has a part in either.
        self.state = krylov.inject(self.state, np.int32(self.filled))
