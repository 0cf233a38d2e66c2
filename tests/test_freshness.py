"""No public name answers for a value that a function captured once and no longer holds.

``ENTRIES`` has every public name that takes a function of the user's; a signature test fails when
a new one is missing. Each is called before and after what the function holds is changed, and must
then give what it gives for a function that held the new value from the start.
"""

import inspect
import json
import os
import random
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatjax
from flatjax import losses
from tests.captures import CONTAINERS
from tests.repository import ROOT, public_names

PARAMS = jnp.arange(12.0).reshape(4, 3) / 12 - 0.4
X = jnp.sin(jnp.arange(24.0)).reshape(6, 4)
Y = jnp.cos(jnp.arange(18.0)).reshape(6, 3)
BATCH = X, Y
FIRST, SECOND = jnp.array([1.0, 2.0, 3.0]), jnp.array([2.0, 0.5, -1.0])
KEY = jax.random.key(0)
LABELS = jnp.arange(6) % 2
CURVE = flatjax.bezier([PARAMS, PARAMS**2, -PARAMS])
SGD = optax.sgd(0.1)


class User:
    """The functions that a user makes of one that holds something; made once, as users do."""

    def __init__(self, fn):
        self.model = fn
        self.rows = lambda params, batch: jnp.square(fn(params, batch[0]) - batch[1]).sum(axis=1)
        self.mean = lambda params, batch: self.rows(params, batch).mean()
        self.loss = lambda outputs, targets: fn(jnp.eye(3), outputs - targets).mean(axis=-1) ** 2
        self.grad = jax.grad(lambda params: self.mean(params, BATCH))
        self.product = lambda v: jax.grad(lambda p: jnp.square(fn(p, X)).sum())(v)
        self.statistics = lambda params, running, x: (running + fn(params, x).mean(axis=0)) / 2


def step(make, **kwargs):
    """One eager update of a transform."""

    def entry(user):
        transform = make(user)
        state = transform.init(PARAMS)
        extra = {key: value(user) if callable(value) else value for key, value in kwargs.items()}
        return transform.update(user.grad(PARAMS), state, PARAMS, **extra)[0]

    return entry


def moved(make):
    return step(make, grad_fn=lambda user: user.grad, batch=BATCH)


def stream(user):
    op = flatjax.over_batches(lambda b: flatjax.hessian(user.rows, PARAMS, b), [BATCH])
    return op @ PARAMS


def operated(name, **kwargs):
    def entry(user):
        return getattr(flatjax, name)(user.product, structure=PARAMS, **kwargs)

    return entry


def measured(name, *args, **kwargs):
    def entry(user):
        return getattr(flatjax, name)(user.rows, PARAMS, BATCH, *args, **kwargs)

    return entry


