"""A model at one point, asked how much its outputs change when its leaves do."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _trees as trees
from flatjax._trees import Tree
from flatjax.operators._arguments import as_arrays
from flatjax.operators._callables import follow
from flatjax.symmetry._factors import Factors, named_leaves, permuted

_DRAWS = 4


class Network:
    """A model near some params, its program compiled once; see `flatjax.symmetry._check`."""

    def __init__(
        self,
        model_fn: Callable[..., Any],
        params: Tree,
        inputs: Any,
        args: tuple,
        rng: np.random.Generator,
    ):
        """Follows the model, and moves the params to where no leaf is constant.

        Raises:
          ValueError: if it returns nothing.
        """
        params = jax.tree.map(lambda a: _nearby(a, rng), as_arrays(params))
        self._leaves, self._structure = named_leaves(params), jax.tree.structure(params)
        self._on_device = jax.device_put(self._leaves)
        self._data = inputs, args = as_arrays((inputs, args))
        self._fn = follow(model_fn, "model_fn", params, inputs, args)
        if not jax.tree.leaves(self._fn.out):
            raise ValueError("model_fn returns nothing: return its outputs.")
        self._outputs = self._at({})

    def change(
        self, factors: Mapping[str, Factors], permutations: Mapping[str, np.ndarray]
    ) -> float:
        """The largest relative change of an output where the leaves are permuted.

        Infinite where outputs are not finite, or were zero.
        """
        return self._difference(
            {
                path: permuted(self._leaves[path].reshape(f.shape), f, permutations).reshape(
                    self._leaves[path].shape
                )
                for path, f in factors.items()
                if any(name in permutations for name in f.names)
            }
        )

    def tolerance(self, factors: Mapping[str, Factors], rng: np.random.Generator) -> float:
        """The change by relative changes of all params as large as another order of sums makes."""
        # The terms of a sum over a permuted axis: of a kernel its fan-in, of a norm its units.
        terms = max(
            (
                self._leaves[path].size // max([n for j, n in enumerate(f.shape) if j != i] or [1])
                for path, f in factors.items()
                for i, name in enumerate(f.names)
                if name is not None
            ),
            default=1,
        )
        size = terms * max(_eps(a) for a in self._leaves.values())
        size = max([size, *(_eps(a) for a in jax.tree.leaves(self._fn.out))])
        draws = (
            {
                path: (a * (1 + size * rng.choice([-1, 1], a.shape))).astype(a.dtype)
                for path, a in self._leaves.items()
                if jnp.issubdtype(a.dtype, jnp.floating)
            }
            for _ in range(_DRAWS)
        )
        return max(map(self._difference, draws))

    def _at(self, leaves: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs, in float64 on the host, with other leaves in place of some."""
        values = {**self._on_device, **leaves}
        params = jax.tree.unflatten(self._structure, [values[path] for path in self._leaves])
        found = jax.tree.leaves(_call(self._fn, params, *self._data))
        return [np.asarray(a).astype(np.float64) for a in found]

    def _difference(self, leaves: Mapping[str, np.ndarray]) -> float:
        largest = 0.0
        for a, b in zip(self._at(leaves), self._outputs, strict=True):
            finite = np.isfinite(a).all() and np.isfinite(b).all()
            if not finite or (a.any() and not b.any()):
                return np.inf
            if b.any():
                largest = max(largest, float(np.linalg.norm(a - b) / np.linalg.norm(b)))
        return largest


@jax.jit
def _call(fn, params, inputs, args):
    return fn(params, inputs, *args)


def _eps(a: Any) -> float:
    return float(jnp.finfo(a.dtype).eps) if jnp.issubdtype(a.dtype, jnp.floating) else 0.0


def _nearby(leaf: Any, rng: np.random.Generator) -> np.ndarray:
    """A leaf near another, in at least float32, that is not constant; positive where it was."""
    a = np.asarray(leaf)
    if not jnp.issubdtype(a.dtype, jnp.floating):
        return a
    dtype = trees.compute_dtype(a.dtype)
    wide, drawn = a.astype(dtype), rng.uniform(0, 0.5, a.shape)
    return (wide * (1 + drawn) if wide.any() else 2 * drawn - 0.5).astype(dtype)


def cycles(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """A random cycle of all units, one for each block: nothing stays."""
    orders = rng.permuted(np.broadcast_to(np.arange(shape[-1]), shape).copy(), axis=-1)
    p = np.empty_like(orders)
    np.put_along_axis(p, orders, np.roll(orders, -1, axis=-1), axis=-1)
    return p
