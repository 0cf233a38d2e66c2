"""What a user's function closes over, made visible: captured arrays become leaves.

A jitted program that has a function as a static argument keeps what the function captured when it
was first traced, and answers for those values for ever. [`follow`][] therefore traces the function
anew, whoever it is, and keeps the program apart from the arrays: a [`Followed`][] is a pytree whose
leaves are all arrays that the function captured, wherever they sat (closure cells, globals,
attributes of the object behind a bound method, arguments of a ``partial``, fields of a module), and
whose static part is the program alone. Programs are interned by their structure, so that a fresh
``lambda`` over the same network is the same program and compiles nothing.

Two programs are one only if they are known to be: equations are compared with their parameters, a
rule of ``jax.custom_jvp`` by the program it makes, and other functions in them (a rule of
``jax.custom_vjp``, a callback, a policy) by their code and by what they capture in their turn. What
cannot be compared makes a new program, which costs a compilation and is never wrong.
"""

import contextlib
import contextvars
import dataclasses
import itertools
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.extend.core
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata

from flatjax import collectives, fingerprints, loops

_PROGRAMS: weakref.WeakValueDictionary[Any, "Program"] = weakref.WeakValueDictionary()
# For every state of the functions behind a function, a name of its own; the latest are kept.
_STATES: dict[Any, str] = {}
_MOST_STATES = 4096
_COUNT = itertools.count()
_MEMORY: contextvars.ContextVar[dict[Any, Any] | None] = contextvars.ContextVar(
    "flatjax_followed", default=None
)


class Program:
    """A traced function without its captured arrays; compared by identity, one for each structure.

    Attributes:
      body: its equations.
      in_tree: the tree structure of the arguments.
      in_types: the shape and dtype of every leaf of the arguments.
      in_axes: the mesh axes over which each varies, inside ``shard_map``.
      out: the output, as a tree of ``jax.ShapeDtypeStruct``.
    """

    def __init__(self, body: "_Body", in_tree: Any, in_types: Any, out: Any):
        self.body, self.in_tree, self.in_types, self.out = body, in_tree, in_types, out
        self.in_axes = tuple(tuple(v.aval.manual_axis_type.varying) for v in body.invars)


