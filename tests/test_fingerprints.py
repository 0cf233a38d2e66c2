"""Two programs have one key only if they compute the same, derivatives included."""

import functools

import jax
import jax.numpy as jnp
import pytest

from flatjax import _fingerprints as fingerprints

X = jnp.ones(3)


def key_of(fn):
    return fingerprints.of_program(jax.make_jaxpr(lambda x: fn(x))(X).jaxpr)


def jvp_rule(factor):
    @jax.custom_jvp
    def fn(x):
        return 2 * x

    @fn.defjvp
    def _(primals, tangents):
        return fn(primals[0]), factor * tangents[0]

    return fn


def jvp_rules(factor):
    fn = jax.custom_jvp(lambda x: 2 * x)
    fn.defjvps(lambda t, ans, x: factor * t)
    return fn


def vjp_rule(factor):
    fn = jax.custom_vjp(lambda x: 2 * x)
    fn.defvjp(lambda x: (2 * x, None), lambda _, g: (factor * g,))
    return fn


def forward_rule(factor):
    fn = jax.custom_vjp(lambda x: 2 * x)
    fn.defvjp(lambda x: (2 * x, factor), lambda residual, g: (residual * g,))
    return fn


def rule_of_a_helper(factor):
    def helper(t):
        return factor * t

    fn = jax.custom_vjp(lambda x: 2 * x)
    fn.defvjp(lambda x: (2 * x, None), lambda _, g: (helper(g),))
    return fn


def static_argument(factor):
    # `nondiff_argnums`: the forward value does not show it, the rule does.
    fn = jax.custom_vjp(lambda x, factor: 2 * x, nondiff_argnums=(1,))
    fn.defvjp(lambda x, factor: (2 * x, None), lambda factor, _, g: (factor * g,))
    return lambda x: fn(x, factor)


def under_vmap(factor):
    return jax.vmap(vjp_rule(factor))


def callback(factor):
    return lambda x: jax.pure_callback(lambda a: factor * a, X, x)


def literal(factor):
    return lambda x: factor * x


def in_a_loop(factor):
    return lambda x: jax.lax.fori_loop(0, 3, lambda _, c: factor * c, x)


def under_jit(factor):
    return jax.jit(lambda x: factor * x)


def policy(factor):
    names = jax.checkpoint_policies.save_only_these_names(f"name {factor}")
    return jax.checkpoint(jnp.sin, policy=names)


MAKERS = (jvp_rule, jvp_rules, vjp_rule, forward_rule, rule_of_a_helper, static_argument)
MAKERS += (under_vmap, callback, literal, in_a_loop, under_jit, policy)


@pytest.mark.parametrize("make", MAKERS)
def test_made_anew_it_is_the_same_program_and_with_another_number_another(make):
    assert key_of(make(3.0)) == key_of(make(3.0))
    assert key_of(make(3.0)) != key_of(make(4.0))


@pytest.mark.parametrize("make", [jvp_rule, jvp_rules, vjp_rule, rule_of_a_helper])
def test_arrays_that_a_rule_captures_are_compared_by_value(make):
    # They are no leaves of a followed function, so that another value is another program.
    one = jnp.arange(100.0)
    assert key_of(make(one[:3])) == key_of(make(jnp.arange(3.0)))
    assert key_of(make(one[:3])) != key_of(make(one[1:4]))


def test_a_rule_that_names_itself_is_read_to_its_end():
    fn = jax.custom_vjp(lambda x: 2 * x)
    fn.defvjp(lambda x: (fn(x), None), lambda _, g: (fn(g),))
    assert key_of(fn) == key_of(fn)


FACTOR = 1.0


def test_globals_of_a_rule_count(monkeypatch):
    def make():
        fn = jax.custom_vjp(lambda x: 2 * x)
        fn.defvjp(lambda x: (2 * x, None), lambda _, g: (FACTOR * g,))
        return fn

    before = key_of(make())
    assert key_of(make()) == before
    monkeypatch.setitem(globals(), "FACTOR", 2.0)
    assert key_of(make()) != before


def test_constants_of_the_program_do_not_count():
    def key(array):
        return key_of(lambda x: x * array), key_of(jax.jit(lambda x: x * array))

    assert key(jnp.ones(3)) == key(jnp.zeros(3))
    assert key(jnp.ones(3)) != key(jnp.ones(()))


def test_operands_and_their_order_count():
    first = key_of(lambda x: x - jnp.sin(x))
    assert first == key_of(lambda y: y - jnp.sin(y))
    assert first != key_of(lambda x: jnp.sin(x) - x)
    assert first != key_of(lambda x: x - jnp.cos(x))


def test_what_cannot_be_compared_is_like_nothing():
    class Slotted:
        __slots__ = ("factor",)

    def make():
        held = Slotted()
        held.factor = 2.0
        return lambda x: jax.pure_callback(lambda a: held.factor * a, X, x)

    assert key_of(make()) != key_of(make())


class Reading:
    def method(self):
        return FACTOR


def test_globals_of_methods_and_of_functions_are_state(monkeypatch):
    held = Reading()
    keys = []
    for factor in (1.0, 2.0):
        monkeypatch.setitem(globals(), "FACTOR", factor)
        keys.append((fingerprints.of_state(held), fingerprints.of_state(calls_a_global)))
    assert keys[0][0] != keys[1][0]
    assert keys[0][1] != keys[1][1]


def reads_a_global():
    return FACTOR


def calls_a_global():
    return reads_a_global()


class Net:
    def __init__(self, scale):
        self.scale = scale

    @functools.partial(jax.jit, static_argnums=0)
    def __call__(self, x):
        return self.scale * x


@pytest.mark.parametrize("change", ["function", "object", "container", "own"])
def test_the_state_behind_a_function(change):
    held, net, own = [1.0], Net(2.0), jnp.ones(2)

    def inner():
        return held

    def state():
        return fingerprints.of_state(lambda: (inner(), net(X), own))

    before = state()
    assert state() == before
    if change == "function":
        held[0] = 2.0
    elif change == "object":
        net.scale = jnp.ones(3)
    elif change == "container":
        held.append(jnp.ones(3))
    else:
        own = jnp.zeros(2)  # an argument of what is inside at the most
    assert (state() == before) == (change == "own")
