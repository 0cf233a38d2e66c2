"""The one place that decides how an iteration is driven.

An iteration over a user's model is driven from the host over one compiled step, with asynchronous
dispatch and no host synchronisation a step: it can stop early, stream batches and show its
progress, and a product compiled once serves every method. A ``lax`` loop is used in two cases only:
when the iteration is itself being traced (by ``jit``, ``vmap``, ``grad``, ``shard_map``), and when
the caller asks for it with [`device`][].

XLA's CPU backend runs convolutions of most layouts inside ``while``, ``scan``, ``fori_loop`` and
``cond`` 20 to 90 times slower than outside (JAX issue 12868). Every ``lax`` loop here therefore
goes through [`flatjax.loops.canonical`][], which keeps them fast.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flatjax import _checks as checks
from flatjax import _convolutions as convolutions
from flatjax import _trees as trees

_DEVICE_LOOPS = contextvars.ContextVar("flatjax_device_loops", default=False)


@contextlib.contextmanager
def device(enable: bool = True) -> Iterator[None]:
    """Ask for ``lax`` loops on the device within this context.

    Right for trajectories of thousands of cheap steps (a network of a few thousand parameters),
    where the host's dispatch of some 100 microseconds a step dominates.

    Args:
      enable: ``False`` restores host-driven loops inside an outer ``device()``.

    Yields:
      Nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax import loops
      >>> with loops.device():
      ...     total = loops.fori(3, lambda i, x: x + i, jnp.zeros((), int))
      >>> int(total)
      3
    """
    token = _DEVICE_LOOPS.set(enable)
    try:
        yield
    finally:
        _DEVICE_LOOPS.reset(token)


def is_traced(*trees: Any) -> bool:
    """Whether any leaf is a tracer.

    Ask this of the *output* of the first product, not of its operands: under ``vmap`` or ``grad``
    with a model that closes over the traced value, the operands are still concrete.

    Args:
      *trees: any pytrees.

    Returns:
      ``True`` if a leaf of any of the trees is a tracer.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from flatjax import loops
      >>> loops.is_traced(jnp.ones(2))
      False
      >>> jax.eval_shape(lambda x: jnp.float32(loops.is_traced(x)) + x, jnp.ones(2)).shape
      (2,)
    """
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def on_device(*trees: Any) -> bool:
    """Whether an iteration over ``trees`` must run as a ``lax`` loop.

    Args:
      *trees: the first output of the iteration's body, or its carry.

    Returns:
      ``True`` under tracing and inside [`device`][].

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax import loops
      >>> with loops.device():
      ...     print(loops.on_device(jnp.ones(2)))
      True
    """
    return _DEVICE_LOOPS.get() or is_traced(trees)


def _shardings(v):
    """How the leaves of a vector lie on a mesh; ``None`` where none does."""
    shardings = tuple(trees.sharding_of(leaf) for leaf in jax.tree.leaves(v))
    return shardings if any(s is not None for s in shardings) else None


@partial(convolutions.compiled, static_argnames=("shardings", "kind"))
def _product(op, v, shardings, kind):
    del kind  # told apart from operators of other classes, see flatjax._nodes
    # The product of a vector that is sharded over devices is sharded alike: left to itself the
    # compiler may choose another layout, and every step of a Krylov method moves its vectors twice.
    w = op.mv(v)
    if shardings is None:
        return w
    leaves, treedef = jax.tree.flatten(w)
    like = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s)
        for a, s in zip(leaves, shardings, strict=True)
    ]
    return trees.placed(w, jax.tree.unflatten(treedef, like))


def product(op: Any) -> Callable[[Any], Any]:
    """The compiled product ``v -> A v`` of an operator.

    The operator is passed to one module-level program as an argument, so that new data or params of
    the same shapes compile nothing.

    Args:
      op: a flatjax operator. One with ``host_driven`` set (a stream over batches) is called as it
        is.

    Returns:
      A function of ``v``.

    Raises:
      TypeError: for an operator that is no pytree.

    Example:
      >>> import jax.numpy as jnp
      >>> import flatjax
      >>> from flatjax import loops
      >>> twice = flatjax.operators.as_operator(lambda v: 2.0 * v, structure=jnp.ones(2))
      >>> loops.product(twice)(jnp.ones(2))
      Array([2., 2.], dtype=float32)
    """
    if getattr(op, "host_driven", False):
        return op.mv
    if jax.tree_util.all_leaves([op]):
        raise TypeError(
            f"{type(op).__name__} is no pytree, so that its product cannot be compiled: make it a "
            "dataclass(frozen=True) under @jax.tree_util.register_dataclass, with its arrays as "
            "fields, its flags and functions as static ones (a compiled program keeps what a "
            "function reads from outside); or, where mv runs on the host, set host_driven = True."
        )
    return lambda v: _on_its_own(op, v, _shardings(v))


def _on_its_own(op, v, shardings):
    """A product; of vectors that CPU devices share, with nothing else on them."""
    waits = shardings is not None and jax.default_backend() == "cpu" and not is_traced(op, v)
    if not waits:
        return _product(op, v, shardings, type(op))
    # XLA's CPU devices share their threads: of several programs with reductions at once each may
    # wait for devices that another one holds, for ever.
    return jax.block_until_ready(_product(op, jax.block_until_ready(v), shardings, type(op)))


def _compiled(loop, *args):
    """A ``lax`` loop or conditional whose convolutions are as fast as outside."""
    return convolutions.canonical(lambda: loop(*args))()


def fori(num_steps: Any, body: Callable[[Any, Any], Any], carry: Any, *, like: Any = ()) -> Any:
    """``carry = body(i, carry)`` for ``i`` in ``range(num_steps)``.

    Args:
      num_steps: the number of steps; a traced one makes it a loop of the device.
      body: the step. Driven from the host it is called as it is, so it should be compiled.
      carry: the initial carry, a pytree.
      like: an output of the body. Its leaves are asked too whether the iteration is traced.

    Returns:
      The final carry.

    Example:
      >>> from flatjax import loops
      >>> loops.fori(4, lambda i, x: x + i, 0)
      6
    """
    if is_traced(num_steps) or (num_steps and on_device(carry, like)):
        return _compiled(jax.lax.fori_loop, 0, num_steps, body, carry)
    for i in range(num_steps):
        # A body that closes over a traced value shows it in its first output.
        if i == 1 and is_traced(carry):
            return _compiled(jax.lax.fori_loop, 1, num_steps, body, carry)
        carry = body(i, carry)
    return carry


def until(
    done: Callable[[Any], Any], body: Callable[[Any], Any], carry: Any, *, check_every: int = 1
) -> Any:
    """``carry = body(carry)`` until ``done(carry)``.

    Args:
      done: whether to stop, a boolean scalar of the carry.
      body: the step. Driven from the host it is called as it is, so it should be compiled; with
        ``check_every`` above 1 it must leave a finished carry as it is.
      carry: the initial carry, an output of the body (or anything that is traced when it is).
      check_every: steps between two looks at ``done``, each of which waits for the device.

    Returns:
      The final carry.

    Example:
      >>> from flatjax import loops
      >>> loops.until(lambda x: x > 10, lambda x: 2 * x, 1)
      16
    """
    if on_device(carry):
        return _compiled(jax.lax.while_loop, lambda c: ~done(c), body, carry)
    while not done(carry):
        for _ in range(check_every):
            carry = body(carry)
    return carry


def cond(due: Any, true_fn: Callable[[], Any], false_fn: Callable[[], Any]) -> Any:
    """``true_fn()`` if ``due`` else ``false_fn()``, of which only one is computed.

    Under ``vmap`` with ``due`` mapped both are, as of every ``lax.cond``.

    Args:
      due: a boolean scalar.
      true_fn: a traceable function without arguments.
      false_fn: the same, with results of the same types.

    Returns:
      The result of one of the two.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax import loops
      >>> x = jnp.float32(3)
      >>> float(loops.cond(x > 2, lambda: x, lambda: -x))
      3.0
    """
    return _compiled(jax.lax.cond, due, true_fn, false_fn)


def scan(
    body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any = None,
    length: int | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """``jax.lax.scan``, always a loop of the device: for the steps of a training run.

    Args:
      body: ``(carry, x) -> (carry, y)``.
      carry: the initial carry.
      xs: what is iterated over, a pytree with a leading axis, or ``None``.
      length: the number of steps, where ``xs`` is ``None``.

    Returns:
      The final carry and the stacked ``y``.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax import loops
      >>> total, steps = loops.scan(lambda c, x: (c + x, c), 0, jnp.arange(4))
      >>> int(total), steps.tolist()
      (6, [0, 0, 1, 3])
    """
    return _compiled(jax.lax.scan, body, carry, xs, length)


def map_chunks(
    fn: Callable[[Any], Any], tree: Any, chunk_size: int | None, *, on_host: bool = False
) -> Any:
    """Apply a batched ``fn`` to chunks of the leading axis and concatenate the results.

    Args:
      fn: a function of a pytree with leading axis ``m <= chunk_size`` whose outputs have that
        leading axis too. Driven from the host it is called as it is, so it should be compiled.
      tree: a pytree whose leaves share a leading axis ``n``.
      chunk_size: examples a call, or ``None`` for all at once. A last, smaller chunk is one more
        shape, hence one more compilation.
      on_host: for many small outputs: wait for them and put them together as NumPy arrays, where
        nothing is traced. On the device that takes programs of its own.

    Returns:
      The outputs with leading axis ``n``.

    Raises:
      TypeError: if ``chunk_size`` is neither an integer nor ``None``.
      ValueError: if it is below 1.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax import loops
      >>> loops.map_chunks(lambda x: 2 * x, jnp.arange(5), 2).tolist()
      [0, 2, 4, 6, 8]
    """
    if chunk_size is not None:
        checks.check_count("chunk_size", chunk_size)
    n = jax.tree.leaves(tree)[0].shape[0]
    if chunk_size is None or chunk_size >= n:
        return fn(tree)
    starts = range(0, n, chunk_size)
    if not on_device(tree):
        pieces = []
        for s in starts:
            pieces.append(fn(jax.tree.map(lambda a, s=s: a[s : s + chunk_size], tree)))
            if is_traced(pieces[-1]):  # `fn` closes over a traced value
                break
        else:
            if on_host:
                return jax.tree.map(lambda *p: np.concatenate(p), *jax.device_get(pieces))
            return jax.tree.map(lambda *p: jnp.concatenate(p), *pieces)
    whole, rest = divmod(n, chunk_size)
    head = jax.tree.map(
        lambda a: a[: whole * chunk_size].reshape(whole, chunk_size, *a.shape[1:]), tree
    )
    out = jax.tree.map(
        lambda a: a.reshape(-1, *a.shape[2:]), scan(lambda _, part: (None, fn(part)), None, head)[1]
    )
    if rest:
        tail = fn(jax.tree.map(lambda a: a[whole * chunk_size :], tree))
        out = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), out, tail)
    return out
