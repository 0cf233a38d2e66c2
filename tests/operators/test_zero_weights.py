"""An example of weight zero does not count, whatever it holds, wherever weights are taken."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import flatjax
from tests.operators import references

N, PADDING = 5, 3
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, 4)), np.arange(N) % 3
PARAMS, V = (jnp.asarray(a, jnp.float32) for a in RNG.normal(size=(2, 4, 3)))
WEIGHTS = np.array([1.0, 2.0, 1.0, 0.5, 1.0], np.float32)
LOSS = flatjax.softmax_cross_entropy
# What the rows of padding hold. Zeros have a loss, and a derivative that is NaN.
POISONS = {"zeros": 0.0, "nan": np.nan, "infinite": np.inf}


def model(w, x):
    return (x / jnp.sqrt((x * x).sum(axis=-1, keepdims=True))) @ w


def losses_fn(w, batch):
    return LOSS(model(w, batch[0]), batch[1])


def squared(w, batch):
    return flatjax.squared_error(model(w, batch[0]), batch[1])


def padded(poison):
    """Five examples with three rows of padding: one first, two last."""
    x = np.full((N + PADDING, 4), POISONS[poison], np.float32)
    y, weights = np.zeros(N + PADDING, np.int32), np.zeros(N + PADDING, np.float32)
    x[1 : N + 1], y[1 : N + 1], weights[1 : N + 1] = X, Y, WEIGHTS
    return (jnp.asarray(x), jnp.asarray(y)), jnp.asarray(weights)


def real():
    return (jnp.asarray(X, jnp.float32), jnp.asarray(Y)), jnp.asarray(WEIGHTS)


OPERATORS = {
    "hessian": functools.partial(flatjax.hessian, losses_fn),
    "ggn": functools.partial(flatjax.ggn, model, LOSS),
    "function": functools.partial(flatjax.ggn, model, lambda z, y: LOSS(z, y)),
    "sampled": functools.partial(
        flatjax.fisher, model, LOSS, kind="sampled", key=jax.random.key(0), num_samples=2
    ),
    "empirical": functools.partial(flatjax.fisher, model, LOSS, kind="empirical"),
    "covariance": functools.partial(flatjax.gradient_covariance, losses_fn),
    "second_moment": functools.partial(flatjax.gradient_covariance, losses_fn, centered=False),
}
# float32: some 10 roundings of 6e-8 of entries of order one.
TOL = 2e-6


def expected(name):
    batch, weights = real()
    if name == "sampled":
        # A draw depends on the index: the real examples are second to sixth.
        full, w = padded("zeros")
        full = full[0].at[0].set(1.0).at[N + 1 :].set(1.0), full[1]
        return OPERATORS[name](PARAMS, full, weights=w) @ V
    return OPERATORS[name](PARAMS, batch, weights=weights) @ V


@pytest.mark.parametrize("name", OPERATORS)
def test_products(name):
    wanted = expected(name)
    for poison in POISONS:
        batch, weights = padded(poison)
        make = functools.partial(OPERATORS[name], PARAMS)
        op = make(batch, weights=weights)
        ways = [op, op.linearize()]
        if poison == "nan":
            # The last chunk of two has no example that counts, and one of three overlaps.
            ways += [make(batch, weights=weights, chunk_size=size) for size in (2, 3)]
        for way in ways:
            np.testing.assert_allclose(way @ V, wanted, rtol=0, atol=TOL)


@pytest.mark.parametrize("name", ["hessian", "ggn", "covariance"])
def test_streams_with_a_batch_of_padding(name):
    batch, weights = padded("nan")
    parts = [jax.tree.map(lambda a, i=i: a[i : i + 2], (batch, weights)) for i in (0, 2, 4, 6)]

    def make(part):
        return OPERATORS[name](PARAMS, part[0], weights=part[1])

    stream = flatjax.over_batches(make, parts)
    np.testing.assert_allclose(stream @ V, expected(name), rtol=0, atol=TOL)
    with pytest.raises(ValueError, match="total weight is zero"):
        flatjax.over_batches(make, parts[3:]) @ V


@pytest.mark.parametrize("name", ["hessian", "ggn", "sampled", "covariance"])
@pytest.mark.parametrize("check_vma", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_device_of_padding(name, check_vma):
    batch, weights = padded("nan")
    run = jax.shard_map(
        lambda b, w: OPERATORS[name](PARAMS, b, weights=w, axis_name="data").mv(V),
        mesh=jax.make_mesh((4,), ("data",), (AxisType.Auto,)),
        in_specs=P("data"),
        out_specs=P(),
        check_vma=check_vma,
    )
    found = jax.jit(run)(batch, weights)
    np.testing.assert_allclose(found, expected(name), rtol=0, atol=TOL)


def test_targets_that_are_nan():
    x, weights = real()[0][0], jnp.array([1.0, 0.0, 1.0, 1.0, 0.0])
    t = jnp.where(weights[:, None] > 0, V[:1], jnp.nan)
    clean = x[weights > 0], t[weights > 0]
    for make in (
        functools.partial(flatjax.hessian, squared),
        functools.partial(flatjax.ggn, model, flatjax.squared_error),
        functools.partial(flatjax.ggn, model, lambda z, t: ((z - t) ** 2).sum(axis=-1)),
        functools.partial(flatjax.fisher, model, flatjax.squared_error, kind="empirical"),
        functools.partial(flatjax.gradient_covariance, squared),
    ):
        wanted = make(PARAMS, clean) @ V
        found = make(PARAMS, (x, t), weights=weights) @ V
        np.testing.assert_allclose(found, wanted, rtol=0, atol=TOL)


# Everything else that takes weights, as a function of (batch, weights).
KEY = jax.random.key(1)


def line(batch, weights):
    return flatjax.loss_along(
        losses_fn,
        PARAMS,
        batch,
        direction=V,
        positions=[0.0, 1.0],
        weights=weights,
    )


MEASURES = {
    "gram": lambda b, w: jnp.linalg.norm(flatjax.gradient_gram(losses_fn, PARAMS, b, weights=w)),
    "gram_chunks": lambda b, w: jnp.linalg.norm(
        flatjax.gradient_gram(losses_fn, PARAMS, b, weights=w, chunk_size=3)
    ),
    "gram_eigh": lambda b, w: flatjax.gram_eigh(losses_fn, PARAMS, b, weights=w, k=2).values,
    "gradient_noise_scale": lambda b, w: flatjax.gradient_noise_scale(
        losses_fn, PARAMS, b, weights=w, unbiased=True
    ),
    "stiffness": lambda b, w: flatjax.stiffness(
        losses_fn, PARAMS, b, weights=w, labels=b[1], num_classes=3
    ),
    "gradient_confusion": lambda b, w: flatjax.gradient_confusion(losses_fn, PARAMS, b, weights=w)[
        :3
    ],
    "hessian_variance": lambda b, w: (
        flatjax.measures.hessian_variance(losses_fn, PARAMS, b, weights=w) @ V
    ),
    "fisher_rao_norm": lambda b, w: flatjax.fisher_rao_norm(
        model, LOSS, PARAMS, b, weights=w, degree=1
    ),
    "sam_sharpness": lambda b, w: flatjax.sam_sharpness(
        losses_fn, PARAMS, b, weights=w, rho=0.1, ascent_steps=2
    ),
    "average_sharpness": lambda b, w: flatjax.average_sharpness(
        losses_fn, PARAMS, b, weights=w, sigma=0.1, num_samples=2, key=KEY
    ),
    "line": line,
}


@pytest.mark.parametrize("name", MEASURES)
def test_measures(name):
    wanted = jax.tree.leaves(MEASURES[name](*real()))
    for poison in ("zeros", "nan"):
        found = jax.tree.leaves(MEASURES[name](*padded(poison)))
        for a, b in zip(found, wanted, strict=True):
            # float32 sums in another order, of differences of losses of order one.
            np.testing.assert_allclose(a, b, rtol=2e-4, atol=TOL)


class TestATotalOfZero:
    @pytest.mark.parametrize("name", OPERATORS)
    def test_is_an_error(self, name):
        batch, weights = real()
        with pytest.raises(ValueError, match=r"total weight is zero.*at least one example"):
            OPERATORS[name](PARAMS, batch, weights=0 * weights)

    def test_of_padded_targets_too(self):
        (x, y), _ = real()
        for make in (flatjax.ggn, flatjax.fisher):
            with pytest.raises(ValueError, match="all targets are padding"):
                make(model, LOSS, PARAMS, (x, 0 * y - 1))

    @pytest.mark.parametrize("name", ["hessian", "ggn", "covariance"])
    def test_is_nan_when_traced(self, name):
        batch, weights = real()
        make = OPERATORS[name]
        run = jax.jit(lambda w: make(PARAMS, batch, weights=w).mv(V))
        assert np.isnan(run(0 * weights)).all()

    def test_of_a_measure(self):
        batch, weights = real()
        with pytest.raises(ValueError, match="total weight is zero"):
            MEASURES["sam_sharpness"](batch, 0 * weights)
        with pytest.raises(ValueError, match="total weight is zero"):
            MEASURES["stiffness"](batch, 0 * weights)


class TestPadding:
    """Positions that targets mask: exactly zero, whatever the logits there."""

    def test_an_example_of_padding_is_never_seen(self):
        (x, y), _ = padded("nan")
        y = y.at[0].set(-1).at[N + 1 :].set(-100)
        for kind in ("exact", "empirical", "sampled"):
            key = jax.random.key(0) if kind == "sampled" else None
            make = functools.partial(flatjax.fisher, model, LOSS, PARAMS, kind=kind,
                                     key=key)  # fmt: skip
            clean = jnp.where(jnp.isnan(x), 1.0, x)
            wanted = make((clean, y)) @ V
            np.testing.assert_allclose(make((x, y)) @ V, wanted, rtol=0, atol=TOL)

    @pytest.mark.parametrize("per", ["example", "token"])
    @pytest.mark.parametrize("kind", ["exact", "empirical", "sampled"])
    def test_a_padded_position_of_an_example_that_counts(self, per, kind):
        # The logits of padded tokens are NaN, by no derivative of the params.
        x = jnp.asarray(RNG.normal(size=(2, 3, 4)), jnp.float32)
        y = jnp.array([[0, 1, -1], [2, -1, -1]])

        def broken(w, x, bad):
            z = x @ w
            return jnp.where((y < 0)[..., None], bad, z)

        key = jax.random.key(0) if kind == "sampled" else None
        products = [
            flatjax.fisher(broken, LOSS(per=per), PARAMS, (x, y), bad, kind=kind, key=key) @ V
            for bad in (jnp.float32(0.0), jnp.float32(np.nan))
        ]
        np.testing.assert_array_equal(products[1], products[0])
        assert np.isfinite(products[0]).all()
        assert np.any(np.asarray(products[0]))

    def test_token_weights_of_zero(self):
        x = jnp.asarray(RNG.normal(size=(2, 3, 4)), jnp.float32)
        y, weights = (
            jnp.array([[0, 1, 2], [2, 0, 0]]),
            jnp.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]]),
        )

        def broken(w, x, bad):
            return jnp.where((weights == 0)[..., None], bad, x @ w)

        products = [
            flatjax.ggn(broken, LOSS(per="token"), PARAMS, (x, y), bad, weights=weights) @ V
            for bad in (jnp.float32(0.0), jnp.float32(np.nan))
        ]
        np.testing.assert_array_equal(products[1], products[0])
        masked = flatjax.ggn(
            lambda w, x: x @ w, LOSS(per="token"), PARAMS,
            (x, jnp.where(weights > 0, y, -1)),
        )  # fmt: skip
        references.assert_close(products[0], masked @ V, TOL)


def test_keys_and_integers_among_the_rows():
    """A batch may hold typed keys, ids and flags beside its floating rows."""
    keys = jax.random.split(jax.random.key(0), N)
    batch = jnp.asarray(X, jnp.float32), keys, jnp.arange(N), jnp.arange(N) > 2

    def noisy(w, batch):
        x, key, ids, flags = batch
        noise = jax.vmap(lambda k: jax.random.normal(k, (3,)))(key)
        z = x @ w + noise + ids.astype(x.dtype)[:, None]
        return jnp.where(flags, 1.0, 2.0) * (z * z).sum(axis=-1)

    weights = jnp.array([0.0, 1.0, 1.0, 0.0, 2.0])
    rows = np.array([1, 2, 4])
    wanted = flatjax.gradient_covariance(
        noisy, PARAMS, jax.tree.map(lambda a: a[rows], batch), weights=weights[rows]
    )
    found = flatjax.gradient_covariance(noisy, PARAMS, batch, weights=weights)
    wanted = wanted @ V
    references.assert_close(found @ V, wanted, TOL)
