"""A head in place of logits gives what the logits give, and never forms all of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flatjax
from flatjax.losses import LinearHead

N, T, D, CLASSES = 3, 5, 4, 7
SOFTMAX = flatjax.softmax_cross_entropy
SIZES = pytest.mark.parametrize("size", [4, 5, None])  # with a rest, without, in one block


@pytest.fixture(autouse=True)
def strict(x64):
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield


def normal(number, *shape):
    return jax.random.normal(jax.random.key(number), shape, jnp.float64)


def head(size=None, *, bias=True, n=N, first=0):
    return LinearHead(
        normal(first, n, T, D), normal(first + 1, D, CLASSES),
        normal(first + 2, CLASSES) if bias else None, size,
    )  # fmt: skip


IDS = np.arange(N * T).reshape(N, T) % CLASSES
PADDED = np.where(np.arange(T) < np.array([[5], [2], [0]]), IDS, -1)
TARGETS = {
    "token": (SOFTMAX(per="token"), PADDED),
    "example": (SOFTMAX(label_smoothing=0.2), PADDED),
    "probabilities": (SOFTMAX, np.eye(CLASSES)[IDS] * (PADDED >= 0)[..., None]),
    "squares": (flatjax.squared_error, np.ones((N, T, CLASSES))),
}
CASES = pytest.mark.parametrize("name", TARGETS)


def case(name):
    loss, targets = TARGETS[name]
    return loss, jnp.asarray(targets)


@functools.partial(jax.jit, static_argnums=(0, 1))
def derivatives(loss, dense, head, targets, tangents):
    """Value, gradient and Hessian product by the logits or by blocks, weighted by example."""

    def total(head):
        values = loss(head.logits() if dense else head, targets)
        return (values * jnp.arange(1.0, 1.0 + values.shape[0])).sum()

    value, gradient = jax.value_and_grad(total)(head)
    return value, gradient, jax.jvp(jax.grad(total), (head,), (tangents,))[1]


def close(found, wanted):
    # Sums of some hundred terms of order one, in another order.
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@CASES
@SIZES
def test_value_gradient_and_hessian(name, size):
    loss, targets = case(name)
    given = loss, False, head(size), targets, head(size, first=5)
    close(derivatives(*given), derivatives(loss, True, *given[2:]))


@functools.partial(jax.jit, static_argnums=(0, 1))
def by_logits(loss, kind, head, targets, tangents):
    z, dz = jax.jvp(LinearHead.logits, (head,), (tangents,))
    product = getattr(loss, kind)(z, targets, dz)
    return jax.vjp(LinearHead.logits, head)[1](product)[0]


@CASES
@pytest.mark.parametrize("kind", ["hessian_product", "gradient_product", "score_product"])
def test_products_are_those_of_the_logits(name, kind):
    loss, targets = case(name)
    bias = name != "example"
    if kind == "gradient_product":  # of examples
        loss = loss(per="example")
    given = head(4, bias=bias), targets, head(4, bias=bias, first=5)
    close(getattr(loss, kind)(*given), by_logits(loss, kind, *given))


@pytest.mark.parametrize("kind", ["hessian_product", "gradient_product", "score_product"])
def test_whatever_features_are_at_the_padding(kind):
    targets, tangents = jnp.asarray(PADDED), head(4, first=5)
    bad = jnp.where((targets < 0)[..., None], jnp.nan, 0.0)
    spoilt = LinearHead(head().features + bad, head().kernel, head().bias, 4)
    moved = LinearHead(tangents.features + bad, tangents.kernel, tangents.bias, 4)
    wanted = getattr(SOFTMAX, kind)(head(4), targets, tangents)
    if kind == "hessian_product":
        close(getattr(SOFTMAX, kind)(spoilt, targets, moved), wanted)
        spoilt = LinearHead(head().features + bad, head().kernel, head().bias, 4)
    close(getattr(SOFTMAX, kind)(spoilt, targets, tangents), wanted)
    gradient = jax.grad(lambda h: SOFTMAX.mean(h, targets).value)
    close(gradient(spoilt), gradient(head(4)))


PARAMS = {"in": (6, D), "out": (D, CLASSES), "bias": (CLASSES,)}


def model_fn(params, x, size=4):
    return LinearHead(jnp.tanh(x @ params["in"]), params["out"], params["bias"], size)


def logits_fn(params, x):
    return model_fn(params, x).logits()


def problem():
    params = {name: normal(i, *shape) for i, (name, shape) in enumerate(PARAMS.items())}
    return params, (normal(9, N, T, 6), jnp.asarray(PADDED))


@pytest.mark.parametrize(
    ("matrix", "per"),
    [("ggn", "token"), ("empirical", "example"), ("hessian", "token"), ("covariance", "example")],
)
def test_operators(matrix, per):
    params, batch = problem()
    loss = SOFTMAX(per=per)
    weights = jnp.array([0.5, 2.0, 1.0])
    mean = lambda model: lambda p, b: loss.mean(model(p, b[0]), b[1])  # noqa: E731
    make = {
        "ggn": lambda m, **o: flatjax.ggn(m, loss, params, batch, **o),
        "empirical": lambda m, **o: flatjax.fisher(m, loss, params, batch, kind="empirical", **o),
        "hessian": lambda m, **o: flatjax.hessian(mean(m), params, batch, **o),
        "covariance": lambda m, **o: flatjax.gradient_covariance(mean(m), params, batch, **o),
    }[matrix]
    wanted = make(logits_fn, weights=weights).to_dense()
    assert float(jnp.abs(wanted).max()) > 0.01
    close(make(model_fn, weights=weights).linearize().to_dense(), wanted)
    close(make(model_fn, weights=weights, chunk_size=2).to_dense(), wanted)


def test_weights_of_tokens():
    params, batch = problem()
    loss, weights = SOFTMAX(per="token"), jnp.asarray(np.arange(N * T).reshape(N, T) % 4, float)
    found, wanted = (
        flatjax.ggn(m, loss, params, batch, weights=weights) for m in (model_fn, logits_fn)
    )
    close(found.to_dense(), wanted.to_dense())


def test_tied_embeddings():
    ids = jnp.asarray(IDS)

    def tied(params, x):
        return LinearHead(params["embedding"][x], params["embedding"].T, None, 4)

    params, batch = {"embedding": normal(0, CLASSES, D)}, (ids, ids[:, ::-1])
    found, wanted = (
        flatjax.ggn(m, SOFTMAX, params, batch).to_dense()
        for m in (tied, lambda p, x: tied(p, x).logits())
    )
    close(found, wanted)


def test_the_sampled_fisher():
    params, batch = problem()
    given = SOFTMAX(per="token"), params, batch
    options = {"kind": "sampled", "key": jax.random.key(3), "num_samples": 3}
    found, wanted = (flatjax.fisher(m, *given, **options) for m in (model_fn, logits_fn))
    wanted = dataclasses.replace(wanted, draws=found.draws)
    close(found.to_dense(), wanted.to_dense())
    smoothed = SOFTMAX(per="token", label_smoothing=0.3)  # what is drawn is not smoothed
    close(flatjax.fisher(model_fn, smoothed, *given[1:], **options).to_dense(), wanted.to_dense())
    drawn = np.asarray(found.draws).reshape(3, N, T)
    np.testing.assert_array_equal(drawn >= 0, np.broadcast_to(PADDED >= 0, drawn.shape))
    # A key for every position: neither blocks nor chunks change what is drawn.
    whole = flatjax.fisher(functools.partial(model_fn, size=None), *given, **options)
    parts = flatjax.fisher(model_fn, *given, chunk_size=2, **options)
    for other in (whole, parts.op):
        np.testing.assert_array_equal(other.draws, found.draws)


def test_targets_are_drawn_from_the_softmax():
    params, (x, _) = problem()
    targets, count = jnp.zeros((N, T), int), 4000
    op = flatjax.fisher(
        model_fn, SOFTMAX, params, (x, targets), kind="sampled", key=jax.random.key(1),
        num_samples=count,
    )  # fmt: skip
    p = np.asarray(jax.nn.softmax(logits_fn(params, x)))
    often = (np.asarray(op.draws)[..., None] == np.arange(CLASSES)).mean(axis=0)
    scores = (often - p) / np.sqrt(p * (1 - p) / count)
    # Of 105 standard scores the largest exceeds 4.5 once in a thousand keys.
    assert np.abs(scores).max() < 4.5
    assert 0.8 < scores.std() < 1.2  # 105 of them, of which 90 are free: 1 +- 0.075
    # Two positions of a sequence are drawn independently of each other.
    alike = (np.asarray(op.draws)[:, :, 0] == np.asarray(op.draws)[:, :, 1]).mean(axis=0)
    chance = (p[:, 0] * p[:, 1]).sum(axis=-1)
    assert (np.abs(alike - chance) < 4.5 * np.sqrt(chance * (1 - chance) / count)).all()


@pytest.mark.parametrize("matrix", ["ggn", "hessian", "covariance", "linearized ggn"])
def test_memory_does_not_grow_with_tokens_and_classes(matrix):
    """By the compiler's account, of shapes alone: nothing is computed."""
    classes, d, positions = 50_304, 8, 2048
    logits = 4 * classes * positions
    params = {"in": (d, d), "out": (d, classes)}
    params, x, y = jax.eval_shape(
        lambda: (
            {name: jnp.zeros(shape, jnp.float32) for name, shape in params.items()},
            jnp.zeros((1, positions, d), jnp.float32),
            jnp.zeros((1, positions), jnp.int32),
        )
    )
    model = lambda p, x: LinearHead(jnp.tanh(x @ p["in"]), p["out"])  # noqa: E731
    loss = SOFTMAX(per="token")
    loss_fn = lambda p, b: loss.mean(model(p, b[0]), b[1])  # noqa: E731

    def product(params, x, y, v):
        if matrix == "ggn":
            return flatjax.ggn(model, loss, params, (x, y)).mv(v)
        if matrix == "linearized ggn":
            return flatjax.ggn(model, loss, params, (x, y)).linearize().mv(v)
        if matrix == "hessian":
            return flatjax.hessian(loss_fn, params, (x, y)).mv(v)
        return flatjax.gradient_covariance(loss_fn, params, (x, y)).mv(v)

    compiled = jax.jit(product).lower(params, x, y, params).compile()
    # Some five blocks of 32 MB of 412 MB of logits, and a few gradients of 1.6 MB.
    assert compiled.memory_analysis().temp_size_in_bytes < logits / 2


