"""GGN and Fisher with every loss, and the identities between the three Fishers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import flatjax
from flatjax.losses._own import as_loss
from tests.models import CLASSES, NETWORKS, attention, mlp
from tests.operators import references


def softmax_hessian(z):
    p = np.exp(z) / np.exp(z).sum()
    return np.diag(p) - np.outer(p, p)


def sigmoid_hessian(z):
    p = 1 / (1 + np.exp(-z))
    return np.diag(p * (1 - p))


def identity_hessian(z):
    return np.eye(len(z))


LOSSES = {
    "softmax_ids": (flatjax.softmax_cross_entropy, softmax_hessian),
    "softmax_probabilities": (flatjax.softmax_cross_entropy, softmax_hessian),
    "squared_error": (flatjax.squared_error, identity_hessian),
    "sigmoid": (flatjax.sigmoid_binary_cross_entropy, sigmoid_hessian),
}


def targets_of(name, ids):
    if name == "softmax_ids":
        return ids
    one_hot = jax.nn.one_hot(ids, CLASSES)
    return 0.9 * one_hot + 0.1 / CLASSES if name == "softmax_probabilities" else one_hot


@functools.cache
def outputs_and_jacobian():
    with jax.enable_x64(True):
        params, (x, _) = NETWORKS["mlp"].cast()
        flat, unravel = ravel_pytree(params)
        outputs = lambda w: mlp(unravel(w), x)  # noqa: E731
        return np.asarray(outputs(flat)), np.asarray(jax.jacobian(outputs)(flat))


def dense_ggn(output_hessian):
    z, J = outputs_and_jacobian()
    H = np.stack([output_hessian(row) for row in z])
    return np.einsum("nip,nij,njq->pq", J, H, J) / len(z)


@pytest.mark.parametrize("name", LOSSES)
def test_ggn_of_every_loss(name, x64):
    params, (x, ids) = NETWORKS["mlp"].cast()
    loss, output_hessian = LOSSES[name]
    batch = x, targets_of(name, ids)
    wanted = dense_ggn(output_hessian)
    G = flatjax.ggn(mlp, loss, params, batch)
    references.assert_product(G, wanted, references.FLOAT64)
    # The exact Fisher of an exponential family in its natural parameter is the GGN, bit for bit.
    F = flatjax.fisher(mlp, loss, params, batch, kind="exact")
    for found, expected in zip(*(jax.tree.leaves(op @ params) for op in (F, G)), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_ggn_of_a_plain_function(x64):
    # The output Hessian of a function is differentiated: here of a Huber-like, target-free loss.
    def loss(outputs, targets):
        return jnp.log(jnp.cosh(outputs - targets)).sum(axis=-1)

    params, (x, ids) = NETWORKS["mlp"].cast()
    targets = jax.nn.one_hot(ids, CLASSES)
    z, J = outputs_and_jacobian()
    second = 1 / np.cosh(z - np.asarray(targets)) ** 2
    wanted = np.einsum("nip,ni,niq->pq", J, second, J) / len(z)
    G = flatjax.ggn(mlp, loss, params, (x, targets))
    references.assert_product(G, wanted, references.FLOAT64)


class Scaled:
    """A user's loss with its own Hessian product and sampling: targets are a dict."""

    def __call__(self, outputs, targets):
        return 0.5 * (targets["scale"][:, None] * (outputs - targets["y"]) ** 2).sum(axis=-1)

    def hessian_product(self, outputs, targets, tangents):
        return targets["scale"][:, None] * tangents

    def sample(self, key, outputs):
        noise = jax.random.normal(key, outputs.shape, outputs.dtype)
        return {"y": outputs + noise, "scale": jnp.ones(len(outputs), outputs.dtype)}


