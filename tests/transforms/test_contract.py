"""What optax asks of every transform, over every transform of the package."""

import functools
import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import serialization

import flatjax.transforms as ft
from flatjax import losses
from tests.transforms.zoo import EVERY, HEADS, TAILS, WHOLE, functions, loss_fn, model, network

NAMES = list(EVERY)


def chain(name, **options):
    """A complete optimiser: heads and tails with SGD."""
    tx = EVERY[name](**options)
    if name in HEADS:
        return optax.chain(tx, optax.sgd(0.01))
    return tx if name in WHOLE else optax.chain(optax.sgd(0.01), tx)


def stepper(tx, batch):
    """A step with extra arguments that no transform knows."""
    return lambda params, state: one_step(tx, params, state, batch)


def one_step(tx, params, state, batch):
    value, g = jax.value_and_grad(loss_fn)(params, batch)
    unknown = {"value": value, "key": 1, "count": 1, "radius": 1, "at": 1}
    updates, state = tx.update(g, state, params, **unknown, **functions(batch))
    return optax.apply_updates(params, updates), state


def types(tree):
    return jax.tree.map(lambda a: (jnp.shape(a), jnp.result_type(a)), tree)


def test_every_public_transform_is_here():
    made = {
        name: fn
        for name, fn in vars(ft).items()
        if "Transformation" in str(getattr(fn, "__annotations__", {}).get("return"))
    }
    del made["drop_extra_args"]  # a wrapper
    missing = [name for name in made if not any(name in known for known in NAMES)]
    assert not missing
    # Those that look at what comes in: see test_incoming.
    checked = {name for name, fn in made.items() if "check" in inspect.signature(fn).parameters}
    assert checked == {
        *("sam", "gsam", "looksam", "wsam", "friendly_sam", "gradient_norm_penalty"),
        *("gradient_penalty", "implicit_gradient_regularization"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_life_in_one_program(name):
    """Good steps, one on a bad batch, a good one: compiled once, no key used twice, no poison."""
    params, batch = network()
    tx, traces = chain(name), 0

    # Donated: state that shared a buffer with the params, or within itself, would raise.
    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, batch):
        nonlocal traces
        traces += 1
        return one_step(tx, params, state, batch)

    with jax.debug_key_reuse(True):
        state = tx.init(params)
        structure = types(state)
        for _ in range(STEPS_BEFORE.get(name, 3)):
            params, state = step(params, state, batch)
        assert types(state) == structure
        assert all_finite(params)
        assert all(isinstance(a, jax.Array) for a in jax.tree.leaves(state))

        # The inputs are not numbers: the update shows it, and what the state has gathered stays.
        bad = (jnp.full_like(batch[0], jnp.nan), batch[1])
        before = gathered(state)
        after, state = step(copy(params), state, bad)
        assert not all_finite(after), "optax.apply_if_finite has to see it"
        assert gathered(state).keys() == before.keys()
        for path, value in gathered(state).items():
            np.testing.assert_array_equal(value, before[path], err_msg=path)
        params, state = step(params, state, batch)
        assert all_finite((params, gathered(state)))
    assert traces == 1, "recompiled: the state changed its structure or dtypes"


# A step on which the stored direction, or the outer params, would be renewed.
STEPS_BEFORE = {"looksam": 2, "entropy_sgd": 2, "fisher_penalty": 2}


def gathered(state):
    """All of a state but the counts of updates and the diagnostics of the last one."""
    named = jax.tree_util.tree_leaves_with_path(state)
    paths = {jax.tree_util.keystr(path): np.asarray(a) for path, a in named}
    return {k: a for k, a in paths.items() if ".count" not in k and ".metrics" not in k}


def copy(tree):
    return jax.tree.map(jnp.copy, tree)


def all_finite(tree):
    return all(bool(jnp.isfinite(a).all()) for a in jax.tree.leaves(tree))


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize("name", [*WHOLE, "friendly_sam", *TAILS])
def test_a_bad_first_gradient_leaves_no_trace(name, bad):
    # The first gradient starts an average; where it is not finite, the second one does.
    w = {"a": jnp.array([1.0, 2.0]), "b": jnp.array(3.0)}
    g = jax.tree.map(jnp.ones_like, w)
    tx = EVERY[name](**{"every": 1} if name in ("swa", "swag") else {})
    at = lambda p: jax.tree.map(lambda a, b: a + 0 * b, g, p)  # noqa: E731
    update = lambda g, state: tx.update(g, state, w, grad_fn=at)  # noqa: E731

    # An abstract init has no params to start from; the first update has.
    start = tx.init(jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), w))
    out, state = update({**g, "b": jnp.array(bad)}, start)
    assert not all_finite(out)
    out, state = update(g, state)

    fresh = tx.init(w)
    if name in ("langevin", "langevin_rms", "entropy_sgd", "momentum_sam"):
        fresh = fresh._replace(count=fresh.count + 1)  # the same noise, the same radius
    expected, expected_state = update(g, fresh)
    kept, expected_kept = gathered((out, state)), gathered((expected, expected_state))
    assert kept.keys() == expected_kept.keys()
    for path, value in kept.items():
        np.testing.assert_array_equal(value, expected_kept[path], err_msg=path)


