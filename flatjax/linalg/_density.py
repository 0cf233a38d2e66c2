"""The spectral density by stochastic Lanczos quadrature, deflated by the pairs that converge."""

from typing import Any

import jax
import numpy as np

from flatjax import _watching as watching
from flatjax._trees import Tree
from flatjax.linalg.krylov import _extremes as extremes
from flatjax.linalg.probing._gauss import quadratures
from flatjax.linalg.probing._quadrature import SpectralDensity, density_from_quadrature
from flatjax.operators._base import as_operator


def spectral_density(
    op: Any,
    *,
    key: jax.Array,
    num_probes: int = 4,
    num_steps: int = 40,
    deflation_steps: int | None = None,
    tol: float = 1e-3,
    reorthogonalize: str = "full",
    scale: str = "linear",
    num_points: int = 1024,
    linear_width: float | None = None,
    sigma: float | None = None,
    progress: bool = False,
    callback: watching.Callback | None = None,
    max_seconds: float | None = None,
    on_interrupt: str = "raise",
    structure: Tree = None,
) -> SpectralDensity:
    r"""The density of the eigenvalues, with its distribution function and error bands.

    A first Lanczos run finds the extreme pairs; those that converge become exact atoms of weight
    1/n. Each probe then starts a run in their complement, whose Gauss quadrature gives the mass in
    between; the first run's own start vector is one more such probe, and costs no product.
    Deflation and depth pay more than probes do: a few long runs beat many short ones. The smoothed
    density depends on a bandwidth, the distribution function does not. Every run reorthogonalises
    in full: no copies of an eigenvalue appear.

    The bands are those of the probes: noise and asymmetry of the products are not looked for. Where
    products may differ from one time to the next (a loader that draws, low precision) ask
    [`check_deterministic`][] or the noise floor of [`eigsh`][] or [`spectrum`][].

    With ``reorthogonalize="none"`` a probe's run holds three vectors (and a temporary one) in place
    of ``num_steps``. Copies of outliers then appear, which share their weights, and take nodes from
    the bulk: at the same cost the result is farther from the truth. By default there is no first
    run either; a short one, ``deflation_steps=20``, for which that many vectors are held, takes the
    outliers out. The bands are then at least as wide as the law of random probes says, and count
    twice the change between three quarters of the steps and all of them.

    Costs ``deflation_steps + num_probes * num_steps`` products (where the dimension is no more than
    that, one for every dimension, and all atoms are exact) and as many vectors of memory as the
    longest run has steps, twice while both are held. Driven from the host: not for use inside
    ``jit``.

    Args:
      op: a flatjax operator, or a traceable callable ``v -> A v``, symmetric.
      key: a PRNG key.
      num_probes: the probes; their spread makes the band.
      num_steps: Lanczos steps per probe.
      deflation_steps: steps of the first run; default ``2 * num_steps``, or 0, for none, with
        ``reorthogonalize="none"``.
      tol: the relative residual at which a pair counts as converged; above 1 % it is 1 %.
      reorthogonalize: ``"full"`` or ``"none"``, the runs of the probes; the first run always is.
      scale: ``"linear"``, or ``"log"`` for a grid that is logarithmic on both sides of zero.
      num_points: the size of the grid.
      linear_width: where the logarithmic grid becomes linear; default 1e-4 of the largest node.
      sigma: one width for all atoms; default: from the spacing of the nodes.
      progress: whether to show a bar on standard error (by rich, if it is installed; lines where
        that is no terminal): products and time left.
      callback: ``callback(step, values, residual_norms)`` after every few products, of slow ones
        after each: the products so far, the largest Ritz value of the run in progress (the first
        one, then that of every probe) and the estimate of its residual norm, both NumPy, ``(1,)``.
        If it returns ``True``, it stops.
      max_seconds: stop after so many seconds.
      on_interrupt: ``"return"``: the first Ctrl-C stops after the product in progress, the second
        raises; ``"raise"``: the first raises. A stop, of whatever kind, cuts the first run short,
        drops the probe in progress, and waits for four steps of one probe (interrupted before,
        where the dimension is small, it raises); `SpectralDensity.stopped` has the reason.
      structure: for a callable, a tree of arrays or ``jax.ShapeDtypeStruct`` like its vectors.

    Returns:
      A [`SpectralDensity`][] of JAX arrays in the working dtype.

    Raises:
      TypeError: if ``op`` is not callable or ``key`` is no key, and inside ``jit``.
      ValueError: on numbers out of range, or a callable without structure.

    Example:
      >>> import jax, jax.numpy as jnp, flatjax
      >>> d = jnp.concatenate([jnp.array([9.0, 5.0]), jnp.linspace(-0.1, 1.0, 98)])
      >>> density = flatjax.spectral_density(lambda v: d * v, key=jax.random.key(0), structure=d)
      >>> round(float(density.weights.sum()), 3)
      1.0

    References:
      Lin, Saad and Yang, "Approximating spectral densities of large matrices", SIAM Review 2016;
      Ghorbani, Krishnan and Xiao, arXiv:1901.10159; Papyan, arXiv:1811.07062.
    """
    op = as_operator(op, structure)
    watch = watching.watch(
        "spectral_density", progress, callback, max_seconds, on_interrupt, traced=(op, key)
    )  # fmt: skip
    with watch:
        found = quadratures(
            "spectral_density", op, key, num_probes, num_steps, deflation_steps, tol, watch,
            reorthogonalize=reorthogonalize,
        )  # fmt: skip
    n, count = op.size, found.exact.shape[0]
    left = (n - count) / n
    rows = extremes.with_start(found.start, found.nodes, found.weights, left)
    coarser = None
    if reorthogonalize == "none" and left:
        nodes, weights = found.coarser()
        coarser = nodes, left * weights
    density = density_from_quadrature(
        found.exact,
        np.full(count, 1 / n),
        *rows,
        dtype=found.dtype,
        num_points=num_points,
        scale=scale,
        linear_width=linear_width,
        sigma=sigma,
        coarser=coarser,
        size=n,
    )
    return watching.marked(density, watch)
