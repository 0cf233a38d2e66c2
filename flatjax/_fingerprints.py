"""When two traced programs are the same: a hashable key of a program's structure.

Everything in an equation counts: the primitive, shapes and dtypes, literals, inner programs, and
the functions in its parameters (derivative rules, callbacks, policies), by their code and by what
they capture. Where two things cannot be compared the key is equal to no other, so that one program
is never taken for another.
"""

import dataclasses
import functools
import hashlib
import inspect
import types
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

import jax
import jax.extend.core
import numpy as np

Jitted = type(jax.jit(lambda: None))
_ATOMS = (bool, int, str, bytes, types.ModuleType, types.CodeType, types.BuiltinFunctionType, type)
_NUMBERS = (float, complex, np.ndarray, np.generic, jax.Array)
_FUNCTIONS = (types.FunctionType, functools.partial, jax.custom_jvp, jax.custom_vjp, Jitted)
# Whose functions read no globals that change.
_LIBRARIES = {"jax", "jaxlib", "numpy", "flatjax", "flax", "optax", "equinox", "haiku"}


# Nor do methods of classes of the language.
_UNCHANGED = {*_LIBRARIES, "builtins", "typing", "abc", "types"}


class Unlike:
    """Part of a key that is equal to no other."""


def of_program(jaxpr: jax.extend.core.Jaxpr) -> Hashable:
    """The structure of a program, whatever its variables are called and its constants are.

    A key, equal to that of another program only if both compute the same. Constants that an inner
    ``jit`` captures do not count either.

    Example:
      >>> import jax
      >>> from flatjax import _fingerprints as fingerprints
      >>> key = lambda fn: fingerprints.of_program(jax.make_jaxpr(fn)(1.0).jaxpr)
      >>> (
      ...     key(lambda x: 2.0 * x) == key(lambda y: 2.0 * y),
      ...     key(lambda x: 3.0 * x) == key(jax.numpy.sin),
      ... )
      (True, False)
    """
    return _Reader().program(jaxpr)


def of_state(fn: Any) -> Hashable:
    """What the functions and objects behind a function hold, arrays and numbers included.

    JAX keeps the trace of an inner ``jit`` or of the body of a loop by its function, whatever that
    has captured; this key changes where such a trace may have become wrong. What ``fn`` itself
    captures reaches them as arguments only, and does not count.

    Example:
      >>> from flatjax import _fingerprints as fingerprints
      >>> held = [1]
      >>> inner = lambda held=held: held
      >>> outer = lambda inner=inner: inner()
      >>> before = fingerprints.of_state(outer)
      >>> held[0] = 2
      >>> fingerprints.of_state(outer) == before
      False
    """
    reader = _Reader()
    if not isinstance(fn, types.FunctionType):
        return reader.value(fn)
    held = [_content(cell) for cell in fn.__closure__ or ()]
    held += [fn.__defaults__, fn.__kwdefaults__, *_globals(fn).values()]
    return fn.__code__, reader.values(value for value in held if not _is_data(value))