@pytest.mark.parametrize("name", NAMES)
def test_abstract_init_and_map_params(name):
    params, _ = network()
    tx = chain(name)
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), params)
    assert types(tx.init(abstract)) == types(tx.init(params))
    assert types(jax.eval_shape(tx.init, abstract)) == types(tx.init(params))
    state = tx.init(params)
    mapped = optax.tree.map_params(tx, lambda a: a, state)
    assert jax.tree.structure(mapped) == jax.tree.structure(state)


SLOW = pytest.mark.slow
DTYPES = [
    jnp.bfloat16,
    pytest.param(jnp.float16, marks=SLOW),
    pytest.param(jnp.float32, marks=SLOW),
]


@pytest.mark.parametrize("dtype", [*DTYPES, jnp.float64])
@pytest.mark.parametrize("name", NAMES)
def test_dtypes_are_preserved_under_cond(name, dtype):
    # Traced, not compiled: this is about types, in 4 x 24 programs.
    with jax.enable_x64(dtype == jnp.float64):
        params, batch = network(dtype)
        tx = chain(name)
        state = tx.init(params)

        def step(flag, params, state):
            return jax.lax.cond(flag, stepper(tx, batch), lambda p, s: (p, s), params, state)

        after = jax.eval_shape(step, True, params, state)
        assert types(after) == types((params, state))


@pytest.mark.parametrize("name", NAMES)
def test_clean_under_strict_promotion(name):
    params, batch = network()
    tx = EVERY[name]()

    def step(state):
        g = jax.grad(loss_fn)(params, batch)
        return tx.update(g, state, params, **functions(batch))

    state = tx.init(params)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        _, new = jax.eval_shape(step, state)
    assert types(new) == types(state)


# The scalars of every factory, and of an `Ascent` made of them; those that shape the program or are
# functions are static.
INJECTED = {
    "sam": (ft.sam, {"rho": 0.05, "ascent": ft.Ascent(adaptive=True)}, ()),
    "gsam": (
        lambda rho, alpha, p, offset: ft.gsam(
            rho, alpha=alpha, ascent=ft.Ascent(p, adaptive=True, offset=offset)
        ),
        {"rho": 0.05, "alpha": 0.3, "p": 2.0, "offset": 0.1},
        (),
    ),
    "looksam": (ft.looksam, {"rho": 0.05, "every": 2}, ()),
    "wsam": (ft.wsam, {"rho": 0.05, "gamma": 0.5}, ()),
    "friendly_sam": (ft.friendly_sam, {"rho": 0.05}, ()),
    "gradient_norm_penalty": (ft.gradient_norm_penalty, {"rho": 0.05}, ()),
    "momentum_sam": (ft.momentum_sam, {"learning_rate": 0.1}, ()),
    "gradient_penalty": (ft.gradient_penalty, {"coef": 0.1}, ()),
    "implicit_gradient_regularization": (
        ft.implicit_gradient_regularization,
        {"learning_rate": 0.1},
        (),
    ),
    "stochastic_implicit_gradient_regularization": (
        ft.stochastic_implicit_gradient_regularization,
        {"learning_rate": 0.1, "loss_fn": loss_fn, "micro_batches": 2},
        ("loss_fn", "micro_batches"),
    ),
    "fisher_penalty": (
        ft.fisher_penalty,
        {"model_fn": model, "loss": losses.softmax_cross_entropy, "coef": 0.1},
        ("model_fn", "loss"),
    ),
    "input_gradient_penalty": (
        ft.input_gradient_penalty,
        {"model_fn": model, "loss": losses.softmax_cross_entropy, "coef": 0.1},
        ("model_fn", "loss"),
    ),
    "gradient_noise": (ft.gradient_noise, {"scale": 0.1}, ()),
    "label_noise": (
        ft.label_noise,
        {"model_fn": model, "loss": losses.softmax_cross_entropy, "flip_probability": 0.5},
        ("model_fn", "loss"),
    ),
    "langevin": (
        ft.langevin,
        {"learning_rate": 1e-3, "num_data": 8, "temperature": 0.5, "friction": 0.2},
        (),
    ),
    "entropy_sgd": (ft.entropy_sgd, {"gamma": 0.1, "inner_steps": 2}, ()),
    "ema_params": (ft.ema_params, {"decay": 0.9}, ()),
    "swa": (ft.swa, {"start": 1}, ()),
    "swag": (ft.swag, {"rank": 2}, ("rank",)),
}


