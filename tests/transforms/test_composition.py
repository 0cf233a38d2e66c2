"""The transforms in chains, loops and training steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatjax.transforms as ft
from tests.transforms.zoo import WHOLE, assert_close, descend, flat, loss_fn, network, one_update


@pytest.fixture(scope="module")
def sam(net):
    return one_update(ft.sam(0.3), *net)[0]


def test_what_follows_sees_the_sam_gradient(net, sam):
    params, batch = net
    rest = [optax.clip_by_global_norm(0.1), optax.add_decayed_weights(0.01), optax.adam(0.1)]
    out, _ = one_update(optax.chain(ft.sam(0.3), *rest), params, batch)
    alone = optax.chain(*rest)
    expected, _ = alone.update(sam, alone.init(params), params)
    assert_close(out, expected)


def test_masked_weight_decay_beside_a_masked_perturbation(net):
    params, batch = net
    matrices = lambda p: jax.tree.map(lambda a: a.ndim > 1, p)  # noqa: E731
    tx = optax.chain(
        ft.sam(0.3, ascent=ft.Ascent(mask=matrices)),
        optax.masked(optax.add_decayed_weights(0.1), matrices),
    )
    out, _ = one_update(tx, params, batch)
    expected, _ = one_update(ft.sam(0.3, ascent=ft.Ascent(mask=matrices)), params, batch)
    expected = jax.tree.map(lambda m, a, w: a + 0.1 * w * m, matrices(params), expected, params)
    assert_close(out, expected)


def test_backtracking_line_search(net):
    params, batch = net
    value = lambda w: loss_fn(w, batch)  # noqa: E731
    tx = optax.chain(ft.sam(0.05), optax.sgd(1.0), optax.scale_by_backtracking_linesearch(10))
    v, g = jax.value_and_grad(value)(params)
    update = jax.jit(lambda s: tx.update(g, s, params, value=v, grad=g, value_fn=value))
    updates, _ = update(tx.init(params))
    assert float(value(optax.apply_updates(params, updates))) < float(v)


def test_line_search_with_a_grad_fn_needs_it_dropped(net):
    params, batch = net
    value = lambda w: loss_fn(w, batch)  # noqa: E731
    search = optax.scale_by_backtracking_linesearch(10)
    v, g = jax.value_and_grad(value)(params)
    extra = {"value": v, "grad": g, "value_fn": value, "grad_fn": jax.grad(value)}

    def run(last):
        tx = optax.chain(ft.sam(0.05), optax.sgd(1.0), last)
        return jax.eval_shape(lambda: tx.update(g, tx.init(params), params, **extra))

    with pytest.raises(TypeError):
        run(search)
    run(ft.drop_extra_args(search))


def test_reduce_on_plateau(net):
    params, batch = net
    tx = optax.chain(ft.sam(0.3), optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1))
    out, _ = one_update(tx, params, batch, value=jnp.float64(1.0))
    expected, _ = one_update(optax.chain(ft.sam(0.3), optax.sgd(0.1)), params, batch)
    assert_close(out, expected)


def test_apply_if_finite_and_partial(net, sam):
    # A Partial crosses jit(tx.update) as a pytree: the batch is an argument, not a constant.
    params, batch = net
    tx = optax.apply_if_finite(optax.chain(ft.sam(0.3), optax.identity()), 2)
    grad_fn = jax.tree_util.Partial(lambda b, p: jax.grad(loss_fn)(p, b), batch)
    traces = []

    @jax.jit
    def update(g, state, params, grad_fn):
        traces.append(0)
        return tx.update(g, state, params, grad_fn=grad_fn)

    state = tx.init(params)
    for _ in range(3):
        out, state = update(jax.grad(loss_fn)(params, batch), state, params, grad_fn)
    assert_close(out, sam)
    assert len(traces) == 1


@pytest.mark.parametrize("name", ["sam", "looksam", "friendly_sam", "wsam", "gradient_penalty"])
def test_lookahead_behind_works_on_the_fast_params(name):
    # Two steps of two make one synchronisation: w + 0.5 (fast - w).
    curvature, w = jnp.array([1.0, 4.0]), jnp.array([3.0, 1.0])
    grad = jax.grad(lambda p: jnp.sum(curvature * p**2) / 2)
    make = {"gradient_penalty": lambda: ft.gradient_penalty(0.1)}.get(name, getattr(ft, name))
    tx = optax.chain(make(), optax.lookahead(optax.sgd(0.1), 2, 0.5))
    plain = optax.chain(make(), optax.sgd(0.1))
    pair = optax.LookaheadParams.init_synced(w)
    state, plain_state, fast = tx.init(pair), plain.init(w), w
    assert jax.tree.structure(state[0]) == jax.tree.structure(plain_state[0])
    for _ in range(2):
        updates, state = tx.update(grad(pair.fast), state, pair, grad_fn=grad)
        pair = optax.apply_updates(pair, updates)
        updates, plain_state = plain.update(grad(fast), plain_state, fast, grad_fn=grad)
        fast = optax.apply_updates(fast, updates)
    # A few additions and multiplications in float32.
    np.testing.assert_allclose(pair.slow, w + 0.5 * (fast - w), rtol=1e-6)
    np.testing.assert_allclose(pair.fast, pair.slow, rtol=1e-6)


def test_lookahead_around_sam_says_where_it_belongs():
    w = jnp.ones(2)
    pair = optax.LookaheadParams.init_synced(w)
    tx = optax.lookahead(optax.chain(ft.sam(), optax.sgd(0.1)), 5, 0.5)
    message = r"optax.lookahead: put it behind, optax.chain\(flatjax.sam\(...\), optax.lookahead"
    with pytest.raises(ValueError, match=message):
        tx.update(w, tx.init(pair), pair)
    # optax itself refuses the argument.
    with pytest.raises(TypeError, match="unexpected keyword argument 'grad_fn'"):
        tx.update(w, tx.init(pair), pair, grad_fn=lambda p: p)


@pytest.mark.parametrize("name", ["momentum_sam", "entropy_sgd"])
def test_lookahead_around_a_whole_optimiser(name):
    make = WHOLE[name]
    w, g = jnp.array([1.0, 2.0]), jnp.array([0.5, -1.0])
    pair = optax.LookaheadParams.init_synced(w)
    tx = optax.lookahead(make(), 2, 0.5)
    updates, _ = tx.update(g, tx.init(pair), pair)
    np.testing.assert_array_equal(updates.fast, make().update(g, make().init(w), w)[0])


# The documented orders: the gradient is finite, and at the perturbed params it is not.
@pytest.mark.parametrize(("order", "stopped"), [("behind", True), ("around", False)])
def test_apply_if_finite_behind_sam_sees_its_gradient(order, stopped):
    grad = lambda w: jnp.where(w > 1.05, jnp.nan, w)  # noqa: E731
    w = jnp.array([1.0])
    if order == "behind":
        tx = optax.chain(ft.sam(0.1), optax.apply_if_finite(optax.sgd(0.1), 5))
    else:
        tx = optax.apply_if_finite(optax.chain(ft.sam(0.1), optax.sgd(0.1)), 5)
    updates, _ = tx.update(grad(w), tx.init(w), w, grad_fn=grad)
    assert (float(updates[0]) == 0.0) == stopped
    assert bool(jnp.isfinite(updates).all()) == stopped


@pytest.mark.parametrize("name", ["sam", "looksam", "friendly_sam"])
def test_training_goes_on_after_a_bad_batch(name):
    tx = optax.chain(getattr(ft, name)(0.05), optax.apply_if_finite(optax.sgd(0.1), 100))
    w = jnp.array([1.0, 2.0])
    state, seen = tx.init(w), []
    for c in (1.0, jnp.nan, 1.0, 1.0):
        g = jax.grad(lambda w, c=c: (c * w**2).sum())
        updates, state = tx.update(g(w), state, w, grad_fn=g)
        w = optax.apply_updates(w, updates)
        seen.append(float(w[0]))
    assert seen[0] == seen[1] > seen[2] > seen[3]


def test_scan_equals_a_loop(net):
    params, batch = net
    tx = optax.chain(ft.looksam(0.3, every=2), optax.sgd(0.1))
    path, _ = descend(tx, params, batch, 5)

    def step(carry, _):
        params, state = carry
        g = jax.grad(loss_fn)(params, batch)
        updates, state = tx.update(g, state, params, grad_fn=lambda p: jax.grad(loss_fn)(p, batch))
        return (optax.apply_updates(params, updates), state), None

    (last, state), _ = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=5))(params)
    assert_close(last, path[-flat(last).size :])
    assert int(state[0].count) == 5


def test_vmap_over_seeds_and_radii(net):
    params, batch = net
    g = jax.grad(loss_fn)(params, batch)

    def run(rho):
        tx = ft.sam(rho, every=2)
        return tx.update(g, tx.init(params), params, grad_fn=lambda p: jax.grad(loss_fn)(p, batch))[
            0
        ]

    out = jax.jit(jax.vmap(run))(jnp.array([0.1, 0.3]))
    expected = one_update(ft.sam(0.3), params, batch)[0]
    assert_close(jax.tree.map(lambda a: a[1], out), expected)


def micro(batch, k):
    return tuple(a[2 * k : 2 * k + 2] for a in batch)


def run_micro_batches(tx, params, batch):
    """The update after the last of four micro-batches, and how often grad_fn ran."""
    calls = []

    @jax.jit
    def update(state, part):
        def grad_fn(p):
            jax.debug.callback(lambda: calls.append(0))
            return jax.grad(loss_fn)(p, part)

        return tx.update(jax.grad(loss_fn)(params, part), state, params, grad_fn=grad_fn)

    state = tx.init(params)
    for k in range(4):
        out, state = update(state, micro(batch, k))
    jax.effects_barrier()
    return out, len(calls)


def test_multi_steps_after_sam_is_m_sharpness(net):
    params, batch = net
    inner = optax.MultiSteps(optax.sgd(1.0), 4).gradient_transformation()
    out, calls = run_micro_batches(optax.chain(ft.sam(0.3), inner), params, batch)
    groups, _ = one_update(ft.sam(0.3, groups=4, loss_fn=loss_fn), params, batch)
    assert_close(out, -flat(groups), rtol=1e-6, atol=1e-7)  # MultiSteps averages in float32
    assert calls == 4


def test_multi_steps_around_sam_keeps_the_last_micro_batch(net):
    # Intrinsic to MultiSteps; documented as wrong. accumulate= of the oracle is right.
    params, batch = net
    tx = optax.MultiSteps(optax.chain(ft.sam(0.3), optax.sgd(1.0)), 4)
    out, calls = run_micro_batches(tx, params, batch)
    mean = jax.grad(loss_fn)(params, batch)
    epsilon = jax.tree.map(lambda g: 0.3 * g / optax.tree.norm(mean), mean)
    point = jax.tree.map(jnp.add, params, epsilon)
    last = jax.grad(loss_fn)(point, micro(batch, 3))
    assert_close(out, -flat(last), rtol=1e-6, atol=1e-7)
    assert calls == 4
    _, whole = ft.sam_value_and_grad(loss_fn, rho=0.3, accumulate=4)(params, batch)
    assert np.abs(flat(whole) - flat(last)).max() > 1e-3


def test_bfloat16_compute_with_float32_masters():
    params, batch = network()
    half = lambda t: jax.tree.map(lambda a: a.astype(jnp.bfloat16), t)  # noqa: E731
    value = lambda p: loss_fn(half(p), (half(batch[0]), batch[1]))  # noqa: E731
    tx = ft.sam(0.05, diagnostics=True)
    out, state = tx.update(jax.grad(value)(params), tx.init(params), params, value_fn=value)
    assert {a.dtype for a in jax.tree.leaves(out)} == {jnp.dtype(jnp.float32)}
    # The masters are perturbed by exactly rho, whatever the compute dtype rounds.
    assert float(state.metrics.perturbation_norm) == pytest.approx(0.05, rel=1e-6)
    assert all(bool(jnp.isfinite(a).all()) for a in jax.tree.leaves(out))
