"""What every transform shares: checks at the door, schedules, arithmetic on trees, states.

Extra arguments of ``update`` have these names and no others: ``grad_fn(params)``,
``value_fn(params)``, ``batch``, ``args``. Unknown ones are ignored, as optax asks of contributed
transforms, and a chain passes them on.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from flatjax import _checks as checks
from flatjax import _collectives as collectives
from flatjax import _loops as loops
from flatjax import _trees as trees
from flatjax._trees import Tree

Number = float | int | jax.Array
Scalar = Number | optax.Schedule


def static_int(name: str, value: Any, minimum: int = 1) -> int:
    """A structural integer: it decides the shape of the program, so it cannot be traced.

    ``None`` stands for ``minimum``: ``optax.inject_hyperparams`` would trace a default of 1.
    """
    if value is None:
        return minimum
    if isinstance(value, jax.core.Tracer):
        raise TypeError(
            f"{name} decides the shape of the program and cannot be traced: with "
            f'optax.inject_hyperparams pass static_args=("{name}",).'
        )
    number = int(value)
    if number != value or number < minimum:
        raise ValueError(f"{name} must be an integer of at least {minimum}, got {value}.")
    return number


def check_every(every: Any) -> None:
    """Raise unless ``every`` is a positive integer (or traced)."""
    if not isinstance(every, jax.core.Tracer):
        static_int("every", every)


def always(every: Any) -> bool:
    """Whether ``every`` is the Python integer 1, so that no branch is needed.

    An array of value 1 is not: ``optax.inject_hyperparams`` hands it over concrete to ``init`` and
    traced to ``update``, and the state must not depend on which.
    """
    return isinstance(every, int) and every == 1


def on_every(
    every: Any, count: jax.Array, then: Callable[[], Tree], between: Callable[[], Tree]
) -> Tree:
    """``then()`` on the steps that ``every`` divides, else ``between()``; the other is skipped."""
    if always(every):
        return then()
    return loops.cond(count % jnp.asarray(every, count.dtype) == 0, then, between)


def keys_of_examples(key: jax.Array, n: int, axis_name: collectives.AxisName) -> jax.Array:
    """A key for each of this device's ``n`` examples, the same on every number of devices."""
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(collectives.example_index(n, axis_name))


def at(value: Scalar, count: jax.Array, dtype: Any) -> jax.Array:
    """The value of a number or a schedule at step ``count``."""
    return jnp.asarray(value(count) if callable(value) else value).astype(dtype)


def advance(count: jax.Array) -> jax.Array:
    """``count + 1``, saturating."""
    return jnp.asarray(optax.safe_increment(count))


def start() -> jax.Array:
    """A step counter at zero."""
    return jnp.zeros((), jnp.int32)


def require_params(name: str, params: Tree) -> None:
    """Raise unless ``update`` was given the whole params."""
    if params is None:
        raise ValueError(f"{name} needs the params: call update(updates, state, params, ...).")
    checks.check_collections(params)
    nodes = jax.tree.leaves(params, is_leaf=lambda a: isinstance(a, optax.MaskedNode))
    if any(isinstance(a, optax.MaskedNode) for a in nodes):
        raise ValueError(
            f"{name} needs the whole params, but stands inside optax.masked or optax.partition. "
            "Put it outside; the leaves of a perturbation are chosen with Ascent(mask=), those of "
            "a gradient penalty with its `mask`."
        )


def require_batch(
    name: str,
    batch: Tree,
    params: Tree = None,
    args: tuple = (),
    axis_name: collectives.AxisName = None,
) -> int:
    """The number of examples of the ``batch`` given to ``update``.

    With ``params``, by which a loss on it is differentiated, no mesh axis of the batch and of
    ``args`` may be unnamed.
    """
    if batch is None:
        raise ValueError(
            f"{name} evaluates the model on the batch: call "
            "update(updates, state, params, batch=(inputs, targets))."
        )
    check_not_explicit(name, batch)
    if params is not None:
        collectives.check_named(params, (batch, args), axis_name)
    leaves = jax.tree.leaves(batch)
    sizes = {leaf.shape[0] for leaf in leaves if leaf.ndim}
    if len(sizes) != 1 or any(leaf.ndim == 0 for leaf in leaves):
        raise ValueError(
            f"{name}: all arrays of the batch must share their leading axis, got shapes "
            f"{[leaf.shape for leaf in leaves]}."
        )
    return sizes.pop()