@pytest.mark.parametrize("name", INJECTED)
def test_inject_hyperparams(name):
    factory, kwargs, static = INJECTED[name]
    params, batch = network()
    plain = factory(**kwargs)
    injected = optax.inject_hyperparams(factory, static_args=static)(**kwargs)
    g = jax.grad(loss_fn)(params, batch)

    @jax.jit
    def run(params, states):
        results = []
        for tx, state in zip((plain, injected), states, strict=True):
            out, new = tx.update(g, state, params, **functions(batch))
            results.append(out)
        return results, new.hyperparams

    # Initialised eagerly, where the hyperparameters are concrete arrays; updated traced.
    (expected, out), hyperparams = run(params, (plain.init(params), injected.init(params)))
    numbers = {k: v for k, v in kwargs.items() if k not in static and k != "ascent"}
    assert {k: float(hyperparams[k]) for k in numbers} == pytest.approx(numbers)
    # The injected numbers are float32 arrays; the exponents of p take the general path.
    for a, b in zip(jax.tree.leaves(out), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


SCHEDULED = {
    "sam": lambda s: ft.sam(s),
    "gsam": lambda s: ft.gsam(0.05, alpha=s),
    "gradient_penalty": lambda s: ft.gradient_penalty(s),
    "fisher_penalty": lambda s: ft.fisher_penalty(model, losses.softmax_cross_entropy, coef=s),
    "wsam": lambda s: ft.wsam(s, gamma=s),
    "looksam": lambda s: ft.looksam(s, alpha=s),
    "friendly_sam": lambda s: ft.friendly_sam(s, sigma=s, decay=s),
    "momentum_sam": lambda s: ft.momentum_sam(s, rho=s, momentum=s, weight_decay=s),
    "gradient_noise": lambda s: ft.gradient_noise(s),
    "langevin": lambda s: ft.langevin(s, num_data=8, temperature=s, prior_precision=s),
    "ema_params": lambda s: ft.ema_params(s),
    "entropy_sgd": lambda s: ft.entropy_sgd(s, inner_learning_rate=s, noise=s),
}


@pytest.mark.parametrize("name", SCHEDULED)
def test_schedules_see_every_count(name):
    params, batch = network()
    tx = SCHEDULED[name](lambda count: jnp.where(count < 2, 0.1, jnp.nan))
    step = jax.jit(stepper(tx, batch))
    state = tx.init(params)
    for _ in range(2):
        params, state = step(params, state)
    assert not _any_nan((params, state))
    params, state = step(params, state)
    if name == "fisher_penalty":  # the coefficient is applied on every step, kept or not
        assert _any_nan(params)
    assert _any_nan((params, state))


def _any_nan(tree):
    floats = [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.floating)]
    return any(bool(jnp.isnan(a).any()) for a in floats)


def test_checkpoint_round_trip(tmp_path):
    # One checkpoint with every state: keys and NamedTuples keep their structure.
    from orbax.checkpoint import v1 as ocp

    params, _ = network()
    states = {name: chain(name).init(params) for name in NAMES}
    ocp.save(tmp_path / "states", states)
    abstract = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), states
    )
    copies = {
        "orbax": ocp.load(tmp_path / "states", abstract),
        "flax": serialization.from_bytes(states, serialization.to_bytes(states)),
        "pickle": pickle.loads(pickle.dumps(states)),
    }
    for restored in copies.values():
        assert types(restored) == types(states)
        for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(states), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", [*HEADS, *TAILS])
def test_multi_steps_emits_zero_first(name):
    # Types and the first micro-step only: which nesting is meaningful is another test.
    params, batch = network()
    tx = optax.MultiSteps(chain(name), every_k_schedule=3)
    state = tx.init(params)

    def step(state):
        g = jax.grad(loss_fn)(params, batch)
        return tx.update(g, state, params, **functions(batch))

    updates, new = jax.eval_shape(step, state)
    assert types(updates) == types(params)
    assert types(new) == types(state)