def test_an_object_with_a_hessian_product(x64):
    params, (x, ids) = NETWORKS["mlp"].cast()
    loss, scale = Scaled(), jnp.arange(8.0)
    batch = x, {"y": jax.nn.one_hot(ids, CLASSES), "scale": scale}
    z, J = outputs_and_jacobian()
    wanted = np.einsum("n,nip,niq->pq", scale, J, J) / len(z)
    references.assert_product(flatjax.fisher(mlp, loss, params, batch), wanted, references.FLOAT64)
    r = np.asarray(scale)[:, None] * (z - np.asarray(batch[1]["y"]))
    gradients = np.einsum("nip,ni->np", J, r)
    empirical = flatjax.fisher(mlp, loss, params, batch, kind="empirical")
    second_moment = references.covariance(gradients, centered=False)
    references.assert_product(empirical, second_moment, references.FLOAT64)
    sampled = flatjax.fisher(mlp, loss, params, batch, kind="sampled", key=jax.random.key(0))
    assert sampled.draws["y"].shape == (1, 8, CLASSES)
    assert np.isfinite(ravel_pytree(sampled @ params)[0]).all()


def test_ggn_of_a_linear_model_is_the_hessian(x64):
    x, ids = NETWORKS["mlp"].cast()[1]
    params = {"kernel": jnp.arange(9.0).reshape(3, CLASSES) / 4}
    linear = lambda p, x: x @ p["kernel"]  # noqa: E731
    G = references.make("ggn", linear, params, (x, ids)).to_dense()
    H = references.make("hessian", linear, params, (x, ids)).to_dense()
    references.assert_close(G, np.asarray(H), references.FLOAT64)


def test_outputs_without_a_feature_axis(x64):
    x = NETWORKS["mlp"].cast()[1][0]
    w, y = jnp.ones(3), jnp.arange(8.0) > 4
    model = lambda w, x: x @ w  # noqa: E731
    z = np.asarray(x) @ np.ones(3)
    second = {
        flatjax.squared_error: np.ones(8),
        flatjax.sigmoid_binary_cross_entropy: 1 / (2 + 2 * np.cosh(z)),
    }
    for loss, h in second.items():
        wanted = np.einsum("n,ni,nj->ij", h, x, x) / 8
        batch = x, y.astype(x.dtype)
        references.assert_close(
            flatjax.ggn(model, loss, w, batch).to_dense(), wanted, references.FLOAT64
        )
        sampled = flatjax.fisher(
            model, loss, w, batch, kind="sampled", key=jax.random.key(0), num_samples=20_000
        )
        # Relative standard error of a mean of 160,000 squares: at most sqrt(2 / 20000) = 1 %.
        references.assert_close(sampled.to_dense(), wanted, 0.05)


def test_draws_are_made_once_and_follow_the_key():
    params, batch = NETWORKS["mlp"].cast(jnp.float32)
    loss = flatjax.softmax_cross_entropy
    make = functools.partial(flatjax.fisher, mlp, loss, params, batch, kind="sampled")
    op = make(key=jax.random.key(0), num_samples=16)
    np.testing.assert_array_equal((op @ params)["out"]["bias"], (op @ params)["out"]["bias"])
    assert jnp.array_equal(op.draws, make(key=jax.random.key(0), num_samples=16).draws)
    assert not jnp.array_equal(op.draws, make(key=jax.random.key(1), num_samples=16).draws)
    # Examples draw independently of each other, also those of the same inputs.
    same = batch[0][:1].repeat(8, axis=0), batch[1]
    draws = flatjax.fisher(
        mlp, loss, params, same, kind="sampled", key=jax.random.key(0), num_samples=16
    ).draws
    assert len(np.unique(np.asarray(draws).T, axis=0)) == 8


def test_draws_keep_the_padding():
    params, (x, y) = NETWORKS["attention"].cast(jnp.float32)
    draws = references.make("fisher_sampled", attention, params, (x, y), num_samples=3).draws
    assert draws.shape == (3, 8, 3)
    np.testing.assert_array_equal(draws < 0, np.broadcast_to(y < 0, draws.shape))


def sampled_traces(name, loss, targets, num_seeds, num_samples):
    """``v^T F v`` of ``num_seeds`` independent sampled Fishers, and of the exact one."""
    network = NETWORKS[name]
    params, (x, _) = network.cast()
    v = params

    def quadratic(op):
        product = op.mv(v)
        return sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (v, product)), strict=True))

    @jax.jit
    def one(key):
        return quadratic(
            flatjax.fisher(
                network.apply, loss, params, (x, targets),
                kind="sampled", key=key, num_samples=num_samples,
            )
        )  # fmt: skip

    estimates = jax.vmap(one)(jax.random.split(jax.random.key(7), num_seeds))
    exact = quadratic(flatjax.fisher(network.apply, loss, params, (x, targets)))
    return np.asarray(estimates), float(exact)