plain = losses.squared_error
ENTRIES = {
    "hessian": lambda u: flatjax.hessian(u.mean, PARAMS, BATCH) @ PARAMS,
    "ggn": lambda u: flatjax.ggn(u.model, plain, PARAMS, BATCH) @ PARAMS,
    "ggn of a loss": lambda u: flatjax.ggn(lambda p, x: x @ p, u.loss, PARAMS, BATCH) @ PARAMS,
    "fisher": lambda u: flatjax.fisher(u.model, plain, PARAMS, BATCH, kind="sampled", key=KEY)
    @ PARAMS,
    "gradient_covariance": lambda u: flatjax.gradient_covariance(u.rows, PARAMS, BATCH) @ PARAMS,
    "jacobian": lambda u: flatjax.jacobian(u.model, PARAMS, X) @ PARAMS,
    "ntk": lambda u: flatjax.ntk(u.model, PARAMS, X) @ Y,
    "over_batches": stream,
    "hessian_variance": lambda u: flatjax.measures.hessian_variance(u.rows, PARAMS, BATCH) @ PARAMS,
    "per_example_gradients": measured("per_example_gradients"),
    "gradient_gram": measured("gradient_gram"),
    "gram_eigh": measured("gram_eigh", k=2),
    "as_operator": lambda u: flatjax.operators.as_operator(u.product, PARAMS) @ PARAMS,
    "lanczos": lambda u: flatjax.lanczos(u.product, PARAMS, 3, structure=PARAMS),
    "eigsh": operated("eigsh", k=1, key=KEY),
    "power_iteration": operated("power_iteration", key=KEY),
    "trace": operated("trace", key=KEY, num_products=4),
    "diagonal": operated("diagonal", key=KEY, num_products=4),
    "frobenius_norm": operated("frobenius_norm", key=KEY, num_products=6),
    "logdet": lambda u: flatjax.logdet(
        lambda v: v + u.product(v), key=KEY, num_probes=2, num_steps=3, structure=PARAMS
    ),
    "trace_of_function": operated("trace_of_function", f=jnp.tanh, key=KEY, num_probes=2),
    "trace_of_function of a function": lambda u: flatjax.trace_of_function(
        lambda v: v + u.product(v), lambda x: u.model(jnp.eye(3), jnp.ones((1, 3))).sum() * x,
        key=KEY, num_probes=2, structure=PARAMS,
    ),
    "spectral_density": operated("spectral_density", key=KEY, num_probes=2, num_steps=3),
    "spectrum": operated("spectrum", key=KEY, k=1, num_steps=4),
    "sharpness": operated("sharpness", key=KEY),
    "check_deterministic": operated("check_deterministic"),
    "track": lambda u: flatjax.track().update(
        flatjax.hessian(u.mean, PARAMS, BATCH), flatjax.track().init(PARAMS, key=KEY)
    ),
    "loss_along": lambda u: flatjax.loss_along(
        u.rows, PARAMS, BATCH, direction=PARAMS, positions=[0.0, 1.0]
    ),
    "batch_sharpness": lambda u: flatjax.batch_sharpness(u.rows, PARAMS, [BATCH, BATCH]),
    "loss_surface": measured(
        "loss_surface", first=PARAMS, second=PARAMS**2, positions=[0.0, 1.0]
    ),
    "loss_along with args_fn": lambda u: flatjax.loss_along(
        lambda params, batch, outputs: (params**2).mean() + outputs.mean(), PARAMS, BATCH,
        direction=PARAMS, positions=[0.0, 1.0], args_fn=lambda params: u.model(params, X),
    ),
    "barrier": lambda u: flatjax.barrier(u.rows, PARAMS, -PARAMS, BATCH, num_points=3),
    "log_volume": measured("log_volume", key=KEY, threshold=60.0, num_directions=2, tol=0.1),
    "curve_value_and_grad": lambda u: flatjax.curve_value_and_grad(u.rows)(CURVE, BATCH, key=KEY),
    "fit_curve": lambda u: flatjax.fit_curve(
        u.rows, CURVE, [BATCH], optimizer=SGD, key=KEY, num_steps=1
    ),
    "fit_curve of an optimiser": lambda u: flatjax.fit_curve(
        lambda w, batch: (w**2).mean(), CURVE, [BATCH], key=KEY, num_steps=1,
        optimizer=optax.GradientTransformation(
            SGD.init, lambda g, s, p: (jax.tree.map(lambda a: a * u.model(PARAMS, X).mean(), g), s)
        ),
    ),
    "loss_on_curve": lambda u: flatjax.loss_on_curve(u.rows, CURVE, BATCH, positions=[0.0, 0.5]),
    "check_symmetry": lambda u: flatjax.check_symmetry(
        u.model, PARAMS, flatjax.spec_of(PARAMS, {"": ("rows", None)}), X, key=KEY
    ).error,
    "average_sharpness": measured("average_sharpness", sigma=0.1, key=KEY, num_samples=2),
    "critical_sharpness": measured("critical_sharpness", update=-PARAMS),
    "curvature_gradient": lambda u: flatjax.curvature_gradient(
        lambda p, b: u.rows(p, b) ** 2, PARAMS, PARAMS, PARAMS, BATCH
    ),
    "directional_sharpness": lambda u: flatjax.directional_sharpness(u.product, PARAMS),
    "eps_sharpness": measured("eps_sharpness", ascent_steps=2),
    "generalized_sharpness": lambda u: flatjax.generalized_sharpness(
        u.product, PARAMS, key=KEY, num_starts=1, max_products=2
    ),
    "local_learning_coefficient": lambda u: flatjax.local_learning_coefficient(
        u.rows, PARAMS, [BATCH], key=KEY, num_data=100, localization=1.0, step_size=1e-4,
        num_chains=1, num_steps=4, num_burnin=1,
    ),
    "sam_sharpness": measured("sam_sharpness"),
    "pac_bayes_flatness": measured("pac_bayes_flatness", key=KEY, num_samples=2),
    "linear_stability": measured("linear_stability", learning_rate=0.1, batch_size=2, key=KEY),
    "fisher_rao_norm": lambda u: flatjax.fisher_rao_norm(u.model, plain, PARAMS, BATCH),
    "gradient_noise_scale": measured("gradient_noise_scale"),
    "stiffness": measured("stiffness", labels=LABELS, num_classes=2),
    "gradient_confusion": measured("gradient_confusion"),
    "sam": moved(lambda u: flatjax.sam(0.1)),
    "sam in groups": step(lambda u: flatjax.sam(0.1, groups=2, loss_fn=u.mean), batch=BATCH),
    "looksam": moved(lambda u: flatjax.looksam(0.1)),
    "gsam": step(
        lambda u: flatjax.gsam(0.1, alpha=0.1),
        grad_fn=lambda u: u.grad, value_fn=lambda u: lambda p: u.mean(p, BATCH),
    ),
    "wsam": moved(lambda u: flatjax.wsam(0.1)),
    "friendly_sam": moved(lambda u: flatjax.friendly_sam(0.1)),
    "momentum_sam": moved(lambda u: flatjax.momentum_sam(0.1, rho=0.1)),
    "gradient_norm_penalty": moved(lambda u: flatjax.gradient_norm_penalty(0.1)),
    "gradient_penalty": moved(lambda u: flatjax.gradient_penalty(0.1)),
    "fisher_penalty": step(lambda u: flatjax.fisher_penalty(u.model, plain, coef=0.1), batch=BATCH),
    "input_gradient_penalty": step(
        lambda u: flatjax.input_gradient_penalty(u.model, plain, coef=0.1), batch=BATCH
    ),
    "random_label_gradient_penalty": step(
        lambda u: flatjax.random_label_gradient_penalty(
            u.model, losses.softmax_cross_entropy, coef=0.1
        ),
        batch=(X, LABELS),
    ),
    "gradient_noise": step(
        lambda u: flatjax.gradient_noise(0.1, covariance="gradient", loss_fn=u.rows), batch=BATCH
    ),
    "label_noise": step(lambda u: flatjax.label_noise(u.model, plain, scale=0.1), batch=BATCH),
    "implicit_gradient_regularization": step(
        lambda u: flatjax.implicit_gradient_regularization(
            0.1, loss_fn=u.mean, estimator="halves"
        ),
        grad_fn=lambda u: u.grad,
        batch=BATCH,
    ),
    "stochastic_implicit_gradient_regularization": step(
        lambda u: flatjax.stochastic_implicit_gradient_regularization(
            0.1, loss_fn=u.mean, micro_batches=2
        ),
        batch=BATCH,
    ),
    "sam_value_and_grad": lambda u: flatjax.sam_value_and_grad(u.mean)(PARAMS, BATCH),
    "penalty_value_and_grad": lambda u: flatjax.penalty_value_and_grad(u.mean, coef=0.1)(
        PARAMS, BATCH
    ),
    "reestimate_batch_statistics": lambda u: flatjax.reestimate_batch_statistics(
        u.statistics, PARAMS, jnp.zeros(3), [X]
    ),
}  # fmt: skip
# They take an operator that another entry makes, or functions of names and shapes only.
OPERATORS_ONLY = {
    "block_diagonal", "blocks", "damped", "inverse", "plan", "preconditioned",
    "restrict", "scale_invariant_sharpness", "select", "angular_update",
    "effective_learning_rate",
}  # fmt: skip
# Schedules, masks and rules of optax, called as they are.
CALLED = {
    "ema_params", "entropy_sgd", "langevin", "match_weights", "proportional_schedule",
    "random_directions",
}  # fmt: skip
# One of every way in which a function enters; the others are slow tests.
FAST = (
    "hessian", "ggn of a loss", "fisher", "gradient_covariance", "jacobian", "over_batches",
    "per_example_gradients", "as_operator", "trace_of_function of a function", "loss_along",
    "loss_along with args_fn", "fit_curve of an optimiser",
    "sam_sharpness", "gradient_noise_scale", "linear_stability", "sam", "fisher_penalty",
    "sam_value_and_grad", "reestimate_batch_statistics",
)  # fmt: skip
# Transforms and oracles call the user's functions as JAX does, and an inner `jax.jit` keeps there
# what it captured when it was traced first.
AS_JAX_DOES = list(ENTRIES)[list(ENTRIES).index("sam") :]
KEPT_BY_JAX = ("jitted", "jitted_inside", "jitted_method", "loop_inside", "checkpoint_inside")
PAIRS = [
    (entry, container)
    for entry in ENTRIES
    for container in CONTAINERS
    if not (entry in AS_JAX_DOES[:-1] and container in KEPT_BY_JAX)
]