class _Reader:
    """One reading of a program; what is met again is named by the order of first meeting."""

    def __init__(self):
        self.met: dict[int, tuple[int, Any]] = {}

    def program(self, jaxpr) -> Hashable:
        numbers: dict[Any, int] = {}

        def atom(a):
            if isinstance(a, jax.extend.core.Literal):
                return a.aval, self.value(a.val)
            return numbers.setdefault(a, len(numbers))

        inputs = tuple((atom(v), v.aval) for v in (*jaxpr.constvars, *jaxpr.invars))
        equations = []
        for eqn in jaxpr.eqns:
            operands = tuple(atom(v) for v in eqn.invars)
            results = tuple((atom(v), v.aval) for v in eqn.outvars)
            ctx = eqn.ctx
            context = ctx.compute_type, ctx.threefry_partitionable, ctx.cur_abstract_mesh
            equations.append((eqn.primitive, operands, results, self._parameters(eqn), context))
        return inputs, tuple(equations), tuple(atom(v) for v in jaxpr.outvars)

    def _parameters(self, eqn):
        params = dict(eqn.params)
        if eqn.primitive.name == "jit":
            # Its constants are leaves of whoever evaluates the program, cf. `programs.traced`.
            return self.program(params.pop("jaxpr").jaxpr), self.value(params)
        if eqn.primitive.name == "custom_vjp_call":
            params.pop("out_trees")  # of what the forward rule returns, which is compared itself
        return self.value(params)

    def values(self, values: Iterable[Any]) -> tuple[Hashable, ...]:
        return tuple(self.value(value) for value in values)

    def value(self, value: Any) -> Hashable:
        """A key of anything that an equation may hold."""
        if value is None or isinstance(value, _ATOMS):
            return type(value), value
        if isinstance(value, _NUMBERS):
            return _of_numbers(value)
        if isinstance(value, dict):
            return type(value), self.values(value), self.values(value.values())
        if isinstance(value, tuple | list):
            return type(value), self.values(value)
        if isinstance(value, set | frozenset):
            return type(value), frozenset(self.values(value))
        if isinstance(value, jax.extend.core.TraceTag):
            return jax.extend.core.TraceTag  # of a `vmap` around a rule: a new object every time
        if id(value) in self.met:
            return "met before", self.met[id(value)][0]
        self.met[id(value)] = len(self.met), value  # kept, or another could get its id
        if hasattr(value, "eqns"):
            inner = getattr(value, "jaxpr", value)
            return self.program(inner), self.values(getattr(value, "consts", ()))
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return self.values((value.__func__, value.__self__))
        if isinstance(value, functools.partial):
            return self.values((value.func, value.args, value.keywords))
        if isinstance(value, Jitted):
            return self.value(inspect.unwrap(value))
        if isinstance(value, jax.custom_jvp | jax.custom_vjp):
            return type(value), self.values(vars(value).values())
        if hasattr(value, "f_transformed"):  # JAX's function with transformations to be applied
            return self.values((value.f, value.transforms, value.params))
        return self._object(value)

    def _function(self, fn):
        cells = [_content(cell) for cell in fn.__closure__ or ()]
        if _library(fn.__module__) == "jax":
            # JAX's own wrappers around a rule hold caches and trees, too, that say nothing more.
            return fn.__code__, self.values(_plain(cells))
        read = {} if _library(fn.__module__) in _LIBRARIES else _globals(fn)
        return fn.__code__, self.values((cells, fn.__defaults__, fn.__kwdefaults__, read))

    def _object(self, value):
        classes = [c for c in type(value).__mro__ if _library(c.__module__) not in _UNCHANGED]
        methods = [f for c in classes for f in vars(c).values() if isinstance(f, _FUNCTIONS)]
        return self.values(methods), self._content_of(value)

    def _content_of(self, value):
        if dataclasses.is_dataclass(value):
            fields = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
            return type(value), self.values(fields)
        if type(value) is object:  # a sentinel: itself, and nothing in it
            return value
        compared = type(value).__eq__ is not object.__eq__ and type(value).__hash__ is not None
        if compared or _library(type(value).__module__) in ("jax", "jaxlib"):
            return type(value), value
        return (type(value), self.value(vars(value))) if hasattr(value, "__dict__") else Unlike()


def _of_numbers(value):
    if isinstance(value, jax.core.Tracer):
        return Unlike()
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    content = array.tobytes()
    if len(content) > 64:  # a key is kept and must not keep the array
        content = hashlib.blake2b(content).digest()
    return type(value), array.dtype.name, array.shape, content


def _content(cell):
    try:
        return cell.cell_contents
    except ValueError:  # still empty
        return None


def _plain(cells: Iterable[Any]) -> Iterator[Any]:
    plain = (*_FUNCTIONS, *_ATOMS, *_NUMBERS, set, frozenset)
    for cell in cells:
        if isinstance(cell, tuple | list):
            yield from _plain(cell)
        elif isinstance(cell, plain) or hasattr(cell, "f_transformed"):
            yield cell


def _is_data(value: Any) -> bool:
    numbers = (*_NUMBERS, bool, int, str, type(None))
    return all(isinstance(leaf, numbers) for leaf in jax.tree.leaves(value))


def _library(module: str | None) -> str:
    return (module or "").partition(".")[0]


def _globals(fn: types.FunctionType) -> dict[str, Any]:
    """The globals that a function, or one defined inside it, may read."""
    return {name: fn.__globals__[name] for name in _names(fn.__code__) if name in fn.__globals__}


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
