"""Ways for a function to hold an array, each with a way to change what it holds.

``CONTAINERS`` maps a name to ``make(value) -> (fn, change)`` with ``fn(params, x)`` a function that
multiplies by the held array, and ``change(value)`` what a user does to it afterwards.
"""

import dataclasses
import functools
import types

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import nnx

SIZE = 3  # of the held array


def closure(value):
    held = value

    def change(new):
        nonlocal held
        held = new

    return lambda params, x: (x @ params) * held, change


def nested(value):
    fn, change = closure(value)
    return lambda params, x: fn(params, x), change


GLOBAL = None


def global_name(value):
    def change(new):
        globals()["GLOBAL"] = new

    change(value)
    return lambda params, x: (x @ params) * GLOBAL, change


class Model:
    def __init__(self, value):
        self.held = value

    def method(self, params, x):
        return (x @ params) * self.held

    def __call__(self, params, x):
        return self.method(params, x)

    @functools.partial(jax.jit, static_argnums=0)
    def compiled(self, params, x):
        return self.method(params, x)

    def change(self, value):
        self.held = value


def bound_method(value):
    model = Model(value)
    return model.method, model.change


def callable_object(value):
    model = Model(value)
    return model, model.change


def jitted_method(value):
    model = Model(value)
    return lambda params, x: model.compiled(params, x), model.change


def partial_keyword(value):
    fn = functools.partial(lambda params, x, held: (x @ params) * held, held=value)
    return fn, lambda new: fn.keywords.update(held=new)


def default_argument(value):
    def fn(params, x, held=value):
        return (x @ params) * held

    return fn, lambda new: setattr(fn, "__defaults__", (new,))


def namespace(value):
    config = types.SimpleNamespace(weights={"scale": [value]})

    def change(new):
        config.weights["scale"][0] = new

    return lambda params, x: (x @ params) * config.weights["scale"][0], change


def nnx_module(value):
    model = nnx.Linear(SIZE, SIZE, use_bias=False, rngs=nnx.Rngs(0))
    change = lambda new: setattr(model, "kernel", nnx.Param(jnp.diag(new)))  # noqa: E731
    change(value)
    return lambda params, x: model(x @ params), change


class Scale(eqx.Module):
    held: jax.Array

    def __call__(self, y):
        return self.held * y


def equinox_module(value):
    model = Scale(value)

    def change(new):
        nonlocal model
        model = eqx.tree_at(lambda m: m.held, model, new)

    return lambda params, x: model(x @ params), change


@dataclasses.dataclass
class Box:
    held: object


def jitted(value):
    box = Box(value)
    return jax.jit(lambda params, x: (x @ params) * box.held), lambda new: setattr(box, "held", new)


def jitted_inside(value):
    fn, change = jitted(value)
    return lambda params, x: 1.0 * fn(params, x), change


def loop_inside(value):
    box = Box(value)

    def body(carry, _):
        return carry * box.held, None

    run = lambda y: jax.lax.scan(body, y, None, length=1)[0]  # noqa: E731
    return lambda params, x: run(x @ params), lambda new: setattr(box, "held", new)


def checkpoint_inside(value):
    box = Box(value)
    last = jax.checkpoint(lambda y: y * box.held)
    return lambda params, x: last(x @ params), lambda new: setattr(box, "held", new)


CONTAINERS = {
    make.__name__: make
    for make in (
        closure, nested, global_name, bound_method, callable_object, jitted_method, partial_keyword,
        default_argument, namespace, nnx_module, equinox_module, jitted, jitted_inside, loop_inside,
        checkpoint_inside,
    )
}  # fmt: skip
