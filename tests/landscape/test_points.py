"""Many points by one program: trees of metrics, state made anew, devices, captured values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import flatjax
from flatjax import parallel
from flatjax.landscape import _points, loss_along, loss_surface
from tests.compilations import count_compilations


def network(params, x):
    return jnp.tanh(x @ params["w"]) @ params["out"]


def metrics(params, batch):
    x, y = batch
    outputs = network(params, x)
    hits = (outputs > 0) == (y > 0)
    mask = y > -1
    error = flatjax.Mean((mask * (outputs - y) ** 2).sum(), mask.sum())
    rows = flatjax.Mean(mask * jnp.abs(outputs - y), mask)
    return {"loss": (outputs - y) ** 2, "hits": hits, "masked": [error, rows]}


@pytest.fixture
def problem(key):
    k = jax.random.split(key, 4)
    params = {"w": jax.random.normal(k[0], (3, 4)), "out": jax.random.normal(k[1], (4,))}
    batch = jax.random.normal(k[2], (6, 3)), jax.random.normal(k[3], (6,))
    return params, batch


def test_every_metric_of_a_tree_is_its_mean(problem):
    params, batch = problem
    weights = jnp.array([1.0, 2.0, 0.0, 1.0, 1.0, 3.0])
    positions = [-0.5, 0.25]

    def rows(params, batch):  # a `Mean` of scalars cannot be weighed
        found = metrics(params, batch)
        return found | {"masked": found["masked"][1]}

    got = loss_along(rows, params, batch, direction=params, positions=positions, weights=weights)
    plain = loss_along(metrics, params, batch, direction=params, positions=positions)
    assert jax.tree.structure(plain.losses) == jax.tree.structure(
        {"loss": 0, "hits": 0, "masked": [0, 0]}
    )
    w, y = np.asarray(weights), np.asarray(batch[1])
    mask = y > -1
    for i, t in enumerate(positions):
        outputs = np.asarray(network(jax.tree.map(lambda p, t=t: p + t * p, params), batch[0]))
        squares, hits = (outputs - y) ** 2, (outputs > 0) == (y > 0)
        distances = np.abs(outputs - y)
        # A few roundings of float32 in sums of six numbers.
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5)  # noqa: E731
        close(got.losses["loss"][i], np.average(squares, weights=w))
        close(got.losses["hits"][i], np.average(hits, weights=w))
        close(got.losses["masked"][i], np.average(distances, weights=w * mask))
        close(plain.losses["masked"][0][i], squares[mask].mean())
        close(plain.losses["masked"][1][i], distances[mask].mean())


def test_an_error_names_the_metric(problem):
    params, batch = problem
    options = {"direction": params, "positions": [0.0]}
    with pytest.raises(ValueError, match=r"metric\['state'\]: loss_fn must return a scalar or one"):
        loss_along(lambda p, b: {"loss": p["w"].sum(), "state": p["w"]}, params, batch, **options)
    with pytest.raises(ValueError, match="loss_fn returns nothing"):
        loss_along(lambda p, b: None, params, batch, **options)
    with pytest.raises(TypeError, match="loss_fn must be a function"):
        loss_along(3, params, batch, args_fn=lambda p: (), **options)
    with pytest.raises(TypeError, match="args_fn must be a function"):
        loss_along(metrics, params, batch, args_fn=3, **options)


def normalized(params, batch, statistics):
    """A network with batch norm, evaluated with the statistics that it is given."""
    hidden = (batch @ params - statistics["mean"]) / jnp.sqrt(statistics["var"] + 1e-5)
    return jnp.square(jnp.maximum(hidden, 0)).sum(axis=1)


def running(params, statistics, batch):
    """The running statistics after one pass in training mode."""
    hidden = batch @ params
    fresh = {"mean": hidden.mean(axis=0), "var": jnp.square(hidden).mean(axis=0)}
    return jax.tree.map(lambda s, f: 0.9 * s + 0.1 * f, statistics, fresh)


def test_batch_statistics_are_made_anew_at_every_point(key):
    params, direction = jax.random.normal(key, (2, 3, 2))
    batches = [jax.random.normal(jax.random.fold_in(key, i), (n, 3)) for i, n in enumerate((4, 2))]
    stale = {"mean": jnp.zeros(2), "var": jnp.ones(2)}

    def args_fn(w):
        return (flatjax.reestimate_batch_statistics(running, w, stale, batches),)

    line = loss_along(
        normalized, params, batches[0], stale, direction=direction, positions=[0.0, 1.0, 2.0],
        args_fn=args_fn,
    )  # fmt: skip
    everything = jnp.concatenate(batches)
    for t, loss in zip(line.positions, line.losses, strict=True):
        hidden = everything @ (params + t * direction)
        exact = {"mean": hidden.mean(axis=0), "var": jnp.square(hidden).mean(axis=0)}
        wanted = normalized(params + t * direction, batches[0], exact).mean()
        # 1e-4: a decay of 0.9 is found as the difference of two numbers, to a few units of 1e-7 of
        # which a tenth is left.
        np.testing.assert_allclose(loss, wanted, rtol=1e-4)
    fixed = loss_along(
        normalized, params, batches[0], stale, direction=direction, positions=[0.0, 1.0, 2.0]
    )
    assert not np.allclose(fixed.losses, line.losses, rtol=1e-2)


def test_a_surface_is_one_program_and_the_next_one_none():
    def loss(w, x):
        return jnp.sin(x @ w) ** 2

    counts = []
    for i in range(2):
        rng = np.random.default_rng(i)
        w, x, first, second = (
            jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((5,), (7, 5), (5,), (5,))
        )
        with count_compilations() as count:
            surface = loss_surface(
                loss, w, x, first=first, second=second, positions=np.linspace(-1, 1, 6) + i,
                other_positions=np.linspace(-1, 1, 4),
            )  # fmt: skip
        assert surface.losses.shape == (6, 4)
        counts.append(count.value)
    assert counts == [1, 0]


def test_devices_take_points_of_their_own(problem):
    """Five points in two rounds of four devices, where eight would be asked for by each alone."""
    params, batch = problem
    calls = []

    def loss(p, b):
        def seen(a):
            calls.append(1)
            return a

        out = metrics(p, b)["loss"]
        return jax.pure_callback(seen, jax.ShapeDtypeStruct(out.shape, out.dtype), out)

    positions = np.linspace(-1, 1, 5)
    here = loss_along(loss, params, batch, direction=params, positions=positions)
    assert len(calls) == 5
    calls.clear()
    mesh = parallel.make_mesh({"data": 2, "model": 2})
    there = loss_along(
        loss, parallel.replicate(params, mesh), batch, direction=params, positions=positions
    )
    assert len(calls) == 8
    # The same program at the same points.
    np.testing.assert_allclose(there.losses, here.losses, rtol=1e-6)


@pytest.mark.parametrize(
    "whole", [("params",), ("params", "batch"), ("captured",), ("params", "batch", "captured")]
)
def test_devices_of_their_own_take_a_cross_entropy(whole):
    """Programs of indexing name the mesh of the arrays that they are traced with."""
    rng = np.random.default_rng(0)
    given = {
        "params": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
        "batch": (jnp.asarray(rng.normal(size=(6, 3)), jnp.float32), jnp.arange(6) % 4),
        "captured": jnp.asarray(rng.normal(size=(6, 3)), jnp.float32),
    }

    def loss(w, batch, scale):
        logits = scale * (batch[0] @ w)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])

    def along(params, batch, captured):
        def args_fn(w):
            picked = jnp.take_along_axis(captured @ w, batch[1][:, None], axis=1)
            return jnp.square(jnp.where(picked > 0, picked, captured[0, 0])).mean()

        options = {"direction": given["params"], "positions": np.linspace(-1, 1, 5)}
        return loss_along(loss, params, batch, args_fn=args_fn, **options).losses

    mesh = parallel.make_mesh(4)
    placed = {k: parallel.replicate(v, mesh) if k in whole else v for k, v in given.items()}
    # The same program at the same points.
    np.testing.assert_allclose(along(**placed), along(**given), rtol=1e-6)


def test_a_batch_that_is_split_is_shared_at_every_point(problem):
    params, batch = problem
    mesh = parallel.make_mesh(4)
    split, weights = parallel.shard_batch(batch, mesh)
    assert _points.mesh_of(parallel.replicate(batch, mesh)) is not None
    assert _points.mesh_of((parallel.replicate(params, mesh), split)) is None
    rows = lambda p, b: {k: v for k, v in metrics(p, b).items() if k != "masked"}  # noqa: E731
    there = loss_along(
        rows, parallel.replicate(params, mesh), split, direction=params, positions=[-1, 0, 1],
        weights=weights,
    )  # fmt: skip
    here = loss_along(rows, params, batch, direction=params, positions=[-1, 0, 1])
    for a, b in zip(jax.tree.leaves(there), jax.tree.leaves(here), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)  # sums in another order
