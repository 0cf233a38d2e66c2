"""A dense operator on trees of three leaves, a Lanczos run of it, and the truth."""

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _trees as trees
from flatjax.linalg.krylov import _relations as relations
from flatjax.linalg.krylov import _step as krylov
from flatjax.operators._base import as_operator

N, STEPS, PROBES = 40, 8, 3
GROUPS = ("first", "second", "first")
SIZES = (15, 20, 5)


def cut(rows, dtype):
    """Rows of N numbers as a tree of three leaves with their leading axes."""
    parts = np.split(rows, np.cumsum(SIZES)[:-1], axis=-1)
    return {str(i): jnp.asarray(part, dtype) for i, part in enumerate(parts)}


def glued(tree):
    return np.concatenate([np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)], axis=-1)


def product(matrix, v):
    flat = jnp.matmul(matrix, jnp.concatenate(jax.tree.leaves(v)), precision="highest")
    parts = jnp.split(flat, np.cumsum(SIZES)[:-1])
    return dict(zip(v, parts, strict=True))


def make(dtype):
    """A dense A, a run of 8 steps in buffers of 12, probes and their products; the truth."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((N, N))
    a = np.asarray(jnp.asarray(a + a.T, dtype), np.float64)
    op = as_operator(jax.tree_util.Partial(product, jnp.asarray(a, dtype)), cut(a[0], dtype))
    start = cut(rng.standard_normal(N), dtype)
    state = krylov.start(trees.normalized(start)[0], STEPS + 4, jax.random.key(0))
    state = krylov.run(op, state, STEPS)
    run = relations.of_state(state)
    z = np.asarray(jnp.asarray(rng.standard_normal((PROBES, N)), dtype), np.float64)
    q = glued(run.basis)[:STEPS]
    p = np.eye(N) - q.T @ q
    # A few units of rounding of sums over 8 and 40 terms, relative to the norm of A.
    slack = 20 * float(jnp.finfo(dtype).eps) * np.linalg.norm(a, 2)
    return run, a, q, p, z, dtype, slack