@pytest.mark.parametrize("case", ["softmax_ids", "squared_error", "sigmoid", "sequences"])
def test_sampled_fisher_is_unbiased(case, x64):
    name = "attention" if case == "sequences" else "mlp"
    loss = flatjax.softmax_cross_entropy if case == "sequences" else LOSSES[case][0]
    ids = jnp.asarray(NETWORKS[name].targets)
    targets = ids if case == "sequences" else targets_of(case, ids)
    estimates, exact = sampled_traces(name, loss, targets, num_seeds=2000, num_samples=1)
    error = estimates.std(ddof=1) / np.sqrt(len(estimates))
    assert error < 0.03 * exact  # sharp enough to see a wrong factor
    assert abs(estimates.mean() - exact) < 4 * error  # exceeded by chance once in 16,000


@pytest.mark.slow
def test_the_variance_falls_with_the_number_of_draws(x64):
    loss, ids = flatjax.softmax_cross_entropy, jnp.asarray(NETWORKS["mlp"].targets)
    single, averaged = (
        sampled_traces("mlp", loss, ids, num_seeds=2000, num_samples=s)[0].var(ddof=1)
        for s in (1, 5)
    )
    # 5, with the error of two sample variances: sqrt(2 (kurtosis - 1) / 2000), some 5 %.
    assert 4 < single / averaged < 6


def summed(outputs, targets):
    return outputs.sum(axis=-1)


class TestErrors:
    @pytest.mark.parametrize(
        ("options", "error", "text"),
        [
            ({"kind": "montecarlo"}, ValueError, "one of 'exact', 'sampled', 'empirical'"),
            ({"kind": "sampled"}, ValueError, 'kind="sampled" needs key='),
            ({"kind": "exact", "key": 0}, ValueError, "the other kinds take none"),
            ({"kind": "empirical", "key": 0}, ValueError, "the other kinds take none"),
            ({"kind": "sampled", "key": 0, "num_samples": 0}, ValueError, "at least 1, got 0"),
            ({"loss": summed}, TypeError, "the exact Fisher needs the loss's distribution"),
            (
                {"loss": summed, "kind": "sampled", "key": 0},
                TypeError,
                "cannot sample targets: use",
            ),
        ],
    )
    def test_at_the_door(self, options, error, text):
        options = {"loss": flatjax.softmax_cross_entropy} | options
        if "key" in options:
            options["key"] = jax.random.key(0)
        model, batch = (lambda p, x: x @ p), (jnp.ones((8, 3)), jnp.zeros(8, jnp.int32))
        with pytest.raises(error, match=text):
            flatjax.fisher(model, options.pop("loss"), jnp.ones((3, CLASSES)), batch, **options)

    def test_per_token_of_a_function(self):
        with pytest.raises(ValueError, match="`per` needs one of flatjax's losses"):
            as_loss(lambda z, t: z)(per="token")


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_many_draws_give_one_matrix_however_it_is_multiplied(chunk_size):
    """Mapped over vectors and compiled, XLA had added up 60 draws and more wrongly."""
    k = jax.random.split(jax.random.key(0), 3)
    w, x = jax.random.normal(k[0], (4, 5)), jax.random.normal(k[1], (6, 4))
    F = flatjax.fisher(
        lambda w, x: x @ w, flatjax.softmax_cross_entropy, w, (x, jnp.arange(6) % 5),
        kind="sampled", key=k[2], num_samples=300, chunk_size=chunk_size,
    )  # fmt: skip
    rows = jnp.eye(20).reshape(20, 4, 5)
    wanted = np.stack([np.asarray(F @ row).ravel() for row in rows])
    mapped = jax.jit(jax.vmap(lambda op, v: op.mv(v), (None, 0)))(F, rows)
    # Sums of 300 terms of order one in float32, in another order.
    np.testing.assert_allclose(F.to_dense(), wanted, atol=1e-6)
    np.testing.assert_allclose(mapped.reshape(20, 20), wanted, atol=1e-6)
    np.testing.assert_allclose(wanted, wanted.T, atol=1e-6)
