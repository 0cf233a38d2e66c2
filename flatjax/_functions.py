"""What a user's function closes over, made visible: captured arrays become leaves.

A jitted program that has a function as a static argument keeps what the function captured when it
was first traced, and answers for those values for ever. [`follow`][] therefore traces the function
anew, whoever it is, and keeps the program apart from the arrays: a [`Followed`][] is a pytree whose
leaves are all arrays that the function captured, wherever they sat (closure cells, globals,
attributes of the object behind a bound method, arguments of a ``partial``, fields of a module), and
whose static part is the program alone, see `flatjax.programs`.

Two programs are one only if they are known to be, see `flatjax._fingerprints`: equations are
compared with their parameters, and the functions in them (a derivative rule, a callback, a policy)
by their code and by what they capture in their turn. What cannot be compared makes a new program,
which costs a compilation and is never wrong.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from flatjax import _loops as loops
from flatjax import _nodes as nodes
from flatjax._programs import Program, traced

_MEMORY: contextvars.ContextVar[dict[Any, Any] | None] = contextvars.ContextVar(
    "flatjax_followed", default=None
)


@nodes.register
@dataclasses.dataclass(frozen=True)
class Followed:
    """A user's function at the values that it captured when it was followed; see [`follow`][].

    Attributes:
      captured: for every program, the arrays that the function captured.
      programs: one for each signature.
      name: what to call the function in messages.
    """

    captured: tuple[tuple[jax.Array, ...], ...]
    programs: tuple[Program, ...] = dataclasses.field(metadata={"static": True})
    name: str = dataclasses.field(metadata={"static": True})

    @property
    def out(self) -> Any:
        """What it returns at the first signature, as a tree of ``jax.ShapeDtypeStruct``."""
        return self.programs[0].out

    def takes(self, *args: Any) -> bool:
        """Whether it was followed at arguments like these."""
        leaves, tree = jax.tree.flatten(args)
        signature = tree, tuple(_type_of(leaf) for leaf in leaves)
        return any((p.in_tree, p.in_types) == signature for p in self.programs)

    def at(self, *args: Any) -> "Followed":
        """The same function, to be called at arguments like these, too.

        Raises:
          TypeError: for other arguments after a transformation, where the function is lost.
        """
        if self.takes(*args):
            return self
        if self.original is None:
            raise TypeError(
                f"{self.name} cannot be traced for data of another shape any more: name the size "
                "where the operator is made, chunk_size= for instance."
            )
        more = follow(self.original, args)
        both = self.captured + more.captured, self.programs + more.programs
        return _with_original(Followed(*both, self.name), self.original)

    @property
    def original(self) -> Callable[..., Any] | None:
        """The user's function, for what it returns at other shapes; lost in a transformation."""
        return vars(self).get("_original")

    def __call__(self, *args: Any) -> Any:
        """The function of arguments like those that it was followed at."""
        leaves, tree = jax.tree.flatten(args)
        leaves = [a if isinstance(a, jax.Array) else jnp.asarray(a) for a in leaves]
        types = tuple((a.shape, a.dtype) for a in leaves)
        for program, captured in zip(self.programs, self.captured, strict=True):
            if program.in_tree == tree and program.in_types == types:
                return program(captured, leaves)
        raise TypeError(
            f"{self.name} was traced for arguments of other shapes or dtypes than "
            f"{jax.tree.unflatten(tree, [jax.typeof(a).str_short() for a in leaves])}: make the "
            "operator again for these."
        )


@nodes.register
@dataclasses.dataclass(frozen=True)
class Constant:
    """An object without arrays of its own as a leafless pytree.

    Attributes:
      value: the object.
      state: what the code behind it reads, see [`flatjax._fingerprints.of_state`][]; a program that
        was made for another state is not used again.
    """

    value: Any = dataclasses.field(metadata={"static": True})
    state: Any = dataclasses.field(default=None, metadata={"static": True})


def follow(fn: Callable[..., Any], *signatures: Sequence[Any]) -> Followed:
    """Trace a function of the user's anew, with the arrays that it captures as leaves.

    The answer of what this returns is that of ``fn`` now, whatever is bound or assigned anew later.
    Costs one trace of the function for every signature; a program that was seen before is not
    compiled again. Functions inside that JAX caches by their identity (those of the user under
    ``jax.jit``, ``jax.checkpoint``, ``lax.scan``, ``lax.cond``) are traced anew, too, which costs a
    second trace where there are any.

    Args:
      fn: a traceable function.
      *signatures: the arguments to trace it at, a tuple each: arrays or ``jax.ShapeDtypeStruct``.

    Returns:
      The function, to be called at arguments of these shapes and dtypes.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax import _functions as functions
      >>> scale = jnp.float32(2.0)
      >>> twice = functions.follow(lambda x: scale * x, (jnp.ones(2),))
      >>> scale = jnp.float32(3.0)
      >>> thrice = functions.follow(lambda x: scale * x, (jnp.ones(2),))
      >>> twice(jnp.ones(2)).tolist(), thrice(jnp.ones(2)).tolist()
      ([2.0, 2.0], [3.0, 3.0])
      >>> twice.programs == thrice.programs
      True
    """
    if isinstance(fn, Followed):
        return fn
    programs, captured = zip(*(_remembered(fn, tuple(s)) for s in signatures), strict=True)
    name = getattr(fn, "__name__", type(fn).__name__)
    return _with_original(Followed(captured, programs, name), fn)


def _remembered(fn, args):
    memory = _MEMORY.get()
    if memory is None or loops.is_traced(args):
        return traced(fn, args)
    leaves, tree = jax.tree.flatten(args)
    key = id(fn), tree, tuple(_type_of(leaf) for leaf in leaves)
    if key not in memory:
        memory[key] = traced(fn, args), fn  # kept, or another could get its id
    return memory[key][0]


def _with_original(followed: Followed, fn: Callable[..., Any]) -> Followed:
    object.__setattr__(followed, "_original", fn)  # no field: it holds what it captures
    return followed


@contextlib.contextmanager
def one_moment(memory: dict[Any, Any]) -> Iterator[None]:
    """Take all that happens in contexts of one memory for one moment: a pass over batches.

    A function that was followed at these shapes in one of them is not traced again.

    Args:
      memory: a dictionary, empty at first.

    Yields:
      Nothing.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax import _functions as functions
      >>> memory, traces = {}, []
      >>> fn = lambda x: (traces.append(x), 2 * x)[1]
      >>> for _ in range(3):
      ...     with functions.one_moment(memory):
      ...         twice = functions.follow(fn, (jnp.ones(2),))
      >>> len(traces)
      1
    """
    token = _MEMORY.set(memory)
    try:
        yield
    finally:
        _MEMORY.reset(token)


def _type_of(leaf):
    return jnp.shape(leaf), leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
