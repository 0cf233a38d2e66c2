"""The gradient penalties against dense Hessians in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax.transforms as ft
from flatjax import losses
from tests.transforms.zoo import (
    CLASSES,
    Dense,
    assert_close,
    flat,
    loss_fn,
    model,
    network,
    one_update,
    per_example,
    sequence_means,
    sequences,
    token_mean,
)


@pytest.fixture(scope="module")
def net():
    with jax.enable_x64(True):
        params, batch = network(jnp.float64)
        dense = Dense(params, batch)
        yield params, batch, dense, dense.grad(dense.w), dense.hessian(dense.w)


def test_gradient_penalty(net):
    params, batch, _, g, h = net
    out, state = one_update(ft.gradient_penalty(0.3, diagnostics=True), params, batch)
    assert_close(out, g + 0.6 * h @ g)
    assert float(state.penalty) == pytest.approx(g @ g, rel=1e-12)


@pytest.mark.parametrize("mode", ["forward", "central"])
def test_finite_difference_modes_are_their_formulas(net, mode):
    params, batch, dense, g, _ = net
    norm, r = np.linalg.norm(g), 0.01
    shifted = dense.grad(dense.w + r * g / norm)
    back = g if mode == "forward" else dense.grad(dense.w - r * g / norm)
    product = (shifted - back) * norm / (r if mode == "forward" else 2 * r)
    out, _ = one_update(ft.gradient_penalty(0.3, mode=mode, step=r), params, batch)
    # A difference of two gradients, each equal to 1e-14, over a step of 0.01.
    assert_close(out, g + 0.6 * product, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("mode", "order"), [("forward", 1), ("central", 2)])
def test_finite_differences_converge_to_the_exact_penalty(net, mode, order):
    params, batch, _, g, h = net
    steps = np.array([4e-2, 2e-2, 1e-2])
    grad_fn = lambda p: jax.grad(loss_fn)(p, batch)  # noqa: E731

    @jax.jit
    def update(step):
        tx = ft.gradient_penalty(0.5, mode=mode, step=step)
        return tx.update(grad_fn(params), tx.init(params), params, grad_fn=grad_fn)[0]

    errors = [np.linalg.norm(flat(update(s)) - (g + h @ g)) for s in steps]
    assert np.polyfit(np.log(steps), np.log(errors), 1)[0] == pytest.approx(order, abs=0.1)


def test_mask_restricts_the_norm(net):
    params, batch, _, g, h = net
    chosen = np.concatenate([np.zeros(4), np.ones(12), np.zeros(12)])
    mask = {"first": {"w": True, "b": False}, "last": False}
    out, state = one_update(ft.gradient_penalty(0.3, mask=mask, diagnostics=True), params, batch)
    assert_close(out, g + 0.6 * h @ (chosen * g))
    assert float(state.penalty) == pytest.approx((chosen * g) @ g, rel=1e-12)


@pytest.mark.parametrize("mode", ["linearize", "forward", "central"])
def test_zero_gradient_is_safe(mode):
    tx = ft.gradient_penalty(0.1, mode=mode)
    w = jnp.zeros(3)
    out, _ = tx.update(w, tx.init(w), w, grad_fn=lambda v: 2 * v)
    assert not flat(out).any()


def test_implicit_gradient_regularization(net):
    params, batch, _, g, h = net
    out, _ = one_update(ft.implicit_gradient_regularization(0.4), params, batch)
    assert_close(out, g + 0.2 * h @ g)


def test_coefficients_may_be_schedules(net):
    params, batch, _, g, h = net
    tx = ft.implicit_gradient_regularization(lambda t: 0.2 * (t + 1))
    assert_close(one_update(tx, params, batch, 3)[0], g + 0.3 * h @ g)


@pytest.mark.parametrize("mode", ["linearize", "central"])
def test_halves_are_the_unbiased_estimator(net, mode):
    params, batch, dense, g, _ = net
    a, b = ([x[:4] for x in batch], [x[4:] for x in batch])
    product = dense.hessian(dense.w, a) @ dense.grad(dense.w, b)
    product += dense.hessian(dense.w, b) @ dense.grad(dense.w, a)
    tx = ft.implicit_gradient_regularization(
        0.4, loss_fn=per_example, estimator="halves", mode=mode, step=1e-4, diagnostics=True
    )
    out, state = one_update(tx, params, batch)
    # Central differences of step 1e-4: 1e-8 of truncation, 1e-11 of round-off.
    tolerance = 1e-10 if mode == "linearize" else 1e-6
    assert_close(out, g + 0.1 * product, rtol=tolerance, atol=tolerance / 100)
    inner = dense.grad(dense.w, a) @ dense.grad(dense.w, b)
    assert float(state.penalty) == pytest.approx(inner, rel=1e-12)


@pytest.mark.parametrize("group_mode", ["vmap", "loop"])
def test_stochastic_implicit_gradient_regularization(net, group_mode):
    params, batch, dense, g, _ = net
    parts = [[x[2 * k : 2 * k + 2] for x in batch] for k in range(4)]
    total = sum(dense.hessian(dense.w, b) @ dense.grad(dense.w, b) for b in parts)
    tx = ft.stochastic_implicit_gradient_regularization(
        0.4, loss_fn=loss_fn, micro_batches=4, group_mode=group_mode
    )
    assert_close(one_update(tx, params, batch)[0], g + 0.4 / 8 * total)


def test_regularisers_of_a_loss_with_weights(x64):
    params, batch = sequences(jnp.float64)
    dense = Dense(params, batch, lambda p, b: token_mean(p, b).value)
    zero = jax.tree.map(jnp.zeros_like, params)

    def product(tx, batch):
        return jax.jit(lambda: tx.update(zero, tx.init(params), params, batch=batch)[0])()

    def rows(start, stop):
        return tuple(a[start:stop] for a in batch)

    def along(b, v):
        return dense.hessian(dense.w, b) @ v

    isgr = ft.stochastic_implicit_gradient_regularization(0.4, loss_fn=token_mean, micro_batches=4)
    parts = [(rows(0, 2), 4), (rows(4, 6), 6), (rows(6, 8), 4)]
    expected = sum(w / 14 * along(b, dense.grad(dense.w, b)) for b, w in parts)
    assert_close(product(isgr, batch), 0.2 * expected)

    igr = ft.implicit_gradient_regularization(0.4, loss_fn=token_mean, estimator="halves")
    a, b = rows(4, 6), rows(6, 8)
    expected = along(a, dense.grad(dense.w, b)) + along(b, dense.grad(dense.w, a))
    assert_close(product(igr, rows(4, 8)), 0.1 * expected)
    # Examples of weight zero are not seen by the model.
    rowwise = ft.implicit_gradient_regularization(0.4, loss_fn=sequence_means, estimator="halves")
    a, b = rows(0, 2), rows(4, 8)
    expected = along(a, dense.grad(dense.w, b)) + along(b, dense.grad(dense.w, a))
    assert_close(product(rowwise, batch), 0.1 * expected)
    # With nothing in a half there is nothing to penalise.
    assert not flat(product(igr, rows(2, 6))).any()


def test_input_gradient_penalty(net):
    params, batch, _dense, g, _ = net

    def penalty(w, b):
        each = jax.vmap(jax.grad(lambda x, y: per_example(w, (x[None], y[None]))[0]))(*b)
        return jnp.sum(each**2) / len(b[1])

    reference = Dense(params, batch, penalty)
    tx = ft.input_gradient_penalty(model, losses.softmax_cross_entropy, coef=0.3, diagnostics=True)
    out, state = one_update(tx, params, batch)
    assert_close(out, g + 0.3 * reference.grad(reference.w))
    assert float(state.penalty) == pytest.approx(float(reference.value(reference.w)), rel=1e-12)


def test_input_gradient_penalty_by_differences(net):
    params, batch, *_ = net
    exact, central, forward = (
        flat(
            one_update(
                ft.input_gradient_penalty(
                    model, losses.softmax_cross_entropy, coef=0.3, mode=mode, step=1e-3
                ),
                params,
                batch,
            )[0]
        )
        for mode in ("linearize", "central", "forward")
    )
    # Truncation of order step^2 and step.
    np.testing.assert_allclose(central, exact, atol=1e-6)
    np.testing.assert_allclose(forward, exact, atol=1e-3)


class Rigged(losses.SoftmaxCrossEntropy):
    """Cross-entropy whose draw is known: the class the model likes least."""

    def sample(self, key, outputs):
        return jnp.argmin(outputs, axis=-1)


@pytest.mark.parametrize("mode", ["linearize", "forward"])
def test_fisher_penalty_on_known_labels(net, mode):
    params, batch, dense, g, _ = net
    labels = jnp.argmin(model(params, batch[0]), axis=-1)
    other = (batch[0], labels)
    g_f, h_f = dense.grad(dense.w, other), dense.hessian(dense.w, other)
    if mode == "forward":
        norm = np.linalg.norm(g_f)
        product = (dense.grad(dense.w + 0.01 * g_f / norm, other) - g_f) * norm / 0.01
    else:
        product = h_f @ g_f
    tx = ft.fisher_penalty(model, Rigged(), coef=0.3, every=1, mode=mode, diagnostics=True)
    out, state = one_update(tx, params, batch)
    assert_close(out, g + 0.6 * product, rtol=1e-9, atol=1e-11)
    assert float(state.penalty) == pytest.approx(g_f @ g_f, rel=1e-12)


def test_penalty_gradient_is_kept_between_refreshes(net):
    params, batch, dense, _g, _ = net
    tx = ft.fisher_penalty(model, Rigged(), coef=lambda t: 0.1 * (t + 1), every=2)
    labels = jnp.argmin(model(params, batch[0]), axis=-1)
    product = dense.hessian(dense.w, (batch[0], labels)) @ dense.grad(dense.w, (batch[0], labels))
    update = jax.jit(lambda p, b, s: tx.update(jax.tree.map(jnp.zeros_like, p), s, p, batch=b))
    state = tx.init(params)
    out, state = update(params, batch, state)
    assert_close(out, 0.2 * product)
    # Another point and another batch: between refreshes neither is looked at.
    elsewhere = jax.tree.map(lambda a: a + 1, params)
    out, state = update(elsewhere, (batch[0] + 1, batch[1]), state)
    assert_close(out, 0.4 * product)
    out, _ = update(elsewhere, batch, state)
    assert np.abs(flat(out) - 0.6 * product).max() > 1e-3


LABELLED = {"fisher": ft.fisher_penalty, "random": ft.random_label_gradient_penalty}


@pytest.mark.parametrize("name", LABELLED)
def test_labels_are_drawn_from_the_right_distribution(name):
    # Two examples: the update is one of the 9 that the 9 labellings give. Their frequencies over
    # 600 seeds are compared with the probabilities, by Pearson's chi-square.
    with jax.enable_x64(True):
        params, batch = network(jnp.float64, n=2)
        params = jax.tree.map(lambda a: a / 2, params)
        dense = Dense(params, batch)
        labellings = list(itertools.product(range(CLASSES), repeat=2))
        batches = [(batch[0], jnp.array(y, jnp.int32)) for y in labellings]
        options = [2 * dense.hessian(dense.w, b) @ dense.grad(dense.w, b) for b in batches]
        zero = jax.tree.map(jnp.zeros_like, params)

        @jax.jit
        @jax.vmap
        def draw(seed):
            tx = LABELLED[name](model, losses.softmax_cross_entropy, coef=1.0, every=1, seed=seed)
            return tx.update(zero, tx.init(params), params, batch=batch)[0]

        seeds = 600
        drawn = np.asarray(
            jax.vmap(lambda t: jax.flatten_util.ravel_pytree(t)[0])(draw(jnp.arange(seeds)))
        )
        p = np.asarray(jax.nn.softmax(model(params, batch[0])))
    distance = np.abs(drawn[:, None] - np.array(options)[None]).max(axis=2)
    which = distance.argmin(axis=1)
    assert distance.min(axis=1).max() < 1e-10
    if name == "random":
        p = np.full((2, CLASSES), 1 / CLASSES)
    expected = seeds * np.array([p[0, a] * p[1, b] for a, b in labellings])
    counts = np.bincount(which, minlength=9)
    # 26.1 is the 0.1 % quantile of chi-square with 8 degrees of freedom; the seeds are fixed.
    assert ((counts - expected) ** 2 / expected).sum() < 26.1


def test_labels_change_from_step_to_step(net):
    params, batch, *_ = net
    tx = ft.fisher_penalty(model, losses.softmax_cross_entropy, coef=0.3, every=1)
    first, second = (flat(one_update(tx, params, batch, k)[0]) for k in (1, 2))
    assert np.abs(first - second).max() > 1e-6


def test_sub_batch_is_evenly_spaced_and_moves(net):
    params, batch, dense, *_ = net
    tx = ft.fisher_penalty(model, Rigged(), coef=0.5, every=1, sub_batch=2)
    labels = jnp.argmin(model(params, batch[0]), axis=-1)
    options = []
    for offset in range(4):
        part = (batch[0][offset::4], labels[offset::4])
        options.append(dense.hessian(dense.w, part) @ dense.grad(dense.w, part))
    zero = jax.tree.map(jnp.zeros_like, params)
    update = jax.jit(lambda s: tx.update(zero, s, params, batch=batch))
    state, seen = tx.init(params), set()
    for _ in range(12):
        out, state = update(state)
        distance = [np.abs(flat(out) - o).max() for o in options]
        assert min(distance) < 1e-12
        seen.add(int(np.argmin(distance)))
    assert len(seen) == 4


def test_padding_stays_padding():
    # Padded rows (label -1) must not get a label: they would count in the gradient.
    params, batch = network()
    padded = (batch[0], batch[1].at[4:].set(-1))
    tx = ft.fisher_penalty(model, Rigged(), coef=0.5, every=1)
    zero = jax.tree.map(jnp.zeros_like, params)
    update = jax.jit(lambda b: tx.update(zero, tx.init(params), params, batch=b)[0])
    out, half = update(padded), update(tuple(jnp.concatenate([a[:4], a[:4]]) for a in batch))
    # The mean is over all 8 rows, half of them zero: gradient and Hessian are half as large.
    np.testing.assert_allclose(flat(out), flat(half) / 4, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_expected_penalty_is_the_trace_of_the_fisher():
    # E |g_F|^2 = tr(F) / B' with F the mean over examples, because E grad l(x, y_hat) = 0.
    with jax.enable_x64(True):
        params, batch = network(jnp.float64)
        p = jax.nn.softmax(model(params, batch[0]))

        def squared(x, y):
            g = jax.grad(lambda w: per_example(w, (x[None], y[None]))[0])(params)
            return sum(jnp.sum(a**2) for a in jax.tree.leaves(g))

        each = jax.vmap(lambda x: jax.vmap(lambda y: squared(x, y))(jnp.arange(CLASSES)))(batch[0])
        trace = float((p * each).sum(axis=1).mean())

        @jax.jit
        @jax.vmap
        def draw(seed):
            tx = ft.fisher_penalty(
                model, losses.softmax_cross_entropy, coef=1.0, every=1, seed=seed,
                diagnostics=True,
            )  # fmt: skip
            zero = jax.tree.map(jnp.zeros_like, params)
            return tx.update(zero, tx.init(params), params, batch=batch)[1].penalty

        values = np.asarray(draw(jnp.arange(4000)))
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() - trace / len(batch[1])) < 4 * error