@jax.tree_util.register_dataclass
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
                leaves = list(map(collectives.varying, leaves, program.in_axes))
                outputs = _evaluate(program.body, iter(captured), leaves)
                return jax.tree.unflatten(jax.tree.structure(program.out), outputs)
        raise TypeError(
            f"{self.name} was traced for arguments of other shapes or dtypes than "
            f"{jax.tree.unflatten(tree, [jax.typeof(a).str_short() for a in leaves])}: make the "
            "operator again for these."
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Constant:
    """An object without arrays of its own as a leafless pytree.

    Attributes:
      value: the object.
      state: what the code behind it reads, see [`flatjax.fingerprints.of_state`][]; a program that
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
      >>> from flatjax import functions
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
    memory = _MEMORY.get()
    found = []
    for signature in signatures:
        leaves, tree = jax.tree.flatten(tuple(signature))
        key = id(fn), tree, tuple(_type_of(leaf) for leaf in leaves)
        if memory is None or loops.is_traced(leaves):
            found.append(_program(fn, tuple(signature)))
            continue
        if key not in memory:
            memory[key] = _program(fn, tuple(signature)), fn
        found.append(memory[key][0])
    programs, captured = zip(*found, strict=True)
    name = getattr(fn, "__name__", type(fn).__name__)
    return _with_original(Followed(captured, programs, name), fn)


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
      >>> from flatjax import functions
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
    return jnp.shape(leaf), jnp.result_type(leaf)


def _program(fn, args):
    leaves, in_tree = jax.tree.flatten(args)

    # A new function object each time, because JAX keeps traces by the identity of the function.
    def flat(*leaves):
        return fn(*jax.tree.unflatten(in_tree, leaves))

    closed, out = jax.make_jaxpr(flat, return_shape=True)(*leaves)
    if any(_may_be_stale(closed.jaxpr)):
        # JAX's caches ask for the context, too. Metadata that name the state of the functions
        # inside make it one in which no other state was traced; they change no number.
        with set_xla_metadata(flatjax=_name_of(fingerprints.of_state(fn))):
            closed, out = jax.make_jaxpr(lambda *a: flat(*a), return_shape=True)(*leaves)
    body, captured = _split(closed)
    in_types = tuple((a.shape, a.dtype) for a in closed.in_avals)
    key = fingerprints.of_program(closed.jaxpr), in_tree, jax.tree.structure(out)
    program = _PROGRAMS.get(key)
    if program is None:
        _fix_rules(closed.jaxpr)
        program = Program(body, in_tree, in_types, out)
        _PROGRAMS[key] = program
    return program, tuple(captured)


def _fix_rules(jaxpr, orders: int = 3) -> None:
    """Trace the user's rules of ``jax.custom_jvp`` now, with what they capture now.

    JAX traces them where they are used first, and keeps that trace. A rule may call its own
    function: three orders of derivatives are fixed.
    """
    for eqn in jaxpr.eqns:
        rule = eqn.params.get("jvp_jaxpr_fun")
        if rule is not None and orders and not _of_jax(rule.debug_info):
            tangents = len(eqn.invars) - eqn.params["num_consts"]
            with contextlib.suppress(Exception):  # raised again where the rule is used
                _fix_rules(rule.call_wrapped(*[False] * tangents)[0], orders - 1)
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            _fix_rules(getattr(inner, "jaxpr", inner), orders)


def _name_of(state: Any) -> str:
    if state not in _STATES and len(_STATES) >= _MOST_STATES:
        del _STATES[next(iter(_STATES))]
    return _STATES.setdefault(state, str(next(_COUNT)))


@dataclasses.dataclass(frozen=True)
class _Body:
    """The equations of a program; beside an inner ``jit`` that captures arrays its own body."""

    constvars: Any
    invars: Any
    outvars: Any
    steps: tuple[tuple[Any, "_Body | None"], ...]


def _split(closed) -> tuple[_Body, list[Any]]:
    """The equations, and the captured arrays in the order in which `_evaluate` asks for them."""
    captured, steps = [jnp.asarray(a) for a in closed.consts], []
    for eqn in closed.jaxpr.eqns:
        inner = None
        if eqn.primitive.name == "jit" and _captures(eqn.params["jaxpr"]):
            inner, more = _split(eqn.params["jaxpr"])
            captured += more
            eqn = eqn.replace(params={})  # which would keep the arrays alive
        steps.append((eqn, inner))
    jaxpr = closed.jaxpr
    return _Body(jaxpr.constvars, jaxpr.invars, jaxpr.outvars, tuple(steps)), captured


def _captures(closed) -> bool:
    return bool(closed.consts) or any(
        eqn.primitive.name == "jit" and _captures(eqn.params["jaxpr"]) for eqn in closed.jaxpr.eqns
    )


def _evaluate(body: _Body, captured: Iterator[Any], args: Sequence[Any]) -> list[Any]:
    values = dict(zip(body.constvars, captured, strict=False))
    values.update(zip(body.invars, args, strict=True))

    def read(a):
        return a.val if isinstance(a, jax.extend.core.Literal) else values[a]

    for eqn, inner in body.steps:
        operands = [read(a) for a in eqn.invars]
        if inner is not None:
            results = _evaluate(inner, captured, operands)
        else:
            # The names of the user's modules, for profiles.
            name = str(eqn.source_info.name_stack)
            scope = jax.named_scope(name) if name else contextlib.nullcontext()
            with scope, eqn.ctx.manager:
                params = eqn.primitive.get_bind_params(eqn.params)
                results = eqn.primitive.bind(*operands, **params)
            results = results if eqn.primitive.multiple_results else [results]
        values.update(zip(eqn.outvars, results, strict=True))
    return [read(a) for a in body.outvars]


_ROOTS = tuple(os.path.dirname(path) + os.sep for path in (jax.__file__, __file__))


def _of_jax(debug_info) -> bool:
    """Whether a function that was traced stands in JAX or here, and so captures nothing."""
    return (getattr(debug_info, "func_filename", None) or "").startswith(_ROOTS)


def _may_be_stale(jaxpr) -> Iterator[bool]:
    """Whether any inner program is of a function outside JAX whose trace JAX may have kept."""
    for eqn in jaxpr.eqns:
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            inner = getattr(inner, "jaxpr", inner)
            traced_anew = eqn.primitive.name in ("custom_jvp_call", "custom_vjp_call")
            yield not traced_anew and not _of_jax(inner.debug_info)
            yield from _may_be_stale(inner)