def require_pair(name: str, batch: Tree, *differentiated: Any) -> int:
    """As [`require_batch`][], of a ``batch`` of inputs and targets."""
    if batch is not None and not (isinstance(batch, tuple | list) and len(batch) == 2):
        raise TypeError(
            f"{name} takes batch=(inputs, targets), got a {type(batch).__name__}: write "
            'batch=(batch["inputs"], batch["targets"]), or whatever yours are called.'
        )
    return require_batch(name, batch, *differentiated)


def check_not_explicit(name: str, batch: Tree) -> None:
    """Raise if a batch that has to be cut or mapped over is split over an Explicit mesh axis."""
    axes = collectives.explicit_axes(batch)
    if axes:
        raise ValueError(
            f"{name} cuts or maps over the batch, which is split over the Explicit mesh axes "
            f"{axes}: build the mesh with axis_types=(jax.sharding.AxisType.Auto,), or work inside "
            "jax.shard_map with axis_name=."
        )


def all_finite(tree: Tree) -> jax.Array:
    """Whether every entry of every leaf is finite."""
    flags = [jnp.isfinite(a).all() for a in jax.tree.leaves(tree)]
    return jnp.stack([jnp.asarray(True), *flags]).all()


def where(flag: jax.Array, new: Tree, old: Tree) -> Tree:
    """One of two trees of the same structure and dtypes."""
    return jax.tree.map(lambda a, b: jnp.where(flag, a, b), new, old)


def if_finite(seen: Tree, new: Tree, old: Tree) -> Tree:
    """``new`` if all that was seen is finite, else ``old``: what a state keeps.

    What is not finite shows in the update all the same, for ``optax.apply_if_finite`` to see.
    """
    return where(all_finite(seen), new, old)


def combine(a: Any, x: Tree, b: Any, y: Tree) -> Tree:
    """``a x + b y`` in at least float32, in the dtypes of ``x``."""

    def leaf(u, v):
        dtype = trees.compute_dtype(u.dtype)
        left = jnp.asarray(a).astype(dtype) * u.astype(dtype)
        return (left + jnp.asarray(b).astype(dtype) * v.astype(dtype)).astype(u.dtype)

    return jax.tree.map(leaf, x, y)


def scaled(a: Any, x: Tree) -> Tree:
    """``a x``, multiplied in at least float32, in the dtypes of ``x``."""

    def leaf(u):
        dtype = trees.compute_dtype(u.dtype)
        return (jnp.asarray(a).astype(dtype) * u.astype(dtype)).astype(u.dtype)

    return jax.tree.map(leaf, x)


def zeros_like(tree: Tree) -> Tree:
    """Zeros of the shapes and dtypes of ``tree``, which may hold ``ShapeDtypeStruct``."""
    return jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), tree)


def head_of_chain(init, update) -> optax.GradientTransformationExtraArgs:
    """A transform that evaluates the model.

    Before ``optax.lookahead`` the params come in a pair, of which the fast ones are in training.
    """

    def fast(params):
        return params.fast if isinstance(params, optax.LookaheadParams) else params

    def on_fast(updates, state, params=None, **extra):
        return update(updates, state, fast(params), **extra)

    return optax.GradientTransformationExtraArgs(lambda params: init(fast(params)), on_fast)


def find_state(state: Any, kind: type | tuple[type, ...]) -> Any:
    """The one state of this kind in an optimiser state.

    Raises:
      ValueError: if there is none, or more than one.
    """
    nodes = jax.tree.leaves(state, is_leaf=lambda a: isinstance(a, kind))
    found = [a for a in nodes if isinstance(a, kind)]
    if len(found) != 1:
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join(k.__name__ for k in kinds)
        raise ValueError(f"expected one {names} in the optimiser state, found {len(found)}.")
    return found[0]
