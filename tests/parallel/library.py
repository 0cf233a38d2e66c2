"""What the processes of worker_library.py compute, and the same on one device."""

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils

import flatjax
from flatjax import parallel
from tests.parallel.problems import loss_fn, mlp, model_fn, vector

LOSS = flatjax.softmax_cross_entropy
SPLIT = (6, 4)  # the examples of the first process, and of the second


def sharded_params():
    """Params split over all devices of all processes."""
    return parallel.shard_params(mlp()[0], parallel.make_mesh(), min_size=0)


def batches_of(batch, sizes):
    stops = np.cumsum(sizes)
    return [
        jax.tree.map(lambda a, i=i, j=j: np.asarray(a)[i:j], batch)
        for i, j in zip([0, *stops[:-1]], stops, strict=True)
    ]


def everything(params, v, batch, weights, stream, whole):
    """The numbers to compare; global-view, the same code on one device and on many."""
    H = flatjax.hessian(loss_fn, params, batch, weights=weights)
    G = flatjax.ggn(model_fn, LOSS, params, batch, weights=weights)
    K = flatjax.gradient_covariance(loss_fn, params, batch, weights=weights)
    results = {name: op @ v for name, op in (("hessian", H), ("ggn", G), ("covariance", K))}
    results["linearized"] = H.linearize() @ v
    make = lambda part: flatjax.gradient_covariance(loss_fn, params, part[0], weights=part[1])  # noqa: E731
    results["stream"] = flatjax.over_batches(make, stream) @ v
    state = flatjax.track(k=2).init(params, key=jax.random.key(0))
    for _ in range(3):
        state = flatjax.track(k=2).update(H, state)
    results["tracked"] = state.values
    plane = {"first": v, "second": params, "positions": [-0.5, 0.3, 1.0]}
    # Of a batch that is split all devices work on every point; with all of it each has its own.
    results["surface"] = flatjax.loss_surface(
        loss_fn, params, batch, weights=weights, **plane
    ).losses
    results["points"] = flatjax.loss_surface(loss_fn, params, whole, **plane).losses
    fit = flatjax.fit_curve(
        loss_fn, flatjax.bezier([params, None, v]), [batch], optimizer=optax.sgd(0.1),
        weights=None if weights is None else [weights], key=jax.random.key(0), num_steps=2,
    )  # fmt: skip
    results["curve"] = fit.curve.free
    return results


def one_device():
    params, batch = mlp()
    stream = [(part, np.ones(len(part[1]))) for part in batches_of(batch, (3, 3, 4))]
    return everything(params, vector(params), batch, None, stream, batch)


def over_processes(processes, index):
    params, batch = mlp()
    mesh = parallel.make_mesh()
    mine = batches_of(batch, SPLIT)[index]
    placed = parallel.shard_batch(mine, mesh)
    # Of unequal length too: three batches in the first process, one in the second.
    own = batches_of(mine, (2, 2, 2) if index == 0 else (4,))
    stream = parallel.shard_batches(own, mesh, rows=8)
    v, whole = vector(params), parallel.replicate(batch, mesh)
    results = {
        "replicated": everything(
            parallel.replicate(params, mesh), parallel.replicate(v, mesh), *placed, stream, whole
        ),
        "sharded": everything(
            parallel.shard_params(params, mesh, min_size=0),
            parallel.shard_params(v, mesh, min_size=0),
            *placed,
            stream,
            whole,
        ),
    }
    return multihost_utils.process_allgather(results, tiled=True)
