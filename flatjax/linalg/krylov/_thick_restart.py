"""Thick-restart Lanczos, driven from the host, and the search for what it has missed.

The first run is active alone, until the wanted pairs have converged and, by what a random start
vector weighs, none was skipped (`skipped`) and none that belongs into the list can have stayed
hidden (`Shown`). Its rows are then frozen, and a sweep from a random
vector orthogonal to all of them looks for what was missed (`Search`); what it finds is frozen too,
and another sweep follows.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from flatjax._watching import SILENT, Watch
from flatjax.linalg.krylov import _certificates as certificates
from flatjax.linalg.krylov import _ritz as ritz
from flatjax.linalg.krylov import _saved as saved
from flatjax.linalg.krylov import _step as krylov
from flatjax.linalg.krylov._restarts import Run
from flatjax.linalg.krylov._search import Search, Shown, hidden, least_steps, skipped, thresholds

# Taken for the rate before there is one: two powers of ten per step.
_FASTEST = 2 * math.log(10)
# Chebyshev's bound is for the complement of the wanted pairs; in that of all rows it is less.
_OF_CHEBYSHEV = 0.6
# Beside a product and a step of so many numbers (8 ms to read 32 rows) a look, of .2 ms, is free:
# each step has one. At the pace of shorter vectors a GPT took 18 products before the last, not 15.
_LONG = 1 << 18
_DOZEN = 12  # products that may follow until no pair can have stayed hidden, after few as well


class _Pace:
    """How many steps to take before the next look at the projected problem.

    A look costs what a short product does. Half of the steps that the last rate says are left end
    before the last one, so that no step is taken in vain.

    Attributes:
      steps: the steps to take.
      last: how far it was at the last look, or ``None``.
    """

    def __init__(self, steps: int, fixed: bool, size: int):
        self.steps, self._fixed = steps, fixed
        self._most = krylov.CHECK_EVERY if size <= _LONG else 1
        self.last: float | None = None

    def look(self, left: float, taken: int) -> None:
        """Take in how far it still is, a logarithm, after ``taken`` more steps."""
        if self._fixed:
            return
        rate = _FASTEST
        if self.last is not None and math.isfinite(self.last - left):
            rate = max((self.last - left) / taken, _FASTEST / 20)
        self.last = left
        half = int(left / rate / 2) if math.isfinite(left) else 1
        self.steps = max(1, min(self._most, half))

    def resume(self, host: saved.Host, same: bool) -> None:
        """Go on as it was; where something else is wanted now, look at once."""
        if not self._fixed or not same:
            self.steps = int(host.steps if same else host.taken)
            self.last = host.last if same and not math.isnan(host.last) else None


def solve(
    run: Run,
    k: int,
    which: str,
    tol: float,
    budget: int,
    verify: bool,
    given: bool = False,
    watch: Watch = SILENT,
    resume: tuple[saved.Host, int, float] | None = None,
    keep_state: bool = False,
    refine: jax.Array | None = None,
) -> ritz.RitzPairs:
    """The ``k`` wanted Ritz pairs and their certificate.

    From a fresh run, whose capacity is the memory bound, and its first product. The ``budget`` of
    products has one for the certificate. A start that was ``given`` may by a symmetry be blind to
    any value, which a random one is not. Stopped by its ``watch``, the run ends as it does where
    the products are spent.

    Where vectors are rounded to less than the working dtype, ``refine`` is a key for the
    certificate, from the vectors themselves, which takes ``k + 1`` products.

    With ``resume``, what the host knew of the run, the products spent by then and their noise, it
    goes on with the very next step. Only the run before its first sweep is kept (``keep_state``): a
    sweep is taken anew, from the same random vector, as what it has frozen improves no more.
    """
    size, dtype = run.op.size, run.state.alphas.dtype
    first = krylov.CHECK_EVERY if run.on_device else k + 1  # there every number is a program
    pace, looked, before, kept = _Pace(first, run.on_device, size), 0, 0, None
    converged, shown = math.nan, None  # the products until all pairs had; of a random start
    if resume is not None:
        host, before = resume[0], resume[1] - int(resume[0].products)
        run.resume(host)
        other = host.which != ritz.WHICH.index(which)
        pace.resume(host, same=not other and (host.k, host.tol) == (k, tol))
        looked = run.products - int(host.taken)
        if not other and (host.k, host.tol) == (k, tol):
            converged = host.converged
        # A restart has dropped what the start vector weighs on pairs that were not wanted then.
        given = given or bool(host.given) or (host.restarted and (other or k > host.k))
    budget -= before
    limit, alone = budget - (1 if refine is None else k + 1), 0
    held, sweeps, noise, complete = np.zeros(0, int), 0, None, None
    while True:
        room = min(run.capacity, size) - run.filled
        due, least = pace.steps - (run.products - looked), int(run.filled < k)
        steps = min(due, room, max(limit - run.products, least))
        # A run that goes on may be due for a look before any step.
        for first_step, after in watch.chunks(steps, whole=run.on_device) if steps > 0 else ():
            run.advance(after - first_step)
            run.solve()
            if watch.wants():
                _report(watch, run, k, which, tol, limit)
        values, residuals, columns, _ = run.pairs if steps > 0 else run.solve()
        limit = limit if watch.stopped is None else min(limit, run.products)
        if not np.isfinite(run.norm):
            return _not_finite(run, k, before)
        small = ritz.rounding(run.norm, dtype)
        bound = np.maximum(tol * np.abs(values), small)
        index = ritz.best(values, k, which)
        if run.filled >= size:
            complete = True
            break
        enough, lacking, waits = len(index) == k, False, False
        done = enough and bool((residuals[index] <= bound[index]).all())
        if run.search is None:
            left = _log_ratio(residuals[index], bound[index]) if enough else math.inf
            if done and verify and not given:
                weights = size * np.square(run.start @ columns)
                single = residuals <= np.maximum(bound / 10, small)
                lacking = skipped(values, np.where(single, 0, weights), bound, k, which)
                shown = Shown(values, run.beta * columns[run.filled - 1], run.start @ columns)
                lacks = shown.lacking(values[index], bound[index], which, size)
                more = hidden(lacks, np.delete(values, index))
                converged = run.products if math.isnan(converged) else converged
                # In a dense spectrum one may stay hidden for many steps: then nobody looks.
                waits = 0 < more <= converged + max(converged / 2, _DOZEN) - run.products
            begins = done and not lacking and not waits
        else:
            left = run.search.left(run.active, run.beta, values[run.frozen :], small)
            begins = done and _improves(values, residuals, index, held, run.frozen, small)
            if not begins and (left <= 0 or (run.products >= limit and left < math.inf)):
                # Nothing stands beyond what is held: what has not converged is not wanted.
                settled = np.flatnonzero(
                    (residuals <= bound) | (np.arange(len(values)) < run.frozen)
                )
                index = settled[ritz.best(values[settled], k, which)]
                # Of what does not reach the thresholds the first run says that it is not there.
                lacks = shown.lacking(values[index], bound[index], which, size) if shown else []
                beyond = {1: run.search.upper, -1: -run.search.lower}
                sure = all(lack <= 0 for sign, point, lack in lacks if point < beyond[sign])
                complete = True if left <= 0 and sure else None
                break
        if run.products >= limit and enough:
            complete = False if lacking else None
            break
        if begins:
            ends = thresholds(values[index], which, bound[index], given)
            predicted = _OF_CHEBYSHEV * least_steps(*ends, np.delete(values, index), size)
            alone = run.products if run.search is None else alone
            # A sweep takes at most as many products as the first run, or 8 for each pair, and is
            # not begun where it would take more; what it finds costs one each.
            most = max(alone, 8 * (k + 1))
            last = min(budget - k, run.products + most)
            nothing = not verify or np.isinf(ends).all() or predicted > most
            if nothing or sweeps > k or run.products + 1 >= last:
                break
            if run.filled + 1 < size:
                if keep_state and run.search is None:
                    setting = _setting(run, pace, looked, converged, given, k, which, tol)
                    kept = run.kept(setting, goes_on=True)
                noise = _noise(run, index, resume) if noise is None else noise
                keep = None
                if run.filled + max(predicted, 4) + 2 > run.capacity:
                    count = max(k, min(run.most_kept, run.capacity // 2))
                    keep = ritz.best(values, min(count, len(values)), which)
                held = index if keep is None else np.flatnonzero(np.isin(keep, index))
                run.sweep(Search(*ends, size), keep)
                pace = _Pace(first if run.on_device else 2, run.on_device, size)
                limit, sweeps, looked = last, sweeps + 1, run.products
                continue
        pace.look(left, run.products - looked)
        looked = run.products
        if run.filled == run.capacity:
            run.restart(_keep(run, k, which))
    if keep_state and kept is None:
        setting = _setting(run, pace, looked, converged, given, k, which, tol)
        kept = run.kept(setting, goes_on=False)
    if refine is not None:
        return _refined(run, index, refine)
    noise = _noise(run, index, resume) if noise is None else noise
    found = _certified(run, ritz.descending(values, index), noise, complete)
    spent = before + found.num_products
    if kept is not None:
        floor = jnp.asarray(_floor(run, noise), kept.noise_floor.dtype)
        kept = kept._replace(num_products=jnp.int32(spent), noise_floor=floor)
    return found._replace(num_products=spent, state=kept)


def _noise(run: Run, index: np.ndarray, resume: tuple | None) -> float:
    """The noise of a product; it also shows a run that goes on with another operator."""
    noise = run.departure(index)
    if resume is not None:
        saved.check_operator(_floor(run, noise), resume[2])
    return noise


def _floor(run: Run, noise: float) -> float:
    """What `certificates.noise_floor` makes of it."""
    return max(2 * noise, ritz.rounding(run.norm, run.state.alphas.dtype) / 2)


def _setting(
    run: Run,
    pace: _Pace,
    looked: int,
    converged: float,
    given: bool,
    k: int,
    which: str,
    tol: float,
):
    """What else the host must know to go on as if nothing had been in between."""
    return {
        "taken": run.products - looked,
        "steps": pace.steps,
        "last": math.nan if pace.last is None else pace.last,
        "converged": converged,
        "given": given,
        "k": k,
        "which": ritz.WHICH.index(which),
        "tol": tol,
    }


def _report(watch: Watch, run: Run, k: int, which: str, tol: float, limit: int) -> None:
    """Tell what the pairs are now."""
    if not np.isfinite(run.norm):
        return
    values, residuals = run.pairs.values, run.pairs.residuals
    index = ritz.descending(values, ritz.best(values, k, which))
    small = ritz.rounding(run.norm, run.state.alphas.dtype)
    bound = np.maximum(tol * np.abs(values[index]), small)
    # A search has no residual that falls: there are the products that it may take.
    distance = _log_ratio(residuals[index], bound) if run.search is None else None
    watch.report(
        run.products,
        values[index],
        residuals[index],
        distance=distance,
        left=None if run.search is None else float(limit - run.products),
        ready=len(index) == k,
    )


def _log_ratio(residuals: np.ndarray, bound: np.ndarray) -> float:
    """How far the worst residual is from its bound."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.nan_to_num(np.log(residuals / bound), nan=-np.inf).max())