@pytest.mark.parametrize(("classes", "size"), [(50_304, 128), (8192, 1024), (2, 3000), (10**7, 16)])
def test_a_block_has_32_megabytes(classes, size):
    shapes = (1000, 3, 8), (8, classes)
    found = LinearHead(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))
    assert found.positions_per_block == size


class TestDoors:
    def test_shapes(self):
        layer, y = head(), jnp.asarray(IDS)
        for kernel, what in ((layer.kernel.T, "transpose it"), (layer.kernel[:2], "got")):
            with pytest.raises(ValueError, match=what):
                SOFTMAX(LinearHead(layer.features, kernel), y)
        with pytest.raises(ValueError, match=r"bias of LinearHead must have shape \(7,\)"):
            SOFTMAX(LinearHead(layer.features, layer.kernel, jnp.zeros(3)), y)
        with pytest.raises(ValueError, match="block_size must be at least 1"):
            SOFTMAX(head(-1), y)
        with pytest.raises(ValueError, match="integer targets must have shape"):
            SOFTMAX(layer, y[:, :2])

    def test_a_function_is_no_loss_of_it(self):
        params, batch = problem()
        with pytest.raises(TypeError, match=r"return head\.logits"):
            flatjax.ggn(model_fn, lambda z, t: z.sum(), params, batch)
