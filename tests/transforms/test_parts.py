"""Oracles over groups, micro-batches and weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax.transforms as ft
from flatjax import losses
from flatjax.losses import Mean
from tests.transforms.zoo import (
    LENGTHS,
    RHO,
    Dense,
    assert_close,
    loss_fn,
    sequence_means,
    sequences,
    token_mean,
)

XENT = losses.softmax_cross_entropy


def sliced(batch, parts):
    size = len(batch[1]) // parts
    return [tuple(a[k * size : (k + 1) * size] for a in batch) for k in range(parts)]


def test_groups(net, dense):
    params, batch = net
    oracle = ft.sam_value_and_grad(loss_fn, rho=RHO, groups=4)
    value, grads = jax.jit(oracle)(params, batch)
    assert_close(value, dense.value(dense.w))
    assert_close(grads, np.mean([dense.sam(b) for b in sliced(batch, 4)], axis=0))


def test_accumulation_keeps_the_perturbation_of_the_whole_batch(net, dense):
    params, batch = net
    oracle = ft.sam_value_and_grad(loss_fn, rho=RHO, accumulate=4)
    expected = dense.sam()
    assert_close(jax.jit(oracle)(params, batch)[1], expected)
    # Driven from the host, without jit around it.
    value, grads = oracle(params, batch)
    assert_close(grads, expected)
    assert_close(value, dense.value(dense.w))


def test_accumulation_within_groups(net, dense):
    params, batch = net
    oracle = ft.sam_value_and_grad(loss_fn, rho=RHO, groups=2, accumulate=2)
    expected = np.mean([dense.sam(b) for b in sliced(batch, 2)], axis=0)
    assert_close(jax.jit(oracle)(params, batch)[1], expected)


def test_aux_of_groups(net):
    params, batch = net

    def with_aux(params, batch):
        aux = {"mean": batch[0].mean(), "count": jnp.int32(7), "on": jnp.array(True)}
        return loss_fn(params, batch), aux

    oracle = ft.sam_value_and_grad(with_aux, has_aux=True, groups=4)
    (_, aux), _ = jax.jit(oracle)(params, batch)
    assert_close(aux["mean"], batch[0].mean())
    assert int(aux["count"]) == 7
    assert bool(aux["on"])


def test_penalty_over_groups_is_the_sum_of_squared_norms(net, dense):
    params, batch = net
    total = sum(dense.hessian(dense.w, b) @ dense.grad(dense.w, b) for b in sliced(batch, 8))
    oracle = ft.penalty_value_and_grad(loss_fn, coef=0.2, groups=8)
    expected = dense.g + 0.4 / 8 * total
    assert_close(jax.jit(oracle)(params, batch)[1], expected)


@pytest.fixture(scope="module")
def tokens():
    with jax.enable_x64(True):
        params, batch = sequences(jnp.float64)
        yield params, batch, Dense(params, batch, lambda p, b: token_mean(p, b).value)


def counted(batch, parts):
    """The parts of a batch of sequences that have tokens, and their shares of all tokens."""
    weights = np.asarray(LENGTHS).reshape(parts, -1).sum(axis=1)
    kept = [b for b, w in zip(cut(batch, parts), weights, strict=True) if w]
    return list(zip(kept, weights[weights > 0] / weights.sum(), strict=True))


def cut(batch, parts):
    return [tuple(a.reshape(parts, -1, *a.shape[1:])[k] for a in batch) for k in range(parts)]


def whole(batch):
    """The sequences that have tokens: the mean of the others is no number."""
    return tuple(a[np.asarray(LENGTHS) > 0] for a in batch)


def with_count(params, batch):
    out = token_mean(params, batch)
    return out, {"loss": out}


@pytest.mark.parametrize(
    "cuts",
    [{"accumulate": 4}, {"groups": 4}, {"groups": 2, "accumulate": 2}],
    ids=str,
)
def test_parts_count_by_the_weights_of_their_means(tokens, cuts):
    params, batch, dense = tokens
    groups = cuts.get("groups", 1)
    parts = [(whole(batch), 1.0)] if groups == 1 else counted(batch, groups)
    if groups == 2:  # the first group without its empty sequences
        parts[0] = tuple(a[:2] for a in parts[0][0]), parts[0][1]
    oracle = ft.sam_value_and_grad(with_count, rho=RHO, has_aux=True, **cuts)
    (value, aux), grads = jax.jit(oracle)(params, batch)
    assert_close(value, dense.value(dense.w, whole(batch)))
    assert_close(grads, sum(w * dense.sam(b) for b, w in parts))
    # Means among the auxiliary outputs are averaged by part, weights of integers, too.
    assert float(aux["loss"].weight) == sum(LENGTHS) / (groups * cuts.get("accumulate", 1))


@pytest.mark.parametrize("cuts", [{"accumulate": 4}, {"groups": 4}], ids=str)
def test_penalty_over_parts_that_count_by_their_weights(tokens, cuts):
    params, batch, dense = tokens
    parts = counted(batch, 4) if "groups" in cuts else [(whole(batch), 1.0)]
    gradients = [dense.grad(dense.w, b) for b, _ in parts]
    product = sum(w * dense.hessian(dense.w, b) @ g for (b, w), g in zip(parts, gradients))  # noqa: B905
    value, gradient = dense.value(dense.w, whole(batch)), dense.grad(dense.w, whole(batch))
    for other in (None, sequence_means):
        oracle = ft.penalty_value_and_grad(token_mean, coef=0.2, penalty_fn=other, **cuts)
        found, grads = jax.jit(oracle)(params, batch)
        assert_close(grads, gradient + 0.4 * product)
        assert_close(found, value)


def test_a_mean_without_parts_is_its_value(tokens):
    params, batch, dense = tokens

    # The weight is a constant, whatever it is made of.
    def scaled(params, batch):
        out, scale = sequence_means(params, batch), 1 + params["first"]["b"][0] ** 2
        return Mean(out.total * jax.lax.stop_gradient(scale), out.weight * scale)

    value, grads = jax.jit(ft.sam_value_and_grad(scaled, rho=0.0))(params, whole(batch))
    assert_close(value, dense.value(dense.w, whole(batch)))
    assert_close(grads, dense.grad(dense.w, whole(batch)))


def test_rows_of_weight_zero_are_not_seen_by_the_model(tokens):
    # Two of the rows are no numbers, beside others in one part.
    params, batch, dense = tokens
    value, grads = jax.jit(ft.sam_value_and_grad(sequence_means, rho=RHO))(params, batch)
    assert_close(value, dense.value(dense.w, whole(batch)))
    assert_close(grads, dense.sam(whole(batch)))


@pytest.mark.parametrize("cuts", [{}, {"accumulate": 2}, {"groups": 2}], ids=str)
def test_of_nothing_there_is_no_mean(cuts):
    loss = lambda w, b: Mean((b * w**2).sum(), b.sum())  # noqa: E731
    value, grads = jax.jit(ft.sam_value_and_grad(loss, **cuts))(jnp.ones(()), jnp.zeros(4))
    assert np.isnan(value)
    assert np.isnan(grads)


def test_accumulated_scalars_must_be_means_over_examples():
    def total(w, batch):
        x, mask = batch
        return Mean((mask * (x - w) ** 2).sum(), mask.sum())

    plain = lambda w, batch: total(w, batch).value  # noqa: E731
    over_examples = lambda w, batch: jnp.mean((batch[0] - w) ** 2)  # noqa: E731
    stateful = lambda w, batch: (plain(w, batch), batch[1])  # noqa: E731
    w, batch = jnp.float32(0.5), (jnp.arange(4.0), jnp.array([1.0, 0.0, 1.0, 1.0]))
    for fine in (
        ft.sam_value_and_grad(plain),  # one part
        ft.sam_value_and_grad(plain, accumulate=2, check=False),
        ft.sam_value_and_grad(total, accumulate=2),
        ft.sam_value_and_grad(lambda w, b: (b[0] - w) ** 2, accumulate=2),
        ft.penalty_value_and_grad(plain, coef=0.1, accumulate=2, check=False),
        jax.jit(ft.sam_value_and_grad(plain, accumulate=2)),  # traced: not looked at
    ):
        fine(w, batch)
    for refused in (
        ft.sam_value_and_grad(plain, accumulate=2),
        ft.sam_value_and_grad(stateful, accumulate=2, has_aux=True),
        ft.penalty_value_and_grad(plain, coef=0.1, accumulate=2),
        ft.penalty_value_and_grad(total, coef=0.1, penalty_fn=plain, accumulate=2),
    ):
        for _ in range(2):
            with pytest.raises(ValueError, match=r"flatjax\.Mean.*check=False"):
                refused(w, batch)
    # Looked at once.
    calls = []
    counting = lambda w, batch: (calls.append(1), over_examples(w, batch))[1]  # noqa: E731
    oracle = ft.sam_value_and_grad(counting, accumulate=2)
    counts = [(calls.clear(), oracle(w, batch), len(calls))[2] for _ in range(3)]
    assert counts[0] > counts[1] == counts[2]


@pytest.mark.parametrize("cut", ["groups", "accumulate"])
@pytest.mark.parametrize("what", [lambda x: (x > 0).sum(), lambda x: x > 0], ids=["count", "hits"])
def test_counts_of_parts_cannot_be_put_together(cut, what):
    def loss(w, batch, which):
        metric = what(batch) if which else jnp.int32(3)
        return ((w * batch) ** 2).mean(), {"metric": metric, "mean": (batch > 0).mean()}

    batch = jnp.array([1.0, 1, 1, -1, 2, 1])
    fn = ft.sam_value_and_grad(loss, has_aux=True, **{cut: 3})
    (_, aux), _ = fn(jnp.float32(1), batch, False)  # what agrees, as counters of steps
    assert int(aux["metric"]) == 3
    assert float(aux["mean"]) == pytest.approx(5 / 6)
    with pytest.raises(ValueError, match=r"return means of metrics, such as \(prediction"):
        fn(jnp.float32(1), batch, True)
