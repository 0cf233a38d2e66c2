"""What the processes of worker_library.py compute, and the same on one device."""

import jax
import jax.numpy as jnp
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


def everything(params, v, batch, weights, stream):
    """The numbers to compare; global-view, the same code on one device and on many."""
    H = flatjax.hessian(loss_fn, params, batch, weights=weights)
    G = flatjax.ggn(model_fn, LOSS, params, batch, weights=weights)
    K = flatjax.gradient_covariance(loss_fn, params, batch, weights=weights)
    results = {name: op @ v for name, op in (("hessian", H), ("ggn", G), ("covariance", K))}
    results["linearized"] = H.linearize() @ v
    make = lambda part: flatjax.gradient_covariance(loss_fn, params, part[0], weights=part[1])  # noqa: E731
    results["stream"] = flatjax.over_batches(make, stream) @ v
    # Of given vectors: split params are drawn other ones for the same key.
    pairs = jax.tree.map(lambda *rows: jnp.stack(rows), v, results["hessian"])
    state = flatjax.track(k=2).init(params, pairs=pairs)
    for _ in range(3):
        state = flatjax.track(k=2).update(H, state)
    results["tracked"] = state.values
    results |= pictures(params, v, batch, weights)
    return results


def pictures(params, v, batch, weights, loss_fn=loss_fn):
    """A surface, and a curve fitted and looked at."""
    surface = {"first": v, "second": params, "positions": [-1.0, 0.0, 0.5]}
    curve = flatjax.bezier([params, None, v])
    fit = flatjax.fit_curve(
        loss_fn, curve, [batch], optimizer=optax.sgd(0.1), key=jax.random.key(0), num_steps=3,
        weights=None if weights is None else [weights],
    )  # fmt: skip
    on_curve = flatjax.loss_on_curve(
        loss_fn, fit.curve, batch, positions=[0.0, 0.3, 1.0], weights=weights
    )
    drawn = flatjax.loss_surface(loss_fn, params, batch, weights=weights, **surface)
    return {"surface": drawn.losses, "fit": fit.losses, "curve": on_curve.losses}


def one_device():
    params, batch = mlp()
    stream = [(part, np.ones(len(part[1]))) for part in batches_of(batch, (3, 3, 4))]
    return everything(params, vector(params), batch, None, stream)


def over_processes(processes, index):
    params, batch = mlp()
    mesh = parallel.make_mesh()
    mine = batches_of(batch, SPLIT)[index]
    placed = parallel.shard_batch(mine, mesh)
    # Of unequal length too: three batches in the first process, one in the second.
    own = batches_of(mine, (2, 2, 2) if index == 0 else (4,))
    stream = parallel.shard_batches(own, mesh, rows=8)
    v = vector(params)
    results = {
        "replicated": everything(
            parallel.replicate(params, mesh), parallel.replicate(v, mesh), *placed, stream
        ),
        "sharded": everything(
            parallel.shard_params(params, mesh, min_size=0),
            parallel.shard_params(v, mesh, min_size=0),
            *placed,
            stream,
        ),
    }
    params, batch, v = parallel.replicate((params, batch, v), mesh)
    results |= {
        # Every device draws points of its own, unless a function captures what lies on all.
        "whole": pictures(params, v, batch, None),
        "captured": pictures(params, v, None, None, lambda p, _: loss_fn(p, batch).mean()),
    }
    gather = lambda a: multihost_utils.process_allgather(a, tiled=True)  # noqa: E731
    return jax.tree.map(lambda a: a if a.is_fully_addressable else gather(a), results)
