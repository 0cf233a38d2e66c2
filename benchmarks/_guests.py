"""A user's own estimator beside ours, by ``accuracy --estimator my_package.module:function``.

The function is called as ``f(op, structure, key, num_products)``: ``op(v)`` is the product with a
symmetric matrix, ``structure`` the ``jax.ShapeDtypeStruct`` of ``v``, ``key`` a JAX key, and
``num_products`` what it may spend. It returns what it found by the name of the quantity:

- ``{"top": values}``: the largest eigenvalues, descending, of any number;
- ``{"trace": value}``;
- ``{"density": (nodes, weights)}``: weights of sum 1;
- ``{"diagonal": values}``: in the order of ``v``.

Products are counted where they run, so that a budget is the same for all.
"""

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

QUANTITIES = ("top", "trace", "density", "diagonal")
Guest = Callable[..., Mapping[str, Any]]


def load(name: str) -> Guest:
    """The function of a name such as ``my_package.module:function``.

    Raises:
      ValueError: if there is no such function, or it cannot be called as above.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise ValueError(f"--estimator is package.module:function, got {name!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if not (module_name == missing or module_name.startswith(missing + ".")):
            raise  # a module that the user's own one needs
        raise ValueError(
            f"--estimator {name}: no module {missing!r} in the current folder or among the "
            "installed packages; put its folder on PYTHONPATH"
        ) from None
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(f"--estimator {name}: {module_name} has no function {function_name!r}")
    try:
        inspect.signature(function).bind(None, None, None, 1)
    except TypeError as error:
        raise ValueError(
            f"--estimator {name}: it is called as f(op, structure, key, num_products): {error}"
        ) from None
    return function


_SPENT: list[None] = []


def _counted(op, v):
    # Where it runs, not where it is traced; under `vmap` one call for every vector. A function of
    # the module, so that estimators that take `op` as an argument compile once for all spectra.
    jax.debug.callback(lambda _: _SPENT.append(None), v[0])
    return op(v)


def answer(name: str, guest: Guest, op: Callable, structure, key, count: int) -> dict[str, Any]:
    """What the estimator finds with a budget of ``count`` products.

    Raises:
      ValueError: for an answer without a known quantity, and for one that spent more.
    """
    _SPENT.clear()
    found = guest(jax.tree_util.Partial(_counted, op), structure, key, count)
    jax.block_until_ready(found)
    jax.effects_barrier()
    if len(_SPENT) > count:
        raise ValueError(
            f"--estimator {name}: it spent {len(_SPENT)} products of the {count} allowed"
        )
    if not isinstance(found, Mapping) or not found or set(found) - set(QUANTITIES):
        said = sorted(found) if isinstance(found, Mapping) else type(found).__name__
        raise ValueError(
            f"--estimator {name}: it returns a dictionary with one or more of "
            f"{', '.join(QUANTITIES)}, got {said}"
        )
    return dict(found)


def title(quantity: str, value: Any) -> str:
    """The name that our rows have for a quantity."""
    if quantity != "top":
        return quantity
    count = len(np.ravel(value))
    return "largest" if count == 1 else f"top {count}"
