"""What a caller's function returns by mistake has an error that says what to write instead."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import flatjax.transforms as ft
from flatjax import losses
from tests.transforms.zoo import (
    HEADS,
    flat,
    functions,
    loss_fn,
    model,
    network,
    sequences,
    token_mean,
)

XENT = losses.softmax_cross_entropy
PARAMS, BATCH = network()


def gradient(p):
    return jax.grad(loss_fn)(p, BATCH)


def value(p):
    return loss_fn(p, BATCH)


def traced(tx, params=PARAMS, updates=None, **extra):
    """The update, traced: every error of this file comes before anything runs."""
    updates = jax.tree.map(jnp.zeros_like, params) if updates is None else updates
    extra = {"batch": BATCH, **extra}
    return jax.eval_shape(lambda: tx.update(updates, tx.init(params), params, **extra))


TAKES_GRADIENT = {
    "sam": ft.sam,
    "gsam": ft.gsam,
    "looksam": ft.looksam,
    "wsam": ft.wsam,
    "wsam_decoupled": lambda **k: ft.wsam(optimizer=optax.sgd(0.1), learning_rate=0.1, **k),
    "friendly_sam": ft.friendly_sam,
    "gradient_norm_penalty": ft.gradient_norm_penalty,
    "gradient_penalty": lambda **k: ft.gradient_penalty(0.1, **k),
    "igr": lambda **k: ft.implicit_gradient_regularization(0.1, **k),
}
DIAGNOSED = [n for n in TAKES_GRADIENT if n not in ("gradient_penalty", "igr")]
BAD_GRADIENTS = {
    "value_and_grad": (lambda p: (value(p), gradient(p)), r"pair \(value, gradient\).*jax.grad"),
    "value, aux and gradient": (
        lambda p: ((value(p), 1), gradient(p)),
        r"pair \(value, gradient\)",
    ),
    "has_aux": (lambda p: (gradient(p), {"acc": 1.0}), r"pair \(gradient, aux\).*\[0\]"),
    "nothing": (lambda p: None, "None: does the function return"),
    "another tree": (lambda p: [gradient(p)], "another tree than the params.*gradient:.*params:"),
    "another shape": (lambda p: jax.tree.map(lambda a: a[None], gradient(p)), r"\['b'\] of shape"),
    "integers": (lambda p: jax.tree.map(lambda a: a.astype(int), p), "int32, which is no floating"),
    "no arrays": (lambda p: jax.tree.map(lambda a: "g", p), r"of shape|of type str|no floating"),
}


@pytest.mark.parametrize(
    ("name", "bad"), [("sam", b) for b in BAD_GRADIENTS] + [(n, "has_aux") for n in TAKES_GRADIENT]
)
def test_gradient_functions(name, bad):
    fn, message = BAD_GRADIENTS[bad]
    with pytest.raises((TypeError, ValueError), match=f"(?s)grad_fn returned.*{message}"):
        traced(TAKES_GRADIENT[name](), grad_fn=fn)


@pytest.mark.parametrize("name", TAKES_GRADIENT)
def test_no_function_at_all(name):
    with pytest.raises(ValueError, match=r"grad_fn=lambda p.*value_fn="):
        traced(TAKES_GRADIENT[name]())


BAD_VALUES = {
    "has_aux": (lambda p: (value(p), 1), r"returned a tuple.*loss_fn\(p, batch\)\[0\]"),
    "per example": (
        lambda p: XENT(model(p, BATCH[0]), BATCH[1]),
        r"scalar, got shape \(8,\).*mean",
    ),
    "nothing": (lambda p: None, "returned None"),
}


@pytest.mark.parametrize(
    ("name", "bad"), [("sam", b) for b in BAD_VALUES] + [(n, "has_aux") for n in TAKES_GRADIENT]
)
def test_value_functions(name, bad):
    fn, message = BAD_VALUES[bad]
    with pytest.raises((TypeError, ValueError), match=f"value_fn.*{message}"):
        traced(TAKES_GRADIENT[name](), value_fn=fn)


def test_value_functions_may_return_a_mean():
    params, batch = sequences()
    batch = tuple(a[4:] for a in batch)
    weighted = lambda p: token_mean(p, batch)  # noqa: E731
    plain = lambda p: weighted(p).value  # noqa: E731
    g, tx = jax.grad(plain)(params), ft.sam(diagnostics=True)

    @jax.jit
    def update():
        return [tx.update(g, tx.init(params), params, value_fn=fn) for fn in (plain, weighted)]

    expected, out = update()
    np.testing.assert_array_equal(flat(out), flat(expected))


@pytest.mark.parametrize("name", DIAGNOSED)
def test_devices_are_not_weighed_by_a_value_function(name):
    # The incoming gradient is averaged over devices equally: a weight would be lost there.
    _, batch = sequences()
    weighted = lambda p: token_mean(p, batch)  # noqa: E731

    def mapped(**extra):
        tx = TAKES_GRADIENT[name](axis_name="i", diagnostics=True)
        fn = lambda p: traced(tx, p, **extra)  # noqa: E731
        jax.vmap(fn, axis_name="i")(jax.tree.map(lambda a: a[None], PARAMS))

    for extra in ({}, {"grad_fn": gradient}):
        with pytest.raises(ValueError, match=r"flatjax\.Mean.*averaged equally.*\.value"):
            mapped(value_fn=weighted, **extra)


BAD_MEANS = {
    "shapes": (lambda x: losses.Mean(x, x.sum()), r"shape \(8,\) and a weight of \(\)"),
    "matrices": (
        lambda x: losses.Mean(x[None], x[None]),
        r"scalars, or have one entry per example",
    ),
    "integers": (lambda x: losses.Mean(x.astype(int), x), "total of dtype int32"),
    "complex": (lambda x: losses.Mean(x, x + 1j), "weight of dtype complex64"),
}


@pytest.mark.parametrize("bad", BAD_MEANS)
def test_means_that_are_none(bad):
    make, message = BAD_MEANS[bad]
    oracle = ft.sam_value_and_grad(lambda p, b: make(XENT(model(p, b[0]), b[1])))
    with pytest.raises(
        (TypeError, ValueError), match=f"loss_fn returned a flatjax.Mean.*{message}"
    ):
        jax.eval_shape(oracle, PARAMS, BATCH)


@pytest.mark.parametrize("name", [n for n in HEADS if not n.startswith("gradient_noise")])
def test_updates_that_are_no_gradient(name):
    # As handed over by value_and_grad. (Isotropic noise goes on anything.)
    with pytest.raises(TypeError, match=r"incoming updates are a pair \(value, gradient\)"):
        traced(HEADS[name](), updates=(value(PARAMS), gradient(PARAMS)), **functions(BATCH))


@pytest.mark.parametrize("name", DIAGNOSED)
def test_diagnostics_need_the_loss(name):
    tx = TAKES_GRADIENT[name](diagnostics=True)
    with pytest.raises(ValueError, match=r"\(diagnostics=True\).*value_fn=lambda p: loss_fn"):
        traced(tx, grad_fn=gradient)
    traced(tx, grad_fn=gradient, value_fn=value)
    traced(tx, value_fn=value)


def test_diagnostics_of_the_penalties_need_no_loss():
    traced(ft.gradient_penalty(0.1, diagnostics=True), grad_fn=gradient)


def with_aux(p, b):
    return loss_fn(p, b), {"acc": 1.0}


ORACLES = {
    "sam": ft.sam_value_and_grad,
    "penalty": lambda fn, **k: ft.penalty_value_and_grad(fn, coef=0.1, **k),
}


@pytest.mark.parametrize("name", ORACLES)
def test_oracles(name):
    def call(fn, params=PARAMS, **options):
        return jax.eval_shape(lambda: ORACLES[name](fn, **options)(params, BATCH))

    with pytest.raises(TypeError, match=r"tuple of length 2.*has_aux=True"):
        call(with_aux)
    with pytest.raises(TypeError, match=r"has_aux=True, but loss_fn did not return a pair"):
        call(loss_fn, has_aux=True)
    with pytest.raises(TypeError, match=r"has_aux=True, but loss_fn did not return a pair"):
        call(lambda p, b: (loss_fn(p, b), 1, 2), has_aux=True)
    with pytest.raises(TypeError, match="returned None"):
        call(lambda p, b: None)
    with pytest.raises(TypeError, match=r"params\['w'\] has dtype int32"):
        call(lambda p, b: jnp.sum(p["w"]), {"w": jnp.arange(3)})
    with pytest.raises(TypeError, match="is no array but str"):
        call(lambda p, b: jnp.sum(p["w"]), {"w": jnp.ones(3), "name": "mlp"})


def test_a_penalty_fn_with_aux():
    with pytest.raises(TypeError, match="tuple of length 2"):
        ft.penalty_value_and_grad(loss_fn, coef=0.1, penalty_fn=with_aux)(PARAMS, BATCH)


TAKES_LOSS = {
    "sam": lambda fn: ft.sam(groups=2, loss_fn=fn),
    "halves": lambda fn: ft.implicit_gradient_regularization(0.1, loss_fn=fn, estimator="halves"),
    "isgr": lambda fn: ft.stochastic_implicit_gradient_regularization(
        0.1, loss_fn=fn, micro_batches=2
    ),
    "noise": lambda fn: ft.gradient_noise(0.1, covariance="gradient", loss_fn=fn),
    "diagonal": lambda fn: ft.gradient_noise(0.1, covariance="diagonal", loss_fn=fn),
}


@pytest.mark.parametrize("name", TAKES_LOSS)
def test_loss_functions_with_aux(name):
    message = "tuple of length 2.*return the loss only|drop auxiliary outputs"
    with pytest.raises(TypeError, match=message):
        traced(TAKES_LOSS[name](with_aux), **functions(BATCH))


TAKES_MODEL = {
    "fisher_penalty": lambda m: ft.fisher_penalty(m, XENT, coef=0.1),
    "random_label_gradient_penalty": lambda m: ft.random_label_gradient_penalty(m, XENT, coef=0.1),
    "input_gradient_penalty": lambda m: ft.input_gradient_penalty(m, XENT, coef=0.1),
    "label_noise": lambda m: ft.label_noise(m, XENT, flip_probability=0.1),
}


@pytest.mark.parametrize("name", TAKES_MODEL)
def test_model_functions_with_state_and_other_batches(name):
    with pytest.raises(TypeError, match=r"model_fn returned a tuple.*\[0\]"):
        traced(TAKES_MODEL[name](lambda p, x: (model(p, x), {"mean": 0.0})))
    with pytest.raises(TypeError, match=r"takes batch=\(inputs, targets\), got a dict"):
        traced(TAKES_MODEL[name](model), batch={"x": BATCH[0], "y": BATCH[1]})


def test_outputs_of_any_kind_go_with_a_loss_of_ones_own():
    pair = lambda p, x: (model(p, x), 1.0)  # noqa: E731
    tx = ft.input_gradient_penalty(pair, lambda z, t: XENT(z[0], t), coef=0.1)
    traced(tx)


class Equinox:
    """The recipes of equinox: one that cannot work, and those that do."""

    model = eqx.nn.MLP(3, 3, 4, 1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    @staticmethod
    def loss(m):
        return XENT(jax.vmap(m)(BATCH[0]), BATCH[1]).mean()

    @classmethod
    def updates(cls):
        return eqx.filter_grad(cls.loss)(cls.model)


def test_equinox():
    kind = Equinox
    call = lambda params=kind.params, **k: traced(ft.sam(), params, kind.updates(), **k)  # noqa: E731
    for bad in ({"grad_fn": eqx.filter_grad(kind.loss)}, {"value_fn": kind.loss}):
        with pytest.raises(TypeError, match=r"eqx.partition\(model.*eqx.combine\(p, static\)"):
            call(**bad)
    with pytest.raises(TypeError, match=r"activation is no array but custom_jvp.*eqx.partition"):
        call(kind.model, grad_fn=eqx.filter_grad(kind.loss))
    combined = lambda p: eqx.combine(p, kind.static)  # noqa: E731
    call(grad_fn=jax.grad(lambda p: kind.loss(combined(p))))
    call(grad_fn=lambda p: eqx.filter_grad(kind.loss)(combined(p)))
    with pytest.raises(TypeError, match=r"eqx.partition"):
        ft.sam_value_and_grad(lambda m, b: kind.loss(m))(kind.params, BATCH)


def test_nnx():
    net = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    loss = lambda m: XENT(m(BATCH[0]), BATCH[1]).mean()  # noqa: E731
    graph, params, rest = nnx.split(net, nnx.Param, ...)
    updates = nnx.grad(loss)(net)
    merged = lambda p: loss(nnx.merge(graph, p, rest))  # noqa: E731
    call = lambda **k: traced(ft.sam(), params, updates, **k)  # noqa: E731
    for bad in ({"grad_fn": nnx.grad(loss)}, {"value_fn": loss}):
        with pytest.raises(TypeError, match=r"no model.*flax.nnx.split.*flax.nnx.merge.*copy"):
            call(**bad)
    with pytest.raises(TypeError, match=r"another tree.*flax.nnx.State.*flax.nnx.split"):
        call(grad_fn=lambda p: nnx.to_pure_dict(jax.grad(merged)(p)))
    with pytest.raises(TypeError, match=r"flax.nnx.merge"):
        ft.sam_value_and_grad(lambda m, b: loss(m))(params, BATCH)
    call(grad_fn=jax.grad(merged))
    # The optimiser of nnx forwards extra arguments, and hands over bare arrays.
    optimizer = nnx.Optimizer(net, optax.chain(ft.sam(0.3), optax.sgd(0.5)), wrt=nnx.Param)
    expected = ft.sam_value_and_grad(lambda p, b: merged(p), rho=0.3)(params, BATCH)[1]
    expected = flat(params) - 0.5 * flat(expected)  # before the update, which is in place
    optimizer.update(net, updates, grad_fn=jax.grad(merged))
    # Float32 sums of 8 terms, in two programs.
    np.testing.assert_allclose(flat(nnx.state(net, nnx.Param)), expected, atol=1e-6)


class Stateful(nnx.Module):
    """Batch norm and dropout: a pass changes the statistics and the key."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first, self.last = nnx.Linear(3, 6, rngs=rngs), nnx.Linear(6, 3, rngs=rngs)
        self.norm, self.drop = nnx.BatchNorm(6, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.last(self.drop(jnp.tanh(self.norm(self.first(x)))))


def nnx_loss(m, batch):
    return XENT(m(batch[0]), batch[1]).mean()


def test_the_recipe_for_nnx_with_state():
    """Both passes with one dropout mask, and the statistics of the clean one alone."""
    net, expected = Stateful(), Stateful()
    tx = optax.chain(ft.sam(0.3, check=False), optax.sgd(0.5))

    @nnx.jit
    def step(net, optimizer):
        graph, _, rest = nnx.split(nnx.clone(net), nnx.Param, ...)
        grads = nnx.grad(nnx_loss)(net, BATCH)

        def grad_fn(p):
            return nnx.grad(nnx_loss)(nnx.merge(graph, p, rest, copy=True), BATCH)

        optimizer.update(net, grads, grad_fn=grad_fn)

    step(net, nnx.Optimizer(net, tx, wrt=nnx.Param))

    graph, params, rest = nnx.split(expected, nnx.Param, ...)
    rest = nnx.as_pure(rest)  # frozen

    @jax.jit
    def reference(params):
        loss = lambda p: nnx_loss(nnx.merge(graph, p, rest), BATCH)  # noqa: E731
        return ft.sam_value_and_grad(loss, rho=0.3)(params)[1]

    wanted = flat(params) - 0.5 * flat(reference(nnx.as_pure(params)))
    expected(BATCH[0])  # one pass
    # Float32 sums of 8 terms, in two programs.
    np.testing.assert_allclose(flat(nnx.state(net, nnx.Param)), wanted, atol=1e-6)
    for name in ("mean", "var"):
        ours, once = (getattr(m.norm, name).get_value() for m in (net, expected))
        np.testing.assert_allclose(ours, once, rtol=1e-6)
    assert int(net.drop.rngs.count.get_value()) == 1


def test_errors_of_ones_own_are_not_explained_away():
    def broken(p):
        raise TypeError("mine")

    with pytest.raises(TypeError, match=r"^mine"):
        traced(ft.sam(), grad_fn=broken)
    with pytest.raises(TypeError, match=r"^'NoneType' object is not callable"):
        traced(ft.sam(), grad_fn=lambda p: (lambda f: f())(None))
