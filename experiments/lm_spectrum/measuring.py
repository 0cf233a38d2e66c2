"""The certified spectrum where training ends: of the whole Hessian, and of its blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

import flatjax
from experiments.lm_spectrum.decoder import HEAD, TYPES, block_type
from experiments.lm_spectrum.training import Data, hessian

if TYPE_CHECKING:
    from experiments.lm_spectrum import Config

TOP, BOTTOM = 10, 2
NODES = 1024
"""At most so many nodes of a density are kept."""
SHORT = 20
"""Products of the list of eigenvalues that is too short to be certified."""


def types(tied: bool) -> tuple[str, ...]:
    """The types of blocks of a network."""
    return TYPES if tied else (*TYPES, HEAD)


def spectrum(config: Config, seed: int, params: Any, data: Data) -> dict[str, np.ndarray]:
    """The spectrum of the whole, and of the diagonal block of every type.

    Returns:
      Of the whole `top` and `bottom` eigenvalues, `residuals` relative to them, `converged`, the
      share of both that is certified, `short`, that after `SHORT` products, `trace` and
      `trace_error`, `moment`, the dimension times the first moment of the density. Of every type,
      (types,): `sizes`, `traces`, `trace_errors` and `tops`; `dealt`, the traces if the parameters
      were dealt to the types at random. `nodes` and `weights` of the density of the whole and of
      every type, (1 + types, `NODES`), filled up with weight 0.
    """
    op = hessian(config, params, data.measured)
    whole, of_blocks, deal = jax.random.split(jax.random.key(seed), 3)
    found = flatjax.spectrum(
        op, key=whole, k=TOP, num_bottom=BOTTOM, tol=config.tol, max_steps=config.max_steps,
        trace_rtol=0.01, max_trace_products=config.trace_products, diagonal=True,
    )  # fmt: skip
    short = flatjax.eigsh(op, TOP, key=whole, tol=config.tol, max_products=SHORT, verify=False)
    kinds = types(config.tied)
    blocks = flatjax.blocks(op, by=block_type)
    sizes = np.array([blocks[kind].size for kind in kinds])
    parts = [of_block(config, blocks[kind], of_blocks) for kind in kinds]
    densities = [_padded(one.density) for one in (found, *parts)]
    pairs = found.top, found.bottom
    return {
        "top": np.asarray(found.top.values),
        "bottom": np.asarray(found.bottom.values),
        "residuals": np.concatenate([abs(p.residual_norms / p.values) for p in pairs]),
        "converged": certified(*pairs),
        "short": certified(short),
        "trace": np.asarray(found.trace.value),
        "trace_error": np.asarray(found.trace.standard_error),
        "moment": found.size * np.asarray(found.density.mean_of(lambda x: x)),
        "num_products": np.asarray(found.num_products),
        "sizes": sizes,
        "traces": np.stack([one.trace.value for one in parts]),
        "trace_errors": np.stack([one.trace.standard_error for one in parts]),
        "tops": np.stack([one.top.values[0] for one in parts]),
        "dealt": dealt(found.diagonal, sizes, deal),
        "nodes": np.stack([nodes for nodes, _ in densities]),
        "weights": np.stack([weights for _, weights in densities]),
    }


def of_block(config: Config, block: flatjax.Operator, key: jax.Array) -> Any:
    """The largest and the smallest eigenvalue of a block, its trace and its density."""
    return flatjax.spectrum(
        block, key=key, k=1, num_bottom=1, tol=config.tol, max_steps=config.max_steps,
        num_probes=config.block_probes, trace_rtol=0.03,
        max_trace_products=config.block_products,
    )  # fmt: skip


def certified(*lists: flatjax.Eigenpairs) -> np.ndarray:
    """The share of the pairs whose residual meets the tolerance, in lists not known to lack one."""
    shares = [p.converged & np.asarray(p.complete is not False) for p in lists]
    return np.concatenate(shares).mean()


def dealt(diagonal: Any, sizes: np.ndarray, key: jax.Array) -> np.ndarray:
    """The sums over groups of these sizes, into which the entries are dealt at random."""
    entries = jnp.concatenate([a.ravel() for a in jax.tree.leaves(diagonal)])
    entries = np.asarray(jax.random.permutation(key, entries), np.float64)
    return np.array([part.sum() for part in np.split(entries, np.cumsum(sizes)[:-1])])


def _padded(density: flatjax.SpectralDensity) -> tuple[np.ndarray, np.ndarray]:
    """The nodes and weights of a density, filled up."""
    nodes, weights = (np.asarray(a)[:NODES] for a in (density.atoms, density.weights))
    fill = np.zeros(NODES - len(nodes), nodes.dtype)
    return np.concatenate([nodes, fill]), np.concatenate([weights, fill])