def numbers(result):
    """All floating numbers of a result."""
    leaves = [np.asarray(a, np.float64) for a in jax.tree.leaves(result) if _floating(a)]
    return np.concatenate([a.ravel() for a in leaves])


def _floating(a):
    return jnp.issubdtype(jnp.result_type(a), jnp.floating)


def answers(entry, container):
    """Before the change; after it; and of a function that held the new value from the start."""
    fn, change = CONTAINERS[container](FIRST)
    user = User(fn)
    before = numbers(ENTRIES[entry](user))
    change(SECOND)
    after = numbers(ENTRIES[entry](user))
    fresh = numbers(ENTRIES[entry](User(CONTAINERS[container](SECOND)[0])))
    return before, after, fresh


def test_every_name_that_takes_a_function_is_covered():
    known = {name.split(" ")[0] for name in ENTRIES} | OPERATORS_ONLY | CALLED
    names = ("loss", "model_fn", "loss_fn", "op", "batches")
    for item in public_names():
        # Of the rooms, those below drive iterations and have no cache of their own.
        if not inspect.isfunction(item.value) or item.name.count(".") > 1:
            continue
        parameters = inspect.signature(item.value).parameters.values()
        if any("Callable" in str(p.annotation) or p.name in names for p in parameters):
            assert item.name.rpartition(".")[2] in known, f"{item.name} is not in ENTRIES"


@pytest.mark.parametrize(
    "entry", [e if e in FAST else pytest.param(e, marks=pytest.mark.slow) for e in ENTRIES]
)
def test_the_answer_is_that_of_the_value_now(entry):
    before, after, fresh = answers(entry, "closure")
    np.testing.assert_array_equal(after, fresh)
    assert after.shape != before.shape or not np.array_equal(before, after)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(40))
def test_the_answer_is_that_of_a_fresh_process(number):
    entry, container = random.Random(number).choice(PAIRS)
    _, after, fresh = answers(entry, container)
    program = (
        "import json; from tests import test_freshness as t;"
        f"user = t.User(t.CONTAINERS[{container!r}](t.SECOND)[0]);"
        f"print(json.dumps(t.numbers(t.ENTRIES[{entry!r}](user)).tolist()))"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    expected = np.array(json.loads(run.stdout.splitlines()[-1]))
    # The same program, compiled in another process; sums may be ordered otherwise.
    np.testing.assert_allclose(after, expected, rtol=1e-4, atol=1e-5, err_msg=container)
    np.testing.assert_array_equal(after, fresh)