def _certified(run: Run, index: np.ndarray, noise: float, complete: bool | None) -> ritz.RitzPairs:
    """The pairs with their residuals; those that a sweep has found cost a product each."""
    (values, residuals, columns, swept), dtype = run.pairs.at(index), run.state.alphas.dtype
    residuals, vectors = np.hypot(residuals, noise), run.combined(columns)
    run.forget()
    for i in np.flatnonzero(swept):
        # It is coupled to the first run's rows by what that run has left of its residuals.
        vector = ritz.row(vectors, np.int32(i))
        residuals[i] = certificates.residual(run.op, np.asarray(values[i], dtype), vector)
        run.products += 1
    return ritz.RitzPairs(values, vectors, residuals, run.norm, noise, run.products, complete)


def _refined(run: Run, index: np.ndarray, key: jax.Array) -> ritz.RitzPairs:
    """The pairs of a run whose vectors are rounded, from their vectors alone."""
    vectors = run.combined(run.pairs.columns[:, index])
    run.forget()
    values, vectors, residuals, noise = certificates.refined(run.op, vectors, key)
    norm = np.maximum(run.norm, np.abs(values).max())
    spent = run.products + len(index) + 1
    return ritz.RitzPairs(values, vectors, residuals, norm, noise, spent)


def _not_finite(run: Run, k: int, before: int) -> ritz.RitzPairs:
    """NaN in the place of every pair, after a product that was not finite."""
    nothing = np.full(k, np.nan)
    vectors = run.combined(np.full((run.capacity, k), np.nan))
    return ritz.RitzPairs(nothing, vectors, nothing, np.nan, np.nan, before + run.products)


def _keep(run: Run, k: int, which: str) -> np.ndarray:
    """The active Ritz pairs to keep at a restart: the wanted ones and a few beyond."""
    values = run.pairs.values[run.frozen :]
    active = len(values)
    count = min(run.spare, active // 2) if run.frozen else min(k + run.spare, (active + k) // 2)
    return run.frozen + np.sort(ritz.wanted(values, max(1, min(count, active - 1)), which))


def _improves(values, residuals, index, held, frozen: int, small: float) -> bool:
    """Whether a wanted pair of the active rows is better than the held one it displaces."""
    fresh = index[index >= frozen]
    displaced = np.setdiff1d(held, index)
    if not len(fresh) or not len(displaced):
        return False
    # Equal within their residuals they are copies of one eigenvalue, and nothing was missed.
    margin = np.maximum(residuals[fresh].max(), residuals[displaced].max()) + small
    apart = np.abs(values[fresh][:, None] - values[displaced][None, :])
    return bool((apart.max(axis=1) > margin).any())
