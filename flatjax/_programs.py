"""Traced programs apart from the arrays that they capture.

[`traced`][] traces a function of the user's anew, whoever it is, and separates the program from the
captured arrays. Programs are interned by their structure: a fresh ``lambda`` over the same network
is the same program and compiles nothing.
"""

import contextlib
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

from flatjax import _collectives as collectives
from flatjax import _fingerprints as fingerprints

_PROGRAMS: weakref.WeakValueDictionary[Any, "Program"] = weakref.WeakValueDictionary()
# For every state of the functions behind a function, a name of its own; the latest are kept.
_STATES: dict[Any, str] = {}
_MOST_STATES = 4096
_COUNT = itertools.count()


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

    def __call__(self, captured: Sequence[Any], leaves: Sequence[Any]) -> Any:
        """The output, of the captured arrays and the leaves of the arguments."""
        leaves = list(map(collectives.varying, leaves, self.in_axes))
        outputs = _evaluate(self.body, iter(captured), leaves)
        return jax.tree.unflatten(jax.tree.structure(self.out), outputs)


def traced(fn: Callable[..., Any], args: tuple) -> tuple[Program, tuple[jax.Array, ...]]:
    """The program of a function at some arguments, and the arrays that it captures now.

    Args:
      fn: a traceable function.
      args: its arguments: arrays or ``jax.ShapeDtypeStruct``.

    Returns:
      The program, and the captured arrays in its order.

    Example:
      >>> import jax.numpy as jnp
      >>> from flatjax import _programs as programs
      >>> one, two = jnp.ones(2), 2 * jnp.ones(2)
      >>> first, (held,) = programs.traced(lambda x: x + one, (one,))
      >>> again, (other,) = programs.traced(lambda x: x + two, (one,))
      >>> first is again, first([held], [one]).tolist(), first([other], [one]).tolist()
      (True, [2.0, 2.0], [3.0, 3.0])
    """
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
