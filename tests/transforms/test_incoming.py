"""What stands before a transform that takes a new gradient is not lost in silence."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import flatjax.transforms as ft
from flatjax import losses
from flatjax.transforms._incoming import equal_up_to_rounding

X = jax.random.normal(jax.random.key(0), (16, 4))
Y = jnp.arange(16) % 3
W = {"w": jax.random.normal(jax.random.key(1), (4, 3)), "b": jnp.array([0.3, -0.2, 0.1])}


def loss(p, batch=(X, Y)):
    return losses.softmax_cross_entropy(batch[0] @ p["w"] + p["b"], batch[1]).mean()


grad = jax.grad(loss)


def update(tx, g=None, **extra):
    g = grad(W) if g is None else g
    extra = {"grad_fn": grad, "batch": (X, Y), **extra}
    return optax.with_extra_args_support(tx).update(g, tx.init(W), W, **extra)[0]


REPLACING = {
    "sam": ft.sam,
    "sam of every third step": lambda **k: ft.sam(every=3, **k),
    "sam of some leaves": lambda **k: ft.sam(ascent=ft.Ascent(mask={"w": True, "b": False}), **k),
    "sam in groups": lambda **k: ft.sam(groups=2, loss_fn=loss, **k),
    "gsam": ft.gsam,
    "looksam": ft.looksam,
    "friendly_sam": ft.friendly_sam,
    "wsam": ft.wsam,
    "decoupled wsam": lambda **k: ft.wsam(optimizer=optax.sgd(0.1), learning_rate=0.1, **k),
    "gradient_norm_penalty": ft.gradient_norm_penalty,
    # They add to what comes in, but take their differences from it.
    "gradient_penalty, forward": lambda **k: ft.gradient_penalty(0.1, mode="forward", **k),
    "gradient_penalty, central": lambda **k: ft.gradient_penalty(0.1, mode="central", **k),
    "igr, forward": lambda **k: ft.implicit_gradient_regularization(0.1, mode="forward", **k),
}
LOST = {
    "clip": optax.clip_by_global_norm(0.1),
    "a little clipping": optax.clip_by_global_norm(0.999 * float(optax.tree.norm(grad(W)))),
    "entrywise clip": optax.clip(0.1),
    "decay": optax.add_decayed_weights(1e-4),
    "decay of biases": optax.add_decayed_weights(1e-4, mask={"w": False, "b": True}),
    "noise": optax.add_noise(1e-3, 0.5, 0),
    "a penalty": ft.gradient_penalty(1e-3),
    "another sam": ft.sam(0.05),
    "frozen leaves": optax.masked(optax.set_to_zero(), {"w": False, "b": True}),
}
LOST_FIRST = [(a, "decay") for a in REPLACING] + [("sam", b) for b in LOST]


@pytest.mark.parametrize(("name", "first"), dict.fromkeys(LOST_FIRST))
def test_what_would_be_lost_is_refused(name, first):
    tx = optax.chain(LOST[first], REPLACING[name](), optax.sgd(0.1))
    order = r"first: optax\.chain\(flatjax\.\w+\(\.\.\.\), optax\.clip_by_global_norm.*check=False"
    with pytest.raises(ValueError, match=rf"not grad_fn\(params\).*{order}"):
        update(tx)


@pytest.mark.parametrize("name", REPLACING)
def test_what_changes_nothing_and_what_stands_behind_passes(name):
    idle = [optax.clip_by_global_norm(100.0), optax.zero_nans(), optax.add_decayed_weights(0.0)]
    tx = REPLACING[name]()
    expected = update(optax.chain(tx, optax.clip_by_global_norm(0.1)))
    out = update(optax.chain(*idle, tx, optax.clip_by_global_norm(0.1)))
    jax.tree.map(np.testing.assert_array_equal, out, expected)


@pytest.mark.parametrize("name", REPLACING)
def test_a_stochastic_gradient_is_not_looked_at_with_check_off(name):
    # Another batch: another gradient by far more than rounding.
    other = grad(W, (X[:4], Y[:4]))
    with pytest.raises(ValueError, match=r"stochastic .*check=False"):
        update(REPLACING[name](), other)
    out = update(REPLACING[name](check=False), other)
    assert all(bool(jnp.isfinite(a).all()) for a in jax.tree.leaves(out))


ADDING = {
    "gradient_penalty": ft.gradient_penalty(0.1),
    "igr": ft.implicit_gradient_regularization(0.1),
    "igr of halves": ft.implicit_gradient_regularization(
        0.1, loss_fn=loss, estimator="halves", mode="forward"
    ),
    "isgr": ft.stochastic_implicit_gradient_regularization(
        0.1, loss_fn=loss, micro_batches=2, mode="forward"
    ),
    "gradient_noise": ft.gradient_noise(0.1),
}


@pytest.mark.parametrize("name", ADDING)
def test_clipping_before_a_transform_that_adds_is_in_effect(name):
    tx, clip = ADDING[name], optax.clip_by_global_norm(0.1)
    out = update(optax.chain(clip, tx))
    added = jax.tree.map(jnp.subtract, update(tx), grad(W))
    expected = jax.tree.map(jnp.add, update(clip), added)
    # Entries of size 1, added and subtracted in float32.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), out, expected)


@pytest.mark.parametrize(
    "tx", [ft.momentum_sam(0.1), ft.langevin(0.1, num_data=1), ft.entropy_sgd()]
)
def test_clipping_before_a_whole_optimiser_is_in_effect(tx):
    clip = optax.clip_by_global_norm(0.1)
    expected = update(tx, update(clip))
    jax.tree.map(np.testing.assert_array_equal, update(optax.chain(clip, tx)), expected)


def test_a_gradient_that_forgets_its_argument_is_refused():
    for tx in (ft.sam(), ft.gsam(), ft.looksam()):
        with pytest.raises(ValueError, match="does not depend on the params that it is given"):
            update(tx, grad_fn=lambda p: grad(W))
        step = jax.jit(lambda w, tx=tx: update(tx, grad(w), grad_fn=lambda p: grad(w)))
        with pytest.raises(ValueError, match="does not depend on the params that it is given"):
            step(W)
    # A linear loss has the same gradient everywhere, and a function of the host is not looked into.
    ones = jax.tree.map(jnp.ones_like, W)
    linear = jax.grad(lambda p: sum(jnp.sum(a) for a in jax.tree.leaves(p)))
    update(ft.sam(), ones, grad_fn=linear)
    update(ft.sam(), ones, grad_fn=lambda p: jax.tree.map(lambda a: np.ones_like(np.asarray(a)), p))


def test_one_gradient_more_at_the_first_call_alone():
    calls = []

    def counted(p):
        calls.append(0)
        return grad(p)

    tx = ft.sam()
    g, state, seen = grad(W), tx.init(W), []
    for _ in range(3):
        _, state = tx.update(g, state, W, grad_fn=counted)
        seen.append(len(calls))
    assert seen == [2, 3, 4]
    calls.clear()
    off = ft.sam(check=False)
    off.update(g, off.init(W), W, grad_fn=counted)
    assert len(calls) == 1


def test_nothing_is_seen_under_jit():
    # Documented: the values are not there to be looked at.
    tx = optax.chain(LOST["clip"], ft.sam())
    jitted = jax.jit(lambda g: update(tx, g))(grad(W))
    # rtol: float32 sums of 16 terms, compiled and not.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        jitted, update(ft.sam(check=False), update(LOST["clip"])),
    )  # fmt: skip


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_gradient_that_is_not_finite_is_passed_on(bad):
    # Nothing can be compared, whether grad_fn(params) is finite or not.
    g = {**grad(W), "b": jnp.full(3, bad)}
    for grad_fn in (grad, lambda p: g):
        out = update(ft.sam(), g, grad_fn=grad_fn)
        assert not bool(jnp.isfinite(out["b"]).all())


def precision(name):
    """The loss and params of a kind of arithmetic."""
    compute = {"bfloat16": jnp.bfloat16, "float16": jnp.float16}.get(name.split()[0], jnp.float32)
    cast = lambda t: jax.tree.map(lambda a: a.astype(compute), t)  # noqa: E731

    def value(p, batch):
        return loss(cast(p), (batch[0].astype(compute), batch[1])).astype(jnp.float32)

    return value, cast(W) if "storage" in name else W


STORED = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("bfloat16 storage", "float16 storage")
]
PRECISIONS = ["float32", "bfloat16 compute", *STORED]


def other_ways(value, params):
    """The same gradient: compiled, accumulated, permuted, spread over devices."""
    g = jax.grad(value)
    permuted = np.random.default_rng(0).permutation(16)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    spread = jax.device_put((X, Y), NamedSharding(mesh, P("data")))
    parts = [g(params, (X[i::4], Y[i::4])) for i in range(4)]
    yield jax.jit(g)(params, (X, Y))
    yield jax.tree.map(lambda *a: sum(a) / 4, *parts)
    yield g(params, (X[permuted], Y[permuted]))
    yield jax.jit(g)(params, spread)


@pytest.mark.parametrize("name", PRECISIONS)
def test_rounding_is_not_refused_and_clipping_is(name):
    value, params = precision(name)
    gradient = lambda p: jax.grad(value)(p, (X, Y))  # noqa: E731
    reference = gradient(params)
    for incoming in other_ways(value, params):
        assert equal_up_to_rounding(incoming, reference, gradient, params)
    for factor in (0.9, 0.5, 0.01):
        clipped = jax.tree.map(lambda a, f=factor: (f * a).astype(a.dtype), reference)
        assert not equal_up_to_rounding(clipped, reference, gradient, params)
    # Decay that is larger than the rounding of the precision.
    by = 1e-4 if name == "float32" else 0.1
    decayed = jax.tree.map(lambda a, w: (a + by * w).astype(a.dtype), reference, params)
    assert not equal_up_to_rounding(decayed, reference, gradient, params)


@pytest.mark.parametrize("compute", [jnp.float32, jnp.bfloat16])
def test_near_a_minimum_a_gradient_is_all_rounding(compute):
    # Least squares at the solution: terms of size 1 that cancel, in float32 to 1e-7.
    targets = X @ jnp.ones(4) + jnp.cos(Y.astype(jnp.float32))
    solution = jnp.linalg.lstsq(X, targets)[0]

    def value(w, rows=slice(None)):
        x, y, w = (a.astype(compute) for a in (X[rows], targets[rows], w))
        return jnp.mean((x @ w - y) ** 2).astype(jnp.float32)

    gradient = jax.grad(value)
    reference = gradient(solution)
    accumulated = sum(jax.grad(value)(solution, slice(i, None, 4)) for i in range(4)) / 4
    off = jnp.linalg.norm(accumulated - reference) / jnp.linalg.norm(reference)
    assert off > 1e-2, "a relative tolerance would refuse this"
    assert equal_up_to_rounding(accumulated, reference, gradient, solution)
    assert not equal_up_to_rounding(reference + 1.0, reference, gradient, solution)


def test_rounding_may_show_on_one_side_alone():
    # At a kink one of the two neighbours has another gradient, and so may another program.
    w = jnp.array([2.0])
    for above in (True, False):
        kink = lambda v, above=above: jnp.where((v > w) if above else (v < w), 1.001, 1.0)  # noqa: E731
        assert equal_up_to_rounding(jnp.array([1.001]), kink(w), kink, w)
        assert not equal_up_to_rounding(jnp.array([1.002]), kink(w), kink, w)


def test_half_precision_at_zero_weights():
    # Zeros cannot be moved by a fraction of themselves: a few units in the last place are allowed.
    w = jnp.zeros(2)
    shifted = lambda w: (w.astype(jnp.bfloat16) + 1).astype(jnp.float32)  # noqa: E731
    unit = 2.0**-7
    assert equal_up_to_rounding(jnp.full(2, 1 + 3 * unit), shifted(w), shifted, w)
    assert not equal_up_to_rounding(jnp.full(2, 1 + 5 * unit), shifted(w), shifted, w)


def test_a_function_of_the_host_is_compared_too():
    # It cannot be traced, so the precision inside it is not known: that of the params counts.
    host = lambda w: jnp.asarray(np.asarray(w) * 2)  # noqa: E731
    w = jnp.array([1.0, 2.0])
    assert equal_up_to_rounding(host(w), host(w), host, w)
    assert not equal_up_to_rounding(0.999 * host(w), host(w), host, w)


def test_an_nnx_model_from_outside_is_no_function_of_the_params():
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(4, 3, rngs=nnx.Rngs(0))

    def of(model):
        return losses.softmax_cross_entropy(model(X), Y).mean()

    graph, params, rest = nnx.split(model, nnx.Param, ...)
    g = nnx.grad(of)(model)
    tx = ft.sam()
    right = lambda p: nnx.grad(of)(nnx.merge(graph, p, rest))  # noqa: E731
    tx.update(g, tx.init(params), params, grad_fn=right)
    with pytest.raises(ValueError, match="does not depend on the params that it is given"):
        tx.update(g, tx.init(params), params, grad_fn=lambda p: nnx.grad(of)(model))


MODEL = lambda p, x: x @ p["w"] + p["b"]  # noqa: E731
OF_A_MODEL = {
    "fisher_penalty": ft.fisher_penalty,
    "random_label_gradient_penalty": ft.random_label_gradient_penalty,
    "input_gradient_penalty": ft.input_gradient_penalty,
}


@pytest.mark.parametrize("name", OF_A_MODEL)
def test_a_penalty_of_a_model_behind_the_optimiser_is_refused(name):
    tx = OF_A_MODEL[name](MODEL, losses.softmax_cross_entropy, coef=0.1, every=2)
    with pytest.raises(ValueError, match=f"{name} was given a descent step.*head of the chain"):
        update(optax.chain(optax.sgd(0.1), tx))
    update(optax.chain(optax.clip_by_global_norm(0.1), tx, optax.sgd(0.1)))
    calls = []

    def counted(p, x):
        calls.append(0)
        return MODEL(p, x)

    tx = OF_A_MODEL[name](counted, losses.softmax_cross_entropy, coef=0.1, every=1)
    state = tx.init(W)
    _, state = tx.update(grad(W), state, W, batch=(X, Y))
    first, calls[:] = len(calls), []
    tx.update(jax.tree.map(jnp.negative, grad(W)), state, W, batch=(X, Y))
    assert len(calls) == first - 1  # looked at once


def test_statistics_among_the_params_are_refused():
    variables = {"params": W, "batch_stats": {"mean": jnp.zeros(3)}}
    zeros = jax.tree.map(jnp.zeros_like, variables)
    for tx in (ft.sam(), ft.gradient_penalty(0.1)):
        with pytest.raises(ValueError, match=r"pass variables\['params'\]"):
            tx.update(zeros, tx.init(variables), variables, grad_fn=lambda p: zeros)
    oracle = ft.sam_value_and_grad(lambda v, batch: loss(v["params"], batch), rho=0.1)
    with pytest.raises(ValueError, match=r"pass variables\['params'\]"):
        oracle(variables, (X, Y))
